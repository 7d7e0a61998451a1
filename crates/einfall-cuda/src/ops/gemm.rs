//! Products of matrices that the vendor's library (cuBLASLt) takes as they lie: one loop a role, one of them contiguous in
//! every array. Without the library the tile kernel runs them.
//!
//! `f32` stays `f32`: no TF32.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Role, Way};
use einfall_tensor::DType;

use super::{LAUNCH_SECONDS, capability, stream_seconds};
use crate::text::Lowering;

/// Scratch memory that the library may use. Measured: with 8 MiB it divides no long sums, and takes up to four times as long.
const WORKSPACE: usize = 32 << 20;

/// A matrix as the library describes it: column-major, `rows` x `columns`, or its transpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Whether memory holds the transpose.
    pub transposed: bool,
    /// Elements from a column in memory to the next.
    pub leading: usize,
    /// Elements from a matrix to the next.
    pub stride: isize,
    /// Bytes to the first element.
    pub offset: isize,
}

/// `out = first · second`, column-major: `m x k` by `k x n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of the first and of the output.
    pub m: usize,
    /// Columns of the second and of the output.
    pub n: usize,
    /// Terms.
    pub k: usize,
    /// Number of products.
    pub batch: usize,
    /// Whether the first is the contraction's right input.
    pub swapped: bool,
    /// The first matrix.
    pub first: Matrix,
    /// The second.
    pub second: Matrix,
    /// The output, never transposed.
    pub out: Matrix,
    /// Type of the inputs.
    pub dtype: DType,
    /// Type of the output.
    pub out_dtype: DType,
    /// Scratch memory, bytes.
    pub workspace: usize,
}

/// What the library would be asked for.
///
/// # Errors
/// Why it cannot be.
fn product_of(contraction: &Contraction) -> Result<Product, String> {
    use DType::{BF16, C64, C128, F16, F32, F64};
    let right = contraction.right.as_ref().ok_or("needs two inputs")?;
    let (dtype, out_dtype) = (contraction.dtype, contraction.out_dtype);
    if ![F32, F64, F16, BF16, C64, C128].contains(&dtype) || ![dtype, dtype.accumulator()].contains(&out_dtype) {
        return Err(format!("not for {dtype} into {out_dtype}"));
    }
    if !contraction.accesses().all(Access::is_plain) {
        return Err("something is looked up or slid over".into());
    }
    let one = |role| -> Result<Option<usize>, String> {
        let mut loops = contraction.loops_of(role);
        match (loops.next(), loops.next()) {
            (at, None) => Ok(at),
            _ => Err("several loops with one role, which no fixed stride joins".into()),
        }
    };
    let (batch, kept_left, kept_right, terms) =
        (one(Role::Batch)?, one(Role::Left)?, one(Role::Right)?, one(Role::Contracted)?);
    if terms.is_none() || kept_left.or(kept_right).is_none() {
        return Err("nothing is kept, or nothing summed".into());
    }
    // What is not there has length one.
    let len = |at: Option<usize>| at.map_or(1, |at| contraction.loops[at].len);
    let step = |access: &Access, at: Option<usize>| at.map(|at| access.strides[at]);
    // Column-major: the loop along which the output is contiguous counts rows.
    let out = &contraction.out;
    let swapped = step(out, kept_right) == Some(1);
    let (rows, columns, first, second) = match swapped {
        true => (kept_right, kept_left, right, &contraction.left),
        false => (kept_left, kept_right, &contraction.left, right),
    };
    let matrix =
        |access: &Access, down: Option<usize>, across: Option<usize>, bytes: usize| -> Result<Matrix, String> {
            let stride = batch.map_or(0, |at| access.strides[at]);
            // From a column in memory to the next; a single column has no next.
            let leading = |along: Option<usize>, to: Option<usize>| {
                let contiguous = step(access, along).is_none_or(|stride| stride == 1);
                let leading = step(access, to).unwrap_or(len(along) as isize);
                (contiguous && leading >= len(along) as isize && leading < 1 << 31).then_some(leading as usize)
            };
            let (transposed, leading) = match (leading(down, across), leading(across, down)) {
                (Some(leading), _) => (false, leading),
                (None, Some(leading)) => (true, leading),
                _ => return Err("no loop of a matrix is contiguous".into()),
            };
            if stride < 0 {
                return Err("matrices follow each other backwards".into());
            }
            Ok(Matrix { transposed, leading, stride, offset: access.offset * bytes as isize })
        };
    if [len(rows), len(columns), len(terms), len(batch)].iter().any(|&len| len >= 1 << 31) {
        return Err("longer than the library counts".into());
    }
    let target = matrix(out, rows, columns, out_dtype.bytes())?;
    if target.transposed {
        return Err("no loop of the output is contiguous".into());
    }
    Ok(Product {
        m: len(rows),
        n: len(columns),
        k: len(terms),
        batch: len(batch),
        swapped,
        first: matrix(first, rows, terms, dtype.bytes())?,
        second: matrix(second, terms, columns, dtype.bytes())?,
        out: target,
        dtype,
        out_dtype,
        workspace: WORKSPACE,
    })
}

fn is_half(contraction: &Contraction) -> bool {
    matches!(contraction.dtype, DType::F16 | DType::BF16)
}

/// Whether the library's kernels for half types would rather have copies, whose lines begin at multiples of 16 bytes.
pub(super) fn wants_copies(contraction: &Contraction) -> bool {
    is_half(contraction) && product_of(contraction).is_ok_and(|product| product.is_misaligned())
}

impl Product {
    /// Of half types, lines or matrices that do not begin at multiples of 16 bytes, or are no multiples of them.
    fn is_misaligned(&self) -> bool {
        let &Product { m, n, k, .. } = self;
        let length = |matrix: &Matrix, [down, across]: [usize; 2]| if matrix.transposed { across } else { down };
        let apart = |(matrix, sizes): (&Matrix, [usize; 2])| {
            !matrix.leading.is_multiple_of(8)
                || !length(matrix, sizes).is_multiple_of(8)
                || (self.batch > 1 && !matrix.stride.unsigned_abs().is_multiple_of(8))
        };
        self.dtype.bytes() == 2
            && [(&self.first, [m, k]), (&self.second, [k, n]), (&self.out, [m, n])].into_iter().any(apart)
    }

    /// What the library would take once it runs, as an H100 was seen to.
    fn seconds(&self, contraction: &Contraction, peak: f64, machine: &Machine) -> f64 {
        let &Product { m, n, k, batch, .. } = self;
        let stream = stream_seconds(contraction.distinct_bytes(), machine);
        if m.min(n) == 1 {
            // A vector on one side is not worth tiles: its matrix is streamed. Every product is a block's work.
            return stream * 1.05 + if batch > 1 { batch as f64 * 1.3e-9 } else { 0.0 };
        }
        let (is_half, misaligned) = (is_half(contraction), self.is_misaligned());
        if batch > 1 && m <= 64 && n <= 64 {
            // A multiprocessor has a product at a time: it begins, and goes on at a part of the peak. Sums are not cut.
            let flops = 2.0 * (m.next_multiple_of(16) * n.next_multiple_of(16)) as f64 * k as f64;
            let lanes = machine.flops_per_second(contraction.dtype) / machine.threads as f64;
            let (start, rate) = match is_half {
                true if misaligned => (0.12e-6, lanes * 1.5),
                true => (0.4e-6, lanes * 3.0),
                false => (0.22e-6, lanes * if contraction.dtype.is_complex() { 0.1 } else { 0.4 }),
            };
            return (batch.div_ceil(machine.threads) as f64 * (start + flops / rate)).max(stream / 0.75);
        }
        // Tiles that stick out are computed whole, narrow ones half, each takes as long as 64 terms more, the last wave
        // leaves multiprocessors idle, and the sums of a single product are cut in a dozen pieces where tiles are few.
        let tiles = batch * m.div_ceil(64) * n.div_ceil(64);
        let narrow = if m.min(n) <= 32 { 0.5 } else { 1.0 };
        let flops = narrow * 2.0 * (tiles * 64 * 64) as f64 * (k as f64 + 64.0);
        let pieces = if batch == 1 || is_half { 12 } else { 1 };
        let (share, joining) = match tiles / machine.threads {
            0 => (((tiles * pieces) as f64 / machine.threads as f64).min(1.0), LAUNCH_SECONDS),
            _ => (tiles as f64 / tiles.next_multiple_of(machine.threads) as f64, 0.0),
        };
        let joining = if k > 256 { joining } else { 0.0 };
        let busy = (flops / (peak * 0.85 * share)).max(stream / 0.75);
        // Several products of half types whose tiles stick out were seen to take three times as long.
        let sticks_out = is_half && batch > 1 && !m.max(n).is_multiple_of(64);
        let slower = if misaligned {
            4.0
        } else if sticks_out {
            3.0
        } else {
            1.0
        };
        joining + busy * slower
    }
}

/// What the library would take.
///
/// # Errors
/// Why it cannot run the contraction.
pub fn estimate(contraction: &Contraction, machine: &Machine) -> Result<Estimate, String> {
    let product = product_of(contraction)?;
    let peak = match (contraction.dtype, capability(machine)) {
        // Tensor cores.
        (DType::F16 | DType::BF16, ..90) => 280e12,
        (DType::F16 | DType::BF16, 90..100) => 870e12,
        (DType::F16 | DType::BF16, _) => 1500e12,
        (DType::F64 | DType::C128, 80 | 90 | 100) => {
            machine.f64_flops_per_second * if contraction.dtype.is_complex() { 0.5 } else { 2.0 }
        }
        (dtype, _) => machine.flops_per_second(dtype) * if dtype.is_complex() { 0.25 } else { 1.0 },
    };
    let bytes = contraction.distinct_bytes();
    let busy = product.seconds(contraction, peak, machine);
    let seconds = LAUNCH_SECONDS + busy;
    let cost = Cost { flops: contraction.flops(), bytes, seconds };
    Ok(Estimate { way: Way::Gemm, cost, workspace_bytes: WORKSPACE })
}

/// The product.
pub fn product(lowering: &Lowering<'_>) -> Product {
    product_of(lowering.contraction).expect("the kernel made an offer")
}
