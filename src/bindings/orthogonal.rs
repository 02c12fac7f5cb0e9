//! Newton–Schulz for Python: schedules, and `orthogonalize`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use smallvec::SmallVec;

use super::arguments::{at_least_zero, choice};
use super::call::{Call, Names, Owner, Role};
use super::errors::Problem;
use crate::kernels::matrix::{Layout, Part};
use crate::kernels::orthogonal::{self, Algorithm, Options, Precision};
use crate::kernels::storage::{Access, Float};

/// The coefficients of every step, checked.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Schedule(pub orthogonal::Schedule);

#[derive(FromPyObject)]
enum Coefficients {
    Name(String),
    Triple([f64; 3]),
    Triples(Vec<[f64; 3]>),
}

#[pymethods]
impl Schedule {
    #[new]
    #[pyo3(signature = (coefficients, steps=None))]
    fn new(coefficients: Coefficients, steps: Option<usize>) -> PyResult<Self> {
        let schedule = match coefficients {
            Coefficients::Name(name) => orthogonal::Schedule::named(&name, steps),
            Coefficients::Triple(triple) => orthogonal::Schedule::new(&[triple], steps.unwrap_or(5)),
            Coefficients::Triples(triples) => {
                orthogonal::Schedule::new(&triples, steps.unwrap_or(triples.len()))
            }
        };
        schedule
            .map(Schedule)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// The coefficients (a, b, c) of every step.
    fn triples(&self) -> Vec<(f64, f64, f64)> {
        self.0.triples().iter().map(|&[a, b, c]| (a, b, c)).collect()
    }
}

/// How to orthogonalize, checked.
pub fn options(
    schedule: &Schedule,
    algorithm: &Bound<'_, PyAny>,
    precision: &Bound<'_, PyAny>,
    eps: &Bound<'_, PyAny>,
    restarts: &[i64],
) -> PyResult<Options> {
    let precision = choice("precision", precision, PRECISIONS)?;
    if precision == Precision::Bfloat16 && schedule.0.needs_exact_factors() {
        return Err(PyValueError::new_err(
            "Invalid precision: 'bfloat16' rounds singular values past what cubic5 keeps positive; \
             expected 'auto', 'float32' or 'float64'",
        ));
    }
    let restart = |&step: &i64| {
        let message = || format!("Invalid restarts: {step}; expected steps, counted from 0");
        usize::try_from(step).map_err(|_| PyValueError::new_err(message()))
    };
    Ok(Options {
        schedule: schedule.0.clone(),
        algorithm: choice("algorithm", algorithm, ALGORITHMS)?,
        precision,
        eps: at_least_zero("eps", eps)?,
        restarts: restarts.iter().map(restart).collect::<PyResult<_>>()?,
    })
}

const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("auto", Algorithm::Auto),
    ("standard", Algorithm::Standard),
    ("gram", Algorithm::Gram),
];

const PRECISIONS: &[(&str, Precision)] = &[
    ("auto", Precision::Auto),
    ("float64", Precision::Float64),
    ("float32", Precision::Float32),
    ("bfloat16", Precision::Bfloat16),
];

/// Orthogonalizes every matrix of every tensor; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (inputs, outputs, *, schedule, eps, algorithm, precision, restarts, threads))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn orthogonalize(
    py: Python<'_>,
    inputs: &Bound<'_, PyList>,
    outputs: &Bound<'_, PyList>,
    schedule: &Schedule,
    eps: &Bound<'_, PyAny>,
    algorithm: &Bound<'_, PyAny>,
    precision: &Bound<'_, PyAny>,
    restarts: Vec<i64>,
    threads: usize,
) -> PyResult<()> {
    let options = options(schedule, algorithm, precision, eps, &restarts)?;
    if inputs.len() != outputs.len() {
        let message = format!("out has {} tensors, expected {}", outputs.len(), inputs.len());
        return Err(PyValueError::new_err(message));
    }
    let name = |owner: Owner| format!("{}[{}]", ["tensors", "out"][owner.argument as usize], owner.index);
    let mut call = Call::new(name);
    let mut matrices = Vec::new();
    for i in 0..inputs.len() {
        let (input, output) = (inputs.get_item(i)?, outputs.get_item(i)?);
        matrices.extend(pair(&mut call, i, &input, &output)?);
    }
    call.run(py, threads, || {
        // SAFETY: the views are valid, and an output is shared with no more than its own input, element by element:
        // `Call::run` saw to it.
        unsafe { orthogonal::orthogonalize_all(&matrices, &options, threads) };
        Some(())
    })?;
    Ok(())
}

/// The matrices of a tensor and of where they go.
fn pair(
    call: &mut Call<impl Names>,
    i: usize,
    input: &Bound<'_, PyAny>,
    output: &Bound<'_, PyAny>,
) -> PyResult<Vec<orthogonal::Memory>> {
    let (reads, writes) = (
        Role::new(Access::Reads).in_place(),
        Role::new(Access::Writes).in_place(),
    );
    let read = call.take(Owner::new(0, i), input, &reads)?;
    let shape: SmallVec<[usize; 4]> = read.shape.iter().map(|&size| size as usize).collect();
    let parts = Layout::Batch.parts(&shape).map_err(|mismatch| {
        let (shape, expected) = (read.shape.clone(), mismatch.to_string());
        call.refuse(Owner::new(0, i), Problem::Matrices { shape, expected })
    })?;
    let written = call.take(Owner::new(1, i), output, &writes.like(Some(&read)))?;
    if read.len == 0 {
        return Ok(Vec::new());
    }
    let order: Vec<usize> = (0..shape.len()).collect();
    let same = read.is(&written);
    let access = if same { Access::Updates } else { Access::Writes };
    let to = call.stage(&written, &order, access);
    let from = match same {
        true => to,
        false => call.stage(&read, &order, Access::Reads),
    };
    Ok(memory(read.float(), from, to, &parts).collect())
}

fn memory(
    dtype: Float,
    from: *mut u8,
    to: *mut u8,
    parts: &[Part],
) -> impl Iterator<Item = orthogonal::Memory> + '_ {
    let size = dtype.size();
    parts
        .iter()
        .enumerate()
        .map(move |(i, &Part { rows, cols })| orthogonal::Memory {
            dtype,
            from: from.wrapping_add(i * rows * cols * size),
            to: to.wrapping_add(i * rows * cols * size),
            rows,
            cols,
        })
}
