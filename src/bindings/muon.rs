//! Muon as a Python object, and the checks of its parameters' shapes.

use pyo3::prelude::*;

use super::arguments::unknown;
use super::auon::cosh;
use super::call::Role;
use super::errors::Problem;
use super::orthogonal::{self, Schedule};
use super::parameters::{Column, Inputs, Ledger, Writes, combination, work_dtype};
use super::view::View;
use crate::kernels::muon::{self, AdjustLr, DivideByCosh, Layout, Momentum, Parameter, Part, Update};
use crate::kernels::storage::Access;
use crate::kernels::whole::Whole;

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
pub fn add(ledger: &mut Ledger, muon: &Muon, inputs: &Inputs<'_>) -> PyResult<Box<dyn Whole>> {
    inputs.expect(1 + usize::from(muon.rule.row_beta.is_some()))?;
    let writes = Writes {
        param: true,
        states: 1,
    };
    let mut parameters = Vec::with_capacity(inputs.len());
    for i in 0..inputs.len() {
        let tensors = ledger.tensors::<1>(inputs, i, writes)?;
        let parts =
            parts(&muon.layout, &tensors.param).map_err(|problem| ledger.refuse(inputs, i, problem))?;
        let row_moments = match inputs.states.get(1) {
            Some(column) => row_moments(ledger, inputs, column, i, &tensors.param, &muon.layout)?,
            None => std::ptr::null_mut(),
        };
        let buffers = ledger.buffers(inputs, i, &tensors, &row_by_row(&tensors.param), writes);
        let state = buffers.state_dtype();
        if !state.is_some_and(|state| muon::is_supported(buffers.dtype, state, buffers.rounding)) {
            return Err(ledger.refuse(inputs, i, combination(&buffers, inputs.rounding)));
        }
        parameters.push(Parameter {
            buffers,
            parts,
            row_moments,
        });
    }
    // SAFETY: the views are valid while the ledger lives, and its call checks that what is written is not shared;
    // `parts` covers just the tensor's elements.
    Ok(Box::new(unsafe { Update::new(muon.rule.clone(), parameters) }))
}

/// The order of dimensions in which rows follow one another, however the tensor lies.
fn row_by_row(view: &View) -> Vec<usize> {
    (0..view.shape.len()).collect()
}

fn parts(layout: &Layout, param: &View) -> Result<Vec<Part>, Problem> {
    let shape: Vec<usize> = param.shape.iter().map(|&size| size as usize).collect();
    layout.parts(&shape).map_err(|mismatch| Problem::Matrices {
        shape: param.shape.clone(),
        expected: mismatch.to_string(),
    })
}

/// The second moments, one for every row, in the type of the arithmetic.
fn row_moments(
    ledger: &mut Ledger,
    inputs: &Inputs<'_>,
    column: &Column<'_>,
    i: usize,
    param: &View,
    layout: &Layout,
) -> PyResult<*mut u8> {
    let mut shape = param.shape.clone();
    let columns = match layout {
        Layout::Flatten => 1,
        _ => shape.len() - 1,
    };
    shape[columns..].fill(1);
    let role = Role::new(Access::Updates)
        .shape(&shape)
        .dtype(work_dtype(param))
        .state();
    let view = ledger.take(inputs, column, i, &role)?;
    Ok(ledger.call.stage(&view, &row_by_row(&view), Access::Updates))
}
