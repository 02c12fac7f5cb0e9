//! [`Storm`] in two passes of which the first leaves the new momentum where the transport was: 28 bytes are moved for each
//! element in f32, and not 36. Whoever has the momentum is to take it from there.

use super::storm::{Carry, Move, Storm};
use super::{Unsupported, Updates, Work};
use crate::kernels::storage::{Buffers, Rounding};

/// Parameters that are about to be updated.
pub struct CarriedUpdates {
    momenta: Updates<Carry, 1>,
    /// Along what the others have made.
    params: Updates<Move, 0>,
}

impl CarriedUpdates {
    pub fn with_capacity(tensors: usize) -> Self {
        CarriedUpdates {
            momenta: Updates::with_capacity(tensors),
            params: Updates::with_capacity(tensors),
        }
    }

    /// Adds a parameter with its momentum and its transport. Refuses transports of another type than the arithmetic's,
    /// which would round the momentum, and combinations that have no kernel.
    ///
    /// # Safety
    /// As for [`Updates::push`]; the transport is written when the rule's sums are asked for.
    pub unsafe fn push(&mut self, options: Storm, buffers: Buffers<2>) -> Result<(), Unsupported> {
        let [momentum, transport] = buffers.state;
        let work = buffers.dtype.arithmetic();
        if transport.dtype() != Some(work) || momentum.dtype() != Some(work) {
            return Err(Unsupported);
        }
        let carried = Buffers {
            dtype: work,
            param: transport.data,
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
            ..buffers.with_states([momentum])
        };
        let moved = Buffers {
            grad_dtype: work,
            grad: transport.data,
            ..buffers.with_states([])
        };
        // SAFETY: the caller's promise; the two are used one after the other.
        unsafe {
            self.momenta.push(options.carry(), carried)?;
            self.params.push(options.along_momentum(), moved)
        }
    }
}

impl Work for CarriedUpdates {
    fn blocks(&self) -> usize {
        self.params.blocks()
    }

    fn elements(&self) -> usize {
        self.params.elements()
    }

    fn scale(&mut self, factor: f64) {
        self.momenta.scale(factor);
    }

    fn first_blocks(&self) -> Vec<usize> {
        self.params.first_blocks()
    }

    fn is_to_know(&self) -> bool {
        true
    }

    fn writes_in_sums(&self) -> bool {
        true
    }

    /// The block's momentum is summed while it is in the cache.
    fn sum(&self, index: usize) -> f64 {
        self.momenta.run(index);
        self.params.sum(index)
    }

    fn know(&mut self, sums: &[f64]) {
        self.params.know(sums);
    }

    fn run(&self, index: usize) -> u32 {
        self.params.run(index)
    }
}
