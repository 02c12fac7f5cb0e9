//! Functions that take a row of numbers to a row of numbers, with the products of their Jacobians: projections onto
//! sets, proximal operators, and the like. A map knows one row; the engine has the rows, element types and threads.

mod element;
mod simplex;

use super::linear::ELEMENTS_PER_THREAD;
use super::matmul::Real;
use super::storage::{Float, with_type};
use super::vector::{Arch, Routine, dispatch};
use crate::runtime::{Isa, Shared, pool};
use element::{Element, Work};
pub use simplex::Simplex;

/// A function of a row. Its Jacobian is symmetric, so that one product serves both ways.
///
/// Both methods are compiled for each instruction set: they are `#[inline(always)]`, with all that they call in loops,
/// and sum up in a fixed number of lanes.
pub trait Map: Copy + Send + Sync {
    /// Writes the row's image. `room` is memory to work in, which keeps its size from row to row.
    fn forward<R: Real>(&self, row: Row<'_, R>, room: &mut Vec<f64>);

    /// Writes the product of `vector` with the Jacobian, all of which the image tells.
    fn vjp<R: Real>(&self, image: &[R], vector: &[R], to: &mut [R]);
}

/// Numbers to read, and where their images go: in their place, or elsewhere.
#[derive(Debug)]
pub enum Row<'a, T> {
    InPlace(&'a mut [T]),
    Into(&'a [T], &'a mut [T]),
}

impl<T: Copy> Row<'_, T> {
    #[inline(always)]
    pub fn values(&self) -> &[T] {
        match self {
            Row::InPlace(row) => row,
            Row::Into(from, _) => from,
        }
    }

    /// Writes `image` of each number.
    #[inline(always)]
    pub fn write(self, image: impl Fn(T) -> T) {
        match self {
            Row::InPlace(row) => row.iter_mut().for_each(|x| *x = image(*x)),
            Row::Into(from, to) => {
                for (to, &x) in to.iter_mut().zip(from) {
                    *to = image(x);
                }
            }
        }
    }

    /// Where the images go.
    #[inline(always)]
    fn to(&mut self) -> &mut [T] {
        match self {
            Row::InPlace(row) => row,
            Row::Into(_, to) => to,
        }
    }
}

/// Rows of at least one element each, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dtype: Float,
    pub rows: usize,
    pub len: usize,
}

impl Shape {
    /// Calls `work` with the first element and the number of elements of several rows at a time. Results do not depend
    /// on the threads, as each row is one task's.
    fn for_rows(&self, threads: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        assert!(self.len > 0, "rows without elements");
        let threads = threads.min(self.rows * self.len / ELEMENTS_PER_THREAD).max(1);
        let at_once = ELEMENTS_PER_THREAD.div_ceil(self.len);
        pool::for_each(threads, self.rows.div_ceil(at_once), &|task| {
            let first = task * at_once;
            work(first * self.len, at_once.min(self.rows - first) * self.len);
        });
    }
}

/// Writes the image of every row, on up to `threads` threads.
///
/// # Safety
/// Both pointers are valid for as many elements as `shape` says, and are the same or far enough apart not to overlap;
/// nothing else uses what is written.
///
/// # Panics
/// If rows have no elements.
pub unsafe fn forward<M: Map>(map: &M, shape: Shape, from: *const u8, to: *mut u8, threads: usize) {
    // SAFETY: the caller's promise, with the type that `dtype` names.
    unsafe { with_type!(shape.dtype, forward_of(map, shape, from, to, threads)) }
}

/// # Safety
/// As for [`forward`], with elements of type `T`.
unsafe fn forward_of<T: Element>(map: &impl Map, shape: Shape, from: *const u8, to: *mut u8, threads: usize) {
    let (isa, len) = (Isa::current(), shape.len);
    let (from, to) = (
        Shared::new(from.cast::<T>().cast_mut()),
        Shared::new(to.cast::<T>()),
    );
    shape.for_rows(threads, &|first, count| {
        // SAFETY: the caller's promise; these rows are this task's.
        let rows = unsafe {
            let image = std::slice::from_raw_parts_mut(to.get().add(first), count);
            match from.get() == to.get() {
                true => Row::InPlace(image),
                false => Row::Into(std::slice::from_raw_parts(from.get().add(first), count), image),
            }
        };
        dispatch(isa, Forward { map, rows, len });
    });
}

/// Writes the products of the rows of `vectors` with the Jacobians, which `images` tell, on up to `threads` threads.
///
/// # Safety
/// As for [`forward`], with two that are read; what is written overlaps neither.
///
/// # Panics
/// If rows have no elements.
pub unsafe fn vjp<M: Map>(
    map: &M,
    shape: Shape,
    images: *const u8,
    vectors: *const u8,
    to: *mut u8,
    threads: usize,
) {
    // SAFETY: the caller's promise, with the type that `dtype` names.
    unsafe { with_type!(shape.dtype, vjp_of(map, shape, images, vectors, to, threads)) }
}

/// # Safety
/// As for [`vjp`], with elements of type `T`.
unsafe fn vjp_of<T: Element>(
    map: &impl Map,
    shape: Shape,
    images: *const u8,
    vectors: *const u8,
    to: *mut u8,
    threads: usize,
) {
    let (isa, len) = (Isa::current(), shape.len);
    let [images, vectors] = [images, vectors].map(|from| Shared::new(from.cast::<T>().cast_mut()));
    let to = Shared::new(to.cast::<T>());
    shape.for_rows(threads, &|first, count| {
        // SAFETY: the caller's promise; these rows are this task's.
        let (images, vectors, to) = unsafe {
            (
                std::slice::from_raw_parts(images.get().add(first), count),
                std::slice::from_raw_parts(vectors.get().add(first), count),
                std::slice::from_raw_parts_mut(to.get().add(first), count),
            )
        };
        dispatch(
            isa,
            Vjp {
                map,
                images,
                vectors,
                to,
                len,
            },
        );
    });
}

struct Forward<'a, M, T> {
    map: &'a M,
    rows: Row<'a, T>,
    len: usize,
}

impl<M: Map, T: Element> Routine for Forward<'_, M, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let mut work = Work::default();
        match self.rows {
            Row::InPlace(rows) => {
                for row in rows.chunks_exact_mut(self.len) {
                    T::forward(self.map, Row::InPlace(row), &mut work);
                }
            }
            Row::Into(from, to) => {
                for (from, to) in from.chunks_exact(self.len).zip(to.chunks_exact_mut(self.len)) {
                    T::forward(self.map, Row::Into(from, to), &mut work);
                }
            }
        }
    }
}

struct Vjp<'a, M, T> {
    map: &'a M,
    images: &'a [T],
    vectors: &'a [T],
    to: &'a mut [T],
    len: usize,
}

impl<M: Map, T: Element> Routine for Vjp<'_, M, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let mut work = Work::default();
        let read = self
            .images
            .chunks_exact(self.len)
            .zip(self.vectors.chunks_exact(self.len));
        for ((image, vector), to) in read.zip(self.to.chunks_exact_mut(self.len)) {
            T::vjp(self.map, image, vector, to, &mut work);
        }
    }
}

#[cfg(test)]
mod tests;
