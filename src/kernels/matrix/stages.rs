//! The stages of a rule by themselves, for parameters of which each process has a part, while one of them transforms
//! the direction as a whole: the direction, the move that the transforms make of it, and the step by that.

use super::apply::Along;
use super::{MatrixRule, Momentum};
use crate::kernels::elementwise::{Rule, Steady};
use crate::kernels::vector::Vector;

/// Writes the direction of the coming step; the parameter and the momentum are left alone.
#[derive(Clone, Copy, Debug)]
pub struct ComingDirection(Momentum);

/// The step by a given move, learning rate included; the momentum takes the gradient in.
#[derive(Clone, Copy, Debug)]
pub struct AlongMove {
    momentum: Momentum,
    along: Along,
}

impl MatrixRule {
    pub fn coming_direction(&self) -> ComingDirection {
        ComingDirection(self.momentum)
    }

    /// The rule that makes the move of the direction.
    pub fn only_moves(&self) -> MatrixRule {
        MatrixRule {
            skip_zero_grad: false,
            only_moves: true,
            ..self.clone()
        }
    }

    pub fn along_move(&self) -> AlongMove {
        AlongMove {
            momentum: self.momentum,
            along: self.apply.along_move(),
        }
    }
}

impl Steady<2> for ComingDirection {
    const STATES: [&'static str; 2] = ["direction", "momentum_buffer"];
}

impl Rule<2> for ComingDirection {
    const WRITES_PARAM: bool = false;
    const WRITES_STATES: usize = 1;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [_, m]: [V; 2]) -> (V, [V; 2]) {
        (p, [self.0.direction(self.0.blend(m, g), g), m])
    }
}

impl Steady<2> for AlongMove {
    const STATES: [&'static str; 2] = ["momentum_buffer", "move"];
}

impl Rule<2> for AlongMove {
    const WRITES_STATES: usize = 1;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, u]: [V; 2]) -> (V, [V; 2]) {
        let (p, _) = self.along.update(p, g, [u]);
        (p, [self.momentum.blend(m, g), u])
    }
}
