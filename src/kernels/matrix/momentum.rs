//! The first stage of a step: the momentum takes the gradient in, and gives the direction.

use crate::kernels::elementwise::Rule;
use crate::kernels::vector::Vector;

/// An exponential moving average of gradients, `m <- momentum m + (1 - momentum) g`, and the direction that follows:
/// `momentum m + (1 - momentum) g` with Nesterov's, otherwise m itself.
#[derive(Clone, Copy, Debug)]
pub struct Momentum {
    pub momentum: f64,
    pub nesterov: bool,
    pub maximize: bool,
    /// Multiplies the gradient.
    pub scale: f64,
}

impl Momentum {
    /// What multiplies a gradient.
    pub fn share(&self) -> f64 {
        let share = (1.0 - self.momentum) * self.scale;
        if self.maximize { -share } else { share }
    }

    /// The new momentum.
    #[inline(always)]
    pub fn blend<V: Vector>(&self, m: V, g: V) -> V {
        m * self.momentum + g * self.share()
    }

    /// The direction from the new momentum and the gradient.
    #[inline(always)]
    pub fn direction<V: Vector>(&self, m: V, g: V) -> V {
        if self.nesterov { self.blend(m, g) } else { m }
    }
}

/// State: the momentum; the parameter is left alone.
impl Rule<1> for Momentum {
    const IN_16_BITS: bool = true;
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        (p, [self.blend(m, g)])
    }
}

/// State: the momentum, the direction that is written out; the parameter is left alone.
impl Rule<2> for Momentum {
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, _]: [V; 2]) -> (V, [V; 2]) {
        let m = self.blend(m, g);
        (p, [m, self.direction(m, g)])
    }
}
