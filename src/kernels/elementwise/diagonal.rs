//! Running averages of estimates of the Hessian's diagonal: `h <- beta2 h + (1 - beta2) d`, where the estimate `d` is
//! the square of a gradient at sampled labels (Gauss-Newton-Bartlett), the product of a probe with the Hessian's product
//! with it (Hutchinson), or given (arXiv 2305.14342, Algorithms 1 and 2).

use super::{Hyperparameters, Rule};
use crate::kernels::vector::Vector;

#[derive(Clone, Copy, Debug)]
pub struct Average {
    pub beta2: f64,
    /// Multiplies the estimate, or the gradient before it is squared.
    pub scale: f64,
    /// Leave an element as it is where its new value would be NaN or infinite.
    pub skip_nonfinite: bool,
}

/// The gradient squared; state: the average. The parameter is not touched.
#[derive(Clone, Copy, Debug)]
pub struct Square(pub Average);

/// The gradient (the Hessian's product with the probe) times the probe; state: the average, the probe. The parameter
/// is not touched.
#[derive(Clone, Copy, Debug)]
pub struct Product(pub Average);

/// The gradient itself; the parameter is the average.
#[derive(Clone, Copy, Debug)]
pub struct Estimate(pub Average);

impl Average {
    #[inline(always)]
    fn blend<V: Vector>(&self, h: V, d: V) -> V {
        let new = h * self.beta2 + d * (1.0 - self.beta2);
        if self.skip_nonfinite {
            new.finite_or(h)
        } else {
            new
        }
    }
}

macro_rules! hyperparameters {
    ($($rule:ident: $states:literal),*) => {
        $(impl Hyperparameters<$states> for $rule {
            type Rule = $rule;

            fn at_step(&self, _step: f64) -> $rule {
                *self
            }
        })*
    };
}

hyperparameters! { Square: 1, Product: 2, Estimate: 0 }

impl Rule<1> for Square {
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [h]: [V; 1]) -> (V, [V; 1]) {
        let g = g * self.0.scale;
        (p, [self.0.blend(h, g * g)])
    }
}

impl Rule<2> for Product {
    const WRITES_PARAM: bool = false;
    const WRITES_STATES: usize = 1;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, product: V, [h, probe]: [V; 2]) -> (V, [V; 2]) {
        (p, [self.0.blend(h, probe * product * self.0.scale), probe])
    }
}

impl Rule<0> for Estimate {
    #[inline(always)]
    fn update<V: Vector>(&self, h: V, d: V, []: [V; 0]) -> (V, [V; 0]) {
        (self.0.blend(h, d * self.0.scale), [])
    }
}
