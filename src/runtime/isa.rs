//! Which instruction set the kernels use: the best that the CPU has, or a lower one that was asked for.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets that kernels are written for, each containing those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Whatever the compilation target guarantees: SSE2 on x86-64, NEON on aarch64.
    Portable,
    /// AVX2, FMA and F16C: every x86-64 CPU since about 2015.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with BF16 dot products.
    Avx512Bf16,
}

/// The environment variable that forces a lower instruction set.
pub const VARIABLE: &str = "FERROSTEP_ISA";

const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];
const UNSET: u8 = u8::MAX;
static CHOSEN: AtomicU8 = AtomicU8::new(UNSET);

impl Isa {
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Those that this CPU runs, lowest first.
    pub fn supported() -> Vec<Isa> {
        let best = Isa::best();
        ALL.into_iter().filter(|&isa| isa <= best).collect()
    }

    /// The best that this CPU runs.
    #[cfg(target_arch = "x86_64")]
    fn best() -> Isa {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (avx2, avx512, is_x86_feature_detected!("avx512bf16")) {
            (_, true, true) => Isa::Avx512Bf16,
            (_, true, false) => Isa::Avx512,
            (true, false, _) => Isa::Avx2,
            (false, false, _) => Isa::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Isa {
        Isa::Portable
    }

    /// The instruction set in use. The first call settles it, from the CPU and `FERROSTEP_ISA`; a value of that
    /// variable that cannot be followed is ignored here and reported by [`Isa::from_environment`].
    pub fn current() -> Isa {
        let chosen = CHOSEN.load(Ordering::Relaxed);
        if let Some(&isa) = ALL.get(chosen as usize) {
            return isa;
        }
        let isa = Isa::from_environment().unwrap_or_else(|_| Isa::best());
        isa.select();
        isa
    }

    /// What `FERROSTEP_ISA` asks for, or the best that the CPU has where it is unset.
    pub fn from_environment() -> Result<Isa, String> {
        match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => Isa::parse(&name).map_err(|e| format!("{VARIABLE}: {e}")),
            _ => Ok(Isa::best()),
        }
    }

    /// The instruction set called `name`, provided that this CPU has it.
    pub fn parse(name: &str) -> Result<Isa, String> {
        let supported = Isa::supported();
        supported
            .iter()
            .copied()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| {
                let names: Vec<_> = supported.iter().map(|isa| isa.name()).collect();
                format!(
                    "this CPU has no instruction set {name:?}; it runs {}",
                    names.join(", ")
                )
            })
    }

    /// Makes `self` the one in use from now on.
    pub fn select(self) {
        CHOSEN.store(self as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        for isa in Isa::supported() {
            assert_eq!(Isa::parse(isa.name()), Ok(isa));
        }
        let error = Isa::parse("sse9").unwrap_err();
        assert!(error.contains("sse9") && error.contains("portable"), "{error}");
    }
}
