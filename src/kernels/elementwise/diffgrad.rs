//! diffGrad: Adam with each element's step scaled by how much its gradient has changed (Dubey et al. 2019,
//! arXiv 1909.11015, Algorithm 1). As in the authors' code, eps is added before the correction of the second moment.

use super::terms::{Decay, bias_correction, moments};
use super::{Hyperparameters, Rule, hyperparameters};
use crate::kernels::vector::Vector;
use crate::kernels::vector::math::exp;

hyperparameters! {
    pub struct DiffGrad {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        /// Decay the weights themselves rather than add the decay to the gradient.
        decoupled_weight_decay: bool,
        maximize: bool,
    }
}

/// [`DiffGrad`] at a step: the bias corrections are worked out.
#[derive(Clone, Copy, Debug)]
pub struct DiffGradRule {
    options: DiffGrad,
    decay: Decay,
    step_size: f64,
}

impl Hyperparameters<3> for DiffGrad {
    type Rule = DiffGradRule;

    const STATES: [&'static str; 3] = ["exp_avg", "exp_avg_sq", "previous_grad"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_avg_sq"];

    fn at_step(&self, step: f64) -> DiffGradRule {
        DiffGradRule {
            options: *self,
            decay: Decay {
                lr: self.lr,
                weight_decay: self.weight_decay,
                decoupled: self.decoupled_weight_decay,
                maximize: self.maximize,
            },
            step_size: self.lr * bias_correction(self.beta2, step).sqrt() / bias_correction(self.beta1, step),
        }
    }
}

impl Rule<3> for DiffGradRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, v, previous]: [V; 3]) -> (V, [V; 3]) {
        let o = &self.options;
        let (p, g) = self.decay.apply(p, g);
        let (m, v) = moments(m, v, g, o.beta1, o.beta2);
        // The inverse of the friction coefficient: with it, one division does for both.
        let slowing = exp(-(previous - g).abs()) + 1.0;
        (
            p + (m * -self.step_size) / (slowing * (v.sqrt() + o.eps)),
            [m, v, g],
        )
    }
}
