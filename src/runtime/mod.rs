//! What every kernel runs on: threads and the choice of instruction set.

pub mod cpus;
pub mod isa;
pub mod openmp;
pub mod pool;
mod shared;

pub use isa::Isa;
pub use shared::Shared;
