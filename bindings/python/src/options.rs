//! The keyword arguments of a call, and how they enter the key of a plan.

use einfall::Label;
use einfall::{Argument, Bounds, DType, Einsum, Order};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString};
use smallvec::SmallVec;

/// Words of a key; most calls need no heap.
pub(crate) type Words = SmallVec<[u64; 64]>;

/// What a plan depends on besides the equation and its arguments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) bounds: Bounds,
    pub(crate) order: Order,
    pub(crate) memory_limit: Option<usize>,
    pub(crate) dtype: Option<DType>,
    pub(crate) sizes: Vec<(String, usize)>,
    /// What is written: an array of the caller's, or a result with this layout.
    pub(crate) out: Option<Argument>,
}

impl Options {
    pub(crate) fn einsum<'e>(&self, equation: &'e str) -> Einsum<'e> {
        let mut einsum = Einsum::new(equation).bounds(self.bounds).order(self.order.clone());
        for (name, len) in &self.sizes {
            einsum = einsum.size(name, *len);
        }
        if let Some(limit) = self.memory_limit {
            einsum = einsum.memory_limit(limit);
        }
        match self.dtype {
            Some(dtype) => einsum.dtype(dtype),
            None => einsum,
        }
    }

    /// Appends everything to a key, so that two options with the same words are equal.
    pub(crate) fn push(&self, words: &mut Words) {
        let bounds = matches!(self.bounds, Bounds::Skip) as u64;
        let order = match self.order {
            Order::Auto => 0u64,
            Order::LeftToRight => 1,
            Order::Greedy => 2,
            Order::Exact => 3,
            Order::Given(_) => 4,
            Order::Thorough => 5,
        };
        let dtype = self.dtype.map_or(0, |dtype| dtype as u64 + 1);
        let flags = [self.memory_limit.is_some(), !self.sizes.is_empty(), self.out.is_some()];
        let flags = flags.iter().enumerate().fold(0, |bits, (at, &flag)| bits | (flag as u64) << at);
        words.push(bounds | order << 8 | dtype << 16 | flags << 32);
        words.extend(self.memory_limit.map(|limit| limit as u64));
        if !self.sizes.is_empty() {
            words.push(self.sizes.len() as u64);
            for (name, len) in &self.sizes {
                push_text(words, name);
                words.push(*len as u64);
            }
        }
        if let Some(out) = &self.out {
            push_argument(words, out.dtype, &out.layout.shape, &out.layout.strides);
        }
        if let Order::Given(path) = &self.order {
            words.push(path.len() as u64);
            for step in path {
                words.push(step.len() as u64);
                words.extend(step.iter().map(|&at| at as u64));
            }
        }
    }
}

/// Appends a text with its length.
pub(crate) fn push_text(words: &mut Words, text: &str) {
    words.push(text.len() as u64);
    words.extend(text.as_bytes().chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    }));
}

/// Appends what a plan knows of an argument.
pub(crate) fn push_argument(words: &mut Words, dtype: DType, shape: &[usize], strides: &[isize]) {
    words.push(dtype as u64 | (shape.len() as u64) << 8);
    words.extend(shape.iter().map(|&len| len as u64));
    words.extend(strides.iter().map(|&stride| stride as u64));
}

/// Reads `bounds`.
pub(crate) fn bounds(given: &Bound<'_, PyAny>) -> PyResult<Bounds> {
    match given.cast::<PyString>()?.to_str()? {
        "error" => Ok(Bounds::Error),
        "skip" => Ok(Bounds::Skip),
        other => Err(PyValueError::new_err(format!("`bounds` is `{other}`, neither `error` nor `skip`"))),
    }
}

/// Reads `sizes`, a mapping from labels or brackets to lengths.
pub(crate) fn sizes(given: &Bound<'_, PyAny>) -> PyResult<Vec<(String, usize)>> {
    let given = match given.cast::<PyDict>() {
        Ok(dict) => dict.clone(),
        Err(_) => {
            let dict = PyDict::new(given.py());
            dict.call_method1("update", (given,))?;
            dict
        }
    };
    let mut sizes: Vec<(String, usize)> = Vec::with_capacity(given.len());
    for (name, len) in given.iter() {
        let name = match name.cast::<PyString>() {
            Ok(name) => name.to_str()?.to_owned(),
            // The labels of the interleaved form are integers.
            Err(_) => {
                let index: usize = name.extract()?;
                let label = Label::from_index(index);
                label.ok_or_else(|| PyValueError::new_err(format!("no label has the number {index}")))?.to_string()
            }
        };
        let len = len
            .call_method0("__index__")
            .and_then(|len| len.extract::<i128>())
            .map_err(|_| PyTypeError::new_err(format!("`sizes` gives `{name}` a length that is not an integer")))?;
        let len = usize::try_from(len)
            .map_err(|_| PyValueError::new_err(format!("`sizes` gives `{name}` the length {len}")))?;
        sizes.push((name, len));
    }
    sizes.sort_unstable();
    Ok(sizes)
}

/// Reads `optimize`: what NumPy, torch and opt_einsum take. A memory limit may come with it.
pub(crate) fn optimize(given: &Bound<'_, PyAny>) -> PyResult<(Order, Option<usize>)> {
    if let Ok(flag) = given.cast::<PyBool>() {
        return Ok((if flag.is_true() { Order::Auto } else { Order::LeftToRight }, None));
    }
    if let Ok(name) = given.cast::<PyString>() {
        return Ok((named_order(name.to_str()?)?, None));
    }
    let wrong = || PyTypeError::new_err("`optimize` is neither a word, nor a truth value, nor a path");
    let items: Vec<Bound<'_, PyAny>> = given.try_iter().map_err(|_| wrong())?.collect::<PyResult<_>>()?;
    let named = items.first().and_then(|first| first.cast::<PyString>().ok());
    let steps = match named {
        Some(name) if name.to_str()? == "einsum_path" => &items[1..],
        // NumPy's pair of a strategy and the most elements of an intermediate result.
        Some(name) if items.len() == 2 => {
            let limit = items[1].extract::<f64>().map_err(|_| wrong())?;
            let limit = (limit >= 1.0 && limit < usize::MAX as f64).then_some(limit as usize);
            return Ok((named_order(name.to_str()?)?, limit));
        }
        Some(_) => return Err(wrong()),
        None => &items[..],
    };
    let path = steps.iter().map(|step| step.extract::<Vec<usize>>().map_err(|_| wrong()));
    Ok((Order::Given(path.collect::<PyResult<_>>()?), None))
}

/// The order that a word stands for.
pub(crate) fn named_order(name: &str) -> PyResult<Order> {
    match name {
        "auto" => Ok(Order::Auto),
        "auto-hq" => Ok(Order::Thorough),
        "greedy" => Ok(Order::Greedy),
        "optimal" | "exact" | "dp" => Ok(Order::Exact),
        "left-to-right" => Ok(Order::LeftToRight),
        other => Err(PyValueError::new_err(format!(
            "`optimize` is `{other}`\nhint: it may be `auto`, `auto-hq`, `greedy`, `optimal`, `left-to-right`, true, false or a path"
        ))),
    }
}

/// Reads a dtype: a name, or a dtype of NumPy, torch or JAX.
pub(crate) fn dtype(given: &Bound<'_, PyAny>) -> PyResult<DType> {
    if let Ok(name) = given.cast::<PyString>()
        && let Ok(dtype) = name.to_str()?.parse()
    {
        return Ok(dtype);
    }
    let py = given.py();
    let text = given.str()?;
    let text = text.to_str()?;
    if let Some(name) = text.strip_prefix("torch.") {
        return name.parse().map_err(PyTypeError::new_err);
    }
    // Characters, Python's types, scalar types: NumPy knows them all, where it is there.
    let Some(numpy) = crate::kind::imported(py, "numpy")? else {
        return Err(PyTypeError::new_err(format!("unknown dtype `{text}`")));
    };
    let name: String = numpy.call_method1("dtype", (given,))?.getattr("name")?.extract()?;
    name.parse().map_err(PyTypeError::new_err)
}
