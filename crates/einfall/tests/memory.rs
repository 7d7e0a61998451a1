//! Peak memory of a run: at most the result and the plan's workspace.
#![allow(unsafe_code)] // an allocator is unsafe by its trait; every call goes on to the system's unchanged

use std::alloc::{GlobalAlloc, Layout as Allocation, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use einfall::{Bounds, CpuDevice, DType, Einsum, Isa, Tensor, View};

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Counts are of the whole process, so one test measures at a time.
static MEASURING: Mutex<()> = Mutex::new(());

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: `system`: each method passes its arguments to the system's allocator and returns what that returns; the
// provided `realloc` and `alloc_zeroed` go through these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Allocation) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), SeqCst) + layout.size();
        PEAK.fetch_max(now, SeqCst);
        // SAFETY: `system`, by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Allocation) {
        IN_USE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: `system`, by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Bytes that a call takes at most beyond what was in use before it.
fn peak_during<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = IN_USE.load(SeqCst);
    PEAK.store(before, SeqCst);
    let result = call();
    (result, PEAK.load(SeqCst) - before)
}

/// What the plan does not count, for all threads together: lists of row offsets and of rows (16 KiB each), counters of
/// walks, messages of the pool. None grows with the lengths of the problem. Less than one operand of each case below.
const LISTS: usize = 256 << 10;

struct Case {
    equation: &'static str,
    shapes: &'static [&'static [usize]],
    dtypes: &'static [DType],
    sizes: &'static [(&'static str, usize)],
    bounds: Bounds,
    memory_limit: Option<usize>,
}

fn case(equation: &'static str, shapes: &'static [&'static [usize]]) -> Case {
    Case { equation, shapes, dtypes: &[], sizes: &[], bounds: Bounds::Error, memory_limit: None }
}

impl Case {
    fn of(self, dtypes: &'static [DType]) -> Self {
        Case { dtypes, ..self }
    }

    fn sizes(self, sizes: &'static [(&'static str, usize)]) -> Self {
        Case { sizes, ..self }
    }

    fn skip(self) -> Self {
        Case { bounds: Bounds::Skip, ..self }
    }

    fn limit(self, elements: usize) -> Self {
        Case { memory_limit: Some(elements), ..self }
    }

    /// The arguments; a table (`i64`, `i32`) holds 0, 1, 2, 0, 1, …
    fn arguments(&self) -> Vec<Tensor> {
        let filled = |(number, shape): (usize, &&[usize])| {
            let dtype = self.dtypes.get(number).copied().unwrap_or(DType::F32);
            let count: usize = shape.iter().product();
            match dtype {
                DType::F32 => Tensor::from_slice(&(0..count).map(|at| (at % 7) as f32).collect::<Vec<_>>(), shape),
                DType::F64 => Tensor::from_slice(&(0..count).map(|at| (at % 7) as f64).collect::<Vec<_>>(), shape),
                DType::I64 => Tensor::from_slice(&(0..count).map(|at| (at % 3) as i64).collect::<Vec<_>>(), shape),
                DType::I32 => Tensor::from_slice(&(0..count).map(|at| (at % 3) as i32).collect::<Vec<_>>(), shape),
                other => Tensor::zeros(other, shape),
            }
        };
        self.shapes.iter().enumerate().map(filled).collect::<Result<_, _>>().expect("small enough")
    }

    /// Peak and bound of one run.
    fn measure(&self, device: &CpuDevice) -> (usize, usize, String) {
        let tensors = self.arguments();
        let views: Vec<View<'_>> = tensors.iter().map(Tensor::view).collect();
        let mut call = Einsum::new(self.equation).device(device).bounds(self.bounds);
        for &(name, len) in self.sizes {
            call = call.size(name, len);
        }
        if let Some(elements) = self.memory_limit {
            call = call.memory_limit(elements);
        }
        let plan = call.plan(&views).unwrap_or_else(|error| panic!("{error}"));
        let (result, peak) = peak_during(|| plan.run(&views).unwrap_or_else(|error| panic!("{error}")));
        (peak, result.as_bytes().len() + plan.plan().workspace_bytes, plan.to_string())
    }
}

const F32: DType = DType::F32;
const I64: DType = DType::I64;

fn cases() -> Vec<Case> {
    use DType::{BF16, C64, F16, F64, I16, I32};
    vec![
        // Products, every layout of the summed label.
        case("ij,jk->ik", &[&[301, 307], &[307, 311]]),
        case("ji,jk->ik", &[&[307, 301], &[307, 311]]),
        case("ij,kj->ik", &[&[301, 307], &[311, 307]]),
        case("ij,jk->ki", &[&[301, 307], &[307, 311]]),
        case("bij,bjk->bik", &[&[5, 131, 127], &[5, 127, 137]]),
        case("bij,jk->bik", &[&[5, 131, 127], &[127, 537]]),
        case("ijk,kjl->il", &[&[61, 37, 41], &[41, 37, 67]]),
        case("ij,jk->ik", &[&[3, 20_001], &[20_001, 5]]),
        // Vectors.
        case("ij,j->i", &[&[301, 1307], &[1307]]),
        case("ij,i->j", &[&[301, 1307], &[301]]),
        case("i,i->", &[&[500_009], &[500_009]]),
        case("i,j->ij", &[&[701], &[709]]),
        // Sums, copies, diagonals.
        case("ij->", &[&[701, 709]]),
        case("ij->i", &[&[701, 709]]),
        case("ij->j", &[&[701, 709]]),
        case("ijk->kji", &[&[71, 73, 79]]),
        case("ii->i", &[&[701, 701]]),
        case("ii->", &[&[701, 701]]),
        case("ij,ij->ij", &[&[701, 709], &[701, 709]]),
        case("i->i", &[&[500_009]]).of(&[F64]),
        // Types: copies where they meet, accumulators for halves.
        case("ij,jk->ik", &[&[301, 307], &[307, 311]]).of(&[F16, F16]),
        case("ij,jk->ik", &[&[301, 307], &[307, 311]]).of(&[BF16, F32]),
        case("ij,jk->ik", &[&[301, 307], &[307, 311]]).of(&[C64, C64]),
        case("ij,jk->ik", &[&[301, 307], &[307, 311]]).of(&[I16, I32]),
        case("qd,[qk]d->qk", &[&[301, 401], &[307, 401], &[301, 11]]).of(&[F32, BF16, I64]),
        // Several operands, sliced or not.
        case("ab,bc,cd->ad", &[&[301, 307], &[307, 311], &[311, 313]]),
        case("ab,bc,cd->ad", &[&[301, 307], &[307, 311], &[311, 313]]).of(&[F16, F16, F16]),
        case("ij,jk,ki->", &[&[301, 307], &[307, 311], &[311, 301]]),
        case("ij,jk,ki->", &[&[301, 307], &[307, 311], &[311, 301]]).limit(1000),
        case("aij,jkb->ik", &[&[13, 101, 103], &[103, 107, 17]]),
        // Lookups.
        case("bhqd,bhqkd->bhqk", &[&[2, 2, 100, 64], &[2, 2, 100, 11, 64]]),
        case("bhqd,bh[bhqk]d->bhqk", &[&[2, 2, 300, 64], &[2, 2, 500, 64], &[2, 2, 300, 31]]).of(&[F32, F32, I64]),
        case("bhqk,bh[bhqk]d->bhqd", &[&[2, 2, 300, 31], &[2, 2, 500, 64], &[2, 2, 300, 31]]).of(&[F32, F32, I64]),
        case("bhqd,b[bqk]d->bhqk", &[&[2, 4, 300, 64], &[2, 1500, 64], &[2, 300, 31]]).of(&[F32, F32, I32]).skip(),
        case("td,[t]df->tf", &[&[501, 64], &[17, 64, 67], &[501]]).of(&[F32, F32, I64]),
        case("bk,[bk]d->bd", &[&[2001, 31], &[5003, 32], &[2001, 31]]).of(&[F32, F32, I64]),
        case("[i]j,[i]j->", &[&[3001, 64], &[70_001], &[3001, 64], &[70_001]]).of(&[F32, I64, F32, I64]),
        // Scatters.
        case("e,[e]d->[e]d", &[&[70_001], &[3001, 32], &[70_001], &[70_001]])
            .of(&[F32, F32, I64, I64])
            .sizes(&[("[e]", 2003)]),
        case("ed->[e]d", &[&[70_001, 7], &[70_001]]).of(&[BF16, I64]).sizes(&[("[e]", 503)]),
        // Windows.
        case("bhqd,bh[q+w-4]d->bhqw", &[&[2, 2, 700, 64], &[2, 2, 700, 64]]).sizes(&[("w", 9)]),
        case("bi[x+u][y+v],oiuv->boxy", &[&[2, 3, 131, 137], &[5, 3, 3, 3]]),
    ]
}

#[test]
fn peak_memory_is_at_most_the_result_and_the_workspace() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut failures = Vec::new();
    for threads in [1, 2] {
        for isa in [Isa::Portable, *Isa::available().last().expect("one at least")] {
            let device = CpuDevice::with_isa(threads, isa).unwrap();
            for case in cases() {
                let (peak, bound, plan) = case.measure(&device);
                if peak > bound + LISTS {
                    failures.push(format!("{isa}, {threads} threads: {peak} bytes, {bound} predicted\n{plan}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} cases\n{}", failures.len(), failures.join("\n\n"));
}

/// Lists of offsets hold 16 bytes for each of very many terms of a sum.
#[test]
fn peak_memory_of_very_long_sums_is_predicted() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let device = CpuDevice::with_isa(1, Isa::Portable).unwrap();
    let arguments: [Tensor; 2] =
        [Tensor::zeros(F32, &[3, 140_001]).unwrap(), Tensor::zeros(F32, &[140_001, 5]).unwrap()];
    let views: Vec<View<'_>> = arguments.iter().map(Tensor::view).collect();
    let plan = Einsum::new("ij,jk->ik").device(&device).kernel("gemm").plan(&views).expect("a plan");
    let ((), peak) = peak_during(|| drop(plan.run(&views).expect("a result")));
    let bound = 3 * 5 * 4 + plan.plan().workspace_bytes;
    assert!(peak <= bound + LISTS, "{peak} bytes, {bound} predicted");
}

/// Stored whole, the looked-up keys would be 102 MB.
#[test]
fn looked_up_keys_are_never_stored() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    const SHAPES: &[&[usize]] = &[&[8, 1, 1000, 32], &[8, 1, 1000, 32], &[8, 1, 1000, 100]];
    for threads in [1, 2] {
        let device = CpuDevice::new(threads).unwrap();
        let (peak, _, plan) = case("bhqd,bh[bhqk]d->bhqk", SHAPES).of(&[F32, F32, I64]).measure(&device);
        let output = 8 * 1000 * 100 * 4;
        assert!(peak <= output + 4_000_000, "{peak} bytes\n{plan}");
    }
}

/// The test can fail: what it counts is what is allocated.
#[test]
fn the_count_sees_what_other_threads_allocate() {
    let _alone = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || std::hint::black_box(vec![1u8; 3 << 20]).len();
    let (len, peak) = peak_during(|| std::thread::spawn(work).join().expect("no panic"));
    // The test harness allocates and frees a little of its own meanwhile.
    assert!(peak.abs_diff(len) < 64 << 10, "{peak}");
}
