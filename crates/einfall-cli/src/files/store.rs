//! Where bytes live and how they get to disk: maps, aligned buffers, files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use super::FileError;

/// No element needs more than this; vector loads like it too.
const ALIGN: usize = 64;

/// The owner of an array's bytes.
#[derive(Debug)]
pub(super) enum Storage {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Storage {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Maps a whole file for reading.
#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> Result<Storage, FileError> {
    let io = |action| move |source| FileError::Io { action, path: path.to_owned(), source };
    // Asked before it is opened: opening a pipe waits for somebody to write into it.
    if !fs::metadata(path).map_err(io("open"))?.is_file() {
        return Err(FileError::Unsupported { path: path.to_owned(), what: "it is not a regular file".to_owned() });
    }
    let file = File::open(path).map_err(io("open"))?;
    if file.metadata().map_err(io("open"))?.len() == 0 {
        // An empty file has no pages to map.
        return Ok(Storage::Owned(Vec::new()));
    }
    // SAFETY: the map is read-only and private to this process. That nobody changes the file while it is mapped cannot
    // be enforced; our own writer never changes a file in place (`replace`), and every bit pattern of the dtypes that
    // are handed out is valid, `bool` being checked when it is read.
    unsafe { Mmap::map(&file) }.map(Storage::Mapped).map_err(io("map"))
}

/// A zeroed buffer with room for `len` bytes at the returned range, which starts at a multiple of 64.
pub(super) fn aligned(path: &Path, len: usize) -> Result<(Vec<u8>, Range<usize>), FileError> {
    let whole = len.saturating_add(ALIGN);
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(whole).map_err(|_| FileError::Unsupported {
        path: path.to_owned(),
        what: format!("{len} bytes do not fit into memory"),
    })?;
    buffer.resize(whole, 0);
    let start = buffer.as_ptr().addr().next_multiple_of(ALIGN) - buffer.as_ptr().addr();
    Ok((buffer, start..start + len))
}

/// Lets `fill` write a file that takes the name `path` only once it is complete.
pub(super) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let io = |source| FileError::Io { action: "write", path: path.to_owned(), source };
    let finish = |file: &File| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        out.flush().map_err(io)
    };
    if fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir()) {
        // A pipe or a device cannot be replaced by a file of that name.
        return finish(&File::create(path).map_err(io)?);
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".einfall-").suffix(".tmp");
    #[cfg(unix)]
    {
        // The default would leave a file that only its owner can read; the user's mask still applies to this.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(folder).map_err(io)?;
    finish(temporary.as_file())?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}
