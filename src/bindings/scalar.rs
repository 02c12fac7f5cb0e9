//! The numbers that a parameter keeps beside its states: its step count, and a product of a factor of each step.

use super::errors::Problem;
use super::view::View;
use crate::kernels::storage::DType;

/// A number kept in a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Scalar {
    data: *mut u8,
    is_f64: bool,
    value: f64,
}

// SAFETY: written by the one thread that runs the step; whoever made the view keeps the memory valid.
unsafe impl Sync for Scalar {}

impl Scalar {
    /// The count of steps in a view.
    pub fn count(view: &View) -> Result<Scalar, Problem> {
        let holds = |value: f64| value >= 0.0 && value.fract() == 0.0;
        Scalar::read(view, holds, "a whole number of at least 0")
    }

    /// The product of factors from 0 to 1 in a view.
    pub fn product(view: &View) -> Result<Scalar, Problem> {
        Scalar::read(view, |value| (0.0..=1.0).contains(&value), "a number from 0 to 1")
    }

    fn read(view: &View, holds: impl Fn(f64) -> bool, expected: &'static str) -> Result<Scalar, Problem> {
        let value = match (view.len, view.dtype) {
            // SAFETY: the view is valid and has one element of the type.
            (1, DType::F32) => unsafe { view.data.cast::<f32>().read() as f64 },
            // SAFETY: as above.
            (1, DType::F64) => unsafe { view.data.cast::<f64>().read() },
            _ => {
                return Err(Problem::DType {
                    dtype: format!("{} and {} elements", view.dtype.name(), view.len),
                    expected: "one float32 or float64 number".into(),
                });
            }
        };
        match holds(value) {
            true => Ok(Scalar {
                data: view.data,
                is_f64: view.dtype == DType::F64,
                value,
            }),
            false => Err(Problem::Number { value, expected }),
        }
    }

    pub fn value(&self) -> f64 {
        self.value
    }

    /// The next count.
    pub fn plus_one(self) -> Scalar {
        let value = self.value + 1.0;
        Scalar { value, ..self }
    }

    /// The product with a number, both and their product rounded to the tensor's type, as torch has it.
    pub fn times(self, factor: f64) -> Scalar {
        let value = match self.is_f64 {
            true => self.value * factor,
            false => (self.value as f32 * factor as f32) as f64,
        };
        Scalar { value, ..self }
    }

    /// Writes the value to the tensor.
    ///
    /// # Safety
    /// The tensor that the number was read from is still alive.
    pub unsafe fn write(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.is_f64 {
                true => self.data.cast::<f64>().write(self.value),
                false => self.data.cast::<f32>().write(self.value as f32),
            }
        }
    }
}
