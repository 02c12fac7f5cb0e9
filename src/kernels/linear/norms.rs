//! The sums that norms are made of, in f64 and in a fixed number of lanes, without a fused multiply-add: neither threads
//! nor instruction sets change a bit.

use super::Element;
use super::moments::PARTS;
use crate::kernels::vector::{Arch, Double, Routine, WIDENED as LANES, dispatch, prefetch};
use crate::runtime::Isa;

/// What is summed for norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Powers {
    Sizes,
    Squares,
    Both,
}

/// The sum of the sizes of elements, and that of their squares; 0 for what is not asked for.
#[derive(Clone, Copy)]
pub struct Norms {
    powers: Powers,
    lanes: [[f64; LANES]; 2],
}

impl Norms {
    pub fn new(powers: Powers) -> Self {
        let lanes = [[0.0; LANES]; 2];
        Norms { powers, lanes }
    }

    /// Adds `len` elements: a multiple of `WIDENED`, unless they are the last.
    ///
    /// # Safety
    /// The pointer is valid for reading, and nothing writes there.
    ///
    /// # Panics
    /// Where the CPU does not run `isa`.
    pub unsafe fn add<T: Element>(&mut self, isa: Isa, from: *const T, len: usize) {
        let lanes = &mut self.lanes;
        match self.powers {
            Powers::Sizes => dispatch(isa, Stretch::<T, true, false> { from, len, lanes }),
            Powers::Squares => dispatch(isa, Stretch::<T, false, true> { from, len, lanes }),
            Powers::Both => dispatch(isa, Stretch::<T, true, true> { from, len, lanes }),
        }
    }

    pub fn total(&self) -> [f64; 2] {
        self.lanes.map(|lanes| lanes.iter().sum())
    }
}

/// The sums over all parts.
pub fn added(parts: &[[f64; 2]]) -> [f64; 2] {
    parts
        .iter()
        .fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]])
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

/// The arguments of [`Norms::add`], which keep its promises.
struct Stretch<'a, T, const SIZES: bool, const SQUARES: bool> {
    from: *const T,
    len: usize,
    lanes: &'a mut [[f64; LANES]; 2],
}

impl<T: Element, const SIZES: bool, const SQUARES: bool> Routine for Stretch<'_, T, SIZES, SQUARES> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let Stretch { from, len, lanes } = self;
        let mut sums = Lanes::<A::F64>::of(lanes);
        let whole = len - len % LANES;
        for i in (0..whole).step_by(LANES) {
            prefetch::<A, T>(from.cast(), i, LANES);
            // SAFETY: as many lanes lie within the elements.
            unsafe { sums.add::<T, SIZES, SQUARES>(from.add(i)) };
        }
        if whole < len {
            // SAFETY: there are `len - whole` elements from `whole` on.
            unsafe { sums.add::<T, SIZES, SQUARES>(filled(from.add(whole), len - whole).as_ptr()) };
        }
        *lanes = sums.values();
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
        let mut lanes = Lanes::<A::F64>::of(&[[0.0; LANES]; 2]);
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
        lanes.values().map(|lanes| lanes.iter().sum())
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
    fn of(values: &[[f64; LANES]; 2]) -> Self {
        let mut sums = Lanes([[V::splat(0.0); PARTS]; 2]);
        for (k, values) in values.iter().enumerate() {
            for part in 0..LANES / V::LANES {
                // SAFETY: a vector's lanes.
                sums.0[k][part] = unsafe { V::load_f64(values.as_ptr().add(part * V::LANES)) };
            }
        }
        sums
    }

    #[inline(always)]
    fn values(&self) -> [[f64; LANES]; 2] {
        let mut all = [[0.0; LANES]; 2];
        for (k, values) in all.iter_mut().enumerate() {
            for part in 0..LANES / V::LANES {
                // SAFETY: a vector's lanes.
                unsafe { self.0[k][part].store_f64(values.as_mut_ptr().add(part * V::LANES)) };
            }
        }
        all
    }

    /// # Safety
    /// `from` is valid for reading `LANES` elements.
    #[inline(always)]
    unsafe fn add<T: Element, const SIZES: bool, const SQUARES: bool>(&mut self, from: *const T) {
        let pairs = LANES / V::LANES / 2;
        for pair in 0..pairs {
            // SAFETY: the caller's promise.
            let [lower, upper] = unsafe { T::widen::<V>(from, pair) };
            self.add_part::<SIZES, SQUARES>(pair, lower);
            self.add_part::<SIZES, SQUARES>(pairs + pair, upper);
        }
    }

    #[inline(always)]
    fn add_part<const SIZES: bool, const SQUARES: bool>(&mut self, part: usize, x: V) {
        let [sizes, squares] = &mut self.0;
        if SIZES {
            sizes[part] = sizes[part] + x.abs();
        }
        if SQUARES {
            squares[part] = squares[part] + x * x;
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
                let (part, x) = (half * pairs + pair, new[half]);
                let difference = x - old[half];
                let [squares, moved] = &mut self.0;
                squares[part] = squares[part] + x * x;
                moved[part] = moved[part] + difference * difference;
            }
        }
    }
}
