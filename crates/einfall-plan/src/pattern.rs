//! Shapes of contractions that kernels look for. Pure and the same for every device.
//!
//! *In*: a [`Contraction`]. *Out*: which loop plays which part, or why the pattern does not fit. *Callers*: the cost
//! functions of kernels, and the kernels themselves, which ask again instead of storing the answer.

use crate::contraction::{Access, Contraction, Role};

/// Which of the two inputs holds the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The left input.
    Left,
    /// The right input.
    Right,
}

impl Side {
    const BOTH: [Side; 2] = [Side::Right, Side::Left];

    /// The input on this side, if there is one.
    pub fn of(self, contraction: &Contraction) -> Option<&Access> {
        match self {
            Side::Left => Some(&contraction.left),
            Side::Right => contraction.right.as_ref(),
        }
    }

    /// The other side.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Left => Side::Right,
            Side::Right => Side::Left,
        }
    }
}

/// `out[…, k] = Σ_d x[…, d] · rows[…, k, d]`: one vector meets many contiguous rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowDots {
    /// The input that holds the rows.
    pub rows: Side,
    /// The contracted loop along a row, contiguous in both inputs.
    pub inner: usize,
    /// The loop that counts rows; `None` where every row meets a vector of its own.
    pub row_loop: Option<usize>,
}

/// `out[…, d] = Σ_k weights[…, k] · rows[…, k, d]`: a weighted sum of contiguous rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowAxpys {
    /// The input that holds the rows; with a single input, the left.
    pub rows: Side,
    /// The output loop along a row, contiguous in the rows.
    pub inner: usize,
    /// The contracted loop that counts rows.
    pub row_loop: usize,
}

/// `out[…, table[…, e], d] += weights[…, e] · rows[…, e, d]`: contiguous rows, scattered to where one table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScatteredRows {
    /// The input that holds the rows; with a single input, the left.
    pub rows: Side,
    /// The output loop along a row, contiguous in the rows; neither the table nor the weights depend on it.
    pub inner: usize,
}

/// `out[…, i, d] = weights[…, i] · rows[…, i, d]`, or without weights: contiguous rows that the output takes one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopiedRows {
    /// The input that holds the rows; with a single input, the left.
    pub rows: Side,
    /// The output loop along a row, contiguous in rows and output.
    pub inner: usize,
    /// The output loop that counts rows: the one that looks them up, or the longest.
    pub row_loop: usize,
}

fn is_contiguous_along(access: &Access, at: usize) -> bool {
    access.strides[at] == 1 && !access.is_indirect_in(at)
}

/// Matches [`RowDots`].
///
/// # Errors
/// Why not.
pub fn row_dots(contraction: &Contraction) -> Result<RowDots, &'static str> {
    let right = contraction.right.as_ref().ok_or("needs two inputs")?;
    if !contraction.out.is_plain() {
        return Err("the output is scattered");
    }
    let mut contracted = contraction.loops_of(Role::Contracted);
    let (Some(inner), None) = (contracted.next(), contracted.next()) else {
        return Err("needs exactly one summed loop");
    };
    if !is_contiguous_along(&contraction.left, inner) || !is_contiguous_along(right, inner) {
        return Err("the summed loop is not contiguous in both inputs");
    }
    // Rows that a lookup or a window chooses come first; else the longest run of rows.
    let candidates = Side::BOTH.into_iter().flat_map(|rows| {
        let (own, other) = (rows.of(contraction), rows.other().of(contraction));
        (0..contraction.loops.len()).filter_map(move |at| {
            let (own, other) = (own?, other?);
            let fits = contraction.loops[at].role != Role::Contracted && own.depends_on(at) && !other.depends_on(at);
            fits.then(|| ((own.is_indirect_in(at), contraction.loops[at].len), (rows, at)))
        })
    });
    match candidates.max_by_key(|(score, _)| *score) {
        Some((_, (rows, at))) => Ok(RowDots { rows, inner, row_loop: Some(at) }),
        None => Ok(RowDots { rows: Side::Right, inner, row_loop: None }),
    }
}

/// Matches [`RowAxpys`].
///
/// # Errors
/// Why not.
pub fn row_axpys(contraction: &Contraction) -> Result<RowAxpys, &'static str> {
    if !contraction.out.is_plain() {
        return Err("the output is scattered");
    }
    let (rows, inner) = rows_of_output(contraction)?;
    let own = rows.of(contraction).expect("the side was matched");
    let row_loop = contraction
        .loops_of(Role::Contracted)
        .max_by_key(|&at| (own.is_indirect_in(at), own.depends_on(at), contraction.loops[at].len))
        .ok_or("nothing is summed")?;
    Ok(RowAxpys { rows, inner, row_loop })
}

/// Matches [`CopiedRows`].
///
/// # Errors
/// Why not.
pub fn copied_rows(contraction: &Contraction) -> Result<CopiedRows, &'static str> {
    if !contraction.out.is_plain() {
        return Err("the output is scattered");
    }
    if contraction.loops_of(Role::Contracted).next().is_some() {
        return Err("something is summed");
    }
    let (rows, inner) = rows_of_output(contraction)?;
    if contraction.out.strides[inner] != 1 {
        return Err("the rows are not contiguous in the output");
    }
    let own = rows.of(contraction).expect("the side was matched");
    let row_loop = (0..contraction.loops.len())
        .filter(|&at| at != inner)
        .max_by_key(|&at| (own.is_indirect_in(at), own.depends_on(at), contraction.loops[at].len))
        .ok_or("there is but one row")?;
    Ok(CopiedRows { rows, inner, row_loop })
}

/// Matches [`ScatteredRows`].
///
/// # Errors
/// Why not.
pub fn scattered_rows(contraction: &Contraction) -> Result<ScatteredRows, &'static str> {
    if contraction.out.lookups.len() != 1 || !contraction.out.windows.is_empty() {
        return Err("the output is not scattered by one table alone");
    }
    let (rows, inner) = rows_of_output(contraction)?;
    Ok(ScatteredRows { rows, inner })
}

/// The input whose contiguous rows an output loop runs along, and that loop.
fn rows_of_output(contraction: &Contraction) -> Result<(Side, usize), &'static str> {
    let sides: &[Side] = if contraction.right.is_some() { &Side::BOTH } else { &[Side::Left] };
    let candidates = sides.iter().flat_map(|&rows| {
        let own = rows.of(contraction);
        let other = rows.other().of(contraction).filter(|_| contraction.right.is_some());
        (0..contraction.loops.len()).filter_map(move |at| {
            let own = own?;
            let fits = contraction.loops[at].role != Role::Contracted
                && is_contiguous_along(own, at)
                && !other.is_some_and(|other| other.depends_on(at))
                && contraction.out.strides[at] != 0
                && !contraction.out.is_indirect_in(at);
            fits.then(|| ((contraction.out.strides[at] == 1, contraction.loops[at].len), (rows, at)))
        })
    });
    let best = candidates.max_by_key(|(score, _)| *score);
    best.map(|(_, found)| found).ok_or("no output loop runs along contiguous rows of one input alone")
}

/// What moves the rows of a [`DenseTile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// A lookup of the rows' access, by its number.
    Lookup(usize),
    /// A window of the rows' access, by its number.
    Window(usize),
}

/// Rows that many vectors look at, each at some of them: all pairs may be computed as a tile, and the wanted ones kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseTile {
    /// The loop whose vectors share the rows: the rows depend on it through a table or a window alone.
    pub tile_loop: usize,
    /// What chooses among the rows.
    pub moved: Moved,
}

/// Matches [`DenseTile`] for rows on which `row_loop` counts; `other` is the input that meets them.
///
/// # Errors
/// Why not.
pub fn dense_tile(
    contraction: &Contraction,
    rows: &Access,
    other: &Access,
    row_loop: usize,
) -> Result<DenseTile, &'static str> {
    let moved = match (rows.lookups.as_slice(), rows.windows.as_slice()) {
        ([lookup], []) if lookup.table_strides[row_loop] != 0 => Moved::Lookup(0),
        ([], [window]) if window.coefficients[row_loop] != 0 => Moved::Window(0),
        _ => return Err("needs rows chosen by one lookup or one window"),
    };
    if rows.strides[row_loop] != 0 {
        return Err("rows are chosen and strided at once");
    }
    (0..contraction.loops.len())
        .filter(|&at| {
            at != row_loop
                && contraction.loops[at].role != Role::Contracted
                && rows.strides[at] == 0
                && rows.is_indirect_in(at)
                && other.strides[at] != 0
                && !other.is_indirect_in(at)
                && !contraction.out.is_indirect_in(at)
        })
        .max_by_key(|&at| contraction.loops[at].len)
        .map(|tile_loop| DenseTile { tile_loop, moved })
        .ok_or("no vectors share the rows")
}
