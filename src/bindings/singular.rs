//! Singular values of matrices for Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::arguments::at_least_zero;
use super::call::{Call, Owner, Role};
use super::errors::Problem;
use crate::kernels::linear::{self, Rows};
use crate::kernels::storage::{Access, Float};
use crate::runtime::Isa;

/// What is found of a matrix, and the square of its norm; see `_core.pyi`.
type Found = (f64, f64, f64, usize);

/// The largest singular value of a matrix, the first dimension by all others; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (matrix, vector, *, steps, tolerance, threads))]
pub fn top_singular_value(
    py: Python<'_>,
    matrix: &Bound<'_, PyAny>,
    vector: &Bound<'_, PyAny>,
    steps: usize,
    tolerance: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<Found> {
    let tolerance = at_least_zero("tolerance", tolerance)?;
    if steps == 0 {
        return Err(PyValueError::new_err("Invalid steps: 0; expected at least 1"));
    }
    let mut call = Call::new(|owner: Owner| ["matrix", "vector"][owner.argument as usize].to_string());
    let given = call.take(Owner::new(0, 0), matrix, &Role::new(Access::Reads))?;
    if given.shape.len() < 2 || given.len == 0 {
        let expected = "2 or more dimensions, none of them 0".into();
        let problem = Problem::Matrices {
            shape: given.shape.clone(),
            expected,
        };
        return Err(call.refuse(Owner::new(0, 0), problem));
    }
    let role = Role::new(Access::Updates).dtype(given.work_dtype());
    let start = call.take(Owner::new(1, 0), vector, &role.shape(&[given.row() as i64]))?;
    let order: SmallVec<[usize; 4]> = (0..given.shape.len()).collect();
    let tensors = Tensors {
        matrix: Rows {
            data: call.stage(&given, &order, Access::Reads),
            dtype: given.float(),
            rows: given.len / given.row(),
            cols: given.row(),
        },
        vector: call.stage(&start, &[0], Access::Updates),
    };
    let found = call.run(py, threads, || {
        let tensors = &{ tensors }; // all of it: by themselves, its pointers are not `Send`
        // SAFETY: the views are valid, and nothing else has the vector: `Call::run` saw to it.
        Some(unsafe {
            match tensors.matrix.dtype {
                Float::F64 => tensors.find::<f64>((steps, tolerance), threads),
                _ => tensors.find::<f32>((steps, tolerance), threads),
            }
        })
    })?;
    Ok(found.expect("the kernel gives something"))
}

/// A matrix, and a vector of as many elements as it has columns.
struct Tensors {
    matrix: Rows,
    vector: *mut u8,
}

// SAFETY: the pointers are used by `find` only, whose caller answers for the memory.
unsafe impl Send for Tensors {}

impl Tensors {
    /// # Safety
    /// Both are valid, the vector of type `S`, which the matrix's arithmetic is in, and not used otherwise.
    unsafe fn find<S: linear::Work>(&self, limits: (usize, f64), threads: usize) -> Found {
        let (isa, matrix) = (Isa::current(), self.matrix);
        let threads = threads
            .min(matrix.rows * matrix.cols / linear::ELEMENTS_PER_THREAD)
            .max(1);
        // SAFETY: the caller's promise.
        unsafe {
            let vector = std::slice::from_raw_parts_mut(self.vector.cast::<S>(), matrix.cols);
            let found = linear::top_singular_value(isa, matrix, vector, limits, threads);
            (found.value, found.residual, found.squared_norm, found.steps)
        }
    }
}
