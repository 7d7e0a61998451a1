//! A plan made ready for a GPU: kernels loaded, parameters laid out, every pointer but the caller's known.
//!
//! *In*: a plan of this device's kernels. *Out*: a [`Program`], which runs any number of times, on any stream, without
//! allocating, copying or waiting.

use einfall_plan::{Access, Bounds, Contraction, Plan, Role, Step};
use einfall_plan::{Loop, shift};
use einfall_tensor::{DType, Layout};

use crate::CudaError;
use crate::blas;
use crate::driver::{DevicePointer, Gpu, Stream, checked};
use crate::modules::{Function, Modules};
use crate::ops;
use crate::text::{Lowering, Memory, Task, Value};

/// What a pointer is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    Argument(usize),
    Out,
    Workspace(usize),
    /// What is kept, where it is, else the workspace. `of` is the step's part of the kept memory, `else_at` that of the
    /// workspace; both are counted so that the same offsets follow.
    Kept {
        of: i64,
        else_at: i64,
    },
    Status,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Int(i64),
    Pointer(Base, i64),
}

#[derive(Debug)]
enum Stage {
    Launch {
        function: Function,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        fields: Vec<Field>,
        /// The arguments, all of them tables, that alone decide what this writes to the kept memory.
        once: Option<Vec<usize>>,
    },
    Zero {
        base: Base,
        bytes: usize,
    },
    Product {
        prepared: blas::Prepared,
        places: [(Base, i64); 3],
        workspace: usize,
    },
}

/// A plan that is ready to be launched.
#[derive(Debug)]
pub struct Program {
    stages: Vec<Stage>,
    alignment: Vec<usize>,
    /// Bytes of device memory that a launch needs beside arguments and output, aligned to 256.
    pub workspace_bytes: usize,
    /// Bytes of it that depend on tables alone, which a caller may keep: inverses. Mostly 0.
    pub kept_bytes: usize,
    /// What is needed beside them.
    pub workspace_beside_kept: usize,
}

/// Memory that a caller keeps for a [`Program`] from one launch to the next, see [`crate::CudaDevice::launch_kept`].
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// [`Program::kept_bytes`] bytes, aligned to 256.
    pub pointer: DevicePointer,
    /// For each argument, whether it is a table that holds what it held in the last launch with this memory.
    pub unchanged: &'a [bool],
}

impl Program {
    /// `alignment` has what the arguments' addresses and then the output's are multiples of.
    pub(crate) fn new(
        gpu: &Gpu,
        modules: &Modules,
        library: Option<&blas::Library>,
        plan: &Plan,
        alignment: &[usize],
    ) -> Result<Self, CudaError> {
        debug_assert_eq!(alignment.len(), plan.problem.arguments.len() + 1);
        let scratch = plan.arena_bytes.next_multiple_of(256);
        let most = plan.steps.iter().chain(&plan.epilogue).map(|step| step.estimate().workspace_bytes).max();
        let mut builder =
            Builder { gpu, modules, library, plan, alignment, scratch, stages: Vec::new(), kept_bytes: 0, beside: 0 };
        builder.plan()?;
        let workspace_bytes = scratch + most.unwrap_or(0);
        Ok(Program {
            stages: builder.stages,
            alignment: alignment.to_vec(),
            workspace_bytes,
            kept_bytes: builder.kept_bytes,
            workspace_beside_kept: if builder.kept_bytes > 0 { scratch + builder.beside } else { workspace_bytes },
        })
    }

    /// Whether the inverses come from tables that all are among these arguments.
    pub fn is_decided_by(&self, unchanged: &[bool]) -> bool {
        self.stages.iter().all(|stage| match stage {
            Stage::Launch { once: Some(tables), .. } => tables.iter().all(|&at| unchanged[at]),
            _ => true,
        })
    }

    /// A program of tasks alone. `base` says what a memory's pointers are counted from, `alignment` what the addresses of
    /// [`Base::Argument`] are multiples of; there is no output beside them.
    pub(crate) fn of_tasks(
        gpu: &Gpu,
        modules: &Modules,
        tasks: &[Task],
        base: impl Fn(Memory) -> Base,
        mut alignment: Vec<usize>,
        workspace_bytes: usize,
    ) -> Result<Self, CudaError> {
        let kept = |value: &Value| match *value {
            Value::Pointer(Memory::Kept, offset) => Some(offset),
            _ => None,
        };
        let start = tasks.iter().flat_map(|task| &task.values).filter_map(kept).min();
        let from = |memory: Memory| match (memory, start) {
            (Memory::Kept, Some(start)) => Base::Kept { of: -start, else_at: 0 },
            (memory, _) => base(memory),
        };
        let (mut tables, mut is_once, mut stages) = (Vec::new(), start.is_some(), Vec::new());
        for task in tasks {
            let &Task { blocks, threads, shared_bytes, .. } = task;
            let fields = task.values.iter().map(|value| match *value {
                Value::Int(value) => Field::Int(value),
                Value::Pair(low, high) => Field::Int((i64::from(high) << 32) | i64::from(low)),
                Value::Pointer(memory, offset) => Field::Pointer(from(memory), offset),
            });
            let fields: Vec<Field> = fields.collect();
            // The first that looks at data ends what tables alone decide.
            is_once &= reads_tables_alone(task);
            let read = |value: &Value| match *value {
                Value::Pointer(memory @ (Memory::Table(_) | Memory::Offsets), _) => Some(base(memory)),
                _ => None,
            };
            tables.extend(task.values.iter().filter_map(read).filter_map(|base| match base {
                Base::Argument(at) => Some(at),
                _ => None,
            }));
            let once = is_once.then(|| tables.clone());
            // A grid without blocks is an error of the driver.
            if blocks > 0 {
                let function = modules.function(gpu, task)?;
                stages.push(Stage::Launch { function, blocks, threads, shared_bytes, fields, once });
            }
        }
        alignment.push(1);
        let beside = start.map_or(workspace_bytes, |start| start as usize);
        let kept_bytes = workspace_bytes - beside;
        Ok(Program { stages, alignment, workspace_bytes, kept_bytes, workspace_beside_kept: beside })
    }

    /// Number of launches and fills.
    pub fn len(&self) -> usize {
        self.stages.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Puts everything into a stream.
    ///
    /// # Safety
    /// The pointers are those of the arguments' and the output's first elements on the GPU of this program, of the
    /// types, shapes and strides of the plan; the output overlaps no argument; the workspace has
    /// [`Program::workspace_bytes`], or [`Program::workspace_beside_kept`] with kept memory, which no one else writes and
    /// which launches before this one in the stream filled if it is said to be unchanged. All stay until the stream has
    /// passed.
    pub(crate) unsafe fn launch(
        &self,
        arguments: &[DevicePointer],
        out: DevicePointer,
        workspace: DevicePointer,
        kept: Option<Kept<'_>>,
        status: DevicePointer,
        library: Option<&blas::Library>,
        stream: Stream,
    ) -> Result<(), CudaError> {
        let addresses = arguments.iter().chain([&out]);
        let aligned = |(&address, &to): (&u64, &usize)| address % to as u64 == 0;
        if arguments.len() + 1 != self.alignment.len() || !addresses.zip(&self.alignment).all(aligned) {
            return Err(CudaError::Alignment);
        }
        let pointer = |base: Base| match base {
            Base::Argument(at) => arguments[at],
            Base::Out => out,
            Base::Workspace(offset) => workspace + offset as u64,
            Base::Kept { of, else_at } => match kept {
                Some(kept) => kept.pointer.wrapping_add_signed(of),
                None => workspace.wrapping_add_signed(else_at),
            },
            Base::Status => status,
        };
        let is_there = |once: &Option<Vec<usize>>| match (kept, once) {
            (Some(kept), Some(tables)) => tables.iter().all(|&at| kept.unchanged[at]),
            _ => false,
        };
        for stage in &self.stages {
            match stage {
                Stage::Zero { base, bytes } => {
                    // SAFETY: by the caller.
                    let done =
                        unsafe { cudarc::driver::result::memset_d8_async(pointer(*base), 0, *bytes, stream.cast()) };
                    checked("cuMemsetD8Async", done)?;
                }
                Stage::Product { prepared, places, workspace: offset } => {
                    let addresses = places.map(|(base, offset)| pointer(base).wrapping_add_signed(offset));
                    let library = library.expect("it was there when the program was made");
                    // SAFETY: by the caller; the scratch memory behind the arena was counted.
                    unsafe { prepared.launch(library, addresses, workspace + *offset as u64, stream)? };
                }
                Stage::Launch { once, .. } if is_there(once) => {}
                Stage::Launch { function, blocks, threads, shared_bytes, fields, .. } => {
                    let mut values: smallvec::SmallVec<[u64; 64]> = fields
                        .iter()
                        .map(|field| match *field {
                            Field::Int(value) => value as u64,
                            Field::Pointer(base, offset) => pointer(base).wrapping_add_signed(offset),
                        })
                        .collect();
                    // SAFETY: by the caller; the one parameter is a struct of these fields.
                    let done = unsafe {
                        cudarc::driver::result::launch_kernel(
                            function.0,
                            (*blocks, 1, 1),
                            (*threads, 1, 1),
                            *shared_bytes,
                            stream.cast(),
                            &mut [values.as_mut_ptr().cast()],
                        )
                    };
                    checked("cuLaunchKernel", done)?;
                }
            }
        }
        Ok(())
    }
}

struct Builder<'a> {
    gpu: &'a Gpu,
    modules: &'a Modules,
    library: Option<&'a blas::Library>,
    plan: &'a Plan,
    alignment: &'a [usize],
    scratch: usize,
    stages: Vec<Stage>,
    /// Bytes that the steps so far let a caller keep, and the most scratch memory of a step beside them.
    kept_bytes: usize,
    beside: usize,
}

impl Builder<'_> {
    fn plan(&mut self) -> Result<(), CudaError> {
        let plan = self.plan;
        if let Some((_, sum)) = plan.slice_sum {
            self.zero_temp(sum);
        }
        // A scattered result that collects from every slice is cleared before the first, others before their step.
        let collects = !plan.slices.is_empty() && plan.slice_sum.is_none();
        let collecting = plan.steps.last().filter(|step| collects && !step.contraction.out.is_plain());
        if let Some(step) = collecting {
            self.zero(step)?;
        }
        let labels: Vec<_> = plan.slices.iter().map(|&label| (label, plan.problem.len(label))).collect();
        let slices: usize = labels.iter().map(|(_, len)| len).product();
        for slice in 0..slices {
            let mut flat = slice;
            let values: Vec<_> = labels
                .iter()
                .map(|&(label, len)| {
                    let value = flat % len;
                    flat /= len;
                    (label, value)
                })
                .collect();
            if let Some((part, _)) = plan.slice_sum {
                self.zero_temp(part);
            }
            for step in &plan.steps {
                if !step.contraction.out.is_plain() && !collecting.is_some_and(|last| std::ptr::eq(last, step)) {
                    self.zero(step)?;
                }
                self.step(step, &values)?;
            }
            if let Some((part, sum)) = plan.slice_sum {
                self.add(part, sum)?;
            }
        }
        plan.epilogue.iter().try_for_each(|step| self.step(step, &[]))
    }

    fn step(&mut self, step: &Step, values: &[(einfall_plan::LabelId, usize)]) -> Result<(), CudaError> {
        if step.contraction.is_empty() {
            return self.zero(step);
        }
        let mut contraction = step.contraction.clone();
        if !values.is_empty() {
            let tables = &self.plan.problem.tables;
            let Contraction { left, right, out, .. } = &mut contraction;
            let inputs: [Option<&mut Access>; 2] = [Some(left), right.as_mut()];
            for (access, (_, term)) in inputs.into_iter().flatten().zip(&step.inputs) {
                shift(access, term, tables, values);
            }
            shift(out, &step.output.1, tables, values);
        }
        let kernel = ops::kernel_named(step.kernel()).expect("the plan was made from this device's kernels");
        let left = self.slot(step.inputs[0].0);
        let right = step.inputs.get(1).map_or(left, |(slot, _)| self.slot(*slot));
        let out = self.slot(step.output.0);
        self.run(kernel, &contraction, [left, right, out], step.estimate().workspace_bytes)
    }

    /// A contraction by a kernel, with so much scratch memory.
    fn run(
        &mut self,
        kernel: &ops::Kernel,
        contraction: &Contraction,
        [left, right, out]: [Base; 3],
        scratch_bytes: usize,
    ) -> Result<(), CudaError> {
        let plan = self.plan;
        let tables: Vec<DType> = plan.problem.tables.iter().map(|table| table.dtype).collect();
        let alignment = [left, right, out].map(|base| self.alignment_of(base));
        let arguments = plan.problem.tables.iter().map(|table| table.argument);
        let table_alignment: Vec<usize> = arguments.map(|argument| self.alignment[argument]).collect();
        let lowering = Lowering {
            contraction,
            tables: &tables,
            machine: &plan.machine,
            alignment,
            table_alignment: &table_alignment,
        };
        if let Some(library) = self.library {
            // Parts of a sequence may be the library's, so each runs as if it were a step.
            if let Some(sequence) = ops::parts::Sequence::of(kernel, contraction, &plan.machine) {
                for part in &sequence.parts {
                    let kernel = ops::kernel_named(part.kernel).expect("one of the table");
                    let bases = part.places.map(|(memory, bytes)| match memory {
                        Memory::Left => left,
                        Memory::Right => right,
                        Memory::Out => out,
                        _ => Base::Workspace(self.scratch + bytes as usize),
                    });
                    self.run(kernel, &part.contraction, bases, scratch_bytes)?;
                }
                return Ok(());
            }
            if let Some(product) = kernel.product
                && let Some(stage) = self.product(library, &product(&lowering), alignment, [left, right, out])
            {
                self.beside = self.beside.max(scratch_bytes);
                self.stages.push(stage);
                return Ok(());
            }
        }
        let tasks = (kernel.lower)(&lowering);
        let kept = self.kept(&tasks, scratch_bytes);
        self.beside = self.beside.max(kept.map_or(scratch_bytes, |(start, _)| start));
        let (mut tables, mut is_once) = (Vec::new(), kept.is_some());
        for task in &tasks {
            // The first that looks at data ends what tables alone decide.
            is_once &= reads_tables_alone(task);
            let read = task.values.iter().filter_map(|value| match *value {
                Value::Pointer(Memory::Table(table), _) => Some(plan.problem.tables[table].argument),
                _ => None,
            });
            tables.extend(read);
            let once = is_once.then(|| tables.clone());
            self.task(task, [left, right, out], kept.map(|(_, base)| base), once)?;
        }
        Ok(())
    }

    /// Where a step's part of the kept memory begins among its offsets, and what its pointers are counted from. Slices
    /// of a plan would write over each other's.
    fn kept(&mut self, tasks: &[Task], scratch_bytes: usize) -> Option<(usize, Base)> {
        let offsets = tasks.iter().flat_map(|task| &task.values).filter_map(|value| match *value {
            Value::Pointer(Memory::Kept, offset) => Some(offset),
            _ => None,
        });
        let start = offsets.min().filter(|_| self.plan.slices.is_empty())?;
        let base = Base::Kept { of: self.kept_bytes as i64 - start, else_at: self.scratch as i64 };
        self.kept_bytes += (scratch_bytes - start as usize).next_multiple_of(256);
        Some((start as usize, base))
    }

    /// The product by the library, unless it has no algorithm for it.
    fn product(
        &self,
        library: &blas::Library,
        product: &ops::gemm::Product,
        [left, right, out_alignment]: [usize; 3],
        [left_base, right_base, out]: [Base; 3],
    ) -> Option<Stage> {
        let (first, second) = if product.swapped { (right, left) } else { (left, right) };
        let (first_base, second_base) = if product.swapped { (right_base, left_base) } else { (left_base, right_base) };
        let aligned = |alignment: usize, offset: isize| match offset {
            0 => alignment,
            offset => alignment.min(1 << offset.trailing_zeros().min(8)),
        };
        let alignment = [
            aligned(first, product.first.offset),
            aligned(second, product.second.offset),
            aligned(out_alignment, product.out.offset),
        ];
        let prepared = self.gpu.current(|| blas::Prepared::new(library, product, alignment)).ok()?;
        let places = [
            (first_base, product.first.offset as i64),
            (second_base, product.second.offset as i64),
            (out, product.out.offset as i64),
        ];
        Some(Stage::Product { prepared, places, workspace: self.scratch })
    }

    /// What an address is a multiple of at least.
    fn alignment_of(&self, base: Base) -> usize {
        match base {
            Base::Argument(argument) => self.alignment[argument],
            Base::Out => self.alignment[self.alignment.len() - 1],
            Base::Workspace(offset) => 1 << offset.trailing_zeros().min(8),
            Base::Kept { .. } => 256,
            Base::Status => 4,
        }
    }

    fn slot(&self, slot: einfall_plan::Slot) -> Base {
        use einfall_plan::Slot;
        match slot {
            Slot::Operand(operand) => Base::Argument(self.plan.problem.operands[operand].argument),
            Slot::Temp(temp) => Base::Workspace(self.plan.temps[temp].offset_bytes),
            Slot::Output => Base::Out,
        }
    }

    fn task(
        &mut self,
        task: &Task,
        [left, right, out]: [Base; 3],
        kept: Option<Base>,
        once: Option<Vec<usize>>,
    ) -> Result<(), CudaError> {
        let function = self.modules.function(self.gpu, task)?;
        let base = |memory: Memory| match memory {
            Memory::Left => left,
            Memory::Right => right,
            Memory::Out => out,
            Memory::Table(table) => Base::Argument(self.plan.problem.tables[table].argument),
            Memory::Status => Base::Status,
            Memory::Scratch => Base::Workspace(self.scratch),
            Memory::Kept => kept.unwrap_or(Base::Workspace(self.scratch)),
            other => unreachable!("{other:?} is of attention alone"),
        };
        let field = |value: &Value| match *value {
            Value::Int(value) => Field::Int(value),
            Value::Pair(low, high) => Field::Int((i64::from(high) << 32) | i64::from(low)),
            Value::Pointer(memory, offset) => Field::Pointer(base(memory), offset),
        };
        let fields = task.values.iter().map(field).collect();
        let &Task { blocks, threads, shared_bytes, .. } = task;
        self.stages.push(Stage::Launch { function, blocks, threads, shared_bytes, fields, once });
        Ok(())
    }

    fn zero_temp(&mut self, temp: usize) {
        let temp = &self.plan.temps[temp];
        let bytes = temp.len * temp.dtype.bytes();
        if bytes > 0 {
            self.stages.push(Stage::Zero { base: Base::Workspace(temp.offset_bytes), bytes });
        }
    }

    /// Writes zeros to all of a step's output.
    fn zero(&mut self, step: &Step) -> Result<(), CudaError> {
        if let einfall_plan::Slot::Temp(temp) = step.output.0 {
            self.zero_temp(temp);
            return Ok(());
        }
        let output = &self.plan.problem.output;
        let Layout { shape, strides } = &output.layout;
        let count: usize = shape.iter().product();
        if count == 0 {
            return Ok(());
        }
        if output.layout.is_contiguous() {
            self.stages.push(Stage::Zero { base: Base::Out, bytes: count * output.dtype.bytes() });
            return Ok(());
        }
        let task = ops::nest::fill(&spread(shape, strides), output.dtype);
        self.task(&task, [Base::Out; 3], None, None)
    }

    /// `sum += part`, element by element.
    fn add(&mut self, part: usize, sum: usize) -> Result<(), CudaError> {
        let (from, to) = (&self.plan.temps[part], &self.plan.temps[sum]);
        let task = ops::nest::add(from.len, from.dtype);
        let base = |temp: &einfall_plan::Temp| Base::Workspace(temp.offset_bytes);
        self.task(&task, [base(from), base(to), base(to)], None, None)
    }
}

/// Whether a task reads and writes nothing but tables and scratch memory.
fn reads_tables_alone(task: &Task) -> bool {
    let data = |value: &Value| {
        use Memory::{GradOut, Gradient, Left, LogSum, Operand, Out, Right};
        matches!(value, Value::Pointer(Left | Right | Out | Operand(_) | LogSum | GradOut | Gradient(_), _))
    };
    !task.values.iter().any(data)
}

/// A contraction that visits every element of a layout once.
fn spread(shape: &[usize], strides: &[isize]) -> Contraction {
    let loops = shape.iter().map(|&len| Loop { name: String::new(), len, role: Role::Left }).collect();
    let access = Access { strides: strides.to_vec(), ..Access::default() };
    let (dtype, bounds) = (DType::U8, Bounds::Skip);
    Contraction { loops, left: access.clone(), right: None, out: access, dtype, out_dtype: dtype, bounds }
}
