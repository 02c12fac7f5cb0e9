//! Formulas of some tensors' elements, several of which may be written in one pass, and the sum of squares of one: in
//! f64 and in a fixed number of lanes, so that neither threads nor instruction sets change a bit.

use std::ops::Range;

use half::{bf16, f16};

use super::Element;
use super::moments::{PARTS, total};
use crate::kernels::storage::Float;
use crate::kernels::vector::{
    Arch, Arithmetic, Double, MAX_LANES, Routine, Vector, WIDENED, dispatch, prefetch,
};
use crate::runtime::Isa;

/// Elements that are written before their squares are summed, out of the first cache: of a vector that is still in a
/// register the compiler takes the upper half apart, number by number.
const TILE: usize = 128;

/// Of the elements of `N` tensors at one place.
pub trait Formula<const N: usize>: Copy + Send + Sync {
    /// The first so many tensors are written, at least one.
    const WRITTEN: usize;
    /// Whether these are read, too.
    const UPDATES: bool = true;
    /// Whether the squares of the first one are summed, which is written.
    const SQUARES: bool;

    /// How many of the tensors are only written: the first ones.
    fn unread() -> usize {
        if Self::UPDATES { 0 } else { Self::WRITTEN }
    }

    /// What becomes of them. Only vectors of arrays that are taken apart stay in registers.
    fn of<V: Vector>(self, elements: [V; N]) -> [V; N];
}

/// Computes a formula on `len` elements of tensors; gives the sum of squares, of what has been rounded, or 0.
///
/// # Safety
/// The pointers are valid for reading as many elements of type `dtype`, the first [`Formula::WRITTEN`] also for writing;
/// these overlap nothing, or are in the very place of one that is read.
///
/// # Panics
/// Where the CPU does not run `isa`.
pub unsafe fn compute<F: Formula<N>, const N: usize>(
    isa: Isa,
    dtype: Float,
    formula: F,
    tensors: [*mut u8; N],
    len: usize,
) -> f64 {
    match dtype {
        Float::F64 => dispatch(isa, Stretch::<f64, F, N>::new(formula, tensors, len)),
        Float::F32 => dispatch(isa, Stretch::<f32, F, N>::new(formula, tensors, len)),
        Float::F16 => dispatch(isa, Stretch::<f16, F, N>::new(formula, tensors, len)),
        Float::Bf16 => dispatch(isa, Stretch::<bf16, F, N>::new(formula, tensors, len)),
    }
}

/// The arguments of [`compute`], which keep its promises.
struct Stretch<T, F, const N: usize> {
    formula: F,
    tensors: [*mut T; N],
    len: usize,
}

impl<T, F, const N: usize> Stretch<T, F, N> {
    fn new(formula: F, tensors: [*mut u8; N], len: usize) -> Self {
        Stretch {
            formula,
            tensors: tensors.map(<*mut u8>::cast),
            len,
        }
    }
}

impl<T: Element, F: Formula<N>, const N: usize> Routine for Stretch<T, F, N> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> f64 {
        let Stretch {
            formula,
            tensors,
            len,
        } = self;
        let mut squares = Squares([A::F64::splat(0.0); PARTS]);
        let whole = len - len % MAX_LANES;
        for start in (0..whole).step_by(TILE) {
            // SAFETY: as many elements lie within the tensors.
            unsafe { tile::<A, T, F, N>(formula, &tensors, start..whole.min(start + TILE), &mut squares) };
        }
        if whole < len {
            // The last elements go through copies that are filled up with zeros.
            let mut padded = [[T::default(); MAX_LANES]; N];
            let rest = len - whole;
            // SAFETY: the tensors hold `rest` elements from `whole` on, the copies more than that.
            unsafe {
                for (padded, tensor) in padded.iter_mut().zip(&tensors).skip(F::unread()) {
                    let from = tensor.add(whole);
                    from.copy_to_nonoverlapping(padded.as_mut_ptr(), rest);
                }
                let first = padded.as_mut_ptr();
                let copies = std::array::from_fn(|n| first.add(n).cast());
                tile::<A, T, F, N>(formula, &copies, 0..MAX_LANES, &mut squares);
                for (padded, tensor) in padded.iter().zip(&tensors).take(F::WRITTEN) {
                    let to = tensor.add(whole);
                    to.copy_from_nonoverlapping(padded.as_ptr(), rest);
                }
            }
        }
        match F::SQUARES {
            true => total(&squares.0),
            false => 0.0,
        }
    }
}

/// The elements of a range, and then the squares of what was written.
///
/// # Safety
/// The pointers are valid for these elements, a multiple of [`MAX_LANES`]; those that are written for writing.
#[inline(always)]
unsafe fn tile<A: Arch, T: Element, F: Formula<N>, const N: usize>(
    formula: F,
    tensors: &[*mut T; N],
    range: Range<usize>,
    squares: &mut Squares<A::F64>,
) {
    for i in range.clone().step_by(MAX_LANES) {
        for tensor in &tensors[F::unread()..] {
            prefetch::<A, T>(tensor.cast_const().cast(), i, MAX_LANES);
        }
        // SAFETY: the caller's promise, here and below.
        unsafe { block::<A, T, F, N>(formula, tensors, i) };
    }
    if F::SQUARES {
        for i in range.step_by(WIDENED) {
            // SAFETY: as above.
            unsafe { squares.add(tensors[0].add(i).cast_const()) };
        }
    }
}

/// The elements from number `at` on.
///
/// # Safety
/// The pointers are valid for [`MAX_LANES`] elements there, those that are written for writing.
#[inline(always)]
unsafe fn block<A: Arch, T: Element, F: Formula<N>, const N: usize>(
    formula: F,
    tensors: &[*mut T; N],
    at: usize,
) {
    let lanes = <T::Combined as Arithmetic>::Vector::<A>::LANES;
    for i in (at..at + MAX_LANES).step_by(lanes) {
        // Neither `map` nor `zip`, which are calls: see CONTRIBUTING.md.
        let mut elements = [<T::Combined as Arithmetic>::Vector::<A>::splat(0.0); N];
        for (n, element) in elements.iter_mut().enumerate() {
            if n >= F::unread() {
                // SAFETY: the caller's promise, here and below.
                *element = unsafe { T::load::<A>(tensors[n].add(i)) };
            }
        }
        let results = formula.of(elements);
        for (n, result) in results.iter().enumerate() {
            if n < F::WRITTEN {
                // SAFETY: as above.
                unsafe { T::store::<A>(*result, tensors[n].add(i)) };
            }
        }
    }
}

/// Sums in as many lanes as elements are widened at once.
struct Squares<V>([V; PARTS]);

impl<V: Double> Squares<V> {
    /// # Safety
    /// `from` is valid for reading [`WIDENED`] elements.
    #[inline(always)]
    unsafe fn add<T: Element>(&mut self, from: *const T) {
        let pairs = WIDENED / V::LANES / 2;
        for pair in 0..pairs {
            // SAFETY: the caller's promise.
            let [lower, upper] = unsafe { T::widen::<V>(from, pair) };
            self.0[pair] = self.0[pair] + lower * lower;
            self.0[pairs + pair] = self.0[pairs + pair] + upper * upper;
        }
    }
}
