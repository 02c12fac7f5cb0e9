//! AuON as a Python object.

use pyo3::prelude::*;

use super::arguments::{at_least_zero, unknown};
use super::parameters::{Inputs, Ledger, Writes, combination};
use crate::kernels::auon::{AdjustLr, Auon, Cosh, Direction, Parameter, Update, Variant};
use crate::kernels::elementwise;
use crate::kernels::whole::Whole;

/// AuON. State: momentum_buffer.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct AuON(Auon);

#[pymethods]
impl AuON {
    #[new]
    #[pyo3(signature = (*, lr, weight_decay, momentum, nesterov, maximize, gamma, eps, rms_eps, variant, adjust_lr))]
    #[allow(clippy::too_many_arguments)] // the Python signature
    fn new(
        lr: f64,
        weight_decay: f64,
        momentum: f64,
        nesterov: bool,
        maximize: bool,
        gamma: f64,
        eps: f64,
        rms_eps: f64,
        variant: &str,
        adjust_lr: Option<&str>,
    ) -> PyResult<Self> {
        let variant = match variant {
            "paper" => Variant::Paper,
            "package" => Variant::Package,
            other => return Err(unknown("variant", other, "'paper' or 'package'")),
        };
        let adjust_lr = match adjust_lr {
            None => AdjustLr::None,
            Some("original") => AdjustLr::Original,
            Some("match_rms_adamw") => AdjustLr::MatchRmsAdamw,
            Some(other) => {
                return Err(unknown(
                    "adjust_lr_fn",
                    other,
                    "None, 'original' or 'match_rms_adamw'",
                ));
            }
        };
        Ok(AuON(Auon {
            lr,
            weight_decay,
            direction: Direction {
                momentum,
                nesterov,
                maximize,
            },
            cosh: cosh(gamma, rms_eps)?,
            eps: at_least_zero("eps", eps)?,
            variant,
            adjust_lr,
        }))
    }
}

/// The cosine's factor and what is added to its root mean square, checked.
pub fn cosh(gamma: f64, rms_eps: f64) -> PyResult<Cosh> {
    Ok(Cosh {
        gamma: at_least_zero("gamma", gamma)?,
        eps: at_least_zero("rms_eps", rms_eps)?,
    })
}

/// Checks the tensors of a parameter group and takes them in.
pub fn add(ledger: &mut Ledger, rule: &AuON, inputs: &Inputs<'_>) -> PyResult<Box<dyn Whole>> {
    inputs.expect(1)?;
    let writes = Writes {
        param: true,
        states: 1,
    };
    let mut parameters = Vec::with_capacity(inputs.len());
    for i in 0..inputs.len() {
        let tensors = ledger.tensors::<1>(inputs, i, writes)?;
        let buffers = ledger.buffers(inputs, i, &tensors, &tensors.param.order(), writes);
        let state = buffers.state_dtype();
        if !state.is_some_and(|state| elementwise::is_supported(buffers.dtype, state, buffers.rounding)) {
            return Err(ledger.refuse(inputs, i, combination(&buffers, inputs.rounding)));
        }
        // A tensor of fewer than two dimensions is no matrix that could be taller than wide.
        let (rows, cols) = match tensors.param.shape.as_slice() {
            [first, rest @ ..] if !rest.is_empty() => {
                (*first as usize, rest.iter().product::<i64>() as usize)
            }
            _ => (1, buffers.len),
        };
        parameters.push(Parameter { buffers, rows, cols });
    }
    // SAFETY: the views are valid while the ledger lives, and its call checks that what is written is not shared.
    Ok(Box::new(unsafe { Update::new(rule.0, parameters) }))
}
