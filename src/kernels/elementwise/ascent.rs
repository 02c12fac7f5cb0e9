//! The ascent of sharpness-aware minimization: to the point of a ball around the weights where the loss is about the
//! greatest (Foret et al. 2021, arXiv 2010.01412, equation 2), or of an ellipsoid that scales with the weights (ASAM,
//! Kwon et al. 2021, arXiv 2102.11600, equation 4).

use super::{Hyperparameters, Rule, Summed, hyperparameters};
use crate::kernels::vector::Vector;

/// Added to the norm, as in the implementations that people compare with.
const EPS: f64 = 1e-12;

hyperparameters! {
    pub struct Ascent {
        /// The radius.
        rho: f64,
        /// ASAM.
        adaptive: bool,
    }
}

/// [`Ascent`] with the factor that makes the way as long as the radius. State: the weights, which are only read.
#[derive(Clone, Copy, Debug)]
pub struct AscentRule {
    options: Ascent,
    scale: f64,
}

impl Hyperparameters<1> for Ascent {
    type Rule = AscentRule;

    const STATES: [&'static str; 1] = ["old_p"];
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> AscentRule {
        AscentRule {
            options: *self,
            scale: 0.0,
        }
    }
}

impl Rule<1> for AscentRule {
    const WRITES_STATES: usize = 0;
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    #[inline(always)]
    fn term<V: Vector>(&self, g: V, [w]: [V; 1]) -> V {
        if self.options.adaptive { w * g } else { g }
    }

    fn knowing(self, squared_norm: f64) -> Self {
        AscentRule {
            scale: self.options.rho / (squared_norm.sqrt() + EPS),
            ..self
        }
    }

    #[inline(always)]
    fn update<V: Vector>(&self, _: V, g: V, [w]: [V; 1]) -> (V, [V; 1]) {
        let direction = if self.options.adaptive { w * w * g } else { g };
        (w + direction * self.scale, [w])
    }
}
