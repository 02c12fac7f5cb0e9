//! Optimistic descent: the direction is foretold by how it last changed (Rakhlin and Sridharan 2013; as optimistic
//! mirror descent arXiv 2302.04552, as optimistic Adam arXiv 1711.00141).

use super::ball::Ball;
use super::egd::Descent;
use super::terms::{AdamsDirection, moments};
use super::{Hyperparameters, Rule, Summed, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    /// Along `g + optimism * (g - prev_grad)`.
    pub struct OptimisticMd {
        lr: f64,
        optimism: f64,
        weight_decay: f64,
        /// Take the first gradient for the one before it, too, and not 0.
        hint_is_gradient: bool,
        /// Multiply by an exponential rather than subtract.
        multiplicative: bool,
        /// Of the ball that the tensor stays in; infinite for none.
        radius: f64,
        maximize: bool,
    }
}

hyperparameters! {
    /// With a rate that falls as the gradients' variation grows, and is another one for the hint than for the gradient.
    pub struct OptimisticMdAdaptive {
        lr: f64,
        optimism: f64,
        weight_decay: f64,
        /// As of [`OptimisticMd`].
        hint_is_gradient: bool,
        /// The squared norms of the gradients' changes before this step's.
        accumulated: f64,
        begins: bool,
        /// As of [`OptimisticMd`].
        radius: f64,
        maximize: bool,
    }
}

hyperparameters! {
    /// Along `r + optimism * (r - prev_direction)` with Adam's direction r.
    pub struct OptimisticAdam {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        optimism: f64,
        maximize: bool,
    }
}

/// [`OptimisticMd`] at a step.
#[derive(Clone, Copy, Debug)]
pub struct OptimisticMdRule {
    descent: Descent,
    /// 0 where there is nothing to foretell from.
    optimism: f64,
    ball: Ball,
    maximize: bool,
}

/// [`OptimisticMdAdaptive`] with the rates of this step and the next.
#[derive(Clone, Copy, Debug)]
pub struct OptimisticMdAdaptiveRule {
    options: OptimisticMdAdaptive,
    rate: f64,
    next_rate: f64,
    ball: Ball,
}

/// [`OptimisticAdam`] at a step.
#[derive(Clone, Copy, Debug)]
pub struct OptimisticAdamRule {
    options: OptimisticAdam,
    optimism: f64,
    direction: AdamsDirection,
}

impl Hyperparameters<1> for OptimisticMd {
    type Rule = OptimisticMdRule;

    const STATES: [&'static str; 1] = ["prev_grad"];

    fn at_step(&self, step: f64) -> OptimisticMdRule {
        let is_first = step == 1.0 && self.hint_is_gradient;
        OptimisticMdRule {
            descent: Descent {
                lr: self.lr,
                weight_decay: self.weight_decay,
                max_exponent: f64::INFINITY,
                min_abs: 0.0,
                multiplicative: self.multiplicative,
                hypentropy: 0.0,
            },
            optimism: if is_first { 0.0 } else { self.optimism },
            ball: Ball::of(self.radius),
            maximize: self.maximize,
        }
    }
}

impl Hyperparameters<1> for OptimisticMdAdaptive {
    type Rule = OptimisticMdAdaptiveRule;

    const STATES: [&'static str; 1] = ["prev_grad"];

    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> OptimisticMdAdaptiveRule {
        OptimisticMdAdaptiveRule {
            options: *self,
            rate: self.lr / self.accumulated.sqrt(),
            next_rate: 0.0,
            ball: Ball::of(self.radius),
        }
    }
}

impl Hyperparameters<3> for OptimisticAdam {
    type Rule = OptimisticAdamRule;

    const STATES: [&'static str; 3] = ["exp_avg", "exp_avg_sq", "prev_direction"];
    const NEVER_NEGATIVE: &'static [&'static str] = &["exp_avg_sq"];

    fn at_step(&self, step: f64) -> OptimisticAdamRule {
        OptimisticAdamRule {
            options: *self,
            optimism: if step == 1.0 { 0.0 } else { self.optimism },
            direction: AdamsDirection::at_step(self.beta1, self.beta2, self.eps, step),
        }
    }
}

impl Rule<1> for OptimisticMdRule {
    const IN_BALL: bool = true;

    fn ball(&mut self) -> Option<&mut Ball> {
        Some(&mut self.ball)
    }

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [before]: [V; 1]) -> (V, [V; 1]) {
        let ahead = foretold(g, before, self.optimism);
        let direction = if self.maximize { -ahead } else { ahead };
        (self.ball.brought_back(self.descent.along(p, direction)), [g])
    }
}

impl OptimisticMdAdaptiveRule {
    #[inline(always)]
    fn hint<V: Vector>(&self, g: V, before: V) -> V {
        match self.options.begins && self.options.hint_is_gradient {
            true => g,
            false => before,
        }
    }
}

impl Rule<1> for OptimisticMdAdaptiveRule {
    const SUMMED: Option<Summed> = Some(Summed::Squares);
    const IN_BALL: bool = true;

    fn ball(&mut self) -> Option<&mut Ball> {
        Some(&mut self.ball)
    }

    #[inline(always)]
    fn term<V: Vector>(&self, g: V, [before]: [V; 1]) -> V {
        g - self.hint(g, before)
    }

    fn knowing(self, squared_change: f64) -> Self {
        let next_rate = self.options.lr / (self.options.accumulated + squared_change).sqrt();
        OptimisticMdAdaptiveRule { next_rate, ..self }
    }

    /// The point without the hint goes along the gradient at this step's rate, and from there the parameter along what
    /// is the hint then, at the next one's; what was the hint until now is taken back.
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [before]: [V; 1]) -> (V, [V; 1]) {
        let o = &self.options;
        let ahead = g * (self.rate + o.optimism * self.next_rate);
        let step = ahead - self.hint(g, before) * (o.optimism * self.rate);
        let step = if o.maximize { -step } else { step };
        let p = p * (1.0 - o.lr * o.weight_decay) - step;
        (self.ball.brought_back(p), [g])
    }
}

impl Rule<3> for OptimisticAdamRule {
    #[inline(always)]
    fn update<V: Vector>(&self, p: V, g: V, [m, v, before]: [V; 3]) -> (V, [V; 3]) {
        let o = &self.options;
        let g = if o.maximize { -g } else { g };
        let (m, v) = moments(m, v, g, o.beta1, o.beta2);
        let direction = self.direction.of(m, v);
        let ahead = foretold(direction, before, self.optimism);
        let p = p * (1.0 - o.lr * o.weight_decay) + ahead * -o.lr;
        (p, [m, v, direction])
    }
}

/// The next direction, if it changes as it did from `before` to `now`.
#[inline(always)]
fn foretold<V: Vector>(now: V, before: V, optimism: f64) -> V {
    match optimism {
        0.0 => now, // a change of 0 times what is not finite would not be
        _ => now + (now - before) * optimism,
    }
}
