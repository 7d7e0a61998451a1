//! Where a tile's elements lie in shared memory: with how much room between them so that neither the threads that write
//! what they have read nor those that read what they write meet in a bank.

use super::Shape;

/// Words that shared memory has side by side.
const BANKS: usize = 32;
/// Bytes of a block's shared memory that need no asking for.
const MOST: usize = 48 << 10;

/// Whether there is too little room, the turns that shared memory takes, and the room: less is better.
type Score = (bool, usize, usize);

/// How far apart neighbours along each loop lie, in units of `unit_bytes`, and how many units there are to the last.
pub(super) fn pitches(shape: &Shape, read: &[usize], written: &[usize], unit_bytes: usize) -> (Vec<usize>, usize) {
    // Lengths of the loops in units, and steps of two elements that a square has along the input's.
    let mut lengths = shape.pieces.clone();
    if let Some((_, to)) = shape.pairs {
        lengths[to] /= 2;
    }
    let steps: Vec<usize> =
        (0..lengths.len()).map(|at| if shape.pairs.is_some_and(|(from, _)| at == from) { 2 } else { 1 }).collect();
    let ones = vec![1; lengths.len()];
    let stores = if shape.pairs.is_some() { 2 } else { 1 };
    let score = |order: &[usize], room: &[usize]| {
        let (pitches, span) = laid_out(&lengths, order, room);
        // Both steps and squares: two stores for each of the units that are read.
        let reading = stores * wavefronts(&shape.reads, read, &pitches, &steps, unit_bytes);
        let writing = wavefronts(&shape.writes, written, &pitches, &ones, unit_bytes);
        (span * unit_bytes > MOST || span > 1 << 16, reading + writing, span)
    };
    let mut best: Option<(Score, Vec<usize>, Vec<usize>)> = None;
    for order in [&shape.reads, &shape.writes] {
        let mut room = vec![0; order.len()];
        let mut least = score(order, &room);
        // A loop after the other: what the outer ones need depends on the inner ones.
        for at in 1..order.len() {
            for more in 0..BANKS {
                let mut other = room.clone();
                other[at] = more;
                let found = score(order, &other);
                if found < least {
                    (least, room) = (found, other);
                }
            }
        }
        if best.as_ref().is_none_or(|(before, ..)| least < *before) {
            best = Some((least, order.clone(), room));
        }
    }
    let (_, order, room) = best.expect("there are two orders");
    laid_out(&lengths, &order, &room)
}

/// Pitches of loops that follow each other, the first one fastest, with so much room before each next.
fn laid_out(lengths: &[usize], order: &[usize], room: &[usize]) -> (Vec<usize>, usize) {
    let (mut pitches, mut pitch, mut last) = (vec![0; lengths.len()], 1, 0);
    for (&at, &more) in order.iter().zip(room) {
        pitch += more;
        pitches[at] = pitch;
        last += (lengths[at] - 1) * pitch;
        pitch *= lengths[at];
    }
    (pitches, last + 1)
}

/// Turns that shared memory takes for some of the warps that go through units in the order of `loops`, scaled to all.
fn wavefronts(loops: &[usize], radices: &[usize], pitches: &[usize], steps: &[usize], unit_bytes: usize) -> usize {
    let units: usize = radices.iter().product();
    let words = unit_bytes.div_ceil(4);
    // Wide elements pass in halves or quarters of a warp.
    let together = 32 / words.min(4);
    let groups = units.div_ceil(together);
    let sampled = groups.min(12);
    let mut turns = 0;
    for sample in 0..sampled {
        let first = sample * groups / sampled * together;
        let mut used = [0u8; BANKS];
        let mut seen = [usize::MAX; 32];
        let mut most = 0;
        for lane in 0..together.min(units - first) {
            let mut rest = first + lane;
            let mut at_unit = 0;
            for (&at, &radix) in loops.iter().zip(radices) {
                at_unit += rest % radix * pitches[at] * steps[at];
                rest /= radix;
            }
            let word = at_unit * unit_bytes / 4;
            if seen[..lane].contains(&word) {
                continue;
            }
            seen[lane] = word;
            let bank = &mut used[word % BANKS];
            *bank += 1;
            most = most.max(usize::from(*bank));
        }
        turns += most;
    }
    turns * groups / sampled.max(1)
}
