//! The vector work of Lanczos iteration on long vectors of f32 or f64. Inner products are f64, chunk by chunk in a fixed
//! order, so that threads make no difference.

mod chunk;

use super::linear::{Element, combine};
use crate::runtime::{Isa, Shared, pool};

/// Elements that are summed by themselves, and one task's: part of the definition of the sums. Of fewer, the memory's
/// prefetching begins anew with every row too often.
const CHUNK: usize = 16_384;
/// Rows that are worked on for all vectors of a block in turn.
const AT_ONCE: usize = 4;

/// Vectors of one length, one after the other.
#[derive(Clone, Copy, Debug)]
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

    /// Those from a number on.
    fn from(&self, first: usize) -> Self {
        Rows::new(&self.data[first * self.len..], self.len)
    }

    pub fn count(&self) -> usize {
        self.data.len() / self.len.max(1)
    }
}

/// Fills `to` with random signs, or with numbers between -1 and 1: of the signed integers that 32 random bits are.
pub fn fill<T: Element + From<f32>>(to: &mut [T], signs: bool, stream: u64, threads: usize) {
    let isa = Isa::current();
    in_place(to, 0, threads, |start, part, _| {
        for (to, number) in part.iter_mut().zip(chunk::numbers(isa, stream, start)) {
            *to = T::from(match signs {
                false => number,
                true if number < 0.0 => -1.0,
                true => 1.0,
            });
        }
    });
}

/// Writes `product - beta * before` to `out`; gives the inner product of that with `q`.
///
/// # Panics
/// Where the vectors are not of one length.
pub fn recur<T: Element>(
    product: &[T],
    before: &[T],
    beta: f64,
    q: &[T],
    out: &mut [T],
    threads: usize,
) -> f64 {
    let (isa, len) = (Isa::current(), out.len());
    assert!([product, before, q].iter().all(|each| each.len() == len));
    let sums = in_place(out, 1, threads, |start, part, sums| {
        part.copy_from_slice(&product[start..][..part.len()]);
        chunk::subtract(isa, part, &Rows::one(before), &[beta], start);
        chunk::products(isa, &Rows::one(q), part, start, sums);
    });
    sums[0]
}

/// Takes `q` from `w`, times its factor; gives the norm of what is left.
pub fn subtract<T: Element>(w: &mut [T], q: &[T], alpha: f64, threads: usize) -> f64 {
    let isa = Isa::current();
    let sums = in_place(w, 1, threads, |start, part, sums| {
        chunk::subtract(isa, part, &Rows::one(q), &[alpha], start);
        chunk::products(isa, &Rows::one(part), part, 0, sums);
    });
    sums[0].sqrt()
}

/// Takes from each vector of a block, which lie one after the other, the rows times their inner products with it; gives
/// these, vector by vector, and the norms of what is left. The rows are read once for each of both: the next vector
/// finds their parts in the cache.
pub fn orthogonalize<T: Element>(rows: Rows<T>, block: &mut [T], threads: usize) -> (Vec<f64>, Vec<f64>) {
    let (isa, len, count) = (Isa::current(), rows.len, rows.count());
    let vectors = Rows::new(block, len).count();
    let read = &*block;
    let factors = summed(len, vectors * count, threads, |start, size, sums| {
        for first in (0..count).step_by(AT_ONCE) {
            let some = first..count.min(first + AT_ONCE);
            for (i, w) in read.chunks_exact(len).enumerate() {
                let to = &mut sums[i * count..][some.clone()];
                chunk::products(isa, &rows.from(first), &w[start..][..size], start, to);
            }
        }
    });
    let to = Shared::new(block.as_mut_ptr());
    let squares = summed(len, vectors, threads, |start, size, sums| {
        // SAFETY: the part lies in vector `i`, and is this call's alone, which uses one at a time.
        let part = |i| unsafe { std::slice::from_raw_parts_mut(to.get().add(i * len + start), size) };
        for first in (0..count).step_by(AT_ONCE) {
            let some = first..count.min(first + AT_ONCE);
            for i in 0..vectors {
                let factors = &factors[i * count..][some.clone()];
                chunk::subtract(isa, part(i), &rows.from(first), factors, start);
            }
        }
        for (i, square) in sums.iter_mut().enumerate() {
            let part = part(i);
            chunk::products(isa, &Rows::one(part), part, 0, std::slice::from_mut(square));
        }
    });
    (factors, squares.into_iter().map(f64::sqrt).collect())
}

/// Multiplies by a factor.
pub fn scale<T: Element>(w: &mut [T], factor: f64, threads: usize) {
    let isa = Isa::current();
    in_place(w, 0, threads, |_, part, _| {
        // SAFETY: what is written is the only input.
        unsafe { combine::<T, false, 1>(isa, &[part.as_ptr()], &[factor], part.as_mut_ptr(), part.len()) };
    });
}

/// Calls `work` with the start of every chunk, the chunk, and zeros for its sums; gives the sums of all chunks.
fn in_place<T: Element>(
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
    pool::for_each(threads, chunks, &|chunk| {
        let start = chunk * CHUNK;
        // SAFETY: each chunk has its own sums.
        let sums = unsafe { std::slice::from_raw_parts_mut(to.get().add(chunk * count), count) };
        work(start, CHUNK.min(len - start), sums);
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
