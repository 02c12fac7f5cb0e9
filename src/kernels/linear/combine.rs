//! Linear combinations of tensors, rounded once to their type. The arithmetic is f64 for f64, else f32.

use half::{bf16, f16};

use crate::kernels::vector::{EvenOdd, Halves, MAX_LANES, Pair, Stored, Vector, portable};
#[cfg(target_arch = "x86_64")]
use crate::kernels::vector::{avx2, avx512};
use crate::runtime::Isa;

/// Element types that can be combined.
pub trait Combine: Copy + Default {
    /// Writes to `to` the sum of the inputs times their factors or, with `DIFFERENCES`, of the first, of the first
    /// less the second, and of each other less the second, times their factors.
    ///
    /// # Safety
    /// The pointers are valid for `len` elements, and `to`, for writing, is one of the inputs or overlaps none. The CPU
    /// has the instruction set.
    unsafe fn combine<const DIFFERENCES: bool, const N: usize>(
        isa: Isa,
        inputs: &[*const Self; N],
        factors: &[f64; N],
        to: *mut Self,
        len: usize,
    );
}

/// The vector of an instruction set for f64, or that for f32 in an order.
macro_rules! vector {
    (F64, $isa:ident) => { $isa::F64 };
    ($order:ident, $isa:ident) => { Pair<$isa::F32, $order> };
}

macro_rules! combine {
    ($($type:ty: $vector:ident),*) => { $(impl Combine for $type {
        unsafe fn combine<const DIFFERENCES: bool, const N: usize>(
            isa: Isa,
            inputs: &[*const Self; N],
            factors: &[f64; N],
            to: *mut Self,
            len: usize,
        ) {
            // SAFETY: the caller's promise is the same.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 | Isa::Avx512Bf16 | Isa::AmxBf16 => {
                        with_avx512::<vector!($vector, avx512), Self, DIFFERENCES, N>(inputs, factors, to, len)
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => with_avx2::<vector!($vector, avx2), Self, DIFFERENCES, N>(inputs, factors, to, len),
                    _ => sweep::<vector!($vector, portable), Self, DIFFERENCES, N>(inputs, factors, to, len),
                }
            }
        }
    })* };
}
combine!(f64: F64, f32: Halves, f16: Halves, bf16: EvenOdd);

/// # Safety
/// See [`Combine::combine`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn with_avx512<V: Vector, T: Stored<V>, const DIFFERENCES: bool, const N: usize>(
    inputs: &[*const T; N],
    factors: &[f64; N],
    to: *mut T,
    len: usize,
) {
    // SAFETY: the caller's promise is the same.
    unsafe { sweep::<V, T, DIFFERENCES, N>(inputs, factors, to, len) }
}

/// # Safety
/// See [`Combine::combine`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<V: Vector, T: Stored<V>, const DIFFERENCES: bool, const N: usize>(
    inputs: &[*const T; N],
    factors: &[f64; N],
    to: *mut T,
    len: usize,
) {
    // SAFETY: the caller's promise is the same.
    unsafe { sweep::<V, T, DIFFERENCES, N>(inputs, factors, to, len) }
}

/// # Safety
/// See [`Combine::combine`].
#[inline(always)]
unsafe fn sweep<V: Vector, T: Stored<V>, const DIFFERENCES: bool, const N: usize>(
    inputs: &[*const T; N],
    factors: &[f64; N],
    to: *mut T,
    len: usize,
) {
    let (inputs, factors) = (*inputs, factors.map(V::splat));
    let whole = len - len % V::LANES;
    for i in (0..whole).step_by(V::LANES) {
        // SAFETY: a whole vector at `i` lies within the tensors.
        unsafe { one::<V, T, DIFFERENCES, N>(inputs.map(|input| input.add(i)), &factors, to.add(i)) };
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
        one::<V, T, DIFFERENCES, N>(inputs, &factors, result.as_mut_ptr());
        to.add(whole)
            .copy_from_nonoverlapping(result.as_ptr(), len - whole);
    }
}

/// # Safety
/// The pointers are valid for a vector, `to` for writing.
#[inline(always)]
unsafe fn one<V: Vector, T: Stored<V>, const DIFFERENCES: bool, const N: usize>(
    inputs: [*const T; N],
    factors: &[V; N],
    to: *mut T,
) {
    // Not `map`: its closure is not always inlined, and by itself it lacks the instruction set.
    let mut values = [V::splat(0.0); N];
    for (value, input) in values.iter_mut().zip(inputs) {
        // SAFETY: the caller's promise.
        *value = unsafe { T::load(input) };
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
    unsafe { T::store(sum, to) };
}
