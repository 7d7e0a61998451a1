//! `einfall.Table`: inverses of tables on GPUs, kept from one call to the next.
//!
//! *In*: operands, some of them tables of that class. *Out*: their arrays, and for each the [`Kept`] that hangs on it.

use std::any::Any;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use smallvec::SmallVec;

/// Inverses that a table keeps at most: one for each call that scatters through it, and each stream.
const MOST: usize = 8;

static TABLE: AtomicPtr<ffi::PyTypeObject> = AtomicPtr::new(std::ptr::null_mut());

/// Says which class is `einfall.Table`.
#[pyfunction]
pub(crate) fn _register_table(class: Bound<'_, PyAny>) {
    TABLE.store(class.into_ptr().cast(), Ordering::Relaxed);
}

/// What a table held when its inverse was made: which argument it is, where it lies, and torch's count of its changes.
pub(crate) type State = (usize, u64, Option<i64>);

/// An inverse in memory of a library.
pub(crate) struct Entry {
    /// The program that filled the memory; it alone reads it.
    pub(crate) program: Arc<dyn Any + Send + Sync>,
    pub(crate) stream: u64,
    /// How many bad tables had been reported by then: what was made before one may be the one.
    pub(crate) reported: u64,
    pub(crate) states: SmallVec<[State; 2]>,
    pub(crate) memory: Py<PyAny>,
    pub(crate) address: u64,
    /// A captured graph reads the memory, so nothing else may be written there.
    pub(crate) pinned: bool,
}

/// What hangs on a table.
#[pyclass(frozen, name = "_Kept")]
#[derive(Default)]
pub(crate) struct Kept {
    entries: Mutex<Vec<Entry>>,
}

#[pymethods]
impl Kept {
    #[new]
    fn new() -> Self {
        Kept::default()
    }

    /// Number of inverses, for tests.
    fn __len__(&self) -> usize {
        self.entries().len()
    }
}

impl Kept {
    /// The inverses. The lock must not be held while Python is asked.
    pub(crate) fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Whatever is in the list is whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; what it displaces is given back, to be dropped when no lock is held. Those that graphs read stay.
    pub(crate) fn put(&self, entry: Entry) -> Vec<Entry> {
        let mut entries = self.entries();
        let same = |known: &Entry| Arc::ptr_eq(&known.program, &entry.program) && known.stream == entry.stream;
        let mut displaced: Vec<Entry> = entries.extract_if(.., |known| same(known) && !known.pinned).collect();
        if entries.len() >= MOST
            && let Some(oldest) = entries.iter().position(|known| !known.pinned)
        {
            displaced.push(entries.remove(oldest));
        }
        entries.push(entry);
        displaced
    }
}

/// The tables of a call that keep their inverses: the number of the argument, and what hangs on it.
pub(crate) type Tables = SmallVec<[(usize, Py<Kept>); 2]>;

/// Puts arrays in place of tables.
pub(crate) fn unwrap(operands: &mut [Bound<'_, PyAny>]) -> PyResult<Tables> {
    let mut tables = Tables::new();
    for (number, operand) in operands.iter_mut().enumerate() {
        // SAFETY: a bound object has a type.
        let class = unsafe { ffi::Py_TYPE(operand.as_ptr()) };
        if std::ptr::eq(class, TABLE.load(Ordering::Relaxed)) {
            if !operand.getattr(intern!(operand.py(), "offsets"))?.is_none() {
                return Err(PyValueError::new_err(format!(
                    "argument {number} has lists of different lengths, which are for `einfall.attention` alone"
                )));
            }
            let kept = operand.getattr(intern!(operand.py(), "_kept"))?.cast_into::<Kept>()?;
            tables.push((number, kept.unbind()));
            *operand = operand.getattr(intern!(operand.py(), "array"))?;
        }
    }
    Ok(tables)
}

/// The same for tensors that were taken out of tables before.
pub(crate) fn hanging(operands: &[Bound<'_, PyAny>]) -> PyResult<Tables> {
    let mut tables = Tables::new();
    for (number, operand) in operands.iter().enumerate() {
        if let Some(kept) = operand.getattr_opt(intern!(operand.py(), "_einfall_kept"))? {
            tables.push((number, kept.cast_into::<Kept>()?.unbind()));
        }
    }
    Ok(tables)
}
