//! Orthogonalization between buffers of any type.

use super::{Input, Numbers, Operand, Options, Workspace, orthogonalize};
use crate::kernels::elementwise::{self, Rule, Work};
use crate::kernels::storage::{Buffers, Float, Rounding, State};
use crate::kernels::vector::Vector;

/// A row-major matrix, and where its orthogonalization goes: both of one type, in separate memory or the same.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub dtype: Float,
    pub from: *const u8,
    pub to: *mut u8,
    pub rows: usize,
    pub cols: usize,
}

// SAFETY: the pointers are used by `orthogonalize_all` only, whose caller answers for the memory.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Orthogonalizes every matrix, on up to `threads` threads; see [`orthogonalize`].
///
/// # Safety
/// The pointers are valid for `rows * cols` elements of the type, and nothing that is written is used otherwise.
///
/// # Panics
/// If `options.eps` is negative or not finite.
pub unsafe fn orthogonalize_all(matrices: &[Memory], options: &Options, threads: usize) {
    let narrow = |matrix: &Memory| matrix.dtype.size() == 2;
    let mut wide: Vec<Vec<f32>> = matrices
        .iter()
        .map(|matrix| {
            vec![
                0.0;
                if narrow(matrix) {
                    matrix.rows * matrix.cols
                } else {
                    0
                }
            ]
        })
        .collect();
    // SAFETY: the caller's promise.
    let operands = matrices
        .iter()
        .zip(&mut wide)
        .map(|(matrix, wide)| unsafe { matrix.operand(wide) });
    orthogonalize(
        &mut operands.collect::<Vec<_>>(),
        options,
        &mut Workspace::default(),
        threads,
    )
    .expect("operands of the matrices' own sizes and a checked eps");
    let mut batch = elementwise::Updates::with_capacity(matrices.len());
    for (matrix, wide) in matrices
        .iter()
        .zip(&mut wide)
        .filter(|(matrix, _)| narrow(matrix))
    {
        let buffers = Buffers {
            dtype: matrix.dtype,
            len: wide.len(),
            param: matrix.to,
            grad_dtype: matrix.dtype,
            grad: matrix.to.cast_const(),
            state: [State::float(wide.as_mut_ptr().cast(), Float::F32)],
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
        };
        // SAFETY: the caller's promise for the matrix, and `wide` outlives the batch.
        unsafe { batch.push(Assign, buffers) }.expect("f32 beside a 16-bit type");
    }
    elementwise::run(&[Box::new(batch) as Box<dyn Work>], threads);
}

impl Memory {
    /// # Safety
    /// As for [`orthogonalize_all`].
    unsafe fn operand<'a>(&self, wide: &'a mut [f32]) -> Operand<'a> {
        let len = self.rows * self.cols;
        // SAFETY: the caller's promise; where both are one memory, only the output takes it.
        let (input, output) = unsafe {
            let output = match self.dtype {
                Float::F64 | Float::F32 => Numbers::new(self.dtype, self.to, len),
                Float::Bf16 | Float::F16 => Numbers::F32(wide),
            };
            let input = match self.dtype {
                Float::F64 | Float::F32 if self.from == self.to.cast_const() => Input::Output,
                Float::F64 => Input::F64(std::slice::from_raw_parts(self.from.cast(), len)),
                Float::F32 => Input::F32(std::slice::from_raw_parts(self.from.cast(), len)),
                Float::Bf16 => Input::Bf16(std::slice::from_raw_parts(self.from.cast(), len)),
                Float::F16 => Input::F16(std::slice::from_raw_parts(self.from.cast(), len)),
            };
            (input, output)
        };
        Operand {
            input,
            output,
            rows: self.rows,
            cols: self.cols,
        }
    }
}

/// The state becomes the parameter.
#[derive(Clone, Copy)]
struct Assign;

impl Rule<1> for Assign {
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, _: V, _: V, [state]: [V; 1]) -> (V, [V; 1]) {
        (state, [state])
    }
}
