//! Normalization of ghosts for Python.

use pyo3::prelude::*;
use smallvec::SmallVec;

use super::call::{Call, Owner, Role};
use super::errors::Problem;
use super::view::View;
use crate::kernels::ghost::{self, Affine, Channels, Shape};
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
    affine: [Option<Bound<'_, PyAny>>; 2],
    statistics: Tensor<'_, '_>,
    size: usize,
    eps: f64,
    threads: usize,
) -> PyResult<()> {
    let named = [("x", x, Access::Reads), ("out", out, Access::Writes)];
    let mut batch = Batch::take(&named, size)?;
    let of_channels = [batch.shape.channels as i64];
    let affine = channels(
        &mut batch.call,
        ["weight", "bias"],
        &affine,
        &of_channels,
        Access::Reads,
    )?;
    let mut found = batch.numbers(statistics, Access::Writes)?;
    batch.run(py, threads, move |shape, elements| {
        // SAFETY: `run` passes so many elements, which overlap nothing; the numbers are as many as their shapes say.
        unsafe {
            let (weight, bias) = (read_or(affine[0], 1.0, shape), read_or(affine[1], 0.0, shape));
            let (weight, bias) = (&weight[..], &bias[..]);
            let affine = Affine { weight, bias };
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

/// Moves running statistics; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (running, statistics, *, momentum, counted))]
pub fn ghost_follow(
    py: Python<'_>,
    running: [Option<Bound<'_, PyAny>>; 2],
    statistics: Tensor<'_, '_>,
    momentum: Option<f64>,
    counted: f64,
) -> PyResult<()> {
    let mut call = Call::new(place as fn(Owner) -> String);
    let role = Role::new(Access::Reads).dtype(DType::F64);
    let view = call.take(owner("statistics"), statistics, &role)?;
    let &[3, _, of_channels] = &view.shape[..] else {
        let (shape, expected) = (view.shape.clone(), "3 matrices".into());
        return Err(call.refuse(owner("statistics"), Problem::Matrices { shape, expected }));
    };
    let known = staged(&mut call, &view, Access::Reads);
    let names = ["running_mean", "running_var"];
    let running = channels(&mut call, names, &running, &[of_channels], Access::Updates)?;
    call.run(py, 1, move || {
        // SAFETY: the call keeps the numbers, which are as many as their shapes say and overlap nothing.
        unsafe {
            let [means, _, variances] = kinds(known.read());
            for (running, own) in running.iter().zip([means, variances]) {
                if let Some(running) = running {
                    running.follow(own, momentum, counted);
                }
            }
        }
        Some(())
    })?;
    Ok(())
}

/// Writes the derivatives; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (x, grad, out, weight, statistics, derivatives, *, size, threads))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn ghost_norm_backward(
    py: Python<'_>,
    x: Tensor<'_, '_>,
    grad: Tensor<'_, '_>,
    out: Tensor<'_, '_>,
    weight: Option<Bound<'_, PyAny>>,
    statistics: Tensor<'_, '_>,
    derivatives: [Option<Bound<'_, PyAny>>; 2],
    size: usize,
    threads: usize,
) -> PyResult<()> {
    let named = [
        ("x", x, Access::Reads),
        ("grad", grad, Access::Reads),
        ("out", out, Access::Writes),
    ];
    let mut batch = Batch::take(&named, size)?;
    let of_channels = [batch.shape.channels as i64];
    let [weight] = channels(
        &mut batch.call,
        ["weight"],
        &[weight],
        &of_channels,
        Access::Reads,
    )?;
    let known = batch.numbers(statistics, Access::Reads)?;
    let names = ["by_weight", "by_bias"];
    let by = channels(&mut batch.call, names, &derivatives, &of_channels, Access::Writes)?;
    batch.run(py, threads, move |shape, elements| {
        let mut found = vec![0.0; 2 * shape.ghosts() * shape.channels];
        // SAFETY: as in `ghost_norm`.
        unsafe {
            let weight = read_or(weight, 1.0, shape);
            let from = [elements[0].cast_const(), elements[1]];
            ghost::backward(
                shape,
                from,
                elements[2],
                &weight,
                known.read(),
                &mut found,
                threads,
            );
            let kinds: [&[f64]; 2] = kinds(&found);
            for (by, of_ghosts) in by.iter().zip(kinds) {
                if let Some(by) = by {
                    by.write(&ghost::totals(of_ghosts, shape.channels));
                }
            }
        }
    })
}

/// The numbers of each of `N` kinds.
fn kinds<const N: usize>(numbers: &[f64]) -> [&[f64]; N] {
    let each = numbers.len() / N;
    std::array::from_fn(|kind| &numbers[kind * each..][..each])
}

/// The numbers of the channels, or this for each of them.
///
/// # Safety
/// As for [`Channels::read`].
unsafe fn read_or(channels: Option<Channels>, otherwise: f64, shape: &Shape) -> Vec<f64> {
    match channels {
        // SAFETY: the caller's promise.
        Some(channels) => unsafe { channels.read() },
        None => vec![otherwise; shape.channels],
    }
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

const NAMES: [&str; 10] = [
    "x",
    "grad",
    "out",
    "statistics",
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "by_weight",
    "by_bias",
];

fn place(owner: Owner) -> String {
    NAMES[owner.argument as usize].to_string()
}

fn owner(name: &str) -> Owner {
    let argument = NAMES.iter().position(|known| *known == name);
    Owner::new(argument.expect("a name that is listed"), 0)
}

impl Batch {
    /// Takes the tensors, in the order in which the first has its elements.
    fn take(named: &[(&str, Tensor<'_, '_>, Access)], size: usize) -> PyResult<Self> {
        let mut call = Call::new(place as fn(Owner) -> String);
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

    /// Three numbers for each channel of each ghost.
    fn numbers(&mut self, tensor: Tensor<'_, '_>, access: Access) -> PyResult<Numbers> {
        let shape = [3, self.shape.ghosts() as i64, self.shape.channels as i64];
        let role = Role::new(access).shape(&shape).dtype(DType::F64);
        let view = self.call.take(owner("statistics"), tensor, &role)?;
        Ok(staged(&mut self.call, &view, access))
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

/// Numbers of a tensor in the order of its dimensions.
fn staged(call: &mut Call<fn(Owner) -> String>, view: &View, access: Access) -> Numbers {
    let order: SmallVec<[usize; 4]> = (0..view.shape.len()).collect();
    let first = call.stage(view, &order, access).cast();
    Numbers { first, len: view.len }
}

/// Numbers of the channels, those that there are.
fn channels<const N: usize>(
    call: &mut Call<fn(Owner) -> String>,
    names: [&str; N],
    tensors: &[Option<Bound<'_, PyAny>>; N],
    shape: &[i64; 1],
    access: Access,
) -> PyResult<[Option<Channels>; N]> {
    let role = Role::new(access).shape(shape);
    let mut found = [None; N];
    for ((found, name), tensor) in found.iter_mut().zip(names).zip(tensors) {
        if let Some(tensor) = tensor {
            let view = call.take(owner(name), tensor, &role)?;
            let data = call.stage(&view, &[0], access);
            let (dtype, len) = (view.float(), view.len);
            *found = Some(Channels { data, dtype, len });
        }
    }
    Ok(found)
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
