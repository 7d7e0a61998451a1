//! Ctrl-C: what a command has started and what it has on disk for a while go away with it.
//!
//! In: processes by [`spawn`], folders by [`Folder::new`]. Once [`watch`] was called, an interruption (and where the
//! system has them, the signals that end a program or close its terminal) kills the former, removes the latter and ends
//! the process with exit code [`INTERRUPTED`]. Without [`watch`] both only tidy up after themselves when dropped.
//!
//! ```
//! use einfall_cli::interrupt::Folder;
//!
//! let folder = Folder::new("einfall-example-")?;
//! let path = folder.path().to_owned();
//! assert!(path.is_dir());
//! drop(folder);
//! assert!(!path.exists());
//! # Ok::<(), std::io::Error>(())
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// Exit code of an interrupted command: 128 and the number of the signal, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// What goes away. Who deals with an interruption keeps it locked until the process has ended, so that nothing is
/// started or made meanwhile.
static KEPT: Mutex<Kept> = Mutex::new(Kept { children: Vec::new(), folders: Vec::new() });

struct Kept {
    children: Vec<Weak<Mutex<Child>>>,
    folders: Vec<PathBuf>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Deals with interruptions from now on.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Where there can be no handler, an interruption ends the process as the system does it.
        let _ = ctrlc::set_handler(stop);
    });
}

/// Does not return while an interruption is being dealt with: the process is about to end.
pub fn settle() {
    drop(lock(&KEPT));
}

fn stop() {
    let kept = lock(&KEPT);
    for child in kept.children.iter().filter_map(Weak::upgrade) {
        let mut child = lock(&child);
        // It may have ended by itself: then there is nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    }
    for folder in &kept.folders {
        // A file that is just being written may appear behind the one who removes: then once more.
        for _ in 0..50 {
            if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    let _ = writeln!(io::stderr(), "\nerror: interrupted");
    std::process::exit(INTERRUPTED.into());
}

/// Starts a process that an interruption kills.
///
/// # Errors
/// What the system says, such as that there is no such program.
pub fn spawn(command: &mut Command) -> io::Result<Arc<Mutex<Child>>> {
    let mut kept = lock(&KEPT);
    let child = Arc::new(Mutex::new(command.spawn()?));
    kept.children.retain(|child| child.strong_count() > 0);
    kept.children.push(Arc::downgrade(&child));
    Ok(child)
}

/// A folder in the system's place for temporary files, removed when dropped and by an interruption.
#[derive(Debug)]
pub struct Folder(Option<TempDir>, PathBuf);

impl Folder {
    /// Makes an empty folder whose name starts with `prefix`.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(prefix: &str) -> io::Result<Self> {
        let mut kept = lock(&KEPT);
        let folder = tempfile::Builder::new().prefix(prefix).tempdir()?;
        let path = folder.path().to_owned();
        kept.folders.push(path.clone());
        Ok(Self(Some(folder), path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.1
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Removed before it is forgotten: an interruption between the two finds nothing left, which is no harm.
        drop(self.0.take());
        lock(&KEPT).folders.retain(|folder| *folder != self.1);
    }
}
