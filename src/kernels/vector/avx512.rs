//! AVX-512 (F, DQ and BW): sixteen f32 or eight f64.

use core::arch::x86_64::*;

use half::{bf16, f16};

use super::bits::{DOUBLE, SINGLE};
use super::{Arch, Bits, Double, Single, Vector, operators};

/// The instruction set.
pub struct Avx512;

impl Arch for Avx512 {
    type F32 = F32;
    type F64 = F64;

    const IN_PARTS: bool = false;

    #[inline(always)]
    fn prefetch(at: *const u8) {
        // SAFETY: every x86-64 CPU has it, and it reads nothing that the program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

#[derive(Clone, Copy)]
pub struct F32(__m512);
#[derive(Clone, Copy)]
pub struct F64(__m512d);
#[derive(Clone, Copy)]
pub struct U32(__m512i);

operators!(F32: Add::add = _mm512_add_ps, Sub::sub = _mm512_sub_ps, Mul::mul = _mm512_mul_ps, Div::div = _mm512_div_ps);
operators!(F64: Add::add = _mm512_add_pd, Sub::sub = _mm512_sub_pd, Mul::mul = _mm512_mul_pd, Div::div = _mm512_div_pd);

// In this file, "the CPU has AVX-512" is what the caller of a kernel instantiated with these types vouches for.

impl Vector for F32 {
    type Lane = f32;

    const LANES: usize = 16;

    #[inline(always)]
    fn splat(value: f64) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_set1_ps(value as f32) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_andnot_ps(_mm512_set1_ps(-0.0), self.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn if_less(self, than: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, than.0);
            _mm512_mask_blend_ps(less, otherwise.0, then.0)
        })
    }
    #[inline(always)]
    fn sign(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            let (zero, one) = (_mm512_setzero_ps(), _mm512_set1_ps(1.0));
            let positive = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, zero), one);
            let negative = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, zero), one);
            _mm512_sub_ps(positive, negative)
        })
    }
    #[inline(always)]
    fn finite_or(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            // x - x is 0 but for NaN and infinity.
            let difference = _mm512_sub_ps(self.0, self.0);
            let finite = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(difference, _mm512_setzero_ps());
            _mm512_mask_blend_ps(finite, other.0, self.0)
        })
    }
    #[inline(always)]
    fn count_below(self, other: Self) -> u32 {
        // SAFETY: the CPU has AVX-512.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }.count_ones()
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            let biased = _mm512_castps_si512((self + SINGLE.biased).0);
            _mm512_castsi512_ps(_mm512_slli_epi32::<{ SINGLE.at }>(biased))
        })
    }
    #[inline(always)]
    fn frexp(self) -> (Self, Self) {
        // SAFETY: the CPU has AVX-512.
        unsafe {
            let shifted = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(SINGLE.up as i32));
            let fraction = _mm512_and_si512(shifted, _mm512_set1_epi32(SINGLE.fraction as i32));
            let biased = _mm512_or_si512(
                _mm512_srli_epi32::<{ SINGLE.at }>(shifted),
                _mm512_set1_epi32(SINGLE.whole as i32),
            );
            (
                Self(_mm512_castsi512_ps(_mm512_add_epi32(
                    fraction,
                    _mm512_set1_epi32(SINGLE.sqrt_half as i32),
                ))),
                Self(_mm512_castsi512_ps(biased)) + -SINGLE.biased,
            )
        }
    }
}

impl std::ops::Neg for F32 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_xor_ps(self.0, _mm512_set1_ps(-0.0)) })
    }
}

impl Vector for F64 {
    type Lane = f64;

    const LANES: usize = 8;

    #[inline(always)]
    fn splat(value: f64) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_set1_pd(value) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_sqrt_pd(self.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_andnot_pd(_mm512_set1_pd(-0.0), self.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_max_pd(self.0, other.0) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_min_pd(self.0, other.0) })
    }
    #[inline(always)]
    fn if_less(self, than: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            let less = _mm512_cmp_pd_mask::<_CMP_LT_OQ>(self.0, than.0);
            _mm512_mask_blend_pd(less, otherwise.0, then.0)
        })
    }
    #[inline(always)]
    fn sign(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            let (zero, one) = (_mm512_setzero_pd(), _mm512_set1_pd(1.0));
            let positive = _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_GT_OQ>(self.0, zero), one);
            let negative = _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_LT_OQ>(self.0, zero), one);
            _mm512_sub_pd(positive, negative)
        })
    }
    #[inline(always)]
    fn finite_or(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            // x - x is 0 but for NaN and infinity.
            let difference = _mm512_sub_pd(self.0, self.0);
            let finite = _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(difference, _mm512_setzero_pd());
            _mm512_mask_blend_pd(finite, other.0, self.0)
        })
    }
    #[inline(always)]
    fn count_below(self, other: Self) -> u32 {
        // SAFETY: the CPU has AVX-512.
        unsafe { _mm512_cmp_pd_mask::<_CMP_LT_OQ>(self.0, other.0) }.count_ones()
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            let biased = _mm512_castpd_si512((self + DOUBLE.biased).0);
            _mm512_castsi512_pd(_mm512_slli_epi64::<{ DOUBLE.at }>(biased))
        })
    }
    #[inline(always)]
    fn frexp(self) -> (Self, Self) {
        // SAFETY: the CPU has AVX-512.
        unsafe {
            let shifted = _mm512_add_epi64(_mm512_castpd_si512(self.0), _mm512_set1_epi64(DOUBLE.up as i64));
            let fraction = _mm512_and_si512(shifted, _mm512_set1_epi64(DOUBLE.fraction as i64));
            let biased = _mm512_or_si512(
                _mm512_srli_epi64::<{ DOUBLE.at }>(shifted),
                _mm512_set1_epi64(DOUBLE.whole as i64),
            );
            (
                Self(_mm512_castsi512_pd(_mm512_add_epi64(
                    fraction,
                    _mm512_set1_epi64(DOUBLE.sqrt_half as i64),
                ))),
                Self(_mm512_castsi512_pd(biased)) + -DOUBLE.biased,
            )
        }
    }
}

impl std::ops::Neg for F64 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_xor_pd(self.0, _mm512_set1_pd(-0.0)) })
    }
}

impl Double for F64 {
    #[inline(always)]
    unsafe fn load_f64(from: *const f64) -> Self {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the eight elements.
        Self(unsafe { _mm512_loadu_pd(from) })
    }
    #[inline(always)]
    unsafe fn store_f64(self, to: *mut f64) {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the eight elements.
        unsafe { _mm512_storeu_pd(to, self.0) }
    }
    #[inline(always)]
    unsafe fn widen_f32(from: *const f32) -> Self {
        // SAFETY: the CPU has AVX-512, AVX2 and F16C; the caller's promise covers the eight elements.
        Self(unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(from)) })
    }
    #[inline(always)]
    unsafe fn widen_f16(from: *const f16) -> Self {
        // SAFETY: the CPU has AVX-512, AVX2 and F16C; the caller's promise covers the eight elements.
        Self(unsafe { _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) })
    }
    #[inline(always)]
    unsafe fn widen_bf16(from: *const bf16) -> [Self; 2] {
        // SAFETY: the CPU has AVX-512, AVX2 and F16C; the caller's promise covers the sixteen elements.
        unsafe {
            let bits = _mm256_loadu_si256(from.cast());
            let even = _mm256_slli_epi32::<16>(bits);
            let odd = _mm256_and_si256(bits, _mm256_set1_epi32(-0x1_0000));
            [
                Self(_mm512_cvtps_pd(_mm256_castsi256_ps(even))),
                Self(_mm512_cvtps_pd(_mm256_castsi256_ps(odd))),
            ]
        }
    }
    #[inline(always)]
    fn mul_add(self, other: Self, more: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_fmadd_pd(self.0, other.0, more.0) })
    }
}

impl Single for F32 {
    type Bits = U32;

    #[inline(always)]
    fn to_bits(self) -> U32 {
        // SAFETY: the CPU has AVX-512.
        U32(unsafe { _mm512_castps_si512(self.0) })
    }
    #[inline(always)]
    fn from_bits(bits: U32) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_castsi512_ps(bits.0) })
    }
    #[inline(always)]
    fn of_integers(bits: U32) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_cvtepi32_ps(bits.0) })
    }
    #[inline(always)]
    fn to_integers(self) -> U32 {
        // SAFETY: the CPU has AVX-512.
        U32(unsafe { _mm512_cvtps_epi32(self.0) })
    }
    #[inline(always)]
    fn table(eight: &[f32; 8]) -> Self {
        // SAFETY: the CPU has AVX-512; there are eight elements.
        Self(unsafe { _mm512_broadcast_f32x8(_mm256_loadu_ps(eight.as_ptr())) })
    }
    #[inline(always)]
    fn pick(self, index: U32) -> Self {
        // SAFETY: the CPU has AVX-512. The instruction looks at the last four bits; a table is there twice.
        Self(unsafe { _mm512_permutexvar_ps(index.0, self.0) })
    }
    #[inline(always)]
    fn any_nan(a: Self, b: Self) -> bool {
        // SAFETY: the CPU has AVX-512.
        unsafe { _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a.0, b.0) != 0 }
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32) {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
}

impl Bits for U32 {
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(value: u32) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_set1_epi32(value as i32) })
    }
    #[inline(always)]
    fn iota() -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_add_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_mullo_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_and_si512(self.0, other.0) })
    }
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_or_si512(self.0, other.0) })
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_xor_si512(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_max_epu32(self.0, other.0) })
    }
    #[inline(always)]
    fn signed_max(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_max_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn signed_min(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_min_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_upper(self, by: u8) -> Self {
        // SAFETY: the CPU has AVX-512. The lower halves are multiplied by 0 and added.
        Self(unsafe { _mm512_madd_epi16(self.0, _mm512_set1_epi32(i32::from(by) << 16)) })
    }
    #[inline(always)]
    fn shl<const BY: u32>(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_sll_epi32(self.0, _mm_cvtsi32_si128(BY as i32)) })
    }
    #[inline(always)]
    fn shr<const BY: u32>(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_srl_epi32(self.0, _mm_cvtsi32_si128(BY as i32)) })
    }
    #[inline(always)]
    fn sar<const BY: u32>(self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_sra_epi32(self.0, _mm_cvtsi32_si128(BY as i32)) })
    }
    #[inline(always)]
    fn if_greater(self, than: u32, then: Self, otherwise: Self) -> Self {
        // SAFETY: the CPU has AVX-512. The signed comparison is right because the sign bits are clear.
        Self(unsafe {
            let greater = _mm512_cmpgt_epi32_mask(self.0, _mm512_set1_epi32(than as i32));
            _mm512_mask_blend_epi32(greater, otherwise.0, then.0)
        })
    }
    #[inline(always)]
    fn nearest_of_numbers(self, second: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe {
            let upper = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(self.0), second.0);
            let lower = _mm512_mask_blend_epi16(0xaaaa_aaaa, self.0, _mm512_slli_epi32::<16>(second.0));
            // Up from half of the last place on; where the number is even, only above it.
            let is_even = _mm512_andnot_si512(upper, _mm512_set1_epi16(1));
            let up = _mm512_srli_epi16::<15>(_mm512_subs_epu16(lower, is_even));
            _mm512_add_epi16(upper, up)
        })
    }
    #[inline(always)]
    fn compress(self, which: u32) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_maskz_compress_epi32(which as u16, self.0) })
    }
    #[inline(always)]
    fn expand(self, which: u32, packed: Self) -> Self {
        // SAFETY: the CPU has AVX-512.
        Self(unsafe { _mm512_mask_expand_epi32(self.0, which as u16, packed.0) })
    }
    #[inline(always)]
    unsafe fn load_u32(from: *const u32) -> Self {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }
    #[inline(always)]
    unsafe fn store_u32(self, to: *mut u32) {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        Self(unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store_saturated_u8([a, b, c, d]: [Self; 4], to: *mut u8) {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the 64 elements.
        unsafe {
            let packed = _mm512_packus_epi16(_mm512_packs_epi32(a.0, b.0), _mm512_packs_epi32(c.0, d.0));
            // Packing works within 128 bits, each of which has four bytes of each vector: put them in order.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi32(order, packed));
        }
    }
    #[inline(always)]
    unsafe fn load_u16(from: *const u16) -> Self {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the sixteen elements.
        Self(unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16) {
        // SAFETY: the CPU has AVX-512; the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(self.0)) }
    }
    #[inline(always)]
    unsafe fn store_halves(self, to: *mut u16) {
        // SAFETY: the CPU has AVX-512; the caller's promise covers the 32 elements.
        unsafe {
            // Every second word; a narrowing store (vpmovdw) is several times slower on Zen 4.
            let order = _mm512_set_epi16(
                31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, //
                30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0,
            );
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, self.0));
        }
    }
}
