//! The norms of gradients: in a pass of their own, or left behind by a step, whose kernels add up what they have just
//! read. Both add the same elements to the same lanes, so the results are the same, bit for bit.

use std::sync::atomic::{AtomicU64, Ordering};

use super::blocks::{by_tensor, of_blocks};
use super::finite::Values;
use super::{Work, find};
use crate::kernels::linear::{Element, Norms, Powers, added};
use crate::kernels::storage::{BLOCK, Float, with_type};
use crate::runtime::Isa;

/// The sum of the sizes of a tensor's elements, and that of their squares.
pub type NormSums = [f64; 2];

/// Those of each of the tensors.
///
/// # Safety
/// Each `data` is valid for reading `len` elements of its type, and nothing writes them meanwhile.
pub unsafe fn norms(tensors: &[Values], powers: Powers, threads: usize) -> Vec<NormSums> {
    let mut first_blocks = Vec::with_capacity(tensors.len());
    let (mut blocks, mut elements) = (0, 0);
    for tensor in tensors {
        first_blocks.push(blocks);
        blocks += tensor.len.div_ceil(BLOCK);
        elements += tensor.len;
    }
    let isa = Isa::current();
    let parts = of_blocks(blocks, elements, threads, &|index| {
        let place = first_blocks.partition_point(|&first| first <= index) - 1;
        let (tensor, start) = (&tensors[place], (index - first_blocks[place]) * BLOCK);
        let from = tensor.data.wrapping_add(start * tensor.dtype.size());
        let mut norms = Norms::new(powers);
        // SAFETY: the block lies within the tensor, which the caller keeps valid.
        unsafe { add(&mut norms, isa, tensor.dtype, from, BLOCK.min(tensor.len - start)) };
        norms.total()
    });
    by_tensor(&first_blocks, &parts, added)
}

/// As [`super::run`]; with the norms of the gradients, for each batch that measures them ([`Work::measures`]) one for
/// every parameter.
pub fn run_measured(
    batches: &[Box<dyn Work + '_>],
    powers: Powers,
    threads: usize,
) -> (u64, Vec<Vec<NormSums>>) {
    let counted = AtomicU64::new(0);
    let elements = batches.iter().map(|batch| batch.elements()).sum();
    let blocks = batches.iter().map(|batch| batch.blocks()).sum();
    let parts = of_blocks(blocks, elements, threads, &|index| {
        let (batch, index) = find(batches.iter().map(Box::as_ref), index);
        let mut norms = Norms::new(powers);
        counted.fetch_add(batch.run_measured(index, &mut norms).into(), Ordering::Relaxed);
        norms.total()
    });
    let mut rest = &parts[..];
    let of_batch = |batch: &dyn Work| {
        let own = rest.split_off(..batch.blocks()).expect("the sums of all blocks");
        match batch.measures() {
            true => by_tensor(&batch.first_blocks(), own, added),
            false => Vec::new(),
        }
    };
    let of_each = batches.iter().map(Box::as_ref).map(of_batch).collect();
    (counted.into_inner(), of_each)
}

/// Adds elements, as many as [`Norms::add`] takes.
///
/// # Safety
/// The memory is valid for reading `len` elements of the type, and nothing writes them meanwhile.
pub unsafe fn add(norms: &mut Norms, isa: Isa, dtype: Float, from: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { with_type!(dtype, add_of(norms, isa, from, len)) }
}

/// # Safety
/// As for [`add`], with elements of type `T`.
unsafe fn add_of<T: Element>(norms: &mut Norms, isa: Isa, from: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { norms.add::<T>(isa, from.cast(), len) }
}

#[cfg(test)]
mod tests;
