//! Conversions between f32 and bf16 in a form that compilers vectorize.

use half::bf16;
use half::slice::HalfFloatSliceExt;

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

/// A loop over indices: iterators over two slices are not always inlined into a function with features of its own.
#[inline(always)]
pub fn widen(from: &[bf16], to: &mut [f32]) {
    let from = &from[..to.len()];
    for i in 0..to.len() {
        to[i] = f32::from_bits(u32::from(from[i].to_bits()) << 16);
    }
}

#[inline(always)]
pub fn bits(from: &[bf16], to: &mut [u16]) {
    to.copy_from_slice(from.reinterpret_cast());
}

#[inline(always)]
pub fn in_place(values: &mut [f32]) {
    for value in values {
        *value = to_bf16(*value);
    }
}
