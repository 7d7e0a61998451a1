//! The pieces that kernels are written from: parameters, and the loops and offsets of a contraction as CUDA C++.
//!
//! Numbers such as lengths and strides are parameters, so that one kernel serves all sizes. What changes the code, which
//! loops an access walks and where a table is read, is in the text. *Callers*: [`crate::ops`].

use std::fmt::Write;

use einfall_plan::{Access, Bounds, Contraction, Machine};
use einfall_tensor::DType;

/// What a kernel is launched with: plain data, bound to pointers by [`crate::Program`].
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The kernel's name, also that of its entry.
    pub kernel: &'static str,
    /// CUDA C++.
    pub source: String,
    /// Blocks.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The fields of its one parameter, a struct, 8 bytes each.
    pub values: Vec<Value>,
}

/// A field of a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Int(i64),
    /// Two numbers of 32 bits, the first at the lower address.
    Pair(u32, u32),
    /// An address, so many bytes from where a memory begins.
    Pointer(Memory, i64),
}

/// What a step reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The left input.
    Left,
    /// The right input.
    Right,
    /// The output.
    Out,
    /// A table, by its place in the problem.
    Table(usize),
    /// The word that says that a table's value was bad.
    Status,
    /// Scratch memory of the step.
    Scratch,
    /// The part of the scratch memory, behind all other, whose contents depend on tables alone: the same offsets, but
    /// where a caller keeps it from one launch to the next it lies elsewhere, and tasks that only fill it are left out.
    Kept,
    /// Of an attention: query, key, value or bias.
    Operand(usize),
    /// Of an attention: the offsets of lists of different lengths.
    Offsets,
    /// Of an attention: the log-sum-exp.
    LogSum,
    /// Of an attention, backward: the gradient of the output.
    GradOut,
    /// Of an attention, backward: the gradient of an operand.
    Gradient(usize),
}

/// A contraction to be lowered, with what is known beside it.
#[derive(Clone, Copy, Debug)]
pub struct Lowering<'c> {
    /// What to compute.
    pub contraction: &'c Contraction,
    /// Types of the problem's tables.
    pub tables: &'c [DType],
    /// Where it runs.
    pub machine: &'c Machine,
    /// What the addresses of left, right and output are multiples of at least, bytes.
    pub alignment: [usize; 3],
    /// The same of the problem's tables.
    pub table_alignment: &'c [usize],
}

/// The fields of a kernel's parameter while it is written.
#[derive(Debug, Default)]
pub struct Fields {
    declaration: String,
    values: Vec<Value>,
}

impl Fields {
    /// A number; returns how the text calls it.
    pub fn int(&mut self, name: &str, value: i64) -> String {
        self.field("i64", name, Value::Int(value))
    }

    /// A pointer to elements of a type.
    pub fn pointer(&mut self, element: &str, name: &str, memory: Memory) -> String {
        self.pointer_at(element, name, memory, 0)
    }

    /// A pointer to elements of a type, so many bytes from where a memory begins.
    pub fn pointer_at(&mut self, element: &str, name: &str, memory: Memory, bytes: i64) -> String {
        self.field(&format!("{element}*"), name, Value::Pointer(memory, bytes))
    }

    /// A pointer to elements of a type in the scratch memory, so many bytes from its start.
    pub fn scratch(&mut self, element: &str, name: &str, offset: usize) -> String {
        self.field(&format!("{element}*"), name, Value::Pointer(Memory::Scratch, offset as i64))
    }

    /// A field of any type of 8 bytes.
    pub fn value(&mut self, kind: &str, name: &str, value: Value) -> String {
        self.field(kind, name, value)
    }

    /// A number with a fraction.
    pub fn double(&mut self, name: &str, value: f64) -> String {
        self.field("double", name, Value::Int(value.to_bits() as i64))
    }

    /// A divisor of numbers below 2³¹: `quotient(x, ...)` is a multiplication and a shift (Granlund and Montgomery, 1994).
    pub fn divisor(&mut self, name: &str, by: usize) -> String {
        debug_assert!((1..=1 << 31).contains(&by));
        let shift = by.next_power_of_two().trailing_zeros();
        let factor = (((1u128 << shift) - by as u128) << 32) / by as u128 + 1;
        self.field("Divisor", name, Value::Pair(factor as u32, shift))
    }

    /// A pointer to nothing.
    pub fn null(&mut self, element: &str, name: &str) -> String {
        self.field(&format!("{element}*"), name, Value::Int(0))
    }

    fn field(&mut self, kind: &str, name: &str, value: Value) -> String {
        let text = format!("p.{name}");
        let declared = format!("  {kind} {name};\n");
        if !self.declaration.contains(&declared) {
            self.declaration.push_str(&declared);
            self.values.push(value);
        }
        text
    }

    /// The struct.
    pub fn declaration(&self) -> String {
        format!("struct Params {{\n{}}};\n", self.declaration)
    }

    /// Its contents so far.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Its contents.
    pub fn into_values(self) -> Vec<Value> {
        self.values
    }
}

/// How CUDA C++ calls an element type.
pub fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "truth8",
        DType::I8 => "signed char",
        DType::I16 => "short",
        DType::I32 => "int",
        DType::I64 => "i64",
        DType::U8 => "unsigned char",
        DType::U16 => "unsigned short",
        DType::U32 => "unsigned",
        DType::U64 => "u64",
        DType::F16 => "half16",
        DType::BF16 => "bfloat16",
        DType::F32 => "float",
        DType::F64 => "double",
        DType::C64 => "complex<float>",
        DType::C128 => "complex<double>",
    }
}

/// An access while loops are opened around it: where its offset stands.
#[derive(Clone, Debug)]
pub struct Cursor<'c> {
    /// One letter, the prefix of its names.
    pub name: &'static str,
    /// What it is.
    pub access: &'c Access,
    /// The variable that holds its offset.
    pub offset: String,
    /// Lookups and windows that were read.
    read: Vec<bool>,
}

/// What follows a term that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// `continue` with the next turn of the loop that was just opened.
    Continue,
    /// `ok` becomes false.
    Flag,
}

/// Writes loops.
#[derive(Debug)]
pub struct Writer<'c> {
    contraction: &'c Contraction,
    tables: Vec<DType>,
    /// The parameter.
    pub fields: Fields,
    /// The text so far.
    pub text: String,
    /// Left, right, output.
    pub cursors: Vec<Cursor<'c>>,
    open: Vec<usize>,
}

impl<'c> Writer<'c> {
    /// A writer for the accesses of a contraction. `tables` are the types of the problem's tables.
    pub fn new(contraction: &'c Contraction, tables: &[DType]) -> Self {
        let inputs = [("l", Some(&contraction.left)), ("r", contraction.right.as_ref()), ("o", Some(&contraction.out))];
        let cursors = inputs.into_iter().filter_map(|(name, access)| {
            let access = access?;
            let read = vec![false; access.lookups.len() + access.windows.len()];
            Some(Cursor { name, access, offset: format!("{name}_"), read })
        });
        Writer {
            contraction,
            tables: tables.to_vec(),
            fields: Fields::default(),
            text: String::new(),
            cursors: cursors.collect(),
            open: Vec::new(),
        }
    }

    /// Takes all lookups as read: the text has found out otherwise.
    pub fn lookups_are_read(&mut self) {
        for cursor in &mut self.cursors {
            let lookups = cursor.access.lookups.len();
            cursor.read[..lookups].fill(true);
        }
    }

    /// Which loops are open, and where all offsets stand.
    pub fn state(&self) -> (Vec<Cursor<'c>>, Vec<usize>) {
        (self.cursors.clone(), self.open.clone())
    }

    /// Goes back to a state from before.
    pub fn restore(&mut self, (cursors, open): &(Vec<Cursor<'c>>, Vec<usize>)) {
        (self.cursors, self.open) = (cursors.clone(), open.clone());
    }

    /// The variable that holds the offset of an access: `l`, `r` or `o`.
    pub fn offset(&self, name: &str) -> Option<String> {
        self.cursors.iter().find(|cursor| cursor.name == name).map(|cursor| cursor.offset.clone())
    }

    /// Adds a line.
    pub fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// The length of a loop.
    pub fn len(&mut self, at: usize) -> String {
        let len = self.contraction.loops[at].len;
        self.fields.int(&format!("n{at}"), len as i64)
    }

    /// Declares the offsets before any loop.
    pub fn start(&mut self) {
        for at in 0..self.cursors.len() {
            let Cursor { name, access, .. } = self.cursors[at];
            let offset = self.fields.int(&format!("{name}o"), access.offset as i64);
            self.line(&format!("i64 {name}_ = {offset};"));
        }
    }

    /// Splits `flat` into the indices of `loops`, the last one fastest. With the index `unsigned` it is below 2³¹.
    pub fn split(&mut self, flat: &str, index: &str, loops: &[usize]) {
        self.line(&format!("{index} rest_{flat} = {flat};"));
        for (place, &at) in loops.iter().enumerate().rev() {
            let len = self.len(at);
            if place == 0 {
                self.line(&format!("const i64 i{at} = rest_{flat};"));
            } else if index == "unsigned" {
                let by = self.fields.divisor(&format!("d{at}"), self.contraction.loops[at].len);
                self.line(&format!("const unsigned q{at} = quotient(rest_{flat}, {by});"));
                self.line(&format!("const i64 i{at} = rest_{flat} - q{at} * (unsigned){len}; rest_{flat} = q{at};"));
            } else {
                self.line(&format!("const i64 i{at} = rest_{flat} % ({index}){len}; rest_{flat} /= ({index}){len};"));
            }
        }
    }

    /// Goes on inside loops whose indices are there now: moves all offsets, and reads what can be read.
    ///
    /// With `fresh` the offsets are new variables, so that the outer ones keep theirs.
    pub fn enter(&mut self, loops: &[usize], miss: Miss, fresh: bool) {
        self.open.extend_from_slice(loops);
        for number in 0..self.cursors.len() {
            let Cursor { name, access, .. } = self.cursors[number];
            let mut moved: Vec<String> = Vec::new();
            for &at in loops {
                if access.strides[at] != 0 {
                    let stride = self.fields.int(&format!("{name}s{at}"), access.strides[at] as i64);
                    moved.push(format!("i{at} * {stride}"));
                }
            }
            let due = self.due(number);
            if moved.is_empty() && due.is_empty() {
                continue;
            }
            let mut offset = self.cursors[number].offset.clone();
            if fresh {
                let new = format!("{name}{}", loops.first().copied().unwrap_or(0));
                self.line(&format!("i64 {new} = {offset};"));
                offset = new;
            }
            if !moved.is_empty() {
                self.line(&format!("{offset} += {};", moved.join(" + ")));
            }
            for which in due {
                self.read(number, which, &offset, miss);
            }
            self.cursors[number].offset = offset;
        }
    }

    /// Lookups and windows of an access that depend on nothing but the loops that are open.
    fn due(&mut self, number: usize) -> Vec<usize> {
        let open = &self.open;
        let cursor = &mut self.cursors[number];
        let Access { lookups, windows, .. } = cursor.access;
        let loops = 0..self.contraction.loops.len();
        let ready = |depends: &dyn Fn(usize) -> bool| loops.clone().all(|at| !depends(at) || open.contains(&at));
        let mut due = Vec::new();
        for which in 0..lookups.len() + windows.len() {
            let is_ready = match lookups.get(which) {
                Some(lookup) => ready(&|at| lookup.table_strides[at] != 0),
                None => ready(&|at| windows[which - lookups.len()].coefficients[at] != 0),
            };
            if is_ready && !cursor.read[which] {
                cursor.read[which] = true;
                due.push(which);
            }
        }
        due
    }

    fn read(&mut self, number: usize, which: usize, offset: &str, miss: Miss) {
        let Cursor { name, access, .. } = self.cursors[number];
        let skip = |bad: &str| match miss {
            Miss::Continue => format!("{{ {bad}continue; }}"),
            Miss::Flag => format!("{{ {bad}ok = false; }}"),
        };
        let guard = if miss == Miss::Flag { "if (ok) " } else { "" };
        if let Some(lookup) = access.lookups.get(which) {
            let table = self.tables[lookup.table];
            let pointer = self.fields.pointer(
                &format!("const {}", type_name(table)),
                &format!("t{}", lookup.table),
                Memory::Table(lookup.table),
            );
            let mut at = self.fields.int(&format!("{name}t{which}o"), lookup.table_offset as i64);
            for (l, &stride) in lookup.table_strides.iter().enumerate().filter(|(_, stride)| **stride != 0) {
                let stride = self.fields.int(&format!("{name}t{which}s{l}"), stride as i64);
                let _ = write!(at, " + i{l} * {stride}");
            }
            let len = self.fields.int(&format!("{name}t{which}n"), lookup.len as i64);
            let stride = self.fields.int(&format!("{name}t{which}j"), lookup.stride as i64);
            let bad = match self.contraction.bounds {
                Bounds::Error => {
                    let status = self.fields.pointer("unsigned", "status", Memory::Status);
                    format!("report({status}); ")
                }
                Bounds::Skip => String::new(),
            };
            self.line(&format!(
                "{guard}{{ const i64 e = (i64){pointer}[{at}]; if ((u64)e < (u64){len}) {offset} += e * {stride}; else {} }}",
                skip(&bad)
            ));
        } else {
            let window = &access.windows[which - access.lookups.len()];
            let mut at = self.fields.int(&format!("{name}w{which}o"), window.offset);
            for (l, &factor) in window.coefficients.iter().enumerate().filter(|(_, factor)| **factor != 0) {
                let factor = self.fields.int(&format!("{name}w{which}s{l}"), factor);
                let _ = write!(at, " + i{l} * {factor}");
            }
            let len = self.fields.int(&format!("{name}w{which}n"), window.len as i64);
            let stride = self.fields.int(&format!("{name}w{which}j"), window.stride as i64);
            self.line(&format!(
                "{guard}{{ const i64 e = {at}; if ((u64)e < (u64){len}) {offset} += e * {stride}; else {} }}",
                skip("")
            ));
        }
    }
}
