//! AVX-512 BF16: dot products of pairs of bf16 summed in f32.

use std::arch::x86_64::*;

use half::bf16;

use super::avx512::transpose16;
use super::kernel::{Kernel, Takes, Vectors, block};
use super::round;

/// A unit is a pair along the summed dimension. `vdpbf16ps` takes subnormal inputs and results as zero.
#[derive(Clone, Copy)]
pub struct Dot;

impl Kernel for Dot {
    type Value = u16;
    type Unit = u32;
    type Acc = f32;
    const DEPTH: usize = 2;
    const LANES: usize = 16;
    block!(8 x 2, "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

    #[inline(always)]
    fn unit(first: u16, second: u16) -> u32 {
        u32::from(first) | u32::from(second) << 16
    }
    #[inline(always)]
    unsafe fn units(first: &[u16], second: &[u16], to: &mut [u32]) {
        assert!(first.len() >= to.len() && second.len() >= to.len() && to.len().is_multiple_of(16));
        // Not left to the compiler, which takes one value at a time.
        for i in (0..to.len()).step_by(16) {
            // SAFETY: within `enter`; `i + 16` is within all three.
            unsafe {
                let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.as_ptr().add(i).cast()));
                let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(second.as_ptr().add(i).cast()));
                let units = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(to.as_mut_ptr().add(i).cast(), units);
            }
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promises are the same; any 32 bits will do.
        unsafe { transpose16(from.cast(), stride, to.cast(), to_stride) }
    }
}

impl Vectors for Dot {
    type Factor = __m512bh;
    type Sum = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: within `enter`.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512bh {
        // SAFETY: within `enter`, 16 pairs to read; both types are 512 plain bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat(unit: u32) -> __m512bh {
        // SAFETY: within `enter`; both types are 512 plain bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(unit.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512bh, b: __m512bh, sum: __m512) -> __m512 {
        // SAFETY: within `enter`.
        unsafe { _mm512_dpbf16_ps(sum, a, b) }
    }
    #[inline(always)]
    unsafe fn store(sum: __m512, to: *mut f32, first: bool) {
        // SAFETY: within `enter`, 16 values to write.
        unsafe {
            let sum = if first {
                sum
            } else {
                _mm512_add_ps(sum, _mm512_loadu_ps(to))
            };
            _mm512_storeu_ps(to, sum);
        }
    }
}

impl Takes<f32> for Dot {
    #[inline(always)]
    unsafe fn convert(from: &[f32], to: &mut [u16]) {
        // Plain loops: iterators over two slices are not always inlined into a function with features of its own.
        let count = from.len().min(to.len());
        let whole = count - count % 16;
        for i in (0..whole).step_by(16) {
            // SAFETY: within `enter`; `i + 16` is within both slices.
            unsafe {
                let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from.as_ptr().add(i)));
                to.as_mut_ptr().add(i).cast::<__m256bh>().write_unaligned(rounded);
            }
        }
        for i in whole..count {
            to[i] = bf16::from_f32(from[i]).to_bits();
        }
    }
}

impl Takes<bf16> for Dot {
    #[inline(always)]
    unsafe fn convert(from: &[bf16], to: &mut [u16]) {
        round::bits(from, to);
    }
}
