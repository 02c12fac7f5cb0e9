//! Two registers of f32 as one vector: 16-bit elements come and go a whole register at a time, and NaN is looked for
//! once for both.

use std::marker::PhantomData;
use std::ops::{Add, Div, Mul, Neg, Sub};

use half::{bf16, f16};

use super::{Arch, Bits, InF32, MAX_LANES, Noise, Single, Stored, Vector, bits};

/// Two registers, which hold the elements in order `O`.
#[derive(Clone, Copy)]
pub struct Pair<V, O>(V, V, PhantomData<O>);

/// Which elements the first register holds, and which the second.
pub trait Order: Copy {
    /// Reads 16 bits for each lane into the upper halves, with zeros below.
    ///
    /// # Safety
    /// `from` is valid for reading as many elements as both have lanes.
    unsafe fn load<B: Bits>(from: *const u16) -> [B; 2];

    /// Writes 16 bits for each lane: the lower halves are those of the first register, the upper halves those of the
    /// second.
    ///
    /// # Safety
    /// `to` is valid for writing as many elements as both have lanes.
    unsafe fn store<B: Bits>(both: B, to: *mut u16);

    /// 16 random bits for each lane, in the lower halves; what is above them means nothing.
    fn draw<B: Bits>(noise: Noise) -> [B; 2];

    /// The registers for elements of which the first and the second half are given.
    fn of_halves<V: Single>(first: V, second: V) -> [V; 2];
}

/// The first half, and the second: as any storage types share it.
#[derive(Clone, Copy)]
pub struct Halves;

/// Those of even number, and those of odd number: in memory they are the halves of 32 bits, if all is in 16 bits.
#[derive(Clone, Copy)]
pub struct EvenOdd;

impl Order for Halves {
    #[inline(always)]
    unsafe fn load<B: Bits>(from: *const u16) -> [B; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            [
                B::load_u16(from).shl::<16>(),
                B::load_u16(from.add(B::LANES)).shl::<16>(),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store<B: Bits>(both: B, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { both.store_halves(to) }
    }
    #[inline(always)]
    fn draw<B: Bits>(noise: Noise) -> [B; 2] {
        let mut halves = [0_u16; MAX_LANES];
        // SAFETY: there is room for the longest vector; both loads read what was stored.
        unsafe {
            noise.draw::<B>().store_u32(halves.as_mut_ptr().cast());
            [
                B::load_u16(halves.as_ptr()),
                B::load_u16(halves.as_ptr().add(B::LANES)),
            ]
        }
    }
    #[inline(always)]
    fn of_halves<V: Single>(first: V, second: V) -> [V; 2] {
        [first, second]
    }
}

impl Order for EvenOdd {
    #[inline(always)]
    unsafe fn load<B: Bits>(from: *const u16) -> [B; 2] {
        // SAFETY: the caller's promise.
        bits::apart(unsafe { B::load_u32(from.cast()) })
    }
    #[inline(always)]
    unsafe fn store<B: Bits>(both: B, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { both.store_u32(to.cast()) }
    }
    #[inline(always)]
    fn draw<B: Bits>(noise: Noise) -> [B; 2] {
        let both = noise.draw::<B>();
        [both, both.shr::<16>()]
    }
    #[inline(always)]
    fn of_halves<V: Single>(first: V, second: V) -> [V; 2] {
        let mut all = [0.0_f32; MAX_LANES];
        let mut apart = [[0.0_f32; MAX_LANES / 2]; 2];
        // SAFETY: there is room for both of the longest vectors; the loads read what was stored.
        unsafe {
            first.store_f32(all.as_mut_ptr());
            second.store_f32(all.as_mut_ptr().add(V::LANES));
            for (i, pair) in all.as_chunks().0.iter().enumerate() {
                [apart[0][i], apart[1][i]] = *pair;
            }
            [V::load_f32(apart[0].as_ptr()), V::load_f32(apart[1].as_ptr())]
        }
    }
}

impl<V, O> Pair<V, O> {
    #[inline(always)]
    fn new(first: V, second: V) -> Self {
        Pair(first, second, PhantomData)
    }
}

macro_rules! operators {
    ($($op:ident :: $method:ident),*) => { $(
        impl<V: Vector, O> $op for Pair<V, O> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Pair::new(self.0.$method(other.0), self.1.$method(other.1))
            }
        }
    )* };
}
operators!(Add::add, Sub::sub, Mul::mul, Div::div);

impl<V: Vector, O: Order> Add<f64> for Pair<V, O> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: f64) -> Self {
        self + Self::splat(other)
    }
}

impl<V: Vector, O: Order> Mul<f64> for Pair<V, O> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: f64) -> Self {
        self * Self::splat(other)
    }
}

impl<V: Vector, O> Neg for Pair<V, O> {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Pair::new(-self.0, -self.1)
    }
}

impl<V: Vector, O: Order> Vector for Pair<V, O> {
    type Lane = V::Lane;

    const LANES: usize = 2 * V::LANES;

    #[inline(always)]
    fn splat(value: f64) -> Self {
        Pair::new(V::splat(value), V::splat(value))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Pair::new(self.0.sqrt(), self.1.sqrt())
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Pair::new(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Pair::new(self.0.max(other.0), self.1.max(other.1))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Pair::new(self.0.min(other.0), self.1.min(other.1))
    }
    #[inline(always)]
    fn if_less(self, than: Self, then: Self, otherwise: Self) -> Self {
        Pair::new(
            self.0.if_less(than.0, then.0, otherwise.0),
            self.1.if_less(than.1, then.1, otherwise.1),
        )
    }
    #[inline(always)]
    fn sign(self) -> Self {
        Pair::new(self.0.sign(), self.1.sign())
    }
    #[inline(always)]
    fn finite_or(self, other: Self) -> Self {
        Pair::new(self.0.finite_or(other.0), self.1.finite_or(other.1))
    }
    #[inline(always)]
    fn count_below(self, other: Self) -> u32 {
        self.0.count_below(other.0) + self.1.count_below(other.1)
    }
    #[inline(always)]
    fn pow2(self) -> Self {
        Pair::new(self.0.pow2(), self.1.pow2())
    }
    #[inline(always)]
    fn frexp(self) -> (Self, Self) {
        let (first, second) = (self.0.frexp(), self.1.frexp());
        (Pair::new(first.0, second.0), Pair::new(first.1, second.1))
    }
}

impl Stored<InF32<Halves>> for f32 {
    #[inline(always)]
    unsafe fn load<A: Arch>(from: *const Self) -> Pair<A::F32, Halves> {
        // SAFETY: the caller's promise covers both halves.
        unsafe { Pair::new(A::F32::load_f32(from), A::F32::load_f32(from.add(A::F32::LANES))) }
    }
    #[inline(always)]
    unsafe fn store<A: Arch>(value: Pair<A::F32, Halves>, to: *mut Self) {
        // SAFETY: as above.
        unsafe {
            value.0.store_f32(to);
            value.1.store_f32(to.add(A::F32::LANES));
        }
    }
    #[inline(always)]
    unsafe fn store_dithered<A: Arch>(value: Pair<A::F32, Halves>, to: *mut Self, _noise: Noise) {
        // SAFETY: the caller's promise is the same; arithmetic has this very precision, so nothing is rounded.
        unsafe { Self::store::<A>(value, to) }
    }
}

impl Stored<InF32<Halves>> for f16 {
    #[inline(always)]
    unsafe fn load<A: Arch>(from: *const Self) -> Pair<A::F32, Halves> {
        // SAFETY: the caller's promise covers both halves.
        unsafe { Pair::new(A::F32::load_f16(from), A::F32::load_f16(from.add(A::F32::LANES))) }
    }
    #[inline(always)]
    unsafe fn store<A: Arch>(value: Pair<A::F32, Halves>, to: *mut Self) {
        // SAFETY: as above.
        unsafe {
            value.0.store_f16(to);
            value.1.store_f16(to.add(A::F32::LANES));
        }
    }
    #[inline(always)]
    unsafe fn store_dithered<A: Arch>(value: Pair<A::F32, Halves>, to: *mut Self, noise: Noise) {
        let [first, second] = Halves::draw(noise);
        let dithered = Pair::new(
            bits::dithered_f16(value.0, first),
            bits::dithered_f16(value.1, second),
        );
        // SAFETY: the caller's promise is the same.
        unsafe { Self::store::<A>(dithered, to) }
    }
}

impl<O: Order> Stored<InF32<O>> for bf16 {
    #[inline(always)]
    unsafe fn load<A: Arch>(from: *const Self) -> Pair<A::F32, O> {
        // SAFETY: the caller's promise is the same; bf16 is the upper half of an f32.
        let [first, second] = unsafe { O::load(from.cast()) };
        Pair::new(A::F32::from_bits(first), A::F32::from_bits(second))
    }
    #[inline(always)]
    unsafe fn store<A: Arch>(value: Pair<A::F32, O>, to: *mut Self) {
        // SAFETY: the caller's promise is the same.
        unsafe { O::store(bits::nearest_bf16(value.0, value.1), to.cast()) }
    }
    #[inline(always)]
    unsafe fn store_dithered<A: Arch>(value: Pair<A::F32, O>, to: *mut Self, noise: Noise) {
        let dithered = bits::dithered_bf16(value.0, value.1, O::draw(noise));
        // SAFETY: the caller's promise is the same.
        unsafe { O::store(bits::upper_halves(dithered), to.cast()) }
    }
}

impl<V: Single, O: Order> Pair<V, O> {
    #[inline(always)]
    pub fn of_halves(halves: Pair<V, Halves>) -> Self {
        let [first, second] = O::of_halves(halves.0, halves.1);
        Pair::new(first, second)
    }

    /// `self` where `found` is `left`, bit by bit; else `found`. Both are widened numbers of 16 bits.
    #[inline(always)]
    pub fn unless_changed(self, left: Self, found: Self) -> Self {
        let choose = |own: V, left: V, found: V| {
            let found = found.to_bits();
            // Widened, the last bit is 0 in both: what is shifted out tells nothing, and the sign becomes a bit as others.
            let changed = left.to_bits().xor(found).shr::<1>();
            V::from_bits(changed.if_greater(0, found, own.to_bits()))
        };
        Pair::new(choose(self.0, left.0, found.0), choose(self.1, left.1, found.1))
    }
}

/// A vector of f32 in two places, 16 bits of each number in one and 16 in the other: see [`bits::split`].
impl<V: Single, O: Order> Pair<V, O> {
    /// # Safety
    /// Both are valid for reading as many elements as there are lanes.
    #[inline(always)]
    pub unsafe fn load_split(nearest: *const bf16, rest: *const i16) -> Self {
        // SAFETY: the caller's promise is the same.
        let (nearest, rest) = unsafe { (O::load(nearest.cast()), O::load(rest.cast())) };
        Pair::new(
            V::from_bits(bits::join(nearest[0], rest[0])),
            V::from_bits(bits::join(nearest[1], rest[1])),
        )
    }
    /// # Safety
    /// Both are valid for writing as many elements as there are lanes.
    #[inline(always)]
    pub unsafe fn store_split(self, nearest: *mut bf16, rest: *mut i16) {
        let (first, second) = (bits::split(self.0.to_bits()), bits::split(self.1.to_bits()));
        // SAFETY: the caller's promise is the same.
        unsafe {
            O::store(bits::upper_halves([first.0, second.0]), nearest.cast());
            O::store(bits::upper_halves([first.1, second.1]), rest.cast());
        }
    }
}
