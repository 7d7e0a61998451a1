//! Attention of half types on tensor cores: what its kernels share, the text that says where things lie.
//!
//! Rows are whole and contiguous, 16 bytes at a time; sums are in `f32`. What a kernel cannot do it says in its estimate.

pub mod band;
pub mod grouped;

use std::fmt::Write;

use einfall_plan::{Access, Attention, AttentionRole, Machine};
use einfall_tensor::DType;

use crate::text::Fields;

/// Sums of products on tensor cores, as a multiple of those of f32 lanes.
pub(super) const TENSOR: f64 = 14.0;

/// Fixed text of every kernel here.
pub(super) const MMA: &str = include_str!("../../../../kernels/mma.cuh");
/// That of kernels of warpgroups.
pub(super) const WARPGROUPS: &str = include_str!("../../../../kernels/wgmma.cuh");

/// Elements that are copied at once.
const CHUNK: usize = 8;

/// An attention whose rows are contiguous, of a half type.
#[derive(Clone, Debug)]
pub(super) struct Rows<'a> {
    pub(super) attention: &'a Attention,
    /// Loops of lists, those that move keys outermost.
    pub(super) lists: Vec<usize>,
    pub(super) heads: Vec<usize>,
    /// The loop over keys, if there is more than one key.
    pub(super) key: Option<usize>,
    /// Elements of a key and of a value.
    pub(super) depth: usize,
    pub(super) width: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(attention: &'a Attention) -> Result<Self, String> {
        if !matches!(attention.dtype, DType::BF16 | DType::F16) {
            return Err(format!("tensor cores sum half types, not {}", attention.dtype));
        }
        if attention.bias.is_some() {
            return Err("a bias is added elsewhere".into());
        }
        let only = |role: AttentionRole, what: &str| {
            let mut found = attention.loops_of(role);
            match (found.next(), found.next()) {
                (at, None) => Ok(at),
                _ => Err(format!("{what} has several loops")),
            }
        };
        let key = only(AttentionRole::Key, "a list")?;
        let depth = only(AttentionRole::Depth, "a row of the keys")?;
        let width = only(AttentionRole::Width, "a row of the values")?;
        let len = |at: Option<usize>| at.map_or(1, |at| attention.loops[at].len);
        let gradients = &attention.gradients;
        let in_depth = [Some(&attention.query), Some(&attention.key), gradients.query.as_ref(), gradients.key.as_ref()];
        let in_width = [Some(&attention.value), Some(&attention.out), gradients.value.as_ref()];
        for (row, accesses, along) in [("key", &in_depth[..], depth), ("value", &in_width[..], width)] {
            if along.is_none() || !len(along).is_multiple_of(CHUNK) || len(along) == 0 {
                return Err(format!("a row of a {row} is not a multiple of {CHUNK} elements"));
            }
            let whole = |access: &Access| {
                let moved = access.strides.iter().enumerate().filter(|(at, _)| Some(*at) != along).map(|(_, s)| *s);
                let looked_up = access.lookups.iter().map(|lookup| lookup.stride);
                let slid = access.windows.iter().map(|window| window.stride);
                let mut all = moved.chain(looked_up).chain(slid).chain([access.offset]);
                along.is_some_and(|at| access.strides[at] == 1) && all.all(|stride| stride % CHUNK as isize == 0)
            };
            if !accesses.iter().flatten().all(|access| whole(access)) {
                return Err(format!("a row of a {row} is not contiguous, or not on 16 bytes"));
            }
        }
        let mut lists: Vec<usize> = attention.loops_of(AttentionRole::List).collect();
        lists.sort_by_key(|&at| attention.key.strides[at] == 0);
        let heads = attention.loops_of(AttentionRole::Head).collect();
        Ok(Rows { attention, lists, heads, key, depth: len(depth), width: len(width) })
    }

    pub(super) fn len(&self, loops: &[usize]) -> usize {
        loops.iter().map(|&at| self.attention.loops[at].len).product()
    }

    /// What its addresses have to be multiples of.
    pub(super) const ALIGNMENT: usize = 16;
}

/// A member of `Place`, and how far each loop moves it.
pub(super) struct Moved {
    pub(super) member: &'static str,
    pub(super) strides: Vec<i64>,
}

impl Moved {
    /// The member of an access.
    pub(super) fn by(member: &'static str, access: &Access) -> Self {
        Moved { member, strides: access.strides.iter().map(|&stride| stride as i64).collect() }
    }
}

/// Code that splits `index` into the indices of `loops`, the last one fastest, and moves a `Place` named `at`.
pub(super) fn walk(
    fields: &mut Fields,
    attention: &Attention,
    index: &str,
    loops: &[usize],
    moved: &[Moved],
) -> String {
    let mut text = String::new();
    if loops.is_empty() {
        return text;
    }
    let _ = writeln!(text, "  u64 rest_{index} = (u64){index};");
    for (place, &at) in loops.iter().enumerate().rev() {
        if place == 0 {
            let _ = writeln!(text, "  {{ const i64 i = (i64)rest_{index};");
        } else {
            let len = fields.int(&format!("n{at}"), attention.loops[at].len as i64);
            let _ = writeln!(text, "  {{ const i64 i = (i64)(rest_{index} % (u64){len}); rest_{index} /= (u64){len};");
        }
        for Moved { member, strides } in moved.iter().filter(|moved| moved.strides[at] != 0) {
            let stride = fields.int(&format!("{member}_{at}"), strides[at]);
            let _ = writeln!(text, "    at.{member} += i * {stride};");
        }
        text += "  }\n";
    }
    text
}

/// Predicted time of sums of products that reach a share of the peak.
pub(super) fn product_seconds(flops: f64, share: f64, machine: &Machine) -> f64 {
    flops / (machine.f32_flops_per_second * TENSOR * share)
}

/// A list of definitions.
pub(super) fn defines(numbers: &[(&str, usize)]) -> String {
    numbers.iter().map(|(name, value)| format!("#define {name} {value}\n")).collect()
}
