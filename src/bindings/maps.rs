//! Functions of rows for Python.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::errors::{Place, Problem, refuse};
use super::orthogonal::at_least_zero;
use super::overlap::{self, Claim};
use super::tensor::{Reader, View};
use crate::kernels::rows::{self, Shape, Simplex};
use crate::kernels::storage::Staged;

/// A function of rows with its numbers, checked.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Map(Simplex);

#[pymethods]
impl Map {
    #[staticmethod]
    fn simplex(s: f64) -> PyResult<Map> {
        let sum = at_least_zero("s", s)?;
        Ok(Map(Simplex { sum }))
    }

    /// Writes the image of every row; see `_core.pyi`.
    fn forward(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        dim: i64,
        threads: usize,
    ) -> PyResult<()> {
        let mut call = Call::read(&[("x", x)], out, dim, true)?;
        // SAFETY: `run` passes pointers to so many elements, and `read` saw to it that `out` overlaps no more than `x`
        // itself, element by element.
        call.run(py, threads, |shape, from, to| unsafe {
            rows::forward(&self.0, shape, from[0], to, threads);
        });
        Ok(())
    }

    /// Writes the products with every row's Jacobian; see `_core.pyi`.
    fn vjp(
        &self,
        py: Python<'_>,
        y: &Bound<'_, PyAny>,
        v: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        dim: i64,
        threads: usize,
    ) -> PyResult<()> {
        let mut call = Call::read(&[("y", y), ("v", v)], out, dim, false)?;
        // SAFETY: `run` passes pointers to so many elements, and `read` saw to it that `out` overlaps none of them.
        call.run(py, threads, |shape, from, to| unsafe {
            rows::vjp(&self.0, shape, from[0], from[1], to, threads);
        });
        Ok(())
    }
}

/// Checked tensors of one shape and dtype: those that are read, then the one that is written. The reader keeps them.
struct Call {
    _reader: Reader,
    shape: Shape,
    pointers: SmallVec<[*mut u8; 3]>,
    staged: Vec<Staged>,
}

// SAFETY: the pointers are used by `run` only, while the caller holds the tensors.
unsafe impl Send for Call {}

impl Call {
    fn read(
        inputs: &[(&'static str, &Bound<'_, PyAny>)],
        out: &Bound<'_, PyAny>,
        dim: i64,
        in_place: bool,
    ) -> PyResult<Call> {
        let mut reader = Reader::default();
        let mut views: SmallVec<[View; 3]> = SmallVec::new();
        for &(name, tensor) in inputs.iter().chain(&[("out", out)]) {
            let view = match reader.view(tensor, name == "out", false)? {
                Ok(view) => view,
                Err(problem) => return Err(refuse(name, *problem)),
            };
            if let Some(problem) = views.first().and_then(|first| view.unlike(first)) {
                return Err(refuse(name, problem));
            }
            views.push(view);
        }
        check_overlaps(inputs, &views, in_place)?;
        let (name, first) = (inputs[0].0, &views[0]);
        let dim = dimension(name, first, dim)?;
        let len = first.shape[dim] as usize;
        let shape = Shape {
            dtype: first.dtype,
            rows: first.len / len,
            len,
        };
        // The rows along the dimension, in the order in which the first tensor has them.
        let mut order = first.order();
        order.sort_by_key(|&each| each == dim); // stable
        let mut staged = Vec::new();
        let pointers = (views.iter().enumerate())
            .map(|(i, view)| {
                if view.is_dense_in(&order) {
                    return view.data;
                }
                let mut copy = Staged::new(view.strided(&order), i == inputs.len());
                let data = copy.data();
                staged.push(copy);
                data
            })
            .collect();
        Ok(Call {
            _reader: reader,
            shape,
            pointers,
            staged,
        })
    }

    /// Calls `kernel` with what is read and what is written, without the GIL.
    fn run(
        &mut self,
        py: Python<'_>,
        threads: usize,
        kernel: impl Fn(Shape, &[*const u8], *mut u8) + Send + Sync,
    ) {
        let call = self;
        py.detach(move || {
            let call = call; // all of it: by themselves, its pointers are not `Send`
            let from: SmallVec<[*const u8; 3]> = call.pointers.iter().map(|to| to.cast_const()).collect();
            let to = call.pointers[from.len() - 1];
            // SAFETY: the views are valid while the caller holds the tensors and this the reader.
            unsafe { call.staged.iter_mut().for_each(|copy| copy.load(threads)) };
            if call.shape.rows > 0 {
                kernel(call.shape, &from, to);
            }
            // SAFETY: as above, and what is written was asked for as writable.
            unsafe { call.staged.iter_mut().for_each(|copy| copy.store(threads)) };
        });
    }
}

/// Refuses an output that shares memory with itself, or with an input but for one that it is, if it may be.
fn check_overlaps(
    inputs: &[(&'static str, &Bound<'_, PyAny>)],
    views: &[View],
    in_place: bool,
) -> PyResult<()> {
    let (out, read) = views.split_last().expect("one is written");
    if out.overlaps_itself() {
        return Err(refuse("out", Problem::OverlapsItself));
    }
    if out.len == 0 {
        return Ok(());
    }
    let is_out = |view: &View| view.data == out.data && view.strides == out.strides;
    let reads: SmallVec<[_; 2]> = (inputs.iter().zip(read))
        .filter(|(_, view)| !(in_place && is_out(view)))
        .map(|(&(name, _), view)| Claim::new(view, name))
        .collect();
    match overlap::find(&mut [Claim::new(out, "out")], &reads) {
        None => Ok(()),
        Some((one, other)) => {
            let other = Place::named(other.into());
            Err(refuse(one, Problem::Overlaps { other }))
        }
    }
}

/// The dimension, counted from 0, with at least one element.
fn dimension(name: &'static str, view: &View, dim: i64) -> PyResult<usize> {
    let rank = view.shape.len() as i64;
    if rank == 0 {
        let (shape, expected) = (view.shape.clone(), "1 or more dimensions".into());
        return Err(refuse(name, Problem::Matrices { shape, expected }));
    }
    if !(-rank..rank).contains(&dim) {
        return Err(PyIndexError::new_err(format!(
            "Invalid dim: {dim}; expected {} to {} for {name} of shape {:?}",
            -rank,
            rank - 1,
            view.shape
        )));
    }
    let at = dim.rem_euclid(rank) as usize;
    match view.shape[at] {
        0 => Err(PyValueError::new_err(format!(
            "{name} has shape {:?}, expected an element along dim {dim} at least",
            view.shape
        ))),
        _ => Ok(at),
    }
}
