//! The step count of a parameter.

use super::view::View;
use crate::kernels::storage::DType;

/// A number kept in a tensor: the step count.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    data: *mut u8,
    is_f64: bool,
    value: f64,
}

// SAFETY: written by the one thread that runs the step; whoever made the view keeps the memory valid.
unsafe impl Sync for Counter {}

impl Counter {
    /// The counter in a one-element view of f32 or f64.
    pub fn read(view: &View) -> Option<Counter> {
        let value = match (view.len, view.dtype) {
            // SAFETY: the view is valid and has one element of the type.
            (1, DType::F32) => unsafe { view.data.cast::<f32>().read() as f64 },
            // SAFETY: as above.
            (1, DType::F64) => unsafe { view.data.cast::<f64>().read() },
            _ => return None,
        };
        Some(Counter {
            data: view.data,
            is_f64: view.dtype == DType::F64,
            value,
        })
    }

    pub fn value(&self) -> f64 {
        self.value
    }

    /// Writes the next value.
    ///
    /// # Safety
    /// The tensor that the counter was read from is still alive.
    pub unsafe fn advance(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.is_f64 {
                true => self.data.cast::<f64>().write(self.value + 1.0),
                false => self.data.cast::<f32>().write((self.value + 1.0) as f32),
            }
        }
    }
}
