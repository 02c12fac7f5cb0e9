//! The passes over a block, for any instruction set.

use std::ops::Range;

use super::Affine;
use super::block::Block;
use crate::kernels::linear::Element;
use crate::kernels::vector::{Arch, Arithmetic, Double, MAX_LANES, Routine, Vector, WIDENED as LANES};

/// The most vectors that hold so many lanes.
const PARTS: usize = 4;

/// Statistics of each channel, and its elements normalized by them.
pub struct Forward<'a, T> {
    pub from: Block<T>,
    /// Apart from `from`, or that itself.
    pub to: Block<T>,
    pub affine: Option<Affine<'a>>,
    pub eps: f64,
    pub channels: Range<usize>,
    /// Where mean, scale and variance of the first channel go, and the others' after it.
    pub found: [*mut f64; 3],
}

impl<T: Element> Routine for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let affine = self.affine;
        for (i, channel) in self.channels.enumerate() {
            let (x, y) = (self.from.channel(i), self.to.channel(i));
            let count = x.elements() as f64;
            // SAFETY: whoever makes a `Forward` vouches for the memory.
            unsafe {
                let first = *x.first;
                // Differences from the first element: of those themselves the squares would leave nothing, where the
                // mean is much larger than the deviations.
                let from = widen::<A, T>(first);
                let [sum, square] = sums::<A, T, _, 1>([x], &FromFirst(from), [first]);
                let squares = (square - sum * (sum / count)).max(0.0);
                let squares = if square.is_nan() { square } else { squares };
                let mean = from + sum / count;
                let scale = 1.0 / (squares / count + self.eps).sqrt();
                for (to, number) in self.found.iter().zip([mean, scale, squares / (count - 1.0)]) {
                    *to.add(i) = number;
                }
                let (factor, bias) = match affine {
                    Some(Affine { weight, bias }) => (weight[channel] * scale, bias[channel]),
                    None => (scale, 0.0),
                };
                let normalize = Normalize { mean, factor, bias };
                write::<A, T, _, 1>([x], y, &normalize);
            }
        }
    }
}

/// The derivatives by each channel's elements, weight and bias.
pub struct Backward<'a, T> {
    /// The elements, and the derivative by what came of them.
    pub from: [Block<T>; 2],
    /// Apart from both, or the latter itself.
    pub to: Block<T>,
    pub affine: Option<Affine<'a>>,
    /// Means and scales of the channels.
    pub statistics: [&'a [f64]; 2],
    pub channels: Range<usize>,
    /// Where the derivatives by the first channel's weight and bias go, and the others' after it.
    pub found: [*mut f64; 2],
}

impl<T: Element> Routine for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let [means, scales] = self.statistics;
        for (i, channel) in self.channels.enumerate() {
            let [x, dy] = self.from;
            let (x, dy, dx) = (x.channel(i), dy.channel(i), self.to.channel(i));
            let (mean, scale, count) = (means[i], scales[i], x.elements() as f64);
            // SAFETY: whoever makes a `Backward` vouches for the memory.
            unsafe {
                let [sum, product] = sums::<A, T, _, 2>([x, dy], &AlongMean(mean), [*x.first, T::default()]);
                for (to, number) in self.found.iter().zip([product * scale, sum]) {
                    *to.add(i) = number;
                }
                let project = Project {
                    mean,
                    constant: sum / count,
                    along: product / count * scale * scale,
                    factor: self.affine.map_or(scale, |affine| affine.weight[channel] * scale),
                };
                write::<A, T, _, 2>([x, dy], dx, &project);
            }
        }
    }
}

/// Two terms of each element, or of the elements at one place.
trait Terms<const N: usize> {
    fn of<V: Vector>(&self, values: [V; N]) -> [V; 2];
}

/// The difference from a number, and its square.
struct FromFirst(f64);

impl Terms<1> for FromFirst {
    #[inline(always)]
    fn of<V: Vector>(&self, [x]: [V; 1]) -> [V; 2] {
        let d = x - V::splat(self.0);
        [d, d * d]
    }
}

/// The derivative, and its product with the difference from the mean.
struct AlongMean(f64);

impl Terms<2> for AlongMean {
    #[inline(always)]
    fn of<V: Vector>(&self, [x, dy]: [V; 2]) -> [V; 2] {
        [dy, dy * (x - V::splat(self.0))]
    }
}

/// What is written for each element, or the elements at one place.
trait Image<const N: usize> {
    fn of<V: Vector>(&self, values: [V; N]) -> V;
}

struct Normalize {
    mean: f64,
    factor: f64,
    bias: f64,
}

impl Image<1> for Normalize {
    #[inline(always)]
    fn of<V: Vector>(&self, [x]: [V; 1]) -> V {
        (x - V::splat(self.mean)) * V::splat(self.factor) + V::splat(self.bias)
    }
}

/// Takes out of the derivative its mean, and what lies along the normalized elements.
struct Project {
    mean: f64,
    constant: f64,
    along: f64,
    factor: f64,
}

impl Image<2> for Project {
    #[inline(always)]
    fn of<V: Vector>(&self, [x, dy]: [V; 2]) -> V {
        let along = (x - V::splat(self.mean)) * V::splat(self.along);
        (dy - V::splat(self.constant) - along) * V::splat(self.factor)
    }
}

/// The sums of both terms; what is missing of the last vectors is filled up with `padding`, whose terms are 0.
///
/// # Safety
/// The blocks have one shape and are valid for reading.
#[inline(always)]
unsafe fn sums<A: Arch, T: Element, S: Terms<N>, const N: usize>(
    from: [Block<T>; N],
    terms: &S,
    padding: [T; N],
) -> [f64; 2] {
    let (runs, len) = (from[0].runs, from[0].len);
    let mut lanes = [[A::F64::splat(0.0); PARTS]; 2];
    let whole = len - len % LANES;
    for run in 0..runs {
        // SAFETY: the caller's promise.
        unsafe {
            let starts = starts(&from, run);
            for i in (0..whole).step_by(LANES) {
                add::<A, T, S, N>(&mut lanes, starts.map(|start| start.add(i).cast_const()), terms);
            }
            if whole < len {
                let padded = filled::<T, LANES, N>(starts, whole, len - whole, padding);
                add::<A, T, S, N>(&mut lanes, std::array::from_fn(|n| padded[n].as_ptr()), terms);
            }
        }
    }
    [total(&lanes[0]), total(&lanes[1])]
}

/// # Safety
/// The pointers are valid for reading `LANES` elements.
#[inline(always)]
unsafe fn add<A: Arch, T: Element, S: Terms<N>, const N: usize>(
    lanes: &mut [[A::F64; PARTS]; 2],
    from: [*const T; N],
    terms: &S,
) {
    let pairs = LANES / A::F64::LANES / 2;
    for pair in 0..pairs {
        let mut halves = [[A::F64::splat(0.0); N]; 2];
        for (n, from) in from.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            [halves[0][n], halves[1][n]] = unsafe { T::widen(from, pair) };
        }
        for (half, part) in halves.into_iter().zip([pair, pairs + pair]) {
            let [one, other] = terms.of(half);
            lanes[0][part] = lanes[0][part] + one;
            lanes[1][part] = lanes[1][part] + other;
        }
    }
}

#[inline(always)]
fn total<V: Double>(parts: &[V; PARTS]) -> f64 {
    let mut lanes = [0.0; LANES];
    for (part, lanes) in parts.iter().zip(lanes.chunks_exact_mut(V::LANES)) {
        // SAFETY: a vector's lanes.
        unsafe { part.store_f64(lanes.as_mut_ptr()) };
    }
    lanes.iter().sum()
}

/// # Safety
/// The CPU has the instruction set.
#[inline(always)]
unsafe fn widen<A: Arch, T: Element>(x: T) -> f64 {
    let mut lanes = [0.0; LANES];
    // SAFETY: there are as many elements, and a vector has no more lanes.
    unsafe {
        let [lower, _] = T::widen::<A::F64>([x; LANES].as_ptr(), 0);
        lower.store_f64(lanes.as_mut_ptr());
    }
    lanes[0]
}

/// Writes the image of the elements at each place.
///
/// # Safety
/// The blocks have one shape and are valid for reading, `to` for writing; it is one of the others or overlaps none.
#[inline(always)]
unsafe fn write<A: Arch, T: Element, I: Image<N>, const N: usize>(
    from: [Block<T>; N],
    to: Block<T>,
    image: &I,
) {
    let lanes = <T::Combined as Arithmetic>::Vector::<A>::LANES;
    let (runs, len) = (to.runs, to.len);
    let whole = len - len % lanes;
    for run in 0..runs {
        // SAFETY: the caller's promise.
        unsafe {
            let (starts, to) = (starts(&from, run), to.first.add(run * to.stride));
            for i in (0..whole).step_by(lanes) {
                one::<A, T, I, N>(starts.map(|start| start.add(i).cast_const()), to.add(i), image);
            }
            if whole < len {
                let padded = filled::<T, MAX_LANES, N>(starts, whole, len - whole, [T::default(); N]);
                let mut result = [T::default(); MAX_LANES];
                one::<A, T, I, N>(
                    std::array::from_fn(|n| padded[n].as_ptr()),
                    result.as_mut_ptr(),
                    image,
                );
                to.add(whole)
                    .copy_from_nonoverlapping(result.as_ptr(), len - whole);
            }
        }
    }
}

/// # Safety
/// The pointers are valid for a vector, `to` for writing.
#[inline(always)]
unsafe fn one<A: Arch, T: Element, I: Image<N>, const N: usize>(from: [*const T; N], to: *mut T, image: &I) {
    let mut values = [<T::Combined as Arithmetic>::Vector::<A>::splat(0.0); N];
    for (value, from) in values.iter_mut().zip(from) {
        // SAFETY: the caller's promise.
        *value = unsafe { T::load::<A>(from) };
    }
    // SAFETY: the caller's promise.
    unsafe { T::store::<A>(image.of(values), to) };
}

/// Where run number `run` of each block begins.
#[inline(always)]
fn starts<T, const N: usize>(from: &[Block<T>; N], run: usize) -> [*mut T; N] {
    let mut starts = [std::ptr::null_mut(); N];
    for (start, block) in starts.iter_mut().zip(from) {
        *start = block.first.wrapping_add(run * block.stride);
    }
    starts
}

/// Copies of `rest` elements from number `whole` on, less than `SIZE`, and `padding` after them.
///
/// # Safety
/// The pointers are valid for reading as many.
#[inline(always)]
unsafe fn filled<T: Copy, const SIZE: usize, const N: usize>(
    from: [*mut T; N],
    whole: usize,
    rest: usize,
    padding: [T; N],
) -> [[T; SIZE]; N] {
    let mut filled = padding.map(|element| [element; SIZE]);
    for (to, from) in filled.iter_mut().zip(from) {
        // SAFETY: the caller's promise.
        unsafe { from.add(whole).copy_to_nonoverlapping(to.as_mut_ptr(), rest) };
    }
    filled
}
