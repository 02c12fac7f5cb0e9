//! The work on one chunk, on one thread.

use super::{AT_ONCE, CHUNK, Rows};
use crate::kernels::linear::Element;
use crate::kernels::storage::BLOCK;
use crate::kernels::vector::{
    Arch, Arithmetic, Distribution, Double, MAX_LANES, Noise, Routine, Single, Vector, WIDENED, dispatch,
    draw,
};
use crate::runtime::Isa;

/// What a type is computed in.
type Lanes<A, T> = <<T as Element>::Combined as Arithmetic>::Vector<A>;
/// The most vectors that hold [`WIDENED`] lanes.
const PARTS: usize = 4;

/// Writes the inner products of the rows' parts from `start` on with `w`.
pub fn products<T: Element>(isa: Isa, rows: &Rows<T>, w: &[T], start: usize, to: &mut [f64]) {
    let place = Place::new(rows, to.len(), start, w.len());
    dispatch(isa, Products { place, w, to });
}

/// Where the parts of the rows are.
struct Place<T> {
    first: *const T,
    /// From a row to the next.
    stride: usize,
}

impl<T: Element> Place<T> {
    /// Of `count` rows, `len` elements from `start` on.
    fn new(rows: &Rows<T>, count: usize, start: usize, len: usize) -> Self {
        assert!(count <= rows.count() && start + len <= rows.len);
        let (first, stride) = (rows.data[start..].as_ptr(), rows.len);
        Place { first, stride }
    }

    /// # Safety
    /// There is such a row.
    #[inline(always)]
    unsafe fn row(&self, i: usize) -> *const T {
        // SAFETY: the caller's promise.
        unsafe { self.first.add(i * self.stride) }
    }
}

struct Products<'a, T> {
    place: Place<T>,
    w: &'a [T],
    to: &'a mut [f64],
}

impl<T: Element> Routine for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let Products { place, w, to } = self;
        let whole = to.len() - to.len() % AT_ONCE;
        // SAFETY: `Place::new` has seen that there are as many rows as sums, with as many elements as `w`.
        unsafe {
            for i in (0..whole).step_by(AT_ONCE) {
                together::<A, T, AT_ONCE>(&place, i, w, &mut to[i..]);
            }
            for i in whole..to.len() {
                together::<A, T, 1>(&place, i, w, &mut to[i..]);
            }
        }
    }
}

/// Writes the inner products of `N` rows from number `row` on with `w`.
///
/// # Safety
/// The rows are there, with as many elements as `w`.
#[inline(always)]
unsafe fn together<A: Arch, T: Element, const N: usize>(
    place: &Place<T>,
    row: usize,
    w: &[T],
    to: &mut [f64],
) {
    let mut sums = [[A::F64::splat(0.0); PARTS]; N];
    let whole = w.len() - w.len() % WIDENED;
    for i in (0..whole).step_by(WIDENED) {
        // SAFETY: as many elements are there from `i` on.
        unsafe { add::<A, T, N>(place, row, i, w.as_ptr().add(i), &mut sums) };
    }
    if whole < w.len() {
        // The last elements go through copies that are filled up with zeros.
        let (mut last, mut rows) = ([T::default(); WIDENED], [[T::default(); WIDENED]; N]);
        let len = w.len() - whole;
        last[..len].copy_from_slice(&w[whole..]);
        // SAFETY: the rows have `len` elements from `whole` on, the copies more than that, one after the other.
        unsafe {
            for (n, copy) in rows.iter_mut().enumerate() {
                place
                    .row(row + n)
                    .add(whole)
                    .copy_to_nonoverlapping(copy.as_mut_ptr(), len);
            }
            let copies = Place {
                first: rows.as_ptr().cast(),
                stride: WIDENED,
            };
            add::<A, T, N>(&copies, 0, 0, last.as_ptr(), &mut sums);
        }
    }
    for n in 0..N {
        let mut lanes = [0.0; WIDENED];
        for (part, sum) in sums[n][..WIDENED / A::F64::LANES].iter().enumerate() {
            // SAFETY: the parts are as many lanes together.
            unsafe { sum.store_f64(lanes.as_mut_ptr().add(part * A::F64::LANES)) };
        }
        to[n] = 0.0;
        for lane in lanes {
            to[n] += lane;
        }
    }
}

/// Adds the products of [`WIDENED`] elements of `N` rows, from `at` on, with those of `w`.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn add<A: Arch, T: Element, const N: usize>(
    place: &Place<T>,
    row: usize,
    at: usize,
    w: *const T,
    sums: &mut [[A::F64; PARTS]; N],
) {
    let pairs = WIDENED / A::F64::LANES / 2;
    for pair in 0..pairs {
        // SAFETY: the caller's promise.
        unsafe {
            let [low, high] = T::widen::<A::F64>(w, pair);
            for (n, sums) in sums.iter_mut().enumerate() {
                let [a, b] = T::widen::<A::F64>(place.row(row + n).add(at), pair);
                sums[pair] = a.mul_add(low, sums[pair]);
                sums[pairs + pair] = b.mul_add(high, sums[pairs + pair]);
            }
        }
    }
}

/// Takes from `w` the rows' parts from `start` on, each times its factor.
pub fn subtract<T: Element>(isa: Isa, w: &mut [T], rows: &Rows<T>, factors: &[f64], start: usize) {
    let place = Place::new(rows, factors.len(), start, w.len());
    dispatch(isa, Subtract { w, place, factors });
}

struct Subtract<'a, T> {
    w: &'a mut [T],
    place: Place<T>,
    factors: &'a [f64],
}

impl<T: Element> Routine for Subtract<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let Subtract { w, place, factors } = self;
        let whole = factors.len() - factors.len() % AT_ONCE;
        // SAFETY: `Place::new` has seen that there are as many rows as factors, with as many elements as `w`.
        unsafe {
            for i in (0..whole).step_by(AT_ONCE) {
                take::<A, T, AT_ONCE>(w, &place, i, &factors[i..]);
            }
            for i in whole..factors.len() {
                take::<A, T, 1>(w, &place, i, &factors[i..]);
            }
        }
    }
}

/// Takes `N` rows from number `row` on.
///
/// # Safety
/// They are there, with as many elements as `w`.
#[inline(always)]
unsafe fn take<A: Arch, T: Element, const N: usize>(
    w: &mut [T],
    place: &Place<T>,
    row: usize,
    factors: &[f64],
) {
    let lanes = Lanes::<A, T>::LANES;
    let mut splat = [Lanes::<A, T>::splat(0.0); N];
    for (splat, &factor) in splat.iter_mut().zip(factors) {
        *splat = Lanes::<A, T>::splat(factor);
    }
    let whole = w.len() - w.len() % lanes;
    for i in (0..whole).step_by(lanes) {
        // SAFETY: a whole vector at `i` lies within the chunk and the rows.
        unsafe {
            let to = w.as_mut_ptr().add(i);
            let mut x = T::load::<A>(to);
            for (n, &factor) in splat.iter().enumerate() {
                x = x - factor * T::load::<A>(place.row(row + n).add(i));
            }
            T::store::<A>(x, to);
        }
    }
    if whole == w.len() {
        return;
    }
    // The last elements go through copies that are a vector long.
    let (mut last, mut copies) = ([T::default(); MAX_LANES], [[T::default(); MAX_LANES]; N]);
    let len = w.len() - whole;
    last[..len].copy_from_slice(&w[whole..]);
    // SAFETY: the rows have `len` elements from `whole` on, the copies more than that.
    unsafe {
        let mut x = T::load::<A>(last.as_ptr());
        for n in 0..N {
            let copy = copies[n].as_mut_ptr();
            place.row(row + n).add(whole).copy_to_nonoverlapping(copy, len);
            x = x - splat[n] * T::load::<A>(copy);
        }
        T::store::<A>(x, last.as_mut_ptr());
    }
    w[whole..].copy_from_slice(&last[..len]);
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
