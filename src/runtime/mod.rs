//! What every kernel runs on: threads and the choice of instruction set; and what handles interrupts.

pub mod cpus;
pub mod interrupts;
pub mod isa;
pub mod openmp;
pub mod pool;
mod shared;

pub use isa::Isa;
pub use shared::Shared;
