//! Attention on NVIDIA GPUs, launched into the caller's stream, with the library's own memory.
//!
//! *In*: views whose memory the host must not read. *Out*: new arrays of the library. Nothing waits for the GPU.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use einfall::{Argument, AttentionPointers, AttentionProgram, Error, PreparedAttention, RunError, View};
use lru::LruCache;
use pyo3::prelude::*;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::attention::{Settings, pair};
use crate::cache::MOST;
use crate::cuda::{Gpu, Keeping, Keeps, Library, Stream, Workspace, opened, run_kept};
use crate::error::to_python;
use crate::table;

/// A plan and its kernels, for arrays of some alignment.
pub(crate) struct Ready {
    pub(crate) prepared: PreparedAttention<'static>,
    program: AttentionProgram,
}

impl Keeps for Ready {
    fn workspace_bytes(&self) -> usize {
        self.program.workspace_bytes()
    }

    fn kept_bytes(&self) -> usize {
        self.program.kept_bytes()
    }

    fn workspace_beside_kept(&self) -> usize {
        self.program.workspace_beside_kept()
    }

    fn is_decided_by(&self, unchanged: &[bool]) -> bool {
        self.program.is_decided_by(unchanged)
    }
}

type Programs = LruCache<Box<[u64]>, Arc<Ready>, FxBuildHasher>;

fn programs() -> MutexGuard<'static, Programs> {
    static PROGRAMS: OnceLock<Mutex<Programs>> = OnceLock::new();
    let most = NonZeroUsize::new(MOST).expect("above zero");
    let programs = PROGRAMS.get_or_init(|| Mutex::new(LruCache::with_hasher(most, FxBuildHasher)));
    // What a panic interrupted is a cache: whatever is in it is whole.
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An attention on a GPU.
pub(crate) struct Call<'a> {
    pub(crate) ordinal: usize,
    pub(crate) equation: &'a str,
    pub(crate) views: &'a [View<'a>],
    pub(crate) settings: &'a Settings,
}

/// Wide loads need aligned arrays; more than 16 bytes make no difference.
fn class(address: u64) -> u64 {
    1 << address.trailing_zeros().min(4)
}

impl Call<'_> {
    /// Finds or makes its plan with the kernels, for what is saved at these addresses; `wanted` gradients make it one of the
    /// backward pass.
    pub(crate) fn ready(
        &self,
        gpu: &'static Gpu,
        saved: [u64; 3],
        wanted: Option<[bool; 4]>,
        wants_lse: bool,
    ) -> Result<Arc<Ready>, Error> {
        let classes = || self.views.iter().map(|view| class(view.as_ptr() as u64));
        let mut key = self.settings.key(self.equation, self.views, wanted);
        key.push(self.ordinal as u64 | u64::from(wants_lse) << 32);
        key.extend(classes().chain(saved.map(class)));
        if let Some(ready) = programs().get(&key[..]) {
            return Ok(Arc::clone(ready));
        }
        let arguments = self.views.iter().map(|view| Argument { dtype: view.dtype(), layout: view.layout().clone() });
        let attend = self.settings.attend(self.equation).device(&gpu.device);
        let prepared = match wanted {
            None => attend.plan_for(arguments.collect())?,
            Some(wanted) => attend.plan_gradients(arguments.collect(), wanted)?,
        };
        // Kernels may count on the alignment that the key names, and on no more.
        let arguments = prepared.arguments(self.views)?;
        let arguments: Vec<u64> = arguments.iter().map(|view| class(view.as_ptr() as u64)).collect();
        let [out, lse, grad_out] = saved.map(class);
        let lse = if wants_lse || wanted.is_some() { lse } else { 0 };
        let gradients = wanted.unwrap_or_default().map(|wanted| if wanted { 16 } else { 0 });
        let pointers = AttentionPointers { arguments: &arguments, out, lse, grad_out, gradients };
        let program = gpu.device.prepare_attention(prepared.plan(), &pointers).map_err(RunError::from)?;
        let ready = Arc::new(Ready { prepared, program });
        programs().put(key.into_boxed_slice(), Arc::clone(&ready));
        Ok(ready)
    }

    /// Puts it into a stream.
    ///
    /// # Safety
    /// The views are of this GPU; what is saved and what is written has the plan's types and shapes, row-major, and nobody
    /// else has seen what is written; the workspace has what the program asks for, aligned to 256. All stay until the
    /// stream has passed.
    pub(crate) unsafe fn launch(
        &self,
        gpu: &Gpu,
        ready: &Ready,
        [out, lse, grad_out]: [u64; 3],
        gradients: [u64; 4],
        workspace: u64,
        stream: u64,
    ) -> Result<(), Error> {
        let arguments = ready.prepared.arguments(self.views)?;
        let arguments: SmallVec<[u64; 8]> = arguments.iter().map(|view| view.as_ptr() as u64).collect();
        let pointers = AttentionPointers { arguments: &arguments, out, lse, grad_out, gradients };
        // SAFETY: by the caller.
        let launched = unsafe { gpu.device.launch_attention(&ready.program, &pointers, workspace, stream as Stream) };
        Ok(launched.map_err(RunError::from)?)
    }

    /// Puts it into the library's current stream, with its memory.
    ///
    /// # Safety
    /// As [`Call::launch`], but for the workspace.
    unsafe fn launch_in<'py>(
        &self,
        py: Python<'py>,
        library: &impl Library<'py>,
        gpu: &Gpu,
        ready: &Ready,
        saved: [u64; 3],
        gradients: [u64; 4],
    ) -> PyResult<()> {
        let stream = library.stream()?;
        let workspace = Workspace::of(library, gpu, self.ordinal, stream, ready.program.workspace_bytes())?;
        // SAFETY: by the caller; the library keeps memory that it has given away for this stream until it has passed.
        let launched = unsafe { self.launch(gpu, ready, saved, gradients, workspace.address(), stream) };
        drop(workspace);
        launched.map_err(|error| to_python(py, error))
    }
}

/// The result, and its log-sum-exp or `None`.
pub(crate) fn forward<'py>(
    py: Python<'py>,
    library: &impl Library<'py>,
    call: &Call<'_>,
    return_lse: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let gpu = opened(py, call.ordinal)?;
    // New arrays are aligned well.
    let ready = call.ready(gpu, [16; 3], None, return_lse).map_err(|error| to_python(py, error))?;
    let plan = ready.prepared.plan();
    let output = &plan.problem.output;
    let (out, out_address) = library.empty(output.dtype, &output.layout.shape)?;
    let lse = return_lse.then(|| library.empty(plan.attention.accumulator, &plan.lse.shape)).transpose()?;
    if !plan.attention.is_empty() {
        let saved = [out_address, lse.as_ref().map_or(0, |lse| lse.1), 0];
        // SAFETY: the library has just made both, row-major.
        unsafe { call.launch_in(py, library, gpu, &ready, saved, [0; 4])? };
    }
    pair(py, out, lse.map(|lse| lse.0))
}

/// The gradients that are wanted, from the output, its log-sum-exp and the gradient of the output, all row-major. The
/// inverses of tables that keep theirs are made once.
pub(crate) fn backward<'py>(
    py: Python<'py>,
    library: &impl Library<'py>,
    call: &Call<'_>,
    operands: &[Bound<'py, PyAny>],
    saved: &[View<'_>; 3],
    wanted: [bool; 4],
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let gpu = opened(py, call.ordinal)?;
    let saved = saved.each_ref().map(|view| view.as_ptr() as u64);
    let ready = call.ready(gpu, saved, Some(wanted), true).map_err(|error| to_python(py, error))?;
    let plan = ready.prepared.plan();
    let (mut arrays, mut addresses) = (Vec::new(), [0; 4]);
    for (number, operand) in plan.problem.operands.iter().enumerate().filter(|(number, _)| wanted[*number]) {
        let Argument { dtype, layout } = &plan.arguments[operand.argument];
        let (array, address) = library.empty(*dtype, &layout.shape)?;
        addresses[number] = address;
        arrays.push(array);
    }
    let tables = &table::hanging(operands)?;
    if ready.program.kept_bytes() == 0 || tables.is_empty() {
        // SAFETY: the library has just made the gradients; the caller has saved what the forward pass gave.
        unsafe { call.launch_in(py, library, gpu, &ready, saved, addresses)? };
        return Ok(arrays);
    }
    let arguments = ready.prepared.arguments(call.views).map_err(|error| to_python(py, error))?;
    let of = |views: &[View<'_>]| views.iter().map(|view| view.as_ptr() as u64).collect::<SmallVec<[u64; 8]>>();
    let (given, arguments, stream) = (&of(call.views), &of(&arguments), library.stream()?);
    let [out, lse, grad_out] = saved;
    let pointers = AttentionPointers { arguments, out, lse, grad_out, gradients: addresses };
    let (ready, ordinal) = (&ready, call.ordinal);
    let keeping = Keeping { gpu, ordinal, ready, operands, given, arguments, tables, stream };
    run_kept(py, library, keeping, |kept, workspace| {
        let (device, program, stream) = (&gpu.device, &ready.program, stream as Stream);
        match kept {
            // SAFETY: as above; what is kept is as `run_kept` says.
            Some(kept) => unsafe { device.launch_attention_kept(program, &pointers, workspace, kept, stream) },
            // SAFETY: as above.
            None => unsafe { device.launch_attention(program, &pointers, workspace, stream) },
        }
    })?;
    Ok(arrays)
}
