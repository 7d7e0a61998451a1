//! From a bound problem to the normal form of an attention: every label gets its role, then loops are fused.

use einfall_tensor::{DType, Layout};

use super::plan::AttentionOptions;
use super::{Attention, AttentionLoop, AttentionRole, Gradients, Limit, Pass, Ragged, Scale};
use crate::bind::{BindOptions, bind};
use crate::contraction::{Access, access};
use crate::problem::{LabelId, Problem, Term};

/// Why a problem is no attention.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// There are not three operands, or four.
    #[error(
        "an attention has the operands query, key and value, and perhaps a bias, but there are {operands}\nhint: as in `bhqd,bh[bhqk]d,bh[bhqk]e->bhqe`"
    )]
    Operands {
        /// How many there are.
        operands: usize,
    },
    /// A label has no role.
    #[error("label `{label}` stands in {place} alone, where an attention has no use for it\nhint: {hint}")]
    Label {
        /// The label.
        label: String,
        /// Where it stands.
        place: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Keys and values are looked up differently.
    #[error(
        "operand 1 and operand 2 are looked up differently, but values stand where their keys do\nhint: give both the same brackets, `bh[bhqk]d,bh[bhqk]e`"
    )]
    Brackets,
    /// A query, a bias or the output is looked up.
    #[error("{place} is looked up, but only keys and values may be\nhint: look it up with einsum first")]
    LookedUp {
        /// Which.
        place: &'static str,
    },
    /// Element types that attention does not work on, or that differ.
    #[error("{0}")]
    DType(String),
    /// A causal mask where keys have no single position, or queries none.
    #[error("{0}")]
    Causal(String),
    /// Offsets of ragged lists that do not fit.
    #[error("{0}")]
    Ragged(String),
    /// Gradients cannot be addressed.
    #[error("gradients cannot be laid out: {0}")]
    Gradients(String),
    /// The scale is no number.
    #[error("`scale` is {0}, not a finite number")]
    Scale(String),
}

const FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F32, DType::F64];

impl Attention {
    /// Finds the normal form.
    ///
    /// # Errors
    /// [`AttentionError`].
    pub fn new(problem: &Problem, options: &AttentionOptions) -> Result<Attention, AttentionError> {
        let (query, key, value, bias) = operands(problem)?;
        check_types(problem)?;
        check_lookups(problem)?;
        let roles = roles(problem)?;
        let labels: Vec<LabelId> = roles.iter().map(|&(label, _)| label).filter(|l| problem.len(*l) != 1).collect();
        let ragged = options.ragged.as_ref().map(|given| ragged(problem, given, &labels)).transpose()?;
        let limit = options.causal.then(|| limit(problem, &roles, &labels)).transpose()?;
        let read = |term: &Term| access(term, &labels, &problem.tables);
        let loops: Vec<AttentionLoop> = roles
            .iter()
            .filter(|(label, _)| labels.contains(label))
            .map(|&(label, role)| AttentionLoop { name: problem.name(label).into(), len: problem.len(label), role })
            .collect();
        // Not the problem's: a bias may be of the accumulator's type.
        let dtype = query_dtype(problem);
        let accumulator = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let lse = lse_strides(problem, &roles, &labels);
        let mut attention = Attention {
            loops,
            query: read(query),
            key: read(key),
            value: read(value),
            bias: bias.map(read),
            out: read(&problem.output.term),
            gradients: gradients(problem, options, &labels)?,
            lse: Access { strides: lse, ..Access::default() },
            limit,
            ragged,
            dtype,
            bias_dtype: problem.operands.get(3).map_or(dtype, |bias| bias.dtype),
            accumulator,
            scale: Scale::new(1.0),
            bounds: problem.bounds,
        };
        attention.refine_roles();
        let depth: f64 = attention.len_of(AttentionRole::Depth) as f64;
        let scale = options.scale.unwrap_or(if depth > 0.0 { 1.0 / depth.sqrt() } else { 1.0 });
        if !scale.is_finite() {
            return Err(AttentionError::Scale(scale.to_string()));
        }
        attention.scale = Scale::new(scale);
        attention.sort();
        attention.fuse();
        Ok(attention)
    }

    /// A list whose rows do not depend on a label, through strides of zero too, shares them over it.
    fn refine_roles(&mut self) {
        let ragged = self.ragged.as_ref();
        for at in 0..self.loops.len() {
            let Gradients { key, value, .. } = &self.gradients;
            let rows = [Some(&self.key), Some(&self.value), key.as_ref(), value.as_ref()];
            let rows = rows.into_iter().flatten().any(|access| access.depends_on(at))
                || ragged.is_some_and(|ragged| ragged.strides[at] != 0);
            let role = &mut self.loops[at].role;
            match (*role, rows) {
                (AttentionRole::List, false) => *role = AttentionRole::Head,
                (AttentionRole::Head, true) => *role = AttentionRole::List,
                _ => {}
            }
        }
    }

    /// By role, and in each role by falling stride.
    fn sort(&mut self) {
        let key = |at: usize| {
            let role = self.loops[at].role;
            let reach = |access: &Access| {
                let table = access.lookups.iter().map(|lookup| lookup.table_strides[at].unsigned_abs()).max();
                access.strides[at].unsigned_abs().max(table.unwrap_or(0))
            };
            let stride = match role {
                AttentionRole::List | AttentionRole::Head | AttentionRole::Width => self.out.strides[at].unsigned_abs(),
                AttentionRole::Key | AttentionRole::Depth => reach(&self.key),
            };
            (role, std::cmp::Reverse(stride), at)
        };
        let mut order: Vec<usize> = (0..self.loops.len()).collect();
        order.sort_by_key(|&at| key(at));
        self.keep(&order);
    }

    /// Keeps the loops of `order`, in that order.
    fn keep(&mut self, order: &[usize]) {
        self.loops = order.iter().map(|&at| self.loops[at].clone()).collect();
        for access in self.accesses_mut() {
            access.keep(order);
        }
        if let Some(limit) = &mut self.limit {
            limit.strides = order.iter().map(|&at| limit.strides[at]).collect();
        }
        if let Some(ragged) = &mut self.ragged {
            ragged.strides = order.iter().map(|&at| ragged.strides[at]).collect();
        }
    }

    /// Merges neighbours of one role that every access walks as one.
    fn fuse(&mut self) {
        'again: loop {
            for inner in 1..self.loops.len() {
                let outer = inner - 1;
                if self.can_fuse(outer, inner) {
                    let name = format!("{}{}", self.loops[outer].name, self.loops[inner].name);
                    let len = self.loops[outer].len * self.loops[inner].len;
                    self.loops[inner] = AttentionLoop { name, len, role: self.loops[inner].role };
                    let order: Vec<usize> = (0..self.loops.len()).filter(|&at| at != outer).collect();
                    self.keep(&order);
                    continue 'again;
                }
            }
            return;
        }
    }

    fn can_fuse(&self, outer: usize, inner: usize) -> bool {
        let (a, b) = (&self.loops[outer], &self.loops[inner]);
        let len = b.len as i128;
        let limited = |limit: &Limit| limit.strides[outer] as i128 == limit.strides[inner] as i128 * len;
        let begun = |ragged: &Ragged| ragged.strides[outer] as i128 == ragged.strides[inner] as i128 * len;
        // The only loop over keys that lie directly is their position, under a causal mask.
        a.role == b.role
            && a.len.checked_mul(b.len).is_some_and(|len| len <= isize::MAX as usize)
            && self.accesses().all(|access| access.walks_as_one(outer, inner, len))
            && self.limit.as_ref().is_none_or(limited)
            && self.ragged.as_ref().is_none_or(begun)
    }
}

/// How the loops address gradients: as their operands, were these row-major.
fn gradients(problem: &Problem, options: &AttentionOptions, labels: &[LabelId]) -> Result<Gradients, AttentionError> {
    if options.pass == Pass::Forward {
        return Ok(Gradients::default());
    }
    let mut arguments = problem.arguments.clone();
    for operand in &problem.operands {
        let layout = &mut arguments[operand.argument].layout;
        *layout = Layout::contiguous(&layout.shape);
    }
    let names = problem.labels.iter().filter(|label| !label.name.starts_with('…'));
    let sizes = names.map(|label| (label.name.clone(), label.len)).collect();
    let bound = BindOptions { sizes, bounds: problem.bounds, ..BindOptions::default() };
    let written =
        bind(&problem.equation, &arguments, &bound).map_err(|error| AttentionError::Gradients(error.to_string()))?;
    let id = |label: LabelId| written.labels.iter().position(|other| other.name == problem.name(label));
    let ids: Option<Vec<LabelId>> = labels.iter().map(|&label| id(label).map(|at| LabelId(at as u32))).collect();
    let ids = ids.ok_or_else(|| AttentionError::Gradients("labels changed".into()))?;
    let of = |at: usize| {
        let operand = written.operands.get(at).filter(|_| options.wanted[at])?;
        // Nothing is written there, and strides of arrays without elements tell nothing of their axes.
        let is_empty = written.arguments[operand.argument].layout.shape.contains(&0);
        (!is_empty).then(|| access(&operand.term, &ids, &written.tables))
    };
    Ok(Gradients { query: of(0), key: of(1), value: of(2), bias: of(3) })
}

fn operands(problem: &Problem) -> Result<(&Term, &Term, &Term, Option<&Term>), AttentionError> {
    match problem.operands.as_slice() {
        [query, key, value] => Ok((&query.term, &key.term, &value.term, None)),
        [query, key, value, bias] => Ok((&query.term, &key.term, &value.term, Some(&bias.term))),
        others => Err(AttentionError::Operands { operands: others.len() }),
    }
}

/// The type of query, key, value and output.
fn query_dtype(problem: &Problem) -> DType {
    problem.operands[0].dtype
}

fn check_types(problem: &Problem) -> Result<(), AttentionError> {
    let types: Vec<DType> = problem.operands.iter().take(3).map(|operand| operand.dtype).collect();
    let [query, key, value] = types[..] else { unreachable!("there are three operands") };
    let wrong = |text: String| Err(AttentionError::DType(text));
    if !FLOATS.contains(&query) {
        return wrong(format!("attention works on f16, bf16, f32 and f64, but query is {query}"));
    }
    if key != query || value != query {
        return wrong(format!(
            "query, key and value are {query}, {key} and {value}, but attention takes one type\nhint: convert them to {query}"
        ));
    }
    if let Some(bias) = problem.operands.get(3).map(|bias| bias.dtype)
        && bias != query
        && bias != query.accumulator()
    {
        return wrong(format!("bias is {bias}, but has to be {query} or {}", query.accumulator()));
    }
    if problem.output.dtype != query {
        return wrong(format!("the output is {}, but query is {query}", problem.output.dtype));
    }
    Ok(())
}

/// Values stand where keys do, and nothing else is looked up.
fn check_lookups(problem: &Problem) -> Result<(), AttentionError> {
    let [query, key, value] = [0, 1, 2].map(|at| &problem.operands[at].term);
    let others = [("query", Some(query)), ("bias", problem.operands.get(3).map(|bias| &bias.term))];
    for (place, term) in others.into_iter().chain([("the output", Some(&problem.output.term))]) {
        if term.is_some_and(|term| !term.is_plain()) {
            return Err(AttentionError::LookedUp { place });
        }
    }
    let tables = |term: &Term| -> Vec<_> {
        let of = |at: usize| (&problem.tables[at].strides, problem.tables[at].dtype);
        term.lookups.iter().map(|lookup| (of(lookup.table), lookup.len)).collect()
    };
    let windows = |term: &Term| -> Vec<_> {
        term.windows.iter().map(|window| (window.terms.clone(), window.offset, window.len)).collect()
    };
    if tables(key) != tables(value) || windows(key) != windows(value) {
        return Err(AttentionError::Brackets);
    }
    Ok(())
}

/// The role of every label, in the order of the problem's labels.
fn roles(problem: &Problem) -> Result<Vec<(LabelId, AttentionRole)>, AttentionError> {
    let (query, key, value, bias) = operands(problem)?;
    let labels = |term: &Term| term.labels(&problem.tables);
    let [in_query, in_key, in_value, in_out] = [query, key, value, &problem.output.term].map(labels);
    let in_bias = bias.map(labels).unwrap_or_default();
    let role = |label: LabelId| {
        let within = |labels: &[LabelId]| labels.contains(&label);
        let places = (within(&in_query), within(&in_key), within(&in_value), within(&in_out));
        Ok(match places {
            (false, false, true, true) if !within(&in_bias) => AttentionRole::Width,
            (true, false, false, true) => AttentionRole::Head,
            (_, _, _, true) => AttentionRole::List,
            (_, true, true, false) => AttentionRole::Key,
            (true, true, false, false) if !within(&in_bias) => AttentionRole::Depth,
            (in_query, in_key, in_value, false) => {
                let (place, hint) = match (in_query, in_key, in_value) {
                    (true, false, false) => ("the query", "sum over it before"),
                    (false, true, false) => ("the key", "the softmax runs over labels that keys and values have"),
                    (false, false, true) => ("the value", "the output has no such label: sum over it before"),
                    (true, true, false) => ("query, key and bias", "values need it too"),
                    (true, false, true) => ("query and value", "keys need it too"),
                    _ => ("the bias", "keys and values need it too"),
                };
                return Err(AttentionError::Label { label: problem.name(label).into(), place, hint });
            }
        })
    };
    let mut all: Vec<LabelId> = [in_query.as_slice(), &in_key, &in_value, &in_out, &in_bias].concat();
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(|label| Ok((label, role(label)?))).collect()
}

/// The output's labels but those of `Width`, in its order: those of the log-sum-exp.
fn lse_labels(problem: &Problem, roles: &[(LabelId, AttentionRole)]) -> Vec<LabelId> {
    let width = |label: &LabelId| roles.contains(&(*label, AttentionRole::Width));
    problem.output.term.strides.iter().map(|(label, _)| *label).filter(|label| !width(label)).collect()
}

/// Shape of the log-sum-exp.
///
/// # Errors
/// A label has no role.
pub(super) fn lse_shape(problem: &Problem) -> Result<Vec<usize>, AttentionError> {
    Ok(lse_labels(problem, &roles(problem)?).into_iter().map(|label| problem.len(label)).collect())
}

/// How the loops address a row-major log-sum-exp.
fn lse_strides(problem: &Problem, roles: &[(LabelId, AttentionRole)], labels: &[LabelId]) -> Vec<isize> {
    let mut strides = vec![0; labels.len()];
    let mut next = 1isize;
    for label in lse_labels(problem, roles).into_iter().rev() {
        if let Some(at) = labels.iter().position(|&l| l == label) {
            strides[at] = next;
        }
        next = next.saturating_mul(problem.len(label).max(1) as isize);
    }
    strides
}

/// The causal mask: a query's position is its index on the last label of the query that the output has too.
fn limit(problem: &Problem, roles: &[(LabelId, AttentionRole)], labels: &[LabelId]) -> Result<Limit, AttentionError> {
    let (query, key, _, _) = operands(problem)?;
    let wrong = |text: &str| Err(AttentionError::Causal(text.into()));
    let axes = key.lookups.len() + key.windows.len();
    let keys = roles.iter().filter(|(_, role)| *role == AttentionRole::Key).count();
    if axes > 1 || (axes == 0 && keys != 1) {
        return wrong("a causal mask needs keys on one axis, which gives each its position");
    }
    let role_of = |label: LabelId| roles.iter().find(|(l, _)| *l == label).map(|(_, role)| *role);
    let kept = |label: &LabelId| matches!(role_of(*label), Some(AttentionRole::List | AttentionRole::Head));
    let Some(position) = query.strides.iter().map(|(label, _)| *label).rfind(|label| kept(label)) else {
        return wrong("a causal mask needs a label of the query that the output has too");
    };
    let strides = labels.iter().map(|&label| i64::from(label == position)).collect();
    Ok(Limit { offset: 0, strides })
}

fn ragged(problem: &Problem, given: &super::plan::RaggedOptions, labels: &[LabelId]) -> Result<Ragged, AttentionError> {
    let (_, key, _, _) = operands(problem)?;
    let wrong = |text: String| Err(AttentionError::Ragged(text));
    let [lookup] = key.lookups.as_slice() else {
        return wrong("lists of different lengths need one table".into());
    };
    let table = &problem.tables[lookup.table];
    let &[(entry, _)] = table.strides.as_slice() else {
        return wrong(format!("with offsets the table has one axis, but it has {}", table.strides.len()));
    };
    if !given.argument.dtype.is_integer() {
        return wrong(format!("offsets are {}, not integers", given.argument.dtype));
    }
    let shape = given.argument.layout.shape.as_slice();
    let strides = given.argument.layout.strides.as_slice();
    let Some((&ends, lists)) = shape.split_last() else {
        return wrong("offsets have no axes\nhint: one for each list and one more".into());
    };
    let named: Vec<LabelId> = given
        .labels
        .iter()
        .map(|name| {
            let found = (0..problem.labels.len()).find(|&at| problem.labels[at].name == *name);
            found
                .map(|at| LabelId(at as u32))
                .ok_or_else(|| AttentionError::Ragged(format!("there is no label `{name}` for the offsets")))
        })
        .collect::<Result<_, _>>()?;
    if named.len() != shape.len() {
        return wrong(format!("offsets have {} axes but {} labels", shape.len(), named.len()));
    }
    let last = named[named.len() - 1];
    let lens = named.iter().map(|&label| problem.len(label));
    for (axis, (len, &found)) in lens.zip(lists.iter().chain([&(ends.saturating_sub(1))])).enumerate() {
        if len != found || ends == 0 {
            let name = problem.name(named[axis]);
            return wrong(format!(
                "offsets have {} on axis {axis}, where label `{name}` is {len}\nhint: the last axis has one offset more than lists",
                shape[axis]
            ));
        }
    }
    let stride_of = |label: LabelId| {
        let axis = named.iter().position(|&named| named == label);
        axis.map_or(0, |axis| strides[axis])
    };
    let step = if problem.len(last) == 0 { 0 } else { strides[strides.len() - 1] };
    Ok(Ragged {
        argument: given.number,
        dtype: given.argument.dtype,
        strides: labels.iter().map(|&label| stride_of(label)).collect(),
        step,
        entries: problem.len(entry),
    })
}
