//! What is orthogonalized, and where to.

use half::{bf16, f16};

use super::normalize;
use crate::kernels::matmul::Real;
use crate::kernels::storage::Float;
use crate::runtime::Isa;

/// What is orthogonalized: a row-major matrix.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    F64(&'a [f64]),
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    /// What the output holds before the call.
    Output,
}

/// Numbers in a type of arithmetic: where the result goes, row-major. The iteration runs in this memory where it has the
/// type that is computed in (f32, or f64 with [`super::Precision::Float64`] or f64 input).
#[derive(Debug)]
pub enum Numbers<'a> {
    F64(&'a mut [f64]),
    F32(&'a mut [f32]),
}

/// One matrix, `rows` x `cols`, row-major. A column-major one is the transpose of a row-major one, and the result is
/// transposed with it: exchange `rows` and `cols`.
#[derive(Debug)]
pub struct Operand<'a> {
    pub input: Input<'a>,
    pub output: Numbers<'a>,
    pub rows: usize,
    pub cols: usize,
}

impl<'a> Input<'a> {
    /// # Safety
    /// For `'a`, `data` is valid for reading `len` numbers of the type, and nothing writes them.
    pub unsafe fn new(dtype: Float, data: *const u8, len: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match dtype {
                Float::F64 => Input::F64(std::slice::from_raw_parts(data.cast(), len)),
                Float::F32 => Input::F32(std::slice::from_raw_parts(data.cast(), len)),
                Float::Bf16 => Input::Bf16(std::slice::from_raw_parts(data.cast(), len)),
                Float::F16 => Input::F16(std::slice::from_raw_parts(data.cast(), len)),
            }
        }
    }

    /// None for what is in the output.
    pub(crate) fn len(&self) -> Option<usize> {
        match self {
            Input::F64(values) => Some(values.len()),
            Input::F32(values) => Some(values.len()),
            Input::Bf16(values) => Some(values.len()),
            Input::F16(values) => Some(values.len()),
            Input::Output => None,
        }
    }

    /// Copies the matrix into the output, unless it is there.
    ///
    /// # Panics
    /// If the output is not as long.
    pub fn copy_to(self, output: &mut Numbers<'_>, threads: usize) {
        match output {
            Numbers::F64(output) => self.copy(output, threads),
            Numbers::F32(output) => self.copy(output, threads),
        }
    }

    fn copy<S: Real>(self, output: &mut [S], threads: usize) {
        let (isa, same) = (Isa::current(), (1.0, 1.0));
        match self {
            Input::F64(values) => normalize::scale(values, output, same, isa, threads),
            Input::F32(values) => normalize::scale(values, output, same, isa, threads),
            Input::Bf16(values) => normalize::scale(values, output, same, isa, threads),
            Input::F16(values) => normalize::scale(values, output, same, isa, threads),
            Input::Output => {}
        }
    }
}

impl<'a> Numbers<'a> {
    /// # Safety
    /// For `'a`, `data` is valid for `len` numbers of the type, for writing, too, and nothing else uses them. F32 stands
    /// for all types but f64.
    pub unsafe fn new(dtype: Float, data: *mut u8, len: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match dtype {
                Float::F64 => Numbers::F64(std::slice::from_raw_parts_mut(data.cast(), len)),
                _ => Numbers::F32(std::slice::from_raw_parts_mut(data.cast(), len)),
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Numbers::F64(values) => values.len(),
            Numbers::F32(values) => values.len(),
        }
    }

    pub fn dtype(&self) -> Float {
        match self {
            Numbers::F64(_) => Float::F64,
            Numbers::F32(_) => Float::F32,
        }
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match self {
            Numbers::F64(values) => values.as_mut_ptr().cast(),
            Numbers::F32(values) => values.as_mut_ptr().cast(),
        }
    }

    pub fn reborrow(&mut self) -> Numbers<'_> {
        match self {
            Numbers::F64(values) => Numbers::F64(values),
            Numbers::F32(values) => Numbers::F32(values),
        }
    }
}
