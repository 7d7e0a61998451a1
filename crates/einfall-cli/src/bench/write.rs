//! The files of a run, each of which appears whole or not at all.
//!
//! In: a folder, and names with what they shall hold. Out: files, and a line about them.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::Failure;

/// The folder that files go to.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes the folder if need be, and sees that it can be written, before hours are spent.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| refused(path, &error);
        fs::create_dir_all(path).map_err(failed)?;
        tempfile::tempfile_in(path).map_err(failed)?;
        Ok(Self(path.to_owned()))
    }

    /// Refuses to take the place of files, unless `force`.
    pub(super) fn refuse_to_replace(&self, names: &[&str], force: bool) -> Result<(), Failure> {
        match names.iter().map(|name| self.0.join(name)).find(|path| !force && path.exists()) {
            Some(there) => {
                let there = there.display();
                Err(Failure::bad_input(format!("`{there}` is there already\nhint: `--force` replaces it")))
            }
            None => Ok(()),
        }
    }

    /// Writes files, and gives a line about them.
    pub(super) fn write(&self, files: &[(String, String)]) -> Result<String, Failure> {
        files.iter().try_for_each(|(name, text)| self.replace(name, text))?;
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        Ok(format!("Written to {}: {}", self.0.display(), names.join(", ")))
    }

    fn replace(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.0.join(name);
        let failed = |error| refused(&path, &error);
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            // Others may read results; the user's mask still applies.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut file = builder.tempfile_in(&self.0).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    Failure::bad_input(format!("cannot write `{}`: {error}", path.display()))
}

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A command line for a shell, the program by its name alone. Names of files that are no Unicode are not kept whole.
pub(super) fn command(words: impl Iterator<Item = OsString>) -> String {
    let plain =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=,./:+".contains(c));
    let quoted = |word: OsString| {
        let word = word.to_string_lossy().into_owned();
        if plain(&word) { word } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    std::iter::once("einfall".to_owned()).chain(words.skip(1).map(quoted)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        let words = ["/usr/bin/einfall", "bench", "keys", "--out", "my results", "-s", "b=8"].map(OsString::from);
        assert_eq!(command(words.into_iter()), "einfall bench keys --out 'my results' -s b=8");
    }
}
