//! Sums over rows, in a fixed order whatever the instruction set.

use crate::kernels::matmul::Real;

/// Elements that are looked at together, so many that this takes few instructions for each.
pub const CHUNK: usize = 64;
/// Sums are taken in so many lanes; a power of two.
pub const LANES: usize = 16;

/// The sum of a term of each number.
#[inline(always)]
pub fn total<R: Real>(row: &[R], term: impl Fn(f64) -> f64) -> f64 {
    let mut totals = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<CHUNK>();
    for chunk in chunks {
        add(&mut totals, |i| term(chunk[i].to_f64()));
    }
    for (i, x) in rest.iter().enumerate() {
        totals[i % LANES] += term(x.to_f64());
    }
    fold(totals, |a, b| a + b)
}

/// The inner product.
#[inline(always)]
pub fn dot<A: Real, B: Real>(one: &[A], other: &[B]) -> f64 {
    let mut totals = [0.0; LANES];
    let (ones, one_rest) = one.as_chunks::<CHUNK>();
    let (others, other_rest) = other.as_chunks::<CHUNK>();
    for (one, other) in ones.iter().zip(others) {
        add(&mut totals, |i| one[i].to_f64() * other[i].to_f64());
    }
    for (i, (a, b)) in one_rest.iter().zip(other_rest).enumerate() {
        totals[i % LANES] += a.to_f64() * b.to_f64();
    }
    fold(totals, |a, b| a + b)
}

/// Adds a chunk's terms, by their places. One loop over the lanes, and no array of terms, stays in registers.
#[inline(always)]
pub fn add(totals: &mut [f64; LANES], term: impl Fn(usize) -> f64) {
    const { assert!(CHUNK == 4 * LANES) };
    for (lane, total) in totals.iter_mut().enumerate() {
        let (even, odd) = (
            term(lane) + term(lane + 2 * LANES),
            term(lane + LANES) + term(lane + 3 * LANES),
        );
        *total += even + odd;
    }
}

/// The largest key of a number; NaN does not count.
#[inline(always)]
pub fn largest<R: Real>(row: &[R], key: impl Fn(R) -> R + Copy) -> R {
    let greater = |a: R, b: R| if b > a { b } else { a };
    let mut tops = [R::from_f64(f64::NEG_INFINITY); LANES];
    let (chunks, rest) = row.as_chunks::<CHUNK>();
    for chunk in chunks {
        let found = folded(keys(chunk, key), greater);
        for (lane, top) in tops.iter_mut().enumerate() {
            *top = greater(*top, found[lane]);
        }
    }
    for part in rest.chunks(LANES) {
        for (top, &x) in tops.iter_mut().zip(part) {
            *top = greater(*top, key(x));
        }
    }
    fold(tops, greater)
}

/// The keys of a few numbers. `map` of arrays is a call of its own, without the instruction set.
#[inline(always)]
pub fn keys<R: Real, const N: usize>(few: &[R; N], key: impl Fn(R) -> R) -> [R; N] {
    let mut keys = *few;
    for x in &mut keys {
        *x = key(*x);
    }
    keys
}

/// The number without its sign.
#[inline(always)]
pub fn magnitude<R: Real>(x: R) -> R {
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
pub fn filled<R: Real, const N: usize>(few: &[R], other: R) -> [R; N] {
    let mut all = [other; N];
    all[..few.len()].copy_from_slice(few);
    all
}

/// All lanes as one.
#[inline(always)]
pub fn fold<T: Copy>(lanes: [T; LANES], with: impl Fn(T, T) -> T + Copy) -> T {
    let eight: [T; 8] = halved(lanes, with);
    let four: [T; 4] = halved(eight, with);
    let [one, other] = halved(four, with);
    with(one, other)
}

/// A chunk as one set of lanes.
#[inline(always)]
fn folded<T: Copy>(chunk: [T; CHUNK], with: impl Fn(T, T) -> T + Copy) -> [T; LANES] {
    let half: [T; CHUNK / 2] = halved(chunk, with);
    halved(half, with)
}

/// The lower half of the lanes, each joined to its like in the upper half.
#[inline(always)]
pub fn halved<T: Copy, const N: usize, const HALF: usize>(
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
