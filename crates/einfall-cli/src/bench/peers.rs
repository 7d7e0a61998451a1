//! Peers in Python, timed between our own runs.
//!
//! In: a program to start or an [`Interpreter`] that is there already, a problem and its data: as raw little-endian files
//! for the one, as arrays for the other. Out: seconds a call, and a sample of the result to compare with. A peer that is
//! missing, too large or wrong is a [`PeerFailure`], which is a sentence for the report's notes; it never ends a run. In
//! a process of its own neither does one that crashes or hangs.
//!
//! Either is asked by the same JSON objects and answers with one each; the process reads and writes one a line:
//!
//! | request | reply |
//! |---|---|
//! | `{"cmd": "hello", "threads": …}` | `{"ok": true, "python": …, "packages": {name: version}, "missing": {name: reason}}` |
//! | `{"cmd": "setup"}` and [`PeerSetup`] | `{"ok": true, "peers": [name], "skipped": {name: reason}}` |
//! | `{"cmd": "time", "peer": …, "repeats": …, "budget_s": …}` | `{"ok": true}` and [`PeerTimes`] |
//! | `{"cmd": "quit"}` | `{"ok": true}` |
//!
//! A reply `{"ok": false, "error": …}` says why not. Any package may be absent. The end of its input ends the process at
//! once, even while it computes: then nobody waits for the answer any more.
//!
//! ```no_run
//! use einfall_cli::bench::peers::{Peers, find_python};
//!
//! let python = find_python(None).ok_or("no python")?;
//! let mut peers = Peers::start(&python, 2)?;
//! for (package, version) in &peers.hello().packages {
//!     eprintln!("{package} {version}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use einfall::Tensor;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::record::{Case, Op, Sizes};
use crate::interrupt::{self, Folder};

/// What answers, in Python: a program, and a module whose `Session` an [`Interpreter`] may ask.
pub const SCRIPT: &str = concat!(
    include_str!("peers/common.py"),
    include_str!("peers/keys.py"),
    include_str!("peers/suite.py"),
    include_str!("peers/session.py"),
);

/// Importing torch for the first time reads gigabytes.
const HELLO_TIMEOUT: Duration = Duration::from_secs(180);
const SETUP_TIMEOUT: Duration = Duration::from_secs(120);
/// Worker threads of OpenMP and OpenBLAS spin for some milliseconds after their last work, on cores that we then time on.
const SETTLE: Duration = Duration::from_millis(30);
/// Lines of the child's standard error that are kept to explain a crash.
const KEPT_LINES: usize = 40;

/// Why a peer has no time: one sentence for the notes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PeerFailure(pub String);

/// Arrays by role, shared with whoever reads them.
pub type Lent = [(&'static str, Arc<Tensor>)];

/// A Python that einfall runs in, so that no second one has to be started.
pub trait Interpreter {
    /// The reply to a request, both as JSON: what `Session.answer` of [`SCRIPT`] gives. Arrays come with a setup.
    ///
    /// # Errors
    /// Whatever kept the script from answering at all.
    fn answer(&self, request: &str, lent: &Lent) -> Result<String, PeerFailure>;

    /// Whether the user wants the run to end.
    fn interrupted(&self) -> bool {
        false
    }
}

/// The interpreter to use: the one given, else that of `$VIRTUAL_ENV`, else the first `python3` in `$PATH`.
#[must_use]
pub fn find_python(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = given {
        return Some(path.to_owned());
    }
    let inside = if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" };
    let environment = std::env::var_os("VIRTUAL_ENV").map(|folder| Path::new(&folder).join(inside));
    if let Some(path) = environment.filter(|path| path.is_file()) {
        return Some(path);
    }
    let names: &[&str] = if cfg!(windows) { &["python.exe"] } else { &["python3", "python"] };
    let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|path| path.is_file())
}

/// What the process found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Hello {
    /// Version of the interpreter.
    pub python: String,
    /// Versions of the packages that can be imported.
    pub packages: BTreeMap<String, String>,
    /// Why the others cannot.
    pub missing: BTreeMap<String, String>,
}

/// What peers are asked to compute.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Question {
    /// A problem of `einfall bench keys`.
    ///
    /// Arrays by role: `query` `(b, h, q, d)` or, for values, `weights` `(b, h, q, k)`; `keys` and `values` `(b, h, n, d)`
    /// as far as the operation needs them; `table` `(b, h, q, k)` for stored and looked-up keys. Stored keys are the rows
    /// that the table selects; shared and expanded ones are the first k rows. Lent ones lie as the case has them: keys and
    /// values are `(b, h, q, k, d)` for stored and `(b, h, k, d)` for shared and expanded ones.
    Keys {
        /// What is computed.
        op: Op,
        /// How the keys are given.
        case: Case,
        /// The lengths.
        sizes: Sizes,
    },
    /// A problem of a suite.
    Suite {
        /// `dense`, `scores`, `values`, `attention`, `spmm` or `moe`.
        kind: &'static str,
        /// The equation; for lookups a table has labels of its own, in `table`.
        equation: String,
        /// Lengths of labels and whatever else the problem has by name.
        sizes: BTreeMap<String, usize>,
        /// Role, shape and element type of each argument.
        arguments: Vec<(String, Vec<usize>, String)>,
        /// The labels of the table, or `window`.
        scope: String,
        /// Gradients are computed too.
        backward: bool,
        /// Whether peers that compile take part.
        compile: bool,
    },
}

/// A problem and where its data lies: in files for a process, in memory for an [`Interpreter`].
#[derive(Clone, Debug, Serialize)]
pub struct PeerSetup {
    /// The problem.
    #[serde(flatten)]
    pub question: Question,
    /// `f16`, `bf16`, `f32` or `f64`.
    pub dtype: String,
    /// `i32` or `i64`.
    pub table_dtype: String,
    /// Raw row-major little-endian files by role.
    pub files: BTreeMap<String, PathBuf>,
    /// Arrays by role, for an [`Interpreter`].
    #[serde(skip)]
    pub lent: Vec<(&'static str, Arc<Tensor>)>,
    /// Where peers run: `cpu`, or `cuda:0` with arrays that are copied there once and calls replayed as CUDA graphs.
    pub device: String,
    /// Threads a peer may use.
    pub threads: usize,
    /// Bytes that a peer may take by estimate; one that needs more is skipped. On a GPU half of what is free there.
    pub memory_limit: u64,
    /// Number of elements of the result to send back.
    pub sample: usize,
}

/// Which peers can work on a problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Offer {
    /// Names to pass to [`Peers::time`].
    pub peers: Vec<String>,
    /// Peers that this problem has, but not here, with the reason.
    pub skipped: BTreeMap<String, String>,
}

/// Times of one peer, and what it computed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PeerTimes {
    /// Seconds of each call, in order; fewer than asked for if the budget ran out. On a GPU, of a call in each replay.
    pub seconds: Vec<f64>,
    /// Seconds spent compiling, if it compiles; in none of `seconds`.
    pub compile_s: Option<f64>,
    /// Shape of the result.
    pub shape: Vec<usize>,
    /// Sum of the result in f64; NaN if it is not finite.
    #[serde(deserialize_with = "maybe")]
    pub sum: f64,
    /// Sum of the absolute values.
    #[serde(deserialize_with = "maybe")]
    pub abs_sum: f64,
    /// Row-major positions in the result.
    pub positions: Vec<usize>,
    /// The elements there; NaN for what is not finite.
    #[serde(deserialize_with = "maybes")]
    pub sample: Vec<f64>,
}

/// JSON has no NaN: it travels as null.
fn maybe<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn maybes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Option<f64>>::deserialize(from)?;
    Ok(values.into_iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

impl PeerTimes {
    /// Largest difference of the sample from `ours`, a function of the row-major position; NaN if either side is not
    /// finite.
    pub fn max_error(&self, ours: impl Fn(usize) -> f64) -> f64 {
        let differences = self.positions.iter().zip(&self.sample).map(|(&at, theirs)| (ours(at) - theirs).abs());
        differences.fold(0.0, |worst: f64, one| if one > worst || one.is_nan() { one } else { worst })
    }
}

/// A folder for the data of a setup, removed when dropped or interrupted.
#[derive(Debug)]
pub struct DataFolder(Folder);

impl DataFolder {
    /// Makes an empty folder in the system's place for temporary files.
    ///
    /// # Errors
    /// What the system says.
    pub fn new() -> io::Result<Self> {
        Folder::new("einfall-bench-").map(Self)
    }

    /// Writes one file and returns where.
    ///
    /// # Errors
    /// What the system says, such as that the disk is full.
    pub fn write(&self, role: &str, bytes: &[u8]) -> io::Result<PathBuf> {
        let path = self.0.path().join(role);
        fs::write(&path, bytes)?;
        Ok(path)
    }
}

/// Who answers.
enum Python<'a> {
    /// A process, started again after a crash.
    Process { program: PathBuf, running: Option<Running> },
    /// The one that we are in.
    Here(&'a dyn Interpreter),
}

/// Python with its peers.
pub struct Peers<'a> {
    python: Python<'a>,
    threads: usize,
    timeout: Duration,
    hello: Hello,
    setup: Option<PeerSetup>,
}

impl<'a> Peers<'a> {
    /// Starts the interpreter and asks what it has.
    ///
    /// # Errors
    /// There is no such program, or it is no Python that can run the script.
    pub fn start(python: &Path, threads: usize) -> Result<Self, PeerFailure> {
        let mut peers = Self::new(Python::Process { program: python.to_owned(), running: None }, threads);
        peers.launch()?;
        Ok(peers)
    }

    /// Asks an interpreter that is there already what it has.
    ///
    /// # Errors
    /// It does not answer.
    pub fn inside(interpreter: &'a dyn Interpreter, threads: usize) -> Result<Self, PeerFailure> {
        let mut peers = Self::new(Python::Here(interpreter), threads);
        peers.launch()?;
        Ok(peers)
    }

    fn new(python: Python<'a>, threads: usize) -> Self {
        let (timeout, hello) = (Duration::from_secs(120), Hello::default());
        Self { python, threads, timeout, hello, setup: None }
    }

    /// Sets how long a call of [`Peers::time`] may take, compiling included; 120 s unless set.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Which packages there are.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Whether data is handed over in files, not lent.
    #[must_use]
    pub fn reads_files(&self) -> bool {
        matches!(self.python, Python::Process { .. })
    }

    fn launch(&mut self) -> Result<(), PeerFailure> {
        if let Python::Process { program, running } = &mut self.python {
            *running = Some(Running::spawn(program)?);
        }
        let request = serde_json::json!({"cmd": "hello", "threads": self.threads});
        self.hello = self.ask(&request, &[], HELLO_TIMEOUT)?;
        Ok(())
    }

    fn is_down(&self) -> bool {
        matches!(self.python, Python::Process { running: None, .. })
    }

    /// Gives Python a problem. Its files must stay until the next setup.
    ///
    /// # Errors
    /// The process died, or cannot work with such data at all.
    pub fn setup(&mut self, setup: &PeerSetup) -> Result<Offer, PeerFailure> {
        if setup.threads != self.threads {
            // Libraries read the number of threads once, when they are loaded.
            self.threads = setup.threads;
            if let Python::Process { running, .. } = &mut self.python {
                *running = None;
            }
        }
        self.setup = Some(setup.clone());
        self.send_setup()
    }

    fn send_setup(&mut self) -> Result<Offer, PeerFailure> {
        let Some(setup) = self.setup.clone() else {
            return Err(PeerFailure("nothing was set up".to_owned()));
        };
        let mut request = serde_json::to_value(&setup).map_err(|error| PeerFailure(error.to_string()))?;
        request["cmd"] = "setup".into();
        if self.is_down() {
            self.launch()?;
        }
        self.ask(&request, &setup.lent, SETUP_TIMEOUT)
    }

    /// Times a peer on the current problem: warm-ups, then up to `repeats` calls, fewer once `budget` is spent.
    ///
    /// Call it in turn with our own runs, a few repeats each, so that a change of the machine's speed meets both. After a
    /// crash the process is fresh again for the next peer; there is no use in asking for the same one again.
    ///
    /// # Errors
    /// The peer raised, crashed, took longer than the timeout, or is not offered for this problem.
    pub fn time(&mut self, peer: &str, repeats: usize, budget: Duration) -> Result<PeerTimes, PeerFailure> {
        if self.is_down() {
            self.send_setup()?;
        }
        let request = serde_json::json!({
            "cmd": "time", "peer": peer, "repeats": repeats.max(1), "budget_s": budget.as_secs_f64(),
        });
        let times = self.ask(&request, &[], self.timeout);
        thread::sleep(SETTLE);
        times
    }

    fn ask<T: DeserializeOwned>(
        &mut self,
        request: &serde_json::Value,
        lent: &Lent,
        limit: Duration,
    ) -> Result<T, PeerFailure> {
        match &mut self.python {
            Python::Here(interpreter) => read_reply(&interpreter.answer(&request.to_string(), lent)?),
            Python::Process { running, .. } => {
                let Some(process) = running else {
                    return Err(PeerFailure("the process is not running".to_owned()));
                };
                let reply = process.ask(request, limit).and_then(|line| read_reply(&line));
                if process.gone {
                    *running = None;
                }
                reply
            }
        }
    }
}

impl Drop for Peers<'_> {
    fn drop(&mut self) {
        if let Python::Here(interpreter) = self.python {
            // It lives on: without our arrays, and with its settings as they were.
            let _ = interpreter.answer(r#"{"cmd": "quit"}"#, &[]);
        }
    }
}

fn read_reply<T: DeserializeOwned>(text: &str) -> Result<T, PeerFailure> {
    let reply: serde_json::Value =
        serde_json::from_str(text).map_err(|error| PeerFailure(format!("its answer is no JSON: {error}")))?;
    if reply["ok"] != true {
        let reason = reply["error"].as_str().unwrap_or("it gave no reason").to_owned();
        return Err(PeerFailure(reason));
    }
    serde_json::from_value(reply).map_err(|error| PeerFailure(format!("its answer lacks something: {error}")))
}

/// A process and its pipes; killed when dropped or interrupted.
#[derive(Debug)]
struct Running {
    child: Arc<Mutex<Child>>,
    requests: ChildStdin,
    replies: Receiver<String>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    listener: thread::JoinHandle<()>,
    gone: bool,
    _script: Folder,
}

impl Running {
    fn spawn(python: &Path) -> Result<Self, PeerFailure> {
        let failed = |error: io::Error| PeerFailure(format!("`{}` does not start: {error}", python.display()));
        let folder = Folder::new("einfall-peers-").map_err(failed)?;
        let script = folder.path().join("peers.py");
        fs::write(&script, SCRIPT).map_err(failed)?;
        let mut command = Command::new(python);
        command.arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = interrupt::spawn(&mut command).map_err(failed)?;
        let pipes = |child: &mut Child| (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(requests), Some(stdout), Some(stderr)) = pipes(&mut locked(&child)) else {
            return Err(failed(io::Error::other("its pipes are not open")));
        };
        let (sender, replies) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&last_words);
        let listener = thread::spawn(move || keep_last_lines(stderr, &kept));
        Ok(Self { child, requests, replies, last_words, listener, gone: false, _script: folder })
    }

    /// Asks, and gives the line that comes back.
    fn ask(&mut self, request: &serde_json::Value, limit: Duration) -> Result<String, PeerFailure> {
        let sent = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        let line = match sent {
            Ok(()) => self.replies.recv_timeout(limit),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        match line {
            Ok(line) if serde_json::from_str::<serde_json::Value>(&line).is_ok() => Ok(line),
            Ok(line) => {
                // What writes something else cannot be talked to; the reason is in the line.
                self.end();
                Ok(line)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.end();
                Err(PeerFailure(format!("no answer within {:.0} s", limit.as_secs_f64())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.crashed()),
        }
    }

    /// Why the process ended, from its exit status and the end of its standard error.
    fn crashed(&mut self) -> PeerFailure {
        let deadline = Instant::now() + Duration::from_secs(2);
        let status = loop {
            match locked(&self.child).try_wait() {
                Ok(Some(status)) => break status.to_string(),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                _ => break "no exit status".to_owned(),
            }
        };
        self.end();
        // Its standard error is closed now, unless it left children behind; what it said last is worth a moment.
        let deadline = Instant::now() + Duration::from_secs(2);
        while !self.listener.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let words = locked(&self.last_words);
        let last = words.iter().rev().find(|line| !line.trim().is_empty());
        PeerFailure(last.map_or_else(
            || format!("the process ended ({status})"),
            |line| format!("the process ended ({status}): {}", line.trim()),
        ))
    }

    fn end(&mut self) {
        self.gone = true;
        // It may have ended by itself: then there is nothing to kill, and waiting returns at once.
        let mut child = locked(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        let _ = writeln!(self.requests, "{{\"cmd\": \"quit\"}}").and_then(|()| self.requests.flush());
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            if !matches!(locked(&self.child).try_wait(), Ok(None)) {
                self.gone = true;
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.end();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep_last_lines(from: impl Read, kept: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let mut kept = locked(kept);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
