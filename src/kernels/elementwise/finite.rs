//! The search for NaN and infinity.

use std::sync::atomic::{AtomicBool, Ordering};

use super::ELEMENTS_PER_THREAD;
use crate::kernels::storage::{BLOCK, Float};
use crate::runtime::pool;

/// A tensor to be searched, or measured.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    pub dtype: Float,
    pub len: usize,
    pub data: *const u8,
}

// SAFETY: only read, by functions whose callers keep the memory valid and unchanged.
unsafe impl Sync for Values {}

/// Whether no element of the tensors is NaN or infinite.
///
/// # Safety
/// Each `data` is valid for reading `len` elements of its type, and nothing writes them meanwhile.
pub unsafe fn all_finite(tensors: &[Values], threads: usize) -> bool {
    let found = AtomicBool::new(false);
    let elements: usize = tensors.iter().map(|t| t.len).sum();
    let blocks: usize = tensors.iter().map(|t| t.len.div_ceil(BLOCK)).sum();
    pool::for_each(
        threads.min(elements.div_ceil(ELEMENTS_PER_THREAD)),
        blocks,
        &|mut index| {
            if found.load(Ordering::Relaxed) {
                return;
            }
            for tensor in tensors {
                let own = tensor.len.div_ceil(BLOCK);
                if index < own {
                    let start = index * BLOCK;
                    // SAFETY: the block lies within the tensor, which the caller keeps valid.
                    if !unsafe { block_is_finite(tensor, start, BLOCK.min(tensor.len - start)) } {
                        found.store(true, Ordering::Relaxed);
                    }
                    return;
                }
                index -= own;
            }
        },
    );
    !found.into_inner()
}

/// # Safety
/// The tensor's data is valid for reading elements `start..start + len`.
unsafe fn block_is_finite(tensor: &Values, start: usize, len: usize) -> bool {
    // SAFETY: the caller's promise; the data of a tensor is aligned to its element type.
    unsafe {
        match tensor.dtype {
            Float::F64 => bits_are_finite(slice(tensor.data, start, len), |x: u64| {
                x << 1 >= 0x7ff0_0000_0000_0000 << 1
            }),
            Float::F32 => bits_are_finite(slice(tensor.data, start, len), |x: u32| {
                x << 1 >= 0x7f80_0000 << 1
            }),
            Float::F16 => bits_are_finite(slice(tensor.data, start, len), |x: u16| x << 1 >= 0x7c00 << 1),
            Float::Bf16 => bits_are_finite(slice(tensor.data, start, len), |x: u16| x << 1 >= 0x7f80 << 1),
        }
    }
}

/// # Safety
/// `data` is aligned and valid for reading elements `start..start + len`.
unsafe fn slice<'a, T>(data: *const u8, start: usize, len: usize) -> &'a [T] {
    // SAFETY: the caller's promise is the same.
    unsafe { std::slice::from_raw_parts(data.cast::<T>().add(start), len) }
}

/// Without an early exit within a stretch, so that the compiler uses vectors.
fn bits_are_finite<T: Copy>(bits: &[T], is_special: impl Fn(T) -> bool) -> bool {
    bits.chunks(1024)
        .all(|stretch| !stretch.iter().fold(false, |found, &x| found | is_special(x)))
}
