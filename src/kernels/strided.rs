//! Copies between strided memory and contiguous buffers, for tensors whose layouts differ.

/// Strided memory: sizes and strides in elements of `item` bytes, outermost dimension first.
#[derive(Clone, Debug)]
pub struct Strided {
    pub data: *mut u8,
    pub item: usize,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

/// A contiguous copy of strided memory, aligned for every element type.
#[derive(Debug)]
pub struct Staged {
    original: Strided,
    copy: Vec<u64>,
    write_back: bool,
}

// SAFETY: the pointer is used by `load` and `store` only, whose callers answer for the memory.
unsafe impl Send for Staged {}
// SAFETY: as above.
unsafe impl Sync for Staged {}

impl Staged {
    /// Room for the copy; `load` fills it. With `write_back`, `store` copies it back.
    pub fn new(original: Strided, write_back: bool) -> Staged {
        let bytes = original.shape.iter().product::<i64>() as usize * original.item;
        Staged {
            original,
            copy: vec![0; bytes.div_ceil(8)],
            write_back,
        }
    }

    /// The copy. Moving `self` does not move it.
    pub fn data(&mut self) -> *mut u8 {
        self.copy.as_mut_ptr().cast()
    }

    /// # Safety
    /// The original is valid for reading.
    pub unsafe fn load(&mut self) {
        let copy = self.data();
        // SAFETY: the caller's promise, and the copy has room for as many elements.
        unsafe {
            for_each_row(&self.original, copy, |memory, copy, item| {
                copy.copy_from(memory, item)
            })
        }
    }

    /// # Safety
    /// The original is valid for writing.
    pub unsafe fn store(&mut self) {
        if self.write_back {
            let copy = self.data();
            // SAFETY: the caller's promise, and the copy has as many elements.
            unsafe {
                for_each_row(&self.original, copy, |memory, copy, item| {
                    memory.copy_from(copy, item)
                })
            }
        }
    }
}

/// Calls `transfer` for each element, in the order of the contiguous copy.
///
/// # Safety
/// `copy` has room for all elements, and `transfer` may be called with a pointer to each.
unsafe fn for_each_row(strided: &Strided, copy: *mut u8, transfer: impl Fn(*mut u8, *mut u8, usize)) {
    let Strided {
        data,
        item,
        ref shape,
        ref strides,
    } = *strided;
    let Some((&row, outer)) = shape.split_last() else {
        return transfer(data, copy, item);
    };
    let row_stride = strides[outer.len()] as isize * item as isize;
    let rows = outer.iter().product::<i64>();
    let mut index = vec![0_i64; outer.len()];
    for r in 0..rows {
        let offset: i64 = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        let memory = data.wrapping_offset(offset as isize * item as isize);
        for i in 0..row as isize {
            let element = (r * row) as isize + i;
            transfer(
                memory.wrapping_offset(i * row_stride),
                copy.wrapping_offset(element * item as isize),
                item,
            );
        }
        for (i, &size) in index.iter_mut().zip(outer).rev() {
            *i += 1;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_matrix_is_gathered_and_scattered() {
        let mut memory: Vec<u32> = (0..6).collect();
        let transposed = Strided {
            data: memory.as_mut_ptr().cast(),
            item: 4,
            shape: vec![3, 2],
            strides: vec![1, 3],
        };
        let mut staged = Staged::new(transposed, true);
        // SAFETY: the strides stay within `memory`.
        unsafe { staged.load() };
        let copy = staged.data().cast::<u32>();
        // SAFETY: the copy holds six elements.
        let values = unsafe { std::slice::from_raw_parts_mut(copy, 6) };
        assert_eq!(values, [0, 3, 1, 4, 2, 5]);
        values.iter_mut().for_each(|x| *x += 10);
        // SAFETY: as above.
        unsafe { staged.store() };
        assert_eq!(memory, [10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn a_number_without_dimensions_is_one_element() {
        let mut memory = [7_u16];
        let mut staged = Staged::new(
            Strided {
                data: memory.as_mut_ptr().cast(),
                item: 2,
                shape: vec![],
                strides: vec![],
            },
            true,
        );
        // SAFETY: one element, valid.
        unsafe {
            staged.load();
            assert_eq!(*staged.data().cast::<u16>(), 7);
            *staged.data().cast::<u16>() = 8;
            staged.store();
        }
        assert_eq!(memory, [8]);
    }
}
