//! Sums of products of tensors, and linear combinations of tensors: what projections are made of. Formulas that write
//! several tensors. Products of a matrix and vectors, and its largest singular value.

mod combine;
mod formulas;
mod moments;
mod normal;
mod norms;
mod singular;
#[cfg(test)]
mod tests;

pub use combine::combine;
pub use formulas::{Formula, compute};
pub use moments::{PARTS, Sums, sums, total};
pub use normal::{Rows, Work};
pub use norms::{Norms, Powers, added, follow};
pub use singular::{Singular, top_singular_value};

use half::{bf16, f16};

use super::vector::{Arithmetic, EvenOdd, Halves, InF32, InF64, Stored, Widened};

/// Elements that are summed by themselves: part of the definition of the sums.
pub const CHUNK: usize = 4096;
/// Fewer elements than this are not worth waking a thread for.
pub const ELEMENTS_PER_THREAD: usize = 16_384;

/// Element types of tensors.
pub trait Element: Stored<Self::Combined> + Widened + Send + Sync {
    /// What linear combinations are computed in.
    type Combined: Arithmetic;
}

macro_rules! elements {
    ($($type:ty: $arithmetic:ty),*) => { $(impl Element for $type {
        type Combined = $arithmetic;
    })* };
}
elements!(f64: InF64, f32: InF32<Halves>, f16: InF32<Halves>, bf16: InF32<EvenOdd>);
