//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2) and Adam (Kingma and Ba 2015, arXiv 1412.6980),
//! with AMSGrad (Reddi et al. 2018) as a variant with a third number of state. Bias corrections and the place of eps
//! are those of torch.optim.AdamW.

use super::terms::{Decay, bias_correction, moments};
use super::{BEGUN, Hyperparameters, Rule, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct AdamW {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        /// Decay the weights themselves (AdamW) rather than add the decay to the gradient (Adam).
        decoupled_weight_decay: bool,
        maximize: bool,
    }
}

hyperparameters! {
    /// [`AdamW`] that divides by the greatest second moment so far.
    pub struct AmsGrad(AdamW);
}

/// [`AdamW`] at a step: the bias corrections are worked out.
#[derive(Clone, Copy, Debug)]
pub struct AdamWRule {
    options: AdamW,
    decay: Decay,
    step_size: f64,
    inverse_sqrt_bias2: f64,
}

#[derive(Clone, Copy, Debug)]
pub struct AmsGradRule(AdamWRule);

impl Hyperparameters<2> for AdamW {
    type Rule = AdamWRule;

    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_avg_sq"];

    fn at_step(&self, step: f64) -> AdamWRule {
        AdamWRule {
            options: *self,
            decay: Decay {
                lr: self.lr,
                weight_decay: self.weight_decay,
                decoupled: self.decoupled_weight_decay,
                maximize: self.maximize,
            },
            step_size: self.lr / bias_correction(self.beta1, step),
            inverse_sqrt_bias2: 1.0 / bias_correction(self.beta2, step).sqrt(),
        }
    }
}

impl Hyperparameters<3> for AmsGrad {
    type Rule = AmsGradRule;

    const STATES: [&'static str; 3] = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_avg_sq", "max_exp_avg_sq"];

    fn at_step(&self, step: f64) -> AmsGradRule {
        AmsGradRule(self.0.at_step(step))
    }
}

impl AdamWRule {
    /// The decayed parameter and the new moments.
    #[inline(always)]
    fn moments<V: Vector>(&self, p: V, g: V, m: V, v: V) -> (V, V, V) {
        let o = &self.options;
        let (p, g) = self.decay.apply(p, g);
        let (m, v) = moments(m, v, g, o.beta1, o.beta2);
        (p, m, v)
    }

    #[inline(always)]
    fn descend<V: Vector>(&self, p: V, m: V, root: V) -> V {
        p + (m * -self.step_size) / (root * self.inverse_sqrt_bias2 + self.options.eps)
    }
}

impl Rule<2> for AdamWRule {
    const IN_16_BITS: bool = true;
    const IN_TWO_PARTS: bool = true;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, state: [V; 2]) -> (V, [V; 2]) {
        let (begun, state) = self.begin(p, g, state);
        (self.finish(begun), state)
    }

    #[inline(always)]
    fn begin<V: Vector>(&self, p: V, g: V, [m, v]: [V; 2]) -> ([V; BEGUN], [V; 2]) {
        let (p, m, v) = self.moments(p, g, m, v);
        ([p, m, v.sqrt()], [m, v])
    }

    #[inline(always)]
    fn finish<V: Vector>(&self, [p, m, root]: [V; BEGUN]) -> V {
        self.descend(p, m, root)
    }
}

impl Rule<3> for AmsGradRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, v, max_v]: [V; 3]) -> (V, [V; 3]) {
        let (p, m, v) = self.0.moments(p, g, m, v);
        let max_v = max_v.max(v);
        (self.0.descend(p, m, max_v.sqrt()), [m, v, max_v])
    }
}
