//! Which instruction set the kernels use: the best that the CPU has, or a lower one that was asked for.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets that kernels are written for, each containing those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Whatever the compilation target guarantees: SSE2 on x86-64, NEON on aarch64.
    Portable,
    /// AVX2, FMA, F16C and POPCNT: every x86-64 CPU since about 2015.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with BF16 dot products.
    Avx512Bf16,
    /// Tiles with BF16 dot products, on an operating system that lets us use them.
    AmxBf16,
}

/// The environment variable that forces a lower instruction set.
pub const VARIABLE: &str = "FERROSTEP_ISA";

const ALL: [Isa; 5] = [
    Isa::Portable,
    Isa::Avx2,
    Isa::Avx512,
    Isa::Avx512Bf16,
    Isa::AmxBf16,
];
const UNSET: u8 = u8::MAX;
static CHOSEN: AtomicU8 = AtomicU8::new(UNSET);

impl Isa {
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::AmxBf16 => "amxbf16",
        }
    }

    /// Those that this CPU runs, lowest first.
    pub fn supported() -> Vec<Isa> {
        let best = Isa::best();
        ALL.into_iter().filter(|&isa| isa <= best).collect()
    }

    /// # Panics
    /// Where this CPU does not run it.
    pub fn check(self) {
        assert!(self <= Isa::best(), "this CPU does not run {}", self.name());
    }

    /// Whether products of bf16 factors outrun those of f32. Intel's `vdpbf16ps` does not: 225 GF/s beside 320 on an
    /// AMX-capable server CPU, where AMD's was 1.7 times as fast as f32 on Zen 5.
    pub fn has_fast_bf16(self) -> bool {
        match self {
            Isa::AmxBf16 => true,
            Isa::Avx512Bf16 => !is_intel(),
            Isa::Avx512 | Isa::Avx2 | Isa::Portable => false,
        }
    }

    /// The best that this CPU runs. What it has does not change, so it is asked once.
    #[cfg(target_arch = "x86_64")]
    fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("popcnt");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
            match (avx2, avx512, bf16, bf16 && may_use_tiles()) {
                (_, _, _, true) => Isa::AmxBf16,
                (_, _, true, false) => Isa::Avx512Bf16,
                (_, true, false, _) => Isa::Avx512,
                (true, false, _, _) => Isa::Avx2,
                (false, false, _, _) => Isa::Portable,
            }
        })
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

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    static INTEL: OnceLock<bool> = OnceLock::new();
    *INTEL.get_or_init(|| {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx]
            .map(u32::to_le_bytes)
            .concat()
            == b"GenuineIntel"
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

/// Whether the CPU has tiles with bf16 products and Linux grants them: to the whole process, its threads and its forked
/// children. It refuses where a thread's signal stack is too small for them. Other systems have their own ways, which
/// nobody has tried here.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    if std::arch::x86_64::__cpuid_count(7, 0).edx & BF16_AND_TILES != BF16_AND_TILES {
        return false;
    }
    // SAFETY: asks for a permission and touches no memory; an older kernel answers with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn may_use_tiles() -> bool {
    false
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
