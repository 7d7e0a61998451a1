//! A case: an equation with a description of its arguments, small enough to print on one line.
//!
//! *In*: TOML, by hand or from a failing test. *Out*: the arguments in memory, and what the oracle makes of them.
//!
//! ```
//! use einfall_testing::case::Case;
//!
//! let text = r#"{ equation = "[k]->k", arguments = [{ dtype = "f32", shape = [3], strides = [-2], offset = 4 },
//!                 { dtype = "u8", shape = [5], fill = { random = 3 } }], seed = 7 }"#;
//! let case: Case = text.parse()?;
//! assert_eq!(case.to_string().parse::<Case>()?, case);
//! assert_eq!(case.expected()?.shape, [5]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use einfall_equation::{Equation, ParseError};
use einfall_tensor::{DType, TensorError, View, contiguous_strides, element_count};
use serde::{Deserialize, Serialize};

pub use crate::fill::Fill;
use crate::number::{Scalar, bytes_of};
use crate::oracle::{Bounds, OracleArray, OracleError, evaluate};
use crate::random::Random;

/// A problem with its data, reproducible from this description alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The equation; in a malformed case it may not parse.
    pub equation: String,
    /// Operands and tables in call order.
    pub arguments: Vec<ArgumentSpec>,
    /// Lengths that no argument gives.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<String, usize>,
    /// What happens to table values outside their axis.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bounds: Bounds,
    /// The type asked for, if any.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "dtype_or_none")]
    pub out: Option<DType>,
    /// Seed of the data.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: u64,
    /// Where the case is from.
    #[serde(default, skip_serializing_if = "is_default")]
    pub source: String,
}

/// One argument: how its elements lie in memory and what they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgumentSpec {
    /// Element type.
    #[serde(with = "dtype_text")]
    pub dtype: DType,
    /// Axis lengths.
    pub shape: Vec<usize>,
    /// Strides in elements; row-major where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strides: Option<Vec<isize>>,
    /// Elements of the storage before the one at coordinate zero.
    #[serde(default, skip_serializing_if = "is_default")]
    pub offset: usize,
    /// Bytes by which the storage misses an address divisible by 64.
    #[serde(default, skip_serializing_if = "is_default")]
    pub misaligned: usize,
    /// What the elements are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fill: Fill,
    /// Elements of the storage; as few as the layout needs where there is no number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_len: Option<usize>,
}

/// Why a case has no expected result.
#[derive(Clone, Debug, PartialEq)]
pub enum CaseError {
    /// The equation does not parse.
    Parse(ParseError),
    /// An argument reaches outside its storage.
    Tensor(TensorError),
    /// The problem makes no sense.
    Oracle(OracleError),
}

impl CaseError {
    /// One word for the kind of mistake: `parse`, `tensor`, or [`OracleError::class`].
    pub fn class(&self) -> &'static str {
        match self {
            CaseError::Parse(_) => "parse",
            CaseError::Tensor(_) => "tensor",
            CaseError::Oracle(error) => error.class(),
        }
    }
}

impl fmt::Display for CaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CaseError::Parse(error) => write!(f, "{error}"),
            CaseError::Tensor(error) => write!(f, "{error}"),
            CaseError::Oracle(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for CaseError {}

impl From<ParseError> for CaseError {
    fn from(error: ParseError) -> Self {
        CaseError::Parse(error)
    }
}

impl From<TensorError> for CaseError {
    fn from(error: TensorError) -> Self {
        CaseError::Tensor(error)
    }
}

impl From<OracleError> for CaseError {
    fn from(error: OracleError) -> Self {
        CaseError::Oracle(error)
    }
}

impl ArgumentSpec {
    /// A row-major argument.
    pub fn contiguous(dtype: DType, shape: &[usize], fill: Fill) -> Self {
        let shape = shape.to_vec();
        ArgumentSpec { dtype, shape, strides: None, offset: 0, misaligned: 0, fill, storage_len: None }
    }

    /// Strides in elements, written out.
    pub fn strides(&self) -> Vec<isize> {
        self.strides.clone().unwrap_or_else(|| contiguous_strides(&self.shape).to_vec())
    }

    /// The elements that the storage has.
    pub fn storage(&self) -> usize {
        let reach: isize = self.shape.iter().zip(self.strides()).map(|(&n, s)| (n as isize - 1) * s.max(0)).sum();
        let needed = if self.shape.contains(&0) { 0 } else { self.offset + reach as usize + 1 };
        self.storage_len.unwrap_or(needed)
    }

    /// Builds the argument in memory.
    ///
    /// # Errors
    /// When the layout reaches outside the storage.
    pub fn materialise(&self, random: &mut Random) -> Result<Buffer, TensorError> {
        let size = self.dtype.bytes();
        let sentinel = sentinel(self.dtype);
        let guard = GUARD.div_ceil(size);
        let storage = self.storage();
        let mut buffer =
            Buffer { bytes: vec![0; 64 + self.misaligned], first: 0, len: storage * size, spec: self.clone() };
        buffer.bytes.reserve_exact((storage + 2 * guard) * size);
        // The memory does not move any more, so the storage can be put where its address is as asked.
        let after_guard = buffer.bytes.as_ptr() as usize + guard * size;
        let start = (64 - after_guard % 64) % 64 + self.misaligned;
        buffer.bytes.truncate(start);
        for _ in 0..storage + 2 * guard {
            buffer.bytes.extend_from_slice(&sentinel);
        }
        buffer.first = start + guard * size;
        buffer.checked_view()?;
        let values = self.fill.values(self.dtype, &self.shape, random);
        let strides = self.strides();
        for (mut flat, value) in values.into_iter().enumerate() {
            let mut at = self.offset as isize;
            for (&len, &stride) in self.shape.iter().zip(&strides).rev() {
                at += (flat % len) as isize * stride;
                flat /= len;
            }
            let at = buffer.first + at as usize * size;
            let mut bytes = bytes_of(value, self.dtype);
            if self.dtype == DType::Bool && bytes[0] == 1 && random.once_in(4) {
                // Foreign memory may hold any byte for true.
                bytes[0] = 0x80;
            }
            buffer.bytes[at..at + size].copy_from_slice(&bytes);
        }
        Ok(buffer)
    }
}

/// Bytes of sentinels before and after each storage, at least.
const GUARD: usize = 256;

/// What lies around and between the elements: NaN, true, or the largest integer, so that who reads it is found out.
fn sentinel(dtype: DType) -> Vec<u8> {
    match dtype {
        _ if dtype.is_signed_integer() => bytes_of(Scalar::Int(i128::MAX >> (128 - 8 * dtype.bytes())), dtype),
        _ if dtype.is_integer() || dtype == DType::Bool => bytes_of(Scalar::Int(-1), dtype),
        _ => bytes_of(Scalar::Complex(num_complex::Complex::new(f64::NAN, f64::NAN)), dtype),
    }
}

/// An argument in memory, with sentinels around it and in its gaps.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    /// First byte of the storage, and its length in bytes.
    first: usize,
    len: usize,
    spec: ArgumentSpec,
}

impl Buffer {
    /// The argument.
    pub fn view(&self) -> View<'_> {
        self.checked_view().expect("the layout was checked when the argument was built")
    }

    fn checked_view(&self) -> Result<View<'_>, TensorError> {
        let ArgumentSpec { dtype, shape, offset, .. } = &self.spec;
        element_count(shape)?;
        let storage = &self.bytes[self.first..self.first + self.len];
        View::from_bytes(storage, *dtype, shape, &self.spec.strides(), *offset)
    }
}

impl Case {
    /// Builds the arguments in memory.
    ///
    /// # Errors
    /// When a layout reaches outside its storage.
    pub fn materialise(&self) -> Result<Vec<Buffer>, TensorError> {
        let numbered = self.arguments.iter().enumerate();
        numbered.map(|(i, argument)| argument.materialise(&mut Random::new(self.seed, i as u64))).collect()
    }

    /// Whether a result must agree bit for bit.
    pub fn is_exact(&self) -> bool {
        self.arguments.iter().all(|argument| argument.fill.is_exact(argument.dtype))
    }

    /// What the oracle says.
    ///
    /// # Errors
    /// When the case is malformed.
    pub fn expected(&self) -> Result<OracleArray, CaseError> {
        let equation = Equation::parse(&self.equation)?;
        let buffers = self.materialise()?;
        let views: Vec<View> = buffers.iter().map(Buffer::view).collect();
        Ok(evaluate(&equation, &views, &self.sizes, self.bounds, self.out)?)
    }
}

/// One line of TOML, which [`FromStr`] reads back.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = toml::Value::try_from(self).map_err(|_| fmt::Error)?;
        write!(f, "{value}")
    }
}

impl FromStr for Case {
    type Err = toml::de::Error;

    fn from_str(text: &str) -> Result<Self, toml::de::Error> {
        Case::deserialize(toml::de::ValueDeserializer::parse(text)?)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) mod dtype_text {
    use super::*;
    use serde::de::Error;

    pub(crate) fn serialize<S: serde::Serializer>(dtype: &DType, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(dtype.name())
    }

    pub(crate) fn deserialize<'d, D: serde::Deserializer<'d>>(from: D) -> Result<DType, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

pub(crate) mod dtype_or_none {
    use super::*;

    pub(crate) fn serialize<S: serde::Serializer>(dtype: &Option<DType>, to: S) -> Result<S::Ok, S::Error> {
        dtype.map(DType::name).serialize(to)
    }

    pub(crate) fn deserialize<'d, D: serde::Deserializer<'d>>(from: D) -> Result<Option<DType>, D::Error> {
        dtype_text::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentinels_surround_and_separate_the_elements() {
        let mut spec = ArgumentSpec::contiguous(DType::F32, &[2, 3], Fill::Integers(3));
        spec.strides = Some(vec![-8, 2]);
        (spec.offset, spec.misaligned, spec.storage_len) = (9, 2, Some(17));
        let buffer = spec.materialise(&mut Random::new(1, 0)).unwrap();
        assert_eq!(buffer.view().to_vec::<f32>().unwrap().iter().filter(|v| v.is_nan()).count(), 0);
        let all = View::from_bytes(&buffer.bytes[buffer.first - 256..], DType::F32, &[17 + 128], &[1], 0).unwrap();
        assert_eq!(all.to_vec::<f32>().unwrap().iter().filter(|v| !v.is_nan()).count(), 6);
        let storage = buffer.bytes[buffer.first..].as_ptr() as usize;
        assert_eq!(storage % 64, 2);
        assert!(ArgumentSpec { offset: 7, ..spec }.materialise(&mut Random::new(1, 0)).is_err());
    }
}
