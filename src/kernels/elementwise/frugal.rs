//! What FRUGAL (Zmushko et al. 2024, arXiv 2411.07837) does with elements beside AdamW and Lion: steps without state, and
//! an averaged gradient. Weights decay by themselves.

use super::{Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    /// The sign of the gradient (Bernstein et al. 2018).
    pub struct SignDescent {
        lr: f64,
        weight_decay: f64,
        maximize: bool,
    }
}

hyperparameters! {
    /// The gradient itself.
    pub struct Descent {
        lr: f64,
        weight_decay: f64,
        maximize: bool,
    }
}

hyperparameters! {
    /// No step.
    pub struct OnlyDecay {
        lr: f64,
        weight_decay: f64,
    }
}

hyperparameters! {
    /// An average of gradients (FRUGAL's Algorithm 2).
    pub struct AveragedDescent {
        lr: f64,
        beta1: f64,
        weight_decay: f64,
        maximize: bool,
    }
}

impl Steady<0> for SignDescent {
    const STATES: [&'static str; 0] = [];
}

impl Steady<0> for Descent {
    const STATES: [&'static str; 0] = [];
}

impl Steady<0> for OnlyDecay {
    const STATES: [&'static str; 0] = [];
}

impl Steady<1> for AveragedDescent {
    const STATES: [&'static str; 1] = ["exp_avg"];
}

/// The learning rate with the sign that leads downwards.
fn signed(lr: f64, maximize: bool) -> f64 {
    if maximize { lr } else { -lr }
}

impl Rule<0> for SignDescent {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, []: [V; 0]) -> (V, [V; 0]) {
        let decayed = p * (1.0 - self.lr * self.weight_decay);
        (decayed + g.sign() * signed(self.lr, self.maximize), [])
    }
}

impl Rule<0> for Descent {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, []: [V; 0]) -> (V, [V; 0]) {
        let decayed = p * (1.0 - self.lr * self.weight_decay);
        (decayed + g * signed(self.lr, self.maximize), [])
    }
}

impl Rule<0> for OnlyDecay {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, _: V, []: [V; 0]) -> (V, [V; 0]) {
        (p * (1.0 - self.lr * self.weight_decay), [])
    }
}

impl Rule<1> for AveragedDescent {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let m = m * self.beta1 + g * (1.0 - self.beta1);
        let decayed = p * (1.0 - self.lr * self.weight_decay);
        (decayed + m * signed(self.lr, self.maximize), [m])
    }
}
