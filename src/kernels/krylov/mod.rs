//! The vector work of Lanczos iteration on long vectors of f32 or f64. Inner products are f64, chunk by chunk in a fixed
//! order, so that threads make no difference.

mod chunk;

use self::chunk::{Parts, PartsMut};
use super::linear::{Element, combine};
use crate::runtime::{Isa, Shared, pool};

/// Elements that are summed by themselves, and one task's: part of the definition of the sums. Of fewer, the memory's
/// prefetching begins anew with every row too often.
const CHUNK: usize = 16_384;

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
        let here = start..start + part.len();
        part.copy_from_slice(&product[here.clone()]);
        chunk::subtract(
            isa,
            PartsMut::one(part),
            Parts::one(&before[here.clone()]),
            &[beta],
        );
        chunk::products(isa, Parts::one(&q[here]), Parts::one(part), sums);
    });
    sums[0]
}

/// Takes `q` from `w`, times its factor; gives the norm of what is left.
pub fn subtract<T: Element>(w: &mut [T], q: &[T], alpha: f64, threads: usize) -> f64 {
    let isa = Isa::current();
    let sums = in_place(w, 1, threads, |start, part, sums| {
        let q = Parts::one(&q[start..][..part.len()]);
        chunk::subtract(isa, PartsMut::one(part), q, &[alpha]);
        chunk::products(isa, Parts::one(part), Parts::one(part), sums);
    });
    sums[0].sqrt()
}

/// Takes from each vector of a block, which lie one after the other, the rows times their inner products with it, and
/// the vectors before it likewise, as they are then: for rows that are orthonormal and vectors of which all but the last
/// are of norm 1. Gives the inner products with the rows, vector by vector, and the norms of what is left. All memory is
/// read but twice.
pub fn orthogonalize<T: Element>(rows: Rows<T>, block: &mut [T], threads: usize) -> (Vec<f64>, Vec<f64>) {
    let (isa, len, count) = (Isa::current(), rows.len, rows.count());
    let read = Rows::new(block, len);
    let vectors = read.count();
    let sums = summed(len, vectors * (count + vectors), threads, |start, size, sums| {
        let (with_rows, with_vectors) = sums.split_at_mut(vectors * count);
        let block = Parts::new(&read, start..start + size);
        chunk::products(isa, Parts::new(&rows, start..start + size), block, with_rows);
        chunk::products(isa, block, block, with_vectors);
    });
    let (factors, gram) = sums.split_at(vectors * count);
    let within = within(factors, gram, vectors);
    let to = Shared::new(block.as_mut_ptr());
    let squares = summed(len, vectors, threads, |start, size, sums| {
        // SAFETY: the parts lie in the block, and are this call's alone.
        let mut parts = unsafe { PartsMut::new(to.get().add(start), len, vectors, size) };
        chunk::subtract(isa, parts.all(), Parts::new(&rows, start..start + size), factors);
        for (i, square) in sums.iter_mut().enumerate() {
            let (before, mut next) = parts.split(i);
            chunk::subtract(isa, next.all(), before, &within[i * vectors..][..i]);
            chunk::products(isa, next.read(), next.read(), std::slice::from_mut(square));
        }
    });
    (factors.to_vec(), squares.into_iter().map(f64::sqrt).collect())
}

/// The inner product of each vector of a block, once the rows have been taken from it, with each one before it, once all
/// has been: from those with the rows, and of the vectors as they were.
fn within(factors: &[f64], gram: &[f64], vectors: usize) -> Vec<f64> {
    let count = factors.len() / vectors.max(1);
    let mut found = vec![0.0; vectors * vectors];
    for i in 0..vectors {
        for l in 0..i {
            let mut sum = gram[i * vectors + l];
            for row in 0..count {
                sum -= factors[i * count + row] * factors[l * count + row];
            }
            for m in 0..l {
                sum -= found[i * vectors + m] * found[l * vectors + m];
            }
            found[i * vectors + l] = sum;
        }
    }
    found
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
