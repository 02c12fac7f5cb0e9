//! AdaGrad-Norm (Ward, Wu and Bottou 2019, arXiv 1806.01811): one accumulator, of the squared norms of all gradients so
//! far, for all elements.

use super::{Hyperparameters, Rule, Summed, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct AdaGradNorm {
        lr: f64,
        eps: f64,
        weight_decay: f64,
        /// The squared norms of the gradients of earlier steps.
        accumulated: f64,
        maximize: bool,
    }
}

/// [`AdaGradNorm`] with the step size that follows from the norm.
#[derive(Clone, Copy, Debug)]
pub struct AdaGradNormRule {
    options: AdaGradNorm,
    step_size: f64,
}

impl Hyperparameters<0> for AdaGradNorm {
    type Rule = AdaGradNormRule;

    const STATES: [&'static str; 0] = [];
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> AdaGradNormRule {
        AdaGradNormRule {
            options: *self,
            step_size: 0.0,
        }
    }
}

impl Rule<0> for AdaGradNormRule {
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    fn knowing(self, squared_norm: f64) -> Self {
        let AdaGradNorm {
            lr,
            eps,
            accumulated,
            maximize,
            ..
        } = self.options;
        let step_size = lr / ((accumulated + squared_norm).sqrt() + eps);
        AdaGradNormRule {
            step_size: if maximize { -step_size } else { step_size },
            ..self
        }
    }

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, []: [V; 0]) -> (V, [V; 0]) {
        let decay = 1.0 - self.options.lr * self.options.weight_decay;
        (p * decay + g * -self.step_size, [])
    }
}
