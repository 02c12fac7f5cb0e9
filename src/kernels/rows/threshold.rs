//! Numbers less a threshold, `max(x - t, 0)`, with the one `t` that gives the sum: what projections onto simplices and
//! onto balls of the l1 norm have in common.
//!
//! No number further below the largest than the sum is in the support, which leaves few candidates. On them,
//! `t = (total of those above t - sum) / (their number)` is solved by Newton's steps, which end as soon as none falls
//! out any more: usually after some four (Michelot, J. Optim. Theory Appl. 50, 1986). Sorting (Held, Wolfe and Crowder,
//! Math. Program. 6, 1974) takes over where that goes on for long, as it does on geometric series.

use super::lanes::{CHUNK, Key, Number, Terms, filled, largest, store, sums};
use super::{Each, Row};
use crate::kernels::matmul::Real;
use crate::kernels::vector::{Arch, Vector};

/// Steps before the candidates are sorted.
const STEPS: usize = 16;

/// Writes, of each number x, what `image` makes of x and of the share that x's key has in `sum`, which is at least 0.
/// Infinite keys share the sum among them; a NaN makes all NaN.
#[inline(always)]
pub fn share<A: Arch, R: Number>(
    row: Row<'_, R>,
    sum: f64,
    room: &mut Vec<[R; CHUNK]>,
    key: impl Key,
    image: impl Image,
) {
    let top = largest::<A, R>(row.values(), key);
    if !top.to_f64().is_finite() {
        return share_equally(row, sum, top, key, image);
    }
    let least = R::from_f64(-sum);
    let least = if least.to_f64().is_finite() {
        least
    } else {
        R::from_f64(f32::MIN.into()) // of an f32, for which the sum is too large
    };
    let candidates = candidates::<A, R>(row.values(), top, least, room, key);
    let threshold = threshold::<A, R>(sum, candidates, least);
    if threshold.to_f64().is_nan() {
        return row.write(|_| threshold);
    }
    row.write(Shares {
        key,
        top,
        threshold,
        image,
    });
}

/// What becomes of a number and the share of its key.
pub trait Image: Copy {
    fn of<R: Real>(self, x: R, share: R) -> R;
}

/// The images, by the threshold.
#[derive(Clone, Copy)]
struct Shares<R, K, I> {
    key: K,
    top: R,
    threshold: R,
    image: I,
}

impl<R: Real, K: Key, I: Image> Each<R> for Shares<R, K, I> {
    #[inline(always)]
    fn of(self, x: R) -> R {
        let rest = (self.key.of(x) - self.top) - self.threshold;
        self.image.of(x, if rest > R::ZERO { rest } else { R::ZERO })
    }
}

/// The infinite keys among a row's share the sum, or all if all are as small as can be.
fn share_equally<R: Number>(row: Row<'_, R>, sum: f64, top: R, key: impl Key, image: impl Image) {
    let (mut nan, mut count) = (false, 0.0);
    for &x in row.values() {
        nan |= x.to_f64().is_nan();
        count += f64::from(u8::from(key.of(x) == top));
    }
    let share = R::from_f64(sum / count);
    row.write(|x| match nan {
        true => R::from_f64(f64::NAN),
        false => image.of(x, if key.of(x) == top { share } else { R::ZERO }),
    });
}

/// What to subtract from the candidates, NaN if one of them is; sorts them perhaps.
#[inline(always)]
fn threshold<A: Arch, R: Number>(sum: f64, candidates: &mut [[R; CHUNK]], least: R) -> R {
    let mut threshold = least;
    for _ in 0..STEPS {
        let before = threshold;
        threshold = step::<A, R>(sum, candidates.as_flattened(), before);
        let rises = threshold > before;
        if !rises {
            return threshold;
        }
    }
    threshold_by_sorting(sum, candidates.as_flattened_mut())
}

/// The threshold by those that are not below another one, which NaN is not.
#[inline(always)]
fn step<A: Arch, R: Number>(sum: f64, candidates: &[R], threshold: R) -> R {
    let above = Above(R::Vector::<A>::splat(threshold.to_f64()));
    let [total, count] = sums::<A, R, 2>(candidates, candidates, above);
    R::from_f64((total - sum) / count)
}

/// A number that is not below the threshold, and 1 for it.
#[derive(Clone, Copy)]
struct Above<V>(V);

impl<V: Vector> Terms<V, 2> for Above<V> {
    #[inline(always)]
    fn of(self, x: V, _: V) -> [V; 2] {
        let (zero, one) = (V::splat(0.0), V::splat(1.0));
        [x.if_less(self.0, zero, x), x.if_less(self.0, zero, one)]
    }
}

#[cold]
fn threshold_by_sorting<R: Number>(sum: f64, candidates: &mut [R]) -> R {
    candidates.sort_unstable_by(|a, b| b.to_f64().total_cmp(&a.to_f64()));
    let (mut threshold, mut total) = (f64::NEG_INFINITY, 0.0);
    for (x, count) in candidates.iter().zip(1_u32..) {
        total += x.to_f64();
        let next = (total - sum) / f64::from(count);
        if x.to_f64() <= next {
            break;
        }
        threshold = next;
    }
    R::from_f64(threshold)
}

/// The mean of a vector's elements where an image is not 0, each with the sign that it has there; NaN where all is 0.
#[inline(always)]
pub fn mean_on_support<A: Arch, R: Number>(image: &[R], vector: &[R]) -> f64 {
    let [total, count] = sums::<A, R, 2>(image, vector, OnSupport);
    total / count
}

/// Where the first number is not 0, the second with the sign of the first, and 1 for it.
#[derive(Clone, Copy)]
struct OnSupport;

impl<V: Vector> Terms<V, 2> for OnSupport {
    #[inline(always)]
    fn of(self, p: V, v: V) -> [V; 2] {
        let (zero, one) = (V::splat(0.0), V::splat(1.0));
        [
            p.if_less(zero, -v, zero.if_less(p, v, zero)),
            p.if_less(zero, one, zero.if_less(p, one, zero)),
        ]
    }
}

/// The distances from `top` of the keys in each chunk that has one of at least `least`, or NaN.
#[inline(always)]
fn candidates<'a, A: Arch, R: Number>(
    row: &[R],
    top: R,
    least: R,
    room: &'a mut Vec<[R; CHUNK]>,
    key: impl Key,
) -> &'a mut [[R; CHUNK]] {
    let most = row.len().div_ceil(CHUNK);
    if room.len() < most {
        *room = vec![[R::ZERO; CHUNK]; most]; // not `resize`, which writes: where nothing is kept, no memory is touched
    }
    let mut count = 0;
    let (chunks, rest) = row.as_chunks();
    for chunk in chunks {
        count += usize::from(keep::<A, R>(chunk, top, least, &mut room[count], key));
    }
    if !rest.is_empty() {
        let to = &mut room[count];
        let kept = keep::<A, R>(&filled(rest, R::ZERO), top, least, to, key);
        to[rest.len()..].fill(R::from_f64(f64::NEG_INFINITY)); // no candidates
        count += usize::from(kept);
    }
    &mut room[..count]
}

/// Writes the distances, and returns whether they are to be kept: else they are written over.
#[inline(always)]
fn keep<A: Arch, R: Number>(
    chunk: &[R; CHUNK],
    top: R,
    least: R,
    to: &mut [R; CHUNK],
    key: impl Key,
) -> bool {
    let [top, least] = [
        R::Vector::<A>::splat(top.to_f64()),
        R::Vector::<A>::splat(least.to_f64()),
    ];
    let mut below = 0;
    store::<A, R>(chunk, to, |x| {
        let distance = key.of_all(x) - top;
        below += distance.count_below(least);
        distance
    });
    below < CHUNK as u32
}
