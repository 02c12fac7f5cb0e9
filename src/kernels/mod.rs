//! The arithmetic, free of Python: usable and tested by `cargo test` alone.

pub mod elementwise;
pub mod ghost;
pub mod gradients;
pub mod guidance;
pub mod krylov;
pub mod linear;
pub mod matmul;
pub mod matrix;
pub mod orthogonal;
pub mod rows;
pub mod solve;
pub mod storage;
pub mod vector;
