//! Numbers less a threshold, `max(x - t, 0)`, with the one `t` that gives the sum: what projections onto simplices and
//! onto balls of the l1 norm have in common.
//!
//! No number further below the largest than the sum is in the support, which leaves few candidates. On them,
//! `t = (total of those above t - sum) / (their number)` is solved by Newton's steps, which end as soon as none falls
//! out any more: usually after some four (Michelot, J. Optim. Theory Appl. 50, 1986). Sorting (Held, Wolfe and Crowder,
//! Math. Program. 6, 1974) takes over where that goes on for long, as it does on geometric series.

use super::Row;
use super::lanes::{CHUNK, LANES, add, filled, fold, keys, largest};
use crate::kernels::matmul::Real;

/// Steps before the candidates are sorted.
const STEPS: usize = 16;

/// Writes, of each number x, what `image` makes of x and of the share that x's key has in `sum`, which is at least 0.
/// Infinite keys share the sum among them; a NaN makes all shares NaN.
#[inline(always)]
pub fn share<R: Real>(
    row: Row<'_, R>,
    sum: f64,
    room: &mut Vec<f64>,
    key: impl Fn(R) -> R + Copy,
    image: impl Fn(R, R) -> R,
) {
    let top = largest(row.values(), key);
    if !top.to_f64().is_finite() {
        return share_equally(row, sum, top, key, image);
    }
    // Distances from the largest rather than the numbers themselves: they are exact where it matters.
    let least = R::from_f64(-sum);
    let candidates = candidates(row.values(), top, least, room, key);
    if candidates.is_empty() {
        return row.write(|x| image(x, R::ZERO)); // the sum is 0
    }
    let threshold = threshold(sum, candidates, least.to_f64());
    if threshold.is_nan() {
        let nan = R::from_f64(f64::NAN);
        return row.write(|x| image(x, nan));
    }
    let threshold = R::from_f64(threshold);
    row.write(|x| {
        let rest = (key(x) - top) - threshold;
        image(x, if rest > R::ZERO { rest } else { R::ZERO })
    });
}

/// The infinite keys among a row's share the sum, or all if all are as small as can be.
fn share_equally<R: Real>(
    row: Row<'_, R>,
    sum: f64,
    top: R,
    key: impl Fn(R) -> R,
    image: impl Fn(R, R) -> R,
) {
    let (mut nan, mut count) = (false, 0.0);
    for &x in row.values() {
        nan |= x.to_f64().is_nan();
        count += f64::from(u8::from(key(x) == top));
    }
    let share = R::from_f64(if nan { f64::NAN } else { sum / count });
    row.write(|x| image(x, if nan || key(x) == top { share } else { R::ZERO }));
}

/// What to subtract from the candidates greater than `least`, NaN if one of them is; sorts them perhaps.
#[inline(always)]
fn threshold(sum: f64, candidates: &mut [f64], least: f64) -> f64 {
    let (chunks, _) = candidates.as_chunks();
    let (mut threshold, mut before) = (least, f64::INFINITY);
    for _ in 0..STEPS {
        let (total, count) = above(chunks, threshold);
        if count >= before {
            return threshold;
        }
        (threshold, before) = ((total - sum) / count, count);
    }
    threshold_by_sorting(sum, candidates)
}

#[cold]
fn threshold_by_sorting(sum: f64, candidates: &mut [f64]) -> f64 {
    candidates.sort_unstable_by(|a, b| b.total_cmp(a));
    let (mut threshold, mut total) = (f64::NEG_INFINITY, 0.0);
    for (&x, count) in candidates.iter().zip(1_u32..) {
        total += x;
        let next = (total - sum) / f64::from(count);
        if x <= next {
            break;
        }
        threshold = next;
    }
    threshold
}

/// The mean of what `part` makes of a vector's elements and those of `like`, where shares are positive; NaN where none
/// is.
#[inline(always)]
pub fn mean_on_support<R: Real>(
    shares: &[R],
    vector: &[R],
    like: &[R],
    part: impl Fn(R, R) -> R + Copy,
) -> f64 {
    let (chunks, rest) = shares.as_chunks();
    let ((vectors, vector_rest), (likes, like_rest)) = (vector.as_chunks(), like.as_chunks());
    let mut support = Support::default();
    for (shares, (vector, like)) in chunks.iter().zip(vectors.iter().zip(likes)) {
        support.add(shares, vector, like, part);
    }
    if !rest.is_empty() {
        let [shares, vector, like] = [rest, vector_rest, like_rest].map(|few| filled(few, R::ZERO));
        support.add(&shares, &vector, &like, part);
    }
    support.mean()
}

/// Of a vector's elements where the share is positive.
#[derive(Default)]
struct Support {
    totals: [f64; LANES],
    count: usize,
}

impl Support {
    #[inline(always)]
    fn add<R: Real>(
        &mut self,
        shares: &[R; CHUNK],
        vector: &[R; CHUNK],
        like: &[R; CHUNK],
        part: impl Fn(R, R) -> R,
    ) {
        let mut count = 0;
        for &p in shares {
            count += u32::from(p > R::ZERO);
        }
        if count == 0 {
            return;
        }
        self.count += count as usize;
        add(&mut self.totals, |i| {
            let part = part(vector[i], like[i]);
            (if shares[i] > R::ZERO { part } else { R::ZERO }).to_f64()
        });
    }

    /// NaN where the support is empty.
    #[inline(always)]
    fn mean(self) -> f64 {
        fold(self.totals, |a, b| a + b) / self.count as f64
    }
}

/// The distances from `top` of the keys around each that is greater than `least`, or NaN; `LANES` at a time.
#[inline(always)]
fn candidates<'a, R: Real>(
    row: &[R],
    top: R,
    least: R,
    room: &'a mut Vec<f64>,
    key: impl Fn(R) -> R + Copy,
) -> &'a mut [f64] {
    let most = row.len() + LANES;
    if room.len() < most {
        *room = vec![0.0; most]; // not `resize`, which writes: where nothing is kept, no memory is touched
    }
    let mut count = 0;
    let (chunks, rest) = row.as_chunks::<CHUNK>();
    for chunk in chunks {
        let chunk = keys(chunk, key);
        if any_above(&chunk, top, least) {
            for part in chunk.as_chunks().0 {
                count += keep(part, top, least, &mut room[count..]);
            }
        }
    }
    let (parts, rest) = rest.as_chunks::<LANES>();
    for part in parts {
        count += keep(&keys(part, key), top, least, &mut room[count..]);
    }
    if !rest.is_empty() {
        let mut last = keys(&filled(rest, R::ZERO), key);
        last[rest.len()..].fill(R::from_f64(f64::NEG_INFINITY)); // no candidates
        count += keep(&last, top, least, &mut room[count..]);
    }
    &mut room[..count]
}

/// Writes the distances from `top`, and returns how many of them are to be kept: all or none. Without a branch, which
/// could not be foreseen: what is not kept is written over.
#[inline(always)]
fn keep<R: Real>(part: &[R; LANES], top: R, least: R, to: &mut [f64]) -> usize {
    for (to, &x) in to[..LANES].iter_mut().zip(part) {
        *to = (x - top).to_f64();
    }
    LANES * usize::from(any_above(part, top, least))
}

#[inline(always)]
fn any_above<R: Real, const N: usize>(chunk: &[R; N], top: R, least: R) -> bool {
    let mut any = 0;
    for &x in chunk {
        let below = x - top <= least;
        any |= u32::from(!below);
    }
    any != 0
}

/// The total of the numbers above a threshold, and how many these are; NaN is above all.
#[inline(always)]
fn above(chunks: &[[f64; LANES]], threshold: f64) -> (f64, f64) {
    let (mut totals, mut counts) = ([0.0; LANES], [0.0; LANES]);
    for chunk in chunks {
        for (lane, &x) in chunk.iter().enumerate() {
            let below = x <= threshold;
            totals[lane] += if below { 0.0 } else { x };
            counts[lane] += if below { 0.0 } else { 1.0 };
        }
    }
    (fold(totals, |a, b| a + b), fold(counts, |a, b| a + b))
}
