//! Linear combinations of tensors, rounded once to their type. The arithmetic is f64 for f64, else f32.

use super::Element;
use crate::kernels::vector::{Arch, Arithmetic, MAX_LANES, Routine, Vector as _, dispatch};
use crate::runtime::Isa;

type Vector<A, T> = <<T as Element>::Combined as Arithmetic>::Vector<A>;

/// Writes to `to` the sum of the inputs times their factors or, with `DIFFERENCES`, of the first, of the first less the
/// second, and of each other less the second, times their factors.
///
/// # Safety
/// The pointers are valid for `len` elements, and `to`, for writing, is one of the inputs or overlaps none.
///
/// # Panics
/// Where the CPU does not run `isa`.
pub unsafe fn combine<T: Element, const DIFFERENCES: bool, const N: usize>(
    isa: Isa,
    inputs: &[*const T; N],
    factors: &[f64; N],
    to: *mut T,
    len: usize,
) {
    let combination = Combination::<T, DIFFERENCES, N> {
        inputs: *inputs,
        factors: *factors,
        to,
        len,
    };
    dispatch(isa, combination);
}

/// The arguments of [`combine`], which keep its promises.
struct Combination<T, const DIFFERENCES: bool, const N: usize> {
    inputs: [*const T; N],
    factors: [f64; N],
    to: *mut T,
    len: usize,
}

impl<T: Element, const DIFFERENCES: bool, const N: usize> Routine for Combination<T, DIFFERENCES, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let Combination {
            inputs,
            factors,
            to,
            len,
        } = self;
        let mut splat = [Vector::<A, T>::splat(0.0); N];
        for (splat, factor) in splat.iter_mut().zip(factors) {
            *splat = Vector::<A, T>::splat(factor);
        }
        let lanes = Vector::<A, T>::LANES;
        let whole = len - len % lanes;
        for i in (0..whole).step_by(lanes) {
            // SAFETY: a whole vector at `i` lies within the tensors.
            unsafe { one::<A, T, DIFFERENCES, N>(&inputs, i, &splat, to.add(i)) };
        }
        if whole == len {
            return;
        }
        // The last elements go through copies that are a vector long.
        let mut padded = [[T::default(); MAX_LANES]; N];
        let mut result = [T::default(); MAX_LANES];
        // SAFETY: the tensors hold `len - whole` elements from `whole` on, the copies more than that.
        unsafe {
            for (padded, input) in padded.iter_mut().zip(inputs) {
                input
                    .add(whole)
                    .copy_to_nonoverlapping(padded.as_mut_ptr(), len - whole);
            }
            let inputs = std::array::from_fn(|i| padded[i].as_ptr());
            one::<A, T, DIFFERENCES, N>(&inputs, 0, &splat, result.as_mut_ptr());
            to.add(whole)
                .copy_from_nonoverlapping(result.as_ptr(), len - whole);
        }
    }
}

/// The vector from number `at` of the inputs on.
///
/// # Safety
/// The pointers are valid for a vector, those of the inputs there, and `to` for writing.
#[inline(always)]
unsafe fn one<A: Arch, T: Element, const DIFFERENCES: bool, const N: usize>(
    inputs: &[*const T; N],
    at: usize,
    factors: &[Vector<A, T>; N],
    to: *mut T,
) {
    // Neither `map` nor `zip`, which are calls: see CONTRIBUTING.md.
    let mut values = [Vector::<A, T>::splat(0.0); N];
    for (n, value) in values.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *value = unsafe { T::load::<A>(inputs[n].add(at)) };
    }
    if DIFFERENCES {
        let second = values[1];
        values[1] = values[0] - second;
        for other in &mut values[2..] {
            *other = *other - second;
        }
    }
    let mut sum = values[0] * factors[0];
    for i in 1..N {
        sum = sum + values[i] * factors[i];
    }
    // SAFETY: the caller's promise.
    unsafe { T::store::<A>(sum, to) };
}
