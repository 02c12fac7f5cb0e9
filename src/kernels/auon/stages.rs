//! The element-wise stages of an AuON step.

use super::Direction;
use crate::kernels::elementwise::Rule;
use crate::kernels::vector::Vector;

impl Direction {
    /// What multiplies a gradient.
    pub fn share(&self) -> f64 {
        let share = 1.0 - self.momentum;
        if self.maximize { -share } else { share }
    }
}

/// The momentum. State: the momentum; the parameter is left alone.
#[derive(Clone, Copy, Debug)]
pub struct Ema(pub Direction);

impl Rule<1> for Ema {
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        (p, [m * self.0.momentum + g * self.0.share()])
    }
}

/// The step along the direction of the new momentum. State: the momentum, only read.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub direction: Direction,
    pub decay: f64,
    /// Multiplies the direction, then `scale` does: by both at once, the factor could leave the range of f32.
    pub power: f64,
    pub scale: f64,
}

impl Rule<1> for Step {
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let u = match self.direction.nesterov {
            true => m * self.direction.momentum + g * self.direction.share(),
            false => m,
        };
        (p * (1.0 - self.decay) + u * self.power * -self.scale, [m])
    }
}
