//! Logarithmic axes with ticks at 1, 2 and 5.

/// A range of values laid out on a range of pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogScale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) at: f64,
    /// Empty where there is no room for text.
    pub(super) label: String,
}

/// A value `mantissa · 10^exponent`.
fn round_value(mantissa: u8, exponent: i32) -> f64 {
    f64::from(mantissa) * 10f64.powi(exponent)
}

/// The 1-2-5 values from at most `low` to at least `high`.
fn round_values(low: f64, high: f64) -> Vec<(u8, i32)> {
    let mut values: Vec<(u8, i32)> = Vec::new();
    // Decades can be off by one at powers of ten, so start a decade early and drop what is not needed.
    for exponent in low.log10().floor() as i32 - 1..=high.log10().ceil() as i32 + 1 {
        values.extend([1, 2, 5].map(|mantissa| (mantissa, exponent)));
    }
    const SLACK: f64 = 1e-9;
    let value = |&(mantissa, exponent): &(u8, i32)| round_value(mantissa, exponent);
    let first = values.iter().rposition(|one| value(one) <= low * (1.0 + SLACK)).unwrap_or(0);
    let last = values.iter().position(|one| value(one) >= high * (1.0 - SLACK)).unwrap_or(values.len() - 1);
    values[first..=last.max(first)].to_vec()
}

impl LogScale {
    /// The axis from `from` to `to` pixels that holds all values; its ends are 1-2-5 values and never the same.
    pub(super) fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let usable = values.filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) =
            usable.fold((f64::MAX, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
        let (low, high) = if high == 0.0 { (1.0, 10.0) } else { (low / 1.1, high * 1.1) };
        let round = round_values(low, high);
        let end =
            |at: Option<&(u8, i32)>, other: f64| at.map_or(other, |&(mantissa, power)| round_value(mantissa, power));
        Self { low: end(round.first(), low), high: end(round.last(), high), from, to }
    }

    /// The axis from exactly the least to the largest value, with a margin of `margin` pixels at either end.
    pub(super) fn tight(values: impl Iterator<Item = f64>, from: f64, to: f64, margin: f64) -> Self {
        let mut scale = Self::new(std::iter::empty(), from + margin, to - margin);
        let usable = values.filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) =
            usable.fold((f64::MAX, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
        if high > 0.0 {
            (scale.low, scale.high) = if low < high { (low, high) } else { (low / 2.0, high * 2.0) };
        }
        scale
    }

    /// Pixel of a value.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (value.max(1e-300) / self.low).ln() / (self.high / self.low).ln();
        self.from + share * (self.to - self.from)
    }

    /// Middle of the axis.
    pub(super) fn middle(&self) -> f64 {
        (self.low * self.high).sqrt()
    }

    /// Ticks at 1, 2 and 5 in units of `unit`. All have text if neighbours are `room` pixels apart; else only powers of
    /// ten have, and of those every second, third, ... if need be.
    pub(super) fn ticks(&self, unit: f64, room: f64) -> Vec<Tick> {
        let (low, high) = (self.low / unit, self.high / unit);
        let inside = |&(mantissa, exponent): &(u8, i32)| {
            let value = round_value(mantissa, exponent);
            value >= low * 0.999_999 && value <= high * 1.000_001
        };
        let values: Vec<_> = round_values(low, high).into_iter().filter(inside).collect();
        let decade = (self.at(10.0 * unit) - self.at(unit)).abs();
        // The gap from 1 to 2 and from 5 to 10, the smaller one of the three.
        let every = decade * 2f64.log10() >= room;
        let step = (room / decade).ceil().max(1.0) as i32;
        let tick = |(mantissa, exponent): (u8, i32)| {
            let value = round_value(mantissa, exponent);
            let shown = every || (mantissa == 1 && exponent.rem_euclid(step) == 0);
            let label = if shown { plain(mantissa, exponent) } else { String::new() };
            Tick { value: value * unit, at: self.at(value * unit), label }
        };
        values.into_iter().map(tick).collect()
    }

    /// Ticks at the values themselves, for an axis too short for round ones; text `room` pixels apart.
    pub(super) fn marks(&self, values: impl Iterator<Item = usize>, room: f64) -> Vec<Tick> {
        let mut values: Vec<_> = values.collect();
        values.sort_unstable();
        values.dedup();
        let mut last = f64::NEG_INFINITY;
        let tick = |value: usize| {
            let at = self.at(value as f64);
            let shown = at - last >= room;
            last = if shown { at } else { last };
            Tick { value: value as f64, at, label: if shown { value.to_string() } else { String::new() } }
        };
        values.into_iter().map(tick).collect()
    }
}

/// `0.05`, `2`, `500`; from a million on `1e6`.
fn plain(mantissa: u8, exponent: i32) -> String {
    match exponent {
        -4..0 => format!("{:.*}", exponent.unsigned_abs() as usize, round_value(mantissa, exponent)),
        0..6 => format!("{:.0}", round_value(mantissa, exponent)),
        _ => format!("{mantissa}e{exponent}"),
    }
}

/// The unit in which an axis of times reads best: its name and its seconds.
pub(super) fn time_unit(middle: f64) -> (&'static str, f64) {
    // A unit is taken down to a tenth of itself: 0.2 ms beside 50 ms is easier than 200 µs beside 50000 µs.
    [("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)].into_iter().find(|(_, unit)| middle >= unit / 10.0).unwrap_or(("ns", 1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &LogScale, unit: f64, room: f64) -> Vec<String> {
        scale.ticks(unit, room).into_iter().map(|tick| tick.label).filter(|label| !label.is_empty()).collect()
    }

    #[test]
    fn ends_are_round_and_hold_the_values() {
        let scale = LogScale::new([0.31e-3, 160e-3].into_iter(), 300.0, 0.0);
        assert!(scale.at(0.31e-3) < 300.0 && scale.at(160e-3) > 0.0);
        assert_eq!((scale.at(0.2e-3).round(), scale.at(0.2).round()), (300.0, 0.0));
        assert_eq!(labels(&scale, 1e-3, 12.0), ["0.2", "0.5", "1", "2", "5", "10", "20", "50", "100", "200"]);
        assert_eq!(labels(&scale, 1e-3, 80.0), ["1", "10", "100"]);
        assert_eq!(scale.ticks(1e-3, 80.0).len(), 10);
    }

    #[test]
    fn labels_never_stand_closer_than_asked() {
        for (low, high) in [(1e-9, 1e3), (1.0, 1.0), (3.0, 3.1), (1e-5, 1e-5), (0.7, 900.0), (1e-12, 1e12)] {
            for room in [10.0, 18.0, 40.0] {
                let scale = LogScale::new([low, high].into_iter(), 0.0, 300.0);
                let ticks: Vec<_> = scale.ticks(1.0, room).into_iter().filter(|tick| !tick.label.is_empty()).collect();
                for pair in ticks.windows(2) {
                    assert!(pair[1].at - pair[0].at >= room - 1e-6, "{low} {high} {room}: {pair:?}");
                }
                assert!(scale.at(low) >= 0.0 && scale.at(high) <= 300.0 && scale.at(low) <= scale.at(high));
            }
        }
    }

    #[test]
    fn nothing_to_show_is_still_an_axis() {
        for values in [vec![], vec![f64::NAN, 0.0, -1.0]] {
            assert!(LogScale::new(values.iter().copied(), 0.0, 10.0).at(5.0).is_finite());
            assert!(LogScale::tight(values.iter().copied(), 0.0, 10.0, 1.0).at(5.0).is_finite());
        }
        let one = LogScale::tight([7.0].into_iter(), 0.0, 10.0, 1.0);
        assert!((one.at(7.0) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn units_fit_the_middle() {
        assert_eq!(time_unit(7e-3).0, "ms");
        assert_eq!(time_unit(0.2e-3).0, "ms");
        assert_eq!(time_unit(20e-6).0, "µs");
        assert_eq!(time_unit(20e-9).0, "ns");
        assert_eq!(time_unit(3.0).0, "s");
    }
}
