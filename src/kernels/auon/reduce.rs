//! Sums over tensors in f64, block by block and in a fixed number of lanes, so that neither threads nor instruction
//! sets make a difference.

use half::{bf16, f16};

use super::Direction;
use crate::kernels::matmul::{Job, run_on};
use crate::kernels::storage::{BLOCK, Buffers, Float, Scalar};
use crate::runtime::{Isa, Shared, pool};

const LANES: usize = 16;

/// The root mean square of `cosh(gamma x)`, and what is added to it before dividing by it.
#[derive(Clone, Copy, Debug)]
pub struct Cosh {
    pub gamma: f64,
    pub eps: f64,
}

/// Of squares, and the largest magnitude.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    pub squares: f64,
    pub largest: f64,
}

impl Sums {
    /// Both together.
    pub fn and(self, other: Sums) -> Sums {
        Sums {
            squares: self.squares + other.squares,
            largest: self.largest.max(other.largest),
        }
    }
}

/// The directions of a parameter.
pub struct Entries<'a> {
    pub buffers: &'a Buffers<1>,
    pub direction: &'a Direction,
    pub threads: usize,
}

impl Entries<'_> {
    /// Of the directions times `scale`.
    ///
    /// # Safety
    /// The buffers are valid for reading, and nothing writes them.
    pub unsafe fn sums(&self, scale: f64) -> Sums {
        let isa = Isa::current();
        // SAFETY: the caller's promise.
        let parts = self.of_blocks(&|block| unsafe { direction_sums(block, self.direction, scale, isa) });
        parts.into_iter().fold(Sums::default(), Sums::and)
    }

    /// The sum of `sinh(direction * power * scale)^2`.
    ///
    /// # Safety
    /// As for [`Entries::sums`].
    pub unsafe fn sinh_squares(&self, power: f64, scale: f64) -> f64 {
        let isa = Isa::current();
        let sinh = Sinh { power, scale };
        // SAFETY: the caller's promise.
        let parts = self.of_blocks(&|block| unsafe { reduce(block, self.direction, sinh, isa) });
        parts.into_iter().sum()
    }

    fn of_blocks<T: Copy + Default + Send>(&self, work: &(dyn Fn(&Buffers<1>) -> T + Sync)) -> Vec<T> {
        struct Whole<'a>(&'a Buffers<1>);
        // SAFETY: only pointers, to memory that is only read.
        unsafe impl Sync for Whole<'_> {}
        impl Whole<'_> {
            fn block(&self, index: usize) -> Buffers<1> {
                let start = index * BLOCK;
                self.0.part(start, BLOCK.min(self.0.len - start))
            }
        }
        let whole = Whole(self.buffers);
        let mut parts = vec![T::default(); self.buffers.len.div_ceil(BLOCK)];
        let to = Shared::new(parts.as_mut_ptr());
        pool::for_each(self.threads, parts.len(), &|index| {
            // SAFETY: each block has its own place.
            unsafe { *to.get().add(index) = work(&whole.block(index)) };
        });
        parts
    }
}

/// Of a block's directions times `scale`.
///
/// # Safety
/// As for [`Entries::sums`].
pub unsafe fn direction_sums(block: &Buffers<1>, direction: &Direction, scale: f64, isa: Isa) -> Sums {
    // SAFETY: the caller's promise.
    unsafe { reduce(block, direction, Squares { scale }, isa) }
}

/// What is summed up, from so many numbers at a time.
trait Fold: Copy {
    type Lanes: Default;
    type Sum: Default;
    fn add(&self, values: [f64; LANES], to: &mut Self::Lanes);
    fn finish(&self, lanes: Self::Lanes) -> Self::Sum;
}

#[derive(Clone, Copy)]
struct Squares {
    scale: f64,
}

impl Fold for Squares {
    type Lanes = [[f64; LANES]; 2];
    type Sum = Sums;

    #[inline(always)]
    fn add(&self, values: [f64; LANES], [squares, largest]: &mut Self::Lanes) {
        for lane in 0..LANES {
            let value = values[lane] * self.scale;
            squares[lane] += value * value;
            let size = value.abs();
            // NaN is seen in the squares.
            largest[lane] = if size > largest[lane] { size } else { largest[lane] };
        }
    }

    #[inline(always)]
    fn finish(&self, [squares, largest]: Self::Lanes) -> Sums {
        Sums {
            squares: squares.iter().sum(),
            largest: largest.iter().copied().fold(0.0, f64::max),
        }
    }
}

/// Terms of `sinh(z)^2 = z^2 + z^4 / 3 + ...`, in z^2.
const TERMS: [f64; 7] = [
    1.0,
    1.0 / 3.0,
    2.0 / 45.0,
    1.0 / 315.0,
    2.0 / 14_175.0,
    2.0 / 467_775.0,
    4.0 / 42_567_525.0,
];
/// Up to here the terms are exact to the last digits of f64.
const SMALL: f64 = 0.25;

#[derive(Clone, Copy)]
struct Sinh {
    power: f64,
    scale: f64,
}

impl Fold for Sinh {
    type Lanes = [f64; LANES];
    type Sum = f64;

    #[inline(always)]
    fn add(&self, values: [f64; LANES], sums: &mut Self::Lanes) {
        let small = values.iter().fold(true, |small, value| {
            small & ((value * self.power * self.scale).abs() <= SMALL)
        });
        for lane in 0..LANES {
            let z = values[lane] * self.power * self.scale;
            sums[lane] += if small {
                let square = z * z;
                TERMS.iter().rev().fold(0.0, |sum, term| sum * square + term) * square
            } else {
                let sinh = z.sinh();
                sinh * sinh
            };
        }
    }

    #[inline(always)]
    fn finish(&self, sums: Self::Lanes) -> f64 {
        sums.iter().sum()
    }
}

/// # Safety
/// The buffers are valid for reading, and nothing writes them.
unsafe fn reduce<F: Fold>(block: &Buffers<1>, direction: &Direction, fold: F, isa: Isa) -> F::Sum {
    use Float::*;
    let mut sum = F::Sum::default();
    macro_rules! run {
        ($grad:ty, $momentum:ty) => {
            // SAFETY: the caller's promise, for these types.
            unsafe {
                run_on(
                    isa,
                    Reduce {
                        grad: std::slice::from_raw_parts(block.grad.cast::<$grad>(), block.len),
                        momentum: std::slice::from_raw_parts(
                            block.state[0].data.cast::<$momentum>(),
                            block.len,
                        ),
                        direction,
                        fold,
                        sum: &mut sum,
                    },
                )
            }
        };
    }
    match (block.dtype, block.state_dtype().expect("a float")) {
        (F64, _) => run!(f64, f64),
        (F32, Bf16) => run!(f32, bf16),
        (F32, _) => run!(f32, f32),
        (Bf16, Bf16) => run!(bf16, bf16),
        (Bf16, _) => run!(bf16, f32),
        (F16, F16) => run!(f16, f16),
        (F16, Bf16) => run!(f16, bf16),
        (F16, _) => run!(f16, f32),
    }
    sum
}

struct Reduce<'a, G, M, F: Fold> {
    grad: &'a [G],
    momentum: &'a [M],
    direction: &'a Direction,
    fold: F,
    sum: &'a mut F::Sum,
}

impl<G: Scalar, M: Scalar, F: Fold> Job for Reduce<'_, G, M, F> {
    #[inline(always)]
    fn run(self) {
        let &Direction {
            momentum: keep,
            nesterov,
            ..
        } = self.direction;
        let share = self.direction.share();
        let of = |g: G, m: M| {
            if nesterov {
                m.wide() * keep + g.wide() * share
            } else {
                m.wide()
            }
        };
        let mut lanes = F::Lanes::default();
        let (grads, grads_rest) = self.grad.as_chunks::<LANES>();
        let (momenta, momenta_rest) = self.momentum.as_chunks::<LANES>();
        for (grads, momenta) in grads.iter().zip(momenta) {
            let mut values = [0.0; LANES];
            for lane in 0..LANES {
                values[lane] = of(grads[lane], momenta[lane]);
            }
            self.fold.add(values, &mut lanes);
        }
        let mut values = [0.0; LANES];
        for (value, (&g, &m)) in values.iter_mut().zip(grads_rest.iter().zip(momenta_rest)) {
            *value = of(g, m);
        }
        self.fold.add(values, &mut lanes);
        *self.sum = self.fold.finish(lanes);
    }
}
