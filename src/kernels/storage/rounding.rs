//! The ways from the precision of the arithmetic to that of a parameter.

use super::Float;
use crate::kernels::vector::Noise;

/// How a result is rounded to the parameter's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    Nearest,
    /// Up or down at random, right in expectation. The random numbers follow from the stream and the element; see
    /// [`Rounding::at`].
    Stochastic { stream: u64 },
    /// To the nearest; what is lost goes into a compensation buffer and is added back at the next step.
    Kahan,
    /// To the nearest, ties away from zero; what is lost, 16 bits of an f32, is kept whole in the place of the
    /// compensation. For bf16 parameters.
    Split,
    /// To the nearest; the result itself is kept in the place of the compensation, in f32.
    Master,
}

impl Rounding {
    /// The rounding of tensor `number` of an optimizer at a step, where a stochastic one has the optimizer's seed so far.
    pub fn at(self, number: u64, step: u64) -> Rounding {
        self.map_stream(|seed| Noise::key(Noise::key(seed, number), step))
    }

    /// That of part `i` of a tensor.
    pub fn of_part(self, i: u64) -> Rounding {
        self.map_stream(|stream| Noise::key(stream, i))
    }

    fn map_stream(self, next: impl Fn(u64) -> u64) -> Rounding {
        match self {
            Rounding::Stochastic { stream } => Rounding::Stochastic { stream: next(stream) },
            other => other,
        }
    }

    /// What is left of it for parameters of a type: f32 and f64 are as precise as the arithmetic, so nothing is lost
    /// there.
    pub fn to(self, param: Float) -> Rounding {
        match param {
            Float::F32 | Float::F64 => Rounding::Nearest,
            Float::F16 | Float::Bf16 => self,
        }
    }

    /// The bytes of an element in the place of the compensation of a parameter.
    pub fn compensation_size(self, param: Float) -> usize {
        match self {
            Rounding::Master => param.arithmetic().size(),
            _ => param.size(),
        }
    }

    /// The name that Python gives it.
    pub fn name(self) -> &'static str {
        match self {
            Rounding::Nearest => "nearest",
            Rounding::Stochastic { .. } => "stochastic",
            Rounding::Kahan => "kahan",
            Rounding::Split => "split",
            Rounding::Master => "master",
        }
    }
}
