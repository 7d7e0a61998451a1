//! Plans, kept by everything that they depend on.
//!
//! *In*: an equation, views of the arguments, options. *Out*: a plan, the same one for the same call. Bounded: the plan
//! that was not asked for longest goes first.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use einfall::{Argument, DType, Error, Plan, View};
use lru::LruCache;
use rustc_hash::FxBuildHasher;

use crate::device::device;
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

/// The plan of a call, made now if it is not known.
pub(crate) fn prepare(equation: &str, views: &[View<'_>], options: &Options) -> Result<Arc<Prepared>, Error> {
    let mut key = Words::new();
    push_text(&mut key, equation);
    key.push(views.len() as u64);
    for view in views {
        push_argument(&mut key, view.dtype(), view.shape(), view.strides());
    }
    options.push(&mut key);
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

/// A plan, made anew.
pub(crate) fn plan(equation: &str, arguments: Vec<Argument>, options: &Options) -> Result<Plan, Error> {
    let einsum = options.einsum(equation).device(device()?);
    Ok(einsum.plan_for(arguments, options.out.clone())?.plan().clone())
}

/// Hits, misses, and how many plans there are.
pub(crate) fn statistics() -> (u64, u64, usize) {
    (HITS.load(Ordering::Relaxed), MISSES.load(Ordering::Relaxed), plans().len())
}

/// Forgets every plan and the statistics.
pub(crate) fn clear() {
    plans().clear();
    HITS.store(0, Ordering::Relaxed);
    MISSES.store(0, Ordering::Relaxed);
}
