//! What the kernels of rows share: which access holds the rows, how many there are, and how they are laid out.
//!
//! *In*: a contraction in which one loop counts rows and one runs along them. *Out*: [`Rows`], from which `dots` and
//! `axpys` choose a way and fill the parameter of their kernels.

use einfall_plan::pattern::Side;
use einfall_plan::{Access, Bounds, Contraction, LookupAccess, Machine, Way, WindowAccess};
use einfall_tensor::DType;

use super::LAUNCH_SECONDS;
use crate::text::{Lowering, Memory, Task, Value};

/// Element types, loads and stores.
pub(super) const ELEMENTS: &str = include_str!("../../kernels/elements.cuh");
/// All that kernels of lists of rows share.
pub(super) const ROWS: &str =
    concat!(include_str!("../../kernels/elements.cuh"), include_str!("../../kernels/rows.cuh"));
/// Loops outside the list of rows that the kernels take.
const OUTER: usize = 4;
/// Registers hold so many chunks of a row for each lane.
pub(super) const TURNS: usize = 8;

/// Lists of rows.
#[derive(Clone, Debug)]
pub(super) struct Rows<'c> {
    contraction: &'c Contraction,
    rows_side: Side,
    pub(super) rows: &'c Access,
    /// The vectors of dots, the weights of axpys; one input alone has none.
    pub(super) other: Option<&'c Access>,
    pub(super) lookup: Option<&'c LookupAccess>,
    /// Rows at a position of a window; then there is no lookup.
    window: Option<&'c WindowAccess>,
    /// The loop along a row.
    inner: usize,
    /// The loop that counts rows; without one every list has one row.
    row_loop: Option<usize>,
    /// The other loops: those that move the rows directly come first.
    outer: Vec<usize>,
    /// How many of them do.
    split: usize,
}

impl<'c> Rows<'c> {
    /// Checks that the kernels can do it.
    pub(super) fn new(
        contraction: &'c Contraction,
        rows_side: Side,
        inner: usize,
        row_loop: Option<usize>,
    ) -> Result<Self, String> {
        use DType::{BF16, F16, F32, F64};
        if ![F32, F64, F16, BF16].contains(&contraction.dtype) || contraction.out_dtype != contraction.dtype {
            return Err(format!("not for {} into {}", contraction.dtype, contraction.out_dtype));
        }
        let rows = rows_side.of(contraction).expect("the pattern matched");
        let other = contraction.right.as_ref().and_then(|_| rows_side.other().of(contraction));
        if rows.windows.len() + rows.lookups.len() > 1
            || ![other, Some(&contraction.out)].into_iter().flatten().all(Access::is_plain)
        {
            return Err("needs rows chosen by one table or window, and nothing else looked up".into());
        }
        let lookup = rows.lookups.first();
        if lookup.is_some_and(|lookup| ![4, 8].contains(&lookup.entry_bytes) || lookup.len >= 1 << 31) {
            return Err("tables of 32 and 64 bits only".into());
        }
        let elsewhere = |lookup: &LookupAccess, at: usize| lookup.table_strides[at] == 0 || rows.strides[at] != 0;
        if lookup.zip(row_loop).is_some_and(|(lookup, at)| elsewhere(lookup, at)) {
            return Err("the rows of a list are not those of the table".into());
        }
        let window = rows.windows.first();
        if window.is_some_and(|window| window.len >= 1 << 31) {
            return Err("more rows than are counted with 31 bits".into());
        }
        let stands = |window: &WindowAccess, at: usize| window.coefficients[at] == 0 || rows.strides[at] != 0;
        if window.zip(row_loop).is_some_and(|(window, at)| stands(window, at)) {
            return Err("the rows of a list are not those of the window".into());
        }
        let moves = |at: &usize| rows.strides[*at] != 0;
        let loops = || (0..contraction.loops.len()).filter(|&at| at != inner && Some(at) != row_loop);
        let mut outer: Vec<usize> = loops().filter(moves).collect();
        let split = outer.len();
        outer.extend(loops().filter(|at| !moves(at)));
        let lists: f64 = outer.iter().map(|&at| contraction.loops[at].len as f64).product();
        if outer.len() > OUTER {
            return Err(format!("more than {OUTER} loops around the lists"));
        }
        if lists >= (1_u64 << 31) as f64 || row_loop.is_some_and(|at| contraction.loops[at].len >= 1 << 31) {
            return Err("too many lists, or too long ones".into());
        }
        Ok(Rows { contraction, rows_side, rows, other, lookup, window, inner, row_loop, outer, split })
    }

    fn len(&self, at: usize) -> usize {
        self.contraction.loops[at].len
    }

    /// Elements of a row.
    pub(super) fn d(&self) -> usize {
        self.len(self.inner)
    }

    /// Rows of a list.
    pub(super) fn k(&self) -> usize {
        self.row_loop.map_or(1, |at| self.len(at))
    }

    /// A stride along the list.
    fn along_list(&self, strides: &[isize]) -> isize {
        self.row_loop.map_or(0, |at| strides[at])
    }

    /// Rows to choose from.
    pub(super) fn n(&self) -> usize {
        self.lookup.map(|lookup| lookup.len).or(self.window.map(|window| window.len)).unwrap_or(0)
    }

    /// Whether a row may be visited many times: a table or a window chooses it.
    pub(super) fn is_chosen(&self) -> bool {
        self.lookup.is_some() || self.window.is_some()
    }

    /// What the way of running it is called.
    pub(super) fn way(&self) -> Way {
        match (self.lookup, self.window) {
            (Some(_), _) => Way::Gather,
            (None, Some(_)) => Way::Band,
            (None, None) => Way::Stream,
        }
    }

    /// Lists with rows of their own, and lists that share their rows.
    pub(super) fn groups(&self) -> (usize, usize) {
        let product = |loops: &[usize]| loops.iter().map(|&at| self.len(at)).product();
        (product(&self.outer[..self.split]), product(&self.outer[self.split..]))
    }

    /// Number of lists.
    pub(super) fn lists(&self) -> usize {
        self.groups().0 * self.groups().1
    }

    pub(super) fn size(&self) -> usize {
        self.contraction.dtype.bytes()
    }

    /// From a row to the next, elements.
    pub(super) fn row_stride(&self) -> isize {
        let chosen = self.lookup.map(|lookup| lookup.stride).or(self.window.map(|window| window.stride));
        chosen.unwrap_or_else(|| self.along_list(&self.rows.strides))
    }

    /// The most elements that loads and stores may take at once: 16 bytes' worth, less where something is not aligned.
    ///
    /// `accesses` are the places of the accesses that are meant, as in [`Lowering::alignment`]: left, right, output.
    pub(super) fn vector(&self, lowering: Option<&Lowering<'_>>, out: bool, other: bool) -> usize {
        let mut vector = 16 / self.size();
        let mut fits = |number: usize| {
            while vector > 1 && !number.is_multiple_of(vector) {
                vector /= 2;
            }
        };
        fits(self.d());
        fits(self.row_stride().unsigned_abs());
        let strides = |access: &Access| -> Vec<usize> {
            self.outer
                .iter()
                .map(|&at| access.strides[at].unsigned_abs())
                .chain([access.offset.unsigned_abs()])
                .collect()
        };
        let meant = [Some(self.rows), self.other.filter(|_| other), Some(&self.contraction.out).filter(|_| out)];
        meant.into_iter().flatten().flat_map(strides).for_each(&mut fits);
        if let Some(lowering) = lowering {
            let [left, right, output] = lowering.alignment;
            let (rows, others) = if self.rows_side == Side::Left { (left, right) } else { (right, left) };
            fits(rows / self.size());
            if other && self.other.is_some() {
                fits(others / self.size());
            }
            if out {
                fits(output / self.size());
            }
        }
        vector
    }

    /// Whether two neighbours of a list can be read and written at once.
    pub(super) fn is_paired(&self, lowering: &Lowering<'_>) -> bool {
        let Some(lookup) = self.lookup else { return false };
        let even = |stride: isize| stride % 2 == 0;
        let out = &self.contraction.out;
        self.k().is_multiple_of(2)
            && self.along_list(&lookup.table_strides) == 1
            && self.along_list(&out.strides) == 1
            && self.outer.iter().all(|&at| even(lookup.table_strides[at]) && even(out.strides[at]))
            && even(lookup.table_offset)
            && even(out.offset)
            && lowering.alignment[2] >= 2 * self.size()
            && lowering.table_alignment[lookup.table] >= 2 * lookup.entry_bytes
    }

    /// Bytes that a row takes in shared memory.
    pub(super) fn pitch(&self, slices: usize) -> usize {
        (self.d() / slices * self.size()).next_multiple_of(16)
    }

    /// Blocks for each group that keep all multiprocessors busy.
    pub(super) fn blocks_per_group(&self, machine: &Machine) -> usize {
        let (groups, queries) = self.groups();
        (machine.threads / groups.max(1)).clamp(1, queries.max(1))
    }

    /// Whether rows can be staged in shared memory, `extra` bytes beside them, in so many slices.
    pub(super) fn fits(&self, machine: &Machine, extra: usize, slices: usize) -> bool {
        let rows = self.n() + usize::from(extra > 0);
        self.lookup.is_some() && rows.saturating_mul(self.pitch(slices)) + extra + 1280 <= machine.l1_bytes
    }

    /// How rows are staged: 2 by bulk copies, 1 by copies of 16 bytes, 0 by elements.
    pub(super) fn stage(&self, lowering: &Lowering<'_>) -> usize {
        let bytes = |stride: isize| (stride.unsigned_abs() * self.size()).is_multiple_of(16);
        let rows = [self.rows.offset, self.row_stride()];
        let groups = self.outer[..self.split].iter().map(|&at| self.rows.strides[at]);
        let side = if self.rows_side == Side::Left { 0 } else { 1 };
        let whole = (self.d() * self.size()).is_multiple_of(16) && rows.into_iter().chain(groups).all(bytes);
        if !whole || lowering.alignment[side] < 16 {
            0
        } else if self.row_stride() == self.d() as isize && super::capability(lowering.machine) >= 90 {
            2
        } else {
            1
        }
    }

    /// Predicted time of visiting all rows where they lie, `rate` bytes a second as long as they are in the L2.
    pub(super) fn gather_seconds(&self, machine: &Machine) -> f64 {
        let visited = self.lists() as f64 * self.k() as f64 * (self.d() * self.size()) as f64;
        let distinct = self.contraction.distinct_elements(self.rows) * self.size() as f64;
        let rate = match self.is_chosen() {
            false => machine.read_bytes_per_second,
            // Part of what the L2 would give comes from the L1 already.
            true if distinct < 0.6 * machine.l2_bytes as f64 => machine.l2_bytes_per_second * 1.35,
            true => machine.read_bytes_per_second * 1.4,
        };
        LAUNCH_SECONDS + (visited / rate).max(self.contraction.distinct_bytes() / machine.read_bytes_per_second)
    }

    /// Predicted time of visiting rows in shared memory, `share` of its peak.
    pub(super) fn resident_seconds(&self, machine: &Machine, share: f64) -> f64 {
        let visited = self.lists() as f64 * self.k() as f64 * (self.d() * self.size()) as f64;
        let rate = machine.threads as f64 * 128.0 * 1.95e9 * share;
        let (groups, _) = self.groups();
        let blocks = (groups * self.blocks_per_group(machine)).min(machine.threads) as f64;
        let staged = groups as f64 * self.blocks_per_group(machine) as f64 * (self.n() * self.pitch(1)) as f64;
        let staging = staged / machine.l2_bytes_per_second * 0.5;
        let busy = visited / rate * machine.threads as f64 / blocks;
        LAUNCH_SECONDS + staging + busy.max(self.contraction.distinct_bytes() / machine.read_bytes_per_second)
    }

    /// The definitions that all kernels of rows want.
    pub(super) fn definitions(&self, lowering: &Lowering<'_>, vector: usize) -> String {
        let dtype = match self.contraction.dtype {
            DType::F32 => 0,
            DType::F64 => 1,
            DType::BF16 => 2,
            _ => 3,
        };
        let table = self.lookup.map_or(usize::from(self.window.is_some()), |lookup| lookup.entry_bytes);
        let status = i32::from(lowering.contraction.bounds == Bounds::Error && self.lookup.is_some());
        let outer = self.outer.len();
        let (d, split, weighted) = (self.d(), self.split, i32::from(self.other.is_some()));
        format!(
            "#define DTYPE {dtype}\n#define D {d}\n#define VEC {vector}\n#define TABLE {table}\n#define OUTER {outer}\n\
             #define SPLIT {split}\n#define STATUS {status}\n#define WEIGHTED {weighted}\n"
        )
    }

    /// The task, its list cut in parts of `part` rows; `per_block` units a block, or blocks a group.
    pub(super) fn task(&self, kernel: &'static str, source: String, launch: Launch) -> Task {
        let Launch { blocks, threads, shared_bytes, part, per_block } = launch;
        let (groups, queries) = self.groups();
        let size = |place: usize| self.outer.get(place).map_or(1, |&at| self.len(at) as u32);
        let zeros = vec![0; self.contraction.loops.len()];
        let out = &self.contraction.out;
        let positions: Vec<isize> =
            self.window.iter().flat_map(|window| &window.coefficients).map(|&step| step as isize).collect();
        let table = match (self.lookup, self.window) {
            (Some(lookup), _) => &lookup.table_strides,
            (None, Some(_)) => &positions,
            (None, None) => &zeros,
        };
        let other = self.other.map_or(&zeros, |other| &other.strides);
        let along = |strides: &[isize]| {
            let strides: Vec<isize> =
                (0..OUTER).map(|place| self.outer.get(place).map_or(0, |&at| strides[at])).collect();
            strides.into_iter().map(|stride| Value::Int(stride as i64))
        };
        let (rows_memory, other_memory) = match self.rows_side {
            Side::Left => (Memory::Left, Memory::Right),
            Side::Right => (Memory::Right, Memory::Left),
        };
        let at = |memory, offset: isize, size: usize| Value::Pointer(memory, (offset * size as isize) as i64);
        let (bytes, int) = (self.size(), |value: isize| Value::Int(value as i64));
        let (table_memory, table_offset, entry) = match self.lookup {
            Some(lookup) => (Memory::Table(lookup.table), lookup.table_offset, lookup.entry_bytes),
            None => (Memory::Status, 0, 0),
        };
        let mut values = vec![
            at(other_memory, self.other.map_or(0, |other| other.offset), bytes),
            at(rows_memory, self.rows.offset, bytes),
            at(table_memory, table_offset, entry),
            at(Memory::Out, out.offset, bytes),
            at(Memory::Status, 0, 0),
            Value::Pair(size(0), size(1)),
            Value::Pair(size(2), size(3)),
            Value::Pair(groups as u32, queries as u32),
        ];
        for strides in [other, &self.rows.strides, table, &out.strides] {
            values.extend(along(strides));
        }
        values.extend([
            int(self.row_stride()),
            int(self.along_list(table)),
            int(self.along_list(&out.strides)),
            int(self.along_list(other)),
            Value::Int(self.n() as i64),
            Value::Int(self.window.map_or(0, |window| window.offset)),
            Value::Pair(self.k() as u32, self.k().div_ceil(part) as u32),
            Value::Pair(part as u32, per_block as u32),
        ]);
        Task {
            kernel,
            source,
            blocks: blocks as u32,
            threads: threads as u32,
            shared_bytes: shared_bytes as u32,
            values,
        }
    }
}

/// How a kernel of rows is launched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launch {
    pub(super) blocks: usize,
    pub(super) threads: usize,
    pub(super) shared_bytes: usize,
    pub(super) part: usize,
    pub(super) per_block: usize,
}

/// Lanes of a warp that hold a row, each a chunk of `vector` elements at a time: as many as read 128 bytes at once, more
/// for long rows.
pub(super) fn lanes_for(d: usize, vector: usize, size: usize) -> usize {
    let chunks = d.div_ceil(vector);
    let mut lanes = chunks.next_power_of_two().min((128 / (vector * size)).max(1)).min(32);
    while chunks.div_ceil(lanes) > TURNS && lanes < 32 {
        lanes *= 2;
    }
    lanes
}
