//! The labels of an equation while their lengths are being found, and the messages when they disagree.

use std::collections::HashMap;
use std::fmt;

use einfall_equation::{Axis, Diagnostic, Equation, Label, Operand as Written, Place, Span, quoted};

use super::{BindError, plural};
use crate::problem::{LabelId, LabelInfo};

pub(crate) struct Scope<'a> {
    equation: &'a Equation,
    ids: HashMap<Label, LabelId>,
    entries: Vec<Entry>,
    /// Labels of the ellipsis, innermost (last axis) first.
    ellipsis: Vec<LabelId>,
}

struct Entry {
    name: String,
    len: Option<usize>,
    /// Who gave the length, where operands or tables did.
    source: Option<Source>,
    /// Where the label stands first, for messages.
    first: Option<Span>,
}

/// What gave a label its length.
struct Source {
    giver: Giver,
    span: Span,
}

/// An argument whose axes give labels their lengths.
#[derive(Clone, Copy)]
pub(crate) enum Giver {
    /// An operand, by its number.
    Operand(usize),
    /// A table, by its number among all arguments.
    Table(usize),
}

impl fmt::Display for Giver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Giver::Operand(number) => write!(f, "operand {number}"),
            Giver::Table(argument) => write!(f, "table argument {argument}"),
        }
    }
}

/// Two axes that give a label different lengths.
pub(crate) struct Conflict {
    pub(crate) message: String,
    pub(crate) spans: Vec<Span>,
    /// Who gave the first of the two, and the second.
    pub(crate) givers: [Giver; 2],
}

impl<'a> Scope<'a> {
    pub(crate) fn new(equation: &'a Equation) -> Self {
        Scope { equation, ids: HashMap::new(), entries: Vec::new(), ellipsis: Vec::new() }
    }

    pub(crate) fn intern(&mut self, label: Label) -> LabelId {
        let entries = &mut self.entries;
        *self.ids.entry(label).or_insert_with(|| {
            entries.push(Entry { name: label.to_string(), len: None, source: None, first: None });
            LabelId((entries.len() - 1) as u32)
        })
    }

    pub(crate) fn find(&self, label: Label) -> Option<LabelId> {
        self.ids.get(&label).copied()
    }

    /// How many axes the ellipsis of a term stands for, given the shape of its argument.
    pub(crate) fn ellipsis_axes(&mut self, term: &Written, place: Place, shape: &[usize]) -> Result<usize, BindError> {
        let named = term.axes.iter().filter(|axis| !matches!(axis, Axis::Ellipsis)).count();
        let fits = if term.has_ellipsis() { shape.len() >= named } else { shape.len() == named };
        if fits {
            return Ok(shape.len() - named);
        }
        let Place::Operand(number) = place else { unreachable!("the output has no argument of its own") };
        let message = format!(
            "operand {number} has {} but `{}` names {}{named}",
            plural(shape.len(), "axis"),
            quoted(&term.to_string()),
            if term.has_ellipsis() { "at least " } else { "" }
        );
        let hint = format!("its shape is {shape:?}");
        Err(BindError::Rank(self.diagnose_with_hint(message, &[(place, None)], hint)))
    }

    /// Labels for an ellipsis of so many axes, outermost first; aligned at the last axis between terms.
    pub(crate) fn ellipsis_labels(&mut self, axes: usize) -> Vec<LabelId> {
        while self.ellipsis.len() < axes {
            let name = format!("…{}", self.ellipsis.len());
            self.entries.push(Entry { name, len: None, source: None, first: None });
            self.ellipsis.push(LabelId((self.entries.len() - 1) as u32));
        }
        self.ellipsis[..axes].iter().rev().copied().collect()
    }

    /// The number of axes that the longest ellipsis stands for.
    pub(crate) fn ellipsis_rank(&self) -> usize {
        self.ellipsis.len()
    }

    pub(crate) fn len(&self, label: LabelId) -> Option<usize> {
        self.entries[label.0 as usize].len
    }

    pub(crate) fn name(&self, label: LabelId) -> &str {
        &self.entries[label.0 as usize].name
    }

    pub(crate) fn set_len(&mut self, label: LabelId, len: usize) {
        self.entries[label.0 as usize].len = Some(len);
    }

    /// Notes the length of an axis; lengths of one broadcast.
    pub(crate) fn measure(
        &mut self,
        label: LabelId,
        len: usize,
        giver: Giver,
        (place, axis): (Place, usize),
    ) -> Result<(), Conflict> {
        let span = self.equation.span(place, axis);
        let entry = &mut self.entries[label.0 as usize];
        entry.first.get_or_insert(span);
        match entry.len {
            Some(known) if known == len || len == 1 => {}
            None | Some(1) => {
                entry.len = Some(len);
                entry.source = Some(Source { giver, span });
            }
            Some(known) => {
                let &Source { giver: before, span: first } = entry.source.as_ref().expect("measured before");
                let name = match self.name(label) {
                    ellipsis if ellipsis.starts_with('…') => "an axis of `...`".to_string(),
                    name => format!("label `{name}`"),
                };
                let message = format!("{name} is {known} in {before} but {len} in {giver}");
                return Err(Conflict { message, spans: vec![first, span], givers: [before, giver] });
            }
        }
        Ok(())
    }

    /// What gave a label the length that `sizes` contradict.
    pub(crate) fn conflict_with_sizes(&self, label: LabelId, known: usize, len: usize) -> Box<Diagnostic> {
        let entry = &self.entries[label.0 as usize];
        let Source { giver, span } = entry.source.as_ref().expect("a length above one was measured");
        let message = format!("label `{}` is {known} in {giver} but {len} in `sizes`", entry.name);
        self.diagnostic(message, vec![*span], None)
    }

    /// Every label with its length.
    pub(crate) fn labels(&self) -> Result<Vec<LabelInfo>, BindError> {
        self.entries
            .iter()
            .map(|entry| match entry.len {
                Some(len) => Ok(LabelInfo { name: entry.name.clone(), len }),
                None => {
                    let message = format!("nothing gives label `{}` a length", entry.name);
                    let hint = format!("name it in `sizes`, as in `{}=4`", entry.name);
                    let spans = entry.first.or_else(|| self.place_of(&entry.name)).into_iter().collect();
                    Err(BindError::MissingSize(self.diagnostic(message, spans, Some(hint))))
                }
            })
            .collect()
    }

    /// Where a label stands first, brackets included.
    fn place_of(&self, name: &str) -> Option<Span> {
        let operands = self.equation.operands().iter().enumerate().map(|(n, term)| (Place::Operand(n), term));
        let terms = operands.chain(self.equation.output().map(|term| (Place::Output, term)));
        terms
            .flat_map(|(place, term)| term.axes.iter().enumerate().map(move |(at, axis)| (place, at, axis)))
            .find(|(_, _, axis)| axis.labels().any(|label| label.to_string() == name))
            .map(|(place, at, _)| self.equation.span(place, at))
    }

    pub(crate) fn diagnose(&self, message: String, at: &[(Place, Option<usize>)]) -> Box<Diagnostic> {
        self.diagnostic(message, self.spans(at), None)
    }

    pub(crate) fn diagnose_with_hint(
        &self,
        message: String,
        at: &[(Place, Option<usize>)],
        hint: String,
    ) -> Box<Diagnostic> {
        self.diagnostic(message, self.spans(at), Some(hint))
    }

    fn spans(&self, at: &[(Place, Option<usize>)]) -> Vec<Span> {
        at.iter()
            .map(|&(place, axis)| match axis {
                Some(axis) => self.equation.span(place, axis),
                None => self.equation.term_span(place),
            })
            .collect()
    }

    fn diagnostic(&self, message: String, spans: Vec<Span>, hint: Option<String>) -> Box<Diagnostic> {
        Box::new(Diagnostic { message, text: self.equation.text().to_string(), spans, hint })
    }
}
