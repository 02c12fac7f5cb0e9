//! The vector work of Lanczos iteration: long vectors, computed in f64 and rounded once. Sums are taken chunk by chunk
//! in a fixed order and without fused multiply-adds, so that neither threads nor instruction sets make a difference.

mod chunk;

use super::linear::{CHUNK, ELEMENTS_PER_THREAD};
use crate::runtime::{Isa, Shared, pool};

pub use chunk::Entry;

/// Vectors of one length, one after the other.
#[derive(Clone, Copy)]
pub struct Rows<'a, T> {
    data: &'a [T],
    len: usize,
}

impl<'a, T> Rows<'a, T> {
    /// # Panics
    /// Where the data are not whole vectors.
    pub fn new(data: &'a [T], len: usize) -> Self {
        assert!(data.len().is_multiple_of(len.max(1)));
        Rows { data, len }
    }

    pub fn one(row: &'a [T]) -> Self {
        Rows::new(row, row.len())
    }

    pub fn count(&self) -> usize {
        self.data.len() / self.len.max(1)
    }

    /// Elements of a row.
    fn part(&self, row: usize, start: usize, len: usize) -> &'a [T] {
        &self.data[row * self.len + start..][..len]
    }
}

/// Fills `to` with random signs, or with numbers between -1 and 1: of the signed integers that 32 random bits are.
pub fn fill<T: Entry>(to: &mut [T], signs: bool, stream: u64, threads: usize) {
    let isa = Isa::current();
    in_place(to, 0, threads, |start, part, _| {
        chunk::fill(isa, part, signs, stream, start)
    });
}

/// Writes `product - beta * before` to `out`; gives the inner product of that with `q`.
pub fn recur<T: Entry>(
    product: &[T],
    before: &[T],
    beta: f64,
    q: &[T],
    out: &mut [T],
    threads: usize,
) -> f64 {
    let isa = Isa::current();
    let (before, q) = (Rows::one(before), Rows::one(q));
    let sums = in_place(out, 1, threads, |start, part, sums| {
        part.copy_from_slice(&product[start..][..part.len()]);
        chunk::subtract(isa, part, &before, &[beta], start);
        chunk::products(isa, &q, part, start, sums);
    });
    sums[0]
}

/// Takes from `w` the rows times their factors; gives the norm of what is left.
pub fn subtract<T: Entry>(w: &mut [T], rows: Rows<T>, factors: &[f64], threads: usize) -> f64 {
    let isa = Isa::current();
    let sums = in_place(w, 1, threads, |start, part, sums| {
        chunk::subtract(isa, part, &rows, factors, start);
        chunk::products(isa, &Rows::one(part), part, 0, sums);
    });
    sums[0].sqrt()
}

/// The inner products of the rows with `w`.
pub fn products<T: Entry>(rows: Rows<T>, w: &[T], threads: usize) -> Vec<f64> {
    let isa = Isa::current();
    summed(w.len(), rows.count(), threads, |start, len, sums| {
        chunk::products(isa, &rows, &w[start..][..len], start, sums);
    })
}

/// Multiplies by a factor.
pub fn scale<T: Entry>(w: &mut [T], factor: f64, threads: usize) {
    let isa = Isa::current();
    in_place(w, 0, threads, |_, part, _| chunk::scale(isa, part, factor));
}

/// Calls `work` with the start of every chunk, the chunk, and zeros for its sums; gives the sums of all chunks.
fn in_place<T: Entry>(
    to: &mut [T],
    count: usize,
    threads: usize,
    work: impl Fn(usize, &mut [T], &mut [f64]) + Sync,
) -> Vec<f64> {
    let len = to.len();
    let to = Shared::new(to.as_mut_ptr());
    summed(len, count, threads, |start, len, sums| {
        // SAFETY: the chunk lies in the slice that was given, and is this call's alone.
        let part = unsafe { std::slice::from_raw_parts_mut(to.get().add(start), len) };
        work(start, part, sums);
    })
}

/// Calls `work` with the start and the length of every chunk, each once, and zeros for its sums; gives the sums of all.
fn summed(
    len: usize,
    count: usize,
    threads: usize,
    work: impl Fn(usize, usize, &mut [f64]) + Sync,
) -> Vec<f64> {
    let chunks = len.div_ceil(CHUNK);
    let mut parts = vec![0.0; chunks * count];
    let to = Shared::new(parts.as_mut_ptr());
    let per_task = ELEMENTS_PER_THREAD / CHUNK;
    pool::for_each(threads, chunks.div_ceil(per_task), &|task| {
        for chunk in task * per_task..chunks.min((task + 1) * per_task) {
            let start = chunk * CHUNK;
            // SAFETY: each chunk has its own sums.
            let sums = unsafe { std::slice::from_raw_parts_mut(to.get().add(chunk * count), count) };
            work(start, CHUNK.min(len - start), sums);
        }
    });
    let mut total = vec![0.0; count];
    for part in parts.chunks(count.max(1)) {
        total
            .iter_mut()
            .zip(part)
            .for_each(|(total, part)| *total += part);
    }
    total
}

#[cfg(test)]
mod tests;
