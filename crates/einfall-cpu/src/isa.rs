//! Which vector instructions the kernels may use.
//!
//! In: the machine and the environment variable `EINFALL_ISA`. Out: an [`Isa`], a plain value that is passed to every
//! kernel. Called once by whoever builds the machine description; nothing is remembered here.
//!
//! ```
//! use einfall_cpu::isa::Isa;
//!
//! assert!(Isa::available().contains(&Isa::Portable));
//! assert_eq!("avx2".parse::<Isa>(), Ok(Isa::Avx2));
//! ```

use std::fmt;
use std::str::FromStr;

/// The environment variable that forces one instruction set.
pub const ISA_VARIABLE: &str = "EINFALL_ISA";

/// An instruction set that has kernels of its own.
///
/// Passing a value to a kernel promises that this machine has the instructions: take it from [`Isa::detect`] or
/// [`Isa::available`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// What the compiler makes of plain loops for the baseline target; runs everywhere.
    Portable,
    /// Advanced SIMD of aarch64, 128-bit.
    Neon,
    /// x86-64 with AVX2, FMA and F16C, 256-bit.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and DQ (and POPCNT, and everything [`Isa::Avx2`] needs), 512-bit.
    Avx512,
}

impl Isa {
    /// All instruction sets, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Neon, Isa::Avx2, Isa::Avx512];

    /// The best instruction set of this machine, or the one that `EINFALL_ISA` names.
    ///
    /// # Errors
    /// The variable holds an unknown name, or one that this machine cannot run.
    pub fn detect() -> Result<Isa, String> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) => Isa::forced(&name),
            Err(std::env::VarError::NotPresent) => Ok(Isa::best()),
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(format!("`{ISA_VARIABLE}` is not valid unicode\nhint: use one of {}", names(&Isa::available())))
            }
        }
    }

    /// The instruction sets this machine can run, slowest first; never empty. For tests that run every kernel.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine can run the instruction set.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            Isa::Neon => cfg!(all(target_arch = "aarch64", target_feature = "neon")),
            Isa::Avx2 => has_avx2(),
            Isa::Avx512 => has_avx512(),
        }
    }

    /// The name that `EINFALL_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    fn best() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    fn forced(name: &str) -> Result<Isa, String> {
        let isa: Isa = name.parse().map_err(|error| format!("`{ISA_VARIABLE}`: {error}"))?;
        if isa.is_available() {
            return Ok(isa);
        }
        Err(format!(
            "`{ISA_VARIABLE}` asks for `{isa}`, which this machine lacks\nhint: it has {}",
            names(&Isa::available())
        ))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Isa, String> {
        Isa::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| format!("unknown instruction set `{name}`\nhint: use one of {}", names(&Isa::ALL)))
    }
}

fn names(list: &[Isa]) -> String {
    list.iter().map(|isa| format!("`{isa}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("popcnt")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse::<Isa>(), Ok(isa));
        }
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let error = Isa::forced("sse9").unwrap_err();
        assert_eq!(
            error,
            "`EINFALL_ISA`: unknown instruction set `sse9`\n\
             hint: use one of `portable`, `neon`, `avx2`, `avx512`"
        );
    }

    #[test]
    fn forcing_requires() {
        for isa in Isa::ALL {
            match Isa::forced(isa.name()) {
                Ok(forced) => assert!(forced == isa && isa.is_available()),
                Err(error) => assert!(!isa.is_available() && error.contains("lacks\nhint: it has")),
            }
        }
    }

    #[test]
    fn the_best_is_the_last_available() {
        assert_eq!(Some(&Isa::best()), Isa::available().last());
    }
}
