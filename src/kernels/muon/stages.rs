//! The element-wise stages of a Muon step.

use crate::kernels::elementwise::Rule;
use crate::kernels::vector::Vector;

/// The momentum, and the direction that follows from it. State: momentum, direction; the parameter is left alone.
#[derive(Clone, Copy, Debug)]
pub struct Momentum {
    pub momentum: f64,
    pub nesterov: bool,
    pub maximize: bool,
}

impl Rule<2> for Momentum {
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, _]: [V; 2]) -> (V, [V; 2]) {
        let g = if self.maximize { -g } else { g };
        let fresh = g * (1.0 - self.momentum);
        let m = m * self.momentum + fresh;
        let u = if self.nesterov {
            m * self.momentum + fresh
        } else {
            m
        };
        (p, [m, u])
    }
}

/// The step along an orthogonalized direction. State: the direction, only read; so is the gradient, not at all.
#[derive(Clone, Copy, Debug)]
pub struct Apply {
    pub decay: f64,
    /// Decay only elements that the step does not move away from zero.
    pub cautious: bool,
    pub step: f64,
}

impl Rule<1> for Apply {
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, _: V, [o]: [V; 1]) -> (V, [V; 1]) {
        let decayed = if self.cautious {
            let agree = p.sign() * o.sign(); // -1, 0 or 1
            let opposed = (-agree).max(V::splat(0.0));
            p - p * ((V::splat(1.0) - opposed) * self.decay)
        } else {
            p * (1.0 - self.decay)
        };
        (decayed + o * -self.step, [o])
    }
}
