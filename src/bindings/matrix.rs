//! Rules of matrices as Python objects, and the checks of their parameters' shapes.

use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::arguments::{at_least_zero, choice};
use super::call::Role;
use super::errors::Problem;
use super::orthogonal::{self, Schedule};
use super::parameters::{Column, Inputs, Ledger, Writes};
use super::view::View;
use crate::kernels::elementwise::Visitor;
use crate::kernels::matrix::{
    self, AdjustLr, AlongMove, Apply, Chain, Coming, ComingDirection, DivideByCosh, Layout, Momentum,
    Normalize, NormalizeRows, Orthogonalize, Parameter, Part, Step,
};
use crate::kernels::storage::Access;

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
        eps: &Bound<'_, PyAny>,
        algorithm: &Bound<'_, PyAny>,
        precision: &Bound<'_, PyAny>,
        restarts: Vec<i64>,
    ) -> PyResult<Self> {
        let options = orthogonal::options(schedule, algorithm, precision, eps, &restarts)?;
        Transform::of(Orthogonalize(options))
    }

    #[staticmethod]
    #[pyo3(signature = (*, eps))]
    fn normalize(eps: &Bound<'_, PyAny>) -> PyResult<Self> {
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
    fn divide_by_cosh(
        gamma: &Bound<'_, PyAny>,
        rms_eps: &Bound<'_, PyAny>,
        of_normalized: bool,
        eps: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        Transform::of(DivideByCosh {
            gamma: at_least_zero("gamma", gamma)?,
            rms_eps: at_least_zero("rms_eps", rms_eps)?,
            of_normalized,
            eps: at_least_zero("eps", eps)?,
        })
    }
}

/// A stage of a [`MatrixRule`] that needs no whole matrices: an element-wise rule.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Stage(AnyStage);

enum AnyStage {
    Direction(ComingDirection),
    Step(AlongMove),
}

impl Stage {
    pub fn visit<V: Visitor>(&self, visitor: V) -> V::Output {
        match self.0 {
            AnyStage::Direction(rule) => visitor.visit(rule),
            AnyStage::Step(rule) => visitor.visit(rule),
        }
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
        adjust_lr: &Bound<'_, PyAny>,
        ndim_policy: &Bound<'_, PyAny>,
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
                scale: 1.0,
            },
            transforms,
            apply: Apply {
                lr,
                weight_decay,
                cautious: cautious_weight_decay,
                adjust_lr: choice("adjust_lr_fn", adjust_lr, ADJUSTMENTS)?,
            },
            skip_zero_grad,
            only_moves: false,
        };
        let layout = match (num_heads, split_sizes) {
            (Some(heads), _) => Layout::Heads(heads),
            (_, Some(heights)) => Layout::Split(heights),
            _ => choice("ndim_policy", ndim_policy, LAYOUTS)?,
        };
        Ok(MatrixRule { rule, layout })
    }

    /// The names of the states, in their order.
    #[getter]
    fn states(&self) -> Vec<&'static str> {
        let of_transforms = self.rule.transforms.row_states();
        std::iter::once("momentum_buffer").chain(of_transforms).collect()
    }

    /// The bytes that a step works in; see `_core.pyi`.
    fn working_memory(&self, params: Vec<(Vec<usize>, usize, usize)>, threads: usize) -> PyResult<usize> {
        let mut matrices = Vec::new();
        for (shape, work, state) in params {
            let parts = self.layout.parts(&shape);
            let parts = parts.map_err(|mismatch| PyValueError::new_err(format!("expected {mismatch}")))?;
            matrices.extend(parts.into_iter().map(|Part { rows, cols }| Coming {
                rows,
                cols,
                work,
                state,
            }));
        }
        matrices.retain(|matrix| matrix.rows * matrix.cols > 0);
        Ok(self.rule.working_memory(&matrices, threads))
    }

    /// The rule in three, for parameters that lie in parts; see `_core.pyi`.
    fn stages(&self) -> (Stage, MatrixRule, Stage) {
        let layout = match &self.layout {
            Layout::Heads(_) | Layout::Split(_) => Layout::Matrix,
            other => other.clone(),
        };
        let only_moves = MatrixRule {
            rule: self.rule.only_moves(),
            layout,
        };
        (
            Stage(AnyStage::Direction(self.rule.coming_direction())),
            only_moves,
            Stage(AnyStage::Step(self.rule.along_move())),
        )
    }
}

const ADJUSTMENTS: &[(&str, AdjustLr)] = &[
    ("none", AdjustLr::None),
    ("original", AdjustLr::Original),
    ("match_rms_adamw", AdjustLr::MatchRmsAdamw),
    ("spectral_unclamped", AdjustLr::SpectralUnclamped),
];

const LAYOUTS: &[(&str, Layout)] = &[
    ("error", Layout::Matrix),
    ("flatten", Layout::Flatten),
    ("batch", Layout::Batch),
    ("whole", Layout::Whole),
];

/// Checks the tensors of a parameter group and takes them in.
pub fn add(
    ledger: &mut Ledger,
    MatrixRule { rule, layout }: &MatrixRule,
    inputs: &Inputs<'_>,
) -> PyResult<Step> {
    inputs.expect(1 + rule.transforms.row_states().count(), None)?;
    let writes = Writes {
        param: true,
        states: (!rule.only_moves).into(),
    };
    let any_order = *layout == Layout::Whole && !rule.transforms.writes();
    let mut parameters = Vec::with_capacity(inputs.len());
    for i in 0..inputs.len() {
        let tensors = ledger.tensors::<1>(inputs, i, writes, &[])?;
        let parts = parts(layout, &tensors.param).map_err(|problem| ledger.refuse(inputs, i, problem))?;
        let row_states = inputs.states[1..]
            .iter()
            .map(|column| row_state(ledger, inputs, column, i, &tensors.param, layout))
            .collect::<PyResult<_>>()?;
        let order = match any_order {
            true => tensors.param.order(),
            false => row_by_row(&tensors.param),
        };
        let buffers = ledger.buffers(inputs, i, &tensors, &order, writes);
        if !rule.takes(&buffers) {
            return Err(ledger.refuse(inputs, i, Problem::combination(&buffers, inputs.rounding)));
        }
        parameters.push(Parameter {
            buffers,
            parts,
            row_states,
        });
    }
    // SAFETY: the views are valid while the ledger lives, and its call checks that what is written is not shared;
    // `parts` covers just the tensor's elements.
    Ok(unsafe { Step::new(rule.clone(), parameters) })
}

/// The order of dimensions in which rows follow one another, however the tensor lies.
fn row_by_row(view: &View) -> SmallVec<[usize; 4]> {
    (0..view.shape.len()).collect()
}

fn parts(layout: &Layout, param: &View) -> Result<Vec<Part>, Problem> {
    let shape: Vec<usize> = param.shape.iter().map(|&size| size as usize).collect();
    layout.parts(&shape).map_err(|mismatch| Problem::Matrices {
        shape: param.shape.clone(),
        expected: mismatch.to_string(),
    })
}

/// A state of a transform: a number for every row, in the type of the arithmetic.
fn row_state(
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
        _ => shape.len().saturating_sub(1),
    };
    shape[columns..].fill(1);
    let role = Role::new(Access::Updates)
        .shape(&shape)
        .dtype(param.work_dtype())
        .state();
    let view = ledger.take(inputs, column, i, &role)?;
    Ok(ledger.call.stage(&view, &row_by_row(&view), Access::Updates))
}
