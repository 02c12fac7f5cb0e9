//! Sums over the elements of one gradient, for its norms, and for the variance among those that were added up to it.

use super::{Element, Position, Span, for_each, inputs_of, spans, with_type};
use crate::kernels::linear;
use crate::runtime::{Isa, Shared};

/// The sum of the sizes of all elements of the first list, and that of their squares.
///
/// # Safety
/// The inputs are null or valid for reading, and nothing writes there.
pub unsafe fn norms(positions: &[Position], threads: usize) -> [f64; 2] {
    let isa = Isa::current();
    add_up(positions, threads, &|position, span| {
        let from = inputs_of(position, span.start)[0];
        // SAFETY: the caller's promise.
        unsafe { with_type!(position.dtype, norms_of(isa, from, span.len)) }
    })
}

/// # Safety
/// As for [`linear::norms`], with elements of type `T`.
unsafe fn norms_of<T: Element>(isa: Isa, from: *const u8, len: usize) -> [f64; 2] {
    // SAFETY: the caller's promise.
    unsafe { linear::norms::<T>(isa, from.cast(), len) }
}

/// The sum of the squares of the first list, and that of the squares of its differences from the second, which becomes
/// a copy of the first.
///
/// # Safety
/// There are two inputs, none null; the first is valid for reading and the second, which is the output, for writing;
/// they do not overlap, and nothing else uses what is written.
pub unsafe fn follow(positions: &[Position], threads: usize) -> [f64; 2] {
    let isa = Isa::current();
    add_up(positions, threads, &|position, span| {
        let inputs = inputs_of(position, span.start);
        // SAFETY: the caller's promise; each span is one task's.
        unsafe {
            with_type!(
                position.dtype,
                follow_of(isa, inputs[0], inputs[1].cast_mut(), span.len)
            )
        }
    })
}

/// # Safety
/// As for [`linear::follow`], with elements of type `T`.
unsafe fn follow_of<T: Element>(isa: Isa, from: *const u8, to: *mut u8, len: usize) -> [f64; 2] {
    // SAFETY: the caller's promise.
    unsafe { linear::follow::<T>(isa, from.cast(), to.cast(), len) }
}

/// The sums of what `each` gives for all spans, in an order that threads do not change.
fn add_up(
    positions: &[Position],
    threads: usize,
    each: &(dyn Fn(&Position, Span) -> [f64; 2] + Sync),
) -> [f64; 2] {
    let spans = spans(positions);
    let mut parts = vec![[0.0; 2]; spans.len()];
    let to = Shared::new(parts.as_mut_ptr());
    for_each(&spans, threads, &|i, span| {
        // SAFETY: each span has a part of its own.
        unsafe { *to.get().add(i) = each(&positions[span.position], span) };
    });
    parts
        .iter()
        .fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]])
}
