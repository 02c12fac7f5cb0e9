//! Checks of arguments that are no tensors.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The error for a name that is none of those expected.
pub fn unknown(argument: &str, got: &str, expected: &str) -> PyErr {
    PyValueError::new_err(format!("Invalid {argument}: {got:?}; expected {expected}"))
}

/// The error for a number that is not as expected.
pub fn invalid(argument: &str, value: f64, expected: &str) -> PyErr {
    PyValueError::new_err(format!("Invalid {argument}: {value}; expected {expected}"))
}

/// The number, unless it is negative, infinite or NaN.
pub fn at_least_zero(argument: &str, value: f64) -> PyResult<f64> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(invalid(argument, value, "a finite number of at least 0")),
    }
}

/// The number, unless it is infinite or NaN.
pub fn finite(argument: &str, value: f64) -> PyResult<f64> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(invalid(argument, value, "a finite number")),
    }
}

/// The number, unless it lies outside 0 and 1 or is NaN.
pub fn share(argument: &str, value: f64) -> PyResult<f64> {
    match (0.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err(invalid(argument, value, "a number from 0 to 1")),
    }
}
