//! A linear combination of the parameter and what comes as its gradient.

use super::{Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct Blend {
        of_param: f64,
        of_grad: f64,
    }
}

impl Steady<0> for Blend {
    const STATES: [&'static str; 0] = [];
}

impl Rule<0> for Blend {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, []: [V; 0]) -> (V, [V; 0]) {
        (p * self.of_param + g * self.of_grad, [])
    }
}
