//! Where the parts of the inverse lie in the scratch memory.

/// Byte offsets; of keys, positions and places those in either of two buffers, between which the sort goes to and fro.
/// What the tables alone decide lies behind the rest, so that it may be kept.
#[derive(Clone, Debug)]
pub(super) struct Scratch {
    pub(super) counts: i64,
    pub(super) totals: i64,
    pub(super) partials: i64,
    pub(super) keys: [i64; 2],
    pub(super) positions: [i64; 2],
    /// By the buffer that holds the sorted keys: the other one is free for them.
    pub(super) places: [i64; 2],
    pub(super) begins: i64,
    /// All of it.
    pub(super) bytes: usize,
}

impl Scratch {
    /// Room for so many entries and keys, places of so many bytes each, so many counts, and so many bytes of partial sums.
    pub(super) fn new(entries: usize, keys: usize, place_bytes: usize, counts: usize, partials: usize) -> Self {
        let mut bytes = 0;
        let mut take = |wanted: usize| {
            let start = bytes;
            bytes += wanted.next_multiple_of(256);
            start as i64
        };
        let (counts, totals, partials) = (take(4 * counts), take(4 << super::RADIX), take(partials));
        let mut buffer = || [take(4 * entries), take(4 * entries)];
        let [first, second] = [buffer(), buffer()];
        let begins = take(4 * (keys + 1));
        let places = if place_bytes <= 8 { [second[0], first[0]] } else { [take(place_bytes * entries); 2] };
        Scratch {
            counts,
            totals,
            partials,
            keys: [first[0], second[0]],
            positions: [first[1], second[1]],
            places,
            begins,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_what_is_still_needed() {
        for (entries, keys, place_bytes) in [(1, 1, 4), (63, 7, 8), (64, 1000, 8), (65, 64, 16), (1000, 3, 8)] {
            let scratch = Scratch::new(entries, keys, place_bytes, 77, 12);
            for last in [0, 1] {
                let mut taken = vec![
                    (scratch.keys[last], 4 * entries),
                    (scratch.positions[last], 4 * entries),
                    (scratch.places[last], place_bytes * entries),
                    (scratch.counts, 4 * 77),
                    (scratch.totals, 4 << super::super::RADIX),
                    (scratch.begins, 4 * (keys + 1)),
                    (scratch.partials, 12),
                ];
                taken.sort_unstable();
                taken.push((scratch.bytes as i64, 0));
                for pair in taken.windows(2) {
                    assert!(pair[0].0 + pair[0].1 as i64 <= pair[1].0, "{entries} entries: {taken:?}");
                }
            }
            assert_eq!(scratch.bytes % 256, 0);
            // What is kept lies behind what is not.
            let kept = [scratch.keys, scratch.positions, scratch.places].concat();
            let passing = [scratch.counts, scratch.totals, scratch.partials];
            assert!(kept.iter().chain([&scratch.begins]).all(|at| passing.iter().all(|other| other < at)));
        }
    }
}
