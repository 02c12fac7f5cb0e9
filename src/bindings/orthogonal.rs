//! Newton–Schulz for Python: schedules, and `orthogonalize`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use smallvec::SmallVec;

use super::errors::{Place, Problem, Refusal};
use super::overlap::{self, Claim};
use super::tensor::{Reader, View};
use crate::kernels::matrix::{Layout, Part};
use crate::kernels::orthogonal::{self, Algorithm, Options, Precision};
use crate::kernels::storage::{Float, Staged};

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
    algorithm: &str,
    precision: &str,
    eps: f64,
    restarts: &[i64],
) -> PyResult<Options> {
    let precision = self::precision(precision)?;
    if precision == Precision::Bfloat16 && schedule.0.needs_exact_factors() {
        return Err(PyValueError::new_err(
            "Invalid precision: \"bfloat16\" rounds singular values past what cubic5 keeps positive; \
             expected 'auto', 'float32' or 'float64'",
        ));
    }
    let restart = |&step: &i64| {
        let message = || format!("Invalid restarts: {step}; expected steps, counted from 0");
        usize::try_from(step).map_err(|_| PyValueError::new_err(message()))
    };
    Ok(Options {
        schedule: schedule.0.clone(),
        algorithm: self::algorithm(algorithm)?,
        precision,
        eps: at_least_zero("eps", eps)?,
        restarts: restarts.iter().map(restart).collect::<PyResult<_>>()?,
    })
}

/// The number, unless it is negative, infinite or NaN.
pub fn at_least_zero(argument: &str, value: f64) -> PyResult<f64> {
    if value >= 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(PyValueError::new_err(format!(
        "Invalid {argument}: {value}; expected a finite number of at least 0"
    )))
}

/// The error for a name that is none of those expected.
pub fn unknown(argument: &str, got: &str, expected: &str) -> PyErr {
    PyValueError::new_err(format!("Invalid {argument}: {got:?}; expected {expected}"))
}

fn algorithm(name: &str) -> PyResult<Algorithm> {
    match name {
        "auto" => Ok(Algorithm::Auto),
        "standard" => Ok(Algorithm::Standard),
        "gram" => Ok(Algorithm::Gram),
        other => Err(unknown("algorithm", other, "'auto', 'standard' or 'gram'")),
    }
}

fn precision(name: &str) -> PyResult<Precision> {
    match name {
        "auto" => Ok(Precision::Auto),
        "float64" => Ok(Precision::Float64),
        "float32" => Ok(Precision::Float32),
        "bfloat16" => Ok(Precision::Bfloat16),
        other => Err(unknown(
            "precision",
            other,
            "'auto', 'float64', 'float32' or 'bfloat16'",
        )),
    }
}

/// Orthogonalizes every matrix of every tensor; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (inputs, outputs, *, schedule, eps, algorithm, precision, restarts, threads))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn orthogonalize(
    py: Python<'_>,
    inputs: &Bound<'_, PyList>,
    outputs: &Bound<'_, PyList>,
    schedule: &Schedule,
    eps: f64,
    algorithm: &str,
    precision: &str,
    restarts: Vec<i64>,
    threads: usize,
) -> PyResult<()> {
    let options = options(schedule, algorithm, precision, eps, &restarts)?;
    if inputs.len() != outputs.len() {
        let message = format!("out has {} tensors, expected {}", outputs.len(), inputs.len());
        return Err(PyValueError::new_err(message));
    }
    let mut pairs = Pairs::default();
    for i in 0..inputs.len() {
        pairs.add(i, &inputs.get_item(i)?, &outputs.get_item(i)?)?;
    }
    if let Some((one, other)) = overlap::find(&mut pairs.writes, &pairs.reads) {
        return Err(refuse(one, Problem::Overlaps { other: place(other) }));
    }
    // SAFETY: the views are valid while the caller's lists hold the tensors and `pairs` the reader, and `overlap::find`
    // saw to it that an output is shared with no more than its own input, element by element.
    py.detach(|| unsafe {
        pairs.staged.iter_mut().for_each(|copy| copy.load(threads));
        orthogonal::orthogonalize_all(&pairs.matrices, &options, threads);
        pairs.staged.iter_mut().for_each(|copy| copy.store(threads));
    });
    Ok(())
}

/// Number of the tensor, and whether it is an output.
type Owner = (usize, bool);

fn place((index, is_output): Owner) -> Place {
    Place::named(format!("{}[{index}]", if is_output { "out" } else { "tensors" }))
}

fn refuse(owner: Owner, problem: Problem) -> PyErr {
    Refusal {
        place: place(owner),
        problem,
    }
    .into()
}

/// The checked tensors.
#[derive(Default)]
struct Pairs {
    reader: Reader,
    writes: Vec<Claim<Owner>>,
    reads: Vec<Claim<Owner>>,
    staged: Vec<Staged>,
    matrices: Vec<orthogonal::Memory>,
}

impl Pairs {
    fn add(&mut self, i: usize, input: &Bound<'_, PyAny>, output: &Bound<'_, PyAny>) -> PyResult<()> {
        let input = self.view((i, false), input)?;
        let output = self.view((i, true), output)?;
        let shape: SmallVec<[usize; 4]> = input.shape.iter().map(|&size| size as usize).collect();
        let parts = Layout::Batch.parts(&shape).map_err(|mismatch| {
            let (shape, expected) = (input.shape.clone(), mismatch.to_string());
            refuse((i, false), Problem::Matrices { shape, expected })
        })?;
        if output.shape != input.shape {
            let (shape, expected) = (output.shape, input.shape);
            return Err(refuse((i, true), Problem::Shape { shape, expected }));
        }
        if output.dtype != input.dtype {
            let (dtype, expected) = (output.dtype.name().into(), input.dtype.name().into());
            return Err(refuse((i, true), Problem::DType { dtype, expected }));
        }
        if input.len == 0 {
            return Ok(());
        }
        self.writes.push(Claim::new(&output, (i, true)));
        let same = input.data == output.data && input.strides == output.strides;
        if !same {
            self.reads.push(Claim::new(&input, (i, false)));
        }
        let to = self.stage(&output, true);
        let from = if same { to } else { self.stage(&input, false) };
        self.matrices.extend(memory(input.dtype, from, to, &parts));
        Ok(())
    }

    fn view(&mut self, owner: Owner, tensor: &Bound<'_, PyAny>) -> PyResult<View> {
        let view = match self.reader.view(tensor, owner.1, false)? {
            Ok(view) => view,
            Err(problem) => return Err(refuse(owner, *problem)),
        };
        if owner.1 && view.overlaps_itself() {
            return Err(refuse(owner, Problem::OverlapsItself));
        }
        Ok(view)
    }

    /// The tensor's own memory where it lies row by row, else a copy's.
    fn stage(&mut self, view: &View, write_back: bool) -> *mut u8 {
        if view.is_contiguous() {
            return view.data;
        }
        let order: Vec<usize> = (0..view.shape.len()).collect();
        let mut staged = Staged::new(view.strided(&order), write_back);
        let data = staged.data();
        self.staged.push(staged);
        data
    }
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
