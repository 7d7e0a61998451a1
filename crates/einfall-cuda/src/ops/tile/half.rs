//! Tiles of half types on tensor cores, summed in f32.

use einfall_plan::Machine;
use einfall_tensor::DType;

use super::{START_SECONDS, Tile};

/// Tiles, large ones first. The narrow ones are for a few heads that share looked-up rows.
pub(super) const TILES: &[Tile] = &[
    Tile { rows: 128, columns: 128, terms: 32, each: (0, 0), warps: (2, 4), share: 0.2 },
    Tile { rows: 64, columns: 64, terms: 64, each: (0, 0), warps: (2, 2), share: 0.15 },
    Tile { rows: 32, columns: 128, terms: 32, each: (0, 0), warps: (1, 4), share: 0.15 },
    Tile { rows: 128, columns: 32, terms: 32, each: (0, 0), warps: (4, 1), share: 0.15 },
    Tile { rows: 16, columns: 128, terms: 64, each: (0, 0), warps: (1, 4), share: 0.1 },
    Tile { rows: 128, columns: 16, terms: 64, each: (0, 0), warps: (4, 1), share: 0.1 },
];

/// Deep enough that copies of rows that are looked up are under way while others are multiplied.
const STAGES: usize = 3;

/// Tensor cores do so many times the sums of products that f32 lanes do.
const TENSOR: f64 = 10.0;

/// Whether a type is summed on tensor cores.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// Predicted time of so many tiles: sums of products, or bringing what they read from the cache, whichever is longer.
pub(super) fn seconds(tile: Tile, tiles: usize, terms: usize, machine: &Machine) -> f64 {
    let padded = (terms.next_multiple_of(tile.terms) + 32) as f64;
    let together = (512 / tile.threads()).max(1);
    let waves = tiles.div_ceil(machine.threads * together) as f64;
    let peak = machine.f32_flops_per_second * TENSOR / machine.threads as f64;
    let flops = 2.0 * (tile.rows * tile.columns) as f64 * padded;
    let bytes = ((tile.rows + tile.columns) * 2) as f64 * padded;
    let read = machine.l2_bytes_per_second * 0.7 / machine.threads as f64;
    let each = (flops / (peak * tile.share)).max(bytes / read);
    tiles.div_ceil(machine.threads) as f64 * each + waves * START_SECONDS
}

/// What the text is told beside what all tiles are.
pub(super) fn numbers(tile: Tile, dtype: DType) -> [(&'static str, usize); 4] {
    let of_half = usize::from(dtype == DType::F16);
    [("WM", tile.warps.0), ("WN", tile.warps.1), ("STAGES", STAGES), ("DT", of_half)]
}

/// Shared memory of a block, as the text lays it out.
pub(super) fn shared_bytes(tile: Tile, first_unit: usize, second_unit: usize) -> u32 {
    let side = |rows: usize, unit: usize| {
        let (lines, length) = if unit == 1 { (tile.terms, rows) } else { (rows, tile.terms) };
        lines * (length * 2 + 16)
    };
    (STAGES * (side(tile.rows, first_unit) + side(tile.columns, second_unit))) as u32
}

pub(super) const TILE: &str =
    concat!(include_str!("../../../kernels/mma.cuh"), include_str!("../../../kernels/tile_half.cu"));
