//! One state tensor of a parameter.

use super::{Codebook, Float, codes::CODE_BLOCK};

/// Where a state lies, and how.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub data: *mut u8,
    pub storage: Storage,
}

/// How the numbers of a state are stored.
#[derive(Clone, Copy, Debug)]
pub enum Storage {
    Float(Float),
    Codes(Codes),
}

/// A byte for each number, and a scale for each [`CODE_BLOCK`] of them; the last block of a tensor may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    pub book: &'static Codebook,
    pub scales: *mut f32,
}

impl State {
    pub fn float(data: *mut u8, dtype: Float) -> State {
        State {
            data,
            storage: Storage::Float(dtype),
        }
    }

    /// The element type, if there is one.
    pub fn dtype(&self) -> Option<Float> {
        match self.storage {
            Storage::Float(dtype) => Some(dtype),
            Storage::Codes(_) => None,
        }
    }

    /// What lies from element `start` on, which is the first of a block where there are codes.
    pub fn from(&self, start: usize) -> State {
        match self.storage {
            Storage::Float(dtype) => State {
                data: self.data.wrapping_add(start * dtype.size()),
                ..*self
            },
            Storage::Codes(codes) => {
                debug_assert!(
                    start.is_multiple_of(CODE_BLOCK),
                    "{start} is within a block of codes"
                );
                let scales = codes.scales.wrapping_add(start / CODE_BLOCK);
                State {
                    data: self.data.wrapping_add(start),
                    storage: Storage::Codes(Codes { scales, ..codes }),
                }
            }
        }
    }
}
