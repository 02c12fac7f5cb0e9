//! AVX2 and FMA: f32 and f64.

use std::arch::asm;
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
    const LANES: usize = 8;
    block!(4 x 3, "avx2,fma,f16c");

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
        unsafe { transpose8(from.cast(), stride, to.cast(), to_stride) }
    }
}

impl Vectors for F32 {
    type Factor = __m256;
    type Sum = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: within `enter`.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: within `enter`, 8 values to read.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn splat(unit: f32) -> __m256 {
        // SAFETY: within `enter`.
        unsafe { _mm256_set1_ps(unit) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, sum: __m256) -> __m256 {
        // SAFETY: within `enter`.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn add_products<const MR: usize, const NV: usize>(
        a: *const f32,
        b: *const f32,
        sums: &mut [[__m256; NV]; MR],
    ) {
        const { assert!(MR == 4 && NV == 3) };
        // SAFETY: within `enter`, with the caller's promises; the sums are so many.
        unsafe { add_f32(a, b, &mut *(&raw mut *sums).cast()) }
    }
    #[inline(always)]
    unsafe fn store(sum: __m256, to: *mut f32, first: bool) {
        // SAFETY: within `enter`, 8 values to write.
        unsafe {
            let sum = if first {
                sum
            } else {
                _mm256_add_ps(sum, _mm256_loadu_ps(to))
            };
            _mm256_storeu_ps(to, sum);
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
    const LANES: usize = 4;
    block!(4 x 3, "avx2,fma,f16c");

    #[inline(always)]
    fn unit(first: f64, _: f64) -> f64 {
        first
    }
}

impl Vectors for F64 {
    type Factor = __m256d;
    type Sum = __m256d;

    #[inline(always)]
    unsafe fn zero() -> __m256d {
        // SAFETY: within `enter`.
        unsafe { _mm256_setzero_pd() }
    }
    #[inline(always)]
    unsafe fn load(from: *const f64) -> __m256d {
        // SAFETY: within `enter`, 4 values to read.
        unsafe { _mm256_loadu_pd(from) }
    }
    #[inline(always)]
    unsafe fn splat(unit: f64) -> __m256d {
        // SAFETY: within `enter`.
        unsafe { _mm256_set1_pd(unit) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256d, b: __m256d, sum: __m256d) -> __m256d {
        // SAFETY: within `enter`.
        unsafe { _mm256_fmadd_pd(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn add_products<const MR: usize, const NV: usize>(
        a: *const f64,
        b: *const f64,
        sums: &mut [[__m256d; NV]; MR],
    ) {
        const { assert!(MR == 4 && NV == 3) };
        // SAFETY: within `enter`, with the caller's promises; the sums are so many.
        unsafe { add_f64(a, b, &mut *(&raw mut *sums).cast()) }
    }
    #[inline(always)]
    unsafe fn store(sum: __m256d, to: *mut f64, first: bool) {
        // SAFETY: within `enter`, 4 values to write.
        unsafe {
            let sum = if first {
                sum
            } else {
                _mm256_add_pd(sum, _mm256_loadu_pd(to))
            };
            _mm256_storeu_pd(to, sum);
        }
    }
}

impl Takes<f64> for F64 {
    #[inline(always)]
    unsafe fn convert(from: &[f64], to: &mut [f64]) {
        to.copy_from_slice(from);
    }
}

/// `Vectors::add_products` in registers that are given out here. All 16 are taken, so that where the compiler loads one
/// value before its time, a sum stays in memory, at half the speed: it did or did not with changes in quite other places.
macro_rules! add_products {
    ($name:ident, $value:ty, $vector:ty, $size:literal, $load:literal, $splat:literal, $fma:literal) => {
        /// # Safety
        /// 4 values can be read at `a`, and 3 vectors of them at `b`.
        #[target_feature(enable = "avx2,fma")]
        #[inline]
        unsafe fn $name(a: *const $value, b: *const $value, sums: &mut [[$vector; 3]; 4]) {
            let [
                [s00, s01, s02],
                [s10, s11, s12],
                [s20, s21, s22],
                [s30, s31, s32],
            ] = sums;
            // SAFETY: the caller's promises; nothing is written but the sums.
            unsafe {
                asm!(
                    concat!($load, " {f0}, [{b}]"),
                    concat!($load, " {f1}, [{b} + 32]"),
                    concat!($load, " {f2}, [{b} + 64]"),
                    concat!($splat, " {left}, [{a}]"),
                    concat!($fma, " {s00}, {left}, {f0}"),
                    concat!($fma, " {s01}, {left}, {f1}"),
                    concat!($fma, " {s02}, {left}, {f2}"),
                    concat!($splat, " {left}, [{a} + ", $size, "]"),
                    concat!($fma, " {s10}, {left}, {f0}"),
                    concat!($fma, " {s11}, {left}, {f1}"),
                    concat!($fma, " {s12}, {left}, {f2}"),
                    concat!($splat, " {left}, [{a} + 2 * ", $size, "]"),
                    concat!($fma, " {s20}, {left}, {f0}"),
                    concat!($fma, " {s21}, {left}, {f1}"),
                    concat!($fma, " {s22}, {left}, {f2}"),
                    concat!($splat, " {left}, [{a} + 3 * ", $size, "]"),
                    concat!($fma, " {s30}, {left}, {f0}"),
                    concat!($fma, " {s31}, {left}, {f1}"),
                    concat!($fma, " {s32}, {left}, {f2}"),
                    a = in(reg) a,
                    b = in(reg) b,
                    left = out(ymm_reg) _,
                    f0 = out(ymm_reg) _,
                    f1 = out(ymm_reg) _,
                    f2 = out(ymm_reg) _,
                    s00 = inout(ymm_reg) *s00,
                    s01 = inout(ymm_reg) *s01,
                    s02 = inout(ymm_reg) *s02,
                    s10 = inout(ymm_reg) *s10,
                    s11 = inout(ymm_reg) *s11,
                    s12 = inout(ymm_reg) *s12,
                    s20 = inout(ymm_reg) *s20,
                    s21 = inout(ymm_reg) *s21,
                    s22 = inout(ymm_reg) *s22,
                    s30 = inout(ymm_reg) *s30,
                    s31 = inout(ymm_reg) *s31,
                    s32 = inout(ymm_reg) *s32,
                    options(readonly, nostack, preserves_flags),
                );
            }
        }
    };
}
add_products!(add_f32, f32, __m256, 4, "vmovups", "vbroadcastss", "vfmadd231ps");
add_products!(add_f64, f64, __m256d, 8, "vmovupd", "vbroadcastsd", "vfmadd231pd");

/// Transposes 8 x 8 values of 32 bits.
///
/// # Safety
/// Within `enter`; blocks of 8 rows, `stride` and `to_stride` values apart.
#[inline(always)]
unsafe fn transpose8(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        // Rows i and i + 4 side by side, so that what is left happens within 128-bit lanes.
        for half in (0..8).step_by(4) {
            let mut rows = [_mm256_setzero_ps(); 4];
            for (i, row) in rows.iter_mut().enumerate() {
                let (upper, lower) = (from.add(i * stride + half), from.add((i + 4) * stride + half));
                *row = _mm256_insertf128_ps::<1>(
                    _mm256_castps128_ps256(_mm_loadu_ps(upper)),
                    _mm_loadu_ps(lower),
                );
            }
            let low = (
                _mm256_unpacklo_ps(rows[0], rows[1]),
                _mm256_unpacklo_ps(rows[2], rows[3]),
            );
            let high = (
                _mm256_unpackhi_ps(rows[0], rows[1]),
                _mm256_unpackhi_ps(rows[2], rows[3]),
            );
            let to = to.add(half * to_stride);
            _mm256_storeu_ps(to, _mm256_shuffle_ps::<0x44>(low.0, low.1));
            _mm256_storeu_ps(to.add(to_stride), _mm256_shuffle_ps::<0xee>(low.0, low.1));
            _mm256_storeu_ps(to.add(2 * to_stride), _mm256_shuffle_ps::<0x44>(high.0, high.1));
            _mm256_storeu_ps(to.add(3 * to_stride), _mm256_shuffle_ps::<0xee>(high.0, high.1));
        }
    }
}
