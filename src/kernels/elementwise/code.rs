//! What updates a part of a parameter: the kernel for its types, or tiles of them.

use super::sweep::{Kernel, Span};
use super::tiles::{self, TILE};
use super::{Rule, Unsupported, kernel, norms};
use crate::kernels::linear::Norms;
use crate::kernels::storage::Buffers;
use crate::kernels::vector::Noise;
use crate::runtime::Isa;

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
            match norms {
                norms if self.in_tiles => tiles::run(self.kernel, rule, part, scale, noise, norms),
                Some(norms) => self.run_measured(rule, part, scale, noise, norms),
                None => self.run_directly(rule, part, scale, noise),
            }
        }
    }

    /// # Safety
    /// As for `run`, with a kernel for the types themselves.
    unsafe fn run_directly(&self, rule: &R, part: &Buffers<N>, scale: f64, noise: Noise) -> u32 {
        let state = part.state.map(|state| state.data);
        // SAFETY: the caller's promise is the same.
        unsafe { (self.kernel)(rule, &Span::new(part, state, scale, noise)) }
    }

    /// In tiles, of which each gradient is added while it is in the nearest cache.
    ///
    /// # Safety
    /// As for `run_directly`.
    unsafe fn run_measured(
        &self,
        rule: &R,
        part: &Buffers<N>,
        scale: f64,
        noise: Noise,
        norms: &mut Norms,
    ) -> u32 {
        let mut counted = 0;
        for start in (0..part.len).step_by(TILE) {
            let tile = part.part(start, TILE.min(part.len - start));
            let noise = Noise {
                counter: noise.counter + start as u32,
                ..noise
            };
            // SAFETY: the caller's promise; the tile lies within the part.
            unsafe {
                counted += self.run_directly(rule, &tile, scale, noise);
                norms::add(norms, Isa::current(), tile.grad_dtype, tile.grad, tile.len);
            }
        }
        counted
    }
}
