//! ferrostep: optimizer kernels in Rust. `kernels` and `runtime` know nothing of Python; `bindings` is the Python module.

mod bindings;
pub mod kernels;
pub mod runtime;
