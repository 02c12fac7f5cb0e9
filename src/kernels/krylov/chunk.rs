//! The work on one chunk, on one thread.

use std::marker::PhantomData;
use std::ops::Range;

use super::{CHUNK, Rows};
use crate::kernels::linear::{Element, PARTS, total};
use crate::kernels::storage::BLOCK;
use crate::kernels::vector::{
    Arch, Arithmetic, Distribution, Double, MAX_LANES, Noise, Routine, Single, Vector, WIDENED, dispatch,
    draw,
};
use crate::runtime::Isa;

/// What a type is computed in.
type Lanes<A, T> = <<T as Element>::Combined as Arithmetic>::Vector<A>;

/// The elements of some vectors between two numbers, for reading.
#[derive(Clone, Copy)]
pub struct Parts<'a, T> {
    first: *const T,
    /// From a vector to the next.
    stride: usize,
    count: usize,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

impl<'a, T> Parts<'a, T> {
    /// # Panics
    /// Where there are not as many vectors, or elements.
    pub fn new(rows: &Rows<'a, T>, elements: Range<usize>) -> Self {
        assert!(elements.start <= elements.end && elements.end <= rows.len);
        Parts {
            first: rows.data[elements.start..].as_ptr(),
            stride: rows.len,
            count: rows.count(),
            len: elements.len(),
            memory: PhantomData,
        }
    }

    pub fn one(part: &'a [T]) -> Self {
        Parts::new(&Rows::one(part), 0..part.len())
    }

    /// # Safety
    /// There is such a vector.
    #[inline(always)]
    unsafe fn at(&self, i: usize) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.first.add(i * self.stride) }
    }
}

/// The same for writing.
pub struct PartsMut<'a, T> {
    first: *mut T,
    stride: usize,
    count: usize,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

impl<'a, T> PartsMut<'a, T> {
    pub fn one(part: &'a mut [T]) -> Self {
        let (first, len) = (part.as_mut_ptr(), part.len());
        // SAFETY: the slice is what is borrowed.
        unsafe { PartsMut::new(first, len, 1, len) }
    }

    /// Of `count` vectors `len` elements each, the first from `first` on, and each next one `stride` after.
    ///
    /// # Safety
    /// They are valid for reading and writing as long as this lives, and nothing else uses them.
    pub unsafe fn new(first: *mut T, stride: usize, count: usize, len: usize) -> Self {
        PartsMut {
            first,
            stride,
            count,
            len,
            memory: PhantomData,
        }
    }

    /// For a call, which gives them back.
    pub fn all(&mut self) -> PartsMut<'_, T> {
        PartsMut { ..*self }
    }

    pub fn read(&self) -> Parts<'_, T> {
        Parts {
            first: self.first,
            stride: self.stride,
            count: self.count,
            len: self.len,
            memory: PhantomData,
        }
    }

    /// The first `count` of them, and the next one.
    ///
    /// # Panics
    /// Where there are not as many.
    pub fn split(&mut self, count: usize) -> (Parts<'_, T>, PartsMut<'_, T>) {
        assert!(count < self.count);
        let before = Parts { count, ..self.read() };
        // SAFETY: it is one of those that are borrowed, and not among the first.
        let next = unsafe { PartsMut::new(self.at(count), self.stride, 1, self.len) };
        (before, next)
    }

    /// # Safety
    /// There is such a vector.
    #[inline(always)]
    unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.first.add(i * self.stride) }
    }
}

/// Writes the inner products of the rows with each of the vectors, vector by vector.
///
/// # Panics
/// Where the parts are not of one length, or there is no place for each product.
pub fn products<T: Element>(isa: Isa, rows: Parts<T>, vectors: Parts<T>, to: &mut [f64]) {
    assert!(rows.len == vectors.len && to.len() == rows.count * vectors.count);
    dispatch(isa, Products { rows, vectors, to });
}

struct Products<'a, T> {
    rows: Parts<'a, T>,
    vectors: Parts<'a, T>,
    to: &'a mut [f64],
}

impl<T: Element> Routine for Products<'_, T> {
    type Output = ();

    /// As many rows and vectors at once as registers hold sums: what is read is widened but once for all of them.
    #[inline(always)]
    unsafe fn run<A: Arch>(mut self) {
        let mut vector = 0;
        while vector < self.vectors.count {
            // SAFETY: as many vectors are left.
            vector += unsafe {
                match self.vectors.count - vector {
                    4.. => self.all_rows::<A, 2, 4>(vector),
                    2..4 => self.all_rows::<A, 4, 2>(vector),
                    _ => self.all_rows::<A, 4, 1>(vector),
                }
            };
        }
    }
}

impl<T: Element> Products<'_, T> {
    /// Of `M` vectors from number `vector` on; gives `M`.
    ///
    /// # Safety
    /// There are as many.
    #[inline(always)]
    unsafe fn all_rows<A: Arch, const N: usize, const M: usize>(&mut self, vector: usize) -> usize {
        let whole = self.rows.count - self.rows.count % N;
        // SAFETY: there are as many rows, and the caller's promise.
        unsafe {
            for row in (0..whole).step_by(N) {
                self.together::<A, N, M>(row, vector);
            }
            for row in whole..self.rows.count {
                self.together::<A, 1, M>(row, vector);
            }
        }
        M
    }

    /// Of `N` rows from number `row` on and `M` vectors.
    ///
    /// # Safety
    /// There are as many.
    #[inline(always)]
    unsafe fn together<A: Arch, const N: usize, const M: usize>(&mut self, row: usize, vector: usize) {
        let len = self.rows.len;
        let (mut rows, mut vectors) = ([std::ptr::null(); N], [std::ptr::null(); M]);
        // SAFETY: the caller's promise.
        unsafe {
            for (n, each) in rows.iter_mut().enumerate() {
                *each = self.rows.at(row + n);
            }
            for (m, each) in vectors.iter_mut().enumerate() {
                *each = self.vectors.at(vector + m);
            }
        }
        let mut sums = [[[A::F64::splat(0.0); PARTS]; M]; N];
        let whole = len - len % WIDENED;
        for i in (0..whole).step_by(WIDENED) {
            // SAFETY: as many elements are there from `i` on.
            unsafe { add::<A, T, N, M>(&rows, &vectors, i, &mut sums) };
        }
        if whole < len {
            // The last elements go through copies that are filled up with zeros.
            // SAFETY: there are `len - whole` elements from `whole` on, and `WIDENED` in the copies.
            unsafe {
                let (last_rows, last) = (filled(&rows, whole, len), filled(&vectors, whole, len));
                let (mut rows, mut vectors) = ([std::ptr::null(); N], [std::ptr::null(); M]);
                for (n, each) in rows.iter_mut().enumerate() {
                    *each = last_rows[n].as_ptr();
                }
                for (m, each) in vectors.iter_mut().enumerate() {
                    *each = last[m].as_ptr();
                }
                add::<A, T, N, M>(&rows, &vectors, 0, &mut sums);
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            for (m, sums) in sums.iter().enumerate() {
                self.to[(vector + m) * self.rows.count + row + n] = total(sums);
            }
        }
    }
}

/// The elements from `start` to `end`, which are less than [`WIDENED`], and zeros.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn filled<T: Element, const N: usize>(
    from: &[*const T; N],
    start: usize,
    end: usize,
) -> [[T; WIDENED]; N] {
    let mut copies = [[T::default(); WIDENED]; N];
    for (from, copy) in from.iter().zip(&mut copies) {
        // SAFETY: the caller's promise.
        unsafe {
            from.add(start)
                .copy_to_nonoverlapping(copy.as_mut_ptr(), end - start)
        };
    }
    copies
}

/// Adds the products of [`WIDENED`] elements of rows and vectors, from `at` on.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn add<A: Arch, T: Element, const N: usize, const M: usize>(
    rows: &[*const T; N],
    vectors: &[*const T; M],
    at: usize,
    sums: &mut [[[A::F64; PARTS]; M]; N],
) {
    let pairs = WIDENED / A::F64::LANES / 2;
    for pair in 0..pairs {
        let mut wide = [[A::F64::splat(0.0); 2]; M];
        // By numbers: iterators of arrays are not always inlined, and by themselves they lack the instruction set.
        for m in 0..M {
            // SAFETY: the caller's promise.
            wide[m] = unsafe { T::widen::<A::F64>(vectors[m].add(at), pair) };
        }
        for n in 0..N {
            // SAFETY: the caller's promise.
            let [low, high] = unsafe { T::widen::<A::F64>(rows[n].add(at), pair) };
            for m in 0..M {
                let sums = &mut sums[n][m];
                sums[pair] = low.mul_add(wide[m][0], sums[pair]);
                sums[pairs + pair] = high.mul_add(wide[m][1], sums[pairs + pair]);
            }
        }
    }
}

/// Takes from each of the vectors the rows, each times its factor, which are given vector by vector.
///
/// # Panics
/// Where the parts are not of one length, or there is no factor for each.
pub fn subtract<T: Element>(isa: Isa, vectors: PartsMut<T>, rows: Parts<T>, factors: &[f64]) {
    assert!(rows.len == vectors.len && factors.len() == rows.count * vectors.count);
    let difference = Subtract {
        vectors,
        rows,
        factors,
    };
    dispatch(isa, difference);
}

struct Subtract<'a, T> {
    vectors: PartsMut<'a, T>,
    rows: Parts<'a, T>,
    factors: &'a [f64],
}

impl<T: Element> Routine for Subtract<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let mut vector = 0;
        while vector < self.vectors.count {
            // SAFETY: as many vectors are left.
            vector += unsafe {
                match self.vectors.count - vector {
                    4.. => self.all_rows::<A, 4>(vector),
                    2..4 => self.all_rows::<A, 2>(vector),
                    _ => self.all_rows::<A, 1>(vector),
                }
            };
        }
    }
}

impl<T: Element> Subtract<'_, T> {
    /// From `M` vectors from number `vector` on; gives `M`.
    ///
    /// # Safety
    /// There are as many.
    #[inline(always)]
    unsafe fn all_rows<A: Arch, const M: usize>(&self, vector: usize) -> usize {
        const ROWS: usize = 4;
        let whole = self.rows.count - self.rows.count % ROWS;
        // SAFETY: there are as many rows, and the caller's promise.
        unsafe {
            for row in (0..whole).step_by(ROWS) {
                self.together::<A, ROWS, M>(row, vector);
            }
            for row in whole..self.rows.count {
                self.together::<A, 1, M>(row, vector);
            }
        }
        M
    }

    /// `N` rows from number `row` on from `M` vectors.
    ///
    /// # Safety
    /// There are as many.
    #[inline(always)]
    unsafe fn together<A: Arch, const N: usize, const M: usize>(&self, row: usize, vector: usize) {
        let (len, lanes) = (self.rows.len, Lanes::<A, T>::LANES);
        let mut factors = [[Lanes::<A, T>::splat(0.0); N]; M];
        for (m, factors) in factors.iter_mut().enumerate() {
            for (n, factor) in factors.iter_mut().enumerate() {
                *factor = Lanes::<A, T>::splat(self.factors[(vector + m) * self.rows.count + row + n]);
            }
        }
        let (mut rows, mut vectors) = ([std::ptr::null(); N], [std::ptr::null_mut(); M]);
        let whole = len - len % lanes;
        // SAFETY: whole vectors lie within the parts; the last elements go through copies that are a vector long.
        unsafe {
            for (n, each) in rows.iter_mut().enumerate() {
                *each = self.rows.at(row + n);
            }
            for (m, each) in vectors.iter_mut().enumerate() {
                *each = self.vectors.at(vector + m);
            }
            for i in (0..whole).step_by(lanes) {
                take::<A, T, N, M>(&vectors, &rows, &factors, i);
            }
            if whole == len {
                return;
            }
            let (mut last, mut copies) = ([[T::default(); MAX_LANES]; M], [[T::default(); MAX_LANES]; N]);
            let (mut to, mut from) = ([std::ptr::null_mut(); M], [std::ptr::null(); N]);
            for n in 0..N {
                from[n] = copies[n].as_ptr();
                rows[n]
                    .add(whole)
                    .copy_to_nonoverlapping(copies[n].as_mut_ptr(), len - whole);
            }
            for m in 0..M {
                to[m] = last[m].as_mut_ptr();
                vectors[m].add(whole).copy_to_nonoverlapping(to[m], len - whole);
            }
            take::<A, T, N, M>(&to, &from, &factors, 0);
            for m in 0..M {
                vectors[m].add(whole).copy_from_nonoverlapping(to[m], len - whole);
            }
        }
    }
}

/// Takes from one vector of each part those of the rows.
///
/// # Safety
/// They are there from `at` on.
#[inline(always)]
unsafe fn take<A: Arch, T: Element, const N: usize, const M: usize>(
    vectors: &[*mut T; M],
    rows: &[*const T; N],
    factors: &[[Lanes<A, T>; N]; M],
    at: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut wide = [Lanes::<A, T>::splat(0.0); M];
        for m in 0..M {
            wide[m] = T::load::<A>(vectors[m].add(at));
        }
        for n in 0..N {
            let row = T::load::<A>(rows[n].add(at));
            for m in 0..M {
                wide[m] = wide[m] - factors[m][n] * row;
            }
        }
        for m in 0..M {
            T::store::<A>(wide[m], vectors[m].add(at));
        }
    }
}

/// Numbers between -1 and 1 for the elements of a vector from number `start` on.
pub fn numbers(isa: Isa, stream: u64, start: usize) -> [f32; CHUNK] {
    const { assert!(BLOCK.is_multiple_of(CHUNK)) };
    let (key, first) = (Noise::key(stream, (start / BLOCK) as u64), (start % BLOCK) as u32);
    let mut to = [0.0; CHUNK];
    draw(isa, Uniform, key, first, &mut to);
    to
}

/// Between -1 and 1.
#[derive(Clone, Copy)]
struct Uniform;

impl Distribution for Uniform {
    #[inline(always)]
    fn of<V: Single>(self, bits: V::Bits) -> V {
        V::of_integers(bits) * 2f64.powi(-31)
    }
}
