//! Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675, Algorithm 2). Lion-K: another
//! gradient of a convex function in the place of the sign (Chen et al. 2024, arXiv 2310.05898).

use super::{Hyperparameters, Rule, Steady, Summed, hyperparameters};
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
    /// The signs of so many elements, the largest.
    pub struct LionTopK(LionK);
}

hyperparameters! {
    /// The interpolated momentum itself.
    pub struct LionIdentity(Lion);
}

pub const STATES: [&str; 1] = ["exp_avg"];

/// What takes the place of the sign, with what it has to know of the interpolated momentum `u`: see [`Rule`].
pub trait Kappa: Copy + Send + Sync + 'static {
    const IN_16_BITS: bool = false;
    const SUMMED: Option<Summed> = None;
    const BY_ROW: bool = false;
    const TAKES_LARGEST: bool = false;

    fn options(&self) -> Lion;

    fn gradient<V: Vector>(&self, u: V) -> V;

    fn term<V: Vector>(&self, u: V) -> V {
        u
    }

    fn power(&self) -> u32 {
        1
    }

    fn knowing(self, _sum: f64) -> Self {
        self
    }

    fn taken(&self) -> usize {
        0
    }

    fn taking_above(self, _size: f64) -> Self {
        self
    }
}

impl Lion {
    /// The gradient of what is to become less.
    #[inline(always)]
    fn oriented<V: Vector>(&self, g: V) -> V {
        if self.maximize { -g } else { g }
    }

    #[inline(always)]
    fn interpolated<V: Vector>(&self, m: V, g: V) -> V {
        m * self.beta1 + g * (1.0 - self.beta1)
    }
}

impl LionK {
    pub fn options(&self) -> Lion {
        Lion {
            lr: self.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            weight_decay: self.weight_decay,
            maximize: self.maximize,
        }
    }
}

impl<K: Kappa> Rule<1> for K {
    const IN_16_BITS: bool = K::IN_16_BITS;
    const SUMMED: Option<Summed> = K::SUMMED;
    const BY_ROW: bool = K::BY_ROW;
    const TAKES_LARGEST: bool = K::TAKES_LARGEST;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let o = self.options();
        let g = o.oriented(g);
        let u = self.gradient(o.interpolated(m, g));
        let p = p * (1.0 - o.lr * o.weight_decay) + u * -o.lr;
        (p, [m * o.beta2 + g * (1.0 - o.beta2)])
    }

    #[inline(always)]
    fn term<V: Vector>(&self, g: V, [m]: [V; 1]) -> V {
        let o = self.options();
        Kappa::term(self, o.interpolated(m, o.oriented(g)))
    }

    fn power(&self) -> u32 {
        Kappa::power(self)
    }

    fn knowing(self, sum: f64) -> Self {
        Kappa::knowing(self, sum)
    }

    fn taken(&self) -> usize {
        Kappa::taken(self)
    }

    fn taking_above(self, size: f64) -> Self {
        Kappa::taking_above(self, size)
    }
}

impl Steady<1> for Lion {
    const STATES: [&'static str; 1] = STATES;
}

impl Kappa for Lion {
    const IN_16_BITS: bool = true;

    fn options(&self) -> Lion {
        *self
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        u.sign()
    }
}

impl Steady<1> for LionDeadZone {
    const STATES: [&'static str; 1] = STATES;
}

impl Kappa for LionDeadZone {
    fn options(&self) -> Lion {
        self.0.options()
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        sign_beyond(self.0.kappa_param, u)
    }
}

#[inline(always)]
fn sign_beyond<V: Vector>(threshold: f64, u: V) -> V {
    V::splat(threshold).if_less(u.abs(), u.sign(), V::splat(0.0))
}

/// [`LionTopK`] with the size that is no longer taken.
#[derive(Clone, Copy, Debug)]
pub struct LionTopKRule {
    options: LionK,
    limit: f64,
}

impl Hyperparameters<1> for LionTopK {
    type Rule = LionTopKRule;

    const STATES: [&'static str; 1] = STATES;
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> LionTopKRule {
        LionTopKRule {
            options: self.0,
            limit: 0.0,
        }
    }
}

impl Kappa for LionTopKRule {
    const TAKES_LARGEST: bool = true;

    fn options(&self) -> Lion {
        self.options.options()
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        sign_beyond(self.limit, u)
    }

    fn taken(&self) -> usize {
        self.options.kappa_param as usize
    }

    fn taking_above(self, limit: f64) -> Self {
        LionTopKRule { limit, ..self }
    }
}

impl Steady<1> for LionHuber {
    const STATES: [&'static str; 1] = STATES;
}

impl Kappa for LionHuber {
    fn options(&self) -> Lion {
        self.0.options()
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        // NaN is the second of both, hence stays one.
        V::splat(-1.0).max(V::splat(1.0).min(u * (1.0 / self.0.kappa_param)))
    }
}

impl Steady<1> for LionIdentity {
    const STATES: [&'static str; 1] = STATES;
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
