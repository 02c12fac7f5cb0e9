//! Two vectors of f32 as one of twice as many lanes, for 16-bit elements: they come and go a whole register at a time.

use std::ops::{Add, Div, Mul, Neg, Sub};

use half::bf16;

use super::{Bits, Noise, Single, Stored, Vector, bits};

/// The elements of even number and those of odd number: in memory, the lower and upper halves of 32 bits.
#[derive(Clone, Copy)]
pub struct EvenOdd<V>(V, V);

impl<V: Single> EvenOdd<V> {
    /// # Safety
    /// `from` is valid for reading 16 bits for each lane.
    #[inline(always)]
    unsafe fn load(from: *const u16) -> [V::Bits; 2] {
        // SAFETY: the caller's promise.
        let both = unsafe { V::Bits::load_u32(from.cast()) };
        [both.shl::<16>(), both.and(upper())]
    }

    /// Writes the upper halves.
    ///
    /// # Safety
    /// `to` is valid for writing 16 bits for each lane.
    #[inline(always)]
    unsafe fn store([even, odd]: [V::Bits; 2], to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { even.shr::<16>().or(odd.and(upper())).store_u32(to.cast()) }
    }
}

#[inline(always)]
fn upper<B: Bits>() -> B {
    B::splat(0xffff_0000)
}

macro_rules! operators {
    ($($op:ident :: $method:ident),*) => { $(
        impl<V: Vector> $op for EvenOdd<V> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                EvenOdd(self.0.$method(other.0), self.1.$method(other.1))
            }
        }
    )* };
}
operators!(Add::add, Sub::sub, Mul::mul, Div::div);

impl<V: Vector> Add<f64> for EvenOdd<V> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: f64) -> Self {
        self + Self::splat(other)
    }
}

impl<V: Vector> Mul<f64> for EvenOdd<V> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: f64) -> Self {
        self * Self::splat(other)
    }
}

impl<V: Vector> Neg for EvenOdd<V> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        EvenOdd(-self.0, -self.1)
    }
}

impl<V: Vector> Vector for EvenOdd<V> {
    const LANES: usize = 2 * V::LANES;

    #[inline(always)]
    fn splat(value: f64) -> Self {
        EvenOdd(V::splat(value), V::splat(value))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        EvenOdd(self.0.sqrt(), self.1.sqrt())
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        EvenOdd(self.0.max(other.0), self.1.max(other.1))
    }
    #[inline(always)]
    fn sign(self) -> Self {
        EvenOdd(self.0.sign(), self.1.sign())
    }
    #[inline(always)]
    fn finite_or(self, other: Self) -> Self {
        EvenOdd(self.0.finite_or(other.0), self.1.finite_or(other.1))
    }
    #[inline(always)]
    fn count_below(self, other: Self) -> u32 {
        self.0.count_below(other.0) + self.1.count_below(other.1)
    }
}

impl<V: Single> Stored<EvenOdd<V>> for bf16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> EvenOdd<V> {
        // SAFETY: the caller's promise is the same.
        let [even, odd] = unsafe { EvenOdd::<V>::load(from.cast()) };
        EvenOdd(V::from_bits(even), V::from_bits(odd))
    }
    #[inline(always)]
    unsafe fn store(value: EvenOdd<V>, to: *mut Self) {
        let rounded = bits::nearest_bf16_of_both(value.0, value.1);
        // SAFETY: the caller's promise is the same.
        unsafe { EvenOdd::<V>::store(rounded, to.cast()) }
    }
    #[inline(always)]
    unsafe fn store_dithered(value: EvenOdd<V>, to: *mut Self, noise: Noise) {
        let dithered = bits::dithered_bf16_of_both(value.0, value.1, noise.draw_even_odd());
        // SAFETY: the caller's promise is the same.
        unsafe { EvenOdd::<V>::store(dithered, to.cast()) }
    }
}

/// A vector of f32 as two halves of 16 bits in two places; see [`bits::split`].
pub trait Halves: Vector {
    /// # Safety
    /// Both are valid for reading as many elements as there are lanes.
    unsafe fn load_halves(nearest: *const bf16, rest: *const u16) -> Self;
    /// # Safety
    /// Both are valid for writing as many elements as there are lanes.
    unsafe fn store_halves(self, nearest: *mut bf16, rest: *mut u16);
}

impl<V: Single> Halves for EvenOdd<V> {
    #[inline(always)]
    unsafe fn load_halves(nearest: *const bf16, rest: *const u16) -> Self {
        // SAFETY: the caller's promise is the same.
        let (nearest, rest) = unsafe { (Self::load(nearest.cast()), Self::load(rest)) };
        EvenOdd(
            V::from_bits(bits::join(nearest[0], rest[0])),
            V::from_bits(bits::join(nearest[1], rest[1])),
        )
    }
    #[inline(always)]
    unsafe fn store_halves(self, nearest: *mut bf16, rest: *mut u16) {
        let (even, odd) = (bits::split(self.0.to_bits()), bits::split(self.1.to_bits()));
        // SAFETY: the caller's promise is the same.
        unsafe {
            Self::store([even.0, odd.0], nearest.cast());
            Self::store([even.1, odd.1], rest);
        }
    }
}

impl<V: Single> Halves for V {
    #[inline(always)]
    unsafe fn load_halves(nearest: *const bf16, rest: *const u16) -> Self {
        // SAFETY: the caller's promise is the same.
        let (nearest, rest) = unsafe { (V::Bits::load_u16(nearest.cast()), V::Bits::load_u16(rest)) };
        V::from_bits(bits::join(nearest.shl::<16>(), rest.shl::<16>()))
    }
    #[inline(always)]
    unsafe fn store_halves(self, nearest: *mut bf16, rest: *mut u16) {
        let halves = bits::split(self.to_bits());
        // SAFETY: the caller's promise is the same.
        unsafe {
            halves.0.store_upper_u16(nearest.cast());
            halves.1.store_upper_u16(rest);
        }
    }
}
