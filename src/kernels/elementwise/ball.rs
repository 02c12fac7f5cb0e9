//! Tensors that stay within a ball around 0: how far one would go is known before any element of it is written.

use super::sums::{self, Room, Summed};
use super::tiles::{self, TILE};
use super::{Rule, kernel};
use crate::kernels::storage::{Buffers, Rounding};
use crate::kernels::vector::{Noise, Vector};

/// A ball around 0, and what brings a tensor back into it: 1 until that is known.
#[derive(Clone, Copy, Debug)]
pub struct Ball {
    radius: f64,
    factor: f64,
}

impl Ball {
    /// Of an infinite radius, for none.
    pub fn of(radius: f64) -> Self {
        Ball { radius, factor: 1.0 }
    }

    pub fn is_bounded(&self) -> bool {
        self.radius != f64::INFINITY
    }

    /// Takes in how far the tensor would go. One with a NaN becomes NaN.
    pub fn know(&mut self, squared_norm: f64) {
        let norm = squared_norm.sqrt();
        self.factor = if norm <= self.radius {
            1.0
        } else {
            self.radius / norm
        };
    }

    #[inline(always)]
    pub fn brought_back<V: Vector>(&self, p: V) -> V {
        p * self.factor
    }
}

/// A rule that writes nothing but the parameter.
#[derive(Clone, Copy)]
struct Trial<R>(R);

impl<R: Rule<N>, const N: usize> Rule<N> for Trial<R> {
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, param: V, grad: V, state: [V; N]) -> (V, [V; N]) {
        self.0.update(param, grad, state)
    }
}

/// Sums the squares of what is where the gradient is for other rules.
#[derive(Clone, Copy)]
struct Squares;

impl Rule<0> for Squares {
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    #[inline(always)]
    fn update<V: Vector>(&self, param: V, _: V, []: [V; 0]) -> (V, [V; 0]) {
        (param, [])
    }
}

/// The squared norm of what a rule would make of a block's parameter, before that is rounded to 16 bits.
///
/// # Safety
/// The buffers are valid for `len` elements, of types that the rule has code for, and nothing writes them meanwhile.
pub unsafe fn squared_norm<R: Rule<N>, const N: usize>(rule: &R, block: &Buffers<N>, scale: f64) -> f64 {
    let work = block.dtype.arithmetic();
    let kernel = kernel(work, work, Rounding::Nearest).expect("code for the type of the arithmetic");
    let mut room = [0_u64; TILE]; // large enough for any type
    let param: *mut u8 = room.as_mut_ptr().cast();
    let mut sum = 0.0;
    for start in (0..block.len).step_by(TILE) {
        let tile = block.part(start, TILE.min(block.len - start));
        let moved = Buffers {
            dtype: work,
            param,
            ..tile.unwritten()
        };
        let result = Buffers {
            grad_dtype: work,
            grad: param,
            ..moved.with_states([])
        };
        // SAFETY: the caller's promise, and there is room for the tile.
        unsafe {
            tiles::read(&tile.with_states([]), param);
            tiles::run(kernel, &Trial(*rule), &moved, scale, Noise::NONE, None);
            sum += sums::of_block(&Squares, &result, 1.0, &mut Room::default());
        }
    }
    sum
}
