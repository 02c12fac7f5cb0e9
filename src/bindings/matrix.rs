//! Rules of matrices as Python objects, and the checks of their parameters' shapes.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use smallvec::SmallVec;

use super::batch::{Batch, Inputs, Tensors, Writes};
use super::errors::Problem;
use super::orthogonal::{self, Schedule, at_least_zero, unknown};
use super::tensor::{Dims, View};
use crate::kernels::matrix::{
    self, AdjustLr, Apply, Chain, DivideByCosh, Layout, Momentum, Normalize, NormalizeRows, Orthogonalize,
    Parameter, Part, Update,
};
use crate::kernels::storage::Float;

/// A transform with its numbers, a link of the chain of a [`MatrixRule`]; each maker refuses impossible ones.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Transform(Arc<dyn matrix::Transform>);

impl Transform {
    fn of(transform: impl matrix::Transform + 'static) -> PyResult<Self> {
        Ok(Transform(Arc::new(transform)))
    }
}

#[pymethods]
impl Transform {
    #[staticmethod]
    #[pyo3(signature = (*, schedule, eps, algorithm, precision, restarts))]
    fn orthogonalize(
        schedule: &Schedule,
        eps: f64,
        algorithm: &str,
        precision: &str,
        restarts: Vec<i64>,
    ) -> PyResult<Self> {
        let options = orthogonal::options(schedule, algorithm, precision, eps, &restarts)?;
        Transform::of(Orthogonalize(options))
    }

    #[staticmethod]
    #[pyo3(signature = (*, eps))]
    fn normalize(eps: f64) -> PyResult<Self> {
        let eps = at_least_zero("eps", eps)?;
        Transform::of(Normalize { eps })
    }

    #[staticmethod]
    #[pyo3(signature = (*, beta2))]
    fn normalize_rows(beta2: f64) -> PyResult<Self> {
        Transform::of(NormalizeRows { beta: beta2 })
    }

    #[staticmethod]
    #[pyo3(signature = (*, gamma, rms_eps, of_normalized, eps))]
    fn divide_by_cosh(gamma: f64, rms_eps: f64, of_normalized: bool, eps: f64) -> PyResult<Self> {
        Transform::of(DivideByCosh {
            gamma: at_least_zero("gamma", gamma)?,
            rms_eps: at_least_zero("rms_eps", rms_eps)?,
            of_normalized,
            eps: at_least_zero("eps", eps)?,
        })
    }
}

/// A direction (the momentum), a chain of transforms, and the step. State: momentum_buffer, and those of the transforms.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct MatrixRule {
    rule: matrix::MatrixRule,
    layout: Layout,
}

#[pymethods]
impl MatrixRule {
    #[new]
    #[pyo3(signature = (*, lr, weight_decay, momentum, nesterov, maximize, transforms, adjust_lr, ndim_policy,
                        num_heads=None, split_sizes=None, cautious_weight_decay=false, skip_zero_grad=false))]
    #[allow(clippy::too_many_arguments)] // the Python signature
    fn new(
        lr: f64,
        weight_decay: f64,
        momentum: f64,
        nesterov: bool,
        maximize: bool,
        transforms: Vec<PyRef<'_, Transform>>,
        adjust_lr: &str,
        ndim_policy: &str,
        num_heads: Option<usize>,
        split_sizes: Option<Vec<usize>>,
        cautious_weight_decay: bool,
        skip_zero_grad: bool,
    ) -> PyResult<Self> {
        let transforms = Chain::new(transforms.iter().map(|transform| transform.0.clone()).collect())
            .map_err(|misplaced| PyValueError::new_err(format!("Invalid transforms: {misplaced}")))?;
        let rule = matrix::MatrixRule {
            momentum: Momentum {
                momentum,
                nesterov,
                maximize,
            },
            transforms,
            apply: Apply {
                lr,
                weight_decay,
                cautious: cautious_weight_decay,
                adjust_lr: self::adjust_lr(adjust_lr)?,
            },
            skip_zero_grad,
        };
        let layout = match (ndim_policy, num_heads, split_sizes) {
            (_, Some(heads), _) => Layout::Heads(heads),
            (_, _, Some(heights)) => Layout::Split(heights),
            ("error", ..) => Layout::Matrix,
            ("flatten", ..) => Layout::Flatten,
            ("batch", ..) => Layout::Batch,
            ("whole", ..) => Layout::Whole,
            (other, ..) => {
                let expected = "'error', 'flatten', 'batch' or 'whole'";
                return Err(unknown("ndim_policy", other, expected));
            }
        };
        Ok(MatrixRule { rule, layout })
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
pub fn add(
    batch: &mut Batch,
    MatrixRule { rule, layout }: &MatrixRule,
    inputs: Inputs<'_, '_>,
) -> PyResult<()> {
    let row_states = rule.transforms.row_states().count();
    batch.check_lengths(1 + row_states, &inputs)?;
    let writes = Writes {
        param: true,
        states: 1,
    };
    let any_order = *layout == Layout::Whole && !rule.transforms.writes();
    let mut parameters = Vec::with_capacity(inputs.params.len());
    for i in 0..inputs.params.len() {
        let tensors = batch.views::<1>(i, &inputs, writes)?;
        let parts = parts(batch, i, layout, &tensors)?;
        let row_states = (1..=row_states)
            .map(|state| row_state(batch, i, state, &inputs.states[state], &tensors, layout))
            .collect::<PyResult<_>>()?;
        let order: SmallVec<[usize; 4]> = match any_order {
            true => tensors.param.order(),
            false => (0..tensors.param.shape.len()).collect(),
        };
        let rounding = inputs.rounding.to(tensors.param.dtype);
        let rounding = rounding.at(batch.number(i), tensors.step(&inputs));
        let buffers = batch.buffers(&tensors, &order, rounding, writes);
        if !rule.takes(buffers.dtype, buffers.state_dtype, rounding) {
            return Err(batch.refuse_combination(i, &buffers, &inputs));
        }
        batch.counters.extend(tensors.counter);
        parameters.push(Parameter {
            buffers,
            parts,
            row_states,
        });
    }
    // SAFETY: the views are valid while `batch` lives, which checks before it runs the update that what is written is
    // not shared; `parts` covers just the tensor's elements.
    let update = unsafe { Update::new(rule.clone(), parameters) };
    batch.matrices.push(update);
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

/// A transform's state number `state`: a number for every row, in the type of the arithmetic.
fn row_state(
    batch: &mut Batch,
    i: usize,
    state: usize,
    list: &Bound<'_, PyList>,
    tensors: &Tensors<1>,
    layout: &Layout,
) -> PyResult<*mut u8> {
    let argument = 2 + state; // after the parameter and the gradient
    let view: View = batch.view(i, argument, list, true)?;
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
        let order: SmallVec<[usize; 4]> = (0..view.shape.len()).collect();
        return Ok(batch.stage(&view, &order, true));
    };
    Err(batch.refuse(i, argument, problem))
}
