//! Choices: where a case gets its arbitrary numbers from. A seed gives all of them, a shrinking test gives a list.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for every pair of numbers.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Random(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        // Neighbouring seeds differ in few bits; one step spreads them.
        random = Random(random.bits());
        random
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        let count = (i128::from(high) - i128::from(low) + 1).max(1) as u128;
        (i128::from(low) + ((u128::from(self.bits()) * count) >> 64) as i128) as i64
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.bits().is_multiple_of(n)
    }

    /// A standard normal number (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let mut uniform = || ((self.bits() >> 11) as f64 + 0.5) * 2f64.powi(-53);
        let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
        radius * angle.cos()
    }
}

/// A stream of choices, each of which is simplest when it is 0.
pub(crate) enum Choices {
    /// All that follow from a seed.
    Seeded(Random),
    /// A list, after which every choice is the simplest one: what shortens the list, or makes its numbers smaller,
    /// makes the case simpler.
    Listed(std::vec::IntoIter<u32>),
}

impl Choices {
    /// A number below `n`, which must not be 0; 0 is the simplest.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let drawn = match self {
            Choices::Seeded(random) => (random.bits() >> 32) as u32,
            Choices::Listed(list) => list.next().unwrap_or(0),
        };
        ((u64::from(drawn) * n as u64) >> 32) as usize
    }

    /// True in so many of 100 cases; false is the simplest.
    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) >= 100 - chance
    }

    /// One of these; the first is the simplest.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A random order of 0..n; the simplest is ascending.
    pub(crate) fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            order.swap(i, i + self.below(n - i));
        }
        order
    }
}
