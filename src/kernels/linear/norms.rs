//! The sums that norms are made of, in f64 and in a fixed number of lanes, without a fused multiply-add: neither threads
//! nor instruction sets change a bit.

use super::Element;
use super::moments::{PARTS, total};
use crate::kernels::vector::{Arch, Double, Routine, Vector, WIDENED as LANES, dispatch};
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
        let mut lanes = Lanes([[A::F64::splat(0.0); PARTS]; 2]);
        let whole = len - len % LANES;
        for i in (0..whole).step_by(LANES) {
            // SAFETY: as many lanes lie within the elements.
            unsafe { lanes.add(from.add(i)) };
        }
        if whole < len {
            // The last elements go through a copy that is filled up with zeros.
            let mut padded = [T::default(); LANES];
            // SAFETY: there are `len - whole` elements from `whole` on, and the copy holds more than that.
            unsafe {
                from.add(whole)
                    .copy_to_nonoverlapping(padded.as_mut_ptr(), len - whole);
                lanes.add(padded.as_ptr());
            }
        }
        [total(&lanes.0[0]), total(&lanes.0[1])]
    }
}

/// Sums of sizes, and of squares.
struct Lanes<V>([[V; PARTS]; 2]);

impl<V: Double> Lanes<V> {
    /// # Safety
    /// `from` is valid for reading `LANES` elements.
    #[inline(always)]
    unsafe fn add<T: Element>(&mut self, from: *const T) {
        let pairs = LANES / V::LANES / 2;
        for pair in 0..pairs {
            // SAFETY: the caller's promise.
            let [lower, upper] = unsafe { T::widen::<V>(from, pair) };
            self.add_part(pair, lower);
            self.add_part(pairs + pair, upper);
        }
    }

    #[inline(always)]
    fn add_part(&mut self, part: usize, x: V) {
        let [sizes, squares] = &mut self.0;
        sizes[part] = sizes[part] + x.abs();
        squares[part] = squares[part] + x * x;
    }
}
