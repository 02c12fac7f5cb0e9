//! What is found of each block of some tensors, and put together for each tensor.

use super::ELEMENTS_PER_THREAD;
use crate::runtime::{Shared, pool};

/// The sum over each tensor, from those over all blocks; `first_blocks` are the numbers of the tensors' first ones.
pub fn by_tensor<T>(first_blocks: &[usize], sums: &[T], total: impl Fn(&[T]) -> T) -> Vec<T> {
    let ends = first_blocks.iter().skip(1).copied().chain([sums.len()]);
    let of_tensor = |(&first, end): (&usize, usize)| total(&sums[first..end]);
    first_blocks.iter().zip(ends).map(of_tensor).collect()
}

/// What `block` gives for each of so many blocks, with so many elements in all.
pub fn of_blocks<T: Clone + Default>(
    blocks: usize,
    elements: usize,
    threads: usize,
    block: &(dyn Fn(usize) -> T + Sync),
) -> Vec<T> {
    let mut sums = vec![T::default(); blocks];
    let to = Shared::new(sums.as_mut_ptr());
    let useful = elements.div_ceil(ELEMENTS_PER_THREAD);
    pool::for_each(threads.min(useful), blocks, &|index| {
        // SAFETY: every block has a place of its own.
        unsafe { *to.get().add(index) = block(index) };
    });
    sums
}
