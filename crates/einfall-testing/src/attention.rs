//! Cases of attention: a description that gives the arguments and what the oracle makes of them, and random ones.
//!
//! *In*: a seed. *Out*: an [`AttentionCase`] that draws on every option: keys of all, of a table, of a window, of lists of
//! different lengths; shared by heads or not; with a bias, a causal mask, any strides and types. *Callers*: tests.
//!
//! ```
//! use einfall_testing::attention::random_attention;
//!
//! let case = random_attention(42);
//! assert_eq!(case, random_attention(42));
//! assert!(case.expected().is_ok(), "{case}");
//! ```

use std::fmt;

use einfall_equation::Equation;
use einfall_tensor::{DType, TensorError, View};

use crate::case::{ArgumentSpec, Buffer, CaseError, Fill};
use crate::generator::arrange;
use crate::oracle::Bounds;
use crate::oracle::attention::{Attended, AttentionCall, attend};
use crate::random::{Choices, Random};

/// An attention with its data.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionCase {
    /// The equation.
    pub equation: String,
    /// Operands and tables in call order, then the offsets if there are any.
    pub arguments: Vec<ArgumentSpec>,
    /// The options.
    pub call: AttentionCall,
    /// Seed of the data.
    pub seed: u64,
}

impl AttentionCase {
    /// Builds the arguments in memory.
    ///
    /// # Errors
    /// When a layout reaches outside its storage.
    pub fn materialise(&self) -> Result<Vec<Buffer>, TensorError> {
        let numbered = self.arguments.iter().enumerate();
        numbered.map(|(i, argument)| argument.materialise(&mut Random::new(self.seed, i as u64))).collect()
    }

    /// A gradient for an output of so many elements, each a number that the type holds.
    pub fn grad_out(&self, elements: usize) -> Vec<f64> {
        let mut random = Random::new(self.seed, 1000);
        (0..elements).map(|_| random.between(-16, 16) as f64 / 8.0).collect()
    }

    /// What the oracle says, with the gradients for [`AttentionCase::grad_out`].
    ///
    /// # Errors
    /// When the case is malformed.
    pub fn expected(&self) -> Result<Attended, CaseError> {
        let equation = Equation::parse(&self.equation)?;
        let buffers = self.materialise()?;
        let views: Vec<View> = buffers.iter().map(Buffer::view).collect();
        let shape = attend(&equation, &views, &self.call, None)?.out.shape;
        let grad_out = self.grad_out(shape.iter().product());
        Ok(attend(&equation, &views, &self.call, Some(&grad_out))?)
    }
}

impl fmt::Display for AttentionCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AttentionCase { equation, arguments, call, seed } = self;
        writeln!(f, "{equation} of seed {seed}: {call:?}")?;
        arguments.iter().try_for_each(|argument| writeln!(f, "  {argument:?}"))
    }
}

/// The case of a seed; the same one on every machine.
pub fn random_attention(seed: u64) -> AttentionCase {
    let mut choices = Choices::Seeded(Random::new(seed, u64::MAX - 1));
    let mut draft = Draft::new(&mut choices);
    draft.keys();
    draft.finish(&mut choices)
}

/// Which keys a query has.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    All,
    Table,
    Tables,
    Window,
    Ragged,
}

struct Draft {
    kind: Kind,
    dtype: DType,
    bounds: Bounds,
    /// Batch, heads, heads that share, queries (perhaps on several axes), each with its length.
    batch: Option<(char, usize)>,
    heads: Option<(char, usize)>,
    shared: Option<(char, usize)>,
    queries: Vec<(char, usize)>,
    /// Keys of a list on one or two axes.
    keys: Vec<(char, usize)>,
    /// Lengths of the axes along which keys lie.
    axes: Vec<usize>,
    depth: Vec<(char, usize)>,
    width: Vec<(char, usize)>,
    /// The brackets, and their tables: labels and the axis that each looks up.
    brackets: String,
    tables: Vec<(Vec<(char, usize)>, usize)>,
    causal: bool,
    bias: Option<Vec<(char, usize)>>,
    choices: Vec<u32>,
}

const FEATURES: [usize; 14] = [4, 1, 2, 3, 5, 8, 16, 17, 32, 33, 48, 64, 65, 100];

impl Draft {
    fn new(choices: &mut Choices) -> Draft {
        let length = |choices: &mut Choices, lens: &[usize]| match choices.pick(lens) {
            0 if choices.percent(70) => 2,
            len => len,
        };
        let kind =
            choices.pick(&[Kind::Table, Kind::Table, Kind::Table, Kind::All, Kind::Window, Kind::Ragged, Kind::Tables]);
        let maybe = |choices: &mut Choices, label, chance, lens: &[usize]| {
            choices.percent(chance).then(|| (label, length(choices, lens)))
        };
        let batch = maybe(choices, 'b', 60, &[2, 1, 3, 0]);
        let heads = maybe(choices, 'h', 60, &[2, 1, 3, 4]);
        let shared = maybe(choices, 'r', 40, &[2, 1, 3, 5, 8]);
        let query_axes = if kind == Kind::Window { 1 + choices.below(3) } else { 1 };
        let most: &[usize] = match query_axes {
            1 => &[5, 1, 2, 9, 17, 33, 40, 0],
            2 => &[3, 1, 4, 6],
            _ => &[2, 1, 3],
        };
        let queries: Vec<(char, usize)> =
            (0..query_axes).map(|at| (['q', 'x', 'y'][at], length(choices, most))).collect();
        let depth = choices.pick(&FEATURES);
        let width = if choices.percent(70) { depth } else { choices.pick(&FEATURES) };
        let several = |choices: &mut Choices, len: usize, labels: [char; 2]| match choices.below(12) {
            0 => vec![],
            1 if len < 20 => vec![(labels[0], 2), (labels[1], len)],
            2 => vec![(labels[0], 0)],
            _ => vec![(labels[0], len)],
        };
        Draft {
            kind,
            dtype: choices.pick(&[DType::F32, DType::F32, DType::F64, DType::BF16, DType::F16]),
            bounds: if choices.percent(60) { Bounds::Skip } else { Bounds::Error },
            batch,
            heads,
            shared,
            queries,
            keys: Vec::new(),
            axes: Vec::new(),
            depth: several(choices, depth, ['d', 'c']),
            width: several(choices, width, ['e', 'f']),
            brackets: String::new(),
            tables: Vec::new(),
            causal: choices.percent(30),
            bias: None,
            choices: (0..40).map(|_| choices.below(1 << 30) as u32).collect(),
        }
    }

    fn outer(&self) -> Vec<(char, usize)> {
        [self.batch, self.heads, self.shared].into_iter().flatten().chain(self.queries.iter().copied()).collect()
    }

    /// Which keys each query has.
    fn keys(&mut self) {
        let mut drawn = std::mem::take(&mut self.choices).into_iter();
        let mut below = move |n: usize| drawn.next().unwrap_or(0) as usize % n;
        let lists: [usize; 12] = [3, 1, 2, 4, 5, 7, 8, 15, 16, 17, 40, 0];
        let mut positions: [usize; 10] = [7, 1, 2, 8, 16, 31, 33, 64, 65, 100];
        match self.kind {
            Kind::All => {
                let len = [positions[below(10)], lists[below(12)]][below(2)];
                self.keys = vec![('k', len)];
                if below(5) == 0 {
                    self.keys.push(('j', 3));
                }
                self.axes = self.keys.iter().map(|(_, len)| *len).collect();
                self.brackets = self.keys.iter().map(|(label, _)| *label).collect();
            }
            Kind::Table | Kind::Tables => {
                self.keys = vec![('k', lists[below(12)])];
                if below(6) == 0 {
                    self.keys.push(('j', 2));
                }
                let count = if self.kind == Kind::Table { 1 } else { 2 };
                positions[0] = if count == 2 { 4 } else { 7 };
                for _ in 0..count {
                    let axis = if count == 2 { positions[below(3)] } else { positions[below(10)] };
                    let keep = below(100);
                    let outer = self.outer();
                    let mut labels: Vec<(char, usize)> = outer.into_iter().filter(|_| below(100) >= keep / 2).collect();
                    labels.extend(&self.keys);
                    if below(4) == 0 {
                        labels.reverse();
                    }
                    let text: String = labels.iter().map(|(label, _)| *label).collect();
                    self.brackets.push_str(&format!("[{text}]"));
                    self.axes.push(axis);
                    self.tables.push((labels, axis));
                }
            }
            Kind::Window => {
                for (at, &(label, len)) in self.queries.clone().iter().enumerate() {
                    let key = ['u', 'v', 'w'][at];
                    let reach = [3, 1, 2, 5][below(4)];
                    let dilation = [1, 1, 2, 3][below(4)];
                    let shift = (reach / 2 * dilation) as i64 - below(3) as i64 + 1;
                    let step = if below(8) == 0 { "2" } else { "" };
                    let by = if dilation == 1 { String::new() } else { dilation.to_string() };
                    self.brackets.push_str(&format!("[{step}{label}+{by}{key}{:+}]", -shift));
                    self.keys.push((key, reach));
                    self.axes.push(if below(3) == 0 { positions[below(4)] } else { len });
                }
            }
            Kind::Ragged => {
                let axis = positions[below(10)];
                let lists: usize = self.queries[0].1;
                let counts: Vec<usize> = (0..lists).map(|_| [0, 1, 3, 4, 9, 20][below(6)]).collect();
                self.keys = vec![('k', counts.iter().sum())];
                self.brackets = "[k]".into();
                self.axes = vec![axis];
                self.tables = vec![(self.keys.clone(), axis)];
                self.choices = counts.into_iter().map(|count| count as u32).collect();
            }
        }
        let one_axis = self.axes.len() == 1 && (self.kind != Kind::All || self.keys.len() == 1);
        self.causal &= one_axis && !self.queries.is_empty();
        if below(3) == 0 && self.kind != Kind::Ragged {
            let keep = below(100);
            let mut labels: Vec<(char, usize)> = self.outer().into_iter().filter(|_| below(100) >= keep).collect();
            labels.extend(&self.keys);
            self.bias = Some(labels);
        }
    }

    /// The equation and its arguments.
    fn finish(self, choices: &mut Choices) -> AttentionCase {
        let shuffled = |choices: &mut Choices, mut labels: Vec<(char, usize)>, chance| {
            if choices.percent(chance) {
                labels = choices.order(labels.len()).into_iter().map(|at| labels[at]).collect();
            }
            labels
        };
        let text = |labels: &[(char, usize)]| labels.iter().map(|(label, _)| *label).collect::<String>();
        let shape = |labels: &[(char, usize)]| labels.iter().map(|(_, len)| *len).collect::<Vec<usize>>();
        let float = if choices.percent(30) { Fill::Integers(2) } else { Fill::Normal };
        let operand = |choices: &mut Choices, shape: &[usize], fill: &Fill| {
            arrange(choices, ArgumentSpec::contiguous(self.dtype, shape, fill.clone()))
        };
        // A permuted query would change which label is its position.
        let chance = if self.causal { 0 } else { 25 };
        let query = shuffled(choices, [self.outer(), self.depth.clone()].concat(), chance);
        let output = shuffled(choices, [self.outer(), self.width.clone()].concat(), chance);
        let mut arguments = vec![operand(choices, &shape(&query), &float)];
        let mut terms = vec![text(&query)];
        let table_dtype =
            choices.pick(&[DType::I32, DType::I64, DType::I16, DType::I8, DType::U8, DType::U32, DType::U64]);
        let tables: Vec<ArgumentSpec> = self
            .tables
            .iter()
            .map(|(labels, axis)| {
                let fill = match choices.below(5) {
                    1 | 2 if self.bounds == Bounds::Skip => Fill::Padded(*axis),
                    3 if self.bounds == Bounds::Skip => Fill::Outside(*axis),
                    4 => Fill::Constant(axis.saturating_sub(1) as i64),
                    _ => Fill::Random(*axis),
                };
                let mut shape = shape(labels);
                for len in &mut shape {
                    // One row of a table may serve all.
                    if self.kind != Kind::Ragged && labels.len() > 1 && *len > 1 && choices.percent(8) {
                        *len = 1;
                    }
                }
                arrange(choices, ArgumentSpec::contiguous(table_dtype, &shape, fill))
            })
            .collect();
        let first = choices.percent(50);
        for features in [&self.depth, &self.width] {
            let outer: Vec<(char, usize)> = [self.batch, self.heads].into_iter().flatten().collect();
            let mut shape_of: Vec<usize> = shape(&outer);
            // Heads of length one serve all.
            if self.heads.is_some() && choices.percent(8) {
                *shape_of.last_mut().expect("heads") = 1;
            }
            let (own, lens) = (text(features), shape(features));
            let (term, shape) = if first || features.is_empty() {
                (format!("{}{}{own}", text(&outer), self.brackets), [shape_of, self.axes.clone(), lens].concat())
            } else {
                (format!("{}{}{own}", self.brackets, text(&outer)), [self.axes.clone(), shape_of, lens].concat())
            };
            terms.push(term);
            arguments.push(operand(choices, &shape, &float));
            if terms.len() == 2 {
                arguments.extend(tables.iter().cloned());
            }
        }
        if let Some(labels) = &self.bias {
            terms.push(text(labels));
            let fill = if choices.percent(25) {
                let count: usize = shape(labels).iter().product();
                let value = |at: usize| if at % 3 == 1 { f64::NEG_INFINITY } else { (at % 5) as f64 / 2.0 };
                Fill::Values((0..count).map(value).collect())
            } else {
                float.clone()
            };
            let mut bias = operand(choices, &shape(labels), &fill);
            if choices.percent(30) {
                bias.dtype = self.dtype.accumulator();
            }
            arguments.push(bias);
        }
        if self.kind == Kind::Ragged {
            let mut offsets = vec![0.0];
            for &count in &self.choices {
                offsets.push(offsets.last().expect("one") + f64::from(count));
            }
            let shape = [offsets.len()];
            arguments.push(ArgumentSpec::contiguous(DType::I64, &shape, Fill::Values(offsets)));
        }
        let sizes = self.keys.iter().filter(|_| self.kind == Kind::Window);
        AttentionCase {
            equation: format!("{}->{}", terms.join(","), text(&output)),
            arguments,
            call: AttentionCall {
                sizes: sizes.map(|(label, len)| (label.to_string(), *len)).collect(),
                bounds: self.bounds,
                causal: self.causal,
                scale: choices.percent(30).then_some(0.37),
                offsets: (self.kind == Kind::Ragged).then(|| "q".to_string()),
            },
            seed: choices.below(1 << 30) as u64,
        }
    }
}
