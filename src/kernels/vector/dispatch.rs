//! Code that is written once over the vectors of any instruction set, compiled for each and run on one.

use super::{Double, Single, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::runtime::Isa;

/// An instruction set's vectors.
pub trait Arch: 'static {
    type F32: Single;
    type F64: Double;
}

/// Code for any instruction set. It may use the vectors, or be plain code that the compiler turns into vector code.
pub trait Routine {
    type Output;

    /// To be `#[inline(always)]`, as all that it calls and that uses vectors: what is not inlined into [`dispatch`]'s
    /// functions is compiled without the instruction set. Closures are not always inlined, loops are.
    ///
    /// # Safety
    /// The CPU has the instruction set. Only [`dispatch`] calls this.
    unsafe fn run<A: Arch>(self) -> Self::Output;
}

/// Runs `routine` compiled for `isa`.
///
/// # Panics
/// Where the CPU does not run `isa`.
pub fn dispatch<R: Routine>(isa: Isa, routine: R) -> R::Output {
    isa.check();
    // SAFETY: `check` has seen that the CPU has the instruction set.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512 => with_avx512(routine),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => with_avx2(routine),
            _ => with_baseline(routine),
        }
    }
}

/// # Safety
/// The CPU has AVX-512 F, BW, DQ and VL, and what [`with_avx2`] asks for.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn with_avx512<R: Routine>(routine: R) -> R::Output {
    // SAFETY: the caller's promise.
    unsafe { routine.run::<avx512::Avx512>() }
}

/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<R: Routine>(routine: R) -> R::Output {
    // SAFETY: the caller's promise.
    unsafe { routine.run::<avx2::Avx2>() }
}

/// A function like the others: by itself the routine is seen to be read by nobody else, without which plain arrays of
/// lanes do not become vector code.
///
/// # Safety
/// None: the target guarantees what this uses.
#[inline(never)]
unsafe fn with_baseline<R: Routine>(routine: R) -> R::Output {
    // SAFETY: every CPU of the target has the instructions.
    unsafe { routine.run::<portable::Portable>() }
}
