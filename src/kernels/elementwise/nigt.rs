//! NIGT: normalized momentum with implicit gradient transport (Cutkosky and Mehta 2020, arXiv 2002.03305; with decreasing
//! weights N-PG-IGT, arXiv 2302.01734). The parameter is z, where gradients are taken; the point x follows from it and
//! the momentum d.

use super::{Hyperparameters, Rule, Summed, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct Nigt {
        lr: f64,
        weight_decay: f64,
        /// The gradient's share in the momentum: that with which z was made, and 1 in the first step.
        eta: f64,
        /// That of the step to come.
        next_eta: f64,
        /// x is `of_param * z + of_momentum * d`.
        of_param: f64,
        of_momentum: f64,
        maximize: bool,
    }
}

/// [`Nigt`] with the factor that makes the momentum's norm `lr`.
#[derive(Clone, Copy, Debug)]
pub struct NigtRule {
    options: Nigt,
    scale: f64,
}

impl Hyperparameters<1> for Nigt {
    type Rule = NigtRule;

    const STATES: [&'static str; 1] = ["momentum_buffer"];
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> NigtRule {
        NigtRule {
            options: *self,
            scale: 0.0,
        }
    }
}

/// What makes a momentum as long as a step; 0 for one of zeros.
pub(super) fn scale_to(length: f64, squared_norm: f64) -> f64 {
    match squared_norm {
        0.0 => 0.0,
        other => length / other.sqrt(),
    }
}

impl Rule<1> for NigtRule {
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    /// The new momentum.
    #[inline(always)]
    fn term<V: Vector>(&self, g: V, [d]: [V; 1]) -> V {
        let share = if self.options.maximize {
            -self.options.eta
        } else {
            self.options.eta
        };
        d * (1.0 - self.options.eta) + g * share
    }

    fn knowing(self, squared_norm: f64) -> Self {
        NigtRule {
            scale: scale_to(self.options.lr, squared_norm),
            ..self
        }
    }

    #[inline(always)]
    fn update<V: Vector>(&self, z: V, g: V, [d]: [V; 1]) -> (V, [V; 1]) {
        let o = &self.options;
        let x = z * o.of_param + d * o.of_momentum;
        let d = self.term(g, [d]);
        // x moves by so much, and z as much further as the older gradients have a share in d.
        let back = d * self.scale + x * (o.lr * o.weight_decay);
        (x + back * (-1.0 / o.next_eta), [d])
    }
}
