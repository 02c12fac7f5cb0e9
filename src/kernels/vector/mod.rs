//! Vectors of f32 or f64, one type per instruction set, behind traits with just the operations that kernels need.
//! An algorithm is written once over these traits; `portable`, `avx2` and `avx512` hold one instruction set each.
//!
//! No operation fuses a multiplication with an addition, and all others are exactly rounded, so every instruction set
//! gives the same bits.

use std::marker::PhantomData;
use std::ops::{Add, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use super::storage::Float;

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
mod bits;
mod dispatch;
mod draw;
pub mod math;
mod pair;
pub mod portable;

pub use bits::{Bits, Noise};
pub use dispatch::{Arch, Routine, can_stream, dispatch, end_streams, prefetch, prefetch_at, stream};
pub use draw::{Distribution, draw};
pub use pair::{EvenOdd, Halves, Order, Pair};

/// The most lanes that any vector has.
pub const MAX_LANES: usize = 32;

/// Arithmetic on a vector of floating-point numbers. The operand `f64` of a multiplication or addition is rounded to
/// the element type once and used in every lane.
///
/// The types of an instruction set may only be used on a CPU that has it: whoever calls a kernel instantiated with
/// them vouches for that (see [`crate::runtime::Isa`]).
pub trait Vector:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Add<f64, Output = Self>
    + Mul<f64, Output = Self>
{
    /// f32 or f64.
    type Lane: math::Format;

    const LANES: usize;

    fn splat(value: f64) -> Self;
    fn sqrt(self) -> Self;
    /// Without its sign, which NaN loses, too.
    fn abs(self) -> Self;
    /// The greater of both; `other` where either is NaN, or where both are 0.
    fn max(self, other: Self) -> Self;
    /// The lesser of both; `other` where either is NaN, or where both are 0.
    fn min(self, other: Self) -> Self;
    /// `then` where `self` is less than `than`; `otherwise` where it is not, or either is NaN.
    fn if_less(self, than: Self, then: Self, otherwise: Self) -> Self;
    /// -1, 0 or 1; 0 for NaN, as torch has it.
    fn sign(self) -> Self;
    /// `self` where it is neither NaN nor infinite, else `other`.
    fn finite_or(self, other: Self) -> Self;
    /// The number of lanes in which `self` is less than `other`.
    fn count_below(self, other: Self) -> u32;
    /// Whether `self` is less than `other` in all lanes.
    #[inline(always)]
    fn all_below(self, other: Self) -> bool {
        self.count_below(other) == Self::LANES as u32
    }
    /// 2 to the power of `self`: a whole number that is the exponent of a normal one.
    fn pow2(self) -> Self;
    /// `(m, e)` with `self = m * 2^e`, a whole e, and m from sqrt(1/2) up to sqrt(2), of a positive normal number. Of any
    /// other they mean nothing.
    fn frexp(self) -> (Self, Self);
}

/// What is computed in, on every instruction set.
pub trait Arithmetic {
    type Vector<A: Arch>: Vector;

    /// Reads the elements from number `i` on of any type with this arithmetic. Always the same type in a loop, it is a
    /// branch that costs nothing beside the memory, where a type parameter would triple the kernels.
    ///
    /// # Safety
    /// `from` is valid for reading as many elements of the type from `i` on as the vector has lanes.
    unsafe fn load<A: Arch>(from: *const u8, dtype: Float, i: usize) -> Self::Vector<A>;

    /// Asks early for what [`Arithmetic::load`] is going to read.
    #[inline(always)]
    fn prefetch<A: Arch>(from: *const u8, dtype: Float, i: usize) {
        match dtype {
            Float::F64 => prefetch::<A, f64>(from, i, Self::Vector::<A>::LANES),
            Float::F32 => prefetch::<A, f32>(from, i, Self::Vector::<A>::LANES),
            Float::F16 | Float::Bf16 => prefetch::<A, bf16>(from, i, Self::Vector::<A>::LANES),
        }
    }
}

pub struct InF64;
/// f32 in two registers, which hold the elements in order `O`.
pub struct InF32<O>(PhantomData<O>);

impl Arithmetic for InF64 {
    type Vector<A: Arch> = A::F64;

    #[inline(always)]
    unsafe fn load<A: Arch>(from: *const u8, dtype: Float, i: usize) -> A::F64 {
        debug_assert_eq!(dtype.arithmetic(), Float::F64);
        // SAFETY: the caller's promise is the same.
        unsafe { A::F64::load_f64(from.cast::<f64>().add(i)) }
    }
}
impl<O: Order> Arithmetic for InF32<O> {
    type Vector<A: Arch> = Pair<A::F32, O>;

    #[inline(always)]
    unsafe fn load<A: Arch>(from: *const u8, dtype: Float, i: usize) -> Pair<A::F32, O> {
        debug_assert_eq!(dtype.arithmetic(), Float::F32);
        // SAFETY: the caller's promise is the same.
        unsafe {
            match dtype {
                Float::Bf16 => bf16::load::<A>(from.cast::<bf16>().add(i)),
                Float::F16 => Pair::of_halves(f16::load::<A>(from.cast::<f16>().add(i))),
                Float::F32 | Float::F64 => Pair::of_halves(f32::load::<A>(from.cast::<f32>().add(i))),
            }
        }
    }
}

/// An element type as it lies in memory, converted on the way into and out of vectors of an arithmetic `F`.
pub trait Stored<F: Arithmetic>: Copy + Default {
    /// # Safety
    /// `from` is valid for reading as many elements as the vector has lanes; it need not be aligned to the vector.
    unsafe fn load<A: Arch>(from: *const Self) -> F::Vector<A>;

    /// Writes the lanes, rounded to the nearest, ties to even.
    ///
    /// # Safety
    /// `to` is valid for writing as many elements as the vector has lanes; it need not be aligned to the vector.
    unsafe fn store<A: Arch>(value: F::Vector<A>, to: *mut Self);

    /// Writes the lanes, rounded up or down at random with probabilities that make the expected result exact.
    ///
    /// # Safety
    /// As for [`Stored::store`].
    unsafe fn store_dithered<A: Arch>(value: F::Vector<A>, to: *mut Self, noise: Noise);
}

/// What an instruction set provides for f32; vectors are [`Pair`]s of these.
pub trait Single: Vector {
    type Bits: Bits;

    fn to_bits(self) -> Self::Bits;
    fn from_bits(bits: Self::Bits) -> Self;
    /// The nearest number of each signed integer.
    fn of_integers(bits: Self::Bits) -> Self;
    /// The nearest signed integer, ties to even, of each number below 2^22.
    fn to_integers(self) -> Self::Bits;
    /// Whether any lane of either is NaN.
    fn any_nan(a: Self, b: Self) -> bool;
    /// A table for [`Single::pick`].
    fn table(eight: &[f32; 8]) -> Self;
    /// In each lane the number of a table that stands where the last three bits of `index` say.
    fn pick(self, index: Self::Bits) -> Self;
    /// # Safety
    /// As for [`Stored::load`].
    unsafe fn load_f32(from: *const f32) -> Self;
    /// # Safety
    /// As for [`Stored::store`].
    unsafe fn store_f32(self, to: *mut f32);
    /// # Safety
    /// As for [`Stored::load`].
    unsafe fn load_f16(from: *const f16) -> Self;
    /// # Safety
    /// As for [`Stored::store`].
    unsafe fn store_f16(self, to: *mut f16);
}

/// What an instruction set provides for f64.
pub trait Double: Vector {
    /// # Safety
    /// As for [`Stored::load`].
    unsafe fn load_f64(from: *const f64) -> Self;
    /// # Safety
    /// As for [`Stored::store`].
    unsafe fn store_f64(self, to: *mut f64);
    /// # Safety
    /// As for [`Stored::load`].
    unsafe fn widen_f32(from: *const f32) -> Self;
    /// # Safety
    /// As for [`Stored::load`].
    unsafe fn widen_f16(from: *const f16) -> Self;
    /// Of twice as many elements as there are lanes, the even-numbered and the odd-numbered ones: in pairs they lie as
    /// the halves of 32 bits, which takes a third less time than one by one.
    ///
    /// # Safety
    /// `from` is valid for reading `2 * LANES` elements.
    unsafe fn widen_bf16(from: *const bf16) -> [Self; 2];
    /// `self * other + more`, rounded once where the instruction set can.
    fn mul_add(self, other: Self, more: Self) -> Self;
}

/// Elements that [`Widened::widen`] takes from, and lanes that it fills: on any instruction set the same with the same.
pub const WIDENED: usize = 16;

/// An element type as f64 numbers.
pub trait Widened: Copy {
    /// Vector number `i` of the lower half of the lanes, and of the upper half.
    ///
    /// # Safety
    /// `from` is valid for reading [`WIDENED`] elements, and both vectors lie in the halves.
    unsafe fn widen<V: Double>(from: *const Self, i: usize) -> [V; 2];
}

macro_rules! widened {
    ($($type:ty: $load:ident),*) => { $(impl Widened for $type {
        #[inline(always)]
        unsafe fn widen<V: Double>(from: *const Self, i: usize) -> [V; 2] {
            // SAFETY: the caller's promise.
            unsafe {
                let lower = from.add(i * V::LANES);
                [V::$load(lower), V::$load(lower.add(WIDENED / 2))]
            }
        }
    })* };
}
widened!(f64: load_f64, f32: widen_f32, f16: widen_f16);

impl Widened for bf16 {
    #[inline(always)]
    unsafe fn widen<V: Double>(from: *const Self, i: usize) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe { V::widen_bf16(from.add(2 * i * V::LANES)) }
    }
}

impl Stored<InF64> for f64 {
    #[inline(always)]
    unsafe fn load<A: Arch>(from: *const Self) -> A::F64 {
        // SAFETY: the caller's promise is the same.
        unsafe { A::F64::load_f64(from) }
    }
    #[inline(always)]
    unsafe fn store<A: Arch>(value: A::F64, to: *mut Self) {
        // SAFETY: the caller's promise is the same.
        unsafe { value.store_f64(to) }
    }
    #[inline(always)]
    unsafe fn store_dithered<A: Arch>(value: A::F64, to: *mut Self, _noise: Noise) {
        // SAFETY: the caller's promise is the same; arithmetic has this very precision, so nothing is rounded.
        unsafe { value.store_f64(to) }
    }
}

/// The operators of a vector type that wraps a register, from the instructions for them.
#[cfg(target_arch = "x86_64")]
macro_rules! operators {
    ($vector:ident: $($op:ident :: $method:ident = $function:expr),* $(,)?) => {
        $(impl std::ops::$op for $vector {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: a value of this type exists only where its instruction set does.
                Self(unsafe { $function(self.0, other.0) })
            }
        })*
        impl std::ops::Add<f64> for $vector {
            type Output = Self;
            #[inline(always)]
            fn add(self, other: f64) -> Self {
                self + <Self as crate::kernels::vector::Vector>::splat(other)
            }
        }
        impl std::ops::Mul<f64> for $vector {
            type Output = Self;
            #[inline(always)]
            fn mul(self, other: f64) -> Self {
                self * <Self as crate::kernels::vector::Vector>::splat(other)
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use operators;

#[cfg(test)]
mod tests;
