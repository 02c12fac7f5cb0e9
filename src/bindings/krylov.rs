//! The vector work of Lanczos iteration for Python.

use pyo3::prelude::*;
use smallvec::SmallVec;

use super::call::{Call, Names, Owner, Role};
use super::errors::Problem;
use super::view::View;
use crate::kernels::krylov::{self, Rows};
use crate::kernels::linear::Element;
use crate::kernels::storage::{Access, DType, Dims, Float};
use crate::kernels::vector::Noise;

type Tensor<'a, 'py> = (&'static str, &'a Bound<'py, PyAny>);

/// Fills a vector with random numbers; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (out, *, signs, seed, number, threads))]
pub fn krylov_fill(
    py: Python<'_>,
    out: &Bound<'_, PyAny>,
    signs: bool,
    seed: u64,
    number: u64,
    threads: usize,
) -> PyResult<()> {
    struct Fill(bool, u64);
    impl Work for Fill {
        type Result = ();
        fn run<T: Element + From<f32>>(self, _: &[&[T]], _: usize, out: &mut [T], threads: usize) {
            krylov::fill(out, self.0, self.1, threads);
        }
    }
    run(
        py,
        &[],
        ("out", out),
        threads,
        Fill(signs, Noise::key(seed, number)),
    )
}

/// Writes `product - beta * before`; see `_core.pyi`.
#[pyfunction]
pub fn krylov_recur(
    py: Python<'_>,
    product: &Bound<'_, PyAny>,
    before: &Bound<'_, PyAny>,
    beta: f64,
    q: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<f64> {
    struct Recur(f64);
    impl Work for Recur {
        type Result = f64;
        fn run<T: Element + From<f32>>(
            self,
            inputs: &[&[T]],
            _: usize,
            out: &mut [T],
            threads: usize,
        ) -> f64 {
            krylov::recur(inputs[0], inputs[1], self.0, inputs[2], out, threads)
        }
    }
    let inputs = [("product", product), ("before", before), ("q", q)];
    run(py, &inputs, ("out", out), threads, Recur(beta))
}

/// Takes a vector from another; see `_core.pyi`.
#[pyfunction]
pub fn krylov_subtract(
    py: Python<'_>,
    w: &Bound<'_, PyAny>,
    q: &Bound<'_, PyAny>,
    alpha: f64,
    threads: usize,
) -> PyResult<f64> {
    struct Subtract(f64);
    impl Work for Subtract {
        type Result = f64;
        fn run<T: Element + From<f32>>(self, inputs: &[&[T]], _: usize, w: &mut [T], threads: usize) -> f64 {
            krylov::subtract(w, inputs[0], self.0, threads)
        }
    }
    run(py, &[("q", q)], ("w", w), threads, Subtract(alpha))
}

/// Makes vectors orthogonal to others; see `_core.pyi`.
#[pyfunction]
pub fn krylov_orthogonalize(
    py: Python<'_>,
    basis: &Bound<'_, PyAny>,
    block: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<(Vec<Vec<f64>>, Vec<f64>)> {
    struct Orthogonalize;
    impl Work for Orthogonalize {
        type Result = (Vec<f64>, Vec<f64>);
        const OF_ROWS: bool = true;
        fn run<T: Element + From<f32>>(
            self,
            inputs: &[&[T]],
            len: usize,
            block: &mut [T],
            threads: usize,
        ) -> Self::Result {
            krylov::orthogonalize(Rows::new(inputs[0], len), block, threads)
        }
    }
    let (factors, norms) = run(py, &[("basis", basis)], ("block", block), threads, Orthogonalize)?;
    let count = factors.len() / norms.len().max(1);
    Ok((factors.chunks(count.max(1)).map(<[f64]>::to_vec).collect(), norms))
}

/// Multiplies a vector; see `_core.pyi`.
#[pyfunction]
pub fn krylov_scale(py: Python<'_>, w: &Bound<'_, PyAny>, factor: f64, threads: usize) -> PyResult<()> {
    struct Scale(f64);
    impl Work for Scale {
        type Result = ();
        fn run<T: Element + From<f32>>(self, _: &[&[T]], _: usize, w: &mut [T], threads: usize) {
            krylov::scale(w, self.0, threads);
        }
    }
    run(py, &[], ("w", w), threads, Scale(factor))
}

/// What is done with vectors of either type.
trait Work: Send {
    type Result: Send;
    /// Whether these are matrices, of rows of one length.
    const OF_ROWS: bool = false;

    /// Of inputs, what is changed, and the length of a vector.
    fn run<T: Element + From<f32>>(
        self,
        inputs: &[&[T]],
        len: usize,
        out: &mut [T],
        threads: usize,
    ) -> Self::Result;
}

/// Checked vectors, of one type, without gaps.
struct Vectors {
    dtype: Float,
    inputs: SmallVec<[(*const u8, usize); 3]>,
    out: (*mut u8, usize),
    /// Elements of a vector.
    len: usize,
}

// SAFETY: the pointers are used by `work` only, whose caller answers for the memory.
unsafe impl Send for Vectors {}

/// Takes in what is read, vectors as long as the one that is changed or matrices of such rows, and that one.
fn run<W: Work>(
    py: Python<'_>,
    inputs: &[Tensor],
    out: Tensor,
    threads: usize,
    work: W,
) -> PyResult<W::Result> {
    let names: SmallVec<[&str; 4]> = inputs.iter().chain([&out]).map(|(name, _)| *name).collect();
    let mut call = Call::new(|owner: Owner| names[owner.argument as usize].to_string());
    let any = if W::OF_ROWS { &[-1, -1][..] } else { &[-1] };
    let to = take(&mut call, inputs.len(), out.1, &Role::new(Access::Updates), any)?;
    let order = &[0, 1][..any.len()];
    let mut vectors = Vectors {
        dtype: to.float(),
        inputs: SmallVec::new(),
        out: (call.stage(&to, order, Access::Updates), to.len),
        len: to.shape[any.len() - 1] as usize,
    };
    let shape = [-1, to.shape[any.len() - 1]];
    let shape = &shape[2 - any.len()..];
    for (i, (_, tensor)) in inputs.iter().enumerate() {
        let view = take(
            &mut call,
            i,
            tensor,
            &Role::new(Access::Reads).dtype(to.dtype),
            shape,
        )?;
        let data = call
            .stage(&view, &[0, 1][..shape.len()], Access::Reads)
            .cast_const();
        vectors.inputs.push((data, view.len));
    }
    let result = call.run(py, threads, || {
        let vectors = { vectors }; // all of it: by themselves, its pointers are not `Send`
        // SAFETY: the views are valid, and what is changed overlaps nothing else: `Call::run` saw to it.
        Some(unsafe {
            match vectors.dtype {
                Float::F64 => on::<f64, W>(&vectors, threads, work),
                _ => on::<f32, W>(&vectors, threads, work),
            }
        })
    })?;
    Ok(result.expect("the work is always done"))
}

/// Numbers of 32 or 64 bits of a shape, of which -1 stands for any size.
fn take(
    call: &mut Call<impl Names>,
    argument: usize,
    tensor: &Bound<'_, PyAny>,
    role: &Role<'_>,
    shape: &[i64],
) -> PyResult<View> {
    let owner = Owner::new(argument, 0);
    let view = call.take(owner, tensor, role)?;
    if ![DType::F32, DType::F64].contains(&view.dtype) {
        let (dtype, expected) = (view.dtype.name().into(), "float32 or float64".into());
        return Err(call.refuse(owner, Problem::DType { dtype, expected }));
    }
    let fits = |(&size, &expected): (&i64, &i64)| expected == -1 || size == expected;
    if view.shape.len() != shape.len() || !view.shape.iter().zip(shape).all(fits) {
        let (found, expected) = (view.shape, Dims::from_slice(shape));
        return Err(call.refuse(
            owner,
            Problem::Shape {
                shape: found,
                expected,
            },
        ));
    }
    Ok(view)
}

/// # Safety
/// The vectors are valid, of type `T`, and the one that is changed is not used otherwise.
unsafe fn on<T: Element + From<f32>, W: Work>(vectors: &Vectors, threads: usize, work: W) -> W::Result {
    let of = |&(data, len): &(*const u8, usize)| match len {
        0 => &[][..], // without an address, perhaps
        // SAFETY: the caller's promise; `stage` saw to it that the elements lie without gaps.
        len => unsafe { std::slice::from_raw_parts(data.cast::<T>(), len) },
    };
    let inputs: SmallVec<[&[T]; 3]> = vectors.inputs.iter().map(of).collect();
    let (data, len) = vectors.out;
    let out = match len {
        0 => &mut [][..],
        // SAFETY: as above.
        len => unsafe { std::slice::from_raw_parts_mut(data.cast::<T>(), len) },
    };
    work.run(&inputs, vectors.len, out, threads)
}
