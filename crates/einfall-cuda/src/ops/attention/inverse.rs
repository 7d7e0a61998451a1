//! The inverse of a table: the places of lists that name a row, in order, for every row. A stable sort, as for scattered
//! outputs.

use crate::text::{Memory, Task, Value};

/// Threads of a block that sorts.
const SORT_BLOCK: usize = 512;
/// Bits that one pass of the sort takes at most.
const RADIX: usize = 9;

/// Where the inverse of so many entries, which name so many keys, lies in the scratch memory; what is left out sorts
/// behind all keys.
#[derive(Clone, Debug)]
pub(super) struct Inverse {
    entries: usize,
    keys: usize,
    to_keys: [usize; 2],
    positions: [usize; 2],
    counts: usize,
    totals: usize,
    pub(super) begins: usize,
    /// The end of it.
    pub(super) end: usize,
}

impl Inverse {
    /// Room from `start` on.
    pub(super) fn new(entries: usize, keys: usize, start: usize) -> Self {
        let mut end = start;
        let mut take = |wanted: usize| {
            let at = end;
            end += wanted.next_multiple_of(256);
            at
        };
        let mut pair = || [take(4 * entries), take(4 * entries)];
        let (to_keys, positions) = (pair(), pair());
        let (passes, radix) = Self::passes(keys);
        let _ = passes;
        let tiles = entries.div_ceil(SORT_BLOCK * Self::items(entries));
        let (counts, totals, begins) = (take(4 * (tiles << radix)), take(4 << radix), take(4 * (keys + 1)));
        Inverse { entries, keys, to_keys, positions, counts, totals, begins, end }
    }

    /// Passes of the sort, and the bits that each takes.
    fn passes(keys: usize) -> (usize, usize) {
        let bits = (usize::BITS - keys.leading_zeros()) as usize;
        let passes = bits.div_ceil(RADIX).max(1);
        (passes, bits.div_ceil(passes).max(1))
    }

    /// Keys that one thread of a block sorts: fewer where that keeps more multiprocessors busy.
    fn items(entries: usize) -> usize {
        match entries {
            0..0x40000 => 2,
            0x40000..0x100000 => 4,
            _ => 8,
        }
    }

    /// Where the keys of entries are expected.
    pub(super) fn to_keys(&self) -> usize {
        self.to_keys[0]
    }

    /// Where the places are found.
    pub(super) fn positions(&self) -> usize {
        self.positions[Self::passes(self.keys).0 % 2]
    }

    /// Predicted time. Measured: 105 us for 2e6 entries in two passes.
    pub(super) fn seconds(&self) -> f64 {
        let passes = Self::passes(self.keys).0 as f64;
        let launches = (2.0 + 3.0 * passes) * super::super::LAUNCH_SECONDS;
        launches + self.entries as f64 * (15e-12 + 15e-12 * passes) + self.keys as f64 * 2e-12
    }

    /// The tasks, once the keys are there.
    pub(super) fn tasks(&self) -> Vec<Task> {
        let (passes, radix) = Self::passes(self.keys);
        let items = Self::items(self.entries);
        let tiles = self.entries.div_ceil(SORT_BLOCK * items);
        let mut tasks = Vec::new();
        let mut push = |kernel, what: &str, from: usize, pass: usize, blocks: usize| {
            let source = format!(
                "#define {what}\n#define RADIX {radix}\n#define ITEMS {items}\n#define BLOCK {SORT_BLOCK}\n{}",
                include_str!("../../../kernels/invert.cu")
            );
            let at = |offset: usize| Value::Pointer(Memory::Kept, offset as i64);
            let values = vec![
                at(self.to_keys[from]),
                at(self.positions[from]),
                at(self.to_keys[1 - from]),
                at(self.positions[1 - from]),
                at(self.counts),
                at(self.totals),
                at(self.begins),
                Value::Pair(self.entries as u32, self.keys as u32),
                Value::Pair((pass * radix) as u32, tiles as u32),
            ];
            let (blocks, threads) = (blocks as u32, SORT_BLOCK as u32);
            tasks.push(Task { kernel, source, blocks, threads, shared_bytes: 0, values });
        };
        for pass in (0..passes).filter(|_| self.entries > 0) {
            let from = pass % 2;
            push("invert_count", "COUNT", from, pass, tiles);
            push("invert_scan", "SCAN", from, pass, 1 << radix);
            let first = if pass == 0 { "SCATTER\n#define FIRST 1" } else { "SCATTER\n#define FIRST 0" };
            push("invert_scatter", first, from, pass, tiles);
        }
        push("invert_begins", "BEGINS", passes % 2, 0, (self.keys + 1).div_ceil(SORT_BLOCK));
        tasks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        for (entries, keys) in [(1, 1), (0, 5), (63, 7), (1000, 1 << 19), (600_000, 513)] {
            let Inverse { to_keys, positions, counts, totals, begins, end, .. } = Inverse::new(entries, keys, 512);
            let (_, radix) = Inverse::passes(keys);
            let tiles = entries.div_ceil(SORT_BLOCK * Inverse::items(entries));
            let mut taken = vec![(begins, keys + 1), (counts, tiles << radix), (totals, 1 << radix)];
            taken.extend(to_keys.iter().chain(&positions).map(|&at| (at, entries)));
            taken.sort_unstable();
            taken.push((end, 0));
            assert!(taken.windows(2).all(|pair| pair[0].0 + 4 * pair[0].1 <= pair[1].0), "{taken:?}");
            assert!(taken[0].0 >= 512);
        }
    }
}
