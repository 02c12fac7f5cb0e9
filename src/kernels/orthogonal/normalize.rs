//! The Frobenius norm, and the matrix divided by it.

use crate::kernels::matmul::Real;
use crate::kernels::storage::Scalar;
use crate::kernels::vector::{Arch, Routine, dispatch};
use crate::runtime::{Isa, Shared, pool};

/// Elements per task: the sum of squares is taken chunk by chunk, in order.
const CHUNK: usize = 1 << 15;
const LANES: usize = 16;

/// What the norm says of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    Zero,
    /// Multiply by the first factor, then by the second: by one alone, the scale of an f64 matrix could overflow.
    Scale(f64, f64),
    NotFinite,
}

/// The factors that divide `values` by `max(norm, eps)`.
pub fn norm<T: Scalar>(values: &[T], eps: f64, isa: Isa, sums: &mut Vec<f64>, threads: usize) -> Norm {
    let square = sum_of_squares(values, 1.0, isa, sums, threads);
    if square.is_finite() && square >= f64::MIN_POSITIVE / f64::EPSILON {
        return Norm::Scale(1.0, 1.0 / square.sqrt().max(eps));
    }
    // f64 input whose squares leave the range: take out a power of two first.
    let largest = values
        .iter()
        .fold(0.0, |largest: f64, v| largest.max(v.wide().abs()));
    if square.is_nan() || largest.is_infinite() {
        return Norm::NotFinite;
    }
    if largest == 0.0 {
        return Norm::Zero;
    }
    let power = 2f64.powi(-largest.log2().floor().clamp(-1000.0, 1000.0) as i32);
    let norm = sum_of_squares(values, power, isa, sums, threads).sqrt();
    Norm::Scale(power, 1.0 / norm.max(eps * power))
}

fn sum_of_squares<T: Scalar>(values: &[T], scale: f64, isa: Isa, sums: &mut Vec<f64>, threads: usize) -> f64 {
    sums.clear();
    sums.resize(values.len().div_ceil(CHUNK), 0.0);
    let to = Shared::new(sums.as_mut_ptr());
    pool::for_each(threads, sums.len(), &|chunk| {
        let from = &values[chunk * CHUNK..values.len().min((chunk + 1) * CHUNK)];
        // SAFETY: each chunk has its own sum.
        unsafe { *to.get().add(chunk) = dispatch(isa, Squares { from, scale }) };
    });
    sums.iter().sum()
}

struct Squares<'a, T> {
    from: &'a [T],
    scale: f64,
}

impl<T: Scalar> Routine for Squares<'_, T> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> f64 {
        let mut sums = [0.0; LANES];
        let whole = self.from.len() - self.from.len() % LANES;
        let mut at = 0;
        while at < whole {
            let from: &[T] = &self.from[at..at + LANES];
            for lane in 0..LANES {
                let value = from[lane].wide() * self.scale;
                sums[lane] += value * value;
            }
            at += LANES;
        }
        for (sum, value) in sums.iter_mut().zip(&self.from[whole..]) {
            let value = value.wide() * self.scale;
            *sum += value * value;
        }
        sums.iter().sum()
    }
}

/// `to = from * first * second`
pub fn scale<T: Scalar, S: Real>(
    from: &[T],
    to: &mut [S],
    (first, second): (f64, f64),
    isa: Isa,
    threads: usize,
) {
    assert_eq!(from.len(), to.len());
    for_chunks(to, threads, &|start, to| {
        dispatch(
            isa,
            Scaled {
                from: &from[start..start + to.len()],
                to,
                first,
                second,
            },
        );
    });
}

/// `values *= first * second`
pub fn scale_in_place<S: Real>(values: &mut [S], (first, second): (f64, f64), isa: Isa, threads: usize) {
    for_chunks(values, threads, &|_, values| {
        dispatch(
            isa,
            ScaledInPlace {
                values,
                first,
                second,
            },
        )
    });
}

/// Calls `work` with the start of every chunk, and the chunk.
fn for_chunks<S: Send>(values: &mut [S], threads: usize, work: &(dyn Fn(usize, &mut [S]) + Sync)) {
    let (length, base) = (values.len(), Shared::new(values.as_mut_ptr()));
    pool::for_each(threads, length.div_ceil(CHUNK), &|chunk| {
        let start = chunk * CHUNK;
        // SAFETY: within `values`, and each chunk is one task's.
        let part =
            unsafe { std::slice::from_raw_parts_mut(base.get().add(start), CHUNK.min(length - start)) };
        work(start, part);
    });
}

struct Scaled<'a, T, S> {
    from: &'a [T],
    to: &'a mut [S],
    first: f64,
    second: f64,
}

impl<T: Scalar, S: Real> Routine for Scaled<'_, T, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let Scaled {
            from,
            to,
            first,
            second,
        } = self;
        let to = &mut to[..from.len()];
        for i in 0..from.len() {
            to[i] = S::from_f64(from[i].wide() * first * second);
        }
    }
}

struct ScaledInPlace<'a, S> {
    values: &'a mut [S],
    first: f64,
    second: f64,
}

impl<S: Real> Routine for ScaledInPlace<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        for value in self.values {
            *value = S::from_f64(value.to_f64() * self.first * self.second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_and_bf16_are_widened_as_half_does() {
        for bits in 0..=u16::MAX {
            let (f16, bf16) = (half::f16::from_bits(bits), half::bf16::from_bits(bits));
            assert!(
                f16.wide() == f16.to_f64() || f16.is_nan() && f16.wide().is_nan(),
                "{bits:x}"
            );
            assert!(
                bf16.wide() == bf16.to_f64() || bf16.is_nan() && bf16.wide().is_nan(),
                "{bits:x}"
            );
        }
    }

    #[test]
    fn norms_of_any_size_are_exact_enough() {
        for isa in Isa::supported() {
            for size in [1e-310, 1e-200, 1e-30, 1.0, 1e30, 1e300] {
                let values = vec![3.0 * size; 70_001];
                let Norm::Scale(first, second) = norm(&values, 0.0, isa, &mut Vec::new(), 2) else {
                    panic!("{size}")
                };
                let want = 1.0 / 70_001f64.sqrt();
                assert!((values[0] * first * second / want - 1.0).abs() < 1e-12, "{size}");
            }
            let of = |values: &[f64]| norm(values, 0.0, isa, &mut Vec::new(), 1);
            assert_eq!(of(&[0.0, -0.0]), Norm::Zero);
            assert_eq!(of(&[1.0, f64::NAN]), Norm::NotFinite);
            assert_eq!(of(&[1.0, f64::NEG_INFINITY]), Norm::NotFinite);
            assert_eq!(
                norm(&[3.0f32, 4.0], 10.0, isa, &mut Vec::new(), 1),
                Norm::Scale(1.0, 0.1)
            );
        }
    }
}
