//! STORM: momentum that is carried along from the point before (Cutkosky and Orabona 2019, arXiv 1905.10018) by the
//! difference of a batch's gradients at both points or, as (N-)HARPG has it (arXiv 2302.01734), by a product of the
//! Hessian with the way between them.

use super::nigt::scale_to;
use super::{Hyperparameters, Rule, Summed, hyperparameters};
use crate::kernels::vector::Vector;

hyperparameters! {
    /// Steps of length `lr`.
    pub struct Storm {
        lr: f64,
        weight_decay: f64,
        /// The gradient's share in the momentum.
        eta: f64,
        /// Whether the second state is the gradient at the point before, and not the product of the Hessian.
        difference: bool,
        maximize: bool,
        /// The momentum has no past.
        begins: bool,
    }
}

hyperparameters! {
    /// Steps of `lr` times the momentum.
    pub struct StormPlain(Storm);
}

hyperparameters! {
    /// The paper's steps: of the momentum times `lr` over the cube root of the sum of all gradients' squares.
    pub struct StormAdaptive {
        lr: f64,
        weight_decay: f64,
        eta: f64,
        difference: bool,
        maximize: bool,
        /// What the sum begins with, and the squares of before.
        accumulated: f64,
        begins: bool,
    }
}

/// A step with what is worked out once, of `scale` times the momentum.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    of_transport: f64,
    /// Multiplies the momentum of before with its transport.
    of_past: f64,
    of_grad: f64,
    scale: f64,
    /// Multiplies the weight decay.
    rate: f64,
    weight_decay: f64,
}

/// Knows the momentum's norm.
#[derive(Clone, Copy, Debug)]
pub struct Normalized(Step);

/// The new momentum, in the place of the transport.
#[derive(Clone, Copy, Debug)]
pub struct Carry(Step);

/// [`Normalized`] along the new momentum, which is where the gradient is for other rules.
#[derive(Clone, Copy, Debug)]
pub struct Move(Normalized);

/// Knows the gradients' squares.
#[derive(Clone, Copy, Debug)]
pub struct Adaptive {
    lr: f64,
    accumulated: f64,
    step: Step,
}

/// The second one is there for one step only.
const STATES: [&str; 2] = ["momentum_buffer", "transport"];

impl Storm {
    pub fn carry(self) -> Carry {
        Carry(self.step())
    }

    pub fn along_momentum(self) -> Move {
        Move(Normalized(self.step()))
    }

    fn step(self) -> Step {
        let sign = if self.maximize { -1.0 } else { 1.0 };
        let (of_past, share) = match (self.begins, self.difference) {
            (true, _) => (0.0, 1.0),
            (_, true) => (1.0 - self.eta, 1.0), // the past loses the gradient that it would keep
            (_, false) => (1.0 - self.eta, self.eta),
        };
        Step {
            of_transport: if self.difference { -sign } else { sign },
            of_past,
            of_grad: sign * share,
            scale: self.lr,
            rate: self.lr,
            weight_decay: self.weight_decay,
        }
    }
}

impl Step {
    /// The new momentum.
    #[inline(always)]
    fn momentum<V: Vector>(&self, g: V, [d, transport]: [V; 2]) -> V {
        (d + transport * self.of_transport) * self.of_past + g * self.of_grad
    }

    #[inline(always)]
    fn moved<V: Vector>(&self, x: V, d: V) -> V {
        x * (1.0 - self.rate * self.weight_decay) + d * -self.scale
    }
}

impl Hyperparameters<2> for Storm {
    type Rule = Normalized;

    const STATES: [&'static str; 2] = STATES;
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> Normalized {
        Normalized(self.step())
    }
}

impl Hyperparameters<2> for StormPlain {
    type Rule = Step;

    const STATES: [&'static str; 2] = STATES;
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> Step {
        self.0.step()
    }
}

impl Hyperparameters<2> for StormAdaptive {
    type Rule = Adaptive;

    const STATES: [&'static str; 2] = STATES;
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> Adaptive {
        let options = Storm {
            lr: self.lr,
            weight_decay: self.weight_decay,
            eta: self.eta,
            difference: self.difference,
            maximize: self.maximize,
            begins: self.begins,
        };
        Adaptive {
            lr: self.lr,
            accumulated: self.accumulated,
            step: options.step(),
        }
    }
}

impl Rule<2> for Step {
    const WRITES_STATES: usize = 1;

    #[inline(always)]
    fn update<V: Vector>(&self, x: V, g: V, state: [V; 2]) -> (V, [V; 2]) {
        let d = self.momentum(g, state);
        (self.moved(x, d), [d, state[1]])
    }
}

impl Rule<2> for Normalized {
    const WRITES_STATES: usize = 1;
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    #[inline(always)]
    fn term<V: Vector>(&self, g: V, state: [V; 2]) -> V {
        self.0.momentum(g, state)
    }

    fn knowing(self, squared_norm: f64) -> Self {
        let scale = scale_to(self.0.rate, squared_norm);
        Normalized(Step { scale, ..self.0 })
    }

    #[inline(always)]
    fn update<V: Vector>(&self, x: V, g: V, state: [V; 2]) -> (V, [V; 2]) {
        self.0.update(x, g, state)
    }
}

impl Rule<1> for Carry {
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, transport: V, g: V, [d]: [V; 1]) -> (V, [V; 1]) {
        (self.0.momentum(g, [d, transport]), [d])
    }
}

impl Rule<0> for Move {
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    fn knowing(self, squared_norm: f64) -> Self {
        Move(self.0.knowing(squared_norm))
    }

    #[inline(always)]
    fn update<V: Vector>(&self, x: V, d: V, []: [V; 0]) -> (V, [V; 0]) {
        (self.0.0.moved(x, d), [])
    }
}

impl Rule<2> for Adaptive {
    const WRITES_STATES: usize = 1;
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    fn knowing(self, squared_norm: f64) -> Self {
        let rate = self.lr / (self.accumulated + squared_norm).cbrt();
        let step = Step {
            scale: rate,
            rate,
            ..self.step
        };
        Adaptive { step, ..self }
    }

    #[inline(always)]
    fn update<V: Vector>(&self, x: V, g: V, state: [V; 2]) -> (V, [V; 2]) {
        self.step.update(x, g, state)
    }
}
