//! What a step collects from Python objects before anything is checked: in Python it would take a small model longer
//! than the step itself.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple, PyType};

/// A mesh and placements.
type Layout<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);
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

/// The states of these names, a list for each, or None where a parameter lacks one that is not `optional`, or has None.
/// See `_core.pyi`.
#[pyfunction]
pub fn columns<'py>(
    state: &Bound<'py, PyDict>,
    params: &Bound<'py, PyList>,
    names: &Bound<'py, PyTuple>,
    optional: &Bound<'py, PyTuple>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let py = state.py();
    let needed = names.len();
    let names: Vec<_> = names.iter().chain(optional).collect();
    let columns: Vec<_> = names.iter().map(|_| PyList::empty(py)).collect();
    for param in params {
        let Some(own) = state.get_item(param)? else {
            return Ok(None);
        };
        let own = own.cast_into::<PyDict>()?;
        for (i, (name, column)) in names.iter().zip(&columns).enumerate() {
            match own.get_item(name)? {
                Some(value) if i >= needed || !value.is_none() => column.append(value)?,
                None if i >= needed => column.append(py.None())?,
                _ => return Ok(None),
            }
        }
    }
    let found = PyDict::new(py);
    for (name, column) in names.into_iter().zip(columns) {
        found.set_item(name.cast_into::<PyString>()?, column)?;
    }
    Ok(Some(found))
}

/// What DTensors have of their own in memory, and the positions of tensors that are to be looked at. See `_core.pyi`.
#[pyfunction]
pub fn shards<'py>(
    column: &Bound<'py, PyList>,
    params: &Bound<'py, PyList>,
    dtensor: &Bound<'py, PyType>,
    tensor: &Bound<'py, PyType>,
) -> PyResult<(Bound<'py, PyList>, Vec<usize>)> {
    let py = column.py();
    let (own, mut others) = (PyList::empty(py), Vec::new());
    for (position, (x, param)) in column.iter().zip(params).enumerate() {
        if x.get_type().is(dtensor) && param.get_type().is(dtensor) && are_alike(&x, &param)? {
            let shard = x.getattr(intern!(py, "_local_tensor"))?;
            if shard.get_type().is(tensor) {
                own.append(shard)?;
                continue;
            }
        }
        others.push(position);
        own.append(x)?;
    }
    Ok((own, others))
}

/// Whether two DTensors are placed alike on one mesh.
fn are_alike(one: &Bound<'_, PyAny>, other: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = one.py();
    let (one, other) = (
        one.getattr(intern!(py, "_spec"))?,
        other.getattr(intern!(py, "_spec"))?,
    );
    if one.is(&other) {
        return Ok(true);
    }
    let (mesh, placements) = layout(&one)?;
    let (other_mesh, other_placements) = layout(&other)?;
    Ok(mesh.is(&other_mesh) && placements.eq(&other_placements)?)
}

/// The mesh and the placements of a DTensor's specification.
fn layout<'py>(spec: &Bound<'py, PyAny>) -> PyResult<Layout<'py>> {
    let py = spec.py();
    Ok((
        spec.getattr(intern!(py, "mesh"))?,
        spec.getattr(intern!(py, "placements"))?,
    ))
}

/// The meshes and placements of DTensors. See `_core.pyi`.
#[pyfunction]
pub fn layouts<'py>(params: &Bound<'py, PyList>, dtensor: &Bound<'py, PyType>) -> PyResult<Vec<Layout<'py>>> {
    let py = params.py();
    let mut found: Vec<Layout<'py>> = Vec::new();
    for param in params {
        if !param.is_instance(dtensor)? {
            continue;
        }
        let (mesh, placements) = layout(&param.getattr(intern!(py, "_spec"))?)?;
        let is_last = |(a, b): &(_, _)| mesh.is(a) && placements.is(b);
        if !found.last().is_some_and(is_last) {
            found.push((mesh, placements));
        }
    }
    Ok(found)
}
