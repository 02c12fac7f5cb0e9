//! Memory that tasks share.

/// A pointer that tasks share, each writing its own part.
pub struct Shared<T>(*mut T);

// SAFETY: only a pointer; each use says why its part is its own.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(pointer: *mut T) -> Self {
        Shared(pointer)
    }
    pub fn get(&self) -> *mut T {
        self.0
    }
}
