//! The CPU as a device: runs the steps of a plan on a pool of threads.
//!
//! *In*: a [`Plan`] and views of all arguments. *Out*: the output's elements. *Callers*: the facade.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use einfall_plan::{
    Access, AttentionKernelSpec, AttentionPlan, Bounds, Contraction, Device, KernelSpec, LabelId, Machine, Plan,
    Problem, RunError, Saved, Slot, Step, shift,
};
use einfall_tensor::{Layout, View, ViewMut, memory};
use smallvec::SmallVec;

use crate::blocks::Blocks;
use crate::isa::Isa;
use crate::load::TableDType;
use crate::machine::estimate_machine;
use crate::ops::attention::{self, AttentionRun, Backward, Failure, Written};
use crate::ops::{self, Run};
use crate::scalar::Scalar;
use crate::threads::{Shared, Threads};
use crate::walk::{BadTable, TablePointer};

/// The processor that this program runs on.
#[derive(Debug)]
pub struct CpuDevice {
    isa: Isa,
    threads: Threads,
    machine: Machine,
    kernels: Vec<KernelSpec>,
    attention_kernels: Vec<AttentionKernelSpec>,
}

/// Why a CPU device could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpuDeviceError {
    /// `EINFALL_ISA` names instructions that are unknown or that this processor lacks.
    #[error("{0}")]
    Isa(String),
    /// The system refused to start the threads.
    #[error("could not start {count} threads: {reason}")]
    Threads {
        /// How many.
        count: usize,
        /// Why not.
        reason: String,
    },
}

impl CpuDevice {
    /// This processor with `threads` threads, its rates estimated.
    ///
    /// # Errors
    /// [`CpuDeviceError`].
    pub fn new(threads: usize) -> Result<Self, CpuDeviceError> {
        let isa = Isa::detect().map_err(CpuDeviceError::Isa)?;
        Self::with_isa(threads, isa)
    }

    /// The same with given instructions; take them from [`Isa::available`].
    ///
    /// # Errors
    /// As [`CpuDevice::new`], also when this processor lacks the instructions.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Self, CpuDeviceError> {
        if !isa.is_available() {
            return Err(CpuDeviceError::Isa(format!("this processor has no {isa}")));
        }
        let machine = estimate_machine(isa, threads);
        let threads = Threads::new(threads)
            .map_err(|error| CpuDeviceError::Threads { count: threads, reason: error.to_string() })?;
        let (kernels, attention_kernels) = (ops::kernel_specs(), attention::kernel_specs());
        Ok(CpuDevice { isa, threads, machine, kernels, attention_kernels })
    }

    /// The same processor with measured rates.
    #[must_use]
    pub fn with_machine(self, machine: Machine) -> Self {
        let machine = Machine { threads: self.threads.count(), isa: self.isa.to_string(), ..machine };
        CpuDevice { machine, ..self }
    }

    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl Device for CpuDevice {
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
        let tables = table_pointers(&plan.problem, arguments);
        let mut arena = Arena::new(plan.arena_bytes)?;
        let memory = Memory {
            plan,
            operands: plan.problem.operands.iter().map(|operand| arguments[operand.argument].as_ptr()).collect(),
            arena: arena.start(),
            out: out.as_mut_ptr(),
        };
        if let Some(blocks) = Blocks::of(plan, &self.machine) {
            return self
                .run_blocks(plan, &blocks, &memory, &tables)
                .map_err(|BadTable| self.describe_bad_table(plan, arguments));
        }
        let slices = Slices::new(plan);
        if let Some((_, sum)) = plan.slice_sum {
            memory.zero_temp(sum);
        }
        // A scattered result that collects from every slice is cleared before the first, others before their step.
        let collects = !plan.slices.is_empty() && plan.slice_sum.is_none();
        let collecting = plan.steps.last().filter(|step| collects && !step.contraction.out.is_plain());
        if let Some(step) = collecting {
            memory.zero(step.output.0);
        }
        let result = slices.into_iter().try_for_each(|values| {
            if let Some((part, _)) = plan.slice_sum {
                memory.zero_temp(part);
            }
            for step in &plan.steps {
                if !step.contraction.out.is_plain() && !collecting.is_some_and(|last| std::ptr::eq(last, step)) {
                    memory.zero(step.output.0);
                }
                self.run_step(step, &memory, &tables, &values)?;
            }
            if let Some((part, sum)) = plan.slice_sum {
                memory.add_temp(part, sum);
            }
            Ok(())
        });
        result
            .and_then(|()| plan.epilogue.iter().try_for_each(|step| self.run_step(step, &memory, &tables, &[])))
            .map_err(|BadTable| self.describe_bad_table(plan, arguments))
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
        plan.check_forward(arguments, out, lse.as_deref())?;
        let to = Written { out: out.as_mut_ptr(), lse: lse.map_or(std::ptr::null_mut(), ViewMut::as_mut_ptr) };
        // SAFETY: `bound`: every argument was compared with what the plan was bound to.
        self.attention(plan, arguments, |kernel, run| unsafe { (kernel.forward)(run, to) })
    }

    unsafe fn attend_backward(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        saved: &Saved<'_>,
        gradients: &mut [Option<ViewMut<'_>>; 4],
    ) -> Result<(), RunError> {
        plan.check_backward(arguments, saved, gradients)?;
        let count = |view: &Option<ViewMut<'_>>| view.as_ref().map_or(0, |view| view.shape().iter().product());
        let elements = gradients.each_ref().map(count);
        let gradients =
            gradients.each_mut().map(|view| view.as_mut().map_or(std::ptr::null_mut(), ViewMut::as_mut_ptr));
        let (out, lse, grad_out) = (saved.out.as_ptr(), saved.lse.as_ptr(), saved.grad_out.as_ptr());
        let with = Backward { out, lse, grad_out, gradients, elements };
        // SAFETY: `bound`: as above.
        self.attention(plan, arguments, |kernel, run| unsafe { (kernel.backward)(run, with) })
    }

    fn check_tables(&self, plan: &Plan, arguments: &[View<'_>]) -> Result<(), RunError> {
        if !plan.refuses_bad_tables(arguments.len())? {
            return Ok(());
        }
        crate::check::first_bad_value(self.isa, &plan.problem, arguments).map_or(Ok(()), Err)
    }
}

impl CpuDevice {
    /// Runs a pass of an attention with its memory bound.
    fn attention(
        &self,
        plan: &AttentionPlan,
        arguments: &[View<'_>],
        pass: impl Fn(&attention::Kernel, &AttentionRun<'_>) -> Result<(), Failure>,
    ) -> Result<(), RunError> {
        let (problem, attention) = (&plan.problem, &plan.attention);
        if let Some(ragged) = &attention.ragged
            && let Some(error) = crate::check::first_bad_offset(ragged, &arguments[ragged.argument])
        {
            return Err(error);
        }
        // Lists that nothing walks, and what a mask leaves out, are not read again.
        if problem.bounds == Bounds::Error
            && let Some(error) = crate::check::first_bad_value(self.isa, problem, arguments)
        {
            return Err(error);
        }
        let operand = |at: usize| problem.operands.get(at).map_or(std::ptr::null(), |o| arguments[o.argument].as_ptr());
        let run = AttentionRun {
            attention,
            operands: [operand(0), operand(1), operand(2), operand(3)],
            offsets: attention.ragged.as_ref().map_or(std::ptr::null(), |ragged| arguments[ragged.argument].as_ptr()),
            tables: &table_pointers(problem, arguments),
            threads: &self.threads,
            isa: self.isa,
            machine: &self.machine,
            serial_seconds: plan.cost().seconds * self.threads.count() as f64,
        };
        let kernel = attention::kernel_named(plan.kernel()).expect("the plan was made from this device's kernels");
        pass(kernel, &run).map_err(|failure| match failure {
            Failure::BadTable => RunError::Changed,
            Failure::OutOfMemory(bytes) => RunError::OutOfMemory { bytes },
        })
    }

    /// # Safety-relevant
    /// `memory` was bound to the plan, which keeps the invariant `bound` of [`Run`].
    fn run_step(
        &self,
        step: &Step,
        memory: &Memory<'_>,
        tables: &[TablePointer],
        values: &[(LabelId, usize)],
    ) -> Result<(), BadTable> {
        let shifted;
        let contraction = if values.is_empty() {
            &step.contraction
        } else {
            shifted = shift_step(step, &memory.plan.problem.tables, values);
            &shifted
        };
        if contraction.is_empty() {
            memory.zero(step.output.0);
            return Ok(());
        }
        self.run_contraction(step, contraction, memory, tables, 1.0)
    }

    /// All steps for one block after another, each thread with blocks of its own.
    fn run_blocks(
        &self,
        plan: &Plan,
        blocks: &Blocks,
        memory: &Memory<'_>,
        tables: &[TablePointer],
    ) -> Result<(), BadTable> {
        let seconds = plan.cost().seconds * self.threads.count() as f64;
        let share = 1.0 / blocks.count as f64;
        let run = |block: usize, slot: usize| {
            plan.steps.iter().enumerate().try_for_each(|(at, step)| {
                let contraction = blocks.cut(plan, at, block, slot);
                self.run_contraction(step, &contraction, memory, tables, share)
            })
        };
        // Every thread needs a place for intermediate results.
        if blocks.slots() < self.threads.count() {
            return (0..blocks.count).try_for_each(|block| run(block, 0));
        }
        let slots = AtomicUsize::new(0);
        let next_slot = || slots.fetch_add(1, Ordering::Relaxed);
        self.threads.for_pieces_with(blocks.count, 1, seconds, next_slot, |&mut slot, range| {
            range.into_iter().try_for_each(|block| run(block, slot))
        })
    }

    /// # Safety-relevant
    /// As `run_step`; the contraction is the step's, or a part of it.
    fn run_contraction(
        &self,
        step: &Step,
        contraction: &Contraction,
        memory: &Memory<'_>,
        tables: &[TablePointer],
        share: f64,
    ) -> Result<(), BadTable> {
        let run = Run {
            contraction,
            left: memory.read_pointer(step.inputs[0].0),
            right: step.inputs.get(1).map_or(std::ptr::null(), |(slot, _)| memory.read_pointer(*slot)),
            out: memory.write_pointer(step.output.0),
            tables,
            threads: &self.threads,
            isa: self.isa,
            machine: &self.machine,
            serial_seconds: step.estimate().cost.seconds * self.threads.count() as f64 * share,
        };
        let kernel = ops::kernel_named(step.kernel()).expect("the plan was made from this device's kernels");
        // SAFETY: `bound`: `check_arguments` compared every argument with what the plan was bound to; temps lie in the
        // arena where the plan laid them out, and a scattered output was zeroed before.
        unsafe { (kernel.run)(&run) }
    }

    /// Finds the first bad value in argument order, the same for any number of threads.
    fn describe_bad_table(&self, plan: &Plan, arguments: &[View<'_>]) -> RunError {
        crate::check::first_bad_value(self.isa, &plan.problem, arguments).unwrap_or(RunError::Changed)
    }
}

fn shift_step(step: &Step, tables: &[einfall_plan::Table], values: &[(LabelId, usize)]) -> Contraction {
    let mut contraction = step.contraction.clone();
    let Contraction { left, right, out, .. } = &mut contraction;
    let inputs: [Option<&mut Access>; 2] = [Some(left), right.as_mut()];
    for (access, (_, term)) in inputs.into_iter().flatten().zip(&step.inputs) {
        shift(access, term, tables, values);
    }
    shift(out, &step.output.1, tables, values);
    contraction
}

pub(crate) fn table_pointers(problem: &Problem, arguments: &[View<'_>]) -> Vec<TablePointer> {
    let tables = problem.tables.iter();
    tables
        .map(|table| TablePointer {
            pointer: arguments[table.argument].as_ptr(),
            dtype: TableDType::of(table.dtype).expect("binding takes integer tables only"),
        })
        .collect()
}

/// Values of the sliced labels, one list a slice; a plan without slices has one empty list.
struct Slices {
    labels: Vec<(LabelId, usize)>,
}

impl Slices {
    fn new(plan: &Plan) -> Self {
        Slices { labels: plan.slices.iter().map(|&label| (label, plan.problem.len(label))).collect() }
    }

    fn into_iter(self) -> impl Iterator<Item = Vec<(LabelId, usize)>> {
        let count: usize = self.labels.iter().map(|(_, len)| len).product();
        (0..count).map(move |mut flat| {
            let value = |&(label, len): &(LabelId, usize)| {
                let value = flat % len;
                flat /= len;
                (label, value)
            };
            self.labels.iter().map(value).collect()
        })
    }
}

/// Memory for intermediate results, uninitialised, aligned to a cache line.
struct Arena {
    memory: Option<NonNull<u8>>,
    bytes: usize,
}

impl Arena {
    fn new(bytes: usize) -> Result<Self, RunError> {
        let memory = memory::take(bytes);
        if bytes > 0 && memory.is_none() {
            return Err(RunError::OutOfMemory { bytes });
        }
        Ok(Arena { memory, bytes })
    }

    fn start(&mut self) -> *mut u8 {
        self.memory.map_or(std::ptr::without_provenance_mut(memory::ALIGNMENT), NonNull::as_ptr)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if let Some(memory) = self.memory {
            // SAFETY: taken for as many bytes; the run that used them is over.
            unsafe { memory::give(memory, self.bytes) };
        }
    }
}

// SAFETY: addresses that threads of one run share; each writes elements of its own.
unsafe impl Sync for Memory<'_> {}

/// Where each slot of a plan lies.
struct Memory<'a> {
    plan: &'a Plan,
    operands: SmallVec<[*const u8; 8]>,
    arena: *mut u8,
    out: *mut u8,
}

impl Memory<'_> {
    fn temp(&self, temp: usize) -> *mut u8 {
        self.arena.wrapping_add(self.plan.temps[temp].offset_bytes)
    }

    fn read_pointer(&self, slot: Slot) -> *const u8 {
        match slot {
            Slot::Operand(operand) => self.operands[operand],
            Slot::Temp(temp) => self.temp(temp),
            Slot::Output => self.out,
        }
    }

    fn write_pointer(&self, slot: Slot) -> *mut u8 {
        match slot {
            Slot::Temp(temp) => self.temp(temp),
            _ => self.out,
        }
    }

    fn zero_temp(&self, temp: usize) {
        let bytes = self.plan.temps[temp].len * self.plan.temps[temp].dtype.bytes();
        // SAFETY: `Plan::verify`: every temp lies inside the arena.
        unsafe { self.temp(temp).write_bytes(0, bytes) };
    }

    fn zero(&self, slot: Slot) {
        match slot {
            Slot::Temp(temp) => self.zero_temp(temp),
            _ => {
                let output = &self.plan.problem.output;
                // SAFETY: `span` of the output view, whose layout `check_arguments` compared.
                unsafe { zero_layout(self.out, &output.layout, output.dtype.bytes()) };
            }
        }
    }

    /// `sum += part`, element by element.
    fn add_temp(&self, part: usize, sum: usize) {
        let temp = &self.plan.temps[part];
        let (from, to) = (self.temp(part), Shared(self.temp(sum)));
        einfall_tensor::with_element!(temp.dtype, T => {
            for at in 0..temp.len {
                // SAFETY: `Plan::verify`: both lie in the arena, both have `len` elements, and they do not share bytes.
                unsafe {
                    let (a, b) = (from.cast::<T>().add(at), to.get().cast::<T>().add(at));
                    b.write(T::narrow(<T as Scalar>::add((*b).widen(), (*a).widen())));
                }
            }
        });
    }
}

/// Writes zeros to every element of a layout.
///
/// # Safety
/// Every element must be writable.
unsafe fn zero_layout(pointer: *mut u8, layout: &Layout, bytes: usize) {
    // A length of zero hides any others.
    let count = if layout.shape.contains(&0) { 0 } else { layout.shape.iter().product() };
    if layout.is_contiguous() {
        // SAFETY: by the caller; without gaps the elements are one run.
        unsafe { pointer.write_bytes(0, count * bytes) };
        return;
    }
    for mut flat in 0..count {
        let mut offset = 0;
        for (&len, &stride) in layout.shape.iter().zip(&layout.strides).rev() {
            offset += (flat % len) as isize * stride;
            flat /= len;
        }
        // SAFETY: by the caller.
        unsafe { pointer.offset(offset * bytes as isize).write_bytes(0, bytes) };
    }
}
