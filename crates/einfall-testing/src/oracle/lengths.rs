//! The length of every label, of every axis that an ellipsis stands for, and of every axis.

use std::collections::BTreeMap;
use std::fmt;

use einfall_equation::{Affine, Axis, Label};

use super::{Array, OracleError, Term};

/// What the loop runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// A label.
    Label(Label),
    /// An axis of the ellipses, counted from the right, where they are aligned.
    Dots(usize),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Label(label) => write!(f, "label `{label}`"),
            Name::Dots(from_right) => write!(f, "axis {} from the right of `...`", from_right + 1),
        }
    }
}

/// The length of everything that the loop runs over.
pub(super) struct Lengths(pub(super) BTreeMap<Name, usize>);

/// How an axis finds its position.
pub(super) enum Source<'t> {
    /// The position is the value of this name.
    Name(Name),
    /// The position is read from a table.
    Table(&'t [Label], usize),
    /// The position is computed.
    Window(&'t Affine),
}

/// The axes of a term with its ellipsis written out as `hidden` axes.
pub(super) fn sources(term: &Term, hidden: usize) -> Vec<Source<'_>> {
    let mut tables = term.tables.iter();
    let mut sources = Vec::new();
    for axis in &term.axes {
        match axis {
            Axis::Label(label) => sources.push(Source::Name(Name::Label(*label))),
            Axis::Ellipsis => sources.extend((0..hidden).rev().map(|i| Source::Name(Name::Dots(i)))),
            Axis::Lookup(labels) => sources.push(Source::Table(labels, *tables.next().expect("tables were counted"))),
            Axis::Window(affine) => sources.push(Source::Window(affine)),
        }
    }
    sources
}

/// The number of axes that the ellipsis of an operand stands for.
fn hidden_axes(term: &Term, shape: &[usize]) -> Result<usize, OracleError> {
    let written = term.axes.iter().filter(|axis| **axis != Axis::Ellipsis).count();
    match shape.len().checked_sub(written) {
        Some(0) => Ok(0),
        Some(hidden) if term.axes.contains(&Axis::Ellipsis) => Ok(hidden),
        _ => {
            let axes = term.axes.iter().map(Axis::to_string).collect();
            Err(OracleError::Rank { term: term.name.clone(), axes, shape: shape.to_vec() })
        }
    }
}

/// Finds all lengths: from the axes of operands and tables, then from `sizes`, then from windows.
pub(super) fn label_lengths(
    terms: &[Term],
    output: &Term,
    arrays: &[Array],
    sizes: &BTreeMap<String, usize>,
) -> Result<Lengths, OracleError> {
    let mut known: BTreeMap<Name, (usize, String)> = BTreeMap::new();
    for term in terms {
        let Some(array) = term.array else { continue };
        let shape = &arrays[array].shape;
        for (source, &len) in sources(term, hidden_axes(term, shape)?).iter().zip(shape) {
            if let Source::Name(name) = source {
                meet(&mut known, *name, len, term.name.clone())?;
            }
        }
    }
    for term in terms.iter().chain([output]) {
        for source in sources(term, 0) {
            let Source::Table(labels, table) = source else { continue };
            for (&label, &len) in labels.iter().zip(&arrays[table].shape) {
                meet(&mut known, Name::Label(label), len, format!("a table of {}", term.name))?;
            }
        }
    }
    let labels: Vec<Label> = terms.iter().chain([output]).flat_map(|t| &t.axes).flat_map(Axis::labels).collect();
    for &label in &labels {
        let Some(&size) = sizes.get(&label.to_string()) else { continue };
        let here = (size, "sizes".to_string());
        let before = known.entry(Name::Label(label)).or_insert_with(|| here.clone());
        if before.0 != size {
            return Err(OracleError::Size { name: Name::Label(label).to_string(), one: before.clone(), other: here });
        }
    }
    let mut lengths = Lengths(known.into_iter().map(|(name, (len, _))| (name, len)).collect());
    while lengths.infer(terms, arrays) {}
    match labels.into_iter().find(|&label| !lengths.0.contains_key(&Name::Label(label))) {
        Some(label) => Err(OracleError::NoSize { name: format!("label `{label}`"), key: label.to_string() }),
        None => Ok(lengths),
    }
}

/// Records a length; 1 gives way to any other, 0 included.
fn meet(known: &mut BTreeMap<Name, (usize, String)>, name: Name, len: usize, place: String) -> Result<(), OracleError> {
    let before = known.entry(name).or_insert_with(|| (len, place.clone()));
    if before.0 == 1 {
        *before = (len, place);
    } else if len != 1 && len != before.0 {
        return Err(OracleError::Size { name: name.to_string(), one: before.clone(), other: (len, place) });
    }
    Ok(())
}

impl Lengths {
    /// Finds the length of one more label from the windows of the operands in which it is the only unknown one: the
    /// largest for which every position lies inside the axis. Returns whether there was one.
    fn infer(&mut self, terms: &[Term], arrays: &[Array]) -> bool {
        let mut found: BTreeMap<Name, usize> = BTreeMap::new();
        for term in terms {
            let Some(array) = term.array else { continue };
            let shape = &arrays[array].shape;
            let hidden = hidden_axes(term, shape).unwrap_or(0);
            for (source, &len) in sources(term, hidden).iter().zip(shape) {
                let Source::Window(affine) = source else { continue };
                if let Some((label, most)) = self.infer_from(affine, len) {
                    let least = found.entry(Name::Label(label)).or_insert(most);
                    *least = most.min(*least);
                }
            }
        }
        let any = !found.is_empty();
        self.0.extend(found);
        any
    }

    fn infer_from(&self, affine: &Affine, axis: usize) -> Option<(Label, usize)> {
        let unknown: Vec<_> = affine.terms.iter().filter(|(l, _)| !self.0.contains_key(&Name::Label(*l))).collect();
        let [&(label, step)] = unknown[..] else { return None };
        let (mut least, mut most) = (i128::from(affine.offset), i128::from(affine.offset));
        for (other, coefficient) in affine.terms.iter().filter(|(other, _)| *other != label) {
            // Without a single value the other label reaches no position at all, and bounds nothing.
            let last = self.0[&Name::Label(*other)].checked_sub(1)? as i128;
            let reach = i128::from(*coefficient) * last;
            *(if reach < 0 { &mut least } else { &mut most }) += reach;
        }
        if step <= 0 || least < 0 {
            return None;
        }
        let room = axis as i128 - 1 - most;
        Some((label, if room < 0 { 0 } else { (room / i128::from(step)) as usize + 1 }))
    }

    /// The length of every axis of every operand, then of the output.
    pub(super) fn axes(
        &self,
        terms: &[Term],
        output: &Term,
        arrays: &[Array],
        sizes: &BTreeMap<String, usize>,
    ) -> Result<Vec<Vec<usize>>, OracleError> {
        let mut all: Vec<Vec<usize>> = terms.iter().filter_map(|t| t.array).map(|a| arrays[a].shape.clone()).collect();
        let dots: Vec<usize> = self.dots();
        let mut shape = Vec::new();
        for axis in &output.axes {
            match axis {
                Axis::Label(label) => shape.push(self.0[&Name::Label(*label)]),
                Axis::Ellipsis => shape.extend(dots.iter().rev()),
                bracket => {
                    let key = bracket.to_string();
                    let missing = || OracleError::NoSize { name: format!("output axis `{key}`"), key: key.clone() };
                    shape.push(*sizes.get(&key).ok_or_else(missing)?);
                }
            }
        }
        all.push(shape);
        Ok(all)
    }

    /// The most terms that an element of the output can have.
    pub(super) fn summed(&self, output: &Term) -> u64 {
        let stays = |name: &Name| match name {
            Name::Label(label) => output.axes.contains(&Axis::Label(*label)),
            Name::Dots(_) => output.axes.contains(&Axis::Ellipsis),
        };
        self.0.iter().filter(|(name, _)| !stays(name)).map(|(_, &len)| len as u64).product()
    }

    /// The lengths of the ellipses' axes, from the right.
    pub(super) fn dots(&self) -> Vec<usize> {
        (0..).map_while(|i| self.0.get(&Name::Dots(i)).copied()).collect()
    }
}
