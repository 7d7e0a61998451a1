//! Numbers as people read them: three digits and a unit.

/// Three significant digits without an exponent: `0.00123`, `1.23`, `12.3`, `1234`.
#[must_use]
pub fn digits(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    // Rounded first, so that 9.996 is seen to have two digits before the point.
    let rounded: f64 = format!("{value:.2e}").parse().unwrap_or(value);
    let decimals = (2 - rounded.abs().log10().floor() as i32).clamp(0, 12);
    format!("{rounded:.*}", usize::try_from(decimals).unwrap_or(0))
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    // 0.9995 rounds up to the next unit: 999.6 µs is 1.00 ms.
    let fits = |&&(scale, _): &&(f64, &str)| value.abs() >= scale * 0.9995;
    let &(scale, unit) = units.iter().find(fits).or(units.last()).unwrap_or(&(1.0, ""));
    format!("{} {unit}", digits(value / scale))
}

/// A time: `850 ns`, `12.3 µs`, `4.56 ms`, `1.20 s`.
#[must_use]
pub fn seconds(value: f64) -> String {
    scaled(value, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")])
}

/// A number of operations: `51.2 MFLOP`.
#[must_use]
pub fn flop(value: f64) -> String {
    scaled(value, &[(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")])
}

/// A number of bytes, in powers of ten like memory speeds: `102 MB`.
#[must_use]
pub fn bytes(value: f64) -> String {
    scaled(value, &[(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        for (value, text) in [
            (1.04e-3, "1.04 ms"),
            (3.7e-6, "3.70 µs"),
            (999.6e-6, "1.00 ms"),
            (99.96e-6, "100 µs"),
            (0.4e-9, "0.400 ns"),
            (12.0, "12.0 s"),
            (1234.0, "1230 s"),
            (0.0, "0 ns"),
        ] {
            assert_eq!(seconds(value), text);
        }
        assert_eq!(flop(51.2e6), "51.2 MFLOP");
        assert_eq!(flop(25_600_000.0), "25.6 MFLOP");
        assert_eq!(bytes(102.4e6), "102 MB");
        assert_eq!(digits(0.000_123_4), "0.000123");
        assert_eq!(digits(9.996), "10.0");
        assert_eq!(digits(f64::NAN), "–");
    }
}
