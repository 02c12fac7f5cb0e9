//! The code of a rule for each combination of the types of parameters and states with a rounding mode.

use half::{bf16, f16};

use super::sweep::{Kahan, Kernel, Master, Nearest, Split, Stochastic, sweep};
use super::{Rule, Unsupported, lion};
use crate::kernels::storage::{Float, Rounding};
use crate::kernels::vector::{Arithmetic, EvenOdd, Halves, InF32, InF64, Stored};

/// Whether parameters of a type can have state in another, and be rounded so. No rule makes a difference.
pub fn is_supported(param: Float, state: Float, rounding: Rounding) -> bool {
    any_kernel::<lion::Lion, 1>(param, state, rounding).is_ok()
}

/// The code of a rule for a combination of types, if there is some.
pub fn kernel<R: Rule<N>, const N: usize>(
    param: Float,
    state: Float,
    rounding: Rounding,
) -> Result<Kernel<R, N>, Unsupported> {
    if R::IN_16_BITS {
        return any_kernel(param, state, rounding);
    }
    match (param, state) {
        (Float::F64, Float::F64) => Ok(sweep::<InF64, f64, f64, Nearest, R, N>),
        (Float::F32, Float::F32) => Ok(sweep::<InF32<Halves>, f32, f32, Nearest, R, N>),
        _ => Err(Unsupported),
    }
}

/// The code for any combination of types. Parameters in 16 bits may have their state in f32 or in their own type;
/// f32 parameters in f32 or bf16.
fn any_kernel<R: Rule<N>, const N: usize>(
    param: Float,
    state: Float,
    rounding: Rounding,
) -> Result<Kernel<R, N>, Unsupported> {
    use Float::*;
    type InHalves = InF32<Halves>;
    type Apart = InF32<EvenOdd>;
    Ok(match (param, state, rounding) {
        (F64, F64, Rounding::Nearest) => sweep::<InF64, f64, f64, Nearest, R, N>,
        (F32, F32, Rounding::Nearest) => sweep::<InHalves, f32, f32, Nearest, R, N>,
        (F32, Bf16, Rounding::Nearest) => sweep::<InHalves, f32, bf16, Nearest, R, N>,
        (Bf16, F32, Rounding::Master) => sweep::<InHalves, bf16, f32, Master, R, N>,
        (Bf16, Bf16, Rounding::Master) => sweep::<InHalves, bf16, bf16, Master, R, N>,
        (F16, F32, Rounding::Master) => sweep::<InHalves, f16, f32, Master, R, N>,
        (F16, F16, Rounding::Master) => sweep::<InHalves, f16, f16, Master, R, N>,
        (F16, Bf16, Rounding::Master) => sweep::<InHalves, f16, bf16, Master, R, N>,
        (Bf16, F32, Rounding::Split) => sweep::<InHalves, bf16, f32, Split, R, N>,
        (Bf16, Bf16, Rounding::Split) => sweep::<Apart, bf16, bf16, Split, R, N>,
        (Bf16, F32, _) => sixteen_bit::<InHalves, bf16, f32, R, N>(rounding)?,
        (Bf16, Bf16, _) => sixteen_bit::<Apart, bf16, bf16, R, N>(rounding)?,
        (F16, F32, _) => sixteen_bit::<InHalves, f16, f32, R, N>(rounding)?,
        (F16, F16, _) => sixteen_bit::<InHalves, f16, f16, R, N>(rounding)?,
        (F16, Bf16, _) => sixteen_bit::<InHalves, f16, bf16, R, N>(rounding)?,
        _ => return Err(Unsupported),
    })
}

/// The modes that take either type of 16 bits.
fn sixteen_bit<F: Arithmetic, P: Stored<F>, S: Stored<F>, R: Rule<N>, const N: usize>(
    rounding: Rounding,
) -> Result<Kernel<R, N>, Unsupported> {
    Ok(match rounding {
        Rounding::Nearest => sweep::<F, P, S, Nearest, R, N>,
        Rounding::Kahan => sweep::<F, P, S, Kahan, R, N>,
        Rounding::Stochastic { .. } => sweep::<F, P, S, Stochastic, R, N>,
        Rounding::Split | Rounding::Master => return Err(Unsupported),
    })
}
