//! RMSprop (Tieleman and Hinton 2012, lecture 6e), as torch.optim.RMSprop; centered, as Graves 2013 (arXiv 1308.0850,
//! equation 40).

use super::terms::penalized;
use super::{Rule, Steady, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    pub struct RMSprop {
        lr: f64,
        alpha: f64,
        eps: f64,
        weight_decay: f64,
        momentum: f64,
        /// Divide by the deviation from the mean gradient.
        centered: bool,
        maximize: bool,
    }
}

hyperparameters! {
    /// [`RMSprop`] with momentum.
    pub struct RMSpropMomentum(RMSprop);
}

hyperparameters! {
    /// [`RMSprop`], centered.
    pub struct RMSpropCentered(RMSprop);
}

hyperparameters! {
    /// [`RMSpropCentered`] with momentum.
    pub struct RMSpropCenteredMomentum(RMSprop);
}

impl Steady<1> for RMSprop {
    const STATES: [&'static str; 1] = ["square_avg"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["square_avg"];
}

impl Steady<2> for RMSpropMomentum {
    const STATES: [&'static str; 2] = ["square_avg", "momentum_buffer"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["square_avg"];
}

impl Steady<2> for RMSpropCentered {
    const STATES: [&'static str; 2] = ["square_avg", "grad_avg"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["square_avg"];
}

impl Steady<3> for RMSpropCenteredMomentum {
    const STATES: [&'static str; 3] = ["square_avg", "momentum_buffer", "grad_avg"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["square_avg"];
}

impl RMSprop {
    /// The new parameter, square average, momentum and mean gradient; momentum and mean are 0 in rules without.
    #[inline(always)]
    fn step<V: Vector>(&self, p: V, g: V, square: V, m: V, mean: V) -> (V, V, V, V) {
        let g = penalized(p, g, self.weight_decay, self.maximize);
        let square = square * self.alpha + g * (1.0 - self.alpha) * g;
        let mean = mean * self.alpha + g * (1.0 - self.alpha);
        let variance = match self.centered {
            true => V::splat(0.0).max(square - mean * mean), // negative by rounding only; in this order a NaN stays
            false => square,
        };
        let m = m * self.momentum + g / (variance.sqrt() + self.eps);
        (p + m * -self.lr, square, m, mean)
    }
}

impl Rule<1> for RMSprop {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [square]: [V; 1]) -> (V, [V; 1]) {
        let (p, square, ..) = self.step(p, g, square, V::splat(0.0), V::splat(0.0));
        (p, [square])
    }
}

impl Rule<2> for RMSpropMomentum {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [square, m]: [V; 2]) -> (V, [V; 2]) {
        let (p, square, m, _) = self.0.step(p, g, square, m, V::splat(0.0));
        (p, [square, m])
    }
}

impl Rule<2> for RMSpropCentered {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [square, mean]: [V; 2]) -> (V, [V; 2]) {
        let (p, square, _, mean) = self.0.step(p, g, square, V::splat(0.0), mean);
        (p, [square, mean])
    }
}

impl Rule<3> for RMSpropCenteredMomentum {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [square, m, mean]: [V; 3]) -> (V, [V; 3]) {
        let (p, square, m, mean) = self.0.step(p, g, square, m, mean);
        (p, [square, m, mean])
    }
}
