//! The `.npy` format, versions 1 to 3.
//!
//! A file is the magic `\x93NUMPY`, two version bytes, the header's length (u16, from version 2 on u32, little-endian),
//! a Python dictionary with the keys `descr`, `fortran_order` and `shape`, and the elements.
//!
//! The header is parsed here because the libraries at hand multiply the shape unchecked or parse by recursion, so that
//! a bad file would panic or exhaust the stack. Source: NumPy's `numpy/lib/format` documentation.

use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::store::{self, Storage};
use super::{ArrayRef, Described, FileError, StoredArray, byte_count, element_size, finish};

const MAGIC: &[u8] = b"\x93NUMPY";

/// NumPy itself refuses headers above 10 000 characters; a header of plain elements has about 100.
pub(super) const MAX_HEADER: usize = 1 << 16;

/// What a header says, and how many bytes stand before the elements.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) dtype: &'static str,
    pub(super) big_endian: bool,
    pub(super) fortran: bool,
    pub(super) shape: Vec<usize>,
    pub(super) data_at: usize,
    pub(super) data_len: usize,
}

/// Why a header was refused.
#[derive(Debug)]
pub(super) enum Refused {
    Malformed(String),
    Unsupported(String),
}

impl Refused {
    pub(super) fn at(self, path: &Path) -> FileError {
        let path = path.to_owned();
        match self {
            Self::Malformed(what) => FileError::Malformed { path, what },
            Self::Unsupported(what) => FileError::Unsupported { path, what },
        }
    }
}

fn malformed(what: impl Into<String>) -> Refused {
    Refused::Malformed(what.into())
}

/// Reads the array that is the `.npy` file in `range` of `storage`.
pub(super) fn read(path: &Path, storage: &Arc<Storage>, range: Range<usize>) -> Result<StoredArray, FileError> {
    let bytes = &storage.bytes()[range.clone()];
    let header = parse(bytes).map_err(|refused| refused.at(path))?;
    let present = bytes.len() - header.data_at;
    if present < header.data_len {
        let what = format!("shape {:?} needs {} bytes, {present} are there", header.shape, header.data_len);
        return Err(malformed(what).at(path));
    }
    let start = range.start + header.data_at;
    let found = Described {
        dtype: header.dtype,
        shape: header.shape,
        fortran: header.fortran,
        big_endian: header.big_endian,
        range: start..start + header.data_len,
    };
    finish(path, storage, found)
}

/// Parses the header at the start of `bytes`, which may end anywhere behind it.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, Refused> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(malformed("it does not start like a `.npy` file"));
    };
    let truncated = || malformed("the header is truncated");
    let (&[major, _minor], rest) = rest.split_first_chunk().ok_or_else(truncated)?;
    let (len, rest) = match major {
        1 => {
            let (len, rest) = rest.split_first_chunk().ok_or_else(truncated)?;
            (usize::from(u16::from_le_bytes(*len)), rest)
        }
        2 | 3 => {
            let (len, rest) = rest.split_first_chunk().ok_or_else(truncated)?;
            (usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX), rest)
        }
        _ => {
            return Err(Refused::Unsupported(format!("version {major} of the `.npy` format")));
        }
    };
    if len > MAX_HEADER {
        return Err(malformed(format!("a header of {len} bytes")));
    }
    let text = rest.get(..len).ok_or_else(truncated)?;
    let text = std::str::from_utf8(text).map_err(|_| malformed("the header is not text"))?;
    let (dtype, big_endian, fortran, shape) = dictionary(text)?;
    let size = element_size(dtype).expect("`dtype_of` gives dtypes of the list");
    let data_len = byte_count(&shape, size).ok_or_else(|| malformed(format!("shape {shape:?} overflows")))?;
    Ok(Header { dtype, big_endian, fortran, shape, data_at: bytes.len() - rest.len() + len, data_len })
}

type Fields = (&'static str, bool, bool, Vec<usize>);

/// `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, keys in any order, each exactly once.
fn dictionary(text: &str) -> Result<Fields, Refused> {
    let mut text = Cursor(text);
    let (mut dtype, mut fortran, mut shape) = (None, None, None);
    text.expect('{')?;
    while !text.take('}') {
        let key = text.string()?;
        text.expect(':')?;
        let repeated = match key {
            "descr" => dtype.replace(text.dtype()?).is_some(),
            "fortran_order" => fortran.replace(text.boolean()?).is_some(),
            "shape" => shape.replace(text.tuple()?).is_some(),
            _ => {
                return Err(malformed(format!("unknown key `{}` in the header", key.escape_debug())));
            }
        };
        if repeated {
            return Err(malformed(format!("`{key}` stands twice in the header")));
        }
        if !text.take(',') && !text.0.trim_start().starts_with('}') {
            return Err(text.unexpected("`,` or `}`"));
        }
    }
    if !text.0.trim().is_empty() {
        return Err(text.unexpected("the end of the header"));
    }
    let missing = |key| malformed(format!("`{key}` is missing in the header"));
    let (dtype, big_endian) = dtype.ok_or_else(|| missing("descr"))?;
    Ok((dtype, big_endian, fortran.ok_or_else(|| missing("fortran_order"))?, shape.ok_or_else(|| missing("shape"))?))
}

/// What is left of the header's text.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn unexpected(&self, wanted: &str) -> Refused {
        let found: String = self.0.trim_start().chars().take(12).collect();
        malformed(format!("expected {wanted} at `{}` in the header", found.escape_debug()))
    }

    fn take(&mut self, wanted: char) -> bool {
        match self.0.trim_start().strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, wanted: char) -> Result<(), Refused> {
        if self.take(wanted) { Ok(()) } else { Err(self.unexpected(&format!("`{wanted}`"))) }
    }

    fn string(&mut self) -> Result<&'a str, Refused> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'));
        let Some((string, rest)) = quote.and_then(|quote| text[1..].split_once(quote)) else {
            return Err(self.unexpected("a string"));
        };
        self.0 = rest;
        Ok(string)
    }

    fn boolean(&mut self) -> Result<bool, Refused> {
        let text = self.0.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = text.strip_prefix(word) {
                self.0 = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("`True` or `False`"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, Refused> {
        let mut shape = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            let text = self.0.trim_start();
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 {
                return Err(self.unexpected("a length"));
            }
            let len = text[..digits].parse().map_err(|_| malformed(format!("length {} overflows", &text[..digits])))?;
            shape.push(len);
            // Files of Python 2 mark long integers.
            self.0 = text[digits..].strip_prefix('L').unwrap_or(&text[digits..]);
            if !self.take(',') && !self.0.trim_start().starts_with(')') {
                return Err(self.unexpected("`,` or `)`"));
            }
        }
        Ok(shape)
    }

    /// The dtype, and whether it is big-endian.
    fn dtype(&mut self) -> Result<(&'static str, bool), Refused> {
        if self.0.trim_start().starts_with(['[', '(', '{']) {
            return Err(Refused::Unsupported("a structured dtype".to_owned()));
        }
        let descr = self.string()?;
        let unsupported = || Refused::Unsupported(format!("dtype `{}`", descr.escape_debug()));
        let order = descr.chars().next().ok_or_else(unsupported)?;
        let big = match order {
            '<' | '|' => false,
            '>' => true,
            '=' => cfg!(target_endian = "big"),
            _ => return Err(unsupported()),
        };
        let dtype = match &descr[1..] {
            "b1" => "bool",
            "i1" => "i8",
            "i2" => "i16",
            "i4" => "i32",
            "i8" => "i64",
            "u1" => "u8",
            "u2" => "u16",
            "u4" => "u32",
            "u8" => "u64",
            "f2" => "f16",
            "f4" => "f32",
            "f8" => "f64",
            "c8" => "c64",
            "c16" => "c128",
            _ => return Err(unsupported()),
        };
        if order == '|' && element_size(dtype) != Some(1) {
            return Err(unsupported());
        }
        Ok((dtype, big))
    }
}

/// The bytes before the elements: version 1, padded so that the elements start at a multiple of 64.
pub(super) fn header(array: &ArrayRef<'_>) -> Result<Vec<u8>, Refused> {
    let code = match array.dtype {
        "bool" => "b1",
        "i8" => "i1",
        "i16" => "i2",
        "i32" => "i4",
        "i64" => "i8",
        "u8" => "u1",
        "u16" => "u2",
        "u32" => "u4",
        "u64" => "u8",
        "f16" => "f2",
        "f32" => "f4",
        "f64" => "f8",
        "c64" => "c8",
        "c128" => "c16",
        "bf16" => {
            return Err(Refused::Unsupported(
                "NumPy's format has no `bf16`\nhint: write a `.safetensors` file, or cast to `f32`".to_owned(),
            ));
        }
        other => return Err(Refused::Unsupported(format!("dtype `{other}`"))),
    };
    let order = match (element_size(array.dtype), cfg!(target_endian = "big")) {
        (Some(1), _) => '|',
        (_, true) => '>',
        (_, false) => '<',
    };
    let mut shape: String = array.shape.iter().map(|len| format!("{len}, ")).collect();
    if array.shape.len() > 1 {
        shape.truncate(shape.len() - 2);
    } else {
        shape.truncate(shape.trim_end().len());
    }
    let mut text = format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({shape}), }}");
    // Magic, version and length take 10 bytes, the line end one.
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.extend(std::iter::repeat_n(' ', padded - 1 - text.len()));
    text.push('\n');
    let len = u16::try_from(text.len()).map_err(|_| malformed("the shape has too many axes"))?;
    Ok([MAGIC, &[1, 0], &len.to_le_bytes(), text.as_bytes()].concat())
}

/// Writes one array.
pub(super) fn write(path: &Path, array: &ArrayRef<'_>) -> Result<(), FileError> {
    let header = header(array).map_err(|refused| refused.at(path))?;
    store::replace(path, |out| {
        let io = |source: io::Error| FileError::Io { action: "write", path: path.to_owned(), source };
        out.write_all(&header).map_err(io)?;
        out.write_all(array.bytes).map_err(io)
    })
}
