//! Elementwise: nothing is summed and nothing is looked up, so every output is one product, or a copy.
//!
//! *In*: a contraction of strides alone. *Out*: its output, row by row along the innermost loop; past the caches where the
//! output does not fit there, whole blocks at a time. Floor: all inputs once from memory, the output once to it.

use std::ops::Range;

use einfall_plan::{Access, Contraction, Role};
use smallvec::SmallVec;

use super::{Shape, inner};
use crate::kernels::through;
use crate::ops::Run;
use crate::scalar::Scalar;
use crate::walk::{BadTable, Walk};

/// Bytes of results that are kept until they go past the caches: a sixth of a small L1.
const BUFFER: usize = 4096;
/// Elements of a tile, which one task takes at least.
const SEGMENT: usize = 4096;
/// Elements of a row of a square tile.
const TILE: usize = 64;

/// Whether the loops here run a contraction.
pub(super) fn fits(contraction: &Contraction, shape: &Shape) -> bool {
    shape.summed.is_empty()
        && shape.inner.is_some_and(|at| contraction.loops[at].role != Role::Contracted)
        && contraction.accesses().all(Access::is_plain)
}

/// Strides of left, right and output along one loop.
type Strides = [isize; 3];

/// # Safety
/// As [`typed`](super::typed), of a contraction that [`fits`].
pub(super) unsafe fn run<T: Scalar, U: Scalar<Acc = T::Acc>>(run: &Run<'_>, shape: &Shape) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let inner = shape.inner.expect("it fits");
    let len = contraction.loops[inner].len;
    // Rows that follow each other are taken in one go: along the fastest of the other loops.
    let apart = |at: usize| contraction.accesses().map(|access| access.strides[at].unsigned_abs()).min();
    let score = |&at: &usize| (contraction.loops[at].len.min(64), std::cmp::Reverse(apart(at)));
    let rows_at = shape.outer.iter().copied().max_by_key(score);
    let rows = rows_at.map_or(1, |at| contraction.loops[at].len);
    let outer: SmallVec<[(usize, usize); 8]> =
        shape.outer.iter().filter(|&&at| Some(at) != rows_at).map(|&at| (at, contraction.loops[at].len)).collect();
    let planes: usize = outer.iter().map(|(_, len)| len).product();
    // Tasks take tiles: one long segment of a row, or some short rows; square ones where an input's lines run across.
    let across = contraction.accesses().any(|access| access.strides[inner].unsigned_abs() > 1);
    let segment = match len {
        _ if across => TILE,
        len if len >= 2 * SEGMENT => SEGMENT,
        len => len,
    };
    let group = (SEGMENT / segment.min(len)).clamp(1, rows);
    let per_row = len.div_ceil(segment);
    let groups = rows.div_ceil(group) * per_row;
    let total = planes * groups;
    run.threads.for_pieces(total, run.threads.piece(total, 8), run.serial_seconds, |range| {
        let plan = Groups { inner, rows_at, rows, len, group, segment, per_row, groups };
        // SAFETY: by the caller; pieces write distinct groups.
        unsafe { groups_of::<T, U>(run, &plan, &outer, range) }
    })
}

/// How the two fastest loops are cut.
struct Groups {
    inner: usize,
    rows_at: Option<usize>,
    rows: usize,
    len: usize,
    /// Rows of a group.
    group: usize,
    /// Elements of a segment of a row.
    segment: usize,
    /// Segments of a row.
    per_row: usize,
    /// Tiles of a plane.
    groups: usize,
}

/// # Safety
/// As [`run`]; `range` counts groups.
unsafe fn groups_of<T: Scalar, U: Scalar<Acc = T::Acc>>(
    run: &Run<'_>,
    plan: &Groups,
    outer: &[(usize, usize)],
    range: Range<usize>,
) -> Result<(), BadTable> {
    let contraction = run.contraction;
    let (left, right, out) = (&contraction.left, contraction.right.as_ref(), &contraction.out);
    let along = |at: Option<usize>| -> Strides {
        at.map_or([0; 3], |at| [left.strides[at], right.map_or(0, |right| right.strides[at]), out.strides[at]])
    };
    let (along_row, across) = (along(Some(plan.inner)), along(plan.rows_at));
    let accesses = [left, right.unwrap_or(left), out];
    let mut walk = Walk::new(accesses, outer.iter().copied(), run.tables, contraction.bounds);
    walk.seek(range.start / plan.groups);
    let past = along_row[2] == 1 && crate::ops::is_past_caches(run, size_of::<U>());
    let (l, r, o) = (run.left.cast::<T>(), right.map(|_| run.right.cast::<T>()), run.out.cast::<U>());
    let _fence = through::Fence;
    for flat in range {
        let at = flat % plan.groups;
        let (row, start) = (at / plan.per_row * plan.group, at % plan.per_row * plan.segment);
        let rows = plan.group.min(plan.rows - row);
        let count = plan.segment.min(plan.len - start);
        let shift =
            |which: usize| walk.plain_offset(which) + row as isize * across[which] + start as isize * along_row[which];
        // SAFETY: `bound`: the walk, the rows and the segment are within the loops; these outputs are this piece's own.
        unsafe {
            let (l, r, o) = (l.offset(shift(0)), r.map(|r| r.offset(shift(1))), o.offset(shift(2)));
            if past {
                buffered(run, rows, count, l, r, o, along_row, across);
            } else {
                inner::products::<T, U>(run.isa, rows, count, l, r, o, along_row, across);
            }
        }
        if at + 1 == plan.groups {
            walk.step();
        }
    }
    Ok(())
}

/// The same through a buffer, which goes past the caches whenever it is full.
///
/// # Safety
/// As [`inner::products`]; the output's rows are contiguous, and a fence follows.
#[allow(clippy::too_many_arguments)] // the arguments of `products`
unsafe fn buffered<T: Scalar, U: Scalar<Acc = T::Acc>>(
    run: &Run<'_>,
    rows: usize,
    count: usize,
    l: *const T,
    r: Option<*const T>,
    o: *mut U,
    along: Strides,
    across: Strides,
) {
    #[repr(align(64))]
    struct Buffer([std::mem::MaybeUninit<u8>; BUFFER]);
    let mut buffer = Buffer([std::mem::MaybeUninit::uninit(); BUFFER]);
    let buffer = buffer.0.as_mut_ptr().cast::<U>();
    let most = BUFFER / size_of::<U>();
    // SAFETY: by the caller; the buffer takes `most` elements.
    unsafe {
        let (mut row, mut column) = (0, 0);
        while row < rows {
            let shift = |which: usize| row as isize * across[which] + column as isize * along[which];
            let (l, r, to) = (l.offset(shift(0)), r.map(|r| r.offset(shift(1))), o.offset(shift(2)));
            // Whole rows where they follow each other in the output, else one row or a part of it.
            let fitting = if across[2] == count as isize { (most / count).min(rows - row) } else { 1 };
            let (taken, width) = if column == 0 && fitting >= 1 && count <= most {
                (fitting, count)
            } else {
                (1, most.min(count - column))
            };
            let inside = [across[0], across[1], width as isize];
            inner::products::<T, U>(run.isa, taken, width, l, r, buffer, along, inside);
            through::copy(run.isa, buffer, to, taken * width);
            column += width;
            if column == count {
                (row, column) = (row + taken, 0);
            }
        }
    }
}
