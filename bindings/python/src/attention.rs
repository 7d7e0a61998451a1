//! Attention: scores, softmax and values in one call, on arrays of any library.
//!
//! *In*: an attend-equation with query, key, the key's tables, value, and a bias where there is one. *Out*: the result and
//! its log-sum-exp, or from these the gradients; arrays of the operands' library. `python/einfall/_attention.py` writes the
//! equation for the usual shapes, and is what users call; what no kernel runs is left to `_attention_steps.py`.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use einfall::{Argument, Attend, Bounds, CpuDevice, DType, Error, Layout, PreparedAttention, Saved, View, ViewMut};
use lru::LruCache;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rustc_hash::FxBuildHasher;

use crate::array;
use crate::attention_cuda::{self, Call};
use crate::cache::{MOST, count};
use crate::call::numpy_views;
use crate::cuda::{self, Torch};
use crate::describe;
use crate::device::device;
use crate::error::to_python;
use crate::kind::{Kind, common_kind, imported};
use crate::options::{self, Words, push_argument, push_text};
use crate::run::Views;
use crate::table;
use crate::torch::{self, Place, Tensors};

/// Predicted seconds from which on other threads of Python may run meanwhile.
const LONG_SECONDS: f64 = 5e-6;

/// What a plan depends on besides the equation and its arguments.
pub(crate) struct Settings {
    pub(crate) sizes: Vec<(String, usize)>,
    pub(crate) scale: Option<f64>,
    pub(crate) bounds: Bounds,
    pub(crate) causal: bool,
}

impl Settings {
    fn read(sizes: &Bound<'_, PyAny>, scale: Option<f64>, bounds: &Bound<'_, PyAny>, causal: bool) -> PyResult<Self> {
        Ok(Settings { sizes: options::sizes(sizes)?, scale, bounds: options::bounds(bounds)?, causal })
    }

    /// `equation|labels` has offsets with these labels.
    pub(crate) fn attend<'d>(&self, equation: &str) -> Attend<'d> {
        let (equation, offsets) =
            equation.split_once('|').map_or((equation, None), |(text, labels)| (text, Some(labels)));
        let mut attend = Attend::new(equation).bounds(self.bounds).causal(self.causal);
        if let Some(labels) = offsets {
            attend = attend.offsets(labels);
        }
        for (name, len) in &self.sizes {
            attend = attend.size(name, *len);
        }
        match self.scale {
            Some(scale) => attend.scale(scale),
            None => attend,
        }
    }

    /// All that a plan depends on; `wanted` gradients make it one of the backward pass.
    pub(crate) fn key(&self, equation: &str, views: &[View<'_>], wanted: Option<[bool; 4]>) -> Words {
        let mut words = Words::new();
        push_text(&mut words, equation);
        words.push(views.len() as u64);
        for view in views {
            push_argument(&mut words, view.dtype(), view.shape(), view.strides());
        }
        let flags = [self.bounds == Bounds::Skip, self.causal, self.scale.is_some(), wanted.is_some()];
        let flags = flags.into_iter().chain(wanted.unwrap_or_default());
        words.push(flags.enumerate().fold(0, |bits, (at, flag)| bits | u64::from(flag) << at));
        words.extend(self.scale.map(f64::to_bits));
        for (name, len) in &self.sizes {
            push_text(&mut words, name);
            words.push(*len as u64);
        }
        words
    }
}

/// A plan of the processor.
pub(crate) struct Ready {
    pub(crate) prepared: PreparedAttention<'static>,
    /// That of the plan: a forked process has another.
    device: &'static CpuDevice,
}

impl Ready {
    /// Runs with the interpreter's lock released where that is worth it.
    fn run(
        &self,
        py: Python<'_>,
        run: impl Send + FnOnce(&PreparedAttention<'_>) -> Result<(), Error>,
    ) -> PyResult<()> {
        let long = self.prepared.plan().cost().seconds > LONG_SECONDS;
        let result = if long { py.detach(|| run(&self.prepared)) } else { run(&self.prepared) };
        result.map_err(|error| to_python(py, error))
    }
}

type Plans = LruCache<Box<[u64]>, Arc<Ready>, FxBuildHasher>;

fn plans() -> MutexGuard<'static, Plans> {
    static PLANS: OnceLock<Mutex<Plans>> = OnceLock::new();
    let most = NonZeroUsize::new(MOST).expect("above zero");
    let plans = PLANS.get_or_init(|| Mutex::new(LruCache::with_hasher(most, FxBuildHasher)));
    // What a panic interrupted is a cache: whatever is in it is whole.
    plans.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets every plan.
pub(crate) fn clear() {
    plans().clear();
}

/// How many plans there are.
pub(crate) fn kept() -> usize {
    plans().len()
}

/// The plan of a call, made now if it is not known.
pub(crate) fn prepare(
    equation: &str,
    views: &[View<'_>],
    settings: &Settings,
    wanted: Option<[bool; 4]>,
) -> Result<Arc<Ready>, Error> {
    let device = device()?;
    let key = settings.key(equation, views, wanted);
    if let Some(ready) = plans().get(&key[..]).filter(|ready| std::ptr::eq(ready.device, device)) {
        count(true);
        return Ok(Arc::clone(ready));
    }
    count(false);
    let arguments = views.iter().map(|view| Argument { dtype: view.dtype(), layout: view.layout().clone() }).collect();
    let attend = settings.attend(equation).device(device);
    let prepared = match wanted {
        None => attend.plan_for(arguments)?,
        Some(wanted) => attend.plan_gradients(arguments, wanted)?,
    };
    let ready = Arc::new(Ready { prepared, device });
    plans().put(key.into_boxed_slice(), Arc::clone(&ready));
    Ok(ready)
}

/// Attention by an equation: the result, and its log-sum-exp or `None`.
#[pyfunction]
#[pyo3(signature = (equation, operands, sizes, scale, bounds, causal, return_lse))]
pub(crate) fn _attend<'py>(
    py: Python<'py>,
    equation: &str,
    mut operands: Vec<Bound<'py, PyAny>>,
    sizes: Bound<'py, PyAny>,
    scale: Option<f64>,
    bounds: Bound<'py, PyAny>,
    causal: bool,
    return_lse: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let settings = Settings::read(&sizes, scale, &bounds, causal)?;
    table::unwrap(&mut operands)?;
    let module = match common_kind(&operands)? {
        Kind::NumPy => return on_numpy(py, equation, &operands, &settings, return_lse),
        Kind::Torch if !torch::must_dispatch(py, &operands)? => {
            return on_torch(py, equation, &operands, &settings, return_lse);
        }
        Kind::Torch | Kind::TorchSubclass => "einfall._attention_torch",
        Kind::Jax => "einfall._attention_jax",
        Kind::CuPy => {
            return cuda::with_cupy(py, &operands, |library, ordinal, views| {
                let call = Call { ordinal, equation, views, settings: &settings };
                attention_cuda::forward(py, library, &call, return_lse)
            });
        }
        Kind::Other if imported(py, "numpy")?.is_some() => {
            return on_numpy(py, equation, &operands, &settings, return_lse);
        }
        Kind::Other => return Err(PyTypeError::new_err("no operand is an array of NumPy, torch, JAX or CuPy")),
    };
    let function = py.import(module)?.getattr("_attend")?;
    function.call1((equation, PyTuple::new(py, operands)?, sizes, scale, bounds, causal, return_lse))
}

/// A result and its log-sum-exp.
pub(crate) fn pair<'py>(
    py: Python<'py>,
    out: Bound<'py, PyAny>,
    lse: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let lse = lse.unwrap_or_else(|| py.None().into_bound(py));
    Ok(PyTuple::new(py, [out, lse])?.into_any())
}

/// Runs forward into new arrays.
///
/// # Safety
/// `out` and `lse` are new, row-major, of the plan's types and shapes, and nobody else has seen them.
unsafe fn forward(
    py: Python<'_>,
    ready: &Ready,
    views: &[View<'_>],
    out: *mut u8,
    lse: Option<*mut u8>,
) -> PyResult<()> {
    let plan = ready.prepared.plan();
    let output = &plan.problem.output;
    // SAFETY: by the caller.
    let (out, lse) = unsafe {
        let lse = lse.map(|lse| ViewMut::from_raw_parts(lse, plan.attention.accumulator, plan.lse.clone()));
        (ViewMut::from_raw_parts(out, output.dtype, output.layout.clone()), lse.transpose())
    };
    let failed = |error| to_python(py, Error::from(error));
    let (mut out, mut lse) = (out.map_err(failed)?, lse.map_err(failed)?);
    ready.run(py, move |prepared| prepared.run_into(views, &mut out, lse.as_mut()))
}

fn on_numpy<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    settings: &Settings,
    return_lse: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let mut made = Vec::new();
    let views = numpy_views(py, operands, &mut made)?;
    let views = views.ok_or_else(|| PyTypeError::new_err("operands are of a type that attention is not there for"))?;
    let ready = prepare(equation, &views, settings, None).map_err(|error| to_python(py, error))?;
    let plan = ready.prepared.plan();
    let output = &plan.problem.output;
    let (out, out_data) = array::empty(py, output.dtype, &output.layout)?;
    let lse = return_lse.then(|| array::empty(py, plan.attention.accumulator, &plan.lse)).transpose()?;
    // SAFETY: NumPy has just made both, and nobody else has seen them.
    unsafe { forward(py, &ready, &views, out_data, lse.as_ref().map(|lse| lse.1))? };
    pair(py, out, lse.map(|lse| lse.0))
}

fn on_torch<'py>(
    py: Python<'py>,
    equation: &str,
    operands: &[Bound<'py, PyAny>],
    settings: &Settings,
    return_lse: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let Tensors { views, made: _made, place } = torch::views(operands)?;
    let views = &views;
    if let Place::Cuda(ordinal) = place {
        let library = Torch { py, ordinal, like: (&operands[0], views[0].dtype()) };
        let call = Call { ordinal, equation, views, settings };
        return attention_cuda::forward(py, &library, &call, return_lse);
    }
    let ready = prepare(equation, views, settings, None).map_err(|error| to_python(py, error))?;
    let plan = ready.prepared.plan();
    let output = &plan.problem.output;
    let (out, out_data) = torch::empty(py, output.dtype, &output.layout.shape, None)?;
    let lse = return_lse.then(|| torch::empty(py, plan.attention.accumulator, &plan.lse.shape, None)).transpose()?;
    // SAFETY: torch has just made both, row-major, and nobody else has seen them.
    unsafe { forward(py, &ready, views, out_data, lse.as_ref().map(|lse| lse.1))? };
    pair(py, out, lse.map(|lse| lse.0))
}

/// The kernel of the operator that torch knows: result and log-sum-exp.
#[pyfunction]
#[pyo3(signature = (equation, operands, sizes, scale, bounds, causal))]
pub(crate) fn _torch_attend<'py>(
    py: Python<'py>,
    equation: &str,
    operands: Vec<Bound<'py, PyAny>>,
    sizes: Bound<'py, PyAny>,
    scale: Option<f64>,
    bounds: Bound<'py, PyAny>,
    causal: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let settings = Settings::read(&sizes, scale, &bounds, causal)?;
    on_torch(py, equation, &operands, &settings, true)
}

/// Runs backward into new arrays, one for each gradient that is wanted. What was saved is row-major.
fn backward<'py>(
    py: Python<'py>,
    equation: &str,
    (views, saved): (&[View<'_>], &[View<'_>; 3]),
    wanted: [bool; 4],
    settings: &Settings,
    empty: impl Fn(DType, &Layout) -> PyResult<(Bound<'py, PyAny>, *mut u8)>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let ready = prepare(equation, views, settings, Some(wanted)).map_err(|error| to_python(py, error))?;
    let plan = ready.prepared.plan();
    let mut arrays = Vec::new();
    let mut gradients: [Option<ViewMut<'_>>; 4] = [None, None, None, None];
    for (operand, gradient) in
        plan.problem.operands.iter().zip(&mut gradients).zip(wanted).filter_map(|(pair, wanted)| wanted.then_some(pair))
    {
        let Argument { dtype, layout } = &plan.arguments[operand.argument];
        let layout = Layout::contiguous(&layout.shape);
        let (array, data) = empty(*dtype, &layout)?;
        // SAFETY: the library has just made the array, row-major, and nobody else has seen it.
        let view = unsafe { ViewMut::from_raw_parts(data, *dtype, layout) };
        *gradient = Some(view.map_err(|error| to_python(py, error.into()))?);
        arrays.push(array);
    }
    // Row-major they are; where an axis has one element, libraries and plans may disagree on its stride.
    let [out, lse, grad_out] = saved.each_ref().map(|view| {
        let layout = Layout::contiguous(view.shape());
        // SAFETY: `span`: the same elements in the same memory, for as long.
        unsafe { View::from_raw_parts(view.as_ptr().cast_mut(), view.dtype(), layout) }
    });
    let saved = Saved { out, lse, grad_out };
    ready.run(py, move |prepared| prepared.gradients_into(views, &saved, &mut gradients))?;
    Ok(arrays)
}

/// Gradients of the operands that are wanted (of query, key, value, bias), for tensors.
#[pyfunction]
#[pyo3(signature = (equation, operands, saved, wanted, sizes, scale, bounds, causal))]
pub(crate) fn _torch_attend_backward<'py>(
    py: Python<'py>,
    equation: &str,
    operands: Vec<Bound<'py, PyAny>>,
    saved: Vec<Bound<'py, PyAny>>,
    wanted: [bool; 4],
    sizes: Bound<'py, PyAny>,
    scale: Option<f64>,
    bounds: Bound<'py, PyAny>,
    causal: bool,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let settings = Settings::read(&sizes, scale, &bounds, causal)?;
    let (given, saved) = (torch::views(&operands)?, torch::views(&saved)?);
    if given.place != saved.place {
        return Err(PyValueError::new_err("what was saved is on another device than the operands"));
    }
    let saved: [View<'_>; 3] = three(saved.views.to_vec())?;
    if let Place::Cuda(ordinal) = given.place {
        let library = Torch { py, ordinal, like: (&operands[0], given.views[0].dtype()) };
        let call = Call { ordinal, equation, views: &given.views, settings: &settings };
        return attention_cuda::backward(py, &library, &call, &operands, &saved, wanted);
    }
    let empty = |dtype: DType, layout: &Layout| torch::empty(py, dtype, &layout.shape, None);
    backward(py, equation, (&given.views, &saved), wanted, &settings, empty)
}

/// The same for arrays of NumPy.
#[pyfunction]
#[pyo3(signature = (equation, operands, saved, wanted, sizes, scale, bounds, causal))]
pub(crate) fn _numpy_attend_backward<'py>(
    py: Python<'py>,
    equation: &str,
    operands: Vec<Bound<'py, PyAny>>,
    saved: Vec<Bound<'py, PyAny>>,
    wanted: [bool; 4],
    sizes: Bound<'py, PyAny>,
    scale: Option<f64>,
    bounds: Bound<'py, PyAny>,
    causal: bool,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let settings = Settings::read(&sizes, scale, &bounds, causal)?;
    let mut made = Vec::new();
    let mut views = |operands: &[Bound<'py, PyAny>]| -> PyResult<Views> {
        let views = numpy_views(py, operands, &mut made)?;
        views.ok_or_else(|| PyTypeError::new_err("operands are of a type that attention is not there for"))
    };
    let (operands, saved) = (views(&operands)?, three(views(&saved)?.to_vec())?);
    backward(py, equation, (&operands, &saved), wanted, &settings, |dtype, layout| array::empty(py, dtype, layout))
}

fn three(views: Vec<View<'_>>) -> PyResult<[View<'_>; 3]> {
    views.try_into().map_err(|_| PyTypeError::new_err("output, log-sum-exp and the output's gradient are saved"))
}

/// The plan of a call as text and as a dictionary.
#[pyfunction]
#[pyo3(signature = (equation, operands, sizes, scale, bounds, causal, dtype))]
pub(crate) fn _explain_attend<'py>(
    py: Python<'py>,
    equation: &str,
    operands: Vec<Bound<'py, PyAny>>,
    sizes: Bound<'py, PyAny>,
    scale: Option<f64>,
    bounds: Bound<'py, PyAny>,
    causal: bool,
    dtype: Option<Bound<'py, PyAny>>,
) -> PyResult<(String, Bound<'py, PyDict>)> {
    let settings = Settings::read(&sizes, scale, &bounds, causal)?;
    let dtype = dtype.as_ref().map(options::dtype).transpose()?;
    let arguments = describe::attention_arguments(py, equation, &operands, dtype)?;
    let device = device().map_err(|error| to_python(py, error))?;
    let prepared = settings.attend(equation).device(device).plan_for(arguments);
    let prepared = prepared.map_err(|error| to_python(py, error))?;
    crate::report::attention(py, prepared.plan())
}
