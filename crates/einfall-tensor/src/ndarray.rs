//! Views of `ndarray` arrays, whatever their strides; nothing is copied.

use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::{Dims, Element, Layout, TensorError, View, ViewMut};

fn layout<D: Dimension>(shape: &D, strides: &[isize]) -> Layout {
    Layout { shape: Dims::from_slice(shape.slice()), strides: strides.into() }
}

impl<'a, T: Element, D: Dimension> From<ArrayView<'a, T, D>> for View<'a> {
    fn from(array: ArrayView<'a, T, D>) -> Self {
        let layout = layout(&array.raw_dim(), array.strides());
        // SAFETY: `span`: ndarray guarantees that every element of its view is inside memory borrowed for 'a.
        unsafe { View::from_raw_parts(array.as_ptr().cast(), T::DTYPE, layout) }
    }
}

impl<'a, T: Element, D: Dimension> TryFrom<ArrayViewMut<'a, T, D>> for ViewMut<'a> {
    type Error = TensorError;

    /// # Errors
    /// [`TensorError::SelfOverlap`], which ndarray's own mutable views never cause.
    fn try_from(mut array: ArrayViewMut<'a, T, D>) -> Result<Self, TensorError> {
        let layout = layout(&array.raw_dim(), array.strides());
        // SAFETY: as above, and the array is borrowed exclusively for 'a.
        unsafe { ViewMut::from_raw_parts(array.as_mut_ptr().cast(), T::DTYPE, layout) }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{array, s};

    use crate::View;

    #[test]
    fn slices_and_reversals_are_views() {
        let array = array![[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let view: View<'_> = array.slice(s![.., ..;-2]).into();
        assert_eq!(view.shape(), [2, 2]);
        assert_eq!(view.to_vec::<f32>().unwrap(), [3.0, 1.0, 6.0, 4.0]);
        let transposed: View<'_> = array.t().into();
        assert_eq!(transposed.to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
