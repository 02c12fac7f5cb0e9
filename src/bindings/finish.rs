//! What follows the kernels of a call, in Python's hands and yet not to be left half done: an interrupt comes up as an
//! exception of whatever Python code runs next. So what raises is called once more, all of it is called, and only then
//! is the first exception passed on.

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;

/// A tensor, and the tensor that is to be copied to it.
pub type Copy<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// Copies what was computed in plain torch.
pub fn copy(copies: &[Copy]) -> PyResult<()> {
    let copied = |(to, from): &Copy| insist(|| to.call_method1(intern!(to.py(), "copy_"), (from,)));
    copies.iter().map(copied).fold(Ok(()), PyResult::and)
}

/// Calls what is to follow.
pub fn follow(calls: &[Bound<'_, PyAny>]) -> PyResult<()> {
    let called = |call: &Bound<'_, PyAny>| insist(|| call.call0());
    calls.iter().map(called).fold(Ok(()), PyResult::and)
}

/// Tells autograd that the tensors were changed. No Python code runs meanwhile, so no interrupt comes up.
pub fn tell(py: Python<'_>, changed: &Bound<'_, PyList>) -> PyResult<()> {
    static INCREMENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let increment = INCREMENT.import(py, "torch._C", "_increment_version")?;
    match increment.call1((changed,)) {
        // Tensors of `torch.inference_mode` have no version, at which older versions of torch take offence.
        Err(error) if error.is_instance_of::<PyRuntimeError>(py) => {
            let counted = PyList::empty(py);
            for tensor in changed {
                if !tensor.call_method0(intern!(py, "is_inference"))?.is_truthy()? {
                    counted.append(tensor)?;
                }
            }
            increment.call1((&counted,)).map(drop)
        }
        told => told.map(drop),
    }
}

/// Calls `call` and then `then` with its result, which it returns; see `_core.pyi`.
#[pyfunction]
pub fn complete<'py>(call: &Bound<'py, PyAny>, then: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let result = call.call0()?;
    insist(|| then.call1((&result,)))?;
    Ok(result)
}

fn insist<T>(call: impl Fn() -> PyResult<T>) -> PyResult<()> {
    call().map(drop).inspect_err(|_| drop(call()))
}
