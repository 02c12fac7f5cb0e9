//! Normalization of ghosts for Python.

use pyo3::prelude::*;
use smallvec::SmallVec;

use super::call::{Call, Owner, Role};
use super::errors::Problem;
use super::view::View;
use crate::kernels::ghost::{self, Affine, Shape};
use crate::kernels::storage::{Access, DType};

type Tensor<'a, 'py> = &'a Bound<'py, PyAny>;

/// Normalizes each ghost of a batch; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (x, out, affine, statistics, *, size, eps, threads))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn ghost_norm(
    py: Python<'_>,
    x: Tensor<'_, '_>,
    out: Tensor<'_, '_>,
    affine: Tensor<'_, '_>,
    statistics: Tensor<'_, '_>,
    size: usize,
    eps: f64,
    threads: usize,
) -> PyResult<()> {
    let named = [("x", x, Access::Reads), ("out", out, Access::Writes)];
    let mut batch = Batch::take(&named, size)?;
    let affine = batch.affine(affine)?;
    let mut found = batch.numbers("statistics", statistics, &batch.of_ghosts(3), Access::Writes)?;
    batch.run(py, threads, move |shape, elements| {
        let channels = shape.channels;
        // SAFETY: `run` passes so many elements, which overlap nothing; the numbers are as many as their shapes say.
        unsafe {
            let affine = Affine::of(affine.read(), channels);
            ghost::forward(
                shape,
                elements[0],
                elements[1],
                affine,
                eps,
                found.write(),
                threads,
            );
        }
    })
}

/// Writes the derivatives; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (x, grad, out, affine, statistics, derivatives, *, size, threads))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn ghost_norm_backward(
    py: Python<'_>,
    x: Tensor<'_, '_>,
    grad: Tensor<'_, '_>,
    out: Tensor<'_, '_>,
    affine: Tensor<'_, '_>,
    statistics: Tensor<'_, '_>,
    derivatives: Tensor<'_, '_>,
    size: usize,
    threads: usize,
) -> PyResult<()> {
    let named = [
        ("x", x, Access::Reads),
        ("grad", grad, Access::Reads),
        ("out", out, Access::Writes),
    ];
    let mut batch = Batch::take(&named, size)?;
    let affine = batch.affine(affine)?;
    let known = batch.numbers("statistics", statistics, &batch.of_ghosts(3), Access::Reads)?;
    let mut found = batch.numbers("derivatives", derivatives, &batch.of_ghosts(2), Access::Writes)?;
    batch.run(py, threads, move |shape, elements| {
        let channels = shape.channels;
        // SAFETY: as in `ghost_norm`.
        unsafe {
            let affine = Affine::of(affine.read(), channels);
            let from = [elements[0].cast_const(), elements[1]];
            ghost::backward(
                shape,
                from,
                elements[2],
                affine,
                known.read(),
                found.write(),
                threads,
            );
        }
    })
}

/// Tensors of a batch's shape and dtype, and numbers of its channels.
struct Batch {
    call: Call<fn(Owner) -> String>,
    shape: Shape,
    elements: Elements,
}

/// The first elements of the tensors.
struct Elements(SmallVec<[*mut u8; 3]>);

// SAFETY: the pointers are used by the kernel only, while the call keeps the tensors.
unsafe impl Send for Elements {}

/// Numbers of a tensor, one after the other.
struct Numbers {
    first: *mut f64,
    len: usize,
}

// SAFETY: as above.
unsafe impl Send for Numbers {}

impl Numbers {
    /// # Safety
    /// The call keeps the tensor, and nothing writes there.
    unsafe fn read(&self) -> &[f64] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }

    /// # Safety
    /// The call keeps the tensor, and nothing else uses it.
    unsafe fn write(&mut self) -> &mut [f64] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

const NAMES: [&str; 6] = ["x", "grad", "out", "affine", "statistics", "derivatives"];

fn owner(name: &str) -> Owner {
    let argument = NAMES.iter().position(|known| *known == name);
    Owner::new(argument.expect("a name that is listed"), 0)
}

impl Batch {
    /// Takes the tensors, in the order in which the first has its elements.
    fn take(named: &[(&str, Tensor<'_, '_>, Access)], size: usize) -> PyResult<Self> {
        let name: fn(Owner) -> String = |owner| NAMES[owner.argument as usize].to_string();
        let mut call = Call::new(name);
        let mut views: SmallVec<[View; 3]> = SmallVec::new();
        for (name, tensor, access) in named {
            let role = Role::new(*access).like(views.first());
            let view = call.take(owner(name), tensor, &role)?;
            views.push(view);
        }
        let first = &views[0];
        if first.shape.len() < 2 || size == 0 {
            let (shape, expected) = (first.shape.clone(), "2 or more dimensions".into());
            return Err(call.refuse(owner("x"), Problem::Matrices { shape, expected }));
        }
        let (shape, order) = laid_out(first, size);
        let stage = |(view, (_, _, access)): (&View, &(_, _, Access))| call.stage(view, &order, *access);
        let elements = Elements(views.iter().zip(named).map(stage).collect());
        Ok(Batch {
            call,
            shape,
            elements,
        })
    }

    /// The shape of so many numbers for each channel of each ghost.
    fn of_ghosts(&self, many: i64) -> [i64; 3] {
        [many, self.shape.ghosts() as i64, self.shape.channels as i64]
    }

    fn affine(&mut self, tensor: Tensor<'_, '_>) -> PyResult<Numbers> {
        let shape = [2, self.shape.channels as i64];
        self.numbers("affine", tensor, &shape, Access::Reads)
    }

    fn numbers(
        &mut self,
        name: &str,
        tensor: Tensor<'_, '_>,
        shape: &[i64],
        access: Access,
    ) -> PyResult<Numbers> {
        let role = Role::new(access).shape(shape).dtype(DType::F64);
        let view = self.call.take(owner(name), tensor, &role)?;
        let order: SmallVec<[usize; 4]> = (0..shape.len()).collect();
        let first = self.call.stage(&view, &order, access).cast();
        Ok(Numbers { first, len: view.len })
    }

    /// Runs a kernel on the elements of the tensors, if there are any.
    fn run(
        mut self,
        py: Python<'_>,
        threads: usize,
        kernel: impl FnOnce(&Shape, &[*mut u8]) + Send,
    ) -> PyResult<()> {
        let (shape, elements) = (self.shape, self.elements);
        self.call.run(py, threads, || {
            let Elements(elements) = { elements }; // all of it: by themselves, its pointers are not `Send`
            if shape.rows * shape.channels * shape.run > 0 {
                kernel(&shape, &elements);
            }
            Some(())
        })?;
        Ok(())
    }
}

/// The batch as rows of channels, and the dimensions in the order of its elements: that of the tensor where its
/// channels come second or last.
fn laid_out(view: &View, size: usize) -> (Shape, SmallVec<[usize; 4]>) {
    let (rows, channels) = (view.shape[0] as usize, view.shape[1] as usize);
    let run = view.shape[2..].iter().product::<i64>() as usize;
    let mut order: SmallVec<[usize; 4]> = (0..view.shape.len()).collect();
    let mut shape = Shape {
        dtype: view.float(),
        rows,
        channels,
        run,
        size,
    };
    if !view.is_contiguous {
        order[1..].rotate_left(1);
        match view.is_dense_in(&order) {
            true => (shape.rows, shape.size, shape.run) = (rows * run, size * run, 1),
            false => order.sort_unstable(),
        }
    }
    (shape, order)
}
