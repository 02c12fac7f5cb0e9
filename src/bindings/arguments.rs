//! Checks of arguments that are no tensors; what came is printed as Python prints it.

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::kernels::linear::Powers;

/// The error for an object that is no `expected`.
pub fn wrong_kind(argument: &str, given: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    match given.get_type().name() {
        Ok(kind) => PyTypeError::new_err(format!("{argument} is a {kind}, expected {expected}")),
        Err(error) => error,
    }
}

/// The object as a value of Rust. What else a conversion of its own raises, it knows best.
pub fn extract<'py, T>(argument: &str, given: &Bound<'py, PyAny>, expected: &str) -> PyResult<T>
where
    T: FromPyObjectOwned<'py, Error = PyErr>,
{
    let py = given.py();
    given.extract().map_err(|error: PyErr| {
        if error.is_instance_of::<PyTypeError>(py) {
            wrong_kind(argument, given, expected)
        } else if error.is_instance_of::<PyOverflowError>(py) || error.is_instance_of::<PyValueError>(py) {
            invalid(argument, error.value(py), expected)
        } else {
            error
        }
    })
}

/// What is summed for norms of these orders.
pub fn powers(orders: &[u32]) -> PyResult<Powers> {
    match orders {
        [1] => Ok(Powers::Sizes),
        [2] => Ok(Powers::Squares),
        [1, 2] => Ok(Powers::Both),
        _ => Err(PyValueError::new_err(format!(
            "Invalid orders: {orders:?}; expected [1], [2] or [1, 2]"
        ))),
    }
}

/// What a word stands for among those known.
pub fn choice<T: Clone>(argument: &str, given: &Bound<'_, PyAny>, known: &[(&str, T)]) -> PyResult<T> {
    let word = given.extract::<&str>().ok();
    if let Some((_, meant)) = known.iter().find(|(name, _)| Some(*name) == word) {
        return Ok(meant.clone());
    }
    let (last, others) = known.split_last().expect("there is a choice");
    let others: Vec<_> = others.iter().map(|(name, _)| format!("'{name}'")).collect();
    let expected = format!("{} or '{}'", others.join(", "), last.0);
    Err(invalid(argument, given.repr()?, &expected))
}

/// The number that came.
pub fn number(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<f64> {
    extract(argument, given, "a number")
}

/// The number, unless it is negative, infinite or NaN.
pub fn at_least_zero(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<f64> {
    let expected = "a finite number of at least 0";
    number_where(argument, given, |x| x >= 0.0 && x.is_finite(), expected)
}

/// The number, unless it is infinite or NaN.
pub fn finite(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<f64> {
    number_where(argument, given, f64::is_finite, "a finite number")
}

/// The number, unless it is NaN.
pub fn no_nan(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<f64> {
    number_where(argument, given, |x| !x.is_nan(), "a number")
}

/// The number, unless it lies outside 0 and 1 or is NaN.
pub fn share(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<f64> {
    number_where(
        argument,
        given,
        |x| (0.0..=1.0).contains(&x),
        "a number from 0 to 1",
    )
}

fn number_where(
    argument: &str,
    given: &Bound<'_, PyAny>,
    holds: impl Fn(f64) -> bool,
    expected: &str,
) -> PyResult<f64> {
    let value = number(argument, given)?;
    match holds(value) {
        true => Ok(value),
        false => Err(invalid(argument, given, expected)),
    }
}

fn invalid(argument: &str, given: impl std::fmt::Display, expected: &str) -> PyErr {
    PyValueError::new_err(format!("Invalid {argument}: {given}; expected {expected}"))
}
