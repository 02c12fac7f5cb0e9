//! Where a ghost's elements of some channels lie.

use super::Shape;

/// Elements of a cache line: as many channels at least are read together where each has one element in a row.
pub const LINE: usize = 16;
/// Shorter runs are copied together first: so are the ends of vectors, which they would mostly be.
const SHORT: usize = 128;

/// Channels of a ghost: of each, `runs` runs of `len` elements, `stride` apart. The next channel is `step` away.
#[derive(Clone, Copy)]
pub struct Block<T> {
    pub first: *mut T,
    pub runs: usize,
    pub len: usize,
    pub stride: usize,
    pub step: usize,
}

impl<T: Copy> Block<T> {
    /// The channels from `channel` on, in the batch that begins at `all`.
    pub fn of(shape: &Shape, all: *mut T, ghost: usize, channel: usize) -> Block<T> {
        let rows = shape.rows_of(ghost);
        let stride = shape.channels * shape.run;
        Block {
            first: all.wrapping_add(rows.start * stride + channel * shape.run),
            runs: rows.len(),
            len: shape.run,
            stride,
            step: shape.run,
        }
    }

    /// Channel number `i` by itself.
    pub fn channel(self, i: usize) -> Block<T> {
        Block {
            first: self.first.wrapping_add(i * self.step),
            ..self
        }
    }

    /// The elements of a channel.
    pub fn elements(&self) -> usize {
        self.runs * self.len
    }
}

/// Memory in which the runs of a channel lie one after the other.
#[derive(Default)]
pub struct Room<T>(Vec<T>);

impl<T: Copy + Default> Room<T> {
    /// A copy of so many channels, if their runs are short; else themselves.
    ///
    /// # Safety
    /// They are valid for reading.
    pub unsafe fn gather(&mut self, block: Block<T>, channels: usize) -> Block<T> {
        if block.len >= SHORT || block.runs == 1 {
            return block;
        }
        let elements = block.elements();
        self.0 = vec![T::default(); channels * elements];
        let copy = Block {
            first: self.0.as_mut_ptr(),
            runs: 1,
            len: elements,
            stride: 0,
            step: elements,
        };
        // SAFETY: the caller's promise; the copy has room for as many.
        unsafe { transfer(block, copy, channels, false) };
        copy
    }

    /// Whether nothing has been copied.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies what has been gathered to channels elsewhere, of the same shape.
    ///
    /// # Safety
    /// They are valid for writing.
    pub unsafe fn scatter(&mut self, block: Block<T>, channels: usize) {
        if self.is_empty() {
            return;
        }
        let copy = Block {
            first: self.0.as_mut_ptr(),
            runs: 1,
            len: block.elements(),
            stride: 0,
            step: block.elements(),
        };
        // SAFETY: the caller's promise; the copy has as many.
        unsafe { transfer(block, copy, channels, true) };
    }
}

/// Copies channels whose runs are apart to where they are together, or `back`.
///
/// # Safety
/// Both are valid, for writing where they are written, and do not overlap.
unsafe fn transfer<T: Copy>(apart: Block<T>, together: Block<T>, channels: usize, back: bool) {
    for run in 0..apart.runs {
        for channel in 0..channels {
            // SAFETY: the caller's promise.
            unsafe {
                let one = apart.first.add(run * apart.stride + channel * apart.step);
                let other = together.first.add(channel * together.step + run * apart.len);
                let (from, to) = if back { (other, one) } else { (one, other) };
                match apart.len {
                    1 => *to = *from, // not worth a call
                    len => from.copy_to_nonoverlapping(to, len),
                }
            }
        }
    }
}
