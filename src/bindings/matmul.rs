//! Matrix products by themselves, for benchmarks and tests.

use std::cell::RefCell;

use half::bf16;
use pyo3::prelude::*;

use super::call::{Call, Names, Owner, Role};
use super::errors::Problem;
use super::view::View;
use crate::kernels::matmul::{self, Element, Output, Packed, Real};
use crate::kernels::storage::{Access, DType, Dims, Float};
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
    let mut call = Call::new(|owner: Owner| ["a", "b", "out"][owner.argument as usize].to_string());
    let reads = Role::new(Access::Reads);
    let a = matrix(&mut call, 0, a, &reads)?;
    if a.dtype == DType::F16 {
        let (dtype, expected) = (a.dtype.name().into(), "float64, float32 or bfloat16".into());
        return Err(call.refuse(Owner::new(0, 0), Problem::DType { dtype, expected }));
    }
    let b = b
        .map(|b| matrix(&mut call, 1, b, &reads.dtype(a.dtype)))
        .transpose()?;
    let cols = match &b {
        Some(b) if b.shape[0] != a.shape[1] => {
            let expected = Dims::from_slice(&[a.shape[1], b.shape[1]]);
            let shape = b.shape.clone();
            return Err(call.refuse(Owner::new(1, 0), Problem::Shape { shape, expected }));
        }
        Some(b) => b.shape[1],
        None => a.shape[0],
    };
    let writes = Role::new(Access::Writes).dtype(a.work_dtype());
    let out = matrix(&mut call, 2, out, &writes)?;
    if out.shape[..] != [a.shape[0], cols] || !out.is_contiguous {
        let expected = format!("contiguous [{}, {cols}]", a.shape[0]);
        let shape = out.shape.clone();
        return Err(call.refuse(Owner::new(2, 0), Problem::Matrices { shape, expected }));
    }
    let operands = Operands { a, b, out, threads };
    call.run(py, threads, || {
        let operands = &operands; // all of it: by themselves, its pointers are not `Sync`
        if operands.out.len > 0 {
            // SAFETY: the views are valid, and `out` overlaps no factor: `Call::run` saw to it.
            unsafe {
                match operands.a.float() {
                    Float::F64 => operands.multiply::<f64>(),
                    Float::F32 => operands.multiply::<f32>(),
                    Float::Bf16 => operands.multiply::<bf16>(),
                    Float::F16 => unreachable!("refused above"),
                }
            }
        }
        Some(())
    })?;
    Ok(())
}

/// A matrix that is contiguous or the transpose of such a one.
fn matrix(
    call: &mut Call<impl Names>,
    argument: usize,
    tensor: &Bound<'_, PyAny>,
    role: &Role<'_>,
) -> PyResult<View> {
    let owner = Owner::new(argument, 0);
    let view = call.take(owner, tensor, role)?;
    if view.shape.len() != 2 || !(view.is_dense_in(&[0, 1]) || view.is_dense_in(&[1, 0])) {
        let (shape, expected) = (view.shape, "a contiguous matrix or the transpose of one".into());
        return Err(call.refuse(owner, Problem::Matrices { shape, expected }));
    }
    Ok(view)
}

/// Checked matrices.
struct Operands {
    a: View,
    b: Option<View>,
    out: View,
    threads: usize,
}

// SAFETY: the pointers are used by `multiply` only, whose caller answers for the memory.
unsafe impl Send for Operands {}
// SAFETY: as above.
unsafe impl Sync for Operands {}

impl Operands {
    /// # Safety
    /// The views are valid, of type `T` and its sums', and `out` is not used otherwise.
    unsafe fn multiply<T: Element>(&self) {
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
unsafe fn view<'a, T>(view: &View) -> matmul::MatrixRef<'a, T> {
    let data = match view.len {
        0 => &[][..], // without an address, perhaps
        // SAFETY: the caller's promise; `matrix` saw to it that the elements lie without gaps.
        len => unsafe { std::slice::from_raw_parts(view.data.cast(), len) },
    };
    let [rows, cols] = [view.shape[0] as usize, view.shape[1] as usize];
    match view.is_contiguous {
        true => matmul::MatrixRef::row_major(data, rows, cols),
        false => matmul::MatrixRef::row_major(data, cols, rows).t(),
    }
}
