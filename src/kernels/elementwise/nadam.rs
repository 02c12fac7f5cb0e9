//! NAdam: Adam with Nesterov's momentum (Dozat 2016, Algorithm 2), with torch.optim.NAdam's schedule of the momentum,
//! which is Dozat's with a rate to choose.

use super::terms::{Decay, bias_correction, moments};
use super::{Hyperparameters, Rule, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct NAdam {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        /// How fast the momentum grows, from half of beta1 to beta1.
        momentum_decay: f64,
        /// Decay the weights themselves rather than add the decay to the gradient.
        decoupled_weight_decay: bool,
        maximize: bool,
    }
}

/// [`NAdam`] at a step: the corrections and the shares of gradient and average are worked out.
#[derive(Clone, Copy, Debug)]
pub struct NAdamRule {
    options: NAdam,
    decay: Decay,
    of_grad: f64,
    of_average: f64,
    next_momentum: f64,
    inverse_sqrt_bias2: f64,
}

impl NAdam {
    /// That of a step.
    fn momentum(&self, step: f64) -> f64 {
        self.beta1 * (1.0 - 0.5 * 0.96_f64.powf(step * self.momentum_decay))
    }
}

impl Hyperparameters<2> for NAdam {
    type Rule = NAdamRule;

    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_avg_sq"];
    const PRODUCT: Option<&'static str> = Some("mu_product");

    fn at_step(&self, step: f64) -> NAdamRule {
        let next_momentum = self.momentum(step + 1.0);
        NAdamRule {
            options: *self,
            decay: Decay {
                lr: self.lr,
                weight_decay: self.weight_decay,
                decoupled: self.decoupled_weight_decay,
                maximize: self.maximize,
            },
            of_grad: self.lr * (1.0 - self.momentum(step)),
            of_average: self.lr * next_momentum,
            next_momentum,
            inverse_sqrt_bias2: 1.0 / bias_correction(self.beta2, step).sqrt(),
        }
    }

    fn factor(&self, step: f64) -> f64 {
        self.momentum(step)
    }

    fn with_product(rule: NAdamRule, product: f64) -> NAdamRule {
        NAdamRule {
            of_grad: rule.of_grad / (1.0 - product),
            of_average: rule.of_average / (1.0 - product * rule.next_momentum),
            ..rule
        }
    }
}

impl Rule<2> for NAdamRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, v]: [V; 2]) -> (V, [V; 2]) {
        let o = &self.options;
        let (p, g) = self.decay.apply(p, g);
        let (m, v) = moments(m, v, g, o.beta1, o.beta2);
        let ahead = g * -self.of_grad + m * -self.of_average;
        (p + ahead / (v.sqrt() * self.inverse_sqrt_bias2 + o.eps), [m, v])
    }
}
