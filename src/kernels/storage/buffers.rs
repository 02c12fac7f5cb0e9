//! The tensors of one parameter.

use super::{Float, Rounding};

/// The memory of one parameter, and how it is rounded. All buffers hold `len` elements in the same order; the gradient has the parameter's
/// type, all state tensors have `state_dtype`.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<const N: usize> {
    pub dtype: Float,
    pub state_dtype: Float,
    pub len: usize,
    pub param: *mut u8,
    pub grad: *const u8,
    pub state: [*mut u8; N],
    pub rounding: Rounding,
    /// Used with [`Rounding::Kahan`], and with [`Rounding::Split`], where it holds 16-bit integers.
    pub compensation: *mut u8,
}

impl<const N: usize> Buffers<N> {
    /// With other states.
    pub fn with_states<const M: usize>(&self, state: [*mut u8; M], state_dtype: Float) -> Buffers<M> {
        Buffers {
            dtype: self.dtype,
            state_dtype,
            len: self.len,
            param: self.param,
            grad: self.grad,
            state,
            rounding: self.rounding,
            compensation: self.compensation,
        }
    }

    /// For rules that leave the parameter alone.
    pub fn unwritten(&self) -> Self {
        Buffers {
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
            ..*self
        }
    }

    /// `len` elements from `start` on.
    pub fn part(&self, start: usize, len: usize) -> Self {
        let at = |pointer: *mut u8, dtype: Float| pointer.wrapping_add(start * dtype.size());
        Buffers {
            len,
            param: at(self.param, self.dtype),
            grad: at(self.grad.cast_mut(), self.dtype).cast_const(),
            state: self.state.map(|pointer| at(pointer, self.state_dtype)),
            compensation: at(self.compensation, self.dtype),
            ..*self
        }
    }
}
