//! The softmax between two einsums: along the last axis, on all threads.
//!
//! It stands here until the library has attention as one call, and reports name the engine accordingly.

use einfall::half::{bf16, f16};
use einfall::{DType, Element, Error, Tensor};
use rayon::prelude::*;

/// A type whose rows can be normalised.
trait Softmax: Element {
    fn row(scores: &[Self], weights: &mut [Self], scale: f64);
}

macro_rules! softmax {
    ($($type:ty, $wide:ty, $widen:expr, $narrow:expr;)*) => {$(
        impl Softmax for $type {
            fn row(scores: &[Self], weights: &mut [Self], scale: f64) {
                let (widen, narrow, scale) = ($widen, $narrow, scale as $wide);
                let most = scores.iter().map(|&score| widen(score)).fold(<$wide>::NEG_INFINITY, <$wide>::max);
                let power = |score: Self| ((widen(score) - most) * scale).exp();
                let mut total: $wide = 0.0;
                for (weight, &score) in weights.iter_mut().zip(scores) {
                    let power = power(score);
                    total += power;
                    *weight = narrow(power);
                }
                // A half type's weights are made anew, so that each is rounded once.
                let part = 1.0 / total;
                if size_of::<Self>() == size_of::<$wide>() {
                    weights.iter_mut().for_each(|weight| *weight = narrow(widen(*weight) * part));
                } else {
                    weights.iter_mut().zip(scores).for_each(|(weight, &score)| *weight = narrow(power(score) * part));
                }
            }
        }
    )*};
}

softmax! {
    f32, f32, |x: f32| x, |x: f32| x;
    f64, f64, |x: f64| x, |x: f64| x;
    f16, f32, |x: f16| x.to_f32(), f16::from_f32;
    bf16, f32, |x: bf16| x.to_f32(), bf16::from_f32;
}

/// Elements that one task takes at least.
const LEAST: usize = 1 << 14;

fn rows<T: Softmax>(scores: &Tensor, scale: f64) -> Result<Tensor, Error> {
    let len = scores.shape().last().copied().unwrap_or(1).max(1);
    let from = scores.as_slice::<T>()?;
    let mut weights = vec![T::default(); from.len()];
    from.par_chunks(len)
        .zip(weights.par_chunks_mut(len))
        .with_min_len(LEAST.div_ceil(len))
        .for_each(|(scores, weights)| T::row(scores, weights, scale));
    Ok(Tensor::from_slice(&weights, scores.shape())?)
}

/// `softmax(scale · scores)` along the last axis. Runs on the pool that it is called in.
pub(super) fn softmax(scores: &Tensor, scale: f64) -> Result<Tensor, Error> {
    match scores.dtype() {
        DType::F64 => rows::<f64>(scores, scale),
        DType::F16 => rows::<f16>(scores, scale),
        DType::BF16 => rows::<bf16>(scores, scale),
        _ => rows::<f32>(scores, scale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one_and_keep_their_ratios() {
        let scores = Tensor::from_slice(&[0.0f64, 2f64.ln(), 1000.0, 1000.0], &[2, 2]).unwrap();
        let weights = softmax(&scores, 1.0).unwrap();
        let weights = weights.as_slice::<f64>().unwrap();
        for (weight, wanted) in weights.iter().zip([1.0 / 3.0, 2.0 / 3.0, 0.5, 0.5]) {
            assert!((weight - wanted).abs() < 1e-15, "{weights:?}");
        }
    }
}
