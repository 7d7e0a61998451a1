//! Views: a pointer with a layout whose span was proved to lie inside memory that the view borrows.

use std::fmt;
use std::marker::PhantomData;

use crate::{Bool8, DType, Dims, Element, Layout, Strides, contiguous_strides, element_count};

/// Why a shape, a stride or a buffer was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The number of elements, or an offset, does not fit the machine's address range.
    #[error("shape {shape:?} needs more elements than can be addressed")]
    TooLarge {
        /// The shape.
        shape: Dims,
    },
    /// There must be one stride an axis.
    #[error("the shape has length {shape}, but the strides have length {strides}")]
    RankMismatch {
        /// Number of axes.
        shape: usize,
        /// Number of strides.
        strides: usize,
    },
    /// Some coordinate reaches outside the buffer.
    #[error(
        "shape {shape:?} with strides {strides:?} from offset {offset} reaches elements {low}..={high} of a buffer of {len}"
    )]
    OutOfBounds {
        /// The shape.
        shape: Dims,
        /// The strides, in elements.
        strides: Strides,
        /// Offset of the first element.
        offset: usize,
        /// Lowest element reached.
        low: i128,
        /// Highest element reached.
        high: i128,
        /// Elements in the buffer.
        len: usize,
    },
    /// A contiguous shape must use its buffer exactly.
    #[error("shape {shape:?} has {expected} elements but the buffer has {len}")]
    LengthMismatch {
        /// The shape.
        shape: Dims,
        /// Elements of the shape.
        expected: usize,
        /// Elements in the buffer.
        len: usize,
    },
    /// Two coordinates of a view to write share an element.
    #[error("shape {shape:?} with strides {strides:?} overlaps itself and cannot be written")]
    SelfOverlap {
        /// The shape.
        shape: Dims,
        /// The strides, in elements.
        strides: Strides,
    },
    /// A shape does not allow what was asked for.
    #[error("the shape {shape:?} does not allow {what}")]
    WrongShape {
        /// The shape.
        shape: Dims,
        /// What was asked for.
        what: String,
    },
    /// The view holds another element type.
    #[error("the view holds {found}, not {expected}")]
    WrongDType {
        /// The type asked for.
        expected: DType,
        /// The type held.
        found: DType,
    },
    /// The system has no memory for so many bytes.
    #[error("out of memory: {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
}

/// A read-only strided view of elements of one [`DType`].
///
/// Invariant `span`: every offset that [`Layout`] reaches from `pointer` lies inside one borrowed allocation. The
/// pointer need not be aligned: kernels read unaligned.
#[derive(Clone)]
pub struct View<'a> {
    pointer: *const u8,
    dtype: DType,
    layout: Layout,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: `span`: a View only reads memory that it borrows shared, like `&[u8]`.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// A row-major view of a whole slice.
    ///
    /// # Errors
    /// [`TensorError::LengthMismatch`] unless the shape has exactly as many elements as the slice.
    pub fn from_slice<T: Element>(data: &'a [T], shape: &[usize]) -> Result<Self, TensorError> {
        let expected = element_count(shape)?;
        if expected != data.len() {
            return Err(TensorError::LengthMismatch { shape: shape.into(), expected, len: data.len() });
        }
        Self::from_slice_strided(data, shape, &contiguous_strides(shape), 0)
    }

    /// A strided view into a slice; `offset` is the element at coordinate zero, strides count elements.
    ///
    /// # Errors
    /// [`TensorError::OutOfBounds`] when a coordinate reaches outside the slice.
    pub fn from_slice_strided<T: Element>(
        data: &'a [T],
        shape: &[usize],
        strides: &[isize],
        offset: usize,
    ) -> Result<Self, TensorError> {
        let layout = checked_layout(data.len(), shape, strides, offset)?;
        // wrapping: an empty view may start anywhere.
        let pointer = data.as_ptr().wrapping_add(offset).cast();
        Ok(View { pointer, dtype: T::DTYPE, layout, memory: PhantomData })
    }

    /// A strided view into bytes, for mapped files and foreign buffers; the bytes need not be aligned.
    ///
    /// # Errors
    /// [`TensorError::OutOfBounds`] when a coordinate reaches outside the bytes.
    pub fn from_bytes(
        bytes: &'a [u8],
        dtype: DType,
        shape: &[usize],
        strides: &[isize],
        offset: usize,
    ) -> Result<Self, TensorError> {
        let layout = checked_layout(bytes.len() / dtype.bytes(), shape, strides, offset)?;
        let pointer = bytes.as_ptr().wrapping_add(offset.wrapping_mul(dtype.bytes()));
        Ok(View { pointer, dtype, layout, memory: PhantomData })
    }

    /// A view of foreign memory.
    ///
    /// # Safety
    /// Every offset that the layout reaches from `pointer` must be readable for `'a`, and nobody may write it meanwhile.
    pub unsafe fn from_raw_parts(pointer: *const u8, dtype: DType, layout: Layout) -> Self {
        View { pointer, dtype, layout, memory: PhantomData }
    }

    /// Address of the element at coordinate zero; may be unaligned, or dangling for an empty view.
    pub fn as_ptr(&self) -> *const u8 {
        self.pointer
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Axis lengths.
    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[isize] {
        &self.layout.strides
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The addresses that the view reaches, first byte and one past the last; `None` when it is empty.
    pub fn byte_range(&self) -> Option<(usize, usize)> {
        byte_range(self.pointer, self.dtype, &self.layout)
    }

    /// The same elements with one axis as two, the second of length `inner`: no data is moved.
    ///
    /// # Errors
    /// [`TensorError::WrongShape`] where there is no such axis, or its length is no multiple of `inner`.
    pub fn split_axis(&self, axis: usize, inner: usize) -> Result<View<'a>, TensorError> {
        let Layout { shape, strides } = &self.layout;
        let wrong =
            || TensorError::WrongShape { shape: shape.clone(), what: format!("splitting axis {axis} by {inner}") };
        let &len = shape.get(axis).filter(|&&len| inner > 0 && len % inner == 0).ok_or_else(wrong)?;
        let stride = strides[axis];
        let mut layout = self.layout.clone();
        layout.shape[axis] = len / inner;
        // The outer stride of a single step is never used, so it may be any.
        layout.strides[axis] = stride.wrapping_mul(inner as isize);
        layout.shape.insert(axis + 1, inner);
        layout.strides.insert(axis + 1, stride);
        Ok(View { layout, ..self.clone() })
    }

    /// Copies the elements out in row-major order.
    ///
    /// # Errors
    /// [`TensorError::WrongDType`] when the view holds another type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        if self.dtype != T::DTYPE {
            return Err(TensorError::WrongDType { expected: T::DTYPE, found: self.dtype });
        }
        let count = element_count(self.shape())?;
        let mut values = Vec::with_capacity(count);
        for flat in 0..count {
            let at = offset_of(&self.layout, flat);
            // SAFETY: `span`: the offset of a coordinate lies inside the borrowed memory; reads are unaligned.
            let value = unsafe { read::<T>(self.pointer.cast::<T>().offset(at)) };
            values.push(value);
        }
        Ok(values)
    }
}

/// Reads an element; a byte of a `bool` view that is neither 0 nor 1 counts as true.
///
/// # Safety
/// `pointer` must be readable for one element.
unsafe fn read<T: Element>(pointer: *const T) -> T {
    if T::DTYPE == DType::Bool {
        // SAFETY: a bool element is one byte; 0 and 1 are valid for both `bool` and `Bool8`.
        unsafe {
            let truth = pointer.cast::<Bool8>().read().get();
            (&raw const truth).cast::<T>().read()
        }
    } else {
        // SAFETY: by the caller; every other element type accepts any bytes.
        unsafe { pointer.read_unaligned() }
    }
}

fn offset_of(layout: &Layout, mut flat: usize) -> isize {
    let mut offset = 0;
    for (&len, &stride) in layout.shape.iter().zip(&layout.strides).rev() {
        offset += (flat % len) as isize * stride;
        flat /= len;
    }
    offset
}

fn checked_layout(len: usize, shape: &[usize], strides: &[isize], offset: usize) -> Result<Layout, TensorError> {
    if shape.len() != strides.len() {
        return Err(TensorError::RankMismatch { shape: shape.len(), strides: strides.len() });
    }
    let layout = Layout { shape: shape.into(), strides: strides.into() };
    if let Some((low, high)) = layout.span()? {
        let (low, high) = (offset as i128 + low as i128, offset as i128 + high as i128);
        if low < 0 || high >= len as i128 {
            return Err(TensorError::OutOfBounds {
                shape: layout.shape,
                strides: layout.strides,
                offset,
                low,
                high,
                len,
            });
        }
    }
    Ok(layout)
}

fn byte_range(pointer: *const u8, dtype: DType, layout: &Layout) -> Option<(usize, usize)> {
    let (low, high) = layout.span().ok()??;
    let size = dtype.bytes() as isize;
    let start = (pointer as usize).wrapping_add_signed(low * size);
    Some((start, (pointer as usize).wrapping_add_signed((high + 1) * size)))
}

/// A strided view to write, no two coordinates of which share an element.
///
/// Invariants: `span` as for [`View`], and `injective`: distinct coordinates are distinct elements, so tasks that own
/// distinct coordinates may write at the same time.
pub struct ViewMut<'a> {
    pointer: *mut u8,
    dtype: DType,
    layout: Layout,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: `span`: a ViewMut owns the right to its memory as `&mut [u8]` does.
unsafe impl Send for ViewMut<'_> {}
// SAFETY: writing needs `&mut self` or its raw pointer.
unsafe impl Sync for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    /// A row-major view of a whole slice.
    ///
    /// # Errors
    /// As [`View::from_slice`].
    pub fn from_slice<T: Element>(data: &'a mut [T], shape: &[usize]) -> Result<Self, TensorError> {
        let expected = element_count(shape)?;
        if expected != data.len() {
            return Err(TensorError::LengthMismatch { shape: shape.into(), expected, len: data.len() });
        }
        Self::from_slice_strided(data, shape, &contiguous_strides(shape), 0)
    }

    /// A strided view into a slice.
    ///
    /// # Errors
    /// As [`View::from_slice_strided`], and [`TensorError::SelfOverlap`].
    pub fn from_slice_strided<T: Element>(
        data: &'a mut [T],
        shape: &[usize],
        strides: &[isize],
        offset: usize,
    ) -> Result<Self, TensorError> {
        let layout = checked_layout(data.len(), shape, strides, offset)?;
        let pointer = data.as_mut_ptr().wrapping_add(offset).cast();
        // SAFETY: `span` was checked just above; the slice is borrowed exclusively for 'a.
        unsafe { Self::from_raw_parts(pointer, T::DTYPE, layout) }
    }

    /// A view of foreign memory.
    ///
    /// # Errors
    /// [`TensorError::SelfOverlap`] when two coordinates share an element.
    ///
    /// # Safety
    /// Every offset that the layout reaches must be writable for `'a`, and nobody else may read or write it meanwhile,
    /// except operands of the same call that einfall is told to treat as overlapping.
    pub unsafe fn from_raw_parts(pointer: *mut u8, dtype: DType, layout: Layout) -> Result<Self, TensorError> {
        if !layout.is_injective() {
            return Err(TensorError::SelfOverlap { shape: layout.shape, strides: layout.strides });
        }
        Ok(ViewMut { pointer, dtype, layout, memory: PhantomData })
    }

    /// Address of the element at coordinate zero.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.pointer
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Axis lengths.
    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// Strides in elements.
    pub fn strides(&self) -> &[isize] {
        &self.layout.strides
    }

    /// Shape and strides.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The addresses that the view reaches, first byte and one past the last; `None` when it is empty.
    pub fn byte_range(&self) -> Option<(usize, usize)> {
        byte_range(self.pointer, self.dtype, &self.layout)
    }

    /// The same elements, to read.
    pub fn as_view(&self) -> View<'_> {
        View { pointer: self.pointer, dtype: self.dtype, layout: self.layout.clone(), memory: PhantomData }
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} {:?} strides {:?})", self.dtype, self.shape(), self.strides())
    }
}

impl fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewMut({} {:?} strides {:?})", self.dtype, self.shape(), self.strides())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_views_stay_inside() {
        let data: Vec<i32> = (0..10).collect();
        let view = View::from_slice_strided(&data, &[2, 3], &[5, -2], 4).unwrap();
        assert_eq!(view.to_vec::<i32>().unwrap(), [4, 2, 0, 9, 7, 5]);
        assert!(View::from_slice_strided(&data, &[2, 3], &[5, -2], 3).is_err());
        assert!(View::from_slice_strided(&data, &[2, 3], &[5, 1], 4).is_err());
        assert!(View::from_slice_strided(&data, &[2], &[5, 1], 0).is_err());
        assert!(View::from_slice_strided(&data, &[usize::MAX, usize::MAX], &[0, 0], 0).is_err());
        assert!(View::from_slice_strided(&data, &[0], &[1], 1000).is_ok(), "an empty view reaches nothing");
        assert!(View::from_slice(&data, &[9]).is_err());
    }

    #[test]
    fn zero_strides_read_but_do_not_write() {
        let mut data = [1u8, 2];
        let view = View::from_slice_strided(&data, &[2, 2], &[0, 1], 0).unwrap();
        assert_eq!(view.to_vec::<u8>().unwrap(), [1, 2, 1, 2]);
        let error = ViewMut::from_slice_strided(&mut data, &[2, 2], &[0, 1], 0).unwrap_err();
        assert!(matches!(error, TensorError::SelfOverlap { .. }), "{error}");
    }

    #[test]
    fn bytes_may_be_misaligned_and_bools_may_be_anything() {
        let bytes = [9u8, 1, 0, 0, 0, 2, 0, 0, 0];
        let view = View::from_bytes(&bytes[1..], DType::I32, &[2], &[1], 0).unwrap();
        assert_eq!(view.to_vec::<i32>().unwrap(), [1, 2]);
        let view = View::from_bytes(&[0, 1, 7], DType::Bool, &[3], &[1], 0).unwrap();
        assert_eq!(view.to_vec::<bool>().unwrap(), [false, true, true]);
        assert!(View::from_bytes(&bytes, DType::I32, &[3], &[1], 0).is_err(), "9 bytes hold two");
        assert!(view.to_vec::<u8>().is_err());
    }
}
