//! A tensor that owns its memory: what a contraction returns.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::{DType, Dims, Element, Layout, TensorError, View, ViewMut, element_count, memory};

/// A row-major tensor of one [`DType`], aligned to 64 bytes.
pub struct Tensor {
    memory: NonNull<u8>,
    allocated_bytes: usize,
    dtype: DType,
    layout: Layout,
    owns: PhantomData<u8>,
}

// SAFETY: `owned`: the memory belongs to this value alone.
unsafe impl Send for Tensor {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// A tensor of zeros (`false` for `bool`).
    ///
    /// # Errors
    /// [`TensorError::TooLarge`] or [`TensorError::OutOfMemory`].
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        // SAFETY: every byte is zeroed, and zero bytes are a value of every element type.
        unsafe { Self::allocate(dtype, shape, true) }
    }

    /// A tensor whose elements nobody has written yet.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    ///
    /// # Safety
    /// Every element must be written before it is read.
    pub unsafe fn uninit(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        // SAFETY: by the caller.
        unsafe { Self::allocate(dtype, shape, false) }
    }

    /// # Safety
    /// Unless the memory is `zeroed`, the caller answers for what is not initialised.
    unsafe fn allocate(dtype: DType, shape: &[usize], zeroed: bool) -> Result<Self, TensorError> {
        let too_large = || TensorError::TooLarge { shape: shape.into() };
        let bytes = element_count(shape)?.checked_mul(dtype.bytes()).ok_or_else(too_large)?;
        let memory = if bytes == 0 {
            NonNull::<Aligned>::dangling().cast()
        } else {
            let memory = memory::take(bytes).ok_or(TensorError::OutOfMemory { bytes })?;
            if zeroed {
                // SAFETY: just allocated.
                unsafe { memory.as_ptr().write_bytes(0, bytes) };
            }
            memory
        };
        let layout = Layout::contiguous(shape);
        Ok(Tensor { memory, allocated_bytes: bytes, dtype, layout, owns: PhantomData })
    }

    /// A tensor with the elements of a slice, row-major.
    ///
    /// # Errors
    /// As [`View::from_slice`].
    pub fn from_slice<T: Element>(data: &[T], shape: &[usize]) -> Result<Self, TensorError> {
        View::from_slice(data, shape)?;
        // SAFETY: every byte is copied from the slice just below.
        let tensor = unsafe { Self::uninit(T::DTYPE, shape)? };
        // SAFETY: `owned`: the new memory has exactly as many bytes as the slice and does not overlap it.
        unsafe {
            data.as_ptr().cast::<u8>().copy_to_nonoverlapping(tensor.memory.as_ptr(), tensor.allocated_bytes);
        }
        if T::DTYPE == DType::Bool {
            for at in 0..tensor.allocated_bytes {
                // SAFETY: `owned`; a `Bool8` may hold any byte, and `as_slice::<bool>` needs 0 or 1.
                unsafe {
                    let truth = tensor.memory.as_ptr().add(at);
                    *truth = u8::from(*truth != 0);
                }
            }
        }
        Ok(tensor)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Axis lengths.
    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// The shape as an owned list.
    pub fn dims(&self) -> Dims {
        self.layout.shape.clone()
    }

    /// The same elements, in the same order, in another shape: no data is moved.
    ///
    /// # Errors
    /// [`TensorError::LengthMismatch`] where the shape has more or fewer elements.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self, TensorError> {
        let (expected, len) = (element_count(shape)?, element_count(&self.layout.shape)?);
        if expected != len {
            return Err(TensorError::LengthMismatch { shape: shape.into(), expected, len });
        }
        self.layout = Layout::contiguous(shape);
        Ok(self)
    }

    /// The elements to read.
    pub fn view(&self) -> View<'_> {
        // SAFETY: `owned`: the row-major layout covers exactly this tensor's memory, borrowed with `self`.
        unsafe { View::from_raw_parts(self.memory.as_ptr(), self.dtype, self.layout.clone()) }
    }

    /// The elements to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        // SAFETY: as in `view`, and borrowed exclusively.
        unsafe { ViewMut::from_raw_parts(self.memory.as_ptr(), self.dtype, self.layout.clone()) }
            .expect("a row-major layout does not overlap itself")
    }

    /// The elements as a slice, row-major.
    ///
    /// # Errors
    /// [`TensorError::WrongDType`] when the tensor holds another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        if self.dtype != T::DTYPE {
            return Err(TensorError::WrongDType { expected: T::DTYPE, found: self.dtype });
        }
        let count = self.allocated_bytes / self.dtype.bytes();
        // SAFETY: `owned`: aligned, initialised memory of `count` elements. Kernels write only 0 and 1 as truth values.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), count) })
    }

    /// The bytes of all elements, row-major, in this machine's byte order.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: `owned`: element types have no padding, so every byte is initialised.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.allocated_bytes) }
    }
}

/// Gives an empty tensor an aligned address.
#[repr(align(64))]
struct Aligned;

impl Drop for Tensor {
    fn drop(&mut self) {
        if self.allocated_bytes > 0 {
            // SAFETY: `owned`: taken for as many bytes, and given back once.
            unsafe { memory::give(self.memory, self.allocated_bytes) };
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ALIGNMENT;

    #[test]
    fn owns_aligned_memory_of_the_right_size() {
        let tensor = Tensor::from_slice(&[1.0f64, 2.0, 3.0], &[3]).unwrap();
        assert_eq!(tensor.as_slice::<f64>().unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(tensor.as_bytes().as_ptr() as usize % ALIGNMENT, 0);
        assert!(tensor.as_slice::<f32>().is_err());
        assert_eq!(Tensor::zeros(DType::F16, &[0, 7]).unwrap().as_bytes(), []);
        assert!(matches!(Tensor::zeros(DType::F64, &[1 << 60, 4]), Err(TensorError::TooLarge { .. })));
        assert!(matches!(Tensor::zeros(DType::U8, &[isize::MAX as usize - 64]), Err(TensorError::OutOfMemory { .. })));
    }

    #[test]
    fn scalars_have_one_element() {
        let tensor = Tensor::zeros(DType::Bool, &[]).unwrap();
        assert_eq!(tensor.as_slice::<bool>().unwrap(), [false]);
        let odd = Tensor::from_slice(&[crate::Bool8(7), crate::Bool8(0)], &[2]).unwrap();
        assert_eq!(odd.as_slice::<bool>().unwrap(), [true, false]);
    }
}
