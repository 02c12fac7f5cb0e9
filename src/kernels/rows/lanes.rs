//! Sums and maxima over rows, in a fixed number of lanes and a fixed order, whatever the instruction set.

use crate::kernels::matmul::Real;
use crate::kernels::vector::{Arch, Double, Single, Vector};

/// Elements that are looked at together, so many that this takes few instructions for each.
pub const CHUNK: usize = 4 * LANES;
/// Sums are taken in so many lanes.
const LANES: usize = 16;
/// Vectors that hold the lanes, at most.
const VECTORS: usize = 4;

/// What rows are computed in.
pub trait Number: Real {
    type Vector<A: Arch>: Vector;

    /// # Safety
    /// `from` is valid for reading as many elements as the vector has lanes.
    unsafe fn load<A: Arch>(from: *const Self) -> Self::Vector<A>;
    /// # Safety
    /// `to` is valid for writing as many elements as the vector has lanes.
    unsafe fn store<A: Arch>(vector: Self::Vector<A>, to: *mut Self);
    /// # Safety
    /// `from` is valid for reading as many elements as the vector has lanes.
    unsafe fn widen<A: Arch>(from: *const Self) -> A::F64;
}

macro_rules! number {
    ($type:ty, $vector:ident, $load:ident, $store:ident, $widen:ident) => {
        impl Number for $type {
            type Vector<A: Arch> = A::$vector;

            #[inline(always)]
            unsafe fn load<A: Arch>(from: *const Self) -> A::$vector {
                // SAFETY: the caller's promise.
                unsafe { A::$vector::$load(from) }
            }
            #[inline(always)]
            unsafe fn store<A: Arch>(vector: A::$vector, to: *mut Self) {
                // SAFETY: the caller's promise.
                unsafe { vector.$store(to) }
            }
            #[inline(always)]
            unsafe fn widen<A: Arch>(from: *const Self) -> A::F64 {
                // SAFETY: the caller's promise.
                unsafe { A::F64::$widen(from) }
            }
        }
    };
}
number!(f32, F32, load_f32, store_f32, widen_f32);
number!(f64, F64, load_f64, store_f64, load_f64);

/// Vectors of a chunk, by a quarter of it and their place therein.
#[inline(always)]
pub fn load<A: Arch, R: Number>(chunk: &[R; CHUNK], quarter: usize, i: usize) -> R::Vector<A> {
    let at = quarter * LANES + i * R::Vector::<A>::LANES;
    assert!(at + R::Vector::<A>::LANES <= CHUNK);
    // SAFETY: the vector lies in the chunk.
    unsafe { R::load::<A>(chunk.as_ptr().add(at)) }
}

/// Writes what `image` makes of each vector of a chunk.
#[inline(always)]
pub fn store<A: Arch, R: Number>(
    chunk: &[R; CHUNK],
    to: &mut [R; CHUNK],
    mut image: impl FnMut(R::Vector<A>) -> R::Vector<A>,
) {
    for i in 0..CHUNK / R::Vector::<A>::LANES {
        let vector = image(load::<A, R>(chunk, 0, i));
        // SAFETY: as many lanes lie in a chunk.
        unsafe { R::store::<A>(vector, to.as_mut_ptr().add(i * R::Vector::<A>::LANES)) };
    }
}

/// Terms of sums, by two numbers each, as vectors. Closures that do more than a little are not inlined; methods can be.
pub trait Terms<V, const K: usize>: Copy {
    fn of(self, one: V, other: V) -> [V; K];
}

impl<V, const K: usize, F: Fn(V, V) -> [V; K] + Copy> Terms<V, K> for F {
    #[inline(always)]
    fn of(self, one: V, other: V) -> [V; K] {
        self(one, other)
    }
}

/// The sum of a term of each number, which is 0 for 0.
#[inline(always)]
pub fn total<A: Arch, R: Number>(row: &[R], term: impl Fn(R::Vector<A>) -> R::Vector<A> + Copy) -> f64 {
    sums::<A, R, 1>(row, row, |x, _| [term(x)])[0]
}

/// The sums of terms of each number and its like among others, which are 0 for zeros. Those of a chunk that meet in a
/// lane are few enough to be added as they are, unless they get too large, and all else is in f64.
#[inline(always)]
pub fn sums<A: Arch, R: Number, const K: usize>(
    one: &[R],
    other: &[R],
    terms: impl Terms<R::Vector<A>, K>,
) -> [f64; K] {
    let together = sums_of_parts::<A, R, K, true>(one, other, terms);
    match together.iter().all(|sum| sum.is_finite()) {
        true => together,
        false => sums_of_parts::<A, R, K, false>(one, other, terms),
    }
}

#[inline(always)]
fn sums_of_parts<A: Arch, R: Number, const K: usize, const TOGETHER: bool>(
    one: &[R],
    other: &[R],
    terms: impl Terms<R::Vector<A>, K>,
) -> [f64; K] {
    let mut totals = [Totals::<A>::default(); K];
    let (ones, one_rest) = one.as_chunks();
    let (others, other_rest) = other.as_chunks();
    for (number, one) in ones.iter().enumerate() {
        add::<A, R, K, TOGETHER>(&mut totals, one, &others[number], terms);
    }
    if !one_rest.is_empty() {
        let (one, other) = (filled(one_rest, R::ZERO), filled(other_rest, R::ZERO));
        add::<A, R, K, TOGETHER>(&mut totals, &one, &other, terms);
    }
    let mut sums = [0.0; K];
    for (k, sum) in sums.iter_mut().enumerate() {
        *sum = totals[k].total();
    }
    sums
}

#[inline(always)]
fn add<A: Arch, R: Number, const K: usize, const TOGETHER: bool>(
    totals: &mut [Totals<A>; K],
    one: &[R; CHUNK],
    other: &[R; CHUNK],
    terms: impl Terms<R::Vector<A>, K>,
) {
    for i in 0..LANES / R::Vector::<A>::LANES {
        let mut quarters = [[R::Vector::<A>::splat(0.0); K]; CHUNK / LANES];
        for (quarter, to) in quarters.iter_mut().enumerate() {
            *to = terms.of(load::<A, R>(one, quarter, i), load::<A, R>(other, quarter, i));
        }
        let [a, b, c, d] = quarters;
        for (k, total) in totals.iter_mut().enumerate() {
            match TOGETHER {
                true => total.add::<R>((a[k] + c[k]) + (b[k] + d[k]), i),
                false => {
                    for quarter in &quarters {
                        total.add::<R>(quarter[k], i);
                    }
                }
            }
        }
    }
}

/// The inner product, in f64.
#[inline(always)]
pub fn dot<A: Arch, R: Number>(row: &[R], other: &[f64]) -> f64 {
    let mut totals = Totals::<A>::default();
    let (ones, one_rest) = row.as_chunks();
    let (others, other_rest) = other.as_chunks();
    for (number, one) in ones.iter().enumerate() {
        totals.add_products(one, &others[number]);
    }
    if !one_rest.is_empty() {
        totals.add_products(&filled(one_rest, R::ZERO), &filled(other_rest, 0.0));
    }
    totals.total()
}

/// Sums in lanes.
struct Totals<A: Arch>([A::F64; VECTORS]);

// Not derived, which would ask for as much of the instruction set.
impl<A: Arch> Clone for Totals<A> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: Arch> Copy for Totals<A> {}

impl<A: Arch> Default for Totals<A> {
    #[inline(always)]
    fn default() -> Self {
        Totals([A::F64::splat(0.0); VECTORS])
    }
}

impl<A: Arch> Totals<A> {
    const VECTORS: usize = LANES / A::F64::LANES;

    /// Adds vector number `i` of as many numbers as there are lanes.
    #[inline(always)]
    fn add<R: Number>(&mut self, vector: R::Vector<A>, i: usize) {
        let mut lanes = [R::ZERO; LANES];
        let (count, each) = (R::Vector::<A>::LANES, A::F64::LANES);
        assert!(count <= LANES && count.is_multiple_of(each));
        // SAFETY: no vector has more lanes.
        unsafe { R::store::<A>(vector, lanes.as_mut_ptr()) };
        for part in 0..count / each {
            let total = &mut self.0[i * (count / each) + part];
            // SAFETY: the vector's lanes are so many.
            *total = *total + unsafe { R::widen::<A>(lanes.as_ptr().add(part * each)) };
        }
    }

    #[inline(always)]
    fn add_products<R: Number>(&mut self, one: &[R; CHUNK], other: &[f64; CHUNK]) {
        for at in (0..CHUNK).step_by(A::F64::LANES) {
            let total = &mut self.0[at / A::F64::LANES % Self::VECTORS];
            // SAFETY: a chunk is made of whole vectors.
            let (a, b) = unsafe {
                (
                    R::widen::<A>(one.as_ptr().add(at)),
                    A::F64::load_f64(other.as_ptr().add(at)),
                )
            };
            *total = *total + a * b;
        }
    }

    #[inline(always)]
    fn total(self) -> f64 {
        let mut eight = [0.0; LANES / 2];
        for i in 0..Self::VECTORS / 2 {
            let half = self.0[i] + self.0[i + Self::VECTORS / 2];
            // SAFETY: half of the vectors hold half of the lanes.
            unsafe { half.store_f64(eight.as_mut_ptr().add(i * A::F64::LANES)) };
        }
        let add = |a, b| a + b;
        let four: [f64; 4] = halved(eight, add);
        let [one, other] = halved(four, add);
        one + other
    }
}

/// What numbers are compared by.
pub trait Key: Copy {
    fn of<R: Real>(self, x: R) -> R;
    fn of_all<V: Vector>(self, x: V) -> V;
}

/// Numbers by themselves.
#[derive(Clone, Copy)]
pub struct Itself;

impl Key for Itself {
    #[inline(always)]
    fn of<R: Real>(self, x: R) -> R {
        x
    }
    #[inline(always)]
    fn of_all<V: Vector>(self, x: V) -> V {
        x
    }
}

/// Numbers without their signs.
#[derive(Clone, Copy)]
pub struct Magnitude;

impl Key for Magnitude {
    #[inline(always)]
    fn of<R: Real>(self, x: R) -> R {
        magnitude(x)
    }
    #[inline(always)]
    fn of_all<V: Vector>(self, x: V) -> V {
        x.abs()
    }
}

/// The largest key of a number; NaN does not count.
#[inline(always)]
pub fn largest<A: Arch, R: Number>(row: &[R], key: impl Key) -> R {
    let mut tops = [R::Vector::<A>::splat(f64::NEG_INFINITY); VECTORS];
    let (chunks, rest) = row.as_chunks();
    for chunk in chunks {
        rise::<A, R>(&mut tops, chunk, key);
    }
    if let Some(&first) = rest.first() {
        rise::<A, R>(&mut tops, &filled(rest, first), key);
    }
    let mut lanes = [R::ZERO; LANES];
    for (i, &top) in tops[..LANES / R::Vector::<A>::LANES].iter().enumerate() {
        // SAFETY: so many vectors hold the lanes.
        unsafe { R::store::<A>(top, lanes.as_mut_ptr().add(i * R::Vector::<A>::LANES)) };
    }
    let greater = |a: R, b: R| if b > a { b } else { a };
    let eight: [R; 8] = halved(lanes, greater);
    let four: [R; 4] = halved(eight, greater);
    let [one, other] = halved(four, greater);
    greater(one, other)
}

#[inline(always)]
fn rise<A: Arch, R: Number>(tops: &mut [R::Vector<A>; VECTORS], chunk: &[R; CHUNK], key: impl Key) {
    let used = &mut tops[..LANES / R::Vector::<A>::LANES];
    for (i, top) in used.iter_mut().enumerate() {
        for quarter in 0..CHUNK / LANES {
            *top = key.of_all(load::<A, R>(chunk, quarter, i)).max(*top);
        }
    }
}

/// The number without its sign.
#[inline(always)]
fn magnitude<R: Real>(x: R) -> R {
    if x < R::ZERO { R::ZERO - x } else { x }
}

/// A number with the sign of another, 0 where that is 0.
#[inline(always)]
pub fn signed<R: Real>(number: R, like: R) -> R {
    if like < R::ZERO {
        R::ZERO - number
    } else if like > R::ZERO {
        number
    } else {
        R::ZERO
    }
}

/// A few numbers, and others behind them.
#[inline(always)]
pub fn filled<R: Real>(few: &[R], other: R) -> [R; CHUNK] {
    let mut all = [other; CHUNK];
    all[..few.len()].copy_from_slice(few);
    all
}

/// The lower half of the lanes, each joined to its like in the upper half.
#[inline(always)]
fn halved<T: Copy, const N: usize, const HALF: usize>(
    lanes: [T; N],
    with: impl Fn(T, T) -> T + Copy,
) -> [T; HALF] {
    const { assert!(N == 2 * HALF) };
    let mut half = *lanes.first_chunk().expect("half of it");
    for lane in 0..HALF {
        half[lane] = with(half[lane], lanes[lane + HALF]);
    }
    half
}
