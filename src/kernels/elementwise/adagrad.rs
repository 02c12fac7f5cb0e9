//! Adagrad (Duchi, Hazan and Singer 2011, JMLR 12, the diagonal form), as torch.optim.Adagrad.

use super::terms::penalized;
use super::{Hyperparameters, Rule, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct Adagrad {
        lr: f64,
        lr_decay: f64,
        weight_decay: f64,
        eps: f64,
        maximize: bool,
    }
}

/// [`Adagrad`] at a step, whose rate is worked out.
#[derive(Clone, Copy, Debug)]
pub struct AdagradRule {
    options: Adagrad,
    step_size: f64,
}

impl Hyperparameters<1> for Adagrad {
    type Rule = AdagradRule;

    const STATES: [&'static str; 1] = ["sum"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["sum"];

    fn at_step(&self, step: f64) -> AdagradRule {
        AdagradRule {
            options: *self,
            step_size: self.lr / (1.0 + (step - 1.0) * self.lr_decay),
        }
    }
}

impl Rule<1> for AdagradRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [sum]: [V; 1]) -> (V, [V; 1]) {
        let o = &self.options;
        let g = penalized(p, g, o.weight_decay, o.maximize);
        let sum = sum + g * g;
        (p + (g * -self.step_size) / (sum.sqrt() + o.eps), [sum])
    }
}
