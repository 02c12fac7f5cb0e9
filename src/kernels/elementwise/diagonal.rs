//! Running averages of estimates of the Hessian's diagonal: `h <- beta2 h + (1 - beta2) d`, where the estimate `d` is
//! the square of a gradient at sampled labels (Gauss-Newton-Bartlett), the product of a probe with the Hessian's product
//! with it (Hutchinson), or given (arXiv 2305.14342, Algorithms 1 and 2).

use super::{Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct Average {
        beta2: f64,
        /// Multiplies the estimate, or the gradient before it is squared.
        scale: f64,
        /// Leave an element as it is where its new value would be NaN or infinite.
        skip_nonfinite: bool,
    }
}

hyperparameters! {
    /// The gradient squared. The parameter is not touched.
    pub struct HessianSquare(Average);
}

hyperparameters! {
    /// The gradient (the Hessian's product with the probe) times the probe. The parameter is not touched.
    pub struct HessianProduct(Average);
}

hyperparameters! {
    /// The gradient itself. The parameter is not touched.
    pub struct HessianEstimate(Average);
}

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

impl Steady<1> for HessianSquare {
    const STATES: [&'static str; 1] = ["hessian"];
}

impl Steady<2> for HessianProduct {
    const STATES: [&'static str; 2] = ["hessian", "probe"];
}

impl Steady<1> for HessianEstimate {
    const STATES: [&'static str; 1] = ["hessian"];
}

impl Rule<1> for HessianSquare {
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [h]: [V; 1]) -> (V, [V; 1]) {
        let g = g * self.0.scale;
        (p, [self.0.blend(h, g * g)])
    }
}

impl Rule<2> for HessianProduct {
    const WRITES_PARAM: bool = false;
    const WRITES_STATES: usize = 1;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, product: V, [h, probe]: [V; 2]) -> (V, [V; 2]) {
        (p, [self.0.blend(h, probe * product * self.0.scale), probe])
    }
}

impl Rule<1> for HessianEstimate {
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, d: V, [h]: [V; 1]) -> (V, [V; 1]) {
        (p, [self.0.blend(h, d * self.0.scale)])
    }
}
