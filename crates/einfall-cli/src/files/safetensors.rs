//! The `.safetensors` format: eight bytes of length, a JSON header, the tensors row-major and little-endian.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::store::{self, Storage};
use super::{ArrayRef, Described, FileError, StoredArray, finish};

/// The limit of the format's own library.
const MAX_HEADER: usize = 100_000_000;

/// What the header calls its free text.
const METADATA: &str = "__metadata__";

const DTYPES: [(&str, Dtype); 14] = [
    ("bool", Dtype::BOOL),
    ("i8", Dtype::I8),
    ("i16", Dtype::I16),
    ("i32", Dtype::I32),
    ("i64", Dtype::I64),
    ("u8", Dtype::U8),
    ("u16", Dtype::U16),
    ("u32", Dtype::U32),
    ("u64", Dtype::U64),
    ("f16", Dtype::F16),
    ("bf16", Dtype::BF16),
    ("f32", Dtype::F32),
    ("f64", Dtype::F64),
    ("c64", Dtype::C64),
];

fn malformed(path: &Path, what: impl ToString) -> FileError {
    FileError::Malformed { path: path.to_owned(), what: what.to_string() }
}

/// The header, and where the data starts. Lengths are added checked, which the library does not do for the last sum.
fn open(path: &Path, bytes: &[u8]) -> Result<(Metadata, usize), FileError> {
    let truncated = || malformed(path, "the header is truncated");
    let (len, rest) = bytes.split_first_chunk().ok_or_else(truncated)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok().filter(|&len| len <= MAX_HEADER);
    let len = len.ok_or_else(|| malformed(path, "the header's length is beyond 100 MB"))?;
    let text = rest.get(..len).ok_or_else(truncated)?;
    let metadata: Metadata = serde_json::from_slice(text).map_err(|error| malformed(path, error))?;
    let start = 8 + len;
    if start.checked_add(metadata.data_len()) != Some(bytes.len()) {
        let what = format!("the tensors need {} bytes, {} are there", metadata.data_len(), bytes.len() - start);
        return Err(malformed(path, what));
    }
    Ok((metadata, start))
}

/// The names of the tensors, sorted.
pub(super) fn names(path: &Path, storage: &Storage) -> Result<Vec<String>, FileError> {
    let mut names = open(path, storage.bytes())?.0.offset_keys();
    names.sort();
    Ok(names)
}

/// Reads one tensor; without a name the only one.
pub(super) fn read(path: &Path, storage: &Arc<Storage>, name: Option<&str>) -> Result<StoredArray, FileError> {
    let (metadata, start) = open(path, storage.bytes())?;
    let mut available = metadata.offset_keys();
    let only = if available.len() == 1 { available.first().map(String::as_str) } else { None };
    let Some(tensor) = name.or(only).and_then(|name| metadata.info(name)) else {
        let what = name.map_or_else(|| "there is not exactly one tensor".into(), |name| format!("no tensor `{name}`"));
        available.sort();
        return Err(FileError::Name { path: path.to_owned(), what, available });
    };
    let dtype = DTYPES
        .iter()
        .find(|(_, theirs)| *theirs == tensor.dtype)
        .ok_or_else(|| FileError::Unsupported { path: path.to_owned(), what: format!("dtype `{}`", tensor.dtype) })?;
    let (from, to) = tensor.data_offsets;
    let found = Described {
        dtype: dtype.0,
        shape: tensor.shape.clone(),
        fortran: false,
        big_endian: false,
        range: start + from..start + to,
    };
    if super::byte_count(&found.shape, tensor.dtype.bitsize() / 8) != Some(to - from) {
        return Err(malformed(path, format!("shape {:?} overflows", found.shape)));
    }
    finish(path, storage, found)
}

/// Writes the tensors in order of falling alignment, so that each starts aligned.
pub(super) fn write(path: &Path, arrays: &[(&str, ArrayRef<'_>)]) -> Result<(), FileError> {
    let mut sorted = Vec::with_capacity(arrays.len());
    for (name, array) in arrays {
        let dtype = DTYPES.iter().find(|(ours, _)| *ours == array.dtype).ok_or_else(|| FileError::Unsupported {
            path: path.to_owned(),
            what: format!("a `.safetensors` file cannot hold dtype `{}`", array.dtype),
        })?;
        sorted.push((*name, dtype.1, array));
    }
    if sorted.iter().any(|(name, ..)| *name == METADATA) {
        let what = format!("the format keeps the name `{METADATA}` for itself");
        return Err(FileError::Unsupported { path: path.to_owned(), what });
    }
    let mut seen = HashSet::new();
    if let Some((twice, ..)) = sorted.iter().find(|(name, ..)| !seen.insert(*name)) {
        return Err(malformed(path, format!("two tensors are named `{twice}`")));
    }
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let mut at = 0;
    let tensors = sorted.iter().map(|(name, dtype, array)| {
        let from = at;
        at += array.bytes.len();
        (name.to_string(), TensorInfo { dtype: *dtype, shape: array.shape.to_vec(), data_offsets: (from, at) })
    });
    let metadata = Metadata::new(None, tensors.collect()).map_err(|error| malformed(path, error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| malformed(path, error))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    store::replace(path, |out| {
        let io = |source: io::Error| FileError::Io { action: "write", path: path.to_owned(), source };
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&header).map_err(io)?;
        sorted.iter().try_for_each(|(_, _, array)| write_little_endian(out, array).map_err(io))
    })
}

/// The format is little-endian; on a big-endian machine each scalar is turned around.
fn write_little_endian(out: &mut dyn Write, array: &ArrayRef<'_>) -> io::Result<()> {
    if cfg!(target_endian = "little") {
        return out.write_all(array.bytes);
    }
    let scalar = super::alignment(array.dtype).unwrap_or(1);
    let mut bytes = array.bytes.to_vec();
    bytes.chunks_exact_mut(scalar).for_each(<[u8]>::reverse);
    out.write_all(&bytes)
}
