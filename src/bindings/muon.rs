//! Muon as a Python object, and the checks of its parameters' shapes.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::auon::cosh;
use super::batch::{Batch, Inputs, Tensors, Writes};
use super::errors::Problem;
use super::orthogonal::{self, Schedule};
use super::tensor::{Dims, View};
use crate::kernels::muon::{self, AdjustLr, DivideByCosh, Layout, Momentum, Parameter, Part, Update};
use crate::kernels::storage::Float;

/// Muon. State: momentum_buffer, and with `beta2` second_momentum_buffer, one number for every row.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Muon {
    rule: muon::Muon,
    layout: Layout,
}

/// HybridAuON's gamma, what is added to the root mean square, and whether the cosine is of the normalized matrix.
type CoshArguments = (f64, f64, bool);

#[pymethods]
impl Muon {
    #[new]
    #[pyo3(signature = (*, lr, weight_decay, momentum, nesterov, maximize, schedule, eps, algorithm, precision, restarts,
                        adjust_lr, beta2, cautious_weight_decay, skip_zero_grad, ndim_policy, num_heads, split_sizes,
                        cosh=None))]
    #[allow(clippy::too_many_arguments)] // the Python signature
    fn new(
        lr: f64,
        weight_decay: f64,
        momentum: f64,
        nesterov: bool,
        maximize: bool,
        schedule: &Schedule,
        eps: f64,
        algorithm: &str,
        precision: &str,
        restarts: Vec<i64>,
        adjust_lr: &str,
        beta2: Option<f64>,
        cautious_weight_decay: bool,
        skip_zero_grad: bool,
        ndim_policy: &str,
        num_heads: Option<usize>,
        split_sizes: Option<Vec<usize>>,
        cosh: Option<CoshArguments>,
    ) -> PyResult<Self> {
        let divide = |(gamma, rms_eps, of_normalized): CoshArguments| {
            Ok::<_, PyErr>(DivideByCosh {
                cosh: self::cosh(gamma, rms_eps)?,
                of_normalized,
                eps,
            })
        };
        let rule = muon::Muon {
            lr,
            weight_decay,
            cautious: cautious_weight_decay,
            momentum: Momentum {
                momentum,
                nesterov,
                maximize,
            },
            orthogonal: orthogonal::options(schedule, algorithm, precision, eps, &restarts)?,
            adjust_lr: self::adjust_lr(adjust_lr)?,
            row_beta: beta2,
            cosh: cosh.map(divide).transpose()?,
            skip_zero_grad,
        };
        let layout = match (ndim_policy, num_heads, split_sizes) {
            (_, Some(heads), _) => Layout::Heads(heads),
            (_, _, Some(heights)) => Layout::Split(heights),
            ("error", ..) => Layout::Matrix,
            ("flatten", ..) => Layout::Flatten,
            ("batch", ..) => Layout::Batch,
            (other, ..) => return Err(unknown("ndim_policy", other, "'error', 'flatten' or 'batch'")),
        };
        Ok(Muon { rule, layout })
    }
}

/// The error for a name that is none of those expected.
pub fn unknown(argument: &str, got: &str, expected: &str) -> PyErr {
    PyValueError::new_err(format!("Invalid {argument}: {got:?}; expected {expected}"))
}

fn adjust_lr(name: &str) -> PyResult<AdjustLr> {
    match name {
        "none" => Ok(AdjustLr::None),
        "original" => Ok(AdjustLr::Original),
        "match_rms_adamw" => Ok(AdjustLr::MatchRmsAdamw),
        "spectral_unclamped" => Ok(AdjustLr::SpectralUnclamped),
        other => Err(unknown(
            "adjust_lr_fn",
            other,
            "'original', 'match_rms_adamw' or 'spectral_unclamped'",
        )),
    }
}

/// Checks the tensors of a parameter group and takes them in.
pub fn add(batch: &mut Batch, muon: &Muon, inputs: Inputs<'_, '_>) -> PyResult<()> {
    let states = 1 + usize::from(muon.rule.row_beta.is_some());
    batch.check_lengths(states, &inputs)?;
    let writes = Writes {
        param: true,
        states: 1,
    };
    let mut parameters = Vec::with_capacity(inputs.params.len());
    for i in 0..inputs.params.len() {
        let tensors = batch.views::<1>(i, &inputs, writes)?;
        let parts = parts(batch, i, &muon.layout, &tensors)?;
        let row_moments = match inputs.states.get(1) {
            Some(list) => row_moments(batch, i, list, &tensors, &muon.layout)?,
            None => std::ptr::null_mut(),
        };
        // Row by row, however the tensor lies.
        let order: Vec<usize> = (0..tensors.param.shape.len()).collect();
        let rounding = inputs.rounding.to(tensors.param.dtype);
        let rounding = rounding.at(batch.number(i), tensors.step(&inputs));
        let buffers = batch.buffers(&tensors, &order, rounding, writes);
        let state = buffers.state_dtype();
        if !state.is_some_and(|state| muon::is_supported(buffers.dtype, state, rounding)) {
            return Err(batch.refuse_combination(i, &buffers, &inputs));
        }
        batch.counters.extend(tensors.counter);
        parameters.push(Parameter {
            buffers,
            parts,
            row_moments,
        });
    }
    // SAFETY: the views are valid while `batch` lives, which checks before it runs the update that what is written is
    // not shared; `parts` covers just the tensor's elements.
    let update = unsafe { Update::new(muon.rule.clone(), parameters) };
    batch.whole.push(Box::new(update));
    Ok(())
}

fn parts(batch: &Batch, i: usize, layout: &Layout, tensors: &Tensors<1>) -> PyResult<Vec<Part>> {
    let shape: Vec<usize> = tensors.param.shape.iter().map(|&size| size as usize).collect();
    layout.parts(&shape).map_err(|mismatch| {
        let problem = Problem::Matrices {
            shape: tensors.param.shape.clone(),
            expected: mismatch.to_string(),
        };
        batch.refuse(i, 0, problem)
    })
}

/// The second moments, one for every row, in the type of the arithmetic.
fn row_moments(
    batch: &mut Batch,
    i: usize,
    list: &Bound<'_, pyo3::types::PyList>,
    tensors: &Tensors<1>,
    layout: &Layout,
) -> PyResult<*mut u8> {
    const ARGUMENT: usize = 3;
    let view: View = batch.view(i, ARGUMENT, list, true)?;
    let mut shape: Dims = tensors.param.shape.clone();
    let columns = if *layout == Layout::Flatten {
        1
    } else {
        shape.len() - 1
    };
    shape[columns..].fill(1);
    let expected = if tensors.param.dtype == Float::F64 {
        Float::F64
    } else {
        Float::F32
    };
    let problem = if view.shape != shape {
        Problem::Shape {
            shape: view.shape.clone(),
            expected: shape,
        }
    } else if view.dtype != expected {
        Problem::DType {
            dtype: view.dtype.name().into(),
            expected: expected.name().into(),
        }
    } else {
        let order: Vec<usize> = (0..view.shape.len()).collect();
        return Ok(batch.stage(&view, &order, true));
    };
    Err(batch.refuse(i, ARGUMENT, problem))
}
