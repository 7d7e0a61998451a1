//! Products of matrices by the vendor's library, cuBLASLt, if it is there.
//!
//! *In*: a [`Product`]. *Out*: [`Prepared`], which puts the product into a stream.

use std::ffi::c_void;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use einfall_tensor::DType;

use crate::CudaError;
use crate::driver::{DevicePointer, Stream};
use crate::ops::gemm::{Matrix, Product};

/// The library, made for the context that is current.
#[derive(Debug)]
pub(crate) struct Library(sys::cublasLtHandle_t);

// SAFETY: `context`: the library's handle may be used by any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// `None` where it is not installed, or does not start.
    pub(crate) fn new() -> Option<Self> {
        // SAFETY: loading the library runs its initialisers only.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        result::create_handle().ok().map(Library)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

fn checked<T>(call: &'static str, result: Result<T, CublasError>) -> Result<T, CudaError> {
    result.map_err(|error| CudaError::Driver { call, reason: format!("{:?}", error.0) })
}

/// One matrix's description.
#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: DType, rows: usize, columns: usize, matrix: &Matrix, batch: usize) -> Result<Self, CudaError> {
        use sys::cublasLtMatrixLayoutAttribute_t::{
            CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
        };
        let (rows, columns) = if matrix.transposed { (columns, rows) } else { (rows, columns) };
        let made = result::create_matrix_layout(data_type(dtype), rows as u64, columns as u64, matrix.leading as i64);
        let layout = Layout(checked("cublasLtMatrixLayoutCreate", made)?);
        let (count, stride) = (batch as i32, matrix.stride as i64);
        // SAFETY: the layout was made above; each attribute is of the type given.
        unsafe {
            let count = (&raw const count).cast::<c_void>();
            let set = result::set_matrix_layout_attribute(layout.0, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count, 4);
            checked("cublasLtMatrixLayoutSetAttribute", set)?;
            let stride = (&raw const stride).cast::<c_void>();
            let offset = CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            let set = result::set_matrix_layout_attribute(layout.0, offset, stride, 8);
            checked("cublasLtMatrixLayoutSetAttribute", set)?;
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

#[derive(Debug)]
struct Description(sys::cublasLtMatmulDesc_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `Prepared::new`, destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F64 => sys::cudaDataType_t::CUDA_R_64F,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::C64 => sys::cudaDataType_t::CUDA_C_32F,
        DType::C128 => sys::cudaDataType_t::CUDA_C_64F,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

/// A product with the algorithm that the library chose for it.
#[derive(Debug)]
pub(crate) struct Prepared {
    description: Description,
    first: Layout,
    second: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
    /// One and zero in the type of the sums: up to 16 bytes each.
    scales: [[u64; 2]; 2],
}

// SAFETY: `context`: descriptions are plain data, only read after they are made.
unsafe impl Send for Prepared {}
// SAFETY: as above.
unsafe impl Sync for Prepared {}

impl Prepared {
    pub(crate) fn new(library: &Library, product: &Product, alignment: [usize; 3]) -> Result<Self, CudaError> {
        let &Product { m, n, k, batch, first, second, out, dtype, out_dtype, workspace, .. } = product;
        let (compute, scale) = match dtype {
            DType::F64 | DType::C128 => (sys::cublasComputeType_t::CUBLAS_COMPUTE_64F, dtype),
            DType::C64 => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, dtype),
            _ => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, DType::F32),
        };
        let made = result::create_matmul_desc(compute, data_type(scale));
        let description = Description(checked("cublasLtMatmulDescCreate", made)?);
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        for (attribute, matrix) in [(CUBLASLT_MATMUL_DESC_TRANSA, &first), (CUBLASLT_MATMUL_DESC_TRANSB, &second)] {
            let operation = i32::from(matrix.transposed);
            // SAFETY: the description was made above; the attribute is a 32-bit number, 0 for none, 1 for transposed.
            let set = unsafe {
                let value = (&raw const operation).cast::<c_void>();
                result::set_matmul_desc_attribute(description.0, attribute, value, 4)
            };
            checked("cublasLtMatmulDescSetAttribute", set)?;
        }
        let first = Layout::new(dtype, m, k, &first, batch)?;
        let second = Layout::new(dtype, k, n, &second, batch)?;
        let out = Layout::new(out_dtype, m, n, &out, batch)?;
        let algorithm = Self::choose(library, &description, [&first, &second, &out], workspace, alignment)?;
        let scales = match scale {
            DType::F64 | DType::C128 => [[1.0_f64.to_bits(), 0], [0, 0]],
            _ => [[u64::from(1.0_f32.to_bits()), 0], [0, 0]],
        };
        Ok(Prepared { description, first, second, out, algorithm, workspace, scales })
    }

    fn choose(
        library: &Library,
        description: &Description,
        [first, second, out]: [&Layout; 3],
        workspace: usize,
        alignment: [usize; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t, CudaError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let preference = checked("cublasLtMatmulPreferenceCreate", result::create_matmul_pref())?;
        let workspace = workspace as u64;
        let [left, right, output] = alignment.map(|bytes| bytes.min(256) as u32);
        // Parts of a long sum are added up in the type of the sums, and not in place: measured, parts that are rounded to
        // a half type are off by ten times what the result's rounding allows.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let wanted = [
            (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const reduction).cast(), 4),
            (Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast::<c_void>(), 8),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (&raw const left).cast(), 4),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (&raw const right).cast(), 4),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (&raw const output).cast(), 4),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (&raw const output).cast(), 4),
        ];
        // SAFETY: everything was made above and lives on; attributes are of the types given; destroyed once.
        unsafe {
            let set = wanted.into_iter().try_for_each(|(attribute, value, bytes)| {
                result::set_matmul_pref_attribute(preference, attribute, value, bytes)
            });
            let found = set.and_then(|()| {
                result::get_matmul_algo_heuristic(library.0, description.0, first.0, second.0, out.0, out.0, preference)
            });
            let _ = result::destroy_matmul_pref(preference);
            Ok(checked("cublasLtMatmulAlgoGetHeuristic", found)?.algo)
        }
    }

    /// Puts the product into a stream.
    ///
    /// # Safety
    /// The matrices lie at these addresses, aligned as when it was prepared, the workspace has as many bytes as were
    /// asked for, and all stay until the stream has passed.
    pub(crate) unsafe fn launch(
        &self,
        library: &Library,
        [first, second, out]: [DevicePointer; 3],
        workspace: DevicePointer,
        stream: Stream,
    ) -> Result<(), CudaError> {
        let [one, zero] = &self.scales;
        // SAFETY: by the caller; the scales are of the type that the description names.
        let done = unsafe {
            result::matmul(
                library.0,
                self.description.0,
                one.as_ptr().cast(),
                zero.as_ptr().cast(),
                first as *const c_void,
                self.first.0,
                second as *const c_void,
                self.second.0,
                out as *const c_void,
                self.out.0,
                out as *mut c_void,
                self.out.0,
                &self.algorithm,
                workspace as *mut c_void,
                self.workspace,
                stream.cast(),
            )
        };
        checked("cublasLtMatmul", done)
    }
}
