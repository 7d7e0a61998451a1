//! What an instruction set offers to the row kernels: a chunk of elements in registers, and a tree that sums the lanes
//! of several accumulators at once.
//!
//! One implementation a dtype and instruction set; the loops over it are written once, in `dots` and `axpys`.

use super::RowElement;

/// Accumulators that [`Lanes::full`] and [`Lanes::tail`] reduce, made on demand so that few are live at a time.
pub(super) trait Rows<V> {
    /// The accumulator of row `i`.
    ///
    /// # Safety
    /// `i` is below the number of rows the reducing function asks for.
    unsafe fn row(&self, i: usize) -> V;
}

/// Registers of one instruction set for one dtype.
///
/// # Safety of every function
/// The machine has the instruction set. A pointer is valid for exactly the elements that the function reads or writes;
/// nothing is assumed of its alignment. `n` is at least 1 and below [`Lanes::STEP`], or at most [`Lanes::BLOCK`] in
/// [`Lanes::store_head`].
pub(super) trait Lanes: Sized {
    /// The dtype of the rows.
    type Element: RowElement;
    /// [`Lanes::STEP`] elements, widened to the accumulator's type, in any order of lanes.
    type Chunk: Copy;
    /// The partial sums of one dot, or [`Lanes::BLOCK`] finished dots.
    type Sums: Copy;
    /// One weight in every lane.
    type Weight: Copy;

    /// Elements in a chunk.
    const STEP: usize;
    /// Rows whose sums [`Lanes::full`] reduces together.
    const BLOCK: usize;
    /// Rows whose sums [`Lanes::tail`] reduces together.
    const TAIL: usize;
    /// Whether [`Lanes::load_half`] is better than [`Lanes::load_head`].
    const HALVES: bool = false;
    /// Chunks of the vector `x` that a dot may keep in registers.
    const DOT_CHUNKS: usize;
    /// Chunks of accumulators that an axpy may keep in registers.
    const AXPY_CHUNKS: usize;
    /// Chunks of accumulators of several lists that an axpy may keep in registers together.
    const SIDE_BY_SIDE: usize;

    unsafe fn load(p: *const Self::Element) -> Self::Chunk;
    /// The first `n` elements, the rest 0.
    unsafe fn load_head(p: *const Self::Element, n: usize) -> Self::Chunk;
    /// The same for at most half of [`Lanes::STEP`] elements. A narrower load crosses fewer cache lines, which costs
    /// even where its mask leaves nothing to read there: dots with unaligned rows of 20 `f32` take 3.5 cycles instead
    /// of 4.8 on Zen 5.
    #[inline(always)]
    unsafe fn load_half(p: *const Self::Element, n: usize) -> Self::Chunk {
        // SAFETY: by the caller.
        unsafe { Self::load_head(p, n) }
    }

    unsafe fn mul(a: Self::Chunk, b: Self::Chunk) -> Self::Sums;
    unsafe fn mul_add(sums: Self::Sums, a: Self::Chunk, b: Self::Chunk) -> Self::Sums;
    /// Sums the lanes of rows `0..BLOCK`. Each row is summed in an order that depends on nothing but its lanes.
    unsafe fn full(rows: &impl Rows<Self::Sums>) -> Self::Sums;
    /// The same for rows `0..TAIL`, in the same order of lanes.
    unsafe fn tail(rows: &impl Rows<Self::Sums>) -> Self::Sums;
    unsafe fn store(out: *mut Acc<Self>, sums: Self::Sums);
    /// Stores the first `n` dots.
    unsafe fn store_head(out: *mut Acc<Self>, sums: Self::Sums, n: usize);

    unsafe fn zero() -> Self::Chunk;
    unsafe fn load_acc(p: *const Acc<Self>) -> Self::Chunk;
    unsafe fn load_acc_head(p: *const Acc<Self>, n: usize) -> Self::Chunk;
    unsafe fn store_acc(p: *mut Acc<Self>, chunk: Self::Chunk);
    unsafe fn store_acc_head(p: *mut Acc<Self>, chunk: Self::Chunk, n: usize);
    unsafe fn splat(w: *const Self::Element) -> Self::Weight;
    unsafe fn splat_acc(w: *const Acc<Self>) -> Self::Weight;
    unsafe fn axpy(acc: Self::Chunk, w: Self::Weight, row: Self::Chunk) -> Self::Chunk;
}

/// How much of its last chunk a row has: all of it.
pub(super) const WHOLE: u8 = 0;
/// At most half of it, for lanes with [`Lanes::HALVES`].
pub(super) const HALF: u8 = 1;
/// Some of it.
pub(super) const PART: u8 = 2;

/// How much `n` elements are of a chunk.
pub(super) const fn part<L: Lanes>(n: usize) -> u8 {
    match n % L::STEP {
        0 => WHOLE,
        n if L::HALVES && 2 * n <= L::STEP => HALF,
        _ => PART,
    }
}

/// The last chunk of a row, of which there are `n` elements.
///
/// # Safety
/// As for [`Lanes`]; `LAST` says how much `n` is.
#[inline(always)]
pub(super) unsafe fn load_last<L: Lanes, const LAST: u8>(p: *const L::Element, n: usize) -> L::Chunk {
    // SAFETY: by the caller.
    unsafe {
        match LAST {
            WHOLE => L::load(p),
            HALF => L::load_half(p, n),
            _ => L::load_head(p, n),
        }
    }
}

/// The accumulator of a set of lanes.
pub(super) type Acc<L> = <<L as Lanes>::Element as RowElement>::Acc;
