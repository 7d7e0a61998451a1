//! The best keys of each query, from views: shapes and types are checked here.

use einfall_plan::{Machine, RunError};
use einfall_tensor::half::{bf16, f16};
use einfall_tensor::{DType, Element, Tensor, TensorError, View};

use crate::isa::Isa;
use crate::kernels::tile::TileElement;
use crate::ops::best::{BestKeys, Position, Score, best_keys as fill};
use crate::ops::gemm::Caches;
use crate::threads::Threads;

/// See [`CpuDevice::best_keys`](crate::device::CpuDevice::best_keys).
pub(crate) fn best_keys(
    isa: Isa,
    threads: &Threads,
    machine: &Machine,
    (query, key): (&View<'_>, &View<'_>),
    count: usize,
    causal: bool,
) -> Result<Tensor, RunError> {
    let shape = shape(query, key)?;
    let call = Call { isa, threads, machine, query, key, shape, count, causal };
    match query.dtype() {
        DType::F16 => call.typed::<f16>(),
        DType::BF16 => call.typed::<bf16>(),
        DType::F32 => call.typed::<f32>(),
        _ => call.typed::<f64>(),
    }
}

/// Batches, heads, groups, queries, keys, features.
fn shape(query: &View<'_>, key: &View<'_>) -> Result<[usize; 6], RunError> {
    let wrong = |reason: String| Err(RunError::Device { reason });
    let dtype = query.dtype();
    if !dtype.is_float() {
        return wrong(format!("query is {dtype}, but products of floating-point numbers are compared"));
    }
    if key.dtype() != dtype {
        return wrong(format!("query is {dtype} but key is {}\nhint: convert them to one type", key.dtype()));
    }
    match (query.shape(), key.shape()) {
        (&[batches, heads, queries, depth], &[b, groups, keys, d])
            if b == batches && d == depth && groups > 0 && heads % groups == 0 =>
        {
            Ok([batches, heads, groups, queries, keys, depth])
        }
        (query, key) => wrong(format!(
            "query has the shape {query:?} and key {key:?}\nhint: they are (b, h, q, d) and (b, g, n, d), where g divides h"
        )),
    }
}

struct Call<'a> {
    isa: Isa,
    threads: &'a Threads,
    machine: &'a Machine,
    query: &'a View<'a>,
    key: &'a View<'a>,
    shape: [usize; 6],
    count: usize,
    causal: bool,
}

impl Call<'_> {
    fn typed<T>(&self) -> Result<Tensor, RunError>
    where
        T: Element + TileElement,
        T::Acc: Score,
    {
        let copy = |view: &View<'_>| -> Result<Option<Tensor>, TensorError> {
            if view.as_ptr().addr().is_multiple_of(size_of::<T>()) {
                return Ok(None);
            }
            // The matrix kernel reads whole elements.
            Tensor::from_slice(&view.to_vec::<T>()?, view.shape()).map(Some)
        };
        let copies = [copy(self.query), copy(self.key)];
        let [query, key] = copies.map(|copy| copy.map_err(|error| describe(&error)));
        let (query, key) = (query?, key?);
        let query = query.as_ref().map_or_else(|| self.query.clone(), Tensor::view);
        let key = key.as_ref().map_or_else(|| self.key.clone(), Tensor::view);
        if i32::try_from(self.shape[4]).is_ok() {
            self.table::<T, i32>(&query, &key)
        } else {
            self.table::<T, i64>(&query, &key)
        }
    }

    fn table<T, I>(&self, query: &View<'_>, key: &View<'_>) -> Result<Tensor, RunError>
    where
        T: Element + TileElement,
        T::Acc: Score,
        I: Element + Position,
    {
        let [batches, heads, _, queries, keys, depth] = self.shape;
        let shape = [batches, heads, queries, self.count];
        let mut table = Tensor::zeros(I::DTYPE, &shape).map_err(|error| describe(&error))?;
        if shape.contains(&0) {
            return Ok(table);
        }
        let machine = self.machine;
        let scores = shape[..3].iter().map(|&len| len as f64).product::<f64>() * keys as f64;
        let strides = |view: &View<'_>| -> [isize; 4] { std::array::from_fn(|axis| view.strides()[axis]) };
        let call = BestKeys::<T, I> {
            isa: self.isa,
            threads: self.threads,
            caches: Caches {
                l1_bytes: machine.l1_bytes,
                l2_bytes: machine.l2_bytes,
                l3_bytes: machine.l3_bytes / machine.threads.max(1),
            },
            shape: self.shape,
            query: (query.as_ptr().cast(), strides(query)),
            key: (key.as_ptr().cast(), strides(key)),
            count: self.count,
            causal: self.causal,
            table: table.view_mut().as_mut_ptr().cast(),
            serial_seconds: scores * (depth as f64 * 2.0 / machine.f32_flops_per_second + 0.3e-9),
        };
        // SAFETY: `bound`: shapes were compared, addresses are aligned, and the table is new.
        unsafe { fill(&call) };
        Ok(table)
    }
}

fn describe(error: &TensorError) -> RunError {
    match error {
        TensorError::OutOfMemory { bytes } => RunError::OutOfMemory { bytes: *bytes },
        other => RunError::Device { reason: other.to_string() },
    }
}
