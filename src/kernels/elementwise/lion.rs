//! Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, Algorithm 2).

use super::{Hyperparameters, Rule};
use crate::kernels::vector::Vector;

#[derive(Clone, Copy, Debug)]
pub struct Lion {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub maximize: bool,
}

impl Hyperparameters<1> for Lion {
    type Rule = Lion;

    fn at_step(&self, _step: f64) -> Lion {
        *self
    }
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
