//! The arithmetic, free of Python: usable and tested by `cargo test` alone.

pub mod matmul;
pub mod orthogonal;
