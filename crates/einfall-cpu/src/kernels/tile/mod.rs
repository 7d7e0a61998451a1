//! The micro-kernel of a matrix product: a tile of C in registers, `C[i, j] = Σ_k A[i, k] · B[k, j]`.
//!
//! In: a column of A to broadcast and a row of B as vectors, for each k. Out: a tile of at most `height × width·lanes`
//! elements. Called by [`crate::ops::gemm`] only. The body is written once, `multiply`; an instruction set supplies a
//! [`Vector`] and a table of entry points, one for each tile shape, so that no edge of a matrix is computed with
//! idle rows.
//!
//! Every element is summed over k in ascending order into one accumulator, whatever the tile shape: results do not
//! depend on how a matrix is cut into tiles.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod store;

pub use element::{Accumulator, Bit, TileElement};
pub use store::store;

/// What one call of a micro-kernel works on. Strides are in elements.
pub struct Tile<E> {
    /// Length of the contracted axis; may be 0.
    pub k: usize,
    /// First element of A. Packed entry points read rows at stride 1 and ignore `a_row`.
    pub a: *const E,
    /// Stride between rows of A.
    pub a_row: isize,
    /// Stride of A along k.
    pub a_col: isize,
    /// First element of B, whose columns have stride 1.
    pub b: *const E,
    /// Stride of B along k.
    pub b_row: isize,
    /// First element of C, whose columns have stride 1.
    pub c: *mut E,
    /// Stride between rows of C.
    pub c_row: isize,
    /// Valid columns of the last vector, 1 to lanes. Without masks it must equal the lanes.
    pub last: usize,
    /// Add to C instead of replacing it. C is read only if this is set.
    pub add: bool,
}

/// An entry point of the micro-kernel.
///
/// # Safety
/// The instruction set of the table must be available. For the entry point's height h and width w, with
/// `columns = (w − 1)·lanes + last`: `a + i·a_row + p·a_col` (i < h, p < k) and `b + p·b_row + j` (j < columns) must be
/// readable, `c + i·c_row + j` writable, and readable if `add`.
pub type TileFn<E> = unsafe fn(&Tile<E>);

/// The micro-kernels of one accumulator type on one instruction set.
pub struct TileKernel<E: 'static> {
    /// Elements of a vector.
    pub lanes: usize,
    /// Whether the last vector may be partial.
    pub masks: bool,
    /// Entry points that read packed A (row stride 1), at `[width − 1][height − 1]`.
    pub packed: &'static [&'static [TileFn<E>]],
    /// Entry points that read A in place, the same shapes; empty if this type always packs A.
    pub direct: &'static [&'static [TileFn<E>]],
}

impl<E> TileKernel<E> {
    /// The most vectors side by side in a tile.
    pub fn max_width(&self) -> usize {
        self.packed.len()
    }

    /// The most rows of a tile that is `width` vectors wide.
    pub fn max_height(&self, width: usize) -> usize {
        self.packed[width - 1].len()
    }
}

/// Elements of the largest tile of any kernel: the size of the buffer for tiles that cannot be stored directly.
pub const TILE_LEN: usize = 512;

/// Rows of a block that is transposed while packing; no vector has more lanes.
pub const MAX_LANES: usize = 16;

/// A register of `LANES` elements, and what the micro-kernel does with it.
///
/// # Safety
/// For implementors: `load*` and `store*` touch only the elements they name. For callers of every method: the
/// instruction set is available, and pointers are valid for the elements named.
#[allow(clippy::missing_safety_doc, reason = "stated for all methods at once, above")]
pub unsafe trait Vector: Copy {
    /// The element of a lane.
    type Elem: Accumulator;
    /// Which lanes are valid.
    type Mask: Copy;
    /// An element of A, broadcast.
    type Left: Copy;
    /// A running sum, possibly in parts that [`Vector::finish`] joins.
    type Sum: Copy;
    /// Number of lanes.
    const LANES: usize;
    /// Whether there are loads and stores of part of a vector.
    const MASKS: bool;
    /// Whether they cost no more than whole ones.
    const FREE_MASKS: bool;

    /// The mask of the first `lanes` lanes.
    unsafe fn mask(lanes: usize) -> Self::Mask;
    /// An empty sum.
    unsafe fn empty() -> Self::Sum;
    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// Loads `LANES` elements; no alignment needed.
    unsafe fn load(from: *const Self::Elem) -> Self;
    /// Loads the lanes of the mask; the rest is zero.
    unsafe fn load_masked(from: *const Self::Elem, mask: Self::Mask) -> Self;
    /// Stores `LANES` elements.
    unsafe fn store(self, to: *mut Self::Elem);
    /// Stores the lanes of the mask.
    unsafe fn store_masked(self, to: *mut Self::Elem, mask: Self::Mask);
    /// Loads one element into all lanes.
    unsafe fn broadcast(from: *const Self::Elem) -> Self::Left;
    /// `sum + left · right`, lane by lane.
    unsafe fn multiply_add(sum: Self::Sum, left: Self::Left, right: Self) -> Self::Sum;
    /// The value of a sum.
    unsafe fn finish(sum: Self::Sum) -> Self;
    /// Lane-wise sum.
    unsafe fn plus(self, other: Self) -> Self;
    /// Writes `to[p·stride + x] = rows[x][p]` for x < `LANES` and p < `len` ≤ `LANES`.
    #[inline(always)]
    unsafe fn transpose(rows: &[*const Self::Elem; MAX_LANES], len: usize, to: *mut Self::Elem, stride: usize) {
        for p in 0..len {
            for (x, row) in rows.iter().enumerate().take(Self::LANES) {
                // SAFETY: the caller's ranges of `rows` and `to`.
                unsafe { *to.add(p * stride + x) = *row.add(p) }
            }
        }
    }
}

/// From this length on, a tile takes so long that C is worth asking for in advance. Shorter ones write C as fast as
/// memory takes it, and asking would only read what is replaced.
const PREFETCH_LEN: usize = 96;

/// Rows of B that are asked for in advance.
const PREFETCH_ROWS: isize = 8;

/// The micro-kernel: `H` rows by `W` vectors.
///
/// # Safety
/// As for [`TileFn`]; the caller compiles it with the features of `V`.
#[inline(always)]
unsafe fn multiply<V: Vector, const H: usize, const W: usize, const PACKED: bool>(tile: &Tile<V::Elem>) {
    // Measured on Zen 5 and not understood: two-vector tiles, of which C has many in a row, are stored a fifth faster
    // through masks, even full ones; one and four vectors are not.
    let partial = V::MASKS && (tile.last < V::LANES || (V::FREE_MASKS && W == 2));
    // SAFETY: TileFn's ranges; every address below is `c + i·c_row + j`.
    unsafe {
        if tile.add || tile.k >= PREFETCH_LEN {
            for i in 0..H {
                let row = tile.c.wrapping_offset(i as isize * tile.c_row).cast_const();
                prefetch(row);
                prefetch(row.wrapping_add(W * V::LANES - 1));
            }
        }
        let mask = V::mask(tile.last);
        let sums = if V::FREE_MASKS || partial {
            sum::<V, H, W, PACKED, true>(tile, mask)
        } else {
            sum::<V, H, W, PACKED, false>(tile, mask)
        };
        // Rows without gaps between them: what one overruns, the next one writes.
        let columns = (W - 1) * V::LANES + tile.last;
        let overrun =
            tile.last < V::LANES && !tile.add && tile.c_row == columns as isize && columns + tile.last >= V::LANES;
        for (i, row) in sums.iter().enumerate() {
            let c = tile.c.offset(i as isize * tile.c_row);
            let partial = partial && !(overrun && i + 1 < H);
            for (j, &sum) in row.iter().enumerate() {
                let to = c.add(j * V::LANES);
                let value = V::finish(sum);
                if partial && j + 1 == W {
                    let value = if tile.add { V::load_masked(to, mask).plus(value) } else { value };
                    value.store_masked(to, mask);
                } else {
                    let value = if tile.add { V::load(to).plus(value) } else { value };
                    value.store(to);
                }
            }
        }
    }
}

/// The sums of a tile; of B's last vector only the lanes of the mask are read if `MASKED`.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn sum<V: Vector, const H: usize, const W: usize, const PACKED: bool, const MASKED: bool>(
    tile: &Tile<V::Elem>,
    mask: V::Mask,
) -> [[V::Sum; W]; H] {
    // SAFETY: TileFn's ranges; every address below is `a + i·a_row + p·a_col` or `b + p·b_row + j`.
    unsafe {
        let mut sums = [[V::empty(); W]; H];
        let a_row = if PACKED { 1 } else { tile.a_row };
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.k {
            let mut right = [V::zero(); W];
            for (j, vector) in right.iter_mut().enumerate() {
                let from = b.add(j * V::LANES);
                prefetch(from.wrapping_offset(PREFETCH_ROWS * tile.b_row));
                *vector = if MASKED && j + 1 == W { V::load_masked(from, mask) } else { V::load(from) };
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let left = V::broadcast(a.offset(i as isize * a_row));
                for (sum, &vector) in row.iter_mut().zip(&right) {
                    *sum = V::multiply_add(*sum, left, vector);
                }
            }
            a = a.wrapping_offset(tile.a_col);
            b = b.wrapping_offset(tile.b_row);
        }
        sums
    }
}

/// A table of entry points: `entries!(function, vector, packed; width: heights…; …)`.
macro_rules! entries {
    ($entry:ident, $vector:ty, $packed:literal; $($width:literal: $($height:literal)*);+) => {
        &[$(&[$($entry::<$vector, $height, $width, $packed> as $crate::kernels::tile::TileFn<_>),*]),+]
    };
}
pub(crate) use entries;

/// Asks for the cache line of an element, into the second-level cache alone: of many lines at a distance of pages, the
/// first-level cache holds but a few.
#[inline(always)]
pub fn prefetch_far<E>(at: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for the cache line of an element; any address is fine.
#[inline(always)]
pub fn prefetch<E>(at: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch cannot fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
