//! Building the steps: early sums, conversions, pairs, and the scatter at the end.

use std::collections::BTreeMap;

use einfall_tensor::DType;

use super::{Plan, PlanError, PlanOptions, Slot, Step, Temp, memory, slice};
use crate::contraction::{Access, Contraction, Loop, Role, classify};
use crate::kernel::{KernelSpec, choose};
use crate::machine::Machine;
use crate::path::{Network, Order, find_path};
use crate::problem::{LabelId, Problem, Term};

/// An operand or intermediate result that is still to be contracted.
#[derive(Clone)]
struct Pending {
    slot: Slot,
    dtype: DType,
    term: Term,
    labels: Vec<LabelId>,
}

/// So many times less must rounded intermediate results take.
const NARROW_GAINS: f64 = 1.25;

struct Builder<'a> {
    problem: &'a Problem,
    machine: &'a Machine,
    kernels: &'a [KernelSpec],
    options: &'a PlanOptions,
    /// Labels that the output depends on.
    output_labels: Vec<LabelId>,
    /// How many pending terms, and the output, name each label.
    uses: BTreeMap<LabelId, usize>,
    sliced: Vec<LabelId>,
    /// Intermediate results have the problem's type instead of its accumulator.
    narrow: bool,
    steps: Vec<Step>,
    temps: Vec<Temp>,
}

pub(super) fn build(
    problem: Problem,
    machine: &Machine,
    kernels: &[KernelSpec],
    options: &PlanOptions,
) -> Result<Plan, PlanError> {
    let operands: Vec<Pending> = problem
        .operands
        .iter()
        .enumerate()
        .map(|(number, operand)| Pending {
            slot: Slot::Operand(number),
            dtype: operand.dtype,
            labels: operand.term.labels(&problem.tables),
            term: operand.term.clone(),
        })
        .collect();
    let output_labels = problem.output.term.labels(&problem.tables);
    let mut uses = BTreeMap::new();
    for &label in operands.iter().flat_map(|pending| &pending.labels).chain(&output_labels) {
        *uses.entry(label).or_default() += 1;
    }
    let label_sets: Vec<Vec<LabelId>> = operands.iter().map(|pending| pending.labels.clone()).collect();
    let lens = |label: LabelId| problem.len(label);
    let network = Network { operands: &label_sets, lens: &lens, output: &output_labels };
    let mut path = find_path(&network, &options.order).map_err(PlanError::Path)?;
    if let Some(empty) = problem.labels.iter().position(|label| label.len == 0) {
        let step = nothing(&problem, LabelId(empty as u32), machine, kernels, options)?;
        return Ok(Plan {
            workspace_bytes: step.estimate().workspace_bytes,
            steps: vec![step],
            epilogue: None,
            temps: Vec::new(),
            slices: Vec::new(),
            slice_sum: None,
            method: path.method,
            arena_bytes: 0,
            machine: machine.clone(),
            problem,
        });
    }
    let fixed = !matches!(options.order, Order::Auto | Order::Greedy | Order::Thorough);
    let sliced = slice::choose_slices(&network, &mut path, options.memory_limit, fixed)?;

    let steps_of = |narrow: bool| {
        let mut builder = Builder {
            problem: &problem,
            machine,
            kernels,
            options,
            output_labels: output_labels.clone(),
            uses: uses.clone(),
            sliced: sliced.clone(),
            narrow,
            steps: Vec::new(),
            temps: Vec::new(),
        };
        let ending = builder.run(operands.clone(), &path.pairs)?;
        let seconds = builder.steps.iter().map(|step| step.estimate().cost.seconds).sum::<f64>();
        Ok::<_, PlanError>((builder.steps, builder.temps, ending, seconds))
    };
    let mut found = steps_of(false)?;
    // Wider than their type, intermediate results meet operands that must be widened too, and miss the units that
    // multiply half types: rounded, as other libraries have them, only where that is worth it.
    if path.pairs.len() > 1 && problem.dtype.accumulator() != problem.dtype && machine.has_half_units() {
        let narrow = steps_of(true)?;
        if narrow.3 * NARROW_GAINS < found.3 {
            found = narrow;
        }
    }
    let (steps, mut temps, Ending { slice_sum, epilogue }, _) = found;
    let scratch = steps.iter().chain(&epilogue).map(|step| step.estimate().workspace_bytes).max().unwrap_or(0);
    let arena = memory::lay_out(&steps, epilogue.as_ref(), &mut temps, slice_sum, !sliced.is_empty());
    let addressable = arena.and_then(|arena| Some((arena, arena.checked_add(scratch)?)));
    let (arena_bytes, workspace_bytes) =
        addressable.ok_or_else(|| PlanError::TooLarge { elements: temps.iter().map(|temp| temp.len as u128).sum() })?;
    Ok(Plan {
        steps,
        epilogue,
        temps,
        slices: sliced,
        slice_sum,
        method: path.method,
        arena_bytes,
        workspace_bytes,
        machine: machine.clone(),
        problem,
    })
}

/// The one step of a problem with a label that takes no value: the result is 0, if it has elements at all.
///
/// Other labels may have any length then, so no kernel is asked about them.
fn nothing(
    problem: &Problem,
    empty: LabelId,
    machine: &Machine,
    kernels: &[KernelSpec],
    options: &PlanOptions,
) -> Result<Step, PlanError> {
    let access = || Access { strides: vec![0], ..Access::default() };
    let contraction = Contraction {
        loops: vec![Loop { name: problem.name(empty).to_string(), len: 0, role: Role::Contracted }],
        left: access(),
        right: None,
        out: access(),
        dtype: problem.operands[0].dtype,
        out_dtype: problem.output.dtype,
        bounds: problem.bounds,
    };
    let text = problem.equation.to_string();
    let (candidates, chosen) = choose(&contraction, machine, kernels, options.kernel.as_deref())
        .ok_or_else(|| PlanError::NoKernel { step: format!("{text}: {contraction}") })?;
    Ok(Step {
        inputs: vec![(Slot::Operand(0), Term::default())],
        output: (Slot::Output, Term::default()),
        text,
        contraction,
        candidates,
        chosen,
        why: Some("a label of length 0 leaves nothing to add up"),
    })
}

impl Builder<'_> {
    fn run(&mut self, operands: Vec<Pending>, pairs: &[(usize, usize)]) -> Result<Ending, PlanError> {
        // A sliced label that is summed over makes every slice a part of the sum.
        let summed = self.sliced.iter().any(|label| !self.output_labels.contains(label));
        let mut list: Vec<Option<Pending>> = operands.into_iter().map(Some).collect();
        for (at, &(first, second)) in pairs.iter().enumerate() {
            // Summed as late as may be, so that few sums live at a time.
            let left = self.sum_lone_labels(list[first].take().expect("each position is used once"))?;
            let right = self.sum_lone_labels(list[second].take().expect("each position is used once"))?;
            if at + 1 == pairs.len() {
                return self.finish(left, Some(right), summed);
            }
            let next = pairs[at + 1..].iter().find(|&&(first, second)| first == list.len() || second == list.len());
            let partner = next.and_then(|&(first, second)| list.get(first.min(second))?.as_ref());
            let partner = partner.map(|pending| pending.labels.clone()).unwrap_or_default();
            let result = self.pair(left, right, &partner)?;
            list.push(Some(result));
        }
        let only = list.pop().flatten().expect("one operand");
        self.finish(only, None, summed)
    }

    /// Sums over labels that only this operand has, before it meets others.
    fn sum_lone_labels(&mut self, pending: Pending) -> Result<Pending, PlanError> {
        // A sliced label has one value here, though intermediate results no longer name it.
        let lone =
            |label: &LabelId| self.uses[label] == 1 && self.problem.len(*label) != 1 && !self.sliced.contains(label);
        if !pending.term.is_plain() || !pending.labels.iter().any(lone) {
            return Ok(pending);
        }
        let kept: Vec<LabelId> = pending.labels.iter().copied().filter(|label| !lone(label)).collect();
        let dtype = self.intermediate();
        self.single(pending, kept, dtype, "labels of one operand alone are summed first")
    }

    /// One step from one input to a new intermediate result.
    fn single(
        &mut self,
        input: Pending,
        kept: Vec<LabelId>,
        dtype: DType,
        why: &'static str,
    ) -> Result<Pending, PlanError> {
        let output = self.new_temp(kept, dtype)?;
        self.push(&[input], (output.slot, output.term.clone()), output.dtype, Some(why))?;
        Ok(output)
    }

    /// The type of intermediate results.
    fn intermediate(&self) -> DType {
        if self.narrow { self.problem.dtype } else { self.problem.dtype.accumulator() }
    }

    /// A step of two inputs, whose result meets a `partner` with these labels next.
    fn pair(&mut self, left: Pending, right: Pending, partner: &[LabelId]) -> Result<Pending, PlanError> {
        for &label in left.labels.iter().chain(&right.labels) {
            *self.uses.get_mut(&label).expect("counted") -= 1;
        }
        let (left, right) = self.same_dtype(left, right)?;
        let still_used = |label: &LabelId| self.uses[label] > 0;
        // Batch labels first, then those of one side, then those of the other, each in their own memory order.
        let in_both = |label: &LabelId| left.labels.contains(label) && right.labels.contains(label);
        let ordered = |pending: &Pending| {
            let mut labels = pending.labels.clone();
            labels.sort_by_key(|&label| (std::cmp::Reverse(pending.term.stride(label).unsigned_abs()), label));
            labels
        };
        let (left_order, right_order) = (ordered(&left), ordered(&right));
        let kept = |first: &[LabelId], second: &[LabelId]| -> Vec<LabelId> {
            let batch = left_order.iter().filter(|label| in_both(label));
            let alone = first.iter().chain(second).filter(|label| !in_both(label));
            batch.chain(alone).copied().filter(still_used).collect()
        };
        // A label that counts products in the next step makes its matrices and vectors strided where it is the last one.
        let counts = |label: &LabelId| partner.contains(label) && self.uses[label] > 1;
        let (usual, swapped) = (kept(&left_order, &right_order), kept(&right_order, &left_order));
        let swap = usual.last().is_some_and(counts) && !swapped.last().is_some_and(counts);
        let kept = if swap { swapped } else { usual };
        let result = self.new_temp(kept, self.intermediate())?;
        for &label in &result.labels {
            *self.uses.get_mut(&label).expect("counted") += 1;
        }
        self.push(&[left, right], (result.slot, result.term.clone()), result.dtype, None)?;
        Ok(result)
    }

    /// The last step: into the output, through an intermediate result where types or slices demand it.
    fn finish(&mut self, left: Pending, right: Option<Pending>, summed: bool) -> Result<Ending, PlanError> {
        let out = &self.problem.output;
        let accumulator = self.problem.dtype.accumulator();
        let inputs = match right {
            // A plain copy or sum converts on its way (see below); whatever else wants its own type.
            None if left.term.is_plain() && out.term.is_plain() => vec![left],
            None => vec![self.converted(left, self.problem.dtype)?],
            Some(right) => {
                let (left, right) = self.same_dtype(left, right)?;
                vec![left, right]
            }
        };
        let dtype = inputs[0].dtype;
        let plain_copy = inputs.len() == 1 && inputs[0].term.is_plain() && out.term.is_plain();
        // A scattered output adds up in place, so it must be an accumulator.
        let storable = out.dtype == dtype && out.term.is_plain() || out.dtype == dtype.accumulator();
        // Converted on its way, a sum is kept in the output's type: right only where that is the type to sum in.
        let sums = |label: &LabelId| self.problem.labels[label.0 as usize].len > 1 && out.term.stride(*label) == 0;
        let narrowed = plain_copy && inputs[0].labels.iter().any(sums) && out.dtype.accumulator() != accumulator;
        let direct = (plain_copy || storable) && !narrowed;
        if direct && !summed {
            self.push(&inputs, (Slot::Output, out.term.clone()), out.dtype, None)?;
            return Ok(Ending::default());
        }
        let shape = &out.layout.shape;
        let part = self.push_temp(shape, accumulator)?;
        self.push(&inputs, (Slot::Temp(part), out.row_major.clone()), accumulator, None)?;
        let sum = if summed { self.push_temp(shape, accumulator)? } else { part };
        let epilogue = self.copy_to_output(sum, accumulator)?;
        Ok(Ending { slice_sum: summed.then_some((part, sum)), epilogue: Some(epilogue) })
    }

    /// Brings two inputs to one element type.
    fn same_dtype(&mut self, left: Pending, right: Pending) -> Result<(Pending, Pending), PlanError> {
        let operand = |pending: &Pending| matches!(pending.slot, Slot::Operand(_));
        // Two operands of the call meet in the problem's type; intermediate results have theirs already.
        let dtype = if operand(&left) && operand(&right) { self.problem.dtype } else { self.intermediate() };
        Ok((self.converted(left, dtype)?, self.converted(right, dtype)?))
    }

    /// The input in another element type: a copy in its own memory order, unless it has the type already.
    fn converted(&mut self, input: Pending, dtype: DType) -> Result<Pending, PlanError> {
        if input.dtype == dtype {
            return Ok(input);
        }
        // The copy drops broadcast axes and keeps looked-up and window axes as they are: every axis becomes a label.
        debug_assert!(matches!(input.slot, Slot::Operand(_)), "intermediate results have their type");
        let (lens, axes) = memory::axes_of(self.problem, &input.term);
        let temp = self.push_temp(&lens, dtype)?;
        let strides = memory::dense_strides(&lens, &axes);
        let contraction = crate::contraction::copy(&lens, &axes, &strides, input.dtype, dtype, self.problem.bounds);
        let (candidates, chosen) = self.choose(&contraction, "convert")?;
        self.steps.push(Step {
            inputs: vec![(input.slot, Term::default())],
            output: (Slot::Temp(temp), Term::default()),
            text: format!("{} to {dtype}", input.dtype),
            contraction,
            candidates,
            chosen,
            why: Some("operands of different types meet in one"),
        });
        let term = memory::with_strides(self.problem, &input.term, &strides);
        Ok(Pending { slot: Slot::Temp(temp), dtype, term, labels: input.labels })
    }

    /// A row-major copy, converted, into the output.
    fn copy_to_output(&self, from: usize, dtype: DType) -> Result<Step, PlanError> {
        let out = &self.problem.output;
        let shape = &out.layout.shape;
        let row_major = einfall_tensor::contiguous_strides(shape);
        let contraction =
            crate::contraction::copy(shape, &row_major, &out.layout.strides, dtype, out.dtype, self.problem.bounds);
        let (candidates, chosen) = self.choose(&contraction, "store")?;
        Ok(Step {
            inputs: vec![(Slot::Temp(from), Term::default())],
            output: (Slot::Output, Term::default()),
            text: format!("{dtype} to {}", out.dtype),
            contraction,
            candidates,
            chosen,
            why: Some("the result is added up in its accumulator before it is stored"),
        })
    }

    fn new_temp(&mut self, labels: Vec<LabelId>, dtype: DType) -> Result<Pending, PlanError> {
        let kept: Vec<LabelId> = labels.into_iter().filter(|label| !self.sliced.contains(label)).collect();
        let lens: Vec<usize> = kept.iter().map(|&label| self.problem.len(label)).collect();
        let temp = self.push_temp(&lens, dtype)?;
        let strides = einfall_tensor::contiguous_strides(&lens);
        let term = Term { strides: kept.iter().copied().zip(strides).collect(), ..Term::default() };
        Ok(Pending { slot: Slot::Temp(temp), dtype, term, labels: kept })
    }

    /// Room for an intermediate result of this shape.
    fn push_temp(&mut self, lens: &[usize], dtype: DType) -> Result<usize, PlanError> {
        let product = || lens.iter().try_fold(1u128, |product, &len| product.checked_mul(len as u128));
        let elements = if lens.contains(&0) { Some(0) } else { product() };
        let addressable = elements
            .and_then(|count| count.checked_mul(dtype.bytes() as u128))
            .is_some_and(|bytes| bytes <= memory::MOST_BYTES as u128);
        let elements = elements.unwrap_or(u128::MAX);
        if !addressable {
            return Err(PlanError::TooLarge { elements });
        }
        self.temps.push(Temp { dtype, len: elements as usize, offset_bytes: 0 });
        Ok(self.temps.len() - 1)
    }

    fn push(
        &mut self,
        inputs: &[Pending],
        output: (Slot, Term),
        out_dtype: DType,
        why: Option<&'static str>,
    ) -> Result<(), PlanError> {
        let right = inputs.get(1).map(|input| &input.term);
        let left = &inputs[0];
        let contraction = classify(self.problem, &left.term, right, &output.1, left.dtype, out_dtype, &self.sliced);
        let text = self.step_text(inputs, &output.1);
        let (candidates, chosen) = self.choose(&contraction, &text)?;
        let inputs = inputs.iter().map(|input| (input.slot, input.term.clone())).collect();
        self.steps.push(Step { inputs, output, text, contraction, candidates, chosen, why });
        Ok(())
    }

    fn choose(
        &self,
        contraction: &Contraction,
        text: &str,
    ) -> Result<(Vec<crate::kernel::Candidate>, usize), PlanError> {
        choose(contraction, self.machine, self.kernels, self.options.kernel.as_deref())
            .ok_or_else(|| PlanError::NoKernel { step: format!("{text}: {contraction}") })
    }

    fn step_text(&self, inputs: &[Pending], output: &Term) -> String {
        let inputs: Vec<String> = inputs.iter().map(|input| memory::term_text(self.problem, &input.term)).collect();
        format!("{}->{}", inputs.join(","), memory::term_text(self.problem, output))
    }
}

/// How the steps end.
#[derive(Default)]
struct Ending {
    slice_sum: Option<(usize, usize)>,
    epilogue: Option<Step>,
}
