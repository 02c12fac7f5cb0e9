//! Plain arrays, which the compiler turns into what the target guarantees (SSE2, NEON).

use std::array::from_fn;
use std::ops::{Add, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use super::bits::{DOUBLE, SINGLE};
use super::{Arch, Bits, Double, Single, Vector};

/// The instruction set.
pub struct Portable;

impl Arch for Portable {
    type F32 = F32;
    type F64 = F64;

    const IN_PARTS: bool = false;

    #[inline(always)]
    fn prefetch(_at: *const u8) {}
}

#[derive(Clone, Copy)]
pub struct Lanes<T, const L: usize>([T; L]);

/// Two registers of 128 bits: with one, bf16 beside f32 takes twice the time.
const SINGLES: usize = 8;

pub type F32 = Lanes<f32, SINGLES>;
pub type F64 = Lanes<f64, 4>;
pub type U32 = Lanes<u32, SINGLES>;

impl<T: Copy, const L: usize> Lanes<T, L> {
    // Loops: what `from_fn` is made of is not always inlined, and then lanes go one by one through memory.

    #[inline(always)]
    fn zip<U: Copy + Default>(self, other: Self, f: impl Fn(T, T) -> U) -> Lanes<U, L> {
        let mut lanes = [U::default(); L];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = f(self.0[i], other.0[i]);
        }
        Lanes(lanes)
    }

    #[inline(always)]
    fn map<U: Copy + Default>(self, f: impl Fn(T) -> U) -> Lanes<U, L> {
        let mut lanes = [U::default(); L];
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = f(self.0[i]);
        }
        Lanes(lanes)
    }

    /// `then` where the mask is set, else `otherwise`.
    #[inline(always)]
    fn choose(then: Self, otherwise: Self, mask: Lanes<bool, L>) -> Self {
        let mut lanes = otherwise.0;
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane = if mask.0[i] { then.0[i] } else { *lane };
        }
        Lanes(lanes)
    }

    /// # Safety
    /// `from` is valid for reading `L` elements.
    #[inline(always)]
    unsafe fn read(from: *const T) -> Self {
        // SAFETY: the caller's promise; an array has no other requirement than its elements.
        Lanes(unsafe { from.cast::<[T; L]>().read_unaligned() })
    }

    /// # Safety
    /// `to` is valid for writing `L` elements.
    #[inline(always)]
    unsafe fn write(self, to: *mut T) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[T; L]>().write_unaligned(self.0) }
    }
}

macro_rules! float_lanes {
    ($element:ty, $lanes:expr, $layout:ident) => {
        float_lanes!(@operator $element, $lanes, Add::add, Sub::sub, Mul::mul, Div::div);

        impl Neg for Lanes<$element, $lanes> {
            type Output = Self;
            #[inline(always)]
            fn neg(self) -> Self {
                self.map(|x| -x)
            }
        }

        impl Vector for Lanes<$element, $lanes> {
            type Lane = $element;

            const LANES: usize = $lanes;

            #[inline(always)]
            fn splat(value: f64) -> Self {
                Lanes([value as $element; $lanes])
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.map(|x| x.sqrt())
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.map(|x| x.abs())
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                self.zip(other, |a, b| if a > b { a } else { b })
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                self.zip(other, |a, b| if a < b { a } else { b })
            }
            #[inline(always)]
            fn if_less(self, than: Self, then: Self, otherwise: Self) -> Self {
                Lanes::choose(then, otherwise, self.zip(than, |a, b| a < b))
            }
            #[inline(always)]
            fn sign(self) -> Self {
                self.map(|x| (x > 0.0) as u8 as $element - (x < 0.0) as u8 as $element)
            }
            #[inline(always)]
            fn finite_or(self, other: Self) -> Self {
                self.zip(other, |a, b| if a.is_finite() { a } else { b })
            }
            #[inline(always)]
            fn count_below(self, other: Self) -> u32 {
                self.zip(other, |a, b| (a < b) as u32).0.into_iter().sum()
            }
            #[inline(always)]
            fn pow2(self) -> Self {
                self.map(|n| <$element>::from_bits((n + $layout.biased as $element).to_bits() << $layout.at))
            }
            #[inline(always)]
            fn frexp(self) -> (Self, Self) {
                let shifted = self.map(|x| x.to_bits().wrapping_add($layout.up));
                (
                    shifted.map(|x| <$element>::from_bits((x & $layout.fraction) + $layout.sqrt_half)),
                    shifted.map(|x| <$element>::from_bits(x >> $layout.at | $layout.whole) - $layout.biased as $element),
                )
            }
        }
    };
    (@operator $element:ty, $lanes:expr, $($op:ident :: $method:ident),*) => {
        $(impl $op for Lanes<$element, $lanes> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                self.zip(other, |a, b| a.$method(b))
            }
        })*
        impl Add<f64> for Lanes<$element, $lanes> {
            type Output = Self;
            #[inline(always)]
            fn add(self, other: f64) -> Self {
                self + Self::splat(other)
            }
        }
        impl Mul<f64> for Lanes<$element, $lanes> {
            type Output = Self;
            #[inline(always)]
            fn mul(self, other: f64) -> Self {
                self * Self::splat(other)
            }
        }
    };
}

float_lanes!(f32, SINGLES, SINGLE);
float_lanes!(f64, 4, DOUBLE);

impl Double for F64 {
    #[inline(always)]
    unsafe fn load_f64(from: *const f64) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Self::read(from) }
    }
    #[inline(always)]
    unsafe fn store_f64(self, to: *mut f64) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.write(to) }
    }
    #[inline(always)]
    unsafe fn widen_f32(from: *const f32) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Lanes::<f32, 4>::read(from) }.map(f64::from)
    }
    #[inline(always)]
    unsafe fn widen_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Lanes::<f16, 4>::read(from) }.map(f64::from)
    }
    #[inline(always)]
    unsafe fn widen_bf16(from: *const bf16) -> [Self; 2] {
        // SAFETY: the caller's promise is the same.
        let all = unsafe { Lanes::<bf16, 8>::read(from) };
        from_fn(|odd| Lanes(from_fn(|i| all.0[2 * i + odd].into())))
    }
    #[inline(always)]
    fn mul_add(self, other: Self, more: Self) -> Self {
        self * other + more
    }
}

impl Single for F32 {
    type Bits = U32;

    #[inline(always)]
    fn to_bits(self) -> U32 {
        self.map(f32::to_bits)
    }
    #[inline(always)]
    fn from_bits(bits: U32) -> Self {
        bits.map(f32::from_bits)
    }
    #[inline(always)]
    fn of_integers(bits: U32) -> Self {
        bits.map(|x| x as i32 as f32)
    }
    #[inline(always)]
    fn to_integers(self) -> U32 {
        // A number plus 3 * 2^22 has the nearest whole number in its last bits.
        const WHOLE: f32 = 12_582_912.0;
        self.map(|x| (x + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()))
    }
    #[inline(always)]
    fn table(eight: &[f32; 8]) -> Self {
        Lanes(*eight)
    }
    #[inline(always)]
    fn pick(self, index: U32) -> Self {
        index.map(|i| self.0[i as usize % SINGLES])
    }
    #[inline(always)]
    fn any_nan(a: Self, b: Self) -> bool {
        let nan = a.zip(b, |a, b| u32::from(a.is_nan() | b.is_nan()));
        nan.0.into_iter().fold(0, |any, nan| any | nan) != 0
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Self::read(from) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.write(to) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Lanes::<f16, SINGLES>::read(from) }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.map(f16::from_f32).write(to) }
    }
}

impl Bits for U32 {
    const LANES: usize = SINGLES;

    #[inline(always)]
    fn splat(value: u32) -> Self {
        Lanes([value; SINGLES])
    }
    #[inline(always)]
    fn iota() -> Self {
        Lanes(from_fn(|i| i as u32))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_add)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, u32::wrapping_mul)
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        self.zip(other, |a, b| a ^ b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, u32::max)
    }
    #[inline(always)]
    fn signed_max(self, other: Self) -> Self {
        self.zip(other, |a, b| (a as i32).max(b as i32) as u32)
    }
    #[inline(always)]
    fn signed_min(self, other: Self) -> Self {
        self.zip(other, |a, b| (a as i32).min(b as i32) as u32)
    }
    #[inline(always)]
    fn mul_upper(self, by: u8) -> Self {
        self.map(|x| (x >> 16) * u32::from(by))
    }
    #[inline(always)]
    fn shl<const BY: u32>(self) -> Self {
        self.map(|x| x << BY)
    }
    #[inline(always)]
    fn shr<const BY: u32>(self) -> Self {
        self.map(|x| x >> BY)
    }
    #[inline(always)]
    fn sar<const BY: u32>(self) -> Self {
        self.map(|x| (x as i32 >> BY) as u32)
    }
    #[inline(always)]
    fn if_greater(self, than: u32, then: Self, otherwise: Self) -> Self {
        Lanes::choose(then, otherwise, self.map(|x| x > than))
    }
    #[inline(always)]
    fn compress(self, which: u32) -> Self {
        let (mut packed, mut count) = (self.0, 0);
        for i in 0..SINGLES {
            packed[count] = self.0[i];
            count += (which >> i & 1) as usize;
        }
        Lanes(packed)
    }
    #[inline(always)]
    fn expand(self, which: u32, packed: Self) -> Self {
        let (mut lanes, mut count) = (self.0, 0);
        for (i, lane) in lanes.iter_mut().enumerate() {
            let is_chosen = which >> i & 1 == 1;
            *lane = if is_chosen {
                packed.0[count % SINGLES]
            } else {
                *lane
            };
            count += usize::from(is_chosen);
        }
        Lanes(lanes)
    }
    #[inline(always)]
    unsafe fn load_u32(from: *const u32) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Self::read(from) }
    }
    #[inline(always)]
    unsafe fn store_u32(self, to: *mut u32) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.write(to) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Lanes::<u8, SINGLES>::read(from) }.map(u32::from)
    }
    #[inline(always)]
    unsafe fn store_saturated_u8(four: [Self; 4], to: *mut u8) {
        for (i, vector) in four.into_iter().enumerate() {
            let bytes = vector.map(|x| (x as i32).clamp(0, 255) as u8);
            // SAFETY: the caller's promise covers all four.
            unsafe { bytes.write(to.add(i * Self::LANES)) }
        }
    }
    #[inline(always)]
    unsafe fn load_u16(from: *const u16) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { Lanes::<u16, SINGLES>::read(from) }.map(u32::from)
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { self.map(|x| x as u16).write(to) }
    }
    #[inline(always)]
    unsafe fn store_halves(self, to: *mut u16) {
        // SAFETY: the caller's promise covers both.
        unsafe {
            self.map(|x| x as u16).write(to);
            self.map(|x| (x >> 16) as u16).write(to.add(Self::LANES));
        }
    }
}
