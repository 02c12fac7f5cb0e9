//! The sums that norms are made of, in f64 and in a fixed number of lanes, without a fused multiply-add: neither threads
//! nor instruction sets change a bit.

use super::Element;
use super::moments::{PARTS, total};
use crate::kernels::vector::{Arch, Double, Routine, WIDENED as LANES, dispatch, prefetch};
use crate::runtime::Isa;

/// The sum of the sizes of `len` elements, and that of their squares.
///
/// # Safety
/// The pointer is valid for reading, and nothing writes there.
///
/// # Panics
/// Where the CPU does not run `isa`.
pub unsafe fn norms<T: Element>(isa: Isa, from: *const T, len: usize) -> [f64; 2] {
    dispatch(isa, Stretch { from, len })
}

/// The sum of the squares of `len` elements, and that of the squares of their differences from those at `to`, which
/// become copies of them.
///
/// # Safety
/// `from` is valid for reading and `to` for reading and writing; they do not overlap, and nothing else uses what is
/// written.
///
/// # Panics
/// Where the CPU does not run `isa`.
pub unsafe fn follow<T: Element>(isa: Isa, from: *const T, to: *mut T, len: usize) -> [f64; 2] {
    dispatch(isa, Followed { from, to, len })
}

/// The arguments of [`norms`], which keep its promises.
struct Stretch<T> {
    from: *const T,
    len: usize,
}

impl<T: Element> Routine for Stretch<T> {
    type Output = [f64; 2];

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> [f64; 2] {
        let Stretch { from, len } = self;
        let mut lanes = Lanes::<A::F64>::new();
        let whole = len - len % LANES;
        for i in (0..whole).step_by(LANES) {
            prefetch::<A, T>(from.cast(), i, LANES);
            // SAFETY: as many lanes lie within the elements.
            unsafe { lanes.add(from.add(i)) };
        }
        if whole < len {
            // SAFETY: there are `len - whole` elements from `whole` on.
            unsafe { lanes.add(filled(from.add(whole), len - whole).as_ptr()) };
        }
        lanes.total()
    }
}

/// The arguments of [`follow`], which keep its promises.
struct Followed<T> {
    from: *const T,
    to: *mut T,
    len: usize,
}

impl<T: Element> Routine for Followed<T> {
    type Output = [f64; 2];

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> [f64; 2] {
        let Followed { from, to, len } = self;
        let mut lanes = Lanes::<A::F64>::new();
        let whole = len - len % LANES;
        for i in (0..whole).step_by(LANES) {
            prefetch::<A, T>(from.cast(), i, LANES);
            prefetch::<A, T>(to.cast_const().cast(), i, LANES);
            // SAFETY: as many lanes lie within the elements.
            unsafe {
                let (from, to) = (from.add(i), to.add(i));
                lanes.add_differences(from, to);
                from.copy_to_nonoverlapping(to, LANES);
            }
        }
        let rest = len - whole;
        if rest > 0 {
            // SAFETY: there are as many elements from `whole` on.
            unsafe {
                let (from, to) = (from.add(whole), to.add(whole));
                lanes.add_differences(filled(from, rest).as_ptr(), filled(to, rest).as_ptr());
                from.copy_to_nonoverlapping(to, rest);
            }
        }
        lanes.total()
    }
}

/// The last elements, and zeros behind them.
///
/// # Safety
/// `from` is valid for reading `count` elements, which are fewer than `LANES`.
#[inline(always)]
unsafe fn filled<T: Element>(from: *const T, count: usize) -> [T; LANES] {
    let mut padded = [T::default(); LANES];
    // SAFETY: the caller's promise.
    unsafe { from.copy_to_nonoverlapping(padded.as_mut_ptr(), count) };
    padded
}

/// Two sums: of sizes and squares, or of squares and those of differences.
struct Lanes<V>([[V; PARTS]; 2]);

impl<V: Double> Lanes<V> {
    #[inline(always)]
    fn new() -> Self {
        Lanes([[V::splat(0.0); PARTS]; 2])
    }

    /// # Safety
    /// `from` is valid for reading `LANES` elements.
    #[inline(always)]
    unsafe fn add<T: Element>(&mut self, from: *const T) {
        let pairs = LANES / V::LANES / 2;
        for pair in 0..pairs {
            // SAFETY: the caller's promise.
            let [lower, upper] = unsafe { T::widen::<V>(from, pair) };
            self.add_part(pair, [lower.abs(), lower * lower]);
            self.add_part(pairs + pair, [upper.abs(), upper * upper]);
        }
    }

    /// # Safety
    /// Both are valid for reading `LANES` elements.
    #[inline(always)]
    unsafe fn add_differences<T: Element>(&mut self, from: *const T, before: *const T) {
        let pairs = LANES / V::LANES / 2;
        for pair in 0..pairs {
            // SAFETY: the caller's promise.
            let (new, old) = unsafe { (T::widen::<V>(from, pair), T::widen::<V>(before, pair)) };
            for half in 0..2 {
                let (x, difference) = (new[half], new[half] - old[half]);
                self.add_part(half * pairs + pair, [x * x, difference * difference]);
            }
        }
    }

    #[inline(always)]
    fn add_part(&mut self, part: usize, terms: [V; 2]) {
        let [first, second] = &mut self.0;
        first[part] = first[part] + terms[0];
        second[part] = second[part] + terms[1];
    }

    #[inline(always)]
    fn total(&self) -> [f64; 2] {
        [total(&self.0[0]), total(&self.0[1])]
    }
}
