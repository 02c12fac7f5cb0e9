//! Gradients of several losses over the same parameters: their inner products, linear combinations of them, and the
//! projection of one onto the normal plane of another. Steps along directions that change with them.

mod directions;
mod follow;
mod pcgrad;

use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use super::linear::{self, CHUNK, ELEMENTS_PER_THREAD, Element, sums};
use super::storage::{Float, with_type};
use crate::runtime::{Isa, Shared, pool};

pub use directions::{Advance, Descend, apply, normalized};
pub use follow::follow;
pub use pcgrad::pcgrad;

/// As many lists are summed or combined at once; of more, several at a time while they are in the cache.
const AT_ONCE: usize = 6;
/// Elements of a list that has no tensor at a place, whatever their type.
static ZEROS: [u64; CHUNK] = [0; CHUNK];

/// What all lists hold at one place: tensors of one type and as many elements in one order.
#[derive(Clone, Debug)]
pub struct Position {
    pub dtype: Float,
    pub len: usize,
    /// One for each list; null stands for zeros.
    pub inputs: SmallVec<[*mut u8; 4]>,
    /// May be inputs.
    pub outputs: SmallVec<[*mut u8; 1]>,
}

// SAFETY: the pointers are used by this module's unsafe functions only, whose callers answer for the memory.
unsafe impl Send for Position {}
// SAFETY: as above.
unsafe impl Sync for Position {}

/// Inner products of lists, `[i * lists + j]`.
pub type Products = SmallVec<[f64; 4]>;
/// A row of factors for each output, one factor for each list.
pub type Factors = SmallVec<[f64; 4]>;

/// Elements of a position.
#[derive(Clone, Copy)]
struct Span {
    position: usize,
    start: usize,
    len: usize,
}

fn spans(positions: &[Position]) -> Vec<Span> {
    let of = |(position, &Position { len, .. }): (usize, &Position)| {
        let chunks = (0..len).step_by(CHUNK);
        chunks.map(move |start| Span {
            position,
            start,
            len: CHUNK.min(len - start),
        })
    };
    positions.iter().enumerate().flat_map(of).collect()
}

/// Calls `work` for all spans, several small ones in a task.
fn for_each(spans: &[Span], threads: usize, work: &(dyn Fn(usize, Span) + Sync)) {
    let elements: usize = spans.iter().map(|span| span.len).sum();
    let threads = threads.min(elements / ELEMENTS_PER_THREAD).max(1);
    let per_task = (spans.len() * ELEMENTS_PER_THREAD)
        .div_ceil(elements.max(1))
        .max(1);
    pool::for_each(threads, spans.len().div_ceil(per_task), &|task| {
        for (i, &span) in spans.iter().enumerate().skip(task * per_task).take(per_task) {
            work(i, span);
        }
    });
}

/// The inner products of the lists at each position, in f64 and in an order that threads do not change.
///
/// # Safety
/// The inputs are null or valid for reading, and nothing writes there.
pub unsafe fn products(positions: &[Position], threads: usize) -> Vec<Products> {
    let lists = positions.first().map_or(0, |position| position.inputs.len());
    let (spans, isa) = (spans(positions), Isa::current());
    let mut parts = vec![0.0; spans.len() * lists * lists];
    let to = Shared::new(parts.as_mut_ptr());
    for_each(&spans, threads, &|i, span| {
        let inputs = inputs_of(&positions[span.position], span.start);
        // SAFETY: each span has its own part; the rest is the caller's promise.
        unsafe {
            let to = std::slice::from_raw_parts_mut(to.get().add(i * lists * lists), lists * lists);
            with_type!(
                positions[span.position].dtype,
                products_of(isa, &inputs, span.len, to)
            );
        }
    });
    let mut result = vec![smallvec![0.0; lists * lists]; positions.len()];
    for (span, part) in spans.iter().zip(parts.chunks((lists * lists).max(1))) {
        add(&mut result[span.position], part);
    }
    result
}

/// Sums of all positions' products.
pub fn total(products: &[Products]) -> Products {
    let mut sum = products
        .first()
        .map_or_else(Products::new, |first| smallvec![0.0; first.len()]);
    products.iter().for_each(|each| add(&mut sum, each));
    sum
}

fn add(to: &mut [f64], part: &[f64]) {
    to.iter_mut().zip(part).for_each(|(to, part)| *to += part);
}

/// The place of `start` in every list.
fn inputs_of(position: &Position, start: usize) -> SmallVec<[*const u8; 4]> {
    let at = |&input: &*mut u8| match input.is_null() {
        true => ZEROS.as_ptr().cast(),
        false => input.wrapping_add(start * position.dtype.size()).cast_const(),
    };
    position.inputs.iter().map(at).collect()
}

/// # Safety
/// The inputs are valid for reading `len` elements of type `T`, nothing writes there, and the CPU has the instruction
/// set.
unsafe fn products_of<T: Element>(isa: Isa, inputs: &[*const u8], len: usize, to: &mut [f64]) {
    let lists = inputs.len();
    // SAFETY: the caller's promise.
    unsafe {
        match lists {
            0 => {}
            1 => of::<T, 1>(isa, inputs, len, to, |i| i, lists),
            2 => of::<T, 2>(isa, inputs, len, to, |i| i, lists),
            3 => of::<T, 3>(isa, inputs, len, to, |i| i, lists),
            4 => of::<T, 4>(isa, inputs, len, to, |i| i, lists),
            5 => of::<T, 5>(isa, inputs, len, to, |i| i, lists),
            6 => of::<T, 6>(isa, inputs, len, to, |i| i, lists),
            _ => {
                const HALF: usize = AT_ONCE / 2;
                let blocks = lists.div_ceil(HALF);
                for (one, other) in
                    (0..blocks).flat_map(|one| (one + 1..blocks).map(move |other| (one, other)))
                {
                    let list = |i: usize| {
                        if i < HALF {
                            HALF * one + i
                        } else {
                            HALF * other + i - HALF
                        }
                    };
                    of::<T, AT_ONCE>(isa, inputs, len, to, list, lists);
                }
            }
        }
    }
}

/// Products of the lists that `list` names; those from the last on are zero.
///
/// # Safety
/// As for [`products_of`].
unsafe fn of<T: Element, const N: usize>(
    isa: Isa,
    inputs: &[*const u8],
    len: usize,
    to: &mut [f64],
    list: impl Fn(usize) -> usize,
    lists: usize,
) {
    let input = |i| {
        inputs
            .get(list(i))
            .copied()
            .unwrap_or(ZEROS.as_ptr().cast())
            .cast()
    };
    // SAFETY: the caller's promise; the zeros are as long as a chunk.
    let found = unsafe { sums::<T, false, N>(isa, std::array::from_fn(input), len, false) };
    for i in 0..N {
        for j in i..N {
            let (row, column) = (list(i), list(j));
            if row < lists && column < lists {
                to[row * lists + column] = found.products[i][j];
                to[column * lists + row] = found.products[i][j];
            }
        }
    }
}

/// Writes to each output the sum of the lists, each times its factor, rounded once per six lists.
///
/// # Safety
/// The inputs are null or valid for reading, the outputs for writing, each output is an input of its position or
/// overlaps nothing else, and nothing else uses this memory.
pub unsafe fn combine(positions: &[Position], factors: &[Factors], threads: usize) {
    let isa = Isa::current();
    for_each(&spans(positions), threads, &|_, span| {
        let position = &positions[span.position];
        let inputs = inputs_of(position, span.start);
        let place = |&output: &*mut u8| output.wrapping_add(span.start * position.dtype.size());
        let outputs: SmallVec<[*mut u8; 1]> = position.outputs.iter().map(place).collect();
        let factors = &factors[span.position];
        // SAFETY: the caller's promise; each span is one task's.
        unsafe {
            with_type!(
                position.dtype,
                combine_of(isa, &inputs, factors, &outputs, span.len)
            )
        }
    });
}

/// # Safety
/// As for [`combine`], for `len` elements of type `T`, no more than a chunk.
unsafe fn combine_of<T: Element>(
    isa: Isa,
    inputs: &[*const u8],
    factors: &[f64],
    outputs: &[*mut u8],
    len: usize,
) {
    let lists = inputs.len();
    if let ([output], true) = (outputs, lists <= AT_ONCE) {
        // SAFETY: the caller's promise.
        unsafe { row::<T>(isa, inputs, factors, output.cast(), len) };
        return;
    }
    // An output may be an input of the next row.
    let mut results = vec![T::default(); outputs.len() * len];
    for (result, factors) in results.chunks_mut(len).zip(factors.chunks(lists)) {
        let to = result.as_mut_ptr();
        let first = AT_ONCE.min(lists);
        // SAFETY: the result is apart from the inputs and as long.
        unsafe {
            row::<T>(isa, &inputs[..first], &factors[..first], to, len);
            for begin in (first..lists).step_by(AT_ONCE - 1) {
                let more: Range<usize> = begin..lists.min(begin + AT_ONCE - 1);
                let mut again: SmallVec<[*const u8; AT_ONCE]> = smallvec![to.cast_const().cast()];
                again.extend_from_slice(&inputs[more.clone()]);
                let mut with: SmallVec<[f64; AT_ONCE]> = smallvec![1.0];
                with.extend_from_slice(&factors[more]);
                row::<T>(isa, &again, &with, to, len);
            }
        }
    }
    for (result, output) in results.chunks(len).zip(outputs) {
        // SAFETY: the output is as long.
        unsafe { result.as_ptr().copy_to_nonoverlapping(output.cast(), len) };
    }
}

/// At most six lists.
///
/// # Safety
/// As for [`combine_of`], where `to` is an input or apart from all.
unsafe fn row<T: Element>(isa: Isa, inputs: &[*const u8], factors: &[f64], to: *mut T, len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match inputs.len() {
            0 => {}
            1 => fixed::<T, 1>(isa, inputs, factors, to, len),
            2 => fixed::<T, 2>(isa, inputs, factors, to, len),
            3 => fixed::<T, 3>(isa, inputs, factors, to, len),
            4 => fixed::<T, 4>(isa, inputs, factors, to, len),
            5 => fixed::<T, 5>(isa, inputs, factors, to, len),
            _ => fixed::<T, AT_ONCE>(isa, inputs, factors, to, len),
        }
    }
}

/// # Safety
/// As for [`row`], with `N` inputs.
unsafe fn fixed<T: Element, const N: usize>(
    isa: Isa,
    inputs: &[*const u8],
    factors: &[f64],
    to: *mut T,
    len: usize,
) {
    let inputs = std::array::from_fn(|i| inputs[i].cast());
    // SAFETY: the caller's promise.
    unsafe { linear::combine::<T, false, N>(isa, &inputs, &std::array::from_fn(|i| factors[i]), to, len) };
}

/// Moves the first list's tensors the share `tau` of the way to the second's: exactly at 0, at 1, and where both are
/// equal.
///
/// # Safety
/// As for [`combine`]; there are two inputs, none null, and the output is the first.
pub unsafe fn move_towards(positions: &[Position], tau: f64, threads: usize) {
    let isa = Isa::current();
    for_each(&spans(positions), threads, &|_, span| {
        let position = &positions[span.position];
        let inputs = inputs_of(position, span.start);
        // SAFETY: the caller's promise; each span is one task's.
        unsafe { with_type!(position.dtype, move_of(isa, &inputs, tau, span.len)) };
    });
}

/// # Safety
/// As for [`move_towards`], for `len` elements of type `T`.
unsafe fn move_of<T: Element>(isa: Isa, inputs: &[*const u8], tau: f64, len: usize) {
    let (target, source) = (inputs[0].cast(), inputs[1].cast());
    // From the nearer end.
    let (from, share) = match tau < 0.5 {
        true => ([target, source], tau),
        false => ([source, target], 1.0 - tau),
    };
    // SAFETY: the caller's promise.
    unsafe { linear::combine::<T, true, 2>(isa, &from, &[1.0, -share], target.cast_mut(), len) };
}

/// How much of the forward gradient the backward one has in it (arXiv 2402.00348): `<f, b> / max(<f, f>, eps)`, and 0
/// where that divides by 0.
pub fn kappa(products: &[f64], lists: usize, forward: usize, backward: usize, eps: f64) -> f64 {
    let square = products[forward * lists + forward];
    // Not `f64::max`, which would hide a NaN.
    let divisor = if square < eps { eps } else { square };
    // By any number then, as the product is 0 too, or NaN.
    products[forward * lists + backward] / if divisor == 0.0 { 1.0 } else { divisor }
}

#[cfg(test)]
mod tests;
