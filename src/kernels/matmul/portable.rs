//! Plain Rust, for CPUs whose instruction set has no file of its own; the compiler vectorizes what it can.

use std::marker::PhantomData;

use half::bf16;

use super::kernel::{Ahead, Job, Kernel, Takes, Vectors, register_block};
use super::{Real, round};

#[derive(Clone, Copy)]
pub struct Portable<T>(PhantomData<T>);

impl<T> Portable<T> {
    pub const NEW: Self = Portable(PhantomData);
}

const LANES: usize = 4;

impl<T: Real> Kernel for Portable<T> {
    type Value = T;
    type Unit = T;
    type Acc = T;
    const DEPTH: usize = 1;
    const LANES: usize = LANES;
    const ROWS: usize = 4;
    const WIDTH: usize = 2 * LANES;

    unsafe fn enter<J: Job>(job: J) {
        job.run();
    }

    #[inline(always)]
    unsafe fn micro(
        units: usize,
        a: *const T,
        b: *const T,
        ahead: Ahead,
        tile: *mut T,
        stride: usize,
        first: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { register_block::<Self, 4, 2>(units, a, b, ahead, tile, stride, first) }
    }

    #[inline(always)]
    fn unit(first: T, _: T) -> T {
        first
    }
    #[inline(always)]
    fn round(values: &mut [T]) {
        for value in values {
            *value = value.to_bf16();
        }
    }
}

impl<T: Real> Vectors for Portable<T> {
    type Factor = [T; LANES];
    type Sum = [T; LANES];

    #[inline(always)]
    unsafe fn zero() -> [T; LANES] {
        [T::ZERO; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const T) -> [T; LANES] {
        // SAFETY: the caller has LANES values there.
        unsafe { from.cast::<[T; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat(unit: T) -> [T; LANES] {
        [unit; LANES]
    }
    #[inline(always)]
    unsafe fn fma(a: [T; LANES], b: [T; LANES], mut sum: [T; LANES]) -> [T; LANES] {
        for i in 0..LANES {
            sum[i] = sum[i] + a[i] * b[i];
        }
        sum
    }
    #[inline(always)]
    unsafe fn store(sum: [T; LANES], to: *mut T, first: bool) {
        for (i, value) in sum.into_iter().enumerate() {
            // SAFETY: the caller has room for LANES sums there.
            unsafe { *to.add(i) = if first { value } else { *to.add(i) + value } };
        }
    }
}

impl<T: Real> Takes<T> for Portable<T> {
    #[inline(always)]
    unsafe fn convert(from: &[T], to: &mut [T]) {
        to.copy_from_slice(from);
    }
}

impl Takes<bf16> for Portable<f32> {
    #[inline(always)]
    unsafe fn convert(from: &[bf16], to: &mut [f32]) {
        round::widen(from, to);
    }
}
