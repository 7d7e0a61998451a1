//! Shared by the engine's tests: running a case and comparing it with the oracle.
#![allow(dead_code)] // each test file uses its own part

pub mod attention;
pub mod ways;

use einfall::{Bounds, CpuDevice, DType, Device, Einsum, Error, Isa, Layout, Tensor, View, ViewMut};
use einfall_testing::case::{Buffer, Case};
use einfall_testing::oracle;

/// Every instruction set of this machine with 1, 2, 3 and 7 threads.
pub fn devices() -> Vec<CpuDevice> {
    let isas = Isa::available();
    let with = |threads| isas.iter().map(move |&isa| CpuDevice::with_isa(threads, isa).expect("available"));
    [1, 2, 3, 7].into_iter().flat_map(with).collect()
}

/// The call that a case describes.
pub fn call<'a>(case: &'a Case, device: &'a dyn Device) -> Einsum<'a> {
    let bounds = match case.bounds {
        oracle::Bounds::Error => Bounds::Error,
        oracle::Bounds::Skip => Bounds::Skip,
    };
    let mut call = Einsum::new(&case.equation).device(device).bounds(bounds);
    for (name, &len) in &case.sizes {
        call = call.size(name, len);
    }
    if let Some(dtype) = case.out {
        call = call.dtype(dtype);
    }
    call
}

/// Runs a case and compares it with the oracle; both must fail, or both succeed with the same elements.
pub fn check_case(case: &Case, device: &dyn Device) -> Result<(), String> {
    check_call(case, call(case, device))
}

/// The same for a call with more options.
pub fn check_call(case: &Case, call: Einsum<'_>) -> Result<(), String> {
    let buffers = case.materialise().map_err(|error| format!("{error}"))?;
    let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
    let result = call.run(&views);
    let rounded = call.plan(&views).ok().and_then(|prepared| prepared.plan().rounded());
    compare(case, result, rounded)
}

fn compare(case: &Case, result: Result<Tensor, Error>, rounded: Option<(DType, usize)>) -> Result<(), String> {
    match (result, case.expected()) {
        (Ok(result), Ok(expected)) => compare_rounded(case, &result.view(), &expected, rounded),
        (Err(_), Err(_)) => Ok(()),
        (Ok(_), Err(error)) => Err(format!("accepted, but the oracle says: {error:?}\n{case}")),
        (Err(error), Ok(_)) => Err(format!("refused: {error}\n{case}")),
    }
}

/// Compares elements bit for bit where the arithmetic is exact in any order, else within the bound.
pub fn compare_elements(case: &Case, result: &View<'_>, expected: &oracle::OracleArray) -> Result<(), String> {
    compare_rounded(case, result, expected, None)
}

fn compare_rounded(
    case: &Case,
    result: &View<'_>,
    expected: &oracle::OracleArray,
    rounded: Option<(DType, usize)>,
) -> Result<(), String> {
    // Small integers are summed exactly in any order while the sum of magnitudes stays below the mantissa.
    let most = expected.magnitudes.iter().fold(0.0f64, |most, &m| most.max(m));
    let mantissa = match rounded.map_or(expected.accumulator, |(half, _)| half) {
        DType::BF16 => 2f64.powi(8),
        DType::F16 => 2f64.powi(11),
        DType::F32 | DType::C64 => 2f64.powi(24),
        _ => 2f64.powi(53),
    };
    let exact = case.is_exact() && most <= mantissa;
    let tier = match rounded {
        _ if exact => oracle::Tier::Exact,
        Some((half, results)) => expected.bound_rounding(results as u64, half),
        None => expected.bound(),
    };
    oracle::compare(result, expected, tier).map_err(|mismatch| format!("{mismatch}\n{case}"))
}

/// A strided, padded array to write, filled with a sentinel.
pub struct Target {
    pub data: Vec<u8>,
    pub layout: Layout,
    pub dtype: DType,
    pub offset: usize,
}

impl Target {
    /// Gaps between all elements, the first axis backwards.
    pub fn new(dtype: DType, shape: &[usize]) -> Self {
        let mut strides = einfall_tensor_strides(shape);
        strides.iter_mut().for_each(|stride| *stride *= 2);
        let mut offset = 3isize;
        if let (Some(stride), Some(&len)) = (strides.first_mut(), shape.first()) {
            *stride = -*stride;
            offset -= *stride * (len.max(1) as isize - 1);
        }
        let reach: isize = shape.iter().zip(&strides).map(|(&len, &s)| s.max(0) * (len.max(1) as isize - 1)).sum();
        let len = (offset + reach) as usize + 4;
        let layout = Layout { shape: shape.into(), strides: strides.into() };
        Target { data: vec![0xA5; len * dtype.bytes()], layout, dtype, offset: offset as usize }
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let pointer = self.data.as_mut_ptr().wrapping_add(self.offset * self.dtype.bytes());
        // SAFETY: `new` made room for every element, and the strides are distinct multiples.
        #[allow(unsafe_code)]
        unsafe { ViewMut::from_raw_parts(pointer, self.dtype, self.layout.clone()) }.expect("regular strides")
    }

    pub fn view(&self) -> View<'_> {
        let (shape, strides) = (&self.layout.shape, &self.layout.strides);
        View::from_bytes(&self.data, self.dtype, shape, strides, self.offset).expect("inside")
    }
}

impl Target {
    fn element_starts(&self) -> Vec<usize> {
        let count: usize = self.layout.shape.iter().product();
        (0..count)
            .map(|mut flat| {
                let mut offset = self.offset as isize;
                for (&len, &stride) in self.layout.shape.iter().zip(&self.layout.strides).rev() {
                    offset += (flat % len) as isize * stride;
                    flat /= len;
                }
                offset as usize * self.dtype.bytes()
            })
            .collect()
    }

    /// True when everything between the elements is as it was.
    pub fn gaps_equal(&self, other: &Target) -> bool {
        let mut mine = self.data.clone();
        for start in self.element_starts() {
            mine[start..start + self.dtype.bytes()].fill(0xA5);
        }
        mine == other.data
    }
}

fn einfall_tensor_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = strides[at] * shape[at].max(1) as isize;
    }
    strides
}
