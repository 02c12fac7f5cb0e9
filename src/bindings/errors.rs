//! Why an input is refused, each reason with its message.

use std::fmt;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::kernels::storage::{Buffers, Dims, Float, Rounding, State};

/// Where a tensor stands in the caller's arguments.
#[derive(Clone, Debug)]
pub struct Place {
    /// The parameter group, where there are groups.
    pub group: Option<usize>,
    /// The position among the group's parameters.
    pub index: usize,
    /// The tensor's role: `param`, `grad`, or the name of a state.
    pub argument: String,
}

/// What is wrong with it.
#[derive(Clone, Debug)]
pub enum Problem {
    NotATensor {
        kind: String,
    },
    Sparse {
        layout: String,
    },
    Device {
        device: String,
    },
    NoMemory {
        kind: String,
    },
    DType {
        dtype: String,
        expected: String,
    },
    ByteOrder,
    Misaligned,
    Shape {
        shape: Dims,
        expected: Dims,
    },
    Matrices {
        shape: Dims,
        expected: String,
    },
    Count {
        count: usize,
        expected: usize,
    },
    NegativeBit,
    ConjugateBit,
    ReadOnly,
    Inference,
    OverlapsItself,
    Overlaps {
        other: Place,
    },
    Number {
        value: f64,
        expected: &'static str,
    },
    Selection {
        found: String,
        expected: String,
    },
    Combination {
        param: &'static str,
        states: String,
        rounding: &'static str,
    },
}

impl Problem {
    /// Of types that no kernel takes together.
    pub fn combination<const N: usize>(buffers: &Buffers<N>, rounding: Rounding) -> Problem {
        let name = |state: &State| state.dtype().map_or("8-bit", Float::name);
        let mut states: Vec<_> = buffers.state.iter().map(name).collect();
        states.dedup();
        Problem::Combination {
            param: buffers.dtype.name(),
            states: states.join(", "),
            rounding: rounding.name(),
        }
    }
}

/// An input that is refused; nothing has been changed.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub place: Place,
    pub problem: Problem,
}

impl Place {
    /// An argument that is not in a parameter group.
    pub fn named(argument: String) -> Place {
        Place {
            group: None,
            index: 0,
            argument,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            Some(group) => write!(
                f,
                "{} of parameter {} in group {group}",
                self.argument, self.index
            ),
            None => write!(f, "{}", self.argument),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Problem::*;
        match self {
            NotATensor { kind } => write!(f, "is a {kind}, expected a torch.Tensor or a numpy.ndarray"),
            Sparse { layout } => write!(
                f,
                "has layout {layout}; sparse tensors are not supported, expected torch.strided"
            ),
            Device { device } => write!(f, "is on device {device}, expected the CPU"),
            NoMemory { kind } => write!(
                f,
                "is a {kind} without memory of its own (fake, meta or wrapped), expected a real CPU tensor"
            ),
            DType { dtype, expected } => write!(f, "has dtype {dtype}, expected {expected}"),
            ByteOrder => write!(f, "is not in the machine's byte order"),
            Misaligned => write!(f, "is not aligned to its element size"),
            Shape { shape, expected } => write!(f, "has shape {shape:?}, expected {expected:?}"),
            Matrices { shape, expected } => write!(f, "has shape {shape:?}, expected {expected}"),
            Count { count, expected } => write!(f, "came as a list of {count} tensors, expected {expected}"),
            NegativeBit => write!(
                f,
                "has the negative bit set (a lazily negated view): call resolve_neg() on it first"
            ),
            ConjugateBit => write!(
                f,
                "has the conjugate bit set (a lazily conjugated view): call resolve_conj() on it first"
            ),
            ReadOnly => write!(f, "is read-only, expected a writable array"),
            // With torch's words, for whoever looks for them.
            Inference => write!(
                f,
                "is an inference tensor: Inplace update to inference tensor outside InferenceMode is not allowed; \
                 clone() it first"
            ),
            OverlapsItself => write!(
                f,
                "has elements that share memory (an expanded view?), expected one place for each"
            ),
            Overlaps { other } => write!(f, "shares memory with {other}, expected separate memory"),
            Number { value, expected } => write!(f, "is {value:?}, expected {expected}"),
            Selection { found, expected } => write!(f, "is {found}, expected {expected}"),
            Combination {
                param,
                states,
                rounding,
            } => {
                write!(
                    f,
                    "cannot be updated: no kernel for {param} parameters with {states} state and rounding={rounding:?}"
                )
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place, self.problem)
    }
}

impl From<Refusal> for PyErr {
    fn from(refusal: Refusal) -> PyErr {
        let message = refusal.to_string();
        match refusal.problem {
            Problem::NotATensor { .. } => PyTypeError::new_err(message),
            Problem::Sparse { .. }
            | Problem::Device { .. }
            | Problem::NoMemory { .. }
            | Problem::Inference => PyRuntimeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}
