//! Plans of attention made ready for a GPU, and run: on memory of the GPU in the caller's stream, or on views of the
//! host's memory, which are copied there and back.

use einfall_plan::{AttentionPlan, Pass, RunError, Saved};
use einfall_tensor::{DType, View, ViewMut};

use crate::CudaError;
use crate::device::{Copied, CudaDevice};
use crate::driver::{DevicePointer, Memory as Allocated, Stream};
use crate::ops::attention::{AttentionLowering, attention_named};
use crate::program::{Base, Kept, Program};
use crate::text::Memory;

/// Addresses of the first elements of what an attention reads and writes, on the GPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionPointers<'a> {
    /// The arguments in order; a table that is given twice, twice.
    pub arguments: &'a [DevicePointer],
    /// The output: written forward, read backward.
    pub out: DevicePointer,
    /// The log-sum-exp, in the same way; forward, 0 where it is not wanted.
    pub lse: DevicePointer,
    /// Backward: the gradient of the output.
    pub grad_out: DevicePointer,
    /// Backward: the gradients of query, key, value and bias; 0 where they are not wanted.
    pub gradients: [DevicePointer; 4],
}

impl AttentionPointers<'_> {
    /// All of them: the arguments, out, lse, grad_out, gradients.
    fn flat(&self) -> Vec<DevicePointer> {
        let mut all = self.arguments.to_vec();
        all.extend([self.out, self.lse, self.grad_out]);
        all.extend(self.gradients);
        all
    }
}

/// A plan of attention that is ready to be launched.
#[derive(Debug)]
pub struct AttentionProgram {
    program: Program,
    /// Whether the log-sum-exp is written, forward.
    writes_lse: bool,
}

impl AttentionProgram {
    /// Bytes of device memory that a launch needs beside what the pointers name, aligned to 256.
    pub fn workspace_bytes(&self) -> usize {
        self.program.workspace_bytes
    }

    /// Bytes of it that depend on tables and offsets alone, which a caller may keep: the inverse. Mostly 0.
    pub fn kept_bytes(&self) -> usize {
        self.program.kept_bytes
    }

    /// What is needed beside them.
    pub fn workspace_beside_kept(&self) -> usize {
        self.program.workspace_beside_kept
    }

    /// Whether the inverse comes from arguments that all are among these.
    pub fn is_decided_by(&self, unchanged: &[bool]) -> bool {
        self.program.is_decided_by(unchanged)
    }
}

impl CudaDevice {
    /// Compiles and loads what a plan of attention needs, made with this device's machine and its kernels of attention.
    ///
    /// The program runs wherever the addresses are multiples of as many bytes as those given here. Forward, it writes the
    /// log-sum-exp if `pointers.lse` is not 0.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn prepare_attention(
        &self,
        plan: &AttentionPlan,
        pointers: &AttentionPointers<'_>,
    ) -> Result<AttentionProgram, CudaError> {
        let flat = pointers.flat();
        let count = plan.arguments.len();
        if pointers.arguments.len() != count {
            return Err(CudaError::Alignment);
        }
        let attention = &plan.attention;
        let mut dtypes: Vec<DType> = plan.arguments.iter().map(|argument| argument.dtype).collect();
        dtypes.extend([attention.dtype, attention.accumulator, attention.dtype]);
        dtypes.extend([attention.dtype, attention.dtype, attention.dtype, attention.bias_dtype]);
        let mut alignment = Vec::new();
        for (&address, dtype) in flat.iter().zip(dtypes) {
            let found = 1_usize << address.trailing_zeros().min(8);
            if found < dtype.bytes() {
                return Err(CudaError::Alignment);
            }
            alignment.push(found);
        }
        let operand = |at: usize| plan.problem.operands[at].argument;
        let place = |memory: Memory| match memory {
            Memory::Operand(at) => operand(at),
            Memory::Table(table) => plan.problem.tables[table].argument,
            Memory::Offsets => attention.ragged.as_ref().expect("lists have offsets").argument,
            Memory::Out => count,
            Memory::LogSum => count + 1,
            Memory::GradOut => count + 2,
            Memory::Gradient(at) => count + 3 + at,
            other => unreachable!("{other:?} is of contractions alone"),
        };
        let base = |memory: Memory| match memory {
            Memory::Status => Base::Status,
            Memory::Scratch => Base::Workspace(0),
            other => Base::Argument(place(other)),
        };
        let of = |memory: Memory| match memory {
            Memory::Status => 4,
            Memory::Scratch | Memory::Kept => 256,
            other => alignment[place(other)],
        };
        let tables: Vec<DType> = plan.problem.tables.iter().map(|table| table.dtype).collect();
        let wants_lse = plan.pass == Pass::Backward || pointers.lse != 0;
        let lowering = AttentionLowering {
            attention,
            pass: plan.pass,
            tables: &tables,
            machine: &plan.machine,
            wants_lse,
            values_in_keys: pointers.arguments[operand(1)] == pointers.arguments[operand(2)],
            alignment: &of,
        };
        let tasks = match plan.pass {
            Pass::Forward if attention.is_empty() => Vec::new(),
            Pass::Backward if attention.gradients.wanted().next().is_none() => Vec::new(),
            _ => {
                let kernel = attention_named(plan.kernel()).expect("the plan was made from this device's kernels");
                (kernel.lower)(&lowering)
            }
        };
        let workspace = plan.workspace_bytes();
        let program = self.program_of_tasks(&tasks, base, alignment, workspace)?;
        // Without a query nobody asks where the log-sum-exp is.
        Ok(AttentionProgram { program, writes_lse: wants_lse && !attention.is_empty() })
    }

    /// Puts an attention into a stream; neither waits nor allocates, and may be captured into a graph.
    ///
    /// # Errors
    /// [`CudaError::Driver`], [`CudaError::Alignment`].
    ///
    /// # Safety
    /// `program` comes from [`CudaDevice::prepare_attention`]. The pointers are those of memory on this GPU of the types,
    /// shapes and strides of the plan, and what is written overlaps nothing else; `workspace` is aligned to 256 and has
    /// [`AttentionProgram::workspace_bytes`]. All of them stay until the stream has passed.
    pub unsafe fn launch_attention(
        &self,
        program: &AttentionProgram,
        pointers: &AttentionPointers<'_>,
        workspace: DevicePointer,
        stream: Stream,
    ) -> Result<(), CudaError> {
        if program.writes_lse && pointers.lse == 0 {
            return Err(CudaError::Alignment);
        }
        // SAFETY: by the caller; there is no output beside the pointers.
        unsafe { self.launch(&program.program, &pointers.flat(), 0, workspace, stream) }
    }

    /// As [`CudaDevice::launch_attention`], with the inverse of a table in memory that the caller keeps, see
    /// [`CudaDevice::launch_kept`]. `workspace` needs [`AttentionProgram::workspace_beside_kept`] bytes.
    ///
    /// # Errors
    /// [`CudaError::Driver`], [`CudaError::Alignment`].
    ///
    /// # Safety
    /// As [`CudaDevice::launch_attention`] and [`CudaDevice::launch_kept`].
    pub unsafe fn launch_attention_kept(
        &self,
        program: &AttentionProgram,
        pointers: &AttentionPointers<'_>,
        workspace: DevicePointer,
        kept: Kept<'_>,
        stream: Stream,
    ) -> Result<(), CudaError> {
        if program.writes_lse && pointers.lse == 0 {
            return Err(CudaError::Alignment);
        }
        // SAFETY: by the caller; there is no output beside the pointers.
        unsafe { self.launch_kept(&program.program, &pointers.flat(), 0, workspace, kept, stream) }
    }

    /// Runs an attention on copies of the host's memory; `finish` brings back what is written.
    fn attend_on_copies(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        pointers: impl FnOnce(&[DevicePointer]) -> Result<Vec<DevicePointer>, CudaError>,
        finish: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), RunError> {
        crate::check::lists(plan, arguments)?;
        let copies = arguments.iter().map(|view| Copied::of(self.gpu(), view));
        let copies = copies.collect::<Result<Vec<_>, _>>()?;
        let given: Vec<DevicePointer> = copies.iter().map(|copy| copy.first).collect();
        let rest = pointers(&given)?;
        let &[out, lse, grad_out, query, key, value, bias] = rest.as_slice() else { unreachable!("seven of them") };
        let gradients = [query, key, value, bias];
        let pointers = AttentionPointers { arguments: &given, out, lse, grad_out, gradients };
        let program = self.prepare_attention(plan, &pointers)?;
        let workspace = Allocated::new(self.gpu(), program.workspace_bytes())?;
        let _alone = self.alone();
        self.take_bad_table();
        // SAFETY: the copies are as large as the views, whose layouts were compared with the plan; copying back waits.
        unsafe { self.launch_attention(&program, &pointers, workspace.pointer(), std::ptr::null_mut())? };
        finish()?;
        if self.take_bad_table() {
            return Err(RunError::Changed);
        }
        Ok(())
    }

    /// [`einfall_plan::Device::attend`].
    pub(crate) fn attend_views(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        out: &mut ViewMut<'_>,
        lse: Option<&mut ViewMut<'_>>,
    ) -> Result<(), RunError> {
        plan.check_forward(arguments, out, lse.as_deref())?;
        let out = Copied::to(self.gpu(), out)?;
        let lse = lse.map(|lse| Copied::to(self.gpu(), lse)).transpose()?;
        let log_sum = lse.as_ref().map_or(0, |lse| lse.first);
        self.attend_on_copies(
            plan,
            arguments,
            |_| Ok(vec![out.first, log_sum, 0, 0, 0, 0, 0]),
            || {
                // SAFETY: the views are borrowed mutably until this call ends.
                unsafe {
                    out.fetch()?;
                    lse.as_ref().map_or(Ok(()), |lse| lse.fetch())
                }
            },
        )
    }

    /// [`einfall_plan::Device::attend_backward`].
    pub(crate) fn attend_backward_views(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        saved: &Saved<'_>,
        gradients: &mut [Option<ViewMut<'_>>; 4],
    ) -> Result<(), RunError> {
        plan.check_backward(arguments, saved, gradients)?;
        let read = [&saved.out, &saved.lse, &saved.grad_out].map(|view| Copied::of(self.gpu(), view));
        let [out, lse, grad_out] = read;
        let (out, lse, grad_out) = (out?, lse?, grad_out?);
        let mut written = Vec::new();
        for gradient in gradients.iter_mut() {
            written.push(gradient.as_mut().map(|view| Copied::to(self.gpu(), view)).transpose()?);
        }
        let first = |at: usize| written[at].as_ref().map_or(0, |copy| copy.first);
        let pointers = vec![out.first, lse.first, grad_out.first, first(0), first(1), first(2), first(3)];
        self.attend_on_copies(
            plan,
            arguments,
            |_| Ok(pointers),
            // SAFETY: as above.
            || written.iter().flatten().try_for_each(|copy| unsafe { copy.fetch() }),
        )
    }
}
