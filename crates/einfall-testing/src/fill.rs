//! What the elements of an argument are: numbers whose sums are exact, normal numbers, or positions for a table.

use einfall_tensor::DType;
use num_complex::Complex;
use serde::{Deserialize, Serialize};

use crate::number::Scalar;
use crate::random::Random;

/// A rule that gives every element of an argument its value, in row-major order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// Random whole numbers from -m to m (from 0 for unsigned types), not all equal; random truth values for `bool`.
    Integers(i64),
    /// 1 once in n times and otherwise 0: for truth values, most products of which are false.
    Truth(usize),
    /// Any value of an integer type, the ends of its range and odd numbers often; sums wrap. Otherwise as `Integers(9)`.
    Any,
    /// Standard normal numbers for inexact types. Otherwise as `Integers(9)`.
    Normal,
    /// These values, row-major; of complex numbers, real and imaginary parts alternate.
    Values(Vec<f64>),
    /// A table: the position along the last axis, modulo n.
    Identity(usize),
    /// A table: always this value.
    Constant(i64),
    /// A table: n-1 minus the position along the last axis, modulo n.
    Reversed(usize),
    /// A table: random positions below n.
    Random(usize),
    /// A table: random positions below n, every fourth one -1 (the largest value of an unsigned type).
    Padded(usize),
    /// A table: random positions below n, every fourth one outside: -1, n, n+1, or an end of the type's range.
    Outside(usize),
}

impl Default for Fill {
    fn default() -> Self {
        Fill::Integers(9)
    }
}

impl Fill {
    /// Whether sums of such elements of this type can be compared bit for bit.
    pub fn is_exact(&self, dtype: DType) -> bool {
        !(*self == Fill::Normal && (dtype.is_float() || dtype.is_complex()))
    }

    /// The values of an argument of this shape; `Values` is cut off or continued with zeros.
    pub(crate) fn values(&self, dtype: DType, shape: &[usize], random: &mut Random) -> Vec<Scalar> {
        let count: usize = shape.iter().product();
        let last = shape.last().copied().unwrap_or(1).max(1);
        let mut values: Vec<Scalar> = (0..count).map(|flat| self.value(dtype, flat, flat % last, random)).collect();
        let spread = matches!(self, Fill::Integers(1..) | Fill::Any | Fill::Truth(_));
        if spread && count > 0 && values.iter().all(|value| *value == values[0]) {
            // Equal elements would hide a wrong axis, and a lone 0 everything.
            values[count / 2] = if values[0].real() == 1.0 && count > 1 { Scalar::Int(0) } else { Scalar::Int(1) };
        }
        values
    }

    fn value(&self, dtype: DType, flat: usize, position: usize, random: &mut Random) -> Scalar {
        let (least, largest) = range(dtype);
        let below = |n: usize, random: &mut Random| random.between(0, n.max(1) as i64 - 1);
        let whole = match *self {
            Fill::Integers(_) | Fill::Any | Fill::Normal if dtype == DType::Bool => random.between(0, 1),
            Fill::Integers(most) => return small(dtype, most, random),
            Fill::Any if dtype.is_integer() => match random.between(0, 3) {
                0 => return Scalar::Int([least, largest, least + 1, largest - 1][random.between(0, 3) as usize]),
                // Products of even numbers soon wrap to 0.
                1 => random.bits() as i64,
                _ => random.bits() as i64 | 1,
            },
            Fill::Truth(n) => i64::from(random.once_in(n as u64)),
            Fill::Normal if dtype.is_float() => return Scalar::Real(random.normal()),
            Fill::Normal if dtype.is_complex() => {
                return Scalar::Complex(Complex::new(random.normal(), random.normal()));
            }
            Fill::Any | Fill::Normal => return small(dtype, 9, random),
            Fill::Values(ref values) => {
                let value = |at: usize| values.get(at).copied().unwrap_or(0.0);
                if dtype.is_complex() {
                    return Scalar::Complex(Complex::new(value(2 * flat), value(2 * flat + 1)));
                }
                return Scalar::Real(value(flat));
            }
            Fill::Identity(n) => (position % n.max(1)) as i64,
            Fill::Constant(value) => value,
            Fill::Reversed(n) => (n.max(1) - 1 - position % n.max(1)) as i64,
            Fill::Random(n) => below(n, random),
            Fill::Padded(_) if random.once_in(4) => -1,
            Fill::Outside(n) if random.once_in(4) => {
                let out = [-1, n as i128, n as i128 + 1, least, largest][random.between(0, 4) as usize];
                // An end of the range is inside where the type is narrow or unsigned.
                return Scalar::Int(if (0..n as i128).contains(&out) { largest } else { out });
            }
            Fill::Padded(n) | Fill::Outside(n) => below(n, random),
        };
        Scalar::Int(whole.into())
    }
}

fn small(dtype: DType, most: i64, random: &mut Random) -> Scalar {
    let least = if dtype.is_integer() && !dtype.is_signed_integer() { 0 } else { -most };
    let real = random.between(least, most);
    if dtype.is_complex() {
        return Scalar::Complex(Complex::new(real as f64, random.between(least, most) as f64));
    }
    Scalar::Int(real.into())
}

/// The least and the largest value of an integer type.
fn range(dtype: DType) -> (i128, i128) {
    let bits = 8 * dtype.bytes().min(8) as u32;
    if dtype.is_signed_integer() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}
