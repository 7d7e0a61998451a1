//! What the kernels of rows share: an attention whose keys and values are rows that follow each other in memory, chosen by
//! one table, by windows, or all of them.
//!
//! *In*: an [`Attention`]. *Out*: `Lists`, which knows what each loop moves and fills the parameter of the kernels. The
//! fields' order is that of `Params` in `attention.cuh`.

use einfall_plan::{Access, Attention, AttentionRole, Bounds, LookupAccess};
use einfall_tensor::DType;

use super::AttentionLowering;
use crate::ops::rows::TURNS;
use crate::text::{Memory, Value};

/// Loops around a list that the kernels take.
const OUTER: usize = 8;
/// Loops along a list, and axes slid over.
const INNER: usize = 3;

/// Fields of the kernels' parameter that are pointers: the first ones.
const POINTERS: usize = 18;

/// What a loop around the lists moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moves {
    /// The rows, and what chooses among them: lists with rows of their own.
    Both,
    /// The rows alone: lists that share a table.
    Rows,
    /// The choice alone.
    Choice,
    /// Neither: heads.
    Neither,
}

/// An axis that positions are counted on.
#[derive(Clone, Debug)]
struct Slid {
    /// By loop.
    coefficients: Vec<i64>,
    offset: i64,
    len: usize,
    key_stride: isize,
    value_stride: isize,
}

/// An attention over lists of rows.
#[derive(Clone, Debug)]
pub(super) struct Lists<'a> {
    pub(super) attention: &'a Attention,
    /// Loops around a list, in the order of what they move.
    outer: Vec<(usize, Moves)>,
    /// Loops along a list.
    inner: Vec<usize>,
    depth: Option<usize>,
    width: Option<usize>,
    pub(super) lookup: Option<&'a LookupAccess>,
    slid: Vec<Slid>,
}

impl<'a> Lists<'a> {
    pub(super) fn new(attention: &'a Attention) -> Result<Self, String> {
        let only = |role: AttentionRole| -> Result<Option<usize>, String> {
            let mut found = attention.loops_of(role);
            match (found.next(), found.next()) {
                (at, None) => Ok(at),
                _ => Err("rows are no rows in memory".into()),
            }
        };
        let (depth, width) = (only(AttentionRole::Depth)?, only(AttentionRole::Width)?);
        let unit = |at: Option<usize>, access: &Access| at.is_none_or(|at| access.strides[at] == 1);
        let gradients = &attention.gradients;
        let in_depth = [Some(&attention.query), Some(&attention.key), gradients.query.as_ref(), gradients.key.as_ref()];
        let in_width = [Some(&attention.value), Some(&attention.out), gradients.value.as_ref()];
        if !in_depth.into_iter().flatten().all(|access| unit(depth, access))
            || !in_width.into_iter().flatten().all(|access| unit(width, access))
        {
            return Err("elements of a row do not follow each other".into());
        }
        let inner: Vec<usize> = attention.loops_of(AttentionRole::Key).collect();
        if inner.len() > INNER {
            return Err(format!("more than {INNER} loops over keys"));
        }
        let mut lists = Lists { attention, outer: Vec::new(), inner, depth, width, lookup: None, slid: Vec::new() };
        lists.choose()?;
        lists.sort()?;
        if lists.d() == 0 || lists.e() == 0 {
            return Err("rows are empty".into());
        }
        let small = |count: f64| count < (1_u64 << 31) as f64;
        let k = lists.inner.iter().map(|&at| lists.len(at) as f64).product::<f64>();
        let all = attention.len_of(AttentionRole::List) as f64 * attention.len_of(AttentionRole::Head) as f64;
        if !small(all) || !small(k) || !small(lists.slid.iter().map(|slid| slid.len as f64).product()) {
            return Err("more lists, keys or rows than are counted with 31 bits".into());
        }
        Ok(lists)
    }

    /// How rows are chosen.
    fn choose(&mut self) -> Result<(), String> {
        let Attention { key, value, ragged, .. } = self.attention;
        let direct = |at: &usize| key.strides[*at] != 0 || value.strides[*at] != 0;
        if ragged.as_ref().is_some_and(|ragged| ![4, 8].contains(&ragged.dtype.bytes())) {
            return Err("offsets of 32 and 64 bits only".into());
        }
        match (key.lookups.as_slice(), key.windows.as_slice()) {
            ([lookup], []) => {
                if ![4, 8].contains(&lookup.entry_bytes) || lookup.len >= 1 << 31 {
                    return Err("tables of 32 and 64 bits only".into());
                }
                if self.inner.iter().any(direct) {
                    return Err("the rows of a list are not those of the table".into());
                }
                self.lookup = Some(lookup);
            }
            ([], []) if self.inner.is_empty() => {}
            ([], []) => {
                // All keys: each loop is its own position.
                for &at in &self.inner {
                    let mut coefficients = vec![0; self.attention.loops.len()];
                    coefficients[at] = 1;
                    let (key_stride, value_stride) = (key.strides[at], value.strides[at]);
                    let len = self.len(at);
                    self.slid.push(Slid { coefficients, offset: 0, len, key_stride, value_stride });
                }
            }
            ([], windows) if windows.len() <= INNER => {
                if self.inner.iter().any(direct) {
                    return Err("windows and keys that lie directly".into());
                }
                for (of_key, of_value) in windows.iter().zip(&value.windows) {
                    self.slid.push(Slid {
                        coefficients: of_key.coefficients.clone(),
                        offset: of_key.offset,
                        len: of_key.len,
                        key_stride: of_key.stride,
                        value_stride: of_value.stride,
                    });
                }
            }
            _ => return Err("rows are chosen by more than one table".into()),
        }
        let joined = |stride: &dyn Fn(&Slid) -> isize| {
            self.slid.windows(2).all(|pair| stride(&pair[0]) == stride(&pair[1]) * pair[1].len as isize)
        };
        if !joined(&|slid| slid.key_stride) || !joined(&|slid| slid.value_stride) {
            return Err("rows of a window do not follow each other".into());
        }
        // Gradients are row-major, wherever their operands lie.
        let gradients = &self.attention.gradients;
        for access in [&gradients.key, &gradients.value].into_iter().flatten() {
            let strides: Vec<isize> = match access.windows.as_slice() {
                [] if self.lookup.is_some() => Vec::new(),
                [] => self.inner.iter().map(|&at| access.strides[at]).collect(),
                windows => windows.iter().map(|window| window.stride).collect(),
            };
            let follow = |(at, pair): (usize, &[isize])| pair[0] == pair[1] * self.slid[at + 1].len as isize;
            if !strides.windows(2).enumerate().all(follow) {
                return Err("rows of a gradient do not follow each other".into());
            }
        }
        Ok(())
    }

    /// Puts the loops around lists in order.
    fn sort(&mut self) -> Result<(), String> {
        let attention = self.attention;
        let gradients = &attention.gradients;
        let (keys, values) =
            ([Some(&attention.key), gradients.key.as_ref()], [Some(&attention.value), gradients.value.as_ref()]);
        let moves =
            |accesses: &[Option<&Access>], at: usize| accesses.iter().flatten().any(|access| access.strides[at] != 0);
        for at in attention.loops_of(AttentionRole::List).chain(attention.loops_of(AttentionRole::Head)) {
            let rows = moves(&keys, at) || moves(&values, at);
            let choice = self.lookup.is_some_and(|lookup| lookup.table_strides[at] != 0)
                || self.slid.iter().any(|slid| slid.coefficients[at] != 0)
                || attention.ragged.as_ref().is_some_and(|ragged| ragged.strides[at] != 0)
                || attention.limit.as_ref().is_some_and(|limit| limit.strides[at] != 0);
            let moves = match (rows, choice) {
                (true, true) => Moves::Both,
                (true, false) => Moves::Rows,
                (false, true) => Moves::Choice,
                (false, false) => Moves::Neither,
            };
            self.outer.push((at, moves));
        }
        self.outer.sort_by_key(|&(_, moves)| moves);
        if self.outer.len() > OUTER {
            return Err(format!("more than {OUTER} loops around the lists"));
        }
        Ok(())
    }

    /// Whether gradients can be summed a row at a time.
    pub(super) fn check_backward(&self) -> Result<(), String> {
        let attention = self.attention;
        let gradients = &attention.gradients;
        let all = |access: &Option<Access>, moves: &dyn Fn(Moves) -> bool| {
            let moved = |&(at, kind): &(usize, Moves)| {
                !moves(kind) || access.as_ref().is_none_or(|access| access.strides[at] != 0)
            };
            self.outer.iter().all(moved)
        };
        let rows = |kind| matches!(kind, Moves::Both | Moves::Rows);
        if !all(&gradients.query, &|_| true) || !all(&gradients.key, &rows) || !all(&gradients.value, &rows) {
            return Err("a gradient is summed over a loop".into());
        }
        let bias = gradients.bias.as_ref();
        if !all(&gradients.bias, &|_| true)
            || bias.is_some_and(|bias| self.inner.iter().any(|&at| bias.strides[at] == 0))
        {
            return Err("the bias' gradient is summed over a loop".into());
        }
        if bias.is_some() && attention.bias.as_ref().is_some_and(|input| input.strides != bias.expect("there").strides)
        {
            return Err("the bias' gradient is laid out otherwise".into());
        }
        if attention.ragged.is_some() && (self.count(Moves::Both) > 0 || self.count(Moves::Choice) != 1) {
            return Err("lists of different lengths on more than one axis".into());
        }
        let count = |kinds: &[Moves]| kinds.iter().map(|&kind| self.product(kind) as f64).product::<f64>();
        let lists = if attention.ragged.is_some() { 1.0 } else { count(&[Moves::Both, Moves::Choice]) };
        let entries = lists * self.k() as f64;
        let rows = count(&[Moves::Both]) * self.n() as f64;
        if entries.max(rows) * 2.0 >= (1_u64 << 32) as f64 || rows * count(&[Moves::Rows]) >= 1e14 {
            return Err("too many entries or rows to be counted with 31 bits".into());
        }
        Ok(())
    }

    pub(super) fn len(&self, at: usize) -> usize {
        self.attention.loops[at].len
    }

    /// Elements of a key.
    pub(super) fn d(&self) -> usize {
        self.depth.map_or(1, |at| self.len(at))
    }

    /// Elements of a value.
    pub(super) fn e(&self) -> usize {
        self.width.map_or(1, |at| self.len(at))
    }

    /// Keys of a list; of lists of different lengths all entries.
    pub(super) fn k(&self) -> usize {
        self.inner.iter().map(|&at| self.len(at)).product()
    }

    /// Keys of a list on average.
    pub(super) fn usual_k(&self) -> f64 {
        self.attention.keys_of_list()
    }

    /// Rows to choose from.
    pub(super) fn n(&self) -> usize {
        match self.lookup {
            Some(lookup) => lookup.len,
            None => self.slid.iter().map(|slid| slid.len).product(),
        }
    }

    /// How many loops move so.
    pub(super) fn count(&self, kind: Moves) -> usize {
        self.outer.iter().filter(|(_, moves)| *moves == kind).count()
    }

    /// Their iterations.
    pub(super) fn product(&self, kind: Moves) -> usize {
        self.outer.iter().filter(|(_, moves)| *moves == kind).map(|&(at, _)| self.len(at)).product()
    }

    /// Number of lists, heads included.
    pub(super) fn lists(&self) -> usize {
        self.outer.iter().map(|&(at, _)| self.len(at)).product()
    }

    /// How many loops move the rows: they come first.
    pub(super) fn moving_rows(&self) -> usize {
        self.count(Moves::Both) + self.count(Moves::Rows)
    }

    /// Groups of lists with rows of their own.
    pub(super) fn groups(&self) -> usize {
        self.product(Moves::Both) * self.product(Moves::Rows)
    }

    /// Places of lists that the inverse counts; of lists of different lengths, the table's.
    pub(super) fn entries(&self) -> usize {
        if let Some(ragged) = &self.attention.ragged {
            return ragged.entries;
        }
        self.product(Moves::Both) * self.product(Moves::Choice) * self.k()
    }

    /// Rows that the inverse counts.
    pub(super) fn keys(&self) -> usize {
        self.product(Moves::Both) * self.n()
    }

    pub(super) fn size(&self) -> usize {
        self.attention.dtype.bytes()
    }

    pub(super) fn accumulator(&self) -> usize {
        self.attention.accumulator.bytes()
    }

    /// From a row to the next: of keys, of values.
    fn row_strides(&self) -> (isize, isize) {
        match (self.lookup, self.slid.last()) {
            (Some(lookup), _) => (lookup.stride, self.attention.value.lookups[0].stride),
            (None, Some(slid)) => (slid.key_stride, slid.value_stride),
            (None, None) => (0, 0),
        }
    }

    /// The same of a gradient.
    fn gradient_row(&self, access: Option<&Access>) -> isize {
        let Some(access) = access else { return 0 };
        match (access.lookups.first(), access.windows.last(), self.inner.last()) {
            (Some(lookup), ..) => lookup.stride,
            (None, Some(window), _) => window.stride,
            (None, None, Some(&at)) => access.strides[at],
            (None, None, None) => 0,
        }
    }

    /// The most elements that loads and stores of rows may take at once: of keys and queries, of values and outputs.
    pub(super) fn vectors(&self, lowering: Option<&AttentionLowering<'_>>) -> (usize, usize) {
        let attention = self.attention;
        let gradients = &attention.gradients;
        let (row_k, row_v) = self.row_strides();
        let largest = |d: usize, row: isize, accesses: &[(Option<&Access>, Memory)]| {
            let mut vector = 16 / self.size();
            let mut fits = |number: usize| {
                while vector > 1 && !number.is_multiple_of(vector) {
                    vector /= 2;
                }
            };
            fits(d);
            fits(row.unsigned_abs());
            for (access, memory) in accesses {
                let Some(access) = access else { continue };
                fits(access.offset.unsigned_abs());
                fits(self.gradient_row(Some(access)).unsigned_abs());
                self.outer.iter().for_each(|&(at, _)| fits(access.strides[at].unsigned_abs()));
                if let Some(lowering) = lowering {
                    fits((lowering.alignment)(*memory) / self.size());
                }
            }
            vector
        };
        let in_depth = [
            (Some(&attention.query), Memory::Operand(0)),
            (Some(&attention.key), Memory::Operand(1)),
            (gradients.query.as_ref(), Memory::Gradient(0)),
            (gradients.key.as_ref(), Memory::Gradient(1)),
        ];
        let backward = lowering.is_some_and(|lowering| lowering.pass == einfall_plan::Pass::Backward);
        let in_width = [
            (Some(&attention.value), Memory::Operand(2)),
            (Some(&attention.out), Memory::Out),
            (Some(&attention.out).filter(|_| backward), Memory::GradOut),
            (gradients.value.as_ref(), Memory::Gradient(2)),
        ];
        (largest(self.d(), row_k, &in_depth), largest(self.e(), row_v, &in_width))
    }

    /// Whether every row begins at a multiple of 16 bytes and the rows of keys, and of values, follow each other.
    pub(super) fn is_packed(&self) -> bool {
        self.row_strides() == (self.d() as isize, self.e() as isize)
    }

    /// The definitions that all kernels want.
    pub(super) fn definitions(&self, lowering: &AttentionLowering<'_>, vectors: (usize, usize)) -> String {
        let attention = self.attention;
        let dtype = match attention.dtype {
            DType::F32 => 0,
            DType::F64 => 1,
            DType::BF16 => 2,
            _ => 3,
        };
        let table = self.lookup.map_or(0, |lookup| lookup.entry_bytes);
        let bias = match &attention.bias {
            None => 0,
            Some(_) if attention.bias_dtype == attention.dtype => 1,
            Some(_) => 2,
        };
        let ragged = attention.ragged.as_ref().map_or(0, |ragged| ragged.dtype.bytes());
        let status = i32::from(attention.bounds == Bounds::Error && self.lookup.is_some());
        let causal = i32::from(attention.limit.is_some());
        let (d, e, windows) = (self.d(), self.e(), self.slid.len());
        let (outer, inner) = (self.outer.len().max(1), self.inner.len().max(1));
        let (vector_d, vector_e) = vectors;
        let (both, rows, choice) = (self.count(Moves::Both), self.count(Moves::Rows), self.count(Moves::Choice));
        let lse = i32::from(lowering.wants_lse);
        format!(
            "#define DTYPE {dtype}\n#define D {d}\n#define E {e}\n#define VECD {vector_d}\n#define VECE {vector_e}\n\
             #define TABLE {table}\n#define WINDOWS {windows}\n#define OUTER {outer}\n#define KEYS {inner}\n#define BIAS {bias}\n\
             #define CAUSAL {causal}\n#define RAGGED {ragged}\n#define STATUS {status}\n#define LSE {lse}\n#define HINT 0\n\
             #define GROUPED {both}\n#define SHARED {rows}\n#define TERMS {choice}\n"
        )
    }

    /// The fields of the kernels' parameter; those that differ between kernels come from `more`.
    pub(super) fn values(&self, lowering: &AttentionLowering<'_>, more: &More) -> Vec<Value> {
        let attention = self.attention;
        let gradients = &attention.gradients;
        let backward = lowering.pass == einfall_plan::Pass::Backward;
        let size = self.size() as i64;
        let at = |memory: Memory, offset: isize| Value::Pointer(memory, offset as i64 * size);
        let none = Value::Int(0);
        let scratch =
            |offset: Option<usize>| offset.map_or(none, |offset| Value::Pointer(Memory::Scratch, offset as i64));
        let kept = |offset: Option<usize>| offset.map_or(none, |offset| Value::Pointer(Memory::Kept, offset as i64));
        let gradient = |which: usize, access: &Option<Access>| {
            access.as_ref().map_or(none, |access| at(Memory::Gradient(which), access.offset))
        };
        let table = self.lookup.map_or(none, |lookup| {
            Value::Pointer(Memory::Table(lookup.table), (lookup.table_offset * lookup.entry_bytes as isize) as i64)
        });
        let bias_bytes = attention.bias_dtype.bytes() as i64;
        let bias = attention
            .bias
            .as_ref()
            .map_or(none, |bias| Value::Pointer(Memory::Operand(3), bias.offset as i64 * bias_bytes));
        let grad_bias = gradients
            .bias
            .as_ref()
            .map_or(none, |bias| Value::Pointer(Memory::Gradient(3), bias.offset as i64 * bias_bytes));
        let offsets = attention.ragged.as_ref().map_or(none, |_| Value::Pointer(Memory::Offsets, 0));
        let log_sum = if lowering.wants_lse { Value::Pointer(Memory::LogSum, 0) } else { none };
        let mut values = vec![
            at(Memory::Operand(0), attention.query.offset),
            at(Memory::Operand(1), attention.key.offset),
            at(Memory::Operand(2), attention.value.offset),
            table,
            bias,
            offsets,
            at(Memory::Out, attention.out.offset),
            log_sum,
            Value::Pointer(Memory::Status, 0),
            if backward { at(Memory::GradOut, attention.out.offset) } else { none },
            scratch(more.stats),
            gradient(0, &gradients.query),
            grad_bias,
            gradient(1, &gradients.key),
            gradient(2, &gradients.value),
            kept(more.begins),
            kept(more.positions),
            kept(more.to_keys),
            Value::Int(attention.scale.get().to_bits() as i64),
        ];
        if more.to_keys.is_some() {
            // The inverse is of tables alone: nothing else is read.
            for (at, value) in values.iter_mut().enumerate() {
                let data = !matches!(
                    value,
                    Value::Pointer(Memory::Table(_) | Memory::Offsets | Memory::Status | Memory::Kept, _)
                );
                if data && at < POINTERS {
                    *value = none;
                }
            }
        }
        let int = |number: isize| Value::Int(number as i64);
        let count = |number: usize| Value::Int(number as i64);
        let (row_k, row_v) = self.row_strides();
        let limit = attention.limit.as_ref().map_or(0, |limit| limit.offset);
        let entries = self.entries_or_none();
        values.extend([
            count(self.lists()),
            count(self.k()),
            count(self.n()),
            int(row_k),
            int(row_v),
            Value::Int(limit),
            int(attention.ragged.as_ref().map_or(0, |ragged| ragged.step)),
            count(more.groups),
            count(more.per_block),
        ]);
        values.extend(more.places.map(count));
        values.extend([
            int(self.gradient_row(gradients.key.as_ref())),
            int(self.gradient_row(gradients.value.as_ref())),
            count(entries),
            count(self.product(Moves::Choice)),
            count(self.product(Moves::Rows)),
            count(self.product(Moves::Neither)),
        ]);
        self.strides(&mut values);
        values
    }

    fn entries_or_none(&self) -> usize {
        if let Some(ragged) = &self.attention.ragged {
            return ragged.entries;
        }
        let count = |kind| self.product(kind) as f64;
        let entries = count(Moves::Both) * count(Moves::Choice) * self.k() as f64;
        if entries < u32::MAX as f64 { entries as usize } else { 0 }
    }

    /// Sizes and strides of the loops.
    fn strides(&self, values: &mut Vec<Value>) {
        let attention = self.attention;
        let outer = self.outer.len().max(1);
        let mut along = |of: &dyn Fn(usize) -> i64, empty: i64| {
            let numbers = self.outer.iter().map(|&(at, _)| of(at));
            values.extend(numbers.chain(std::iter::repeat(empty)).take(outer).map(Value::Int));
        };
        along(&|at| self.len(at) as i64, 1);
        let table: Option<&[isize]> = self.lookup.map(|lookup| lookup.table_strides.as_slice());
        let of = |access: Option<&Access>| access.map(|access| access.strides.clone());
        let gradients = &attention.gradients;
        let mut stats = vec![0; attention.loops.len()];
        let mut next = 1;
        for &(at, _) in self.outer.iter().rev() {
            stats[at] = next;
            next *= self.len(at) as isize;
        }
        let all = [
            of(Some(&attention.query)),
            of(Some(&attention.key)),
            of(Some(&attention.value)),
            table.map(<[isize]>::to_vec),
            of(attention.bias.as_ref()),
            of(Some(&attention.out)),
            of(Some(&attention.lse)),
            attention.limit.as_ref().map(|limit| limit.strides.iter().map(|&stride| stride as isize).collect()),
            attention.ragged.as_ref().map(|ragged| ragged.strides.clone()),
            of(Some(&attention.out)),
            Some(stats),
            of(gradients.query.as_ref()),
            of(gradients.key.as_ref()),
            of(gradients.value.as_ref()),
        ];
        for strides in &all {
            along(&|at| strides.as_ref().map_or(0, |strides| strides[at] as i64), 0);
        }
        let mut three = |numbers: Vec<i64>, empty: i64, count: usize| {
            values.extend(numbers.into_iter().chain(std::iter::repeat(empty)).take(count).map(Value::Int));
        };
        let inner = |of: &dyn Fn(usize) -> i64| self.inner.iter().map(|&at| of(at)).collect::<Vec<_>>();
        three(inner(&|at| self.len(at) as i64), 1, INNER);
        three(inner(&|at| table.map_or(0, |table| table[at] as i64)), 0, INNER);
        three(inner(&|at| attention.bias.as_ref().map_or(0, |bias| bias.strides[at] as i64)), 0, INNER);
        three(self.slid.iter().map(|slid| slid.len as i64).collect(), 1, INNER);
        three(self.slid.iter().map(|slid| slid.offset).collect(), 0, INNER);
        let keys = self.inner.len().max(1);
        let along_list = self.slid.iter().flat_map(|slid| {
            let known = self.inner.iter().map(|&at| slid.coefficients[at]);
            known.chain(std::iter::repeat(0)).take(keys).collect::<Vec<_>>()
        });
        three(along_list.collect(), 0, INNER * INNER);
        let around = self.slid.iter().flat_map(|slid| {
            let known = self.outer.iter().map(|&(at, _)| slid.coefficients[at]);
            known.chain(std::iter::repeat(0)).take(outer).collect::<Vec<_>>()
        });
        three(around.collect(), 0, INNER * outer);
    }
}

/// What differs between the kernels' parameters: offsets in the scratch memory, and of resident rows the places in shared
/// memory (values, scores, zeros, pairs).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct More {
    pub(super) stats: Option<usize>,
    pub(super) begins: Option<usize>,
    pub(super) positions: Option<usize>,
    pub(super) to_keys: Option<usize>,
    pub(super) groups: usize,
    pub(super) per_block: usize,
    pub(super) places: [usize; 4],
}

/// Lanes that hold a row of keys and one of values.
pub(super) fn lanes_of(lists: &Lists<'_>, vectors: (usize, usize), most_turns: usize) -> Result<usize, String> {
    let chunks = (lists.d() / vectors.0).max(lists.e() / vectors.1);
    let bytes = vectors.0.max(vectors.1) * lists.size();
    let mut lanes = chunks.next_power_of_two().min((128 / bytes).max(1)).min(32);
    while chunks.div_ceil(lanes) > most_turns && lanes < 32 {
        lanes *= 2;
    }
    if chunks.div_ceil(lanes) > TURNS {
        return Err("rows are too long for the registers".into());
    }
    Ok(lanes)
}
