//! Functions of each number by itself.

use super::{Product, Shape};
use crate::kernels::linear::{Formula, compute};
use crate::kernels::vector::Vector;
use crate::runtime::{Isa, Shared};

/// A function of a number, with the product of its derivative and another one.
pub trait Entry: Copy + Send + Sync {
    fn image<V: Vector>(self, x: V) -> V;

    /// The product follows from `told`: the number or its image, as each function says.
    fn product<V: Vector>(self, told: V, v: V) -> V;
}

/// Onto the numbers between two bounds, of which `low` is not the greater one.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    pub low: f64,
    pub high: f64,
}

impl Entry for Clip {
    #[inline(always)]
    fn image<V: Vector>(self, x: V) -> V {
        let [low, high] = [V::splat(self.low), V::splat(self.high)];
        let x = x.if_less(low, low, x);
        high.if_less(x, high, x)
    }

    /// The number tells, which rounds otherwise than the bounds.
    #[inline(always)]
    fn product<V: Vector>(self, told: V, v: V) -> V {
        let [low, high, zero] = [V::splat(self.low), V::splat(self.high), V::splat(0.0)];
        let within = low.if_less(told, told.if_less(high, v, zero), zero);
        unless_nan(told, within)
    }
}

/// Magnitudes less a threshold, but not below 0, times a factor; negative numbers become 0, if it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Shrink {
    pub threshold: f64,
    pub factor: f64,
    pub nonnegative: bool,
}

impl Shrink {
    /// Whether nothing is cut off.
    #[inline(always)]
    fn is_linear(self) -> bool {
        self.threshold == 0.0 && !self.nonnegative
    }
}

impl Entry for Shrink {
    #[inline(always)]
    fn image<V: Vector>(self, x: V) -> V {
        if self.is_linear() {
            return x * self.factor;
        }
        let zero = V::splat(0.0);
        let size = if self.nonnegative { x } else { x.abs() };
        let rest = size - V::splat(self.threshold);
        let rest = rest.if_less(zero, zero, rest) * self.factor;
        x.if_less(zero, zero - rest, rest)
    }

    /// The image tells; of 0, that it was cut off, if anything is.
    #[inline(always)]
    fn product<V: Vector>(self, told: V, v: V) -> V {
        let (zero, kept) = (V::splat(0.0), v * self.factor);
        match self.is_linear() {
            true => unless_nan(told, kept),
            // What is left is 0, of either sign, or NaN.
            false => told.if_less(zero, kept, zero.if_less(told, kept, told + zero)),
        }
    }
}

/// `other`, or `x` where that is NaN.
#[inline(always)]
fn unless_nan<V: Vector>(x: V, other: V) -> V {
    let infinity = V::splat(f64::INFINITY);
    x.if_less(infinity, other, (-infinity).if_less(x, other, x))
}

/// Such a function of all numbers, whose rows make no difference.
#[derive(Clone, Copy, Debug)]
pub struct ByEntry<E>(pub E);

impl<E: Entry> ByEntry<E> {
    /// Writes the image of every number, on up to `threads` threads.
    ///
    /// # Safety
    /// As for [`super::forward`].
    pub unsafe fn forward(&self, shape: Shape, from: *const u8, to: *mut u8, threads: usize) {
        // SAFETY: the caller's promise.
        unsafe { write(Image(self.0), shape, [to, from.cast_mut()], threads) };
    }

    /// Writes the products of numbers with the derivatives, on up to `threads` threads.
    ///
    /// # Safety
    /// As for [`super::product`].
    pub unsafe fn product(&self, shape: Shape, product: Product, threads: usize) {
        let Product {
            told, vectors, to, ..
        } = product;
        // SAFETY: the caller's promise.
        unsafe {
            write(
                Slope(self.0),
                shape,
                [to, told.cast_mut(), vectors.cast_mut()],
                threads,
            )
        };
    }
}

/// Computes a formula that writes the first tensor.
///
/// # Safety
/// As for [`super::product`], of tensors as `shape` says.
unsafe fn write<F: Formula<N>, const N: usize>(
    formula: F,
    shape: Shape,
    tensors: [*mut u8; N],
    threads: usize,
) {
    let isa = Isa::current();
    let tensors = tensors.map(Shared::new);
    let numbers = Shape {
        rows: shape.rows * shape.len,
        len: 1,
        ..shape
    };
    numbers.for_rows(threads, &|first, count| {
        let at = |tensor: &Shared<u8>| tensor.get().wrapping_add(first * shape.dtype.size());
        let tensors = tensors.each_ref().map(at);
        // SAFETY: the caller's promise; these elements are this task's.
        unsafe { compute(isa, shape.dtype, formula, tensors, count) };
    });
}

#[derive(Clone, Copy)]
struct Image<E>(E);

impl<E: Entry> Formula<2> for Image<E> {
    const WRITTEN: usize = 1;
    const UPDATES: bool = false;
    const SQUARES: bool = false;

    #[inline(always)]
    fn of<V: Vector>(self, [_, x]: [V; 2]) -> [V; 2] {
        [self.0.image(x), x]
    }
}

#[derive(Clone, Copy)]
struct Slope<E>(E);

impl<E: Entry> Formula<3> for Slope<E> {
    const WRITTEN: usize = 1;
    const UPDATES: bool = false;
    const SQUARES: bool = false;

    #[inline(always)]
    fn of<V: Vector>(self, [_, told, v]: [V; 3]) -> [V; 3] {
        [self.0.product(told, v), told, v]
    }
}
