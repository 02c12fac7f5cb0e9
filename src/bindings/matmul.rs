//! Matrix products by themselves, for benchmarks and tests.

use std::cell::RefCell;

use half::bf16;
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::errors::{Place, Problem, refuse};
use super::overlap::{self, Claim};
use super::tensor::{Dims, Reader, View};
use crate::kernels::matmul::{self, Element, Output, Packed, Real};
use crate::kernels::storage::Float;
use crate::runtime::Isa;

thread_local! {
    /// As in an optimizer, the memory for packed factors stays.
    static PACKED: RefCell<[Packed; 2]> = RefCell::default();
}

/// Writes `a @ b` to `out`, or `a @ a.T` where there is no `b`; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (a, b, out, *, threads))]
pub fn multiply(
    py: Python<'_>,
    a: &Bound<'_, PyAny>,
    b: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<()> {
    let mut reader = Reader::default();
    let a = matrix(&mut reader, "a", a, None)?;
    let b = b
        .map(|b| matrix(&mut reader, "b", b, Some(a.dtype)))
        .transpose()?;
    let dtype = if a.dtype == Float::Bf16 {
        Float::F32
    } else {
        a.dtype
    };
    let out = matrix(&mut reader, "out", out, Some(dtype))?;
    let cols = match &b {
        Some(b) if b.shape[0] != a.shape[1] => {
            let expected = Dims::from_slice(&[a.shape[1], b.shape[1]]);
            let shape = b.shape.clone();
            return Err(refuse("b", Problem::Shape { shape, expected }));
        }
        Some(b) => b.shape[1],
        None => a.shape[0],
    };
    if out.shape[..] != [a.shape[0], cols] || !out.is_contiguous() {
        let expected = format!("contiguous [{}, {cols}]", a.shape[0]);
        let shape = out.shape.clone();
        return Err(refuse("out", Problem::Matrices { shape, expected }));
    }
    if out.len == 0 {
        return Ok(());
    }
    let reads: SmallVec<[_; 2]> = (["a", "b"].into_iter())
        .zip([Some(&a), b.as_ref()].into_iter().flatten())
        .map(|(name, view)| Claim::new(view, name))
        .collect();
    if let Some((one, other)) = overlap::find(&mut [Claim::new(&out, "out")], &reads) {
        let other = Place::named(other.into());
        return Err(refuse(one, Problem::Overlaps { other }));
    }
    let call = Call { a, b, out, threads };
    // SAFETY: the views are valid while the caller holds the tensors and `reader` lives; `out` overlaps no factor.
    py.detach(|| unsafe {
        let call = &call; // all of it: by themselves, its pointers are not `Sync`
        match call.a.dtype {
            Float::F64 => call.run::<f64>(),
            Float::F32 => call.run::<f32>(),
            Float::Bf16 => call.run::<bf16>(),
            Float::F16 => unreachable!("`matrix` refuses it"),
        }
    });
    Ok(())
}

/// A matrix that is contiguous or the transpose of such a one.
fn matrix(
    reader: &mut Reader,
    name: &'static str,
    tensor: &Bound<'_, PyAny>,
    dtype: Option<Float>,
) -> PyResult<View> {
    let view = match reader.view(tensor, name == "out", false)? {
        Ok(view) => view,
        Err(problem) => return Err(refuse(name, *problem)),
    };
    if view.shape.len() != 2 || !(view.is_dense_in(&[0, 1]) || view.is_dense_in(&[1, 0])) {
        let expected = "a contiguous matrix or the transpose of one".into();
        let shape = view.shape;
        return Err(refuse(name, Problem::Matrices { shape, expected }));
    }
    if dtype.is_some_and(|dtype| dtype != view.dtype) || view.dtype == Float::F16 {
        let expected = dtype.map_or("float64, float32 or bfloat16", Float::name).into();
        let dtype = view.dtype.name().into();
        return Err(refuse(name, Problem::DType { dtype, expected }));
    }
    Ok(view)
}

/// Checked arguments.
struct Call {
    a: View,
    b: Option<View>,
    out: View,
    threads: usize,
}

// SAFETY: the pointers are used by `run` only, whose caller answers for the memory.
unsafe impl Send for Call {}
// SAFETY: as above.
unsafe impl Sync for Call {}

impl Call {
    /// # Safety
    /// The views are valid, of type `T` and its sums', and `out` is not used otherwise.
    unsafe fn run<T: Element>(&self) {
        let (isa, factors, threads) = (Isa::current(), (T::Acc::ONE, T::Acc::ZERO), self.threads);
        PACKED.with_borrow_mut(|memory| {
            // SAFETY: the caller's promise.
            unsafe {
                let (a, to) = (view::<T>(&self.a), self.out.data.cast());
                let (rows, cols) = (self.out.shape[0] as usize, self.out.shape[1] as usize);
                let to = Output::row_major(std::slice::from_raw_parts_mut(to, rows * cols), rows, cols);
                match &self.b {
                    Some(b) => matmul::multiply(isa, factors, a, view::<T>(b), to, memory, threads),
                    None => matmul::multiply_by_transpose(isa, factors, a, to, memory, threads),
                }
            }
        });
    }
}

/// # Safety
/// The view is valid, of type `T`, and not written.
unsafe fn view<'a, T>(view: &View) -> matmul::View<'a, T> {
    let data = match view.len {
        0 => &[][..], // without an address, perhaps
        // SAFETY: the caller's promise; `matrix` saw to it that the elements lie without gaps.
        len => unsafe { std::slice::from_raw_parts(view.data.cast(), len) },
    };
    let [rows, cols] = [view.shape[0] as usize, view.shape[1] as usize];
    match view.is_contiguous() {
        true => matmul::View::row_major(data, rows, cols),
        false => matmul::View::row_major(data, cols, rows).t(),
    }
}
