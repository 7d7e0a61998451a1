//! Shapes and strides, with every size computed in checked arithmetic.

use smallvec::SmallVec;

use crate::TensorError;

/// Axis lengths, in elements.
pub type Dims = SmallVec<[usize; 6]>;
/// Distance between neighbours along each axis, in elements; may be zero or negative.
pub type Strides = SmallVec<[isize; 6]>;

/// The number of elements of a shape.
///
/// # Errors
/// [`TensorError::TooLarge`] when the number does not fit `isize`.
pub fn element_count(shape: &[usize]) -> Result<usize, TensorError> {
    // A zero anywhere makes the product zero, even where a partial product would overflow.
    if shape.contains(&0) {
        return Ok(0);
    }
    shape
        .iter()
        .try_fold(1usize, |count, &len| count.checked_mul(len))
        .filter(|&count| count <= isize::MAX as usize)
        .ok_or_else(|| TensorError::TooLarge { shape: shape.into() })
}

/// Row-major strides of a shape: the last axis is contiguous.
pub fn contiguous_strides(shape: &[usize]) -> Strides {
    let mut strides: Strides = SmallVec::from_elem(0, shape.len());
    let mut next = 1usize;
    for (stride, &len) in strides.iter_mut().zip(shape).rev() {
        *stride = next as isize;
        next = next.saturating_mul(len.max(1));
    }
    strides
}

/// A shape with strides: a function from coordinates to element offsets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Axis lengths.
    pub shape: Dims,
    /// Strides in elements, one an axis.
    pub strides: Strides,
}

/// Above this many elements an irregular layout is taken as self-overlapping instead of being enumerated.
const MOST_ENUMERATED: usize = 1 << 20;

impl Layout {
    /// The row-major layout of a shape.
    pub fn contiguous(shape: &[usize]) -> Self {
        Layout { shape: shape.into(), strides: contiguous_strides(shape) }
    }

    /// The lowest and the highest element offset that a coordinate reaches; `None` when there is no element.
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] when an offset does not fit `isize`.
    pub fn span(&self) -> Result<Option<(isize, isize)>, TensorError> {
        if element_count(&self.shape)? == 0 {
            return Ok(None);
        }
        let too_large = || TensorError::TooLarge { shape: self.shape.clone() };
        let (mut low, mut high) = (0isize, 0isize);
        for (&len, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = stride.checked_mul((len - 1) as isize).ok_or_else(too_large)?;
            let end = if reach < 0 { &mut low } else { &mut high };
            *end = end.checked_add(reach).ok_or_else(too_large)?;
        }
        high.checked_sub(low).ok_or_else(too_large)?;
        Ok(Some((low, high)))
    }

    /// True when no two coordinates share an element, so that each may be written by itself.
    ///
    /// Exact for regular layouts and for small irregular ones; a large irregular one counts as overlapping.
    pub fn is_injective(&self) -> bool {
        let Ok(count) = element_count(&self.shape) else { return false };
        let mut axes: SmallVec<[(usize, usize); 6]> = self
            .shape
            .iter()
            .zip(&self.strides)
            .filter(|(len, _)| **len > 1)
            .map(|(&len, &stride)| (stride.unsigned_abs(), len))
            .collect();
        if count <= 1 {
            return true;
        }
        axes.sort_unstable();
        let mut reach = 0usize;
        let mut nested = true;
        for &(stride, len) in &axes {
            nested &= stride > reach;
            let Some(more) = stride.checked_mul(len - 1).and_then(|r| r.checked_add(reach)) else { return false };
            reach = more;
        }
        if nested {
            return true;
        }
        if count > MOST_ENUMERATED || reach / 64 > MOST_ENUMERATED || axes[0].0 == 0 {
            return false;
        }
        // Irregular but small: visit every offset (mirrored axes reach the same set of distances).
        let mut seen = vec![0u64; reach / 64 + 1];
        (0..count).all(|mut flat| {
            let mut offset = 0;
            for &(stride, len) in &axes {
                offset += stride * (flat % len);
                flat /= len;
            }
            let fresh = seen[offset / 64] & (1 << (offset % 64)) == 0;
            seen[offset / 64] |= 1 << (offset % 64);
            fresh
        })
    }

    /// True when the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut next = 1isize;
        for (&len, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if len == 0 {
                return true;
            }
            if len > 1 {
                if stride != next {
                    return false;
                }
                next *= len as isize;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shape: &[usize], strides: &[isize]) -> Layout {
        Layout { shape: shape.into(), strides: strides.into() }
    }

    #[test]
    fn counts_are_checked() {
        assert_eq!(element_count(&[]).unwrap(), 1);
        assert_eq!(element_count(&[usize::MAX, 0, usize::MAX]).unwrap(), 0);
        assert!(element_count(&[usize::MAX, 2]).is_err());
        assert!(element_count(&[isize::MAX as usize, 1]).is_ok());
        assert!(element_count(&[isize::MAX as usize + 1]).is_err());
    }

    #[test]
    fn spans_cover_negative_strides_and_refuse_overflow() {
        assert_eq!(layout(&[3, 2], &[-2, 5]).span().unwrap(), Some((-4, 5)));
        assert_eq!(layout(&[3, 0], &[-2, 5]).span().unwrap(), None);
        assert_eq!(layout(&[], &[]).span().unwrap(), Some((0, 0)));
        assert!(layout(&[3], &[isize::MAX]).span().is_err());
        assert!(layout(&[2, 2], &[isize::MAX, -isize::MAX]).span().is_err());
    }

    #[test]
    fn injectivity_is_exact_for_small_layouts() {
        assert!(layout(&[2, 3], &[3, 1]).is_injective());
        assert!(layout(&[2, 3], &[-3, 1]).is_injective());
        assert!(layout(&[2, 3], &[3, 2]).is_injective(), "offsets 0 2 4 3 5 7");
        assert!(!layout(&[3, 3], &[2, 1]).is_injective());
        assert!(!layout(&[3], &[0]).is_injective());
        assert!(layout(&[1], &[0]).is_injective());
        assert!(layout(&[0, 5], &[0, 0]).is_injective());
        assert!(!layout(&[2, 4], &[1, 1]).is_injective());
    }

    #[test]
    fn contiguity_ignores_axes_of_length_one() {
        assert!(layout(&[2, 1, 3], &[3, 99, 1]).is_contiguous());
        assert!(!layout(&[2, 3], &[4, 1]).is_contiguous());
        assert!(Layout::contiguous(&[4, 5, 6]).is_contiguous());
    }
}
