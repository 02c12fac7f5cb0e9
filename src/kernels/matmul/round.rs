//! Conversions between f32 and bf16 in a form that compilers vectorize.

use half::bf16;

/// `value` to the nearest bf16, ties to even, as f32. NaN stays NaN, and what overflows becomes infinite.
#[inline(always)]
pub fn to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    f32::from_bits(if value.is_nan() {
        bits | 0x0040_0000
    } else {
        nearest
    })
}

#[inline(always)]
pub fn widen(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

#[inline(always)]
pub fn bits(from: &[bf16], to: &mut [u16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_bits();
    }
}

#[inline(always)]
pub fn in_place(values: &mut [f32]) {
    for value in values {
        *value = to_bf16(*value);
    }
}
