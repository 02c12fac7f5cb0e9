//! Solvers for Python: problems as NumPy arrays, interrupts and progress through the observer.

use ndarray::{Array, Array1, Array2, ArrayView2, Dimension};
use numpy::{IntoPyArray, PyArray, PyArray1, PyArray2, PyReadonlyArray2};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::kernels::gradients;
use crate::kernels::solve::{
    self, Cagrad, Conflict, Cosines, Limits, Nash, Quadratic, SimplexQp, Solver, Status, UpGrad,
};

/// How far a solver has come, or how it ended; see `_core.pyi`.
#[pyclass(frozen, get_all, module = "ferrostep._core")]
pub struct Report {
    steps: usize,
    gap: f64,
    status: &'static str,
}

#[pymethods]
impl Report {
    fn __repr__(&self) -> String {
        let Report { steps, gap, status } = self;
        format!("Report(steps={steps}, gap={gap:.1e}, status={status:?})")
    }
}

impl From<&solve::Report> for Report {
    fn from(report: &solve::Report) -> Report {
        Report {
            steps: report.steps,
            gap: report.gap,
            status: match report.status {
                Status::Running => "running",
                Status::Converged => "converged",
                Status::Stalled => "stalled",
                Status::OutOfSteps => "out of steps",
                Status::Interrupted => "interrupted",
            },
        }
    }
}

type Weights<'py> = Bound<'py, PyArray1<f64>>;

/// The weights of the point of least norm in a convex hull; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (gram, *, initial=None, callback=None, max_steps=None))]
pub fn min_norm<'py>(
    py: Python<'py>,
    gram: PyReadonlyArray2<'py, f64>,
    initial: Option<Vec<f64>>,
    callback: Option<&Bound<'py, PyAny>>,
    max_steps: Option<usize>,
) -> PyResult<Weights<'py>> {
    let norm = norm(&gram)?;
    let initial = start(norm.linear.len(), initial)?;
    if let Some(weights) = &initial {
        let sum = weights.sum();
        if weights.iter().any(|&w| w < 0.0) || (sum - 1.0).abs() > 1e-6 {
            let message = format!(
                "initial has numbers from {} that sum up to {sum}, expected at least 0 and 1",
                weights.fold(f64::INFINITY, |least, &w| least.min(w))
            );
            return Err(PyValueError::new_err(message));
        }
    }
    run::<SimplexQp, _>(py, norm, initial, callback, max_steps)
}

/// CAGrad's weights; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (gram, *, c, initial=None, callback=None, max_steps=None))]
pub fn cagrad<'py>(
    py: Python<'py>,
    gram: PyReadonlyArray2<'py, f64>,
    c: f64,
    initial: Option<Vec<f64>>,
    callback: Option<&Bound<'py, PyAny>>,
    max_steps: Option<usize>,
) -> PyResult<Weights<'py>> {
    let norm = norm(&gram)?;
    let initial = start(norm.linear.len(), initial)?;
    run::<Cagrad, _>(py, Conflict { norm, c }, initial, callback, max_steps)
}

/// Nash-MTL's weights; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (gram, *, initial=None, callback=None, max_steps=None))]
pub fn nash_mtl<'py>(
    py: Python<'py>,
    gram: PyReadonlyArray2<'py, f64>,
    initial: Option<Vec<f64>>,
    callback: Option<&Bound<'py, PyAny>>,
    max_steps: Option<usize>,
) -> PyResult<Weights<'py>> {
    let gram = square(&gram)?;
    let initial = start(gram.nrows(), initial)?;
    run::<Nash, _>(py, Cosines::of(gram), initial, callback, max_steps)
}

/// UPGrad's weights, a row for each task; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (gram, *, initial=None, callback=None, max_steps=None))]
pub fn upgrad<'py>(
    py: Python<'py>,
    gram: PyReadonlyArray2<'py, f64>,
    initial: Option<Vec<Vec<f64>>>,
    callback: Option<&Bound<'py, PyAny>>,
    max_steps: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let gram = square(&gram)?;
    let initial = initial.map(|rows| start_rows(gram.nrows(), rows)).transpose()?;
    run::<UpGrad, _>(py, Cosines::of(gram), initial, callback, max_steps)
}

/// PCGrad's weights, a row for each task; see `_core.pyi`.
#[pyfunction]
pub fn pcgrad<'py>(
    py: Python<'py>,
    gram: PyReadonlyArray2<'py, f64>,
    orders: Vec<Vec<i64>>,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let gram = square(&gram)?;
    let count = gram.nrows();
    if orders.len() != count {
        let message = format!(
            "orders has {} lists, expected {count}: one for each task",
            orders.len()
        );
        return Err(PyValueError::new_err(message));
    }
    let task = |i: usize, task: i64| {
        let message = || format!("orders[{i}] has {task}, expected tasks from 0 to below {count}");
        let found = usize::try_from(task).ok().filter(|&task| task < count);
        found.ok_or_else(|| PyValueError::new_err(message()))
    };
    let tasks = |(i, order): (usize, &Vec<i64>)| order.iter().map(|&j| task(i, j)).collect();
    let orders: Vec<Vec<usize>> = orders.iter().enumerate().map(tasks).collect::<PyResult<_>>()?;
    Ok(gradients::pcgrad(gram, &orders).into_pyarray(py))
}

fn square<'a>(gram: &'a PyReadonlyArray2<f64>) -> PyResult<ArrayView2<'a, f64>> {
    let gram = gram.as_array();
    if gram.is_square() && !gram.is_empty() {
        return Ok(gram);
    }
    let message = format!("gram has shape {:?}, expected a square matrix", gram.shape());
    Err(PyValueError::new_err(message))
}

/// The problem, in memory of its own: while a solver runs, the caller's array is not looked at.
fn norm(gram: &PyReadonlyArray2<f64>) -> PyResult<Quadratic> {
    square(gram).map(Quadratic::norm)
}

fn start(count: usize, initial: Option<Vec<f64>>) -> PyResult<Option<Array1<f64>>> {
    match initial {
        Some(given) if given.len() != count => {
            let message = format!("initial has shape [{}], expected [{count}]", given.len());
            Err(PyValueError::new_err(message))
        }
        Some(given) if given.iter().any(|x| !x.is_finite()) => {
            let message = "initial has NaN or infinity, expected finite numbers";
            Err(PyValueError::new_err(message))
        }
        given => Ok(given.map(Array1::from)),
    }
}

fn start_rows(count: usize, rows: Vec<Vec<f64>>) -> PyResult<Array2<f64>> {
    let lengths: Vec<_> = rows.iter().map(Vec::len).collect();
    if lengths != vec![count; count] {
        let message = format!("initial has rows of {lengths:?} numbers, expected {count} of {count}");
        return Err(PyValueError::new_err(message));
    }
    let mut weights = Array2::zeros((count, count));
    for (mut to, row) in weights.rows_mut().into_iter().zip(rows) {
        if let Some(row) = start(count, Some(row))? {
            to.assign(&row);
        }
    }
    Ok(weights)
}

/// Solves without the GIL. Where Python's signal handlers raise, or the callback does, that is the result.
fn run<'py, S: Solver<Solution = Array<f64, D>, Problem: Send>, D: Dimension>(
    py: Python<'py>,
    problem: S::Problem,
    initial: Option<Array<f64, D>>,
    callback: Option<&Bound<'py, PyAny>>,
    max_steps: Option<usize>,
) -> PyResult<Bound<'py, PyArray<f64, D>>> {
    if let Some(other) = callback.filter(|callback| !callback.is_callable()) {
        let message = format!("callback is a {}, expected a callable", other.get_type().name()?);
        return Err(PyTypeError::new_err(message));
    }
    let callback = callback.map(|callback| callback.clone().unbind());
    let ask = |py: Python<'_>, report: &solve::Report| {
        py.check_signals()?;
        let Some(callback) = &callback else { return Ok(()) };
        callback.call1(py, (Report::from(report),)).map(drop)
    };
    let mut limits = Limits::default();
    limits.steps = max_steps.unwrap_or(limits.steps);
    let mut asked = Ok(());
    let (solution, report) = py.detach(|| {
        solve::solve::<S>(problem, initial, limits, &mut |report| {
            asked = Python::attach(|py| ask(py, report));
            asked.is_ok()
        })
    });
    asked?;
    if report.status != Status::Converged {
        log::warn!("a solver gave up: {}", Report::from(&report).__repr__());
    }
    ask(py, &report)?;
    Ok(solution.into_pyarray(py))
}
