//! Peers in a Python process for one problem at a time: which take part, and their data in files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use einfall::Tensor;

use super::data::{Lists, Rows};
use super::oracle::SAMPLE;
use crate::bench::peers::{DataFolder, PeerSetup, PeerTimes, Peers, find_python};
use crate::bench::record::{BenchReport, Case, Op};
use crate::failure::Failure;
use crate::host;

/// The process and the folder that it reads from.
pub(super) struct Rivals {
    peers: Peers,
    folder: DataFolder,
    files: BTreeMap<String, PathBuf>,
    threads: usize,
}

impl Rivals {
    /// Starts Python; without one the report says so, and there are no rivals.
    pub(super) fn start(
        python: Option<&std::path::Path>,
        threads: usize,
        rows: &Rows,
        report: &mut BenchReport,
    ) -> Result<Option<Self>, Failure> {
        let Some(python) = find_python(python) else {
            report.notes.push("no peers: there is no python3\nhint: give one with `--python PATH`".replace('\n', "; "));
            return Ok(None);
        };
        let peers = match Peers::start(&python, threads) {
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
        let folder = DataFolder::new().map_err(no_room)?;
        let mut rivals = Self { peers, folder, files: BTreeMap::new(), threads };
        for (role, tensor) in [("query", &rows.query), ("keys", &rows.keys), ("values", &rows.values)] {
            rivals.file(role, tensor)?;
        }
        Ok(Some(rivals))
    }

    fn file(&mut self, role: &str, tensor: &Tensor) -> Result<(), Failure> {
        let path = self.folder.write(role, tensor.as_bytes()).map_err(no_room)?;
        self.files.insert(role.to_owned(), path);
        Ok(())
    }

    /// Lays out what depends on k.
    pub(super) fn lists(&mut self, lists: &Lists) -> Result<(), Failure> {
        self.file("table", &lists.table)?;
        self.file("weights", &lists.weights)
    }

    /// Gives the process a problem; returns the names of those that take it. Why others do not goes to `notes`.
    pub(super) fn offer(
        &mut self,
        op: Op,
        case: Case,
        lists: &Lists,
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
