//! NumPy arrays: read where they lie, through the layout that NumPy promises to keep.

use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use einfall::{DType, Layout, View};
use numpy::npyffi::{
    NPY_ARRAY_WRITEABLE, NpyTypes, PY_ARRAY_API, PyArray_Descr, PyArrayObject, get_type_object, npy_intp,
};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::kind::is_plain_numpy;
use crate::large;
use crate::run::Views;

/// Why an array cannot be read where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Swapped bytes, or strides that are no multiples of an element: a copy can be read.
    Layout,
    /// Elements of a type that einfall does not have.
    Type,
}

/// The number that NumPy gave to `bfloat16`, which another package adds, and the description that goes with it.
static BF16_NUMBER: AtomicI32 = AtomicI32::new(-1);
static BF16_DESCR: AtomicPtr<PyArray_Descr> = AtomicPtr::new(ptr::null_mut());

/// The element type for NumPy's number of it.
fn dtype(number: c_int) -> Option<DType> {
    let long = size_of::<std::ffi::c_long>() == 8;
    Some(match number {
        0 => DType::Bool,
        1 => DType::I8,
        2 => DType::U8,
        3 => DType::I16,
        4 => DType::U16,
        5 => DType::I32,
        6 => DType::U32,
        7 if long => DType::I64,
        8 if long => DType::U64,
        7 => DType::I32,
        8 => DType::U32,
        9 => DType::I64,
        10 => DType::U64,
        11 => DType::F32,
        12 => DType::F64,
        14 => DType::C64,
        15 => DType::C128,
        23 => DType::F16,
        _ if number == BF16_NUMBER.load(Ordering::Relaxed) => DType::BF16,
        _ => return None,
    })
}

/// NumPy's number of an element type.
fn number(dtype: DType) -> c_int {
    let long = size_of::<std::ffi::c_long>() == 8;
    match dtype {
        DType::Bool => 0,
        DType::I8 => 1,
        DType::U8 => 2,
        DType::I16 => 3,
        DType::U16 => 4,
        DType::I32 => 5,
        DType::U32 => 6,
        DType::I64 => {
            if long {
                7
            } else {
                9
            }
        }
        DType::U64 => {
            if long {
                8
            } else {
                10
            }
        }
        DType::F32 => 11,
        DType::F64 => 12,
        DType::C64 => 14,
        DType::C128 => 15,
        DType::F16 => 23,
        DType::BF16 => BF16_NUMBER.load(Ordering::Relaxed),
    }
}

/// A view of an array, for as long as the caller holds it.
///
/// # Safety
/// `array` must be an instance of `numpy.ndarray`, alive and not resized while the view is used.
pub(crate) unsafe fn view(array: &Bound<'_, PyAny>) -> Result<View<'static>, Unusable> {
    // SAFETY: by the caller; these fields are part of NumPy's binary interface, in every version since 1.7.
    unsafe {
        let fields = &(*array.as_ptr().cast::<PyArrayObject>()).fields;
        let descr = &(*fields.descr).fields;
        let dtype = match dtype(descr.type_num) {
            Some(dtype) => dtype,
            None => learn_bf16(array, descr.type_num).ok_or(Unusable::Type)?,
        };
        let swapped = if cfg!(target_endian = "little") { b'>' } else { b'<' };
        if descr.byteorder as u8 == swapped {
            return Err(Unusable::Layout);
        }
        let rank = fields.nd as usize;
        let (lens, steps) = match rank {
            0 => (&[][..], &[][..]),
            _ => {
                (std::slice::from_raw_parts(fields.dimensions, rank), std::slice::from_raw_parts(fields.strides, rank))
            }
        };
        let mut layout = Layout { shape: Default::default(), strides: Default::default() };
        let shift = dtype.bytes().trailing_zeros();
        let mut whole = true;
        for (&len, &step) in lens.iter().zip(steps) {
            layout.shape.push(len as usize);
            // The stride of an axis with one element means nothing, and may be anything.
            let step = if len <= 1 { 0 } else { step };
            whole &= step & ((1 << shift) - 1) == 0;
            layout.strides.push(step >> shift);
        }
        if !whole {
            return Err(Unusable::Layout);
        }
        Ok(View::from_raw_parts(fields.data.cast(), dtype, layout))
    }
}

#[cold]
fn learn_bf16(array: &Bound<'_, PyAny>, number: c_int) -> Option<DType> {
    let descr = array.getattr("dtype").ok()?;
    if number < 256 || !descr.getattr("name").ok()?.eq("bfloat16").ok()? {
        return None;
    }
    BF16_NUMBER.store(number, Ordering::Relaxed);
    BF16_DESCR.store(descr.into_ptr().cast(), Ordering::Relaxed);
    Some(DType::BF16)
}

/// Whether an array may be written.
///
/// # Safety
/// As for [`view`].
pub(crate) unsafe fn is_writeable(array: &Bound<'_, PyAny>) -> bool {
    // SAFETY: by the caller.
    unsafe { (*array.as_ptr().cast::<PyArrayObject>()).fields.flags & NPY_ARRAY_WRITEABLE != 0 }
}

/// Adds views of arrays of NumPy's own class that can be read where they lie, from an argument on; false where one is
/// something else, or where there are none.
pub(crate) fn views(arguments: &Bound<'_, PyTuple>, from: usize, views: &mut Views) -> bool {
    for operand in arguments.iter_borrowed().skip(from) {
        if !is_plain_numpy(&operand) {
            return false;
        }
        // SAFETY: an array, which the tuple of the call holds.
        match unsafe { view(&operand) } {
            Ok(view) => views.push(view),
            Err(_) => return false,
        }
    }
    !views.is_empty()
}

/// A new array without contents, and the address of its first element. The layout must have no gaps.
pub(crate) fn empty<'py>(py: Python<'py>, dtype: DType, layout: &Layout) -> PyResult<(Bound<'py, PyAny>, *mut u8)> {
    // Row-major needs no strides; others are those of memory that NumPy makes for them, which it allows.
    let mut steps: smallvec::SmallVec<[npy_intp; 8]> = smallvec::SmallVec::new();
    if !layout.is_contiguous() {
        steps.extend(layout.strides.iter().map(|&stride| stride * dtype.bytes() as isize));
    }
    // SAFETY: NumPy is imported, since an operand is an array; the description is a new reference, which is stolen.
    unsafe {
        let descr = match dtype {
            DType::BF16 => {
                let descr = BF16_DESCR.load(Ordering::Relaxed);
                if descr.is_null() {
                    return Err(pyo3::exceptions::PyTypeError::new_err("NumPy has no bfloat16 of its own"));
                }
                ffi::Py_INCREF(descr.cast());
                descr
            }
            _ => PY_ARRAY_API.PyArray_DescrFromType(py, number(dtype)),
        };
        let class = get_type_object(py, NpyTypes::PyArray_Type);
        let mut make = || {
            PY_ARRAY_API.PyArray_NewFromDescr(
                py,
                class,
                descr,
                layout.shape.len() as c_int,
                // Lengths are at most `isize::MAX`, and NumPy only reads them.
                layout.shape.as_ptr().cast_mut().cast::<npy_intp>(),
                if steps.is_empty() { ptr::null_mut() } else { steps.as_mut_ptr() },
                ptr::null_mut(),
                0,
                ptr::null_mut(),
            )
        };
        let bytes = layout.shape.iter().fold(dtype.bytes(), |bytes, &len| bytes.saturating_mul(len));
        let array = if bytes < large::LEAST { make() } else { large::with_kept_memory(py, make) };
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        let data = (*array.as_ptr().cast::<PyArrayObject>()).fields.data;
        Ok((array, data.cast()))
    }
}

/// What NumPy's functions return: a scalar in place of an array without axes.
pub(crate) fn finish(array: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let py = array.py();
    // SAFETY: an array that `empty` made; the reference is stolen.
    unsafe { Bound::from_owned_ptr_or_err(py, PY_ARRAY_API.PyArray_Return(py, array.into_ptr().cast())) }
}

/// An array that shows elements of another, which it keeps alive.
///
/// # Safety
/// `of` must be an array, and every offset of the layout from its first element must lie in it.
pub(crate) unsafe fn view_into<'py>(
    of: &Bound<'py, PyAny>,
    dtype: DType,
    shape: &[usize],
    strides: &[isize],
) -> PyResult<Bound<'py, PyAny>> {
    let py = of.py();
    let mut lens: smallvec::SmallVec<[npy_intp; 8]> = shape.iter().map(|&len| len as npy_intp).collect();
    let bytes = dtype.bytes() as isize;
    let mut steps: smallvec::SmallVec<[npy_intp; 8]> = strides.iter().map(|&stride| stride * bytes).collect();
    // SAFETY: by the caller; references to the description and to the base are stolen, so they are made first.
    unsafe {
        let fields = &(*of.as_ptr().cast::<PyArrayObject>()).fields;
        ffi::Py_INCREF(fields.descr.cast());
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            get_type_object(py, NpyTypes::PyArray_Type),
            fields.descr,
            shape.len() as c_int,
            lens.as_mut_ptr(),
            steps.as_mut_ptr(),
            fields.data.cast(),
            fields.flags & NPY_ARRAY_WRITEABLE,
            ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), of.clone().into_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array)
    }
}
