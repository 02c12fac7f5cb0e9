//! Products of vectors with c AᵀA in one pass over A: what a block of rows gives to A v goes back through its transpose
//! while the block is in the cache.

use std::marker::PhantomData;

use super::Element;
use crate::kernels::storage::Float;
use crate::kernels::vector::{Arch, Arithmetic, MAX_LANES, Routine, Vector as _, dispatch};
use crate::runtime::{Isa, Shared, pool};

/// Rows that are met together: their sums hide the latency of additions, and v and the result are read once for all.
const ROWS: usize = 4;
/// Rows of a task, at least. Tasks are part of the definition of the sums: threads make no difference.
const ROWS_PER_TASK: usize = 32;
/// More tasks would take more time for the sums of their results.
const MOST_TASKS: usize = 32;

/// What vectors are kept in, and sums of products taken in.
pub trait Work: Element {
    const EPSILON: f64;
    fn of_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Work for f32 {
    const EPSILON: f64 = f32::EPSILON as f64;
    #[inline(always)]
    fn of_f64(value: f64) -> f32 {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
}
impl Work for f64 {
    const EPSILON: f64 = f64::EPSILON;
    #[inline(always)]
    fn of_f64(value: f64) -> f64 {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}

/// A matrix in memory, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub data: *const u8,
    pub dtype: Float,
    pub rows: usize,
    pub cols: usize,
}

impl Rows {
    /// Where an element lies, or would.
    pub fn at(&self, element: usize) -> *const u8 {
        self.data.wrapping_add(element * self.dtype.size())
    }
}

// SAFETY: the pointer is used by this module's unsafe functions only, whose callers answer for the memory.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

/// As many numbers as whole vectors hold, of which the last ones are zeros.
pub fn padded(len: usize) -> usize {
    len.next_multiple_of(MAX_LANES)
}

/// c AᵀA times vectors, with memory for that.
pub struct Normal<S> {
    matrix: Rows,
    factor: f64,
    rows_per_task: usize,
    /// A result of [`padded`] length for each task.
    parts: Vec<S>,
}

impl<S: Work> Normal<S> {
    /// With c = `factor`, for which 1 / |A| is right: the elements of AᵀA may be too large for their type, or too small.
    pub fn new(matrix: Rows, factor: f64) -> Normal<S> {
        let rows_per_task = matrix
            .rows
            .div_ceil(MOST_TASKS)
            .max(ROWS_PER_TASK)
            .next_multiple_of(ROWS);
        let tasks = matrix.rows.div_ceil(rows_per_task);
        Normal {
            matrix,
            factor,
            rows_per_task,
            parts: vec![S::default(); tasks * padded(matrix.cols)],
        }
    }

    /// Writes c AᵀA `vector` to `to`; both have [`padded`] length, with zeros after the matrix's columns.
    ///
    /// # Safety
    /// The matrix is valid for reading, of a type whose arithmetic is that of `S`, and nothing writes there.
    ///
    /// # Panics
    /// Where the CPU does not run `isa`.
    pub unsafe fn multiply(&mut self, isa: Isa, vector: &[S], to: &mut [S], threads: usize) {
        let len = padded(self.matrix.cols);
        assert!(
            vector.len() == len && to.len() == len,
            "vectors of another length"
        );
        let (matrix, factor, rows_per_task) = (self.matrix, self.factor, self.rows_per_task);
        let parts = Shared::new(self.parts.as_mut_ptr());
        pool::for_each(threads, self.parts.len() / len.max(1), &|task| {
            let first = task * rows_per_task;
            let part = Part {
                matrix,
                factor,
                first,
                end: matrix.rows.min(first + rows_per_task),
                vector,
                // SAFETY: each task has its own part.
                to: unsafe { std::slice::from_raw_parts_mut(parts.get().add(task * len), len) },
            };
            dispatch(isa, part);
        });
        to.fill(S::default());
        for part in self.parts.chunks_exact(len) {
            for (to, part) in to.iter_mut().zip(part) {
                *to = S::of_f64(to.to_f64() + part.to_f64());
            }
        }
    }
}

/// Some rows of a matrix and what they give, with the promises of [`Normal::multiply`].
struct Part<'a, S> {
    matrix: Rows,
    factor: f64,
    first: usize,
    end: usize,
    vector: &'a [S],
    to: &'a mut [S],
}

impl<S: Work> Routine for Part<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let (size, cols) = (self.matrix.dtype.size(), self.matrix.cols);
        let lanes = <S::Combined as Arithmetic>::Vector::<A>::LANES;
        let whole = cols - cols % lanes;
        self.to.fill(S::default());
        for first in (self.first..self.end).step_by(ROWS) {
            let mut rows = [std::ptr::null(); ROWS];
            let mut tails = [[0_u64; MAX_LANES]; ROWS];
            for (r, (row, tail)) in rows.iter_mut().zip(&mut tails).enumerate() {
                // Where there are less, the last row stands for those that are not there, and counts for nothing below.
                let number = (first + r).min(self.end - 1);
                // SAFETY: the row lies in the matrix, and its last elements fit into the tail.
                unsafe {
                    *row = self.matrix.at(number * cols);
                    row.add(whole * size)
                        .copy_to_nonoverlapping(tail.as_mut_ptr().cast(), (cols - whole) * size);
                }
            }
            let block = Block::<A, S> {
                rows,
                tails: std::array::from_fn(|r| tails[r].as_ptr().cast()),
                dtype: self.matrix.dtype,
                whole,
                cols,
                arch: PhantomData,
            };
            // SAFETY: the rows hold `cols` elements, the vectors as many and whole vectors.
            unsafe {
                let mut found = block.times(self.vector.as_ptr());
                for (r, each) in found.iter_mut().enumerate() {
                    *each *= if first + r < self.end { self.factor } else { 0.0 };
                }
                block.transposed_times(found, self.to.as_mut_ptr());
            }
        }
    }
}

/// A few rows.
struct Block<A, S> {
    rows: [*const u8; ROWS],
    /// The elements from `whole` on, and zeros.
    tails: [*const u8; ROWS],
    dtype: Float,
    whole: usize,
    cols: usize,
    arch: PhantomData<(A, S)>,
}

type Lanes<A, S> = <<S as Element>::Combined as Arithmetic>::Vector<A>;

impl<A: Arch, S: Work> Block<A, S> {
    /// # Safety
    /// The rows hold `cols` elements, `vector` whole vectors of as many.
    #[inline(always)]
    unsafe fn times(&self, vector: *const S) -> [f64; ROWS] {
        let mut sums = [Lanes::<A, S>::splat(0.0); ROWS];
        for i in (0..self.cols).step_by(Lanes::<A, S>::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let x = S::load::<A>(vector.add(i));
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = *sum + self.load(r, i) * x;
                }
            }
        }
        let mut found = [0.0; ROWS];
        for (found, sum) in found.iter_mut().zip(sums) {
            let mut lanes = [S::default(); MAX_LANES];
            // SAFETY: there is room for the longest vector.
            unsafe { S::store::<A>(sum, lanes.as_mut_ptr()) };
            for lane in &lanes[..Lanes::<A, S>::LANES] {
                *found += lane.to_f64();
            }
        }
        found
    }

    /// Adds to `to`.
    ///
    /// # Safety
    /// As for [`Block::times`], with `to` for writing.
    #[inline(always)]
    unsafe fn transposed_times(&self, factors: [f64; ROWS], to: *mut S) {
        let mut splat = [Lanes::<A, S>::splat(0.0); ROWS];
        for (splat, factor) in splat.iter_mut().zip(factors) {
            *splat = Lanes::<A, S>::splat(factor);
        }
        for i in (0..self.cols).step_by(Lanes::<A, S>::LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let mut sum = S::load::<A>(to.add(i));
                for (r, factor) in splat.iter().enumerate() {
                    sum = sum + self.load(r, i) * *factor;
                }
                S::store::<A>(sum, to.add(i));
            }
        }
    }

    /// # Safety
    /// As for [`Block::times`]; `i` is a multiple of the lanes and less than `cols`.
    #[inline(always)]
    unsafe fn load(&self, r: usize, i: usize) -> Lanes<A, S> {
        // SAFETY: the caller's promise.
        unsafe {
            match i < self.whole {
                true => <S::Combined as Arithmetic>::load::<A>(self.rows[r], self.dtype, i),
                false => <S::Combined as Arithmetic>::load::<A>(self.tails[r], self.dtype, 0),
            }
        }
    }
}
