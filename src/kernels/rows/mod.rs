//! Functions that take a row of numbers to a row of numbers, with the products of their Jacobians: projections onto
//! sets, proximal operators, and the like. A map knows one row; the engine has the rows, element types and threads.

mod element;
mod entries;
mod isotonic;
mod lanes;
mod norm;
mod plane;
mod section;
mod simplex;
mod threshold;

use super::linear::ELEMENTS_PER_THREAD;
use super::storage::{Float, with_type};
use super::vector::{Arch, Routine, dispatch};
use crate::runtime::{Isa, Shared, pool};
use element::{Element, Work};
pub use entries::{ByEntry, Clip, Shrink};
use isotonic::Block;
pub use isotonic::{Isotonic, Sorted, SortedMap};
use lanes::CHUNK;
pub use lanes::{Number, total};
pub use norm::L2Ball;
pub use plane::Plane;
pub use section::Section;
pub use simplex::{L1Ball, Simplex};

/// A function of a row.
///
/// Both methods are compiled for each instruction set where they are `#[inline(always)]`, with all that they call in
/// loops, and sum up in a fixed number of lanes; where they are not, once, as there is nothing in them for vectors.
pub trait Map: Sync {
    /// Writes the row's image.
    fn forward<A: Arch, R: Number>(&self, row: Row<'_, R>, room: &mut Room<R>);

    /// Writes the product of `vector` with the Jacobian, or with it transposed, where that is another one. All of it
    /// follows from `told`: the row or its image, as each map says.
    fn product<A: Arch, R: Number>(
        &self,
        told: &[R],
        vector: &[R],
        to: &mut [R],
        room: &mut Room<R>,
        transposed: bool,
    );
}

/// Memory to work in, which keeps its size from row to row.
pub struct Room<R> {
    candidates: Vec<[R; CHUNK]>,
    numbers: Vec<f64>,
    blocks: Vec<Block>,
    order: Vec<usize>,
}

// Not derived, which would ask for a default of the numbers, too.
impl<R> Default for Room<R> {
    fn default() -> Self {
        Room {
            candidates: Vec::new(),
            numbers: Vec::new(),
            blocks: Vec::new(),
            order: Vec::new(),
        }
    }
}

/// A function of a number. Closures that call others are not always inlined; methods can ask for it.
pub trait Each<T>: Copy {
    fn of(self, x: T) -> T;
}

impl<T, F: Fn(T) -> T + Copy> Each<T> for F {
    #[inline(always)]
    fn of(self, x: T) -> T {
        self(x)
    }
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

    /// Writes `image` of each number. A loop over places: of iterators over several rows, parts are calls, and with
    /// `enumerate` the bounds are checked.
    #[inline(always)]
    pub fn write(self, image: impl Each<T>) {
        match self {
            Row::InPlace(row) => {
                for x in row {
                    *x = image.of(*x);
                }
            }
            Row::Into(from, to) => {
                let len = to.len();
                let from = &from[..len];
                for i in 0..len {
                    to[i] = image.of(from[i]);
                }
            }
        }
    }

    /// Writes `image` of each number and its like among others.
    #[inline(always)]
    pub fn write_by<U: Copy>(self, others: &[U], image: impl Fn(T, U) -> T) {
        match self {
            Row::InPlace(row) => update(row, others, image),
            Row::Into(from, to) => write(to, from, others, image),
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

/// Writes `image` of the numbers at each place of two rows.
#[inline(always)]
fn write<A: Copy, B: Copy, T>(to: &mut [T], one: &[A], other: &[B], image: impl Fn(A, B) -> T) {
    let len = to.len();
    let (one, other) = (&one[..len], &other[..len]);
    for i in 0..len {
        to[i] = image(one[i], other[i]);
    }
}

/// The same in the place of one row.
#[inline(always)]
fn update<T: Copy, U: Copy>(row: &mut [T], others: &[U], image: impl Fn(T, U) -> T) {
    let len = row.len();
    let others = &others[..len];
    for i in 0..len {
        row[i] = image(row[i], others[i]);
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
    /// Calls `work` with the first element and the number of elements of several rows at a time. Results do not depend on
    /// the threads, as each row is one task's.
    fn for_rows(&self, threads: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        assert!(self.len > 0, "rows without elements");
        let at_once = ELEMENTS_PER_THREAD.div_ceil(self.len);
        let threads = threads.min(self.rows * self.len / ELEMENTS_PER_THREAD).max(1);
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
    let isa = Isa::current();
    let (from, to) = (
        Shared::new(from.cast::<T>().cast_mut()),
        Shared::new(to.cast::<T>()),
    );
    let len = shape.len;
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

/// What a product is made from, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The rows, or their images, as the map says.
    pub told: *const u8,
    pub vectors: *const u8,
    pub to: *mut u8,
    pub transposed: bool,
}

/// Writes the products of the rows of vectors with the Jacobians, on up to `threads` threads.
///
/// # Safety
/// As for [`forward`], with two that are read; what is written overlaps neither.
///
/// # Panics
/// If rows have no elements.
pub unsafe fn product<M: Map>(map: &M, shape: Shape, product: Product, threads: usize) {
    // SAFETY: the caller's promise, with the type that `dtype` names.
    unsafe { with_type!(shape.dtype, product_of(map, shape, product, threads)) }
}

/// # Safety
/// As for [`product`], with elements of type `T`.
unsafe fn product_of<T: Element>(map: &impl Map, shape: Shape, product: Product, threads: usize) {
    let isa = Isa::current();
    let [told, vectors] =
        [product.told, product.vectors].map(|from| Shared::new(from.cast::<T>().cast_mut()));
    let (to, transposed) = (Shared::new(product.to.cast::<T>()), product.transposed);
    let len = shape.len;
    shape.for_rows(threads, &|first, count| {
        // SAFETY: the caller's promise; these rows are this task's.
        let (told, vectors, to) = unsafe {
            (
                std::slice::from_raw_parts(told.get().add(first), count),
                std::slice::from_raw_parts(vectors.get().add(first), count),
                std::slice::from_raw_parts_mut(to.get().add(first), count),
            )
        };
        dispatch(
            isa,
            Products {
                map,
                told,
                vectors,
                to,
                len,
                transposed,
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
                    T::forward::<A>(self.map, Row::InPlace(row), &mut work);
                }
            }
            Row::Into(from, to) => {
                for (number, to) in to.chunks_exact_mut(self.len).enumerate() {
                    T::forward::<A>(self.map, Row::Into(row(from, number, self.len), to), &mut work);
                }
            }
        }
    }
}

struct Products<'a, M, T> {
    map: &'a M,
    told: &'a [T],
    vectors: &'a [T],
    to: &'a mut [T],
    len: usize,
    transposed: bool,
}

impl<M: Map, T: Element> Routine for Products<'_, M, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let mut work = Work::default();
        for (number, to) in self.to.chunks_exact_mut(self.len).enumerate() {
            let (told, vector) = (
                row(self.told, number, self.len),
                row(self.vectors, number, self.len),
            );
            T::product::<A>(self.map, told, vector, to, &mut work, self.transposed);
        }
    }
}

#[inline(always)]
fn row<T>(rows: &[T], number: usize, len: usize) -> &[T] {
    &rows[number * len..][..len]
}

#[cfg(test)]
mod tests;
