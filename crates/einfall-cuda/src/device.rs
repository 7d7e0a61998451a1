//! A GPU as a device of the planner.
//!
//! [`CudaDevice::launch`] works on memory of the GPU, in the caller's stream, without waiting. The
//! [`Device`](einfall_plan::Device) that the facade knows takes views of the host's memory: it copies them to the GPU and
//! the result back, which serves tests, the command and small experiments.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;
use einfall_plan::{AttentionKernelSpec, AttentionPlan, Device, KernelSpec, Machine, Plan, RunError, Saved};
use einfall_tensor::{View, ViewMut};

use crate::blas::Library;
use crate::driver::{DevicePointer, Gpu, Memory, Status, Stream, checked};
use crate::modules::Modules;
use crate::program::Kept;
use crate::{CudaError, Program, machine, ops};

/// One GPU, with its compiled kernels.
#[derive(Debug)]
pub struct CudaDevice {
    // Dropped first: the library works in the GPU's context.
    library: Option<Library>,
    gpu: Gpu,
    modules: Modules,
    machine: Machine,
    kernels: Vec<KernelSpec>,
    attention_kernels: Vec<AttentionKernelSpec>,
    status: Status,
    /// Taken by [`CudaDevice::alone`].
    copying: Mutex<()>,
}

impl CudaDevice {
    /// A GPU by its number.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no such GPU.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        let gpu = Gpu::new(ordinal)?;
        let (machine, status) = (machine::estimate(&gpu)?, Status::new(&gpu)?);
        let library = gpu.current(|| Ok(Library::new()))?;
        Ok(CudaDevice {
            library,
            gpu,
            modules: Modules::new(),
            machine,
            kernels: ops::kernel_specs(),
            attention_kernels: ops::attention::attention_specs(),
            status,
            copying: Mutex::new(()),
        })
    }

    /// Number of GPUs.
    ///
    /// # Errors
    /// [`CudaError::Missing`] without a driver.
    pub fn count() -> Result<usize, CudaError> {
        Gpu::count()
    }

    /// The same GPU with measured rates.
    #[must_use]
    pub fn with_machine(self, machine: Machine) -> Self {
        CudaDevice { machine, ..self }
    }

    /// Which GPU it is.
    pub fn ordinal(&self) -> usize {
        self.gpu.ordinal
    }

    /// Compiles and loads what a plan needs. The plan was made with this device's machine and kernels.
    ///
    /// The program runs wherever the addresses of the arguments, and last of the output, are multiples of as many bytes
    /// as those given here: 16 where possible, since wide loads need it; at least the size of an element.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn prepare(&self, plan: &Plan, addresses: &[DevicePointer]) -> Result<Program, CudaError> {
        let dtypes = plan.problem.arguments.iter().map(|argument| argument.dtype).chain([plan.problem.output.dtype]);
        let alignment = addresses.iter().zip(dtypes).map(|(&address, dtype)| {
            // Aligned to more than 256 bytes is as good as to 256; complex numbers are loaded whole.
            let found = 1_usize << address.trailing_zeros().min(8);
            (found >= dtype.bytes()).then_some(found).ok_or(CudaError::Alignment)
        });
        Program::new(&self.gpu, &self.modules, self.library.as_ref(), plan, &alignment.collect::<Result<Vec<_>, _>>()?)
    }

    /// Puts a program into a stream; neither waits nor allocates, and may be captured into a graph.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// `program` comes from [`CudaDevice::prepare`]. The pointers are those of the arguments' and of the output's first
    /// elements on this GPU, of the types, shapes and strides of the plan; the output overlaps no argument; `workspace`
    /// is aligned to 256 and has [`Program::workspace_bytes`]. All of them stay until the stream has passed.
    pub unsafe fn launch(
        &self,
        program: &Program,
        arguments: &[DevicePointer],
        out: DevicePointer,
        workspace: DevicePointer,
        stream: Stream,
    ) -> Result<(), CudaError> {
        // SAFETY: by the caller.
        unsafe { self.launch_with(program, arguments, out, workspace, None, stream) }
    }

    /// As [`CudaDevice::launch`], with the inverses of tables in memory that the caller keeps: a launch that is told that
    /// the tables are unchanged does not make them again. `workspace` needs [`Program::workspace_beside_kept`] bytes.
    ///
    /// A table that was changed all the same gives wrong results; what is read and written stays inside the arguments.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// As [`CudaDevice::launch`]. The kept memory is of this GPU and has [`Program::kept_bytes`]; nothing but launches of
    /// this program in this stream, or after they have passed, writes it; where an argument is called unchanged, a launch
    /// before this one had this memory, and the same table's address.
    pub unsafe fn launch_kept(
        &self,
        program: &Program,
        arguments: &[DevicePointer],
        out: DevicePointer,
        workspace: DevicePointer,
        kept: Kept<'_>,
        stream: Stream,
    ) -> Result<(), CudaError> {
        // SAFETY: by the caller.
        unsafe { self.launch_with(program, arguments, out, workspace, Some(kept), stream) }
    }

    /// # Safety
    /// As [`CudaDevice::launch_kept`].
    unsafe fn launch_with(
        &self,
        program: &Program,
        arguments: &[DevicePointer],
        out: DevicePointer,
        workspace: DevicePointer,
        kept: Option<Kept<'_>>,
        stream: Stream,
    ) -> Result<(), CudaError> {
        let (status, library) = (self.status.pointer(), self.library.as_ref());
        // SAFETY: by the caller.
        self.gpu.current(|| unsafe { program.launch(arguments, out, workspace, kept, status, library, stream) })
    }

    /// Whether what is put into a stream is captured into a graph, to be run later.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Safety
    /// It is a stream of this GPU.
    pub unsafe fn is_capturing(&self, stream: Stream) -> Result<bool, CudaError> {
        self.gpu.current(|| {
            let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
            // SAFETY: by the caller.
            checked("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream.cast(), &mut status).result() })?;
            Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
        })
    }

    /// Whether a kernel that has finished found a table's value outside its axis since this was last asked.
    pub fn take_bad_table(&self) -> bool {
        self.status.take()
    }

    /// A program of tasks alone.
    pub(crate) fn program_of_tasks(
        &self,
        tasks: &[crate::Task],
        base: impl Fn(crate::Memory) -> crate::program::Base,
        alignment: Vec<usize>,
        workspace_bytes: usize,
    ) -> Result<Program, CudaError> {
        Program::of_tasks(&self.gpu, &self.modules, tasks, base, alignment, workspace_bytes)
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Holds calls on copies apart: they share the word that tells of bad tables.
    pub(crate) fn alone(&self) -> MutexGuard<'_, ()> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_on_copies(&self, plan: &Plan, arguments: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), RunError> {
        let copies = arguments.iter().map(|view| Copied::of(&self.gpu, view));
        let copies = copies.collect::<Result<Vec<_>, _>>()?;
        // Without gaps all is written, and may be uninitialised.
        let result = Copied::to(&self.gpu, out)?;
        let pointers: Vec<DevicePointer> = copies.iter().map(|copy| copy.first).collect();
        let program = self.prepare(plan, &[&pointers[..], &[result.first]].concat())?;
        let workspace = Memory::new(&self.gpu, program.workspace_bytes)?;
        let _alone = self.alone();
        self.status.take();
        // SAFETY: the copies are as large as the views, whose layouts the caller compared with the plan.
        unsafe {
            self.launch(&program, &pointers, result.first, workspace.pointer(), std::ptr::null_mut())?;
            // The copy waits for the stream.
            result.fetch()?;
        }
        if self.status.take() {
            return Err(crate::check::first_bad_value(plan, arguments).unwrap_or(RunError::Changed));
        }
        Ok(())
    }
}

/// A view's memory, all that lies between its first and its last byte, on the GPU.
pub(crate) struct Copied<'a> {
    memory: Memory<'a>,
    /// Where the element with all coordinates zero is.
    pub(crate) first: DevicePointer,
    start: *mut u8,
    lead: usize,
    bytes: usize,
}

impl<'a> Copied<'a> {
    /// A copy of what a view borrows.
    pub(crate) fn of(gpu: &'a Gpu, view: &View<'_>) -> Result<Self, CudaError> {
        let copied = Self::space(gpu, view.as_ptr(), view.byte_range())?;
        copied.fill()?;
        Ok(copied)
    }

    /// Room for what a view takes back. What lies between its elements comes back as it was.
    pub(crate) fn to(gpu: &'a Gpu, view: &mut ViewMut<'_>) -> Result<Self, CudaError> {
        let copied = Self::space(gpu, view.as_mut_ptr(), view.byte_range())?;
        if !view.layout().is_contiguous() {
            copied.fill()?;
        }
        Ok(copied)
    }

    /// Room for a view's memory, uninitialised.
    fn space(gpu: &'a Gpu, first: *const u8, range: Option<(usize, usize)>) -> Result<Self, CudaError> {
        let (start, end) = range.unwrap_or((first as usize, first as usize));
        let (bytes, before) = (end - start, first as usize - start);
        // Strides count elements, so with the first one aligned all are, wherever the host has them.
        let lead = before.next_multiple_of(256) - before;
        let memory = Memory::new(gpu, lead + bytes)?;
        let first_copied = memory.pointer() + (lead + before) as u64;
        let start = first.wrapping_sub(before).cast_mut();
        Ok(Copied { memory, first: first_copied, start, lead, bytes })
    }

    /// Copies there.
    fn fill(&self) -> Result<(), CudaError> {
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: `span`: the view borrows these bytes.
        self.memory.write_at(self.lead, unsafe { std::slice::from_raw_parts(self.start, self.bytes) })
    }

    /// Copies back.
    ///
    /// # Safety
    /// The view was a `ViewMut`, still borrowed.
    pub(crate) unsafe fn fetch(&self) -> Result<(), CudaError> {
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: by the caller.
        unsafe { self.memory.read_at(self.lead, self.start, self.bytes) }
    }
}

impl Device for CudaDevice {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn kernels(&self) -> &[KernelSpec] {
        &self.kernels
    }

    unsafe fn run(&self, plan: &Plan, arguments: &[View<'_>], out: &mut ViewMut<'_>) -> Result<(), RunError> {
        plan.check_arguments(arguments, out)?;
        if plan.has_unread_entries() {
            self.check_tables(plan, arguments)?;
        }
        self.run_on_copies(plan, arguments, out)
    }

    fn attention_kernels(&self) -> &[AttentionKernelSpec] {
        &self.attention_kernels
    }

    unsafe fn attend(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        out: &mut ViewMut<'_>,
        lse: Option<&mut ViewMut<'_>>,
    ) -> Result<(), RunError> {
        self.attend_views(plan, arguments, out, lse)
    }

    unsafe fn attend_backward(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        saved: &Saved<'_>,
        gradients: &mut [Option<ViewMut<'_>>; 4],
    ) -> Result<(), RunError> {
        self.attend_backward_views(plan, arguments, saved, gradients)
    }

    fn check_tables(&self, plan: &Plan, arguments: &[View<'_>]) -> Result<(), RunError> {
        if !plan.refuses_bad_tables(arguments.len())? {
            return Ok(());
        }
        crate::check::first_bad_value(plan, arguments).map_or(Ok(()), Err)
    }
}
