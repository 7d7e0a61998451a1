//! What the planner knows of a device: numbers only. Measured by `einfall machine`, or estimated.

use serde::{Deserialize, Serialize};

/// Sizes and rates of one device.
///
/// Rates are of the whole device with all its threads. The planner divides work by them; nothing else reads them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name for people: the processor and the instruction set in use.
    pub name: String,
    /// Threads that work at the same time.
    pub threads: usize,
    /// Instruction set: `portable`, `avx2`, `avx512`, `neon`, `sm_90`, …
    pub isa: String,
    /// First-level data cache of a core, bytes.
    pub l1_bytes: usize,
    /// Second-level cache of a core, bytes.
    pub l2_bytes: usize,
    /// Last-level cache, bytes, shared.
    pub l3_bytes: usize,
    /// Reading from memory.
    pub read_bytes_per_second: f64,
    /// Writing to memory that nobody has read before (each line is first read, unless it is streamed).
    pub write_bytes_per_second: f64,
    /// Reading rows out of the second-level cache.
    pub l2_bytes_per_second: f64,
    /// Reading rows out of the last-level cache.
    pub l3_bytes_per_second: f64,
    /// f32 multiply-adds, times two, in registers.
    pub f32_flops_per_second: f64,
    /// f64 multiply-adds, times two, in registers.
    pub f64_flops_per_second: f64,
    /// The same for products of matrices of half types, summed in f32, where there are units for them; else 0.
    #[serde(default)]
    pub half_flops_per_second: f64,
    /// Starting and joining the threads of one step.
    pub fork_seconds: f64,
    /// False for estimates, true for measured rates.
    pub measured: bool,
}

impl Machine {
    /// A round, small machine for examples and for plans that tests pin down: 2 threads, AVX2, 512 KiB L2.
    pub fn example() -> Self {
        Machine {
            name: "example".into(),
            threads: 2,
            isa: "avx2".into(),
            l1_bytes: 32 << 10,
            l2_bytes: 512 << 10,
            l3_bytes: 32 << 20,
            read_bytes_per_second: 26e9,
            write_bytes_per_second: 12e9,
            l2_bytes_per_second: 160e9,
            l3_bytes_per_second: 60e9,
            f32_flops_per_second: 180e9,
            f64_flops_per_second: 90e9,
            half_flops_per_second: 0.0,
            fork_seconds: 5e-6,
            measured: false,
        }
    }

    /// True when a planner can divide by the rates and trust the sizes: no zeros, no infinities, nothing absurd.
    pub fn is_plausible(&self) -> bool {
        let rates = [
            self.read_bytes_per_second,
            self.write_bytes_per_second,
            self.l2_bytes_per_second,
            self.l3_bytes_per_second,
            self.f32_flops_per_second,
            self.f64_flops_per_second,
        ];
        let caches = [self.l1_bytes, self.l2_bytes, self.l3_bytes];
        self.threads > 0
            && rates.iter().all(|rate| (1e6..1e18).contains(rate))
            && caches.iter().all(|bytes| (1 << 10..1 << 40).contains(bytes))
            && (0.0..1e18).contains(&self.half_flops_per_second)
            && (0.0..1.0).contains(&self.fork_seconds)
    }

    /// Bytes a second for data that is read again and again out of a working set.
    pub fn bytes_per_second_within(&self, working_set_bytes: f64) -> f64 {
        if working_set_bytes <= self.l2_bytes as f64 * 0.8 {
            self.l2_bytes_per_second
        } else if working_set_bytes <= self.l3_bytes as f64 * 0.8 {
            self.l3_bytes_per_second
        } else {
            self.read_bytes_per_second
        }
    }

    /// Arithmetic rate for an element type; types without vector units of their own count as a fraction.
    pub fn flops_per_second(&self, dtype: einfall_tensor::DType) -> f64 {
        use einfall_tensor::DType::*;
        match dtype {
            F32 | F16 | BF16 | C64 => self.f32_flops_per_second,
            F64 | C128 => self.f64_flops_per_second,
            I64 | U64 => self.f64_flops_per_second / 4.0,
            _ => self.f32_flops_per_second / 4.0,
        }
    }

    /// Whether products of matrices of half types take less time than those of f32.
    pub fn has_half_units(&self) -> bool {
        self.half_flops_per_second > self.f32_flops_per_second
    }

    /// The peak of products of matrices, which for half types may be that of units of their own.
    pub fn peak_flops_per_second(&self, dtype: einfall_tensor::DType) -> f64 {
        use einfall_tensor::DType::{BF16, F16};
        match dtype {
            F16 | BF16 if self.has_half_units() => self.half_flops_per_second,
            _ => self.flops_per_second(dtype),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_that_no_plan_can_use_are_told() {
        let example = Machine::example;
        assert!(example().is_plausible());
        for wrong in [
            Machine { threads: 0, ..example() },
            Machine { l2_bytes: 0, ..example() },
            Machine { l1_bytes: usize::MAX, ..example() },
            Machine { read_bytes_per_second: 0.0, ..example() },
            Machine { f32_flops_per_second: f64::NAN, ..example() },
            Machine { write_bytes_per_second: f64::INFINITY, ..example() },
            Machine { fork_seconds: -1.0, ..example() },
        ] {
            assert!(!wrong.is_plausible(), "{wrong:?}");
        }
    }
}
