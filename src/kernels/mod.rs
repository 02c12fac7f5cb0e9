//! The arithmetic, free of Python: usable and tested by `cargo test` alone.

pub mod auon;
pub mod elementwise;
pub mod gradients;
pub mod guidance;
pub mod linear;
pub mod matmul;
pub mod muon;
pub mod orthogonal;
pub mod solve;
pub mod storage;
pub mod vector;
pub mod whole;
