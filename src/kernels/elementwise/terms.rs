//! Terms that several rules share, with the roundings of torch's.

use crate::kernels::vector::Vector;

/// `1 - beta^step`: what an average with this rate, of zeros at first, is to be divided by at a step.
pub fn bias_correction(beta: f64, step: f64) -> f64 {
    1.0 - beta.powf(step)
}

/// The averages of gradients and of their squares, with one more gradient.
#[inline(always)]
pub fn moments<V: Vector>(m: V, v: V, g: V, beta1: f64, beta2: f64) -> (V, V) {
    (m * beta1 + g * (1.0 - beta1), v * beta2 + g * (1.0 - beta2) * g)
}

/// What Adam takes for the gradient at a step: the bias corrections are worked out.
#[derive(Clone, Copy, Debug)]
pub struct AdamsDirection {
    eps: f64,
    inverse_bias1: f64,
    inverse_sqrt_bias2: f64,
}

impl AdamsDirection {
    pub fn at_step(beta1: f64, beta2: f64, eps: f64, step: f64) -> Self {
        AdamsDirection {
            eps,
            inverse_bias1: 1.0 / bias_correction(beta1, step),
            inverse_sqrt_bias2: 1.0 / bias_correction(beta2, step).sqrt(),
        }
    }

    /// From both averages.
    #[inline(always)]
    pub fn of<V: Vector>(&self, m: V, v: V) -> V {
        (m * self.inverse_bias1) / (v.sqrt() * self.inverse_sqrt_bias2 + self.eps)
    }
}

/// The gradient of what is to become less, with the weight decay as an L2 penalty.
#[inline(always)]
pub fn penalized<V: Vector>(p: V, g: V, weight_decay: f64, maximize: bool) -> V {
    let g = if maximize { -g } else { g };
    match weight_decay != 0.0 {
        true => g + p * weight_decay,
        false => g,
    }
}

/// How weights decay: by themselves (AdamW), or as an L2 penalty (Adam).
#[derive(Clone, Copy, Debug)]
pub struct Decay {
    pub lr: f64,
    pub weight_decay: f64,
    pub decoupled: bool,
    pub maximize: bool,
}

impl Decay {
    /// The decayed parameter, and the gradient to go on with.
    #[inline(always)]
    pub fn apply<V: Vector>(&self, p: V, g: V) -> (V, V) {
        match self.decoupled {
            true => (
                p * (1.0 - self.lr * self.weight_decay),
                penalized(p, g, 0.0, self.maximize),
            ),
            false => (p, penalized(p, g, self.weight_decay, self.maximize)),
        }
    }
}
