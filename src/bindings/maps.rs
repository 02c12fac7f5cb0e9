//! Functions of rows for Python.

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::arguments::at_least_zero;
use super::call::{Call, Names, Owner, Role};
use super::errors::Problem;
use super::view::View;
use crate::kernels::rows::{self, Shape, Simplex};
use crate::kernels::storage::Access;

/// A function of rows with its numbers, checked.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Map(Simplex);

#[pymethods]
impl Map {
    #[staticmethod]
    fn simplex(s: &Bound<'_, PyAny>) -> PyResult<Map> {
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
        let name = if out.is(x) { "x" } else { "out" };
        // SAFETY: `run` passes pointers to so many elements, and `out` overlaps no more than `x` itself, element by
        // element.
        run(
            py,
            &[("x", x), (name, out)],
            dim,
            threads,
            true,
            |shape, pointers| unsafe {
                rows::forward(&self.0, shape, pointers[0], pointers[1], threads);
            },
        )
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
        let tensors = [("y", y), ("v", v), ("out", out)];
        // SAFETY: `run` passes pointers to so many elements, and `out` overlaps none of the others.
        run(py, &tensors, dim, threads, false, |shape, pointers| unsafe {
            rows::vjp(&self.0, shape, pointers[0], pointers[1], pointers[2], threads);
        })
    }
}

/// Tensors of one shape and dtype, in the order of their rows.
struct Tensors {
    shape: Shape,
    pointers: SmallVec<[*mut u8; 3]>,
}

// SAFETY: the pointers are used by the kernel only, while the call keeps the tensors.
unsafe impl Send for Tensors {}

/// Calls `kernel` with tensors that are read and, last, the one that is written.
fn run(
    py: Python<'_>,
    tensors: &[(&str, &Bound<'_, PyAny>)],
    dim: i64,
    threads: usize,
    in_place: bool,
    kernel: impl Fn(Shape, &[*mut u8]) + Sync,
) -> PyResult<()> {
    let mut call = Call::new(|owner: Owner| tensors[owner.argument as usize].0.to_string());
    let mut views: SmallVec<[View; 3]> = SmallVec::new();
    let access = |i: usize| match i + 1 == tensors.len() {
        true => Access::Writes,
        false => Access::Reads,
    };
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        let role = Role::new(access(i)).like(views.first());
        let role = if in_place { role.in_place() } else { role };
        let view = call.take(Owner::new(i, 0), tensor, &role)?;
        views.push(view);
    }
    let first = &views[0];
    let dim = dimension(&call, tensors[0].0, first, dim)?;
    let len = first.shape[dim] as usize;
    let shape = Shape {
        dtype: first.float(),
        rows: first.len / len,
        len,
    };
    // The rows along the dimension, in the order in which the first tensor has them.
    let mut order = first.order();
    order.sort_by_key(|&each| each == dim); // stable
    let stage = |(i, view): (usize, &View)| call.stage(view, &order, access(i));
    let pointers = views.iter().enumerate().map(stage).collect();
    let tensors = Tensors { shape, pointers };
    call.run(py, threads, || {
        let Tensors { shape, pointers } = &{ tensors }; // all of it: by themselves, its pointers are not `Send`
        if shape.rows > 0 {
            kernel(*shape, pointers);
        }
        Some(())
    })?;
    Ok(())
}

/// The dimension, counted from 0, with at least one element.
fn dimension(call: &Call<impl Names>, name: &str, view: &View, dim: i64) -> PyResult<usize> {
    let rank = view.shape.len() as i64;
    if rank == 0 {
        let (shape, expected) = (view.shape.clone(), "1 or more dimensions".into());
        return Err(call.refuse(Owner::new(0, 0), Problem::Matrices { shape, expected }));
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
