//! Gradient descent with momentum (Polyak 1964; Nesterov's as Sutskever et al. 2013 have it), as torch.optim.SGD.

use super::terms::penalized;
use super::{Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    /// Without momentum.
    pub struct Sgd {
        lr: f64,
        momentum: f64,
        dampening: f64,
        weight_decay: f64,
        nesterov: bool,
        /// Begin with a momentum of 0 rather than with the first gradient.
        ema_init: bool,
        maximize: bool,
        /// The momentum has no past.
        begins: bool,
    }
}

hyperparameters! {
    /// [`Sgd`] with momentum.
    pub struct SgdMomentum(Sgd);
}

impl Steady<0> for Sgd {
    const STATES: [&'static str; 0] = [];
}

impl Steady<1> for SgdMomentum {
    const STATES: [&'static str; 1] = ["momentum_buffer"];
}

impl Rule<0> for Sgd {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, []: [V; 0]) -> (V, [V; 0]) {
        let g = penalized(p, g, self.weight_decay, self.maximize);
        (p + g * -self.lr, [])
    }
}

impl Rule<1> for SgdMomentum {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let o = &self.0;
        let g = penalized(p, g, o.weight_decay, o.maximize);
        let m = match o.begins && !o.ema_init {
            true => g,
            false => m * o.momentum + g * (1.0 - o.dampening),
        };
        let direction = if o.nesterov { g + m * o.momentum } else { m };
        (p + direction * -o.lr, [m])
    }
}
