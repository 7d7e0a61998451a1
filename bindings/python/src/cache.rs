//! Plans, kept by everything that they depend on.
//!
//! *In*: an equation, views of the arguments, options. *Out*: a plan, the same one for the same call. Bounded: the plan
//! that was not asked for longest goes first.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use einfall::{Argument, DType, Device, Error, Plan, View};
use lru::LruCache;
use pyo3::prelude::*;
use pyo3::types::PyString;
use rustc_hash::FxBuildHasher;

use crate::device::device;
use crate::error::to_python;
use crate::options::{Options, Words, push_argument, push_text};

/// Plans that are kept at most.
pub(crate) const MOST: usize = 4096;

/// Predicted seconds from which on other threads of Python may run meanwhile; to let go and come back takes some 0.1 µs.
const LONG_SECONDS: f64 = 5e-6;

/// A plan with what every call asks of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    /// Whether the interpreter's lock is released while it runs.
    pub(crate) long: bool,
    /// A single operand of which every element goes to the result once, in the same type: it could be a view.
    pub(crate) rearranges: bool,
}

impl Prepared {
    pub(crate) fn new(plan: Plan) -> Self {
        let problem = &plan.problem;
        let long = plan.cost().seconds > LONG_SECONDS;
        let rearranges = match problem.operands.as_slice() {
            [only] => {
                let kept = |label: &einfall::LabelId| problem.output.term.strides.iter().any(|(l, _)| l == label);
                only.dtype == problem.output.dtype
                    && problem.tables.is_empty()
                    && only.term.windows.is_empty()
                    && problem.output.term.windows.is_empty()
                    && only.term.strides.iter().all(|(label, _)| kept(label))
                    && problem.output.term.strides.len() == only.term.strides.len()
            }
            _ => false,
        };
        Prepared { plan, long, rearranges }
    }

    /// Whether it was made for such arguments.
    pub(crate) fn fits(&self, views: &[View<'_>]) -> bool {
        let arguments = &self.plan.problem.arguments;
        let same = |(argument, view): (&Argument, &View<'_>)| {
            argument.dtype == view.dtype() && argument.layout == *view.layout()
        };
        arguments.len() == views.len() && arguments.iter().zip(views).all(same)
    }

    /// Type and shape of the result.
    pub(crate) fn result(&self) -> (DType, &[usize]) {
        let output = &self.plan.problem.output;
        (output.dtype, &output.layout.shape)
    }
}

type Plans = LruCache<Box<[u64]>, Arc<Prepared>, FxBuildHasher>;

fn plans() -> MutexGuard<'static, Plans> {
    static PLANS: OnceLock<Mutex<Plans>> = OnceLock::new();
    let most = NonZeroUsize::new(MOST).expect("above zero");
    let plans = PLANS.get_or_init(|| Mutex::new(LruCache::with_hasher(most, FxBuildHasher)));
    // What a panic interrupted is a cache: whatever is in it is whole.
    plans.lock().unwrap_or_else(PoisonError::into_inner)
}

static HITS: AtomicU64 = AtomicU64::new(0);
static MISSES: AtomicU64 = AtomicU64::new(0);

/// All that a plan on some device depends on.
pub(crate) fn key(equation: &str, views: &[View<'_>], options: &Options) -> Words {
    let mut key = Words::new();
    push_text(&mut key, equation);
    key.push(views.len() as u64);
    for view in views {
        push_argument(&mut key, view.dtype(), view.shape(), view.strides());
    }
    options.push(&mut key);
    key
}

/// The plan of a call, made now if it is not known.
pub(crate) fn prepare(equation: &str, views: &[View<'_>], options: &Options) -> Result<Arc<Prepared>, Error> {
    let key = key(equation, views, options);
    if let Some(prepared) = plans().get(&key[..]) {
        HITS.fetch_add(1, Ordering::Relaxed);
        return Ok(Arc::clone(prepared));
    }
    MISSES.fetch_add(1, Ordering::Relaxed);
    let arguments = views.iter().map(|view| Argument { dtype: view.dtype(), layout: view.layout().clone() });
    let prepared = Arc::new(Prepared::new(plan(equation, arguments.collect(), options)?));
    plans().put(key.into_boxed_slice(), Arc::clone(&prepared));
    Ok(prepared)
}

/// A call without keywords: the very text of its equation, and its plan.
type Recent = Option<(Py<PyString>, Arc<Prepared>)>;

/// Calls that came last, by where their equations lie: mostly constants of a program. They are found without a key.
static RECENT: [Mutex<Recent>; 16] = [const { Mutex::new(None) }; 16];

/// The place of an equation, unless another thread looks at it.
fn recent(equation: &Bound<'_, PyString>) -> Option<MutexGuard<'static, Recent>> {
    // Objects are multiples of 16 bytes apart; texts of some length several.
    let at = equation.as_ptr() as usize;
    RECENT[(at >> 4 ^ at >> 8) % RECENT.len()].try_lock().ok()
}

/// As [`prepare`] without options: at once where the same text came last with such arguments.
pub(crate) fn prepare_plain(equation: &Bound<'_, PyString>, views: &[View<'_>]) -> PyResult<Arc<Prepared>> {
    if let Some(guard) = recent(equation)
        && let Some((text, prepared)) = &*guard
        && text.as_ptr() == equation.as_ptr()
        && prepared.fits(views)
    {
        HITS.fetch_add(1, Ordering::Relaxed);
        return Ok(Arc::clone(prepared));
    }
    let prepared = prepare(equation.to_str()?, views, &Options::default());
    let prepared = prepared.map_err(|error| to_python(equation.py(), error))?;
    let entry = Some((equation.clone().unbind(), Arc::clone(&prepared)));
    // What was there is dropped when no lock is held.
    let _before = recent(equation).map(|mut guard| std::mem::replace(&mut *guard, entry));
    Ok(prepared)
}

/// A plan, made anew.
pub(crate) fn plan(equation: &str, arguments: Vec<Argument>, options: &Options) -> Result<Plan, Error> {
    plan_on(device()?, equation, arguments, options)
}

/// The same for a device.
pub(crate) fn plan_on(
    device: &dyn Device,
    equation: &str,
    arguments: Vec<Argument>,
    options: &Options,
) -> Result<Plan, Error> {
    let einsum = options.einsum(equation).device(device);
    Ok(einsum.plan_for(arguments, options.out.clone())?.plan().clone())
}

/// Counts a plan that was found, or had to be made.
pub(crate) fn count(found: bool) {
    if found { &HITS } else { &MISSES }.fetch_add(1, Ordering::Relaxed);
}

/// Hits, misses, and how many plans there are.
pub(crate) fn statistics() -> (u64, u64, usize) {
    (HITS.load(Ordering::Relaxed), MISSES.load(Ordering::Relaxed), plans().len() + crate::attention::kept())
}

/// Forgets every plan and the statistics.
pub(crate) fn clear() {
    plans().clear();
    crate::attention::clear();
    for place in &RECENT {
        let _before = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
    HITS.store(0, Ordering::Relaxed);
    MISSES.store(0, Ordering::Relaxed);
}
