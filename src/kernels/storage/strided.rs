//! Copies between strided memory and contiguous buffers, for tensors whose layouts differ.

use smallvec::SmallVec;

use crate::runtime::{Shared, pool};

/// Sizes or strides, without an allocation up to the dimensions of a convolution.
pub type Dims = SmallVec<[i64; 4]>;

/// What is done to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Reads,
    /// Reads it and writes it, some of it or all.
    Updates,
    /// Writes all of it, whatever it was.
    Writes,
}

impl Access {
    pub fn reads(self) -> bool {
        self != Access::Writes
    }

    pub fn writes(self) -> bool {
        self != Access::Reads
    }
}

/// Strided memory: sizes and strides in elements of `item` bytes, outermost dimension first.
#[derive(Clone, Debug)]
pub struct Strided {
    pub data: *mut u8,
    pub item: usize,
    pub shape: Dims,
    pub strides: Dims,
}

/// A contiguous copy of strided memory, aligned for every element type.
#[derive(Debug)]
pub struct Staged {
    original: Strided,
    copy: Vec<u64>,
    access: Access,
}

// SAFETY: the pointer is used by `load` and `store` only, whose callers answer for the memory.
unsafe impl Send for Staged {}
// SAFETY: as above.
unsafe impl Sync for Staged {}

impl Staged {
    /// Room for the copy; `load` fills it and `store` copies it back, as far as the access asks for it.
    pub fn new(original: Strided, access: Access) -> Staged {
        let bytes = original.shape.iter().product::<i64>() as usize * original.item;
        Staged {
            original,
            copy: vec![0; bytes.div_ceil(8)],
            access,
        }
    }

    /// The copy. Moving `self` does not move it.
    pub fn data(&mut self) -> *mut u8 {
        self.copy.as_mut_ptr().cast()
    }

    /// Fills the copy where it is read, on up to `threads` threads.
    ///
    /// # Safety
    /// The original is valid for reading.
    pub unsafe fn load(&mut self, threads: usize) {
        if self.access.reads() {
            let copy = self.data();
            // SAFETY: the caller's promise, and the copy has room for as many elements.
            unsafe { self.original.transfer(copy, Direction::ToCopy, threads) }
        }
    }

    /// Copies back where the tensor is written.
    ///
    /// # Safety
    /// The original is valid for writing.
    pub unsafe fn store(&mut self, threads: usize) {
        if self.access.writes() {
            let copy = self.data();
            // SAFETY: the caller's promise, and the copy has as many elements.
            unsafe { self.original.transfer(copy, Direction::FromCopy, threads) }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToCopy,
    FromCopy,
}

/// Elements that are worth a task.
const TASK: usize = 1 << 14;

impl Strided {
    /// # Safety
    /// The memory is valid, aligned and not written by others, for writing where the direction says so; `copy` has as
    /// many elements, one after the other.
    unsafe fn transfer(&self, copy: *mut u8, direction: Direction, threads: usize) {
        // SAFETY: the caller's promise; these are the sizes of the element types.
        unsafe {
            match self.item {
                1 => self.transfer_as::<u8>(copy.cast(), direction, threads),
                2 => self.transfer_as::<u16>(copy.cast(), direction, threads),
                4 => self.transfer_as::<u32>(copy.cast(), direction, threads),
                8 => self.transfer_as::<u64>(copy.cast(), direction, threads),
                item => unreachable!("no element type has {item} bytes"),
            }
        }
    }

    /// # Safety
    /// As for [`Strided::transfer`], with elements as large as `T`.
    unsafe fn transfer_as<T: Copy>(&self, copy: *mut T, direction: Direction, threads: usize) {
        let mut outer = self.merged();
        let (cols, stride) = outer.pop().unwrap_or((1, 1));
        let rows: usize = outer.iter().map(|&(size, _)| size).product();
        let at_once = (TASK / cols.max(1)).max(1);
        let (memory, copy) = (Shared::new(self.data.cast::<T>()), Shared::new(copy));
        pool::for_each(threads, rows.div_ceil(at_once), &|task| {
            for row in task * at_once..rows.min((task + 1) * at_once) {
                let (mut index, mut offset) = (row, 0);
                for &(size, stride) in outer.iter().rev() {
                    offset += (index % size) as isize * stride;
                    index /= size;
                }
                let memory = memory.get().wrapping_offset(offset);
                let copy = copy.get().wrapping_add(row * cols);
                let step = |from: *mut T, to: *mut T, count: usize| {
                    let (from, to) = match direction {
                        Direction::ToCopy => (from, to),
                        Direction::FromCopy => (to, from),
                    };
                    // SAFETY: both are elements that the caller vouched for, and every row is one task's.
                    unsafe { to.copy_from_nonoverlapping(from, count) };
                };
                if stride == 1 {
                    step(memory, copy, cols);
                } else {
                    for i in 0..cols {
                        step(
                            memory.wrapping_offset(i as isize * stride),
                            copy.wrapping_add(i),
                            1,
                        );
                    }
                }
            }
        });
    }

    /// Sizes and strides, with one dimension for those that follow one another evenly.
    fn merged(&self) -> Vec<(usize, isize)> {
        let mut merged: Vec<(usize, isize)> = Vec::with_capacity(self.shape.len());
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let (size, stride) = (size as usize, stride as isize);
            match merged.last_mut() {
                Some(last) if last.1 == size as isize * stride => *last = (last.0 * size, stride),
                _ => merged.push((size, stride)),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn a_transposed_matrix_is_gathered_and_scattered() {
        let mut memory: Vec<u32> = (0..6).collect();
        let transposed = Strided {
            data: memory.as_mut_ptr().cast(),
            item: 4,
            shape: smallvec![3, 2],
            strides: smallvec![1, 3],
        };
        let mut staged = Staged::new(transposed, Access::Updates);
        // SAFETY: the strides stay within `memory`.
        unsafe { staged.load(2) };
        let copy = staged.data().cast::<u32>();
        // SAFETY: the copy holds six elements.
        let values = unsafe { std::slice::from_raw_parts_mut(copy, 6) };
        assert_eq!(values, [0, 3, 1, 4, 2, 5]);
        values.iter_mut().for_each(|x| *x += 10);
        // SAFETY: as above.
        unsafe { staged.store(2) };
        assert_eq!(memory, [10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn channels_last_and_slices_are_copied_by_several_tasks() {
        // As (sizes, strides) of (n, c, h, w) in memory of (n, h, w, c), and of the left half of a matrix.
        for (shape, strides) in [
            (vec![40, 30, 5, 6], vec![900, 1, 180, 30]),
            (vec![300, 250], vec![500, 1]),
        ] {
            let mut memory: Vec<u16> = (0..150_000u32).map(|i| i as u16).collect();
            let before = memory.clone();
            let data = memory.as_mut_ptr().cast();
            let offset = |flat: i64| {
                let mut index = flat;
                let mut offset = 0;
                for (size, stride) in shape.iter().zip(&strides).rev() {
                    offset += index % size * stride;
                    index /= size;
                }
                offset as usize
            };
            let count = shape.iter().product::<i64>();
            let original = Strided {
                data,
                item: 2,
                shape: Dims::from_vec(shape.clone()),
                strides: Dims::from_vec(strides.clone()),
            };
            let mut staged = Staged::new(original, Access::Updates);
            // SAFETY: the strides stay within `memory`.
            unsafe { staged.load(3) };
            // SAFETY: the copy holds as many elements.
            let values =
                unsafe { std::slice::from_raw_parts_mut(staged.data().cast::<u16>(), count as usize) };
            for (flat, value) in values.iter_mut().enumerate() {
                assert_eq!(*value, before[offset(flat as i64)]);
                *value = !*value;
            }
            // SAFETY: as above.
            unsafe { staged.store(3) };
            let mut expected = before.clone();
            (0..count).for_each(|flat| expected[offset(flat)] = !before[offset(flat)]);
            assert_eq!(memory, expected);
        }
    }

    #[test]
    fn a_number_without_dimensions_is_one_element() {
        let mut memory = [7_u16];
        let mut staged = Staged::new(
            Strided {
                data: memory.as_mut_ptr().cast(),
                item: 2,
                shape: Dims::new(),
                strides: Dims::new(),
            },
            Access::Updates,
        );
        // SAFETY: one element, valid.
        unsafe {
            staged.load(2);
            assert_eq!(*staged.data().cast::<u16>(), 7);
            *staged.data().cast::<u16>() = 8;
            staged.store(2);
        }
        assert_eq!(memory, [8]);
    }
}
