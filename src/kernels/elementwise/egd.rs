//! Exponentiated gradient descent: multiplication by the exponential of the step, which keeps signs (Kivinen and
//! Warmuth 1997; for weights of either sign Cornford et al. 2024, as in linclab/EG_optimiser). The direction is the
//! gradient, its momentum or Adam's.

use super::terms::{AdamsDirection, moments};
use super::{Hyperparameters, Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;
use crate::kernels::vector::math::{Format, times_exp};

hyperparameters! {
    /// Along the gradient.
    pub struct Egd {
        lr: f64,
        momentum: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        /// Decoupled, times lr.
        weight_decay: f64,
        /// The greatest size of an exponent.
        max_exponent: f64,
        /// The size below which no step takes a parameter.
        min_abs: f64,
        /// Multiply by an exponential rather than subtract.
        multiplicative: bool,
        maximize: bool,
    }
}

hyperparameters! {
    /// [`Egd`] along a momentum.
    pub struct EgdMomentum(Egd);
}

hyperparameters! {
    /// [`Egd`] along Adam's direction.
    pub struct EgdAdam(Egd);
}

/// [`EgdAdam`] at a step.
#[derive(Clone, Copy, Debug)]
pub struct EgdAdamRule {
    options: Egd,
    direction: AdamsDirection,
}

/// A step along a direction, which has the sign of a gradient.
#[derive(Clone, Copy, Debug)]
pub struct Descent {
    pub lr: f64,
    pub weight_decay: f64,
    pub max_exponent: f64,
    pub min_abs: f64,
    pub multiplicative: bool,
}

impl Descent {
    #[inline(always)]
    pub fn along<V: Vector>(&self, p: V, direction: V) -> V {
        if !self.multiplicative {
            return p * (1.0 - self.lr * self.weight_decay) + direction * -self.lr;
        }
        let against = p.if_less(V::splat(0.0), direction, -direction);
        let exponent = against * self.lr + -self.lr * self.weight_decay;
        // In this order a NaN stays.
        let exponent = V::splat(-self.max_exponent).max(exponent);
        let exponent = V::splat(self.max_exponent).min(exponent);
        multiplied(p, exponent, self.min_abs)
    }
}

/// `p * e^exponent`, or as small as a step may make `p`, which is not 0: that only a 0 is, whatever the exponent.
#[inline(always)]
pub fn multiplied<V: Vector>(p: V, exponent: V, min_abs: f64) -> V {
    let zero = V::splat(0.0);
    let new = times_exp(p, exponent);
    let least = V::splat(min_abs.max(V::Lane::LEAST_NORMAL)).min(p.abs());
    let new = new.abs().if_less(least, p.if_less(zero, -least, least), new);
    zero.if_less(p.abs(), new, p)
}

impl Egd {
    fn descent(&self) -> Descent {
        Descent {
            lr: self.lr,
            weight_decay: self.weight_decay,
            max_exponent: self.max_exponent,
            min_abs: self.min_abs,
            multiplicative: self.multiplicative,
        }
    }

    #[inline(always)]
    fn downhill<V: Vector>(&self, g: V) -> V {
        if self.maximize { -g } else { g }
    }
}

impl Steady<0> for Egd {
    const STATES: [&'static str; 0] = [];
}

impl Rule<0> for Egd {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, []: [V; 0]) -> (V, [V; 0]) {
        (self.descent().along(p, self.downhill(g)), [])
    }
}

impl Steady<1> for EgdMomentum {
    const STATES: [&'static str; 1] = ["momentum_buffer"];
}

impl Rule<1> for EgdMomentum {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m]: [V; 1]) -> (V, [V; 1]) {
        let m = m * self.0.momentum + self.0.downhill(g);
        (self.0.descent().along(p, m), [m])
    }
}

impl Hyperparameters<2> for EgdAdam {
    type Rule = EgdAdamRule;

    const STATES: [&'static str; 2] = ["exp_avg", "exp_avg_sq"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_avg_sq"];

    fn at_step(&self, step: f64) -> EgdAdamRule {
        let Egd {
            beta1, beta2, eps, ..
        } = self.0;
        EgdAdamRule {
            options: self.0,
            direction: AdamsDirection::at_step(beta1, beta2, eps, step),
        }
    }
}

impl Rule<2> for EgdAdamRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, v]: [V; 2]) -> (V, [V; 2]) {
        let o = &self.options;
        let (m, v) = moments(m, v, o.downhill(g), o.beta1, o.beta2);
        (o.descent().along(p, self.direction.of(m, v)), [m, v])
    }
}
