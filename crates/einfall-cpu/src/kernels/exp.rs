//! Exponentials of many numbers at once: what turns scores into weights.
//!
//! *In*: a slice of scores and what is subtracted from them. *Out*: their exponentials in place, and the sum. *Callers*:
//! the ops of attention. No threads, no allocation.
//!
//! The argument is reduced to `n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite, with a constant in two parts), and the
//! rest is a Taylor polynomial: within 2 units in the last place, exactly 1 at 0, exactly 0 below the normal numbers, and
//! NaN stays NaN. The sum is taken in lanes of a fixed number, so it depends on the numbers and their order alone.

use crate::isa::Isa;

/// Partial sums that run side by side.
const LANES: usize = 16;

/// A number whose exponential is taken.
pub trait Exponent: Copy {
    /// Replaces each number by `exp(number * scale - shift)`, and gives their sum.
    fn exponentials(isa: Isa, numbers: &mut [Self], scale: Self, shift: Self) -> Self;

    /// The largest number times `scale`, or −∞; NaN if there is one.
    fn most(isa: Isa, numbers: &[Self], scale: Self) -> Self;

    /// Slopes of scores in place of products: `probability * (product - delta) * scale`, and 0 where the probability is 0,
    /// whatever the product.
    fn slopes(isa: Isa, probabilities: &[Self], products: &mut [Self], delta: Self, scale: Self);
}

macro_rules! exponent {
    ($T:ident, $I:ident, $exp:ident, $sums:ident, $most:ident, $fast:ident, $fastest:ident, $most_fast:ident, $most_fastest:ident,
     $slopes:ident, $slopes_fast:ident, $slopes_fastest:ident;
     bits $bits:expr, bias $bias:expr, magic $magic:expr, least $least:expr, largest $largest:expr,
     high $high:expr, low $low:expr; $($coefficient:expr),*) => {
        #[inline(always)]
        fn $exp(x: $T) -> $T {
            // Comparisons that NaN fails keep it.
            let inside = if x < $least { $least } else if x > $largest { $largest } else { x };
            let shifted = inside * std::$T::consts::LOG2_E + $magic;
            let n = shifted - $magic;
            let r = inside - n * $high - n * $low;
            let mut sum: $T = 0.0;
            $(sum = sum * r + $coefficient;)*
            let n = (shifted.to_bits() as $I).wrapping_sub(($magic as $T).to_bits() as $I);
            let power = <$T>::from_bits((n.wrapping_add($bias) << $bits) as _);
            if x < $least { 0.0 } else { sum * power }
        }

        #[inline(always)]
        fn $sums(numbers: &mut [$T], scale: $T, shift: $T) -> $T {
            let mut sums = [0.0 as $T; LANES];
            let mut chunks = numbers.chunks_exact_mut(LANES);
            for chunk in &mut chunks {
                for (number, sum) in chunk.iter_mut().zip(&mut sums) {
                    *number = $exp(*number * scale - shift);
                    *sum += *number;
                }
            }
            for (number, sum) in chunks.into_remainder().iter_mut().zip(&mut sums) {
                *number = $exp(*number * scale - shift);
                *sum += *number;
            }
            let mut width = LANES / 2;
            while width > 0 {
                for lane in 0..width {
                    sums[lane] += sums[lane + width];
                }
                width /= 2;
            }
            sums[0]
        }

        #[inline(always)]
        fn $most(numbers: &[$T], scale: $T) -> $T {
            let mut most = [<$T>::NEG_INFINITY; LANES];
            let mut nans = [false; LANES];
            let mut add = |chunk: &[$T]| {
                for ((&number, most), nan) in chunk.iter().zip(&mut most).zip(&mut nans) {
                    let number = number * scale;
                    *most = if number > *most { number } else { *most };
                    *nan |= number.is_nan();
                }
            };
            let chunks = numbers.chunks_exact(LANES);
            let rest = chunks.remainder();
            chunks.for_each(&mut add);
            add(rest);
            if nans.contains(&true) {
                return <$T>::NAN;
            }
            most.into_iter().fold(<$T>::NEG_INFINITY, <$T>::max)
        }

        #[inline(always)]
        fn $slopes(probabilities: &[$T], products: &mut [$T], delta: $T, scale: $T) {
            for (product, &probability) in products.iter_mut().zip(probabilities) {
                let slope = probability * (*product - delta) * scale;
                *product = if probability == 0.0 { 0.0 } else { slope };
            }
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $slopes_fast(probabilities: &[$T], products: &mut [$T], delta: $T, scale: $T) {
            $slopes(probabilities, products, delta, scale);
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
        fn $slopes_fastest(probabilities: &[$T], products: &mut [$T], delta: $T, scale: $T) {
            $slopes(probabilities, products, delta, scale);
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $fast(numbers: &mut [$T], scale: $T, shift: $T) -> $T {
            $sums(numbers, scale, shift)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
        fn $fastest(numbers: &mut [$T], scale: $T, shift: $T) -> $T {
            $sums(numbers, scale, shift)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $most_fast(numbers: &[$T], scale: $T) -> $T {
            $most(numbers, scale)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
        fn $most_fastest(numbers: &[$T], scale: $T) -> $T {
            $most(numbers, scale)
        }

        impl Exponent for $T {
            fn exponentials(isa: Isa, numbers: &mut [$T], scale: $T, shift: $T) -> $T {
                match isa {
                    // SAFETY: an `Isa` promises its instructions.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => unsafe { $fastest(numbers, scale, shift) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => unsafe { $fast(numbers, scale, shift) },
                    _ => $sums(numbers, scale, shift),
                }
            }

            fn most(isa: Isa, numbers: &[$T], scale: $T) -> $T {
                match isa {
                    // SAFETY: an `Isa` promises its instructions.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => unsafe { $most_fastest(numbers, scale) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => unsafe { $most_fast(numbers, scale) },
                    _ => $most(numbers, scale),
                }
            }

            fn slopes(isa: Isa, probabilities: &[$T], products: &mut [$T], delta: $T, scale: $T) {
                match isa {
                    // SAFETY: an `Isa` promises its instructions.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => unsafe { $slopes_fastest(probabilities, products, delta, scale) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => unsafe { $slopes_fast(probabilities, products, delta, scale) },
                    _ => $slopes(probabilities, products, delta, scale),
                }
            }
        }
    };
}

exponent! {
    f32, i32, exp_f32, sums_f32, most_f32, avx2_f32, avx512_f32, most_avx2_f32, most_avx512_f32,
    slopes_f32, slopes_avx2_f32, slopes_avx512_f32;
    bits 23, bias 127, magic 12_582_912.0, least -87.0, largest 88.0, high 0.693_359_4, low -2.121_944_4e-4;
    1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0
}

exponent! {
    f64, i64, exp_f64, sums_f64, most_f64, avx2_f64, avx512_f64, most_avx2_f64, most_avx512_f64,
    slopes_f64, slopes_avx2_f64, slopes_avx512_f64;
    bits 52, bias 1023, magic 6_755_399_441_055_744.0, least -708.0, largest 709.0,
    high 0.693_147_180_369_123_8, low 1.908_214_929_270_587_7e-10;
    1.0 / 6_227_020_800.0, 1.0 / 479_001_600.0, 1.0 / 39_916_800.0, 1.0 / 3_628_800.0, 1.0 / 362_880.0, 1.0 / 40320.0,
    1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        for isa in Isa::available() {
            let arguments: Vec<f64> = (0..40_000).map(|i| f64::from(i) * -0.002_17 + 3.0).collect();
            let mut doubles = arguments.clone();
            let sum = f64::exponentials(isa, &mut doubles, 1.0, 0.0);
            let mut singles: Vec<f32> = arguments.iter().map(|&x| x as f32).collect();
            f32::exponentials(isa, &mut singles, 1.0, 0.0);
            let mut exact = 0.0;
            for ((&x, &double), &single) in arguments.iter().zip(&doubles).zip(&singles) {
                exact += x.exp();
                assert!((double - x.exp()).abs() <= 2.0 * f64::EPSILON * x.exp(), "{isa} exp({x}) = {double}");
                let expected = f64::from(x as f32).exp();
                let allowed = 2.0 * f64::from(f32::EPSILON) * expected;
                assert!((f64::from(single) - expected).abs() <= allowed, "{isa} exp({x}) = {single}");
            }
            assert!((sum - exact).abs() < 1e-12 * exact);
        }
    }

    #[test]
    fn ends_are_exact() {
        for isa in Isa::available() {
            let mut numbers = [f32::NEG_INFINITY, 0.0, -1e30, f32::NAN, -200.0];
            f32::exponentials(isa, &mut numbers, 1.0, 0.0);
            assert_eq!([numbers[0], numbers[1], numbers[2], numbers[4]], [0.0, 1.0, 0.0, 0.0]);
            assert!(numbers[3].is_nan());
            assert_eq!(f64::most(isa, &[1.0, -3.0, 2.0], -1.0), 3.0);
            assert_eq!(f64::most(isa, &[], 1.0), f64::NEG_INFINITY);
            assert!(f32::most(isa, &[1.0, f32::NAN], 1.0).is_nan());
        }
    }
}
