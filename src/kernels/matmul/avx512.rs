//! AVX-512 F: f32 and f64.

use std::arch::x86_64::*;

use half::bf16;

use super::kernel::{Kernel, Takes, Vectors, block};
use super::round;

#[derive(Clone, Copy)]
pub struct F32;

impl Kernel for F32 {
    type Value = f32;
    type Unit = f32;
    type Acc = f32;
    const DEPTH: usize = 1;
    const LANES: usize = 16;
    block!(8 x 2, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

    #[inline(always)]
    fn unit(first: f32, _: f32) -> f32 {
        first
    }
    #[inline(always)]
    fn round(values: &mut [f32]) {
        round::in_place(values);
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's promises are the same; any 32 bits will do.
        unsafe { transpose16(from.cast(), stride, to.cast(), to_stride) }
    }
}

impl Vectors for F32 {
    type Factor = __m512;
    type Sum = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: within `enter`.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: within `enter`, 16 values to read.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn splat(unit: f32) -> __m512 {
        // SAFETY: within `enter`.
        unsafe { _mm512_set1_ps(unit) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: within `enter`.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
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

impl Takes<f32> for F32 {
    #[inline(always)]
    unsafe fn convert(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Takes<bf16> for F32 {
    #[inline(always)]
    unsafe fn convert(from: &[bf16], to: &mut [f32]) {
        round::widen(from, to);
    }
}

#[derive(Clone, Copy)]
pub struct F64;

impl Kernel for F64 {
    type Value = f64;
    type Unit = f64;
    type Acc = f64;
    const DEPTH: usize = 1;
    const LANES: usize = 8;
    block!(8 x 2, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c");

    #[inline(always)]
    fn unit(first: f64, _: f64) -> f64 {
        first
    }
}

impl Vectors for F64 {
    type Factor = __m512d;
    type Sum = __m512d;

    #[inline(always)]
    unsafe fn zero() -> __m512d {
        // SAFETY: within `enter`.
        unsafe { _mm512_setzero_pd() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f64) -> __m512d {
        // SAFETY: within `enter`, 8 values to read.
        unsafe { _mm512_loadu_pd(from) }
    }
    #[inline(always)]
    unsafe fn splat(unit: f64) -> __m512d {
        // SAFETY: within `enter`.
        unsafe { _mm512_set1_pd(unit) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512d, b: __m512d, sum: __m512d) -> __m512d {
        // SAFETY: within `enter`.
        unsafe { _mm512_fmadd_pd(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn store(sum: __m512d, to: *mut f64, first: bool) {
        // SAFETY: within `enter`, 8 values to write.
        unsafe {
            let sum = if first {
                sum
            } else {
                _mm512_add_pd(sum, _mm512_loadu_pd(to))
            };
            _mm512_storeu_pd(to, sum);
        }
    }
}

impl Takes<f64> for F64 {
    #[inline(always)]
    unsafe fn convert(from: &[f64], to: &mut [f64]) {
        to.copy_from_slice(from);
    }
}

/// Transposes 16 x 16 values of 32 bits.
///
/// # Safety
/// Within `enter`; blocks of 16 rows, `stride` and `to_stride` values apart.
#[inline(always)]
pub unsafe fn transpose16(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut rows = [_mm512_setzero_ps(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_ps(from.add(i * stride));
        }
        // Within 128-bit lanes: quads[4 * q + j] holds column 4 * lane + j of rows 4 * q .. 4 * q + 4.
        let mut quads = [_mm512_setzero_ps(); 16];
        for q in (0..16).step_by(4) {
            let (low, high) = (
                (
                    _mm512_unpacklo_ps(rows[q], rows[q + 1]),
                    _mm512_unpacklo_ps(rows[q + 2], rows[q + 3]),
                ),
                (
                    _mm512_unpackhi_ps(rows[q], rows[q + 1]),
                    _mm512_unpackhi_ps(rows[q + 2], rows[q + 3]),
                ),
            );
            quads[q] = _mm512_shuffle_ps::<0x44>(low.0, low.1);
            quads[q + 1] = _mm512_shuffle_ps::<0xee>(low.0, low.1);
            quads[q + 2] = _mm512_shuffle_ps::<0x44>(high.0, high.1);
            quads[q + 3] = _mm512_shuffle_ps::<0xee>(high.0, high.1);
        }
        // Then the lanes.
        for j in 0..4 {
            let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
            let (ab_even, ab_odd) = (
                _mm512_shuffle_f32x4::<0x88>(a, b),
                _mm512_shuffle_f32x4::<0xdd>(a, b),
            );
            let (cd_even, cd_odd) = (
                _mm512_shuffle_f32x4::<0x88>(c, d),
                _mm512_shuffle_f32x4::<0xdd>(c, d),
            );
            _mm512_storeu_ps(
                to.add(j * to_stride),
                _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even),
            );
            _mm512_storeu_ps(
                to.add((4 + j) * to_stride),
                _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd),
            );
            _mm512_storeu_ps(
                to.add((8 + j) * to_stride),
                _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even),
            );
            _mm512_storeu_ps(
                to.add((12 + j) * to_stride),
                _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd),
            );
        }
    }
}
