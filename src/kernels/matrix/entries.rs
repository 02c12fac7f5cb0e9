//! Sums over the elements of a direction, in f64, block by block and in a fixed number of lanes, so that neither threads
//! nor instruction sets make a difference.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::Momentum;
use crate::kernels::orthogonal::Numbers;
use crate::kernels::storage::{BLOCK, Buffers, Float, Rounding, Scalar, State};
use crate::kernels::vector::{Arch, Routine, dispatch};
use crate::runtime::{Isa, Shared, pool};

pub const LANES: usize = 16;

/// Elements that follow from gradients and momenta.
#[derive(Clone, Copy)]
pub struct Entries<'a> {
    /// State: the momentum.
    buffers: Buffers<1>,
    momentum: Momentum,
    memory: PhantomData<&'a u8>,
}

// SAFETY: only pointers, to memory that is only read.
unsafe impl Sync for Entries<'_> {}

impl<'a> Entries<'a> {
    /// # Safety
    /// For `'a`, gradient and momentum are valid for reading, and nothing writes them while a sum is taken.
    pub unsafe fn new(buffers: Buffers<1>, momentum: Momentum) -> Self {
        Entries {
            buffers,
            momentum,
            memory: PhantomData,
        }
    }

    /// Numbers as momenta that are the direction.
    pub fn of(numbers: &'a mut Numbers<'_>) -> Self {
        let (dtype, data) = (numbers.dtype(), numbers.as_mut_ptr());
        let buffers = Buffers {
            dtype,
            len: numbers.len(),
            param: std::ptr::null_mut(),
            grad_dtype: dtype,
            grad: data,
            state: [State::float(data, dtype)],
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
        };
        let momentum = Momentum {
            momentum: 1.0,
            nesterov: false,
            maximize: false,
            scale: 1.0,
        };
        // SAFETY: the numbers are borrowed for `'a`.
        unsafe { Entries::new(buffers, momentum) }
    }

    pub fn len(&self) -> usize {
        self.buffers.len
    }

    /// The type of the arithmetic.
    pub fn dtype(&self) -> Float {
        self.buffers.dtype.arithmetic()
    }

    /// What `fold` makes of every block, in order.
    pub fn fold<F: Fold>(&self, fold: F, threads: usize) -> Vec<F::Sum> {
        let isa = Isa::current();
        let mut sums = vec![F::Sum::default(); self.len().div_ceil(BLOCK)];
        let to = Shared::new(sums.as_mut_ptr());
        pool::for_each(threads, sums.len(), &|index| {
            // SAFETY: each block has its own place.
            unsafe { *to.get().add(index) = self.block(index).reduce(fold, isa) };
        });
        sums
    }

    /// How large the elements are.
    pub fn size(&self, threads: usize) -> Size {
        let sums = self.fold(Squares { scale: 1.0 }, threads);
        self.size_from(Sums::total(sums), threads)
    }

    /// The same from the sums of [`Entries::block_sums`]; only where their squares left the range is there another pass.
    pub fn size_from(&self, sums: Sums, threads: usize) -> Size {
        let Sums { squares, largest } = sums;
        let range = if self.dtype() == Float::F64 { 1000.0 } else { 120.0 };
        let power = 2f64.powi(-largest.log2().floor().clamp(-range, range) as i32);
        let is_safe = squares.is_finite() && squares >= f64::MIN_POSITIVE / f64::EPSILON;
        let norm = if squares.is_nan() || largest.is_infinite() {
            f64::NAN
        } else if largest == 0.0 {
            0.0
        } else if is_safe {
            squares.sqrt() * power
        } else {
            Sums::total(self.fold(Squares { scale: power }, threads))
                .squares
                .sqrt()
        };
        Size { power, norm, largest }
    }

    /// The sums over block `index`.
    pub fn block_sums(&self, index: usize, isa: Isa) -> Sums {
        self.block(index).reduce(Squares { scale: 1.0 }, isa)
    }

    fn block(&self, index: usize) -> Self {
        let start = index * BLOCK;
        Entries {
            buffers: self.buffers.part(start, BLOCK.min(self.len() - start)),
            ..*self
        }
    }

    fn reduce<F: Fold>(&self, fold: F, isa: Isa) -> F::Sum {
        use Float::*;
        let block = &self.buffers;
        macro_rules! run {
            ($grad:ty, $momentum:ty) => {
                // SAFETY: the promise of `new`, for these types.
                unsafe {
                    dispatch(
                        isa,
                        Reduce {
                            grad: std::slice::from_raw_parts(block.grad.cast::<$grad>(), block.len),
                            momentum: std::slice::from_raw_parts(
                                block.state[0].data.cast::<$momentum>(),
                                block.len,
                            ),
                            direction: &self.momentum,
                            fold,
                        },
                    )
                }
            };
        }
        let momentum = block.state_dtype().expect("a momentum of floats");
        let lanes = match (block.grad_dtype, momentum) {
            (F64, _) => run!(f64, f64),
            (F32, F16) => run!(f32, f16),
            (F32, Bf16) => run!(f32, bf16),
            (F32, _) => run!(f32, f32),
            (Bf16, F16) => run!(bf16, f16),
            (Bf16, Bf16) => run!(bf16, bf16),
            (Bf16, _) => run!(bf16, f32),
            (F16, F16) => run!(f16, f16),
            (F16, Bf16) => run!(f16, bf16),
            (F16, _) => run!(f16, f32),
        };
        fold.finish(lanes)
    }
}

/// How large the elements of a direction are. The norm is NaN where one is not finite.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// A power of two near the inverse of the largest element: times it, squares stay within f64, and factors of the
    /// elements within the type of the arithmetic.
    pub power: f64,
    /// Of the elements times `power`.
    pub norm: f64,
    pub largest: f64,
}

impl Size {
    /// What makes of the elements times `power` a matrix of norm 1, or less with an `eps` added to the norm of the
    /// elements themselves.
    pub fn unit(&self, eps: f64) -> f64 {
        if self.norm == 0.0 {
            0.0
        } else {
            1.0 / (self.norm + eps * self.power)
        }
    }
}

/// Of squares, and the largest magnitude.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    squares: f64,
    largest: f64,
}

impl Sums {
    /// Of several blocks together.
    pub fn total(blocks: impl IntoIterator<Item = Sums>) -> Sums {
        let and = |one: Sums, other: Sums| Sums {
            squares: one.squares + other.squares,
            largest: one.largest.max(other.largest),
        };
        blocks.into_iter().fold(Sums::default(), and)
    }
}

/// What is summed up, from so many elements at a time.
pub trait Fold: Copy + Send + Sync {
    type Lanes: Default;
    type Sum: Copy + Default + Send;
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

struct Reduce<'a, G, M, F: Fold> {
    grad: &'a [G],
    momentum: &'a [M],
    direction: &'a Momentum,
    fold: F,
}

impl<G: Scalar, M: Scalar, F: Fold> Routine for Reduce<'_, G, M, F> {
    /// What is left to be [finished](Fold::finish): that here, the lanes' loop would be made of parts of vectors.
    type Output = F::Lanes;

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> F::Lanes {
        let &Momentum {
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
        lanes
    }
}
