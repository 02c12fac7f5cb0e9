//! The bits of numbers: where they stand, and 32 of them in lanes, for rounding to 16-bit formats and random numbers.

use super::Single;

/// Integer operations on the bit patterns of a vector of f32.
pub trait Bits: Copy {
    const LANES: usize;

    fn splat(value: u32) -> Self;
    /// 0, 1, 2, ...
    fn iota() -> Self;
    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    /// Of unsigned integers.
    fn max(self, other: Self) -> Self;
    /// Of signed integers.
    fn signed_max(self, other: Self) -> Self;
    /// Of signed integers.
    fn signed_min(self, other: Self) -> Self;
    /// The upper half (with the sign bit clear) times a number.
    fn mul_upper(self, by: u8) -> Self;
    fn shl<const BY: u32>(self) -> Self;
    fn shr<const BY: u32>(self) -> Self;
    /// Of signed integers.
    fn sar<const BY: u32>(self) -> Self;
    /// `then` where `self` (with the sign bit clear) is greater than `than`, else `otherwise`.
    fn if_greater(self, than: u32, then: Self, otherwise: Self) -> Self;
    /// [`nearest_bf16`] where nothing is NaN; with lanes of 16 bits in 8 instructions for 10.
    #[inline(always)]
    fn nearest_of_numbers(self, second: Self) -> Self {
        upper_halves([nearest_of_number(self), nearest_of_number(second)])
    }
    /// The lanes whose bit in `which` is set, one after the other; what follows them means nothing.
    fn compress(self, which: u32) -> Self;
    /// The lanes of `packed`, one after the other, in the lanes whose bit in `which` is set; the others as they are.
    fn expand(self, which: u32, packed: Self) -> Self;
    /// # Safety
    /// `from` is valid for reading as many elements as there are lanes.
    unsafe fn load_u32(from: *const u32) -> Self;
    /// # Safety
    /// `to` is valid for writing as many elements as there are lanes.
    unsafe fn store_u32(self, to: *mut u32);
    /// Reads 8-bit integers, zero-extended.
    ///
    /// # Safety
    /// `from` is valid for reading as many elements as there are lanes.
    unsafe fn load_u8(from: *const u8) -> Self;
    /// Writes signed integers, one vector after the other, as the nearest ones from 0 to 255.
    ///
    /// # Safety
    /// `to` is valid for writing as many elements as the four have lanes.
    unsafe fn store_saturated_u8(four: [Self; 4], to: *mut u8);
    /// Reads 16-bit integers, zero-extended.
    ///
    /// # Safety
    /// `from` is valid for reading as many elements as there are lanes.
    unsafe fn load_u16(from: *const u16) -> Self;
    /// Writes integers below 2^16 as 16-bit ones.
    ///
    /// # Safety
    /// `to` is valid for writing as many elements as there are lanes.
    unsafe fn store_u16(self, to: *mut u16);
    /// Writes the lower halves, and after them the upper halves.
    ///
    /// # Safety
    /// `to` is valid for writing twice as many elements as there are lanes.
    unsafe fn store_halves(self, to: *mut u16);
}

/// How a number of an element type lies in bits `B`.
pub struct Layout<B> {
    /// The bits of the fraction; the exponent follows.
    pub at: u32,
    /// A whole number plus this has, in its last bits, the exponent field of 2 to the power of that number.
    pub biased: f64,
    /// The bits of a number that, plus an exponent field, is that field less what `biased` adds.
    pub whole: B,
    pub fraction: B,
    pub sqrt_half: B,
    /// From sqrt(1/2) to 1, so that the exponent field changes at sqrt(1/2) times a power of two.
    pub up: B,
}

pub const SINGLE: Layout<u32> = Layout {
    at: 23,
    biased: 8_388_608.0 + 127.0,
    whole: 0x4b00_0000,
    fraction: 0x007f_ffff,
    sqrt_half: 0x3f35_04f3,
    up: 0x3f80_0000 - 0x3f35_04f3,
};

pub const DOUBLE: Layout<u64> = Layout {
    at: 52,
    biased: 4_503_599_627_370_496.0 + 1023.0,
    whole: 0x4330_0000_0000_0000,
    fraction: 0x000f_ffff_ffff_ffff,
    sqrt_half: 0x3fe6_a09e_667f_3bcd,
    up: 0x3ff0_0000_0000_0000 - 0x3fe6_a09e_667f_3bcd,
};

const INFINITY: u32 = 0x7f80_0000;
const WITHOUT_SIGN: u32 = 0x7fff_ffff;
const QUIET_NAN: u32 = 0x7fc0_0000;

/// The upper halves of the first in the lower halves, and of the second in the upper ones.
#[inline(always)]
pub fn upper_halves<B: Bits>([first, second]: [B; 2]) -> B {
    first.shr::<16>().or(second.and(B::splat(0xffff_0000)))
}

/// The lower halves, and the upper ones, in upper halves with zeros below.
#[inline(always)]
pub fn apart<B: Bits>(both: B) -> [B; 2] {
    [both.shl::<16>(), both.and(B::splat(0xffff_0000))]
}

/// The nearest bf16, ties to even, in halves as [`upper_halves`] has them; NaN stays NaN.
#[inline(always)]
pub fn nearest_bf16<V: Single>(a: V, b: V) -> V::Bits {
    let (x, y) = (a.to_bits(), b.to_bits());
    match V::any_nan(a, b) {
        true => upper_halves([nearest_or_nan(x), nearest_or_nan(y)]),
        false => x.nearest_of_numbers(y),
    }
}

#[inline(always)]
fn nearest_or_nan<B: Bits>(x: B) -> B {
    quiet(x, nearest_of_number(x))
}

#[inline(always)]
fn nearest_of_number<B: Bits>(x: B) -> B {
    let odd = x.shr::<16>().and(B::splat(1));
    x.add(B::splat(0x7fff)).add(odd)
}

/// The quiet NaN where `x` is a NaN, else `otherwise`.
#[inline(always)]
fn quiet<B: Bits>(x: B, otherwise: B) -> B {
    x.and(B::splat(WITHOUT_SIGN))
        .if_greater(INFINITY, B::splat(QUIET_NAN), otherwise)
}

/// A number in two halves of 16 bits, each in the upper half of its lanes: the nearest bf16, ties away from zero, and
/// the rest as a signed integer. Nothing is lost but the payload of a NaN.
#[inline(always)]
pub fn split<B: Bits>(x: B) -> (B, B) {
    let x = quiet(x, x);
    (x.add(B::splat(0x8000)), x.shl::<16>())
}

/// The number of two such halves, with zeros below them. Where they never were one number (someone wrote a zero or an
/// infinity over the first), it is the first.
#[inline(always)]
pub fn join<B: Bits>(nearest: B, rest: B) -> B {
    let joined = nearest.add(rest.sar::<16>());
    joined
        .and(B::splat(WITHOUT_SIGN))
        .if_greater(INFINITY, nearest, joined)
}

/// One of the two nearest bf16 in the upper half of each lane, the nearer the more likely; `noise` decides. Infinity
/// and NaN stay what they are.
#[inline(always)]
pub fn dithered_bf16<V: Single>(a: V, b: V, noise: [V::Bits; 2]) -> [V::Bits; 2] {
    let dithered = [
        dithered_of_finite(a.to_bits(), noise[0]),
        dithered_of_finite(b.to_bits(), noise[1]),
    ];
    // x - x is 0 but for NaN and infinity.
    #[allow(clippy::eq_op)]
    let special = V::any_nan(a - a, b - b);
    match special {
        true => {
            let (x, y) = (a.to_bits(), b.to_bits());
            [
                if_finite(x, dithered[0], nearest_or_nan(x)),
                if_finite(y, dithered[1], nearest_or_nan(y)),
            ]
        }
        false => dithered,
    }
}

#[inline(always)]
fn dithered_of_finite<B: Bits>(x: B, noise: B) -> B {
    x.add(noise.and(B::splat(0xffff)))
}

#[inline(always)]
fn if_finite<B: Bits>(x: B, then: B, otherwise: B) -> B {
    x.and(B::splat(WITHOUT_SIGN))
        .if_greater(INFINITY - 1, otherwise, then)
}

/// One of the two nearest f16, the nearer the more likely, as an f32; `noise` decides. Infinity and NaN stay what they
/// are.
#[inline(always)]
pub fn dithered_f16<V: Single>(x: V, noise: V::Bits) -> V {
    type B<V> = <V as Single>::Bits;
    const SMALLEST_NORMAL: u32 = 0x3880_0000; // 2^-14, the smallest f16 with all its digits
    let magnitude = x.to_bits().and(B::<V>::splat(WITHOUT_SIGN));
    // Below it the spacing no longer shrinks. Adding it moves x to where f32 has 13 digits more than f16 wants, as it
    // has everywhere above.
    let zero = B::<V>::splat(0);
    let shift = magnitude.if_greater(SMALLEST_NORMAL - 1, zero, B::<V>::splat(SMALLEST_NORMAL));
    let shifted = V::from_bits(magnitude) + V::from_bits(shift);
    let dithered = shifted
        .to_bits()
        .add(noise.and(B::<V>::splat(0x1fff)))
        .and(B::<V>::splat(!0x1fff));
    let dithered = V::from_bits(dithered) + -V::from_bits(shift);
    let sign = x.to_bits().and(B::<V>::splat(!WITHOUT_SIGN));
    V::from_bits(magnitude.if_greater(INFINITY - 1, x.to_bits(), dithered.to_bits().or(sign)))
}

/// Where in the stream of random numbers a vector stands: a counter and a key, no state. The same key and counter give
/// the same numbers on every machine and for any number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    pub key: u64,
    pub counter: u32,
}

impl Noise {
    /// For what draws none.
    pub const NONE: Noise = Noise { key: 0, counter: 0 };

    /// The key of block `index` of a stream: splitmix64.
    pub fn key(stream: u64, index: u64) -> u64 {
        let mut z = stream.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 32 random bits for each lane, 16 for each of two elements from `counter` on, which is even: two rounds of a
    /// 32-bit mixer (the constants are the best found by the hash-prospector search) with half of the key before each.
    #[inline(always)]
    pub fn draw<B: Bits>(self) -> B {
        let number = B::iota().add(B::splat(self.counter / 2));
        let once = mix(number.add(B::splat(self.key as u32)));
        mix(once.xor(B::splat((self.key >> 32) as u32)))
    }
}

#[inline(always)]
fn mix<B: Bits>(x: B) -> B {
    let x = x.xor(x.shr::<16>()).mul(B::splat(0x21f0_aaad));
    let x = x.xor(x.shr::<15>()).mul(B::splat(0x735a_2d97));
    x.xor(x.shr::<15>())
}
