//! A case in the making: terms and the axes of arguments, before lengths and strides are settled.

use einfall_equation::{Affine, Axis, Label, Operand};
use einfall_tensor::DType;

use super::{MOST_ELEMENTS, MOST_TERMS, Sizes, length, table_fill};
use crate::case::Fill;
use crate::oracle::Bounds;
use crate::random::Choices;

/// Not in the order of their code points, and beyond ASCII, so that an implicit output shows how it is sorted.
const LETTERS: [char; 9] = ['i', 'j', 'k', 'b', 'Q', 'd', 'λ', 'A', '鍵'];

pub(super) struct Draft<'c> {
    pub(super) choices: &'c mut Choices,
    /// The labels to draw from, with their lengths.
    pool: Vec<(Label, usize)>,
    /// A label that only a window gives a length.
    slid: Option<(Label, usize)>,
    /// The lengths of the ellipses' axes, from the right.
    pub(super) dots: Vec<usize>,
    pub(super) operands: Vec<Operand>,
    pub(super) arguments: Vec<ArgumentDraft>,
    pub(super) sizes: Sizes,
    pub(super) bounds: Bounds,
    dtype: DType,
    mixed: bool,
    lookups: bool,
    windows: bool,
}

pub(super) struct ArgumentDraft {
    pub(super) dtype: DType,
    pub(super) dims: Vec<Dim>,
    pub(super) role: Role,
}

pub(super) enum Role {
    Operand,
    Table(Fill),
}

/// What an axis of an argument stands for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Stand {
    Label(Label),
    Dots(usize),
    Fixed,
}

#[derive(Clone, Copy)]
pub(super) struct Dim {
    stand: Stand,
    full: usize,
    /// The length is 1 and is repeated.
    broadcast: bool,
}

impl Dim {
    pub(super) fn len(&self) -> usize {
        if self.broadcast { 1 } else { self.full }
    }
}

impl<'c> Draft<'c> {
    pub(super) fn new(choices: &'c mut Choices) -> Self {
        let count = 1 + choices.below(8);
        let dots_count = if choices.percent(20) { choices.below(4) } else { 0 };
        let (mut budget, mut lens) = (MOST_TERMS, Vec::new());
        for left in (0..count + dots_count).rev() {
            // Leave at least 2 for every length to come.
            let len = length(choices, budget >> left.min(20));
            budget /= len.max(1);
            lens.push(len);
        }
        let dots = lens.split_off(count);
        let letters = LETTERS.map(|letter| Label::new(letter).expect("a letter"));
        let mut pool: Vec<(Label, usize)> = letters.into_iter().zip(lens).collect();
        // Sliding needs another label to slide over and at least one position.
        let slides = pool.len() > 1 && pool.iter().all(|(_, len)| *len > 0) && choices.percent(12);
        let slid = if slides { pool.pop() } else { None };
        Draft {
            slid,
            pool,
            dots,
            operands: Vec::new(),
            arguments: Vec::new(),
            sizes: Sizes::new(),
            bounds: if choices.percent(50) { Bounds::Skip } else { Bounds::Error },
            dtype: choices.pick(&PREFERRED),
            mixed: choices.percent(15),
            lookups: choices.percent(45),
            windows: choices.percent(35),
            choices,
        }
    }

    /// Adds an operand and its tables.
    pub(super) fn operand(&mut self) {
        let dtype = if self.mixed { self.choices.pick(&PREFERRED) } else { self.dtype };
        let first = self.operands.is_empty();
        let (mut axes, mut dims, mut tables) = (Vec::new(), Vec::new(), Vec::new());
        if let Some((label, len)) = self.slid.filter(|_| first) {
            let (axis, n) = self.sliding(label, len);
            axes.push(axis);
            dims.push(Dim { stand: Stand::Fixed, full: n, broadcast: false });
        }
        let wanted = self.choices.below(5) + usize::from(first);
        for _ in 0..wanted {
            let roll = self.choices.below(100);
            let room = MOST_ELEMENTS / dims.iter().map(|dim: &Dim| dim.full.max(1)).product::<usize>();
            if self.lookups && roll >= 70 {
                let (axis, len, table) = self.lookup(room.min(65), None);
                axes.push(axis);
                dims.push(Dim { stand: Stand::Fixed, full: len, broadcast: false });
                tables.push(table);
            } else if self.windows && roll >= 54 {
                let (axis, full) = self.window(room.min(257));
                axes.push(axis);
                dims.push(Dim { stand: Stand::Fixed, full, broadcast: false });
            } else {
                let (label, full) = self.choices.pick(&self.pool);
                let repeated = axes.contains(&Axis::Label(label));
                if full > room || repeated && !self.choices.percent(25) {
                    continue;
                }
                axes.push(Axis::Label(label));
                dims.push(Dim { stand: Stand::Label(label), full, broadcast: self.choices.percent(8) });
            }
        }
        self.ellipsis(&mut axes, &mut dims);
        if self.choices.percent(50) {
            self.shuffle(&mut axes, &mut dims, &mut tables);
        }
        self.operands.push(Operand { axes });
        self.arguments.push(ArgumentDraft { dtype, dims, role: Role::Operand });
        self.arguments.append(&mut tables);
    }

    /// Adds `...` in most operands of a case that has any, at the end or anywhere.
    fn ellipsis(&mut self, axes: &mut Vec<Axis>, dims: &mut Vec<Dim>) {
        if self.dots.is_empty() || self.choices.percent(25) {
            return;
        }
        let count = self.dots.len() - self.choices.below(self.dots.len() + 1);
        let elements: usize = dims.iter().map(|dim| dim.full.max(1)).product();
        if elements * self.dots[..count].iter().product::<usize>() > MOST_ELEMENTS {
            return;
        }
        let at = axes.len() - self.choices.below(axes.len() + 1);
        axes.insert(at, Axis::Ellipsis);
        for from_right in 0..count {
            let (full, broadcast) = (self.dots[from_right], self.choices.percent(15));
            dims.insert(at, Dim { stand: Stand::Dots(from_right), full, broadcast });
        }
    }

    /// Puts axes into another order, and their dims and tables with them.
    fn shuffle(&mut self, axes: &mut Vec<Axis>, dims: &mut Vec<Dim>, tables: &mut Vec<ArgumentDraft>) {
        let (mut dims_left, mut tables_left) = (std::mem::take(dims).into_iter(), std::mem::take(tables).into_iter());
        let hidden = (dims_left.len() + 1).saturating_sub(axes.len());
        let mut parts = Vec::new();
        for axis in std::mem::take(axes) {
            let own = if axis == Axis::Ellipsis { hidden } else { 1 };
            let dims: Vec<Dim> = dims_left.by_ref().take(own).collect();
            let table = if matches!(axis, Axis::Lookup(_)) { tables_left.next() } else { None };
            parts.push(Some((axis, dims, table)));
        }
        for from in self.choices.order(parts.len()) {
            if let Some((axis, own, table)) = parts[from].take() {
                axes.push(axis);
                dims.extend(own);
                tables.extend(table);
            }
        }
    }

    /// A few labels of the pool, most often different ones.
    fn subscripts(&mut self, most: usize) -> Vec<Label> {
        let mut labels: Vec<(Label, usize)> = Vec::new();
        for _ in 0..self.choices.below(most + 1) {
            let (label, len) = self.choices.pick(&self.pool);
            let elements = labels.iter().map(|(_, len)| *len).product::<usize>() * len;
            let repeated = labels.iter().any(|(other, _)| *other == label);
            if elements <= MOST_ELEMENTS && (!repeated || self.choices.percent(10)) {
                labels.push((label, len));
            }
        }
        labels.into_iter().map(|(label, _)| label).collect()
    }

    /// A lookup with its table, on an axis whose length is `fixed` or at most `most`.
    fn lookup(&mut self, most: usize, fixed: Option<usize>) -> (Axis, usize, ArgumentDraft) {
        let labels = self.subscripts(4);
        let mut dims = Vec::new();
        for &label in &labels {
            let full = self.length_of(label);
            dims.push(Dim { stand: Stand::Label(label), full, broadcast: self.choices.percent(12) });
        }
        let mut len = fixed.unwrap_or_else(|| length(self.choices, most));
        if self.bounds == Bounds::Error && fixed.is_none() {
            // An empty axis has no position that a table could name.
            len = len.max(1);
        }
        let dtype = self.choices.pick(&INTEGERS);
        let fill = table_fill(self.choices, len, self.bounds);
        (Axis::Lookup(labels), len, ArgumentDraft { dtype, dims, role: Role::Table(fill) })
    }

    /// A window on an axis of at most `room`, most positions of which lie inside.
    fn window(&mut self, room: usize) -> (Axis, usize) {
        let count = if self.choices.percent(8) { 0 } else { 1 + self.choices.below(3) };
        let mut terms: Vec<(Label, i64)> = Vec::new();
        let (mut least, mut most) = (0, 0);
        for _ in 0..count {
            let (label, len) = self.choices.pick(&self.pool);
            let coefficient = self.choices.pick(&[1, 1, -1, 2, 3, -2]);
            if terms.iter().all(|(other, _)| *other != label) {
                let reach = coefficient * len.saturating_sub(1) as i64;
                *(if reach < 0 { &mut least } else { &mut most }) += reach;
                terms.push((label, coefficient));
            }
        }
        let beyond: i64 = self.choices.pick(&[0, 0, 1, -1, 2, -2, 3]);
        let offset = match terms.is_empty() {
            true => beyond.abs(),
            false => beyond - if self.choices.percent(90) { least } else { 0 },
        };
        let len = most - least + 1 + beyond.abs() + self.choices.pick(&[0, 0, 1, -1, 3, -3]);
        (Axis::Window(Affine { terms, offset }), (len.max(0) as usize).min(room))
    }

    /// A window that gives `label` its length `len`, as in a convolution without padding.
    fn sliding(&mut self, label: Label, len: usize) -> (Axis, usize) {
        let (other, other_len) = self.choices.pick(&self.pool);
        let (step, dilation) = (self.choices.pick(&[1, 2, 3]), self.choices.pick(&[1, 2, -1]));
        let reach = (other_len as i64 - 1) * dilation;
        let offset = (-reach).max(0) + self.choices.pick(&[0, 0, 1]);
        let slack = self.choices.below(step as usize);
        let last = step * (len as i64 - 1) + reach.max(0) + offset;
        let axis = Axis::Window(Affine { terms: vec![(label, step), (other, dilation)], offset });
        (axis, last as usize + 1 + slack)
    }

    /// The output with the tables of its lookups, or `None` for an implicit one.
    pub(super) fn output(&mut self) -> Option<Operand> {
        if self.choices.percent(15) {
            return None;
        }
        let mut axes = Vec::new();
        let mut elements = self.dots.iter().map(|&len| len.max(1)).product::<usize>();
        for (label, len) in self.used_labels() {
            if self.choices.percent(50) {
                axes.push(Axis::Label(label));
                elements *= len.max(1);
            }
        }
        let unused = self.pool.iter().find(|(label, _)| !self.is_used(*label)).copied();
        if let Some((label, len)) = unused.filter(|_| self.choices.percent(15)) {
            axes.push(Axis::Label(label));
            elements *= len.max(1);
            self.sizes.insert(label.to_string(), len);
        }
        let order = self.choices.order(axes.len());
        let mut axes: Vec<Axis> = order.into_iter().map(|from| axes[from].clone()).collect();
        let scattered = if self.choices.percent(25) { 1 + self.choices.below(2) } else { 0 };
        for _ in 0..scattered {
            let len = self.scatter(&mut axes, MOST_ELEMENTS / elements);
            elements *= len.max(1);
        }
        let dotted = self.operands.iter().any(Operand::has_ellipsis);
        if dotted && self.choices.percent(80) {
            let at = self.choices.below(axes.len() + 1);
            axes.insert(at, Axis::Ellipsis);
        }
        Some(Operand { axes })
    }

    /// Adds a lookup or a window to the output, and returns its length.
    fn scatter(&mut self, axes: &mut Vec<Axis>, room: usize) -> usize {
        if self.choices.percent(35) {
            let (axis, len) = self.window(room.min(257));
            let at = self.choices.below(axes.len() + 1);
            let len = *self.sizes.entry(axis.to_string()).or_insert(len);
            axes.insert(at, axis);
            return len;
        }
        let (axis, mut len, mut table) = self.lookup(room.min(65), None);
        if let Some(&before) = self.sizes.get(&axis.to_string()) {
            // The same lookup twice has one length.
            len = before;
            table.role = Role::Table(table_fill(self.choices, len, self.bounds));
        }
        self.sizes.insert(axis.to_string(), len);
        // Tables follow the order of their lookups, so this one goes last.
        axes.push(axis);
        self.arguments.push(table);
        len
    }

    fn length_of(&self, label: Label) -> usize {
        self.pool.iter().chain(&self.slid).find(|(other, _)| *other == label).map_or(1, |&(_, len)| len)
    }

    fn is_used(&self, label: Label) -> bool {
        self.operands.iter().flat_map(Operand::labels).any(|used| used == label)
    }

    /// The labels of the operands, with their lengths.
    pub(super) fn used_labels(&self) -> Vec<(Label, usize)> {
        self.pool.iter().chain(&self.slid).copied().filter(|&(label, _)| self.is_used(label)).collect()
    }

    pub(super) fn promoted(&self) -> DType {
        let operands = self.arguments.iter().filter(|argument| matches!(argument.role, Role::Operand));
        operands.map(|argument| argument.dtype).reduce(DType::promote).unwrap_or(self.dtype)
    }

    /// Makes sure that every length follows from the arguments and the sizes.
    pub(super) fn settle_lengths(&mut self, output: Option<&Operand>) {
        let mut full: Vec<Stand> = Vec::new();
        for argument in &mut self.arguments {
            for at in 0..argument.dims.len() {
                let dim = argument.dims[at];
                let repeated = argument.dims.iter().filter(|other| other.stand == dim.stand).count() > 1;
                // One axis has the whole length; a diagonal is never repeated along one of its axes.
                let keeps = dim.stand == Stand::Fixed || !repeated && full.contains(&dim.stand);
                argument.dims[at].broadcast &= keeps && dim.stand != Stand::Fixed;
                if !argument.dims[at].broadcast {
                    full.push(dim.stand);
                }
            }
        }
        for (label, len) in self.pool.clone() {
            if !self.is_used(label) && !output.is_some_and(|output| output.labels().any(|other| other == label)) {
                continue;
            }
            let seen = full.contains(&Stand::Label(label));
            if !seen || self.choices.percent(3) {
                self.sizes.insert(label.to_string(), len);
            }
        }
    }
}

const PREFERRED: [DType; 17] = [
    DType::F32,
    DType::F64,
    DType::I32,
    DType::F32,
    DType::Bool,
    DType::I8,
    DType::I16,
    DType::I64,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::F16,
    DType::BF16,
    DType::C64,
    DType::C128,
    DType::F64,
];

const INTEGERS: [DType; 9] =
    [DType::I32, DType::I64, DType::I32, DType::U8, DType::I8, DType::I16, DType::U16, DType::U32, DType::U64];
