//! Arrays in files: `.npy`, `.npz` and `.safetensors`, read without a copy where the file allows it.
//!
//! In: a path, for an archive with the name of one of its arrays. Out: a [`StoredArray`], which knows its dtype only by
//! name, so that a caller turns it into a typed view itself. Anyone may call this; nothing is printed.
//!
//! A file is mapped into memory and the array points into the map. Its bytes are copied only where a view would be
//! unsound or wrong: an element that is not aligned, a big-endian file, a compressed archive.
//!
//! ```
//! use einfall_cli::files::{self, ArrayRef};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("a.npy");
//! let bytes: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|x| x.to_ne_bytes()).collect();
//! files::write(&path, &[("a", ArrayRef { dtype: "f32", shape: &[3], bytes: &bytes })])?;
//!
//! let a = files::read(path.to_str().unwrap())?;
//! assert_eq!((a.dtype.as_str(), a.shape.as_slice(), a.strides_elems.as_slice()), ("f32", &[3][..], &[1][..]));
//! assert_eq!(a.bytes(), bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod npy;
mod npz;
mod safetensors;
mod store;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use store::Storage;

/// An array in a file, or a copy of it in memory: a dtype by name, a shape, and bytes.
#[derive(Clone, Debug)]
pub struct StoredArray {
    /// Name of the element type: `bool`, `i8` to `i64`, `u8` to `u64`, `f16`, `bf16`, `f32`, `f64`, `c64`, `c128`.
    pub dtype: String,
    /// Length of each axis.
    pub shape: Vec<usize>,
    /// Distance between neighbours on each axis, in elements: row-major, or column-major for a Fortran-ordered file.
    pub strides_elems: Vec<isize>,
    storage: Arc<Storage>,
    range: Range<usize>,
}

impl StoredArray {
    /// The elements in the machine's byte order, aligned to [`alignment`] of the dtype; `len() * size` bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.range.clone()]
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes().len() / element_size(&self.dtype).unwrap_or(1)
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Whether the elements are still in the file: read when first touched, and not counted as our own memory.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(*self.storage, Storage::Mapped(_))
    }
}

/// An array to be written: row-major, in the machine's byte order.
#[derive(Clone, Copy, Debug)]
pub struct ArrayRef<'a> {
    /// Name of the element type, as in [`StoredArray::dtype`].
    pub dtype: &'a str,
    /// Length of each axis.
    pub shape: &'a [usize],
    /// All elements; their number must be the product of `shape`.
    pub bytes: &'a [u8],
}

/// Why a file could not be read or written. The text always names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried: `open`, `map`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not what its name says.
    #[error("`{}` is malformed: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file is sound, but holds something einfall has no use for.
    #[error("`{}` is not supported: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported.
        what: String,
    },
    /// An archive holds several arrays, or none of that name.
    #[error("{what} in `{}`\nhint: {}", path.display(), holds(path, available))]
    Name {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: String,
        /// The names in the archive.
        available: Vec<String>,
    },
}

/// What an archive holds, and how to ask for it.
fn holds(path: &Path, names: &[String]) -> String {
    if names.is_empty() {
        return "it holds no array".to_owned();
    }
    format!("it holds {}; write `{}:NAME`", list(names), path.display())
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let rest = names.len().saturating_sub(SHOWN);
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}

/// The kinds of file, told apart by the end of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Npy,
    Npz,
    Safetensors,
}

impl Format {
    fn of(path: &Path) -> Result<Self, FileError> {
        let end = path.extension().and_then(|end| end.to_str()).unwrap_or("").to_ascii_lowercase();
        match end.as_str() {
            "npy" => Ok(Self::Npy),
            "npz" => Ok(Self::Npz),
            "safetensors" => Ok(Self::Safetensors),
            _ => {
                let mut what = "the name must end in `.npy`, `.npz` or `.safetensors`".to_owned();
                if end.starts_with("npy:") {
                    what += "\nhint: a `.npy` file holds one array, which has no name";
                }
                Err(FileError::Unsupported { path: path.to_owned(), what })
            }
        }
    }
}

/// Splits `archive.npz:name` into the path and the name; any other text is a path alone.
#[must_use]
pub fn split_name(spec: &str) -> (&Path, Option<&str>) {
    // The first colon behind an archive's name: names of arrays may have colons, too.
    let mut splits = spec.match_indices(':').map(|(at, _)| (Path::new(&spec[..at]), &spec[at + 1..]));
    let archive = splits.find(|(path, _)| matches!(Format::of(path), Ok(Format::Npz | Format::Safetensors)));
    archive.map_or((Path::new(spec), None), |(path, name)| (path, Some(name)))
}

/// Checks that the name of a file to be written ends in a format, before anything is computed for it.
///
/// # Errors
/// [`FileError::Unsupported`].
pub fn check_name(path: &Path) -> Result<(), FileError> {
    Format::of(path).map(|_| ())
}

/// Reads one array: `a.npy`, `archive.npz:name` or `model.safetensors:name`. The name may be left out where the archive
/// holds one array only.
///
/// # Errors
/// [`FileError`], always with the name of the file. A malformed header is an error, never a panic or a huge allocation.
///
/// # Cost
/// The header is parsed; the elements are mapped, not read. A compressed, big-endian or misaligned array is copied, and
/// the values of a `bool` array are checked.
pub fn read(spec: &str) -> Result<StoredArray, FileError> {
    let (path, name) = split_name(spec);
    let format = Format::of(path)?;
    let storage = Arc::new(store::map(path)?);
    match format {
        Format::Npy => npy::read(path, &storage, 0..storage.bytes().len()),
        Format::Npz => npz::read(path, &storage, name),
        Format::Safetensors => safetensors::read(path, &storage, name),
    }
}

/// The names of the arrays in an archive, sorted; for a `.npy` file the one name `""`.
///
/// # Errors
/// As for [`read`].
pub fn names(path: &Path) -> Result<Vec<String>, FileError> {
    let format = Format::of(path)?;
    let storage = store::map(path)?;
    match format {
        Format::Npy => Ok(vec![String::new()]),
        Format::Npz => npz::names(path, &storage),
        Format::Safetensors => safetensors::names(path, &storage),
    }
}

/// Writes arrays to `path` in the format that its name ends in. A `.npy` file holds exactly one array, whose name is
/// then not used.
///
/// The bytes go to a temporary file in the same folder, which takes the name `path` only once it is complete: a failure
/// leaves what was there before.
///
/// # Errors
/// [`FileError`]: the system refused, the format has no such dtype, or shape and bytes disagree.
pub fn write(path: &Path, arrays: &[(&str, ArrayRef<'_>)]) -> Result<(), FileError> {
    let format = Format::of(path)?;
    for (_, array) in arrays {
        check(path, array)?;
    }
    match (format, arrays) {
        (Format::Npy, [(_, array)]) => npy::write(path, array),
        (Format::Npy, _) => Err(FileError::Unsupported {
            path: path.to_owned(),
            what: format!("a `.npy` file holds one array, not {}", arrays.len()),
        }),
        (Format::Npz, _) => npz::write(path, arrays),
        (Format::Safetensors, _) => safetensors::write(path, arrays),
    }
}

fn check(path: &Path, array: &ArrayRef<'_>) -> Result<(), FileError> {
    let size = element_size(array.dtype)
        .ok_or_else(|| FileError::Unsupported { path: path.to_owned(), what: format!("dtype `{}`", array.dtype) })?;
    if byte_count(array.shape, size) == Some(array.bytes.len()) {
        return Ok(());
    }
    Err(FileError::Malformed {
        path: path.to_owned(),
        what: format!("shape {:?} of `{}` does not fit {} bytes", array.shape, array.dtype, array.bytes.len()),
    })
}

/// Bytes of one element of the named dtype; `None` for a name that is not in the list of [`StoredArray::dtype`].
#[must_use]
pub fn element_size(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "bool" | "i8" | "u8" => 1,
        "i16" | "u16" | "f16" | "bf16" => 2,
        "i32" | "u32" | "f32" => 4,
        "i64" | "u64" | "f64" | "c64" => 8,
        "c128" => 16,
        _ => return None,
    })
}

/// Alignment in bytes that [`StoredArray::bytes`] has for the named dtype: that of its real part.
#[must_use]
pub fn alignment(dtype: &str) -> Option<usize> {
    Some(scalar_size(dtype, element_size(dtype)?))
}

/// Bytes of what is swapped and aligned as one: half a complex number, else the element.
fn scalar_size(dtype: &str, size: usize) -> usize {
    if dtype.starts_with('c') { size / 2 } else { size }
}

/// Bytes of a whole array, or `None` if they cannot be counted. Zero-length axes do not hide an overflow of the others:
/// such a shape has strides that do not fit either.
fn byte_count(shape: &[usize], size: usize) -> Option<usize> {
    let whole = shape.iter().filter(|&&len| len != 0).try_fold(size, |bytes, &len| bytes.checked_mul(len))?;
    isize::try_from(whole).ok()?;
    Some(if shape.contains(&0) { 0 } else { whole })
}

/// Strides in elements. `byte_count` has made sure that no product overflows.
fn strides(shape: &[usize], fortran: bool) -> Vec<isize> {
    let mut strides = vec![0; shape.len()];
    let mut next = 1isize;
    let mut set = |axis: usize| {
        strides[axis] = next;
        next *= shape[axis].max(1).cast_signed();
    };
    if fortran {
        (0..shape.len()).for_each(&mut set)
    } else {
        (0..shape.len()).rev().for_each(&mut set)
    }
    strides
}

/// What a header said about the array that lies in `range` of `storage`.
struct Described {
    dtype: &'static str,
    shape: Vec<usize>,
    fortran: bool,
    big_endian: bool,
    range: Range<usize>,
}

/// Makes the array, copying its bytes only where they cannot be used in place.
fn finish(path: &Path, storage: &Arc<Storage>, found: Described) -> Result<StoredArray, FileError> {
    let Described { dtype, shape, fortran, big_endian, range } = found;
    let size = element_size(dtype).expect("a header gives a dtype of the list");
    let scalar = scalar_size(dtype, size);
    let bytes = &storage.bytes()[range.clone()];
    if dtype == "bool"
        && let Some(at) = bytes.iter().position(|&byte| byte > 1)
    {
        let what = format!("element {at} of a bool array is {}", bytes[at]);
        return Err(FileError::Malformed { path: path.to_owned(), what });
    }
    let swap = big_endian != cfg!(target_endian = "big") && scalar > 1;
    let strides_elems = strides(&shape, fortran);
    let aligned = bytes.as_ptr().addr().is_multiple_of(scalar);
    if aligned && !swap {
        return Ok(StoredArray { dtype: dtype.to_owned(), shape, strides_elems, storage: Arc::clone(storage), range });
    }
    let (mut copy, at) = store::aligned(path, bytes.len())?;
    let target = &mut copy[at.clone()];
    target.copy_from_slice(bytes);
    if swap {
        target.chunks_exact_mut(scalar).for_each(<[u8]>::reverse);
    }
    let storage = Arc::new(Storage::Owned(copy));
    Ok(StoredArray { dtype: dtype.to_owned(), shape, strides_elems, storage, range: at })
}

#[cfg(test)]
mod tests;
