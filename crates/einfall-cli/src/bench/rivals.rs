//! Peers in Python for one problem at a time: which take part, and their data: in files for a process, lent to the
//! interpreter that we run in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use einfall::{DType, Tensor};

use super::compare::SAMPLE;
use super::peers::{DataFolder, Interpreter, PeerFailure, PeerSetup, PeerTimes, Peers, Question, find_python};
use super::record::Run;
use crate::device::DeviceArg;
use crate::failure::Failure;
use crate::host;

/// Turns that each engine takes on a problem.
pub(super) const ROUNDS: u32 = 4;

/// Which Python, and where its peers run.
pub(super) struct Wanted<'a> {
    /// The one that was named.
    pub(super) python: Option<&'a Path>,
    /// The one that we are in.
    pub(super) interpreter: Option<&'a dyn Interpreter>,
    pub(super) device: DeviceArg,
}

/// Calls of an engine in a row: so many, or as long as the time lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) repeats: usize,
    pub(super) budget: Duration,
}

/// What a peer did on a problem.
pub(super) struct PeerRun {
    pub(super) name: String,
    pub(super) seconds: Vec<f64>,
    /// Its result and how long it compiled, as it told at first.
    pub(super) first: PeerTimes,
}

/// Python, and the folder that a process reads from.
pub(super) struct Rivals<'a> {
    peers: Peers<'a>,
    folder: Option<DataFolder>,
    files: BTreeMap<String, PathBuf>,
    device: DeviceArg,
    threads: usize,
}

impl<'a> Rivals<'a> {
    /// Starts Python, or asks the interpreter that we are in where no other is wanted; without one the notes say so,
    /// and there are no rivals. Of `unused` packages nobody needs to know that they are missing.
    pub(super) fn start(
        wanted: &Wanted<'a>,
        threads: usize,
        unused: &[&str],
        run: &mut Run,
        notes: &mut Vec<String>,
    ) -> Result<Option<Self>, Failure> {
        let Wanted { python, interpreter, device } = *wanted;
        let peers = match (python, interpreter) {
            (None, Some(interpreter)) => Peers::inside(interpreter, threads),
            _ => find_python(python)
                .ok_or_else(|| PeerFailure("there is no python3; hint: give one with `--python PATH`".to_owned()))
                .and_then(|python| Peers::start(&python, threads)),
        };
        let peers = match peers {
            Ok(peers) => peers,
            Err(failure) => {
                notes.push(format!("no peers: {failure}"));
                return Ok(None);
            }
        };
        let hello = peers.hello();
        run.peers = hello.packages.clone();
        run.peers.insert("python".to_owned(), hello.python.clone());
        let missing = hello.missing.iter().filter(|(name, _)| !unused.contains(&name.as_str()));
        notes.extend(missing.map(|(name, why)| format!("without {name}: {why}")));
        let folder = peers.reads_files().then(DataFolder::new).transpose().map_err(no_room)?;
        Ok(Some(Self { peers, folder, files: BTreeMap::new(), device, threads }))
    }

    /// How long one answer may take, compiling included.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.peers.set_timeout(timeout);
    }

    /// Lays out an array for a process to read; another of the same role goes away.
    pub(super) fn file(&mut self, role: &str, tensor: &Tensor) -> Result<(), Failure> {
        if let Some(folder) = &self.folder {
            let path = folder.write(role, tensor.as_bytes()).map_err(no_room)?;
            self.files.insert(role.to_owned(), path);
        }
        Ok(())
    }

    /// Whether peers hold arrays of their own.
    pub(super) fn copies(&self) -> bool {
        self.folder.is_some()
    }

    /// Gives Python a problem, its arrays in files or lent; returns the names of those that take it. Why others do not
    /// goes to `notes`, with what `about` says of a name.
    pub(super) fn offer(
        &mut self,
        question: Question,
        (dtype, table_dtype): (DType, DType),
        lent: Vec<(&'static str, Arc<Tensor>)>,
        about: &dyn Fn(&str) -> String,
        notes: &mut Vec<String>,
    ) -> Vec<String> {
        let setup = PeerSetup {
            question,
            dtype: dtype.name().to_owned(),
            table_dtype: table_dtype.name().to_owned(),
            files: self.files.clone(),
            lent: if self.copies() { Vec::new() } else { lent },
            device: self.device.to_string(),
            threads: self.threads,
            memory_limit: host::available_bytes().map_or(4 << 30, |bytes| bytes / 3),
            sample: SAMPLE,
        };
        match self.peers.setup(&setup) {
            Ok(offer) => {
                let missing = |why: &str| why.ends_with("is not installed");
                let skipped = offer.skipped.iter().filter(|(_, why)| !missing(why));
                notes.extend(skipped.map(|(name, why)| format!("{}: skipped, {why}", about(name))));
                offer.peers
            }
            Err(failure) => {
                notes.push(format!("{}: {failure}", about("peers")));
                Vec::new()
            }
        }
    }

    /// Times the peers of a problem, each in turn with our own calls, [`ROUNDS`] times. Who fails is out, and the notes say
    /// why.
    pub(super) fn turns(
        &mut self,
        names: &[String],
        turn: Turn,
        ours: &mut dyn FnMut() -> Result<(), Failure>,
        begins: &dyn Fn(&str) -> Result<(), Failure>,
        about: &dyn Fn(&str) -> String,
        notes: &mut Vec<String>,
    ) -> Result<Vec<PeerRun>, Failure> {
        let mut runs: Vec<PeerRun> = Vec::new();
        let mut out: Vec<&str> = Vec::new();
        for _ in 0..ROUNDS {
            ours()?;
            for name in names {
                // Slow ones have had their time when they have had that of all turns.
                let had = runs.iter().find(|run| run.name == *name).map_or(0.0, |run| run.seconds.iter().sum());
                if out.contains(&name.as_str()) || had >= (turn.budget * ROUNDS).as_secs_f64() {
                    continue;
                }
                begins(name)?;
                match self.peers.time(name, turn.repeats, turn.budget) {
                    Err(why) => {
                        notes.push(format!("{}: {why}", about(name)));
                        out.push(name);
                    }
                    Ok(times) => match runs.iter_mut().find(|run| run.name == *name) {
                        Some(run) => run.seconds.extend(times.seconds),
                        None => runs.push(PeerRun { name: name.clone(), seconds: times.seconds.clone(), first: times }),
                    },
                }
            }
        }
        Ok(runs)
    }
}

fn no_room(error: std::io::Error) -> Failure {
    Failure::internal(format!("cannot write the data for peers: {error}"))
}
