//! What updates a part of a parameter: the kernel for its types, or tiles of them.

use super::sweep::{Kernel, Span};
use super::{Rule, Unsupported, kernel, tiles};
use crate::kernels::linear::Norms;
use crate::kernels::storage::Buffers;
use crate::kernels::vector::Noise;

/// The code of a rule for a parameter's types.
#[derive(Clone, Copy)]
pub struct Code<R, const N: usize> {
    kernel: Kernel<R, N>,
    /// Whether the kernel is one for [`tiles`].
    in_tiles: bool,
}

impl<R: Rule<N>, const N: usize> Code<R, N> {
    pub fn of(buffers: &Buffers<N>) -> Result<Self, Unsupported> {
        if buffers.grad_dtype.arithmetic() != buffers.dtype.arithmetic() {
            return Err(Unsupported);
        }
        let direct = buffers
            .state_dtype()
            .and_then(|dtype| kernel(buffers.dtype, dtype, buffers.rounding).ok());
        Ok(Code {
            kernel: direct.map_or_else(|| tiles::kernel_of(buffers), Ok)?,
            in_tiles: direct.is_none(),
        })
    }

    /// Updates a part of a parameter, adds its gradient to the norms, if there are any, and returns what the rule
    /// counted.
    ///
    /// # Safety
    /// The buffers are valid for `len` elements of the types that the code is for, and nobody else has them.
    pub unsafe fn run(
        &self,
        rule: &R,
        part: &Buffers<N>,
        scale: f64,
        noise: Noise,
        norms: Option<&mut Norms>,
    ) -> u32 {
        // SAFETY: the caller's promise is the same.
        unsafe {
            if self.in_tiles {
                return tiles::run(self.kernel, rule, part, scale, noise, norms);
            }
            let state = part.state.map(|state| state.data);
            (self.kernel)(rule, &Span::new(part, state, scale, noise), norms)
        }
    }
}
