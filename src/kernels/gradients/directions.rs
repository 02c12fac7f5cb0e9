//! Steps along a direction that is updated with them: of conjugate gradients, and of normalized momentum.

use super::{Position, for_each, inputs_of, spans};
use crate::kernels::linear::{Formula, compute};
use crate::kernels::vector::Vector;
use crate::runtime::{Isa, Shared};

/// `r <- r - alpha q` of two lists r and q, with the sum of squares of r where that is asked for.
#[derive(Clone, Copy)]
pub struct Descend<const SQUARES: bool> {
    pub alpha: f64,
}

impl<const SQUARES: bool> Formula<2> for Descend<SQUARES> {
    const WRITTEN: usize = 1;
    const SQUARES: bool = SQUARES;

    #[inline(always)]
    fn of<V: Vector>(self, [r, q]: [V; 2]) -> [V; 2] {
        [r - q * self.alpha, q]
    }
}

/// `x <- x + alpha p` and `p <- z + beta p` of three lists x, p and z.
#[derive(Clone, Copy)]
pub struct Advance {
    pub alpha: f64,
    pub beta: f64,
}

impl Formula<3> for Advance {
    const WRITTEN: usize = 2;
    const SQUARES: bool = false;

    #[inline(always)]
    fn of<V: Vector>(self, [x, p, z]: [V; 3]) -> [V; 3] {
        [x + p * self.alpha, z + p * self.beta, z]
    }
}

/// `g <- momentum m + (1 - momentum) g` of two lists g and m, with the sum of squares of g.
#[derive(Clone, Copy)]
struct Blend {
    momentum: f64,
}

impl Formula<2> for Blend {
    const WRITTEN: usize = 1;
    const SQUARES: bool = true;

    #[inline(always)]
    fn of<V: Vector>(self, [g, m]: [V; 2]) -> [V; 2] {
        [m * self.momentum + g * (1.0 - self.momentum), m]
    }
}

/// Normalized momentum, of three lists m, g and x: `g <- momentum m + (1 - momentum) g`, and `x <- x - lr g / norm(g)`,
/// the norm of all tensors, unless it is 0 or not finite. The new momentum takes the gradient's place, so that the old
/// one is there where the step is not to be made. Gives the norm.
///
/// # Safety
/// As for [`apply`], where the second and the third list are written.
pub unsafe fn normalized(positions: &[Position], momentum: f64, lr: f64, threads: usize) -> f64 {
    let [blended, moved] = [[1, 0], [2, 1]].map(|lists| of_lists(positions, lists));
    // SAFETY: the caller's promise.
    let norm = unsafe { apply(&blended, Blend { momentum }, threads) }.sqrt();
    if norm.is_finite() && norm > 0.0 {
        let descend = Descend::<false> { alpha: lr / norm };
        // SAFETY: as above.
        unsafe { apply(&moved, descend, threads) };
    }
    norm
}

fn of_lists(positions: &[Position], lists: [usize; 2]) -> Vec<Position> {
    let of = |position: &Position| Position {
        inputs: lists.iter().map(|&list| position.inputs[list]).collect(),
        ..position.clone()
    };
    positions.iter().map(of).collect()
}

/// Computes a formula on all elements; gives the sum of squares, in an order that threads do not change.
///
/// # Safety
/// There are `N` inputs, null or valid for reading. The first [`Formula::WRITTEN`] are not null and valid for writing;
/// these overlap nothing, and nothing else uses them.
pub unsafe fn apply<F: Formula<N>, const N: usize>(
    positions: &[Position],
    formula: F,
    threads: usize,
) -> f64 {
    let (spans, isa) = (spans(positions), Isa::current());
    let mut parts = vec![0.0; spans.len()];
    let to = Shared::new(parts.as_mut_ptr());
    for_each(&spans, threads, &|i, span| {
        let position = &positions[span.position];
        let inputs = inputs_of(position, span.start);
        let tensors: [*mut u8; N] = std::array::from_fn(|n| inputs[n].cast_mut());
        // SAFETY: the caller's promise; each span is one task's, with a part of its own.
        unsafe {
            *to.get().add(i) = compute(isa, position.dtype, formula, tensors, span.len);
        };
    });
    parts.iter().sum()
}
