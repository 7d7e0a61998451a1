//! The arrays of a problem, the same on every machine.

use std::sync::Arc;

use einfall::half::{bf16, f16};
use einfall::num_complex::Complex;
use einfall::{DType, Element, Error, Tensor};
use rayon::prelude::*;

use super::problem::{Array, Fill, Problem};
use crate::bench::numbers::Random;

/// Elements that one stream of random numbers makes, so that threads may share the work.
const CHUNK: usize = 1 << 16;

/// Arguments in order.
pub(super) struct Data {
    pub(super) arrays: Vec<(&'static str, Arc<Tensor>)>,
}

impl Data {
    pub(super) fn new(problem: &Problem, seed: u64) -> Result<Self, Error> {
        let made = |(at, array): (usize, &Array)| -> Result<_, Error> {
            // Streams of one array lie apart from those of the next.
            let tensor = make(array, seed, (at as u64 + 1) << 24)?;
            Ok((array.role, Arc::new(tensor)))
        };
        Ok(Self { arrays: problem.arguments.iter().enumerate().map(made).collect::<Result<_, _>>()? })
    }

    /// The array of a role.
    pub(super) fn get(&self, role: &str) -> Option<&Tensor> {
        self.arrays.iter().find(|(name, _)| *name == role).map(|(_, tensor)| &**tensor)
    }
}

fn make(array: &Array, seed: u64, stream: u64) -> Result<Tensor, Error> {
    let shape = &array.shape;
    match array.fill {
        Fill::Normal => numbers(array, seed, stream, Random::quick_normal),
        Fill::Weights { k } => numbers(array, seed, stream, |random| random.uniform() * 2.0 / k as f64),
        Fill::Any { n } => {
            let mut random = Random::new(seed, stream);
            table(array.dtype, shape, (0..shape.iter().product()).map(|_| random.below(n)))
        }
        Fill::Distinct { n } => {
            let k = shape.last().copied().unwrap_or(1);
            let mut random = Random::new(seed, stream);
            let mut rows: Vec<usize> = (0..n).collect();
            let mut positions = Vec::with_capacity(shape.iter().product());
            for _ in 0..shape.iter().product::<usize>() / k.max(1) {
                random.first(&mut rows, k);
                positions.extend_from_slice(&rows[..k]);
            }
            table(array.dtype, shape, positions)
        }
        Fill::Near { n, block } => {
            let k = shape.last().copied().unwrap_or(1);
            let mut random = Random::new(seed, stream);
            let mut moved: Vec<usize> = (0..n).collect();
            moved.chunks_mut(block).for_each(|rows| random.first(rows, rows.len()));
            let list = |query: usize| {
                let first = (query % n).saturating_sub(k / 2).min(n - k);
                (first..first + k).map(|row| moved[row]).collect::<Vec<_>>()
            };
            table(array.dtype, shape, (0..shape.iter().product::<usize>() / k).flat_map(list))
        }
        Fill::Image { n } => {
            let k = shape.last().copied().unwrap_or(1);
            let (side, width) = (n.isqrt(), k.isqrt());
            let list = |query: usize| {
                let first = |at: usize| at.saturating_sub(width / 2).min(side - width);
                let (top, left) = (first(query % n / side), first(query % side));
                (0..width * width).map(|at| (top + at / width) * side + left + at % width).collect::<Vec<_>>()
            };
            table(array.dtype, shape, (0..shape.iter().product::<usize>() / k).flat_map(list))
        }
    }
}

fn table(dtype: DType, shape: &[usize], rows: impl IntoIterator<Item = usize>) -> Result<Tensor, Error> {
    let rows = rows.into_iter();
    Ok(match dtype {
        DType::I32 => Tensor::from_slice(&rows.map(|row| row as i32).collect::<Vec<_>>(), shape)?,
        _ => Tensor::from_slice(&rows.map(|row| row as i64).collect::<Vec<_>>(), shape)?,
    })
}

fn numbers(array: &Array, seed: u64, stream: u64, next: impl Fn(&mut Random) -> f64 + Sync) -> Result<Tensor, Error> {
    let count: usize = array.shape.iter().product();
    let shape = &array.shape;
    // Integers so small that every sum of products is exact.
    let small = |random: &mut Random| random.below(9) as f64 - 4.0;
    fn fill<T: Element>(
        count: usize,
        shape: &[usize],
        (seed, stream): (u64, u64),
        element: impl Fn(&mut Random) -> T + Sync,
    ) -> Result<Tensor, Error> {
        let mut elements = vec![T::default(); count];
        elements.par_chunks_mut(CHUNK).enumerate().for_each(|(at, chunk)| {
            let mut random = Random::new(seed, stream + at as u64);
            chunk.iter_mut().for_each(|place| *place = element(&mut random));
        });
        Ok(Tensor::from_slice(&elements, shape)?)
    }
    let from = (seed, stream);
    match array.dtype {
        DType::F16 => fill(count, shape, from, |random| f16::from_f64(next(random))),
        DType::BF16 => fill(count, shape, from, |random| bf16::from_f64(next(random))),
        DType::F64 => fill(count, shape, from, next),
        DType::C64 => fill(count, shape, from, |random| Complex::new(next(random) as f32, next(random) as f32)),
        DType::C128 => fill(count, shape, from, |random| Complex::new(next(random), next(random))),
        DType::I32 => fill(count, shape, from, |random| small(random) as i32),
        DType::I64 => fill(count, shape, from, |random| small(random) as i64),
        _ => fill(count, shape, from, |random| next(random) as f32),
    }
}
