//! The last stage of a step: decay, and the move along what the chain made of the direction.

use super::{Factor, Momentum};
use crate::kernels::elementwise::Rule;
use crate::kernels::vector::Vector;

/// How the learning rate follows from a matrix's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustLr {
    None,
    /// sqrt(max(1, rows / cols)), Keller Jordan's.
    Original,
    /// To 0.2 as the root mean square of what is applied, an AdamW step's: 0.2 sqrt(max(rows, cols)) for orthogonal
    /// matrices (Moonshot's, arXiv 2502.16982), 0.2 sqrt(elements) for those of norm 1.
    MatchRmsAdamw,
    /// sqrt(rows / cols)
    SpectralUnclamped,
}

impl AdjustLr {
    /// For a matrix the square of whose norm is `squared_norm`.
    pub fn factor(self, rows: usize, cols: usize, squared_norm: f64) -> f64 {
        let (rows, cols) = (rows as f64, cols as f64);
        match self {
            AdjustLr::None => 1.0,
            AdjustLr::Original => (rows / cols).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * (rows * cols / squared_norm).sqrt(),
            AdjustLr::SpectralUnclamped => (rows / cols).sqrt(),
        }
    }
}

/// Hyperparameters of the last stage.
#[derive(Clone, Copy, Debug)]
pub struct Apply {
    pub lr: f64,
    pub weight_decay: f64,
    /// Decay only elements that the step does not move away from zero (arXiv 2510.12402).
    pub cautious: bool,
    pub adjust_lr: AdjustLr,
}

impl Apply {
    /// The rule for a matrix.
    pub fn along(&self, rows: usize, cols: usize, squared_norm: f64, factor: Factor) -> Along {
        let Factor {
            power,
            scale,
            divisor,
        } = factor;
        Along {
            decay: self.lr * self.weight_decay,
            cautious: self.cautious,
            power,
            scale: self.lr * self.adjust_lr.factor(rows, cols, squared_norm) / divisor * scale,
        }
    }

    /// The rule along a move that has the learning rate in it.
    pub fn along_move(&self) -> Along {
        Along {
            decay: self.lr * self.weight_decay,
            cautious: self.cautious,
            power: 1.0,
            scale: 1.0,
        }
    }
}

/// Decay and a move along a direction. State: the direction, only read; so is the gradient, not at all.
#[derive(Clone, Copy, Debug)]
pub struct Along {
    decay: f64,
    cautious: bool,
    /// Multiplies the direction, then `scale` does.
    power: f64,
    scale: f64,
}

impl Along {
    /// The rule that makes the move of the direction.
    pub fn only_move(&self) -> OnlyMove {
        OnlyMove {
            power: self.power,
            scale: self.scale,
        }
    }
}

/// The parameter is the direction, and becomes the move.
#[derive(Clone, Copy, Debug)]
pub struct OnlyMove {
    power: f64,
    scale: f64,
}

impl Rule<0> for OnlyMove {
    #[inline(always)]
    fn update<V: Vector>(&self, u: V, _: V, []: [V; 0]) -> (V, [V; 0]) {
        (u * self.power * self.scale, [])
    }
}

impl Rule<1> for Along {
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, _: V, [u]: [V; 1]) -> (V, [V; 1]) {
        let decayed = if self.cautious {
            let agree = p.sign() * u.sign(); // -1, 0 or 1
            let opposed = (-agree).max(V::splat(0.0));
            p - p * ((V::splat(1.0) - opposed) * self.decay)
        } else {
            p * (1.0 - self.decay)
        };
        (decayed + u * self.power * -self.scale, [u])
    }
}

/// The same along the direction that the gradient and the new momentum imply. State: the momentum, only read.
#[derive(Clone, Copy, Debug)]
pub struct AlongMomentum {
    pub along: Along,
    pub momentum: Momentum,
}

impl Rule<1> for AlongMomentum {
    const IN_16_BITS: bool = true;
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let (p, _) = self.along.update(p, g, [self.momentum.direction(m, g)]);
        (p, [m])
    }
}
