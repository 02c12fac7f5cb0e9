//! Code that is written once over the vectors of any instruction set, compiled for each and run on one.

use super::{Double, Single, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::runtime::Isa;

/// An instruction set's vectors.
pub trait Arch: 'static {
    type F32: Single;
    type F64: Double;

    /// Whether a chain of a root, a quotient and conversions is longer than what a CPU keeps in flight, so that it is better
    /// gone through in parts: see `benchmarks/README.md`.
    const IN_PARTS: bool;

    /// Asks for the memory at `at`, of which nothing is promised, before it is read.
    fn prefetch(at: *const u8);
}

/// Elements between those that a loop is at and those whose memory it asks for. The CPU does so by itself, but only within
/// a page, and too late for arithmetic of a few cycles: see `benchmarks/README.md`.
const AHEAD: usize = 512;
const CACHE_LINE: usize = 64;

/// Asks for the memory of `count` elements of a type that a loop comes to when it has gone on from number `i` by as many
/// as it should be ahead. There need be none.
#[inline(always)]
pub fn prefetch<A: Arch, T>(from: *const u8, i: usize, count: usize) {
    prefetch_at::<A, T>(from.cast::<T>().wrapping_add(i + AHEAD), count);
}

/// Asks for the memory of `count` elements. There need be none.
#[inline(always)]
pub fn prefetch_at<A: Arch, T>(at: *const T, count: usize) {
    for line in (0..count * size_of::<T>()).step_by(CACHE_LINE) {
        A::prefetch(at.cast::<u8>().wrapping_add(line));
    }
}

/// Whether rows that begin here, so many bytes one after the other, can be [`stream`]ed to, a vector at a time.
pub fn can_stream<T>(first: *const T, stride: usize) -> bool {
    cfg!(target_arch = "x86_64") && (first as usize | stride).is_multiple_of(16)
}

/// Copies `count` elements past the caches. Other threads see them after [`end_streams`].
///
/// # Safety
/// As many are there, and room for as many, in memory for which [`can_stream`] holds; they are a multiple of 16 bytes.
#[inline(always)]
pub unsafe fn stream<T: Copy>(from: *const T, to: *mut T, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for place in (0..count * size_of::<T>()).step_by(16) {
        // SAFETY: the caller's promise; SSE2 is part of x86-64.
        unsafe {
            use std::arch::x86_64::{_mm_loadu_si128, _mm_stream_si128};
            _mm_stream_si128(
                to.byte_add(place).cast(),
                _mm_loadu_si128(from.byte_add(place).cast()),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        to.copy_from_nonoverlapping(from, count)
    }
}

/// What was streamed is there for all threads that learn of it from this one.
#[inline(always)]
pub fn end_streams() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
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
            Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512 => routine.with_avx512(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => routine.with_avx2(),
            _ => routine.with_baseline(),
        }
    }
}

/// A routine compiled for each instruction set.
///
/// Methods, and not functions: the compiler keeps a method with the module of its type (of a tuple, its first type), so
/// that routines of several modules are compiled side by side, and again only where they have changed.
trait Compiled: Routine {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL, and what [`Compiled::with_avx2`] asks for.
    #[cfg(target_arch = "x86_64")]
    unsafe fn with_avx512(self) -> Self::Output;

    /// # Safety
    /// The CPU has AVX2, FMA, F16C and POPCNT.
    #[cfg(target_arch = "x86_64")]
    unsafe fn with_avx2(self) -> Self::Output;

    /// # Safety
    /// None: the target guarantees what this uses.
    unsafe fn with_baseline(self) -> Self::Output;
}

impl<R: Routine> Compiled for R {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
    unsafe fn with_avx512(self) -> R::Output {
        // SAFETY: the caller's promise.
        unsafe { self.run::<avx512::Avx512>() }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,popcnt")]
    unsafe fn with_avx2(self) -> R::Output {
        // SAFETY: the caller's promise.
        unsafe { self.run::<avx2::Avx2>() }
    }

    /// A function like the others: by itself the routine is seen to be read by nobody else, without which plain arrays
    /// of lanes do not become vector code.
    #[inline(never)]
    unsafe fn with_baseline(self) -> R::Output {
        // SAFETY: every CPU of the target has the instructions.
        unsafe { self.run::<portable::Portable>() }
    }
}
