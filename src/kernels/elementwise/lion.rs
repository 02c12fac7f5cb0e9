//! Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, Algorithm 2).

use super::{Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct Lion {
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        maximize: bool,
    }
}

impl Steady<1> for Lion {
    const STATES: [&'static str; 1] = ["exp_avg"];
}

impl Rule<1> for Lion {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let g = if self.maximize { -g } else { g };
        let u = (m * self.beta1 + g * (1.0 - self.beta1)).sign();
        let p = p * (1.0 - self.lr * self.weight_decay) + u * -self.lr;
        (p, [m * self.beta2 + g * (1.0 - self.beta2)])
    }
}
