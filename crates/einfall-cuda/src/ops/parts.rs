//! Contractions that run as a sequence of others, each by a kernel of its own, with intermediate results in scratch memory.
//!
//! *In*: [`Part`]s from [`super::packed`] and [`super::split`]. *Out*: an estimate, and tasks. A part that the vendor's
//! library takes is handed to it by [`crate::Program`], which runs the parts as if each were a step.

use einfall_plan::{Access, Contraction, Cost, Estimate, Machine, Way};

use super::{KERNELS, Kernel, kernel_named};
use crate::text::{Lowering, Memory, Task, Value};

/// A contraction of a sequence, and where its inputs and its output are.
#[derive(Clone, Debug)]
pub struct Part {
    /// The kernel that runs it.
    pub kernel: &'static str,
    /// What it computes.
    pub contraction: Contraction,
    /// What left, right and output are counted from, with bytes. Without a right input its place is the left one's.
    pub places: [(Memory, i64); 3],
}

/// Parts in their order, and what all of them cost.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The parts.
    pub parts: Vec<Part>,
    /// Their cost.
    pub estimate: Estimate,
}

/// A contraction of a sequence before a kernel was chosen. Scratch memory is counted without what kernels need themselves.
pub(super) struct Draft {
    pub contraction: Contraction,
    pub places: [(Memory, i64); 3],
}

/// The kernel that takes least time, of those that are no sequences themselves, and its offer.
pub(super) fn cheapest(contraction: &Contraction, machine: &Machine) -> Option<(&'static Kernel, Estimate)> {
    let single = KERNELS.iter().filter(|kernel| kernel.sequence.is_none());
    let offers = single.filter_map(|kernel| Some((kernel, (kernel.estimate)(contraction, machine).ok()?)));
    // What is predicted of the vendor's library is more often true.
    let seconds =
        |(kernel, offer): &(&Kernel, Estimate)| offer.cost.seconds * if kernel.product.is_some() { 0.8 } else { 1.0 };
    offers.min_by(|a, b| seconds(a).total_cmp(&seconds(b)))
}

impl Sequence {
    /// The best kernel for each part, behind whose scratch memory the intermediate results lie. `None` where a part has
    /// no kernel.
    pub(super) fn new(drafts: Vec<Draft>, between_bytes: usize, way: Way, machine: &Machine) -> Option<Self> {
        let offers: Option<Vec<_>> = drafts.iter().map(|draft| cheapest(&draft.contraction, machine)).collect();
        let offers = offers?;
        let own = offers.iter().map(|(_, offer)| offer.workspace_bytes).max().unwrap_or(0).next_multiple_of(256);
        let total = |what: fn(&Cost) -> f64| offers.iter().map(|(_, offer)| what(&offer.cost)).sum::<f64>();
        let cost = Cost {
            flops: total(|cost| cost.flops),
            bytes: total(|cost| cost.bytes),
            seconds: total(|cost| cost.seconds),
        };
        let estimate = Estimate { way, cost, workspace_bytes: own + between_bytes };
        let placed = |(memory, bytes): (Memory, i64)| match memory {
            Memory::Scratch => (memory, bytes + own as i64),
            memory => (memory, bytes),
        };
        let parts = drafts.into_iter().zip(&offers).map(|(draft, (kernel, _))| Part {
            kernel: kernel.name,
            contraction: draft.contraction,
            places: draft.places.map(placed),
        });
        Some(Sequence { parts: parts.collect(), estimate })
    }

    /// The sequence of a contraction whose accesses may begin anywhere: slices of a plan run as it was estimated.
    pub(crate) fn of(kernel: &Kernel, contraction: &Contraction, machine: &Machine) -> Option<Self> {
        let make = kernel.sequence?;
        let mut sequence = make(&unshifted(contraction), machine).expect("the kernel made an offer");
        let offset = |memory: Memory| match memory {
            Memory::Left => contraction.left.offset,
            Memory::Right => contraction.right.as_ref().map_or(0, |right| right.offset),
            Memory::Out => contraction.out.offset,
            _ => 0,
        };
        for Part { contraction: part, places, .. } in &mut sequence.parts {
            let [left, right, out] = places.map(|(memory, _)| offset(memory));
            part.left.offset += left;
            if let Some(access) = &mut part.right {
                access.offset += right;
            }
            part.out.offset += out;
        }
        Some(sequence)
    }
}

/// The contraction with all accesses at their beginning, so that what is chosen does not depend on it.
pub(super) fn unshifted(contraction: &Contraction) -> Contraction {
    let mut contraction = contraction.clone();
    let Contraction { left, right, out, .. } = &mut contraction;
    [Some(left), right.as_mut(), Some(out)].into_iter().flatten().for_each(|access| access.offset = 0);
    contraction
}

/// The tasks of all parts, without the library.
pub(super) fn lower(name: &str, lowering: &Lowering<'_>) -> Vec<Task> {
    let kernel = kernel_named(name).expect("one of the table");
    let sequence = Sequence::of(kernel, lowering.contraction, lowering.machine).expect("a sequence");
    let aligned = |(memory, bytes): (Memory, i64)| match memory {
        Memory::Left => lowering.alignment[0],
        Memory::Right => lowering.alignment[1],
        Memory::Out => lowering.alignment[2],
        _ => 1 << bytes.trailing_zeros().min(8),
    };
    let tasks = sequence.parts.iter().flat_map(|part| {
        let kernel = kernel_named(part.kernel).expect("one of the table");
        let alignment = part.places.map(aligned);
        let mut tasks = (kernel.lower)(&Lowering { contraction: &part.contraction, alignment, ..*lowering });
        for value in tasks.iter_mut().flat_map(|task| &mut task.values) {
            let Value::Pointer(memory, offset) = *value else { continue };
            let place = match memory {
                Memory::Left => part.places[0],
                Memory::Right => part.places[1],
                Memory::Out => part.places[2],
                _ => continue,
            };
            *value = Value::Pointer(place.0, place.1 + offset);
        }
        tasks
    });
    tasks.collect()
}

/// Loops as one: the stride of the last, where each goes on at the end of the next.
pub(super) fn walk(contraction: &Contraction, access: &Access, loops: &[usize]) -> Option<isize> {
    let joins = |pair: &[usize]| {
        access.strides[pair[0]] as i128 == access.strides[pair[1]] as i128 * contraction.loops[pair[1]].len as i128
    };
    let last = *loops.last()?;
    loops.windows(2).all(joins).then_some(access.strides[last])
}
