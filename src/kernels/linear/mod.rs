//! Sums of products of tensors, and linear combinations of tensors: what projections are made of.

mod combine;
mod moments;

pub use combine::Combine;
pub use moments::{Sums, sums};

use super::vector::Widened;

/// Elements that are summed by themselves: part of the definition of the sums.
pub const CHUNK: usize = 4096;
/// Fewer elements than this are not worth waking a thread for.
pub const ELEMENTS_PER_THREAD: usize = 16_384;

/// Element types of tensors.
pub trait Element: Combine + Widened + Default + Send + Sync {}
impl<T: Combine + Widened + Default + Send + Sync> Element for T {}
