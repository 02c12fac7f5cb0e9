//! Sums of elements and products in f64, in a fixed number of lanes, so that threads make no difference. Nor do the
//! instruction sets that have a fused multiply-add.

use super::Element;
use crate::kernels::vector::{Arch, Double, Routine, Vector, WIDENED as LANES, dispatch};
use crate::runtime::Isa;

/// The most vectors that hold so many lanes.
pub const PARTS: usize = 4;

/// Over elements of `N` tensors.
#[derive(Clone, Copy, Debug)]
pub struct Sums<const N: usize> {
    pub sums: [f64; N],
    /// Only those with `i <= j`.
    pub products: [[f64; N]; N],
}

impl<const N: usize> Default for Sums<N> {
    fn default() -> Self {
        Sums {
            sums: [0.0; N],
            products: [[0.0; N]; N],
        }
    }
}

impl<const N: usize> Sums<N> {
    pub fn add(&mut self, other: &Sums<N>) {
        for i in 0..N {
            self.sums[i] += other.sums[i];
            for j in i..N {
                self.products[i][j] += other.products[i][j];
            }
        }
    }
}

/// Over `len` elements of tensors or, with `DIFFERENCES`, of the first, of the first less the second, and of each other
/// less the second. Sums of the elements themselves only with `means`.
///
/// # Safety
/// The pointers are valid for reading, and nothing writes there.
///
/// # Panics
/// Where the CPU does not run `isa`.
pub unsafe fn sums<T: Element, const DIFFERENCES: bool, const N: usize>(
    isa: Isa,
    inputs: [*const T; N],
    len: usize,
    means: bool,
) -> Sums<N> {
    match means {
        false => dispatch(isa, Stretch::<T, DIFFERENCES, false, N> { inputs, len }),
        true => dispatch(isa, Stretch::<T, DIFFERENCES, true, N> { inputs, len }),
    }
}

/// What [`sums`] is taken over, which keeps its promises.
struct Stretch<T, const DIFFERENCES: bool, const MEANS: bool, const N: usize> {
    inputs: [*const T; N],
    len: usize,
}

impl<T: Element, const DIFFERENCES: bool, const MEANS: bool, const N: usize> Routine
    for Stretch<T, DIFFERENCES, MEANS, N>
{
    type Output = Sums<N>;

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> Sums<N> {
        let Stretch { inputs, len } = self;
        let mut lanes = Lanes::<A::F64, DIFFERENCES, MEANS, N> {
            sums: [[A::F64::splat(0.0); PARTS]; N],
            products: [[[A::F64::splat(0.0); PARTS]; N]; N],
        };
        let whole = len - len % LANES;
        for i in (0..whole).step_by(LANES) {
            // SAFETY: as many lanes lie within the tensors.
            unsafe { lanes.add(inputs.map(|input| input.add(i))) };
        }
        if whole < len {
            // The last elements go through copies that are filled up with zeros.
            let mut padded = [[T::default(); LANES]; N];
            for (padded, input) in padded.iter_mut().zip(inputs) {
                // SAFETY: the tensors hold `len - whole` elements from `whole` on, the copies more than that.
                unsafe {
                    input
                        .add(whole)
                        .copy_to_nonoverlapping(padded.as_mut_ptr(), len - whole)
                };
            }
            // SAFETY: the copies hold as many lanes.
            unsafe { lanes.add(std::array::from_fn(|i| padded[i].as_ptr())) };
        }
        let mut result = Sums::default();
        for i in 0..N {
            if MEANS {
                result.sums[i] = total(&lanes.sums[i]);
            }
            for j in i..N {
                result.products[i][j] = total(&lanes.products[i][j]);
            }
        }
        result
    }
}

struct Lanes<V, const DIFFERENCES: bool, const MEANS: bool, const N: usize> {
    sums: [[V; PARTS]; N],
    products: [[[V; PARTS]; N]; N],
}

impl<V: Double, const DIFFERENCES: bool, const MEANS: bool, const N: usize> Lanes<V, DIFFERENCES, MEANS, N> {
    /// # Safety
    /// The pointers are valid for reading `LANES` elements.
    #[inline(always)]
    unsafe fn add<T: Element>(&mut self, inputs: [*const T; N]) {
        let pairs = LANES / V::LANES / 2;
        for pair in 0..pairs {
            // Not `map`: its closure is not always inlined, and by itself it lacks the instruction set.
            let mut halves = [[V::splat(0.0); N]; 2];
            for (n, input) in inputs.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                [halves[0][n], halves[1][n]] = unsafe { T::widen(input, pair) };
            }
            self.add_part(pair, halves[0]);
            self.add_part(pairs + pair, halves[1]);
        }
    }

    #[inline(always)]
    fn add_part(&mut self, part: usize, mut values: [V; N]) {
        if DIFFERENCES {
            let second = values[1];
            values[1] = values[0] - second;
            for other in &mut values[2..] {
                *other = *other - second;
            }
        }
        for i in 0..N {
            if MEANS {
                self.sums[i][part] = self.sums[i][part] + values[i];
            }
            for j in i..N {
                self.products[i][j][part] = values[i].mul_add(values[j], self.products[i][j][part]);
            }
        }
    }
}

/// The sum over all lanes.
#[inline(always)]
pub fn total<V: Double>(parts: &[V; PARTS]) -> f64 {
    let mut lanes = [0.0; LANES];
    for (part, lanes) in parts.iter().zip(lanes.chunks_exact_mut(V::LANES)) {
        // SAFETY: a vector's lanes.
        unsafe { part.store_f64(lanes.as_mut_ptr()) };
    }
    lanes.iter().sum()
}
