//! RAdam: Adam whose steps are rectified for the variance of the second moment (Liu et al. 2020, arXiv 1908.03265,
//! Algorithm 2), with torch.optim.RAdam's place of eps and its 5 for the threshold.

use super::terms::{Decay, bias_correction, moments};
use super::{Hyperparameters, Rule, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct RAdam {
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

/// [`RAdam`] at a step.
#[derive(Clone, Copy, Debug)]
pub struct RAdamRule {
    options: RAdam,
    decay: Decay,
    step_size: f64,
    /// Whether there are enough second moments to divide by.
    is_adaptive: bool,
}

impl Hyperparameters<2> for RAdam {
    type Rule = RAdamRule;

    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_avg_sq"];

    fn at_step(&self, step: f64) -> RAdamRule {
        let bias2 = bias_correction(self.beta2, step);
        let longest = 2.0 / (1.0 - self.beta2) - 1.0;
        let length = longest - 2.0 * step * (1.0 - bias2) / bias2;
        let is_adaptive = length > 5.0;
        let of_length = |rho: f64| (rho - 4.0) * (rho - 2.0) / rho;
        let rectification = (of_length(length) / of_length(longest) * bias2).sqrt();
        RAdamRule {
            options: *self,
            decay: Decay {
                lr: self.lr,
                weight_decay: self.weight_decay,
                decoupled: self.decoupled_weight_decay,
                maximize: self.maximize,
            },
            step_size: self.lr / bias_correction(self.beta1, step)
                * if is_adaptive { rectification } else { 1.0 },
            is_adaptive,
        }
    }
}

impl Rule<2> for RAdamRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, v]: [V; 2]) -> (V, [V; 2]) {
        let o = &self.options;
        let (p, g) = self.decay.apply(p, g);
        let (m, v) = moments(m, v, g, o.beta1, o.beta2);
        let step = m * -self.step_size;
        let step = if self.is_adaptive {
            step / (v.sqrt() + o.eps)
        } else {
            step
        };
        (p + step, [m, v])
    }
}
