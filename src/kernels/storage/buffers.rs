//! The tensors of one parameter.

use super::{Float, Rounding, State};

/// The memory of one parameter, and how it is rounded. All buffers hold `len` elements in the same order; the arithmetic
/// on the gradient's type is that on the parameter's.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<const N: usize> {
    pub dtype: Float,
    pub len: usize,
    pub param: *mut u8,
    pub grad_dtype: Float,
    pub grad: *const u8,
    pub state: [State; N],
    pub rounding: Rounding,
    /// Used with [`Rounding::Kahan`], with [`Rounding::Split`], where it holds 16-bit integers, and with
    /// [`Rounding::Master`], where it holds f32.
    pub compensation: *mut u8,
}

impl<const N: usize> Buffers<N> {
    /// The type of all states, if they have one type; without states the parameter's.
    pub fn state_dtype(&self) -> Option<Float> {
        let Some(first) = self.state.first() else {
            return Some(self.dtype);
        };
        let dtype = first.dtype();
        dtype.filter(|_| self.state.iter().all(|state| state.dtype() == dtype))
    }

    /// With other states.
    pub fn with_states<const M: usize>(&self, state: [State; M]) -> Buffers<M> {
        Buffers {
            dtype: self.dtype,
            len: self.len,
            param: self.param,
            grad_dtype: self.grad_dtype,
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
        let kept = self.rounding.compensation_size(self.dtype);
        Buffers {
            len,
            param: self.param.wrapping_add(start * self.dtype.size()),
            grad: self.grad.wrapping_add(start * self.grad_dtype.size()),
            state: self.state.map(|state| state.from(start)),
            compensation: self.compensation.wrapping_add(start * kept),
            ..*self
        }
    }
}
