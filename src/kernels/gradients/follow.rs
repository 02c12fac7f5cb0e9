//! A gradient's norm and its distance from another, for the variance among those that were added up to it.

use super::{Element, Position, for_each, inputs_of, spans, with_type};
use crate::kernels::linear;
use crate::runtime::{Isa, Shared};

/// The sum of the squares of the first list, and that of the squares of its differences from the second, which becomes
/// a copy of the first, in an order that threads do not change.
///
/// # Safety
/// There are two inputs, none null; the first is valid for reading and the second, which is the output, for writing;
/// they do not overlap, and nothing else uses what is written.
pub unsafe fn follow(positions: &[Position], threads: usize) -> [f64; 2] {
    let isa = Isa::current();
    let spans = spans(positions);
    let mut parts = vec![[0.0; 2]; spans.len()];
    let to = Shared::new(parts.as_mut_ptr());
    for_each(&spans, threads, &|i, span| {
        let position = &positions[span.position];
        let inputs = inputs_of(position, span.start);
        let (from, before) = (inputs[0], inputs[1].cast_mut());
        // SAFETY: the caller's promise; each span is one task's, and has a part of its own.
        unsafe {
            *to.get().add(i) = with_type!(position.dtype, follow_of(isa, from, before, span.len));
        }
    });
    linear::added(&parts)
}

/// # Safety
/// As for [`linear::follow`], with elements of type `T`.
unsafe fn follow_of<T: Element>(isa: Isa, from: *const u8, to: *mut u8, len: usize) -> [f64; 2] {
    // SAFETY: the caller's promise.
    unsafe { linear::follow::<T>(isa, from.cast(), to.cast(), len) }
}
