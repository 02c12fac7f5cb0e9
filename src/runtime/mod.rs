//! What every kernel runs on: threads and the choice of instruction set.

pub mod cpus;
pub mod isa;
pub mod openmp;
pub mod pool;

pub use isa::Isa;
