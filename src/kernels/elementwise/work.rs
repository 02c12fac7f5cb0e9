//! Batches of different rules, to be told what they are to know, and run together.

use std::sync::atomic::{AtomicU64, Ordering};

use super::ELEMENTS_PER_THREAD;
use crate::kernels::linear::Norms;
use crate::runtime::pool;

/// A batch, whatever its rule.
pub trait Work: Send + Sync {
    fn blocks(&self) -> usize;
    fn elements(&self) -> usize;
    /// Multiplies the gradients of this step, and what is summed of them.
    fn scale(&mut self, factor: f64);
    /// The numbers of the parameters' first blocks.
    fn first_blocks(&self) -> Vec<usize>;
    /// Whether the rule is to know sums.
    fn is_to_know(&self) -> bool {
        false
    }
    /// Whether [`Work::sum`] writes what the maker gave it for that, and so is to be called once.
    fn writes_in_sums(&self) -> bool {
        false
    }
    /// What the rule sums over block `index`; no block is to be summed or updated by another thread meanwhile.
    fn sum(&self, _index: usize) -> f64 {
        0.0
    }
    /// Tells the rules of the parameters the sums that they are to know.
    fn know(&mut self, _sums: &[f64]) {}
    /// Tells the rules what else they are to know of their tensors, when they know the sums.
    fn prepare(&mut self, _threads: usize) {}
    /// Updates block `index` and returns what the rule counted; every block is to be run exactly once.
    fn run(&self, index: usize) -> u32;
    /// Whether [`Work::run_measured`] does more than that: then blocks of `storage::BLOCK` elements are visited one by
    /// one.
    fn measures(&self) -> bool {
        false
    }
    /// As `run`; adds the block's gradient to the norms, too, if they are measured.
    fn run_measured(&self, index: usize, _norms: &mut Norms) -> u32 {
        self.run(index)
    }
}

/// Lets rules know what else they are to know of their tensors than sums, on up to `threads` threads.
pub fn prepare(batches: &mut [Box<dyn Work + '_>], threads: usize) {
    batches.iter_mut().for_each(|batch| batch.prepare(threads));
}

/// Runs all batches on up to `threads` threads and returns what the rules counted: a sum of whole numbers, so the
/// order in which threads add to it plays no part.
pub fn run(batches: &[Box<dyn Work + '_>], threads: usize) -> u64 {
    let counted = AtomicU64::new(0);
    let elements: usize = batches.iter().map(|batch| batch.elements()).sum();
    let blocks: usize = batches.iter().map(|batch| batch.blocks()).sum();
    let useful = elements.div_ceil(ELEMENTS_PER_THREAD);
    pool::for_each(threads.min(useful), blocks, &|index| {
        let (batch, index) = find(batches.iter().map(Box::as_ref), index);
        counted.fetch_add(batch.run(index).into(), Ordering::Relaxed);
    });
    counted.into_inner()
}

/// The batch that block `index` of all is one of, and its number there.
pub fn find<'a, 'b>(
    batches: impl IntoIterator<Item = &'a (dyn Work + 'b)>,
    mut index: usize,
) -> (&'a (dyn Work + 'b), usize) {
    for batch in batches {
        if index < batch.blocks() {
            return (batch, index);
        }
        index -= batch.blocks();
    }
    unreachable!("there are no more blocks")
}
