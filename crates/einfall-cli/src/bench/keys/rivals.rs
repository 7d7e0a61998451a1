//! Peers in Python for one problem at a time: which take part, and their data: in files for a process, lent to the
//! interpreter that we run in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use einfall::Tensor;

use super::data::{Lists, Looked, Rows};
use super::oracle::SAMPLE;
use crate::bench::peers::{DataFolder, Interpreter, PeerFailure, PeerSetup, PeerTimes, Peers, find_python};
use crate::bench::record::{BenchReport, Case, Op};
use crate::device::DeviceArg;
use crate::failure::Failure;
use crate::host;

/// Python, and the folder that a process reads from.
pub(super) struct Rivals<'a> {
    peers: Peers<'a>,
    folder: Option<DataFolder>,
    files: BTreeMap<String, PathBuf>,
    device: DeviceArg,
    threads: usize,
}

impl<'a> Rivals<'a> {
    /// Starts Python, or asks the interpreter that we are in where no other is wanted; without one the report says so,
    /// and there are no rivals.
    pub(super) fn start(
        python: Option<&Path>,
        interpreter: Option<&'a dyn Interpreter>,
        device: DeviceArg,
        threads: usize,
        rows: &Rows,
        report: &mut BenchReport,
    ) -> Result<Option<Self>, Failure> {
        let peers = match (python, interpreter) {
            (None, Some(interpreter)) => Peers::inside(interpreter, threads),
            _ => find_python(python)
                .ok_or_else(|| PeerFailure("there is no python3; hint: give one with `--python PATH`".to_owned()))
                .and_then(|python| Peers::start(&python, threads)),
        };
        let peers = match peers {
            Ok(peers) => peers,
            Err(failure) => {
                report.notes.push(format!("no peers: {failure}"));
                return Ok(None);
            }
        };
        let hello = peers.hello();
        report.settings.peers = hello.packages.clone();
        report.settings.peers.insert("python".to_owned(), hello.python.clone());
        report.notes.extend(
            hello.missing.iter().filter(|(name, _)| *name != "jax").map(|(name, why)| format!("without {name}: {why}")),
        );
        let folder = peers.reads_files().then(DataFolder::new).transpose().map_err(no_room)?;
        let mut rivals = Self { peers, folder, files: BTreeMap::new(), device, threads };
        for (role, tensor) in [("query", &rows.query), ("keys", &rows.keys), ("values", &rows.values)] {
            rivals.file(role, tensor)?;
        }
        Ok(Some(rivals))
    }

    fn file(&mut self, role: &str, tensor: &Tensor) -> Result<(), Failure> {
        if let Some(folder) = &self.folder {
            let path = folder.write(role, tensor.as_bytes()).map_err(no_room)?;
            self.files.insert(role.to_owned(), path);
        }
        Ok(())
    }

    /// Lays out what depends on k.
    pub(super) fn lists(&mut self, lists: &Lists) -> Result<(), Failure> {
        self.file("table", &lists.table)?;
        self.file("weights", &lists.weights)
    }

    /// Whether peers hold arrays of their own.
    pub(super) fn copies(&self) -> bool {
        self.folder.is_some()
    }

    /// Gives Python a problem; returns the names of those that take it. Why others do not goes to `notes`.
    pub(super) fn offer(
        &mut self,
        op: Op,
        case: Case,
        lists: &Lists,
        looked: &Looked<'_>,
        table_dtype: &str,
        notes: &mut Vec<String>,
    ) -> Vec<String> {
        let about = |name: &str| format!("{name}, {op} {case}, k={}", lists.sizes.k);
        if case == Case::Window {
            return Vec::new();
        }
        let setup = PeerSetup {
            op,
            case,
            sizes: lists.sizes,
            dtype: lists.weights.dtype().name().to_owned(),
            table_dtype: table_dtype.to_owned(),
            files: self.files.clone(),
            lent: if self.copies() { Vec::new() } else { looked.lent(op) },
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

    pub(super) fn time(&mut self, name: &str, repeats: usize, budget: Duration) -> Result<PeerTimes, String> {
        self.peers.time(name, repeats, budget).map_err(|failure| failure.to_string())
    }
}

fn no_room(error: std::io::Error) -> Failure {
    Failure::internal(format!("cannot write the data for peers: {error}"))
}
