//! What a step collects from Python objects before anything is checked: in Python it would take a small model longer
//! than the step itself.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

/// Positions, parameters and gradients.
type Found<'py> = (Vec<usize>, Bound<'py, PyList>, Bound<'py, PyList>);

/// The parameters that have a gradient: those on the CPU, unless all are `elsewhere`, and the others. See `_core.pyi`.
#[pyfunction]
pub fn with_gradient<'py>(
    params: &Bound<'py, PyList>,
    elsewhere: bool,
) -> PyResult<(Found<'py>, Found<'py>)> {
    let py = params.py();
    let found = || {
        (
            Vec::with_capacity(params.len()),
            PyList::empty(py),
            PyList::empty(py),
        )
    };
    let (mut on_cpu, mut others) = (found(), found());
    for (position, param) in params.iter().enumerate() {
        let grad = param.getattr(intern!(py, "grad"))?;
        if grad.is_none() {
            continue;
        }
        let is_ours = !elsewhere && param.getattr(intern!(py, "is_cpu"))?.is_truthy()?;
        let (positions, params, grads) = if is_ours { &mut on_cpu } else { &mut others };
        positions.push(position);
        params.append(param)?;
        grads.append(grad)?;
    }
    Ok((on_cpu, others))
}

/// The states of these names, a list for each, or None where a parameter lacks one, or has None. See `_core.pyi`.
#[pyfunction]
pub fn columns<'py>(
    state: &Bound<'py, PyDict>,
    params: &Bound<'py, PyList>,
    names: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let py = state.py();
    let columns: Vec<_> = names.iter().map(|_| PyList::empty(py)).collect();
    for param in params {
        let Some(own) = state.get_item(param)? else {
            return Ok(None);
        };
        let own = own.cast_into::<PyDict>()?;
        for (name, column) in names.iter_borrowed().zip(&columns) {
            match own.get_item(name)? {
                Some(value) if !value.is_none() => column.append(value)?,
                _ => return Ok(None),
            }
        }
    }
    let found = PyDict::new(py);
    for (name, column) in names.iter().zip(columns) {
        found.set_item(name.cast_into::<PyString>()?, column)?;
    }
    Ok(Some(found))
}
