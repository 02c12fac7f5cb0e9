//! Adamax (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 2), with eps where torch.optim.Adamax has it: beside the
//! gradient's size.

use super::terms::{bias_correction, penalized};
use super::{Hyperparameters, Rule, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct Adamax {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        maximize: bool,
    }
}

/// [`Adamax`] at a step: the bias correction is worked out.
#[derive(Clone, Copy, Debug)]
pub struct AdamaxRule {
    options: Adamax,
    step_size: f64,
}

impl Hyperparameters<2> for Adamax {
    type Rule = AdamaxRule;

    const STATES: [&'static str; 2] = ["exp_avg", "exp_inf"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_inf"];

    fn at_step(&self, step: f64) -> AdamaxRule {
        AdamaxRule {
            options: *self,
            step_size: self.lr / bias_correction(self.beta1, step),
        }
    }
}

impl Rule<2> for AdamaxRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, u]: [V; 2]) -> (V, [V; 2]) {
        let o = &self.options;
        let g = penalized(p, g, o.weight_decay, o.maximize);
        let m = m * o.beta1 + g * (1.0 - o.beta1);
        let u = greater(u * o.beta2, g.abs() + o.eps);
        (p + (m * -self.step_size) / u, [m, u])
    }
}

/// The greater of two numbers of at least 0; NaN where either is.
#[inline(always)]
fn greater<V: Vector>(a: V, b: V) -> V {
    // Each order keeps the NaN of its last, and what is NaN is not greater than -1.
    let or_nan_of_b = a.max(b);
    V::splat(-1.0).if_less(or_nan_of_b, b.max(a), or_nan_of_b)
}
