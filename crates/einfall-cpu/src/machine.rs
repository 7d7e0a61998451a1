//! What this processor is: cache sizes from the system, rates estimated until somebody measures them.

use einfall_plan::Machine;

use crate::isa::Isa;

/// A description of this processor whose rates are typical for its instruction set.
pub fn estimate_machine(isa: Isa, threads: usize) -> Machine {
    let (l1_bytes, l2_bytes, l3_bytes) = cache_bytes();
    // Two fused multiply-adds a cycle at 3.5 GHz; wide vectors double what a cycle does.
    let lanes = match isa {
        Isa::Avx512 => 16.0,
        Isa::Avx2 => 8.0,
        Isa::Neon | Isa::Portable => 4.0,
    };
    let per_core = 3.5e9 * 2.0 * 2.0 * lanes * 0.8;
    let cores = threads as f64;
    Machine {
        name: processor_name(),
        threads,
        isa: isa.to_string(),
        l1_bytes,
        l2_bytes,
        l3_bytes,
        read_bytes_per_second: 20e9 * cores.min(8.0),
        write_bytes_per_second: 8e9 * cores.min(8.0),
        l2_bytes_per_second: 160e9 * cores,
        l3_bytes_per_second: 30e9 * cores,
        f32_flops_per_second: per_core * cores,
        f64_flops_per_second: per_core * cores / 2.0,
        half_flops_per_second: 0.0,
        fork_seconds: 2e-6,
        measured: false,
    }
}

/// Data caches of one core in bytes: first, second and last level.
fn cache_bytes() -> (usize, usize, usize) {
    let level = |index: usize| -> Option<(u32, usize)> {
        let base = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |name: &str| std::fs::read_to_string(format!("{base}/{name}")).ok();
        if read("type")?.trim() == "Instruction" {
            return None;
        }
        let size = read("size")?;
        let size = size.trim();
        let (digits, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len()));
        let scale = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => 1,
        };
        Some((read("level")?.trim().parse().ok()?, digits.parse::<usize>().ok()?.checked_mul(scale)?))
    };
    let (mut l1, mut l2, mut l3) = (32 << 10, 512 << 10, 0);
    for (number, bytes) in (0..8).filter_map(level) {
        match number {
            1 => l1 = bytes,
            2 => l2 = bytes,
            3 => l3 = bytes,
            _ => {}
        }
    }
    (l1, l2, if l3 == 0 { l2.max(8 << 20) } else { l3 })
}

fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(':').nth(1));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |name| name.trim().to_string())
}
