//! Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, Algorithm 2). Lion-K: another
//! gradient of a convex function in the place of the sign (Chen et al. 2024, arXiv 2310.05898).

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

hyperparameters! {
    /// Lion-K with a number that the convex function depends on.
    pub struct LionK {
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        kappa_param: f64,
        maximize: bool,
    }
}

hyperparameters! {
    /// The sign of elements beyond a threshold.
    pub struct LionDeadZone(LionK);
}

hyperparameters! {
    /// Elements in units of a bound, to which they are clipped.
    pub struct LionHuber(LionK);
}

hyperparameters! {
    /// The interpolated momentum itself.
    pub struct LionIdentity(Lion);
}

/// What takes the place of the sign.
trait Kappa: Copy + Send + Sync + 'static {
    fn options(&self) -> Lion;
    fn gradient<V: Vector>(&self, u: V) -> V;
}

impl LionK {
    fn options(&self) -> Lion {
        let &LionK {
            lr,
            beta1,
            beta2,
            weight_decay,
            maximize,
            ..
        } = self;
        Lion {
            lr,
            beta1,
            beta2,
            weight_decay,
            maximize,
        }
    }
}

impl Kappa for Lion {
    fn options(&self) -> Lion {
        *self
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        u.sign()
    }
}

impl Kappa for LionDeadZone {
    fn options(&self) -> Lion {
        self.0.options()
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        V::splat(self.0.kappa_param).if_less(u.abs(), u.sign(), V::splat(0.0))
    }
}

impl Kappa for LionHuber {
    fn options(&self) -> Lion {
        self.0.options()
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        // NaN is the second of both, hence stays one.
        let clipped = V::splat(-self.0.kappa_param).max(V::splat(self.0.kappa_param).min(u));
        clipped * (1.0 / self.0.kappa_param)
    }
}

impl Kappa for LionIdentity {
    fn options(&self) -> Lion {
        self.0
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        u
    }
}

impl<K: Kappa> Steady<1> for K {
    const STATES: [&'static str; 1] = ["exp_avg"];
}

impl<K: Kappa> Rule<1> for K {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let o = self.options();
        let g = if o.maximize { -g } else { g };
        let u = self.gradient(m * o.beta1 + g * (1.0 - o.beta1));
        let p = p * (1.0 - o.lr * o.weight_decay) + u * -o.lr;
        (p, [m * o.beta2 + g * (1.0 - o.beta2)])
    }
}
