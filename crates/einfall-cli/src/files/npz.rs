//! The `.npz` format: a zip archive of `.npy` files, stored or deflated.
//!
//! Stored members (`numpy.savez`) are used in place; their checksum is then not verified, since that would read every
//! byte. Deflated members (`numpy.savez_compressed`) are unpacked into memory and verified.

use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::sync::Arc;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::npy::{self, MAX_HEADER};
use super::store::{self, Storage};
use super::{ArrayRef, Described, FileError, StoredArray, finish};

/// Deflate cannot shrink more than about 1032 to 1: what claims more is no honest archive.
const MAX_RATIO: u64 = 1100;

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

fn malformed(path: &Path, what: impl ToString) -> FileError {
    FileError::Malformed { path: path.to_owned(), what: what.to_string() }
}

fn open<'a>(path: &Path, storage: &'a Storage) -> Result<(Archive<'a>, Vec<(String, usize)>), FileError> {
    let archive = ZipArchive::new(Cursor::new(storage.bytes())).map_err(|error| malformed(path, error))?;
    let mut arrays = Vec::new();
    for (index, name) in archive.file_names().enumerate() {
        let name = name.map_err(|error| malformed(path, error))?;
        if let Some(name) = name.strip_suffix(".npy") {
            arrays.push((name.to_owned(), index));
        }
    }
    arrays.sort();
    Ok((archive, arrays))
}

/// The names of the arrays, sorted, without `.npy`.
pub(super) fn names(path: &Path, storage: &Storage) -> Result<Vec<String>, FileError> {
    Ok(open(path, storage)?.1.into_iter().map(|(name, _)| name).collect())
}

/// Reads one member; without a name the only one.
pub(super) fn read(path: &Path, storage: &Arc<Storage>, name: Option<&str>) -> Result<StoredArray, FileError> {
    let (mut archive, arrays) = open(path, storage)?;
    let index = match (name, arrays.as_slice()) {
        (None, [(_, index)]) => *index,
        (Some(name), _) if arrays.iter().any(|(other, _)| other == name) => {
            arrays.iter().find(|(other, _)| other == name).map_or(0, |(_, index)| *index)
        }
        _ => {
            let what =
                name.map_or_else(|| "there is not exactly one array".into(), |name| format!("no array `{name}`"));
            let available = arrays.into_iter().map(|(name, _)| name).collect();
            return Err(FileError::Name { path: path.to_owned(), what, available });
        }
    };
    let mut member = archive.by_index(index).map_err(|error| malformed(path, error))?;
    if member.compression() == CompressionMethod::Stored {
        let outside = || malformed(path, "a member lies outside of the archive");
        let start = member.data_start().and_then(|start| usize::try_from(start).ok()).ok_or_else(outside)?;
        let len = usize::try_from(member.size()).map_err(|_| outside())?;
        let end = start.checked_add(len).filter(|&end| end <= storage.bytes().len()).ok_or_else(outside)?;
        return npy::read(path, storage, start..end);
    }
    if member.size() / MAX_RATIO > member.compressed_size() {
        return Err(malformed(path, "a member claims to unpack to more than deflate can hold"));
    }

    // The header first: it says how much memory the elements need, before any is taken.
    let mut head = Vec::new();
    let unreadable = |error: std::io::Error| malformed(path, format!("a member does not unpack: {error}"));
    member.by_ref().take(MAX_HEADER as u64 + 12).read_to_end(&mut head).map_err(unreadable)?;
    let header = npy::parse(&head).map_err(|refused| refused.at(path))?;
    let declared = member.size();
    if (header.data_at as u64).checked_add(header.data_len as u64) != Some(declared) {
        let what = format!("shape {:?} needs {} bytes, the member has {declared}", header.shape, header.data_len);
        return Err(malformed(path, what));
    }
    let (mut buffer, range) = store::aligned(path, header.data_len)?;
    let target = &mut buffer[range.clone()];
    let early = &head[header.data_at..];
    let early = &early[..early.len().min(target.len())];
    target[..early.len()].copy_from_slice(early);
    member.read_exact(&mut target[early.len()..]).map_err(unreadable)?;
    // Reading past the last byte is what makes the library compare the checksum.
    if member.read(&mut [0]).map_err(unreadable)? != 0 {
        return Err(malformed(path, "a member is longer than it says"));
    }
    let found = Described {
        dtype: header.dtype,
        shape: header.shape,
        fortran: header.fortran,
        big_endian: header.big_endian,
        range,
    };
    finish(path, &Arc::new(Storage::Owned(buffer)), found)
}

/// Writes the arrays uncompressed, as `numpy.savez` does.
pub(super) fn write(path: &Path, arrays: &[(&str, ArrayRef<'_>)]) -> Result<(), FileError> {
    let io = |source| FileError::Io { action: "write", path: path.to_owned(), source };
    store::replace(path, |out| {
        let mut archive = ZipWriter::new_stream(out);
        for (name, array) in arrays {
            let header = npy::header(array).map_err(|refused| refused.at(path))?;
            let large = array.bytes.len() >= usize::try_from(u32::MAX / 2).unwrap_or(usize::MAX);
            let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(large);
            archive.start_file(format!("{name}.npy"), options).map_err(|error| io(error.into()))?;
            archive.write_all(&header).map_err(io)?;
            archive.write_all(array.bytes).map_err(io)?;
        }
        archive.finish().map_err(|error| io(error.into()))?;
        Ok(())
    })
}
