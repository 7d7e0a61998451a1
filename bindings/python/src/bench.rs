//! The benchmark inside of this interpreter: peers are called where einfall was, on the same arrays.

use std::ffi::{CString, OsString, c_int};
use std::sync::{Arc, Mutex, PoisonError};

use einfall::Tensor;
use einfall_cli::Surroundings;
use einfall_cli::bench::peers::{Interpreter, Lent, PeerFailure, SCRIPT};
use einfall_cli::bench::record::BenchReport;
use einfall_cli::bench::{chart, suite, table};
use einfall_cli::failure::{BAD_INPUT, Failure};
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

/// An array of the benchmark, read by Python where it lies: a read-only buffer that keeps it alive.
#[pyclass(frozen, name = "_Lent")]
struct Buffer {
    tensor: Arc<Tensor>,
}

#[pymethods]
impl Buffer {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let bytes = slf.get().tensor.as_bytes();
        let (start, len, readonly) = (bytes.as_ptr().cast_mut().cast(), bytes.len() as isize, 1);
        // SAFETY: the interpreter gives a view to fill in, which then holds `slf`, and `slf` the memory, which nobody
        // writes: the view is read-only.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, len, readonly, flags) };
        if filled < 0 { Err(PyErr::fetch(slf.py())) } else { Ok(()) }
    }
}

/// The interpreter that we are in; the session of the script begins with the first request.
struct Here {
    session: PyOnceLock<Py<PyAny>>,
    /// What the user ended the run with.
    ended: Mutex<Option<PyErr>>,
}

impl Here {
    fn new() -> Self {
        Here { session: PyOnceLock::new(), ended: Mutex::new(None) }
    }

    fn session<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        static SCRIPTED: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
        let module = SCRIPTED.get_or_try_init(py, || {
            let code = CString::new(SCRIPT)?;
            PyModule::from_code(py, &code, c"einfall/peers.py", c"einfall._peers").map(Bound::unbind)
        })?;
        let session = || module.bind(py).getattr("Session")?.call0().map(Bound::unbind);
        self.session.get_or_try_init(py, session).map(|session| session.bind(py))
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, Option<PyErr>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interpreter for Here {
    fn answer(&self, request: &str, lent: &Lent) -> Result<String, PeerFailure> {
        let ask = |py: Python<'_>| {
            let arrays = PyDict::new(py);
            for (role, tensor) in lent {
                arrays.set_item(role, Buffer { tensor: Arc::clone(tensor) }.into_pyobject(py)?)?;
            }
            self.session(py)?.call_method1("answer", (request, arrays))?.extract::<String>()
        };
        Python::attach(|py| {
            ask(py).map_err(|error| {
                let failure = PeerFailure(error.to_string());
                // The script answers exceptions; others are not its own.
                if !error.is_instance_of::<PyException>(py) {
                    self.ended().get_or_insert(error);
                }
                failure
            })
        })
    }

    fn interrupted(&self) -> bool {
        let mut ended = self.ended();
        if ended.is_none() {
            *ended = Python::attach(|py| py.check_signals()).err();
        }
        ended.is_some()
    }
}

/// The command-line tool: arguments after the program's name in, the exit code out.
#[pyfunction]
pub(crate) fn _main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    let words: Vec<OsString> = std::iter::once("einfall".into()).chain(arguments).collect();
    let here = Here::new();
    py.detach(|| einfall_cli::run_in(&Surroundings { words: &words, interpreter: Some(&here) }))
}

/// A row of the table: operation, case, k, and the cells below [`table::HEADER`].
type Line = (&'static str, &'static str, usize, [String; 8]);

/// What `einfall bench keys` with these arguments measures: as JSON, as text, as lines of a table, as pictures.
#[pyfunction]
pub(crate) fn _bench_keys(
    py: Python<'_>,
    arguments: Vec<OsString>,
) -> PyResult<(String, String, Vec<Line>, Vec<String>)> {
    measured(py, "keys", arguments, |surroundings| {
        let report = einfall_cli::bench_keys(surroundings)?;
        let mut text = Vec::new();
        table::write(&mut text, &report)?;
        let pictures = report.ops().into_iter().map(|op| chart::svg(&report, op)).collect();
        Ok((report.to_json(), String::from_utf8_lossy(&text).into_owned(), lines(&report), pictures))
    })
}

/// A row of a suite's table: the case, and the cells below [`table::HEADER`].
type SuiteLine = (String, [String; 8]);

/// The same of `einfall bench dense` or `einfall bench lookups`.
#[pyfunction]
pub(crate) fn _bench_suite(
    py: Python<'_>,
    suite: &str,
    arguments: Vec<OsString>,
) -> PyResult<(String, String, Vec<SuiteLine>, Vec<String>)> {
    measured(py, suite, arguments, |surroundings| {
        let report = einfall_cli::bench_suite(surroundings)?;
        let mut text = Vec::new();
        suite::write_text(&mut text, &report)?;
        let pictures = suite::picture(&report).into_iter().collect();
        Ok((report.to_json(), String::from_utf8_lossy(&text).into_owned(), suite::lines(&report), pictures))
    })
}

/// Runs a benchmark on this interpreter, whose user may end it.
fn measured<R: Send>(
    py: Python<'_>,
    experiment: &str,
    arguments: Vec<OsString>,
    run: impl FnOnce(&Surroundings<'_>) -> Result<R, Failure> + Send,
) -> PyResult<R> {
    let words = ["einfall", "bench", experiment].map(OsString::from);
    let words: Vec<OsString> = words.into_iter().chain(arguments).collect();
    let here = Here::new();
    let result = py.detach(|| run(&Surroundings { words: &words, interpreter: Some(&here) }));
    if let Some(error) = here.ended().take() {
        return Err(error);
    }
    result.map_err(|failure| match failure.code {
        BAD_INPUT => PyValueError::new_err(failure.message),
        _ => PyRuntimeError::new_err(failure.message),
    })
}

fn lines(report: &BenchReport) -> Vec<Line> {
    let problems = report.problems().into_iter();
    let lines = problems.flat_map(|(op, case, k)| {
        let rows = report.problem(op, case, k);
        let ours = rows.iter().find(|row| row.is_ours()).map(|row| row.min_s);
        rows.into_iter().map(move |row| (op.name(), case.name(), k, table::cells(row, ours))).collect::<Vec<_>>()
    });
    lines.collect()
}

/// Titles of the lines of [`_bench_keys`]; those of [`_bench_suite`] begin with the case.
pub(crate) fn header() -> Vec<&'static str> {
    ["operation", "case", "k"].into_iter().chain(table::HEADER).collect()
}
