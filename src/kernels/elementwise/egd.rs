//! Exponentiated gradient descent: multiplication by the exponential of the step, which keeps signs (Kivinen and
//! Warmuth 1997; for weights of either sign Cornford et al. 2024, as in linclab/EG_optimiser). EG+-: the difference of
//! two such weights, whose product stays the same, by itself (Ghai, Hazan and Singer 2020, arXiv 1902.01903). The
//! direction is the gradient, its momentum or Adam's.

use super::terms::{AdamsDirection, moments};
use super::{Hyperparameters, Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;
use crate::kernels::vector::math::{Format, times_exp, times_expm1};

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
        /// Multiply two weights with this as twice the root of their product; 0 to multiply the parameter.
        hypentropy: f64,
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
    pub hypentropy: f64,
}

impl Descent {
    #[inline(always)]
    pub fn along<V: Vector>(&self, p: V, direction: V) -> V {
        if !self.multiplicative {
            return p * (1.0 - self.lr * self.weight_decay) + direction * -self.lr;
        }
        if self.hypentropy != 0.0 {
            return self.along_hypentropy(p, direction);
        }
        let against = p.if_less(V::splat(0.0), direction, -direction);
        multiplied(p, self.exponent(against), self.min_abs)
    }

    /// Of a step along what a weight is to grow with.
    #[inline(always)]
    fn exponent<V: Vector>(&self, growth: V) -> V {
        let exponent = growth * self.lr + -self.lr * self.weight_decay;
        if self.max_exponent == f64::INFINITY {
            return exponent;
        }
        // In this order a NaN stays.
        let exponent = V::splat(-self.max_exponent).max(exponent);
        V::splat(self.max_exponent).min(exponent)
    }

    /// The parameter's size is the greater less the lesser weight, and follows from how both change: what is small
    /// beside a weight is not lost.
    #[inline(always)]
    fn along_hypentropy<V: Vector>(&self, p: V, direction: V) -> V {
        let (zero, size) = (V::splat(0.0), p.abs());
        let squares = size * size + self.hypentropy * self.hypentropy;
        let sum = squares.if_less(V::splat(f64::INFINITY), squares.sqrt(), size);
        let greater = size * 0.5 + sum * 0.5;
        let lesser = V::splat(self.hypentropy * self.hypentropy / 4.0) / greater;
        let outward = p.if_less(zero, direction, -direction);
        let exponent = self.exponent(outward);
        let more = times_expm1(greater, exponent);
        let new = size + (more - times_expm1(lesser, self.exponent(-outward)));
        let new = p.if_less(zero, -new, new);
        let bound = V::splat(f64::INFINITY);
        if size.all_below(bound) {
            return new;
        }
        size.if_less(bound, new, infinite(p, exponent))
    }
}

/// `p * e^exponent`, or as small as a step may make `p`, which is not 0: that only a 0 is, whatever the exponent.
#[inline(always)]
pub fn multiplied<V: Vector>(p: V, exponent: V, min_abs: f64) -> V {
    let zero = V::splat(0.0);
    let new = times_exp(p, exponent);
    let floor = V::splat(min_abs.max(V::Lane::LEAST_NORMAL));
    if floor.all_below(new.abs()) {
        return new; // as what was 0 is not
    }
    let new = p
        .abs()
        .if_less(V::splat(f64::INFINITY), new, infinite(p, exponent));
    let least = floor.min(p.abs());
    let new = new.abs().if_less(least, p.if_less(zero, -least, least), new);
    zero.if_less(p.abs(), new, p)
}

/// What an infinite `p` becomes, of which formulas make NaN: it stays, by any exponent that is a number.
#[inline(always)]
fn infinite<V: Vector>(p: V, exponent: V) -> V {
    // In this order a NaN stays.
    p + V::splat(1.0).min(V::splat(-1.0).max(exponent))
}

impl Egd {
    fn descent(&self) -> Descent {
        Descent {
            lr: self.lr,
            weight_decay: self.weight_decay,
            max_exponent: self.max_exponent,
            min_abs: self.min_abs,
            multiplicative: self.multiplicative,
            hypentropy: self.hypentropy,
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
