//! Sophia: a momentum divided by a running estimate of the Hessian's diagonal, clipped (Liu et al. 2023,
//! arXiv 2305.14342, Algorithm 3). The estimate is refreshed by the rules of [`super::diagonal`].

use super::{Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    /// The hessian is only read. Counts the elements that are not clipped.
    pub struct Sophia {
        lr: f64,
        beta1: f64,
        weight_decay: f64,
        /// Multiplies the Hessian estimate: gamma, or rho times the batch size.
        scale: f64,
        eps: f64,
        /// Add eps to the denominator (the authors' SophiaG) rather than keep the denominator above it (the paper).
        add_eps: bool,
        maximize: bool,
    }
}

impl Steady<2> for Sophia {
    const STATES: [&'static str; 2] = ["exp_avg", "hessian"];
}

impl Rule<2> for Sophia {
    const IN_16_BITS: bool = true;
    const WRITES_STATES: usize = 1;
    const COUNTS: bool = true;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, h]: [V; 2]) -> (V, [V; 2]) {
        let g = if self.maximize { -g } else { g };
        let m = m * self.beta1 + g * (1.0 - self.beta1);
        let curvature = h * self.scale;
        let denominator = match self.add_eps {
            true => curvature + self.eps,
            false => V::splat(self.eps).max(curvature), // in this order a NaN stays
        };
        let p = p * (1.0 - self.lr * self.weight_decay) + clip(m / denominator) * -self.lr;
        (p, [m, h])
    }

    #[inline(always)]
    fn count<V: Vector>(&self, [m, h]: [V; 2]) -> u32 {
        m.max(-m).count_below(h * self.scale)
    }
}

/// The nearest number from -1 to 1; NaN stays NaN.
#[inline(always)]
fn clip<V: Vector>(x: V) -> V {
    let minus_one = V::splat(-1.0);
    let above = minus_one.max(x);
    -minus_one.max(-above)
}
