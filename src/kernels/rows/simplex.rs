//! The Euclidean projection onto a simplex: `max(x - t, 0)`, with the one `t` that gives the sum.
//!
//! No element further below the largest than the sum is in the support, which leaves few candidates. On them,
//! `t = (total of those above t - sum) / (their number)` is solved by Newton's steps, which end as soon as none falls
//! out any more: usually after some four (Michelot, J. Optim. Theory Appl. 50, 1986). Sorting (Held, Wolfe and Crowder,
//! Math. Program. 6, 1974) takes over where that goes on for long, as it does on geometric series.

use super::{Map, Row};
use crate::kernels::matmul::Real;

/// Steps before the candidates are sorted.
const STEPS: usize = 16;
/// Elements that are looked at together, so many that this takes few instructions for each.
const CHUNK: usize = 64;
/// Sums are taken in so many lanes, whatever the instruction set; a power of two.
const LANES: usize = 16;

/// Onto the rows of nonnegative numbers with this sum, which is at least 0. Infinite numbers share the sum among them;
/// a NaN makes its row NaN.
#[derive(Clone, Copy, Debug)]
pub struct Simplex {
    pub sum: f64,
}

impl Map for Simplex {
    #[inline(always)]
    fn forward<R: Real>(&self, row: Row<'_, R>, room: &mut Vec<f64>) {
        let top = largest(row.values());
        if !top.to_f64().is_finite() {
            return self.share(row, top);
        }
        // Distances from the largest rather than the numbers themselves: they are exact where it matters.
        let least = R::from_f64(-self.sum);
        let candidates = candidates(row.values(), top, least, room);
        if candidates.is_empty() {
            return row.write(|_| R::ZERO); // the sum is 0
        }
        let threshold = self.threshold(candidates, least.to_f64());
        if threshold.is_nan() {
            return row.write(|_| R::from_f64(f64::NAN));
        }
        let threshold = R::from_f64(threshold);
        row.write(|x| {
            let rest = (x - top) - threshold;
            if rest > R::ZERO { rest } else { R::ZERO }
        });
    }

    /// Among the support, what `vector` is more than its mean there.
    #[inline(always)]
    fn vjp<R: Real>(&self, image: &[R], vector: &[R], to: &mut [R]) {
        if image[0].to_f64().is_nan() {
            return to.fill(image[0]);
        }
        let (images, image_rest) = image.as_chunks();
        let (vectors, vector_rest) = vector.as_chunks();
        let mut support = Support::default();
        for (image, vector) in images.iter().zip(vectors) {
            support.add(image, vector);
        }
        if !image_rest.is_empty() {
            support.add(&filled(image_rest, R::ZERO), &filled(vector_rest, R::ZERO));
        }
        let mean = R::from_f64(support.mean());
        for (to, (&p, &v)) in to.iter_mut().zip(image.iter().zip(vector)) {
            *to = if p > R::ZERO { v - mean } else { R::ZERO };
        }
    }
}

impl Simplex {
    /// The infinite numbers among a row's share the sum, or all if all are as small as can be.
    fn share<R: Real>(&self, row: Row<'_, R>, top: R) {
        let (mut nan, mut count) = (false, 0.0);
        for &x in row.values() {
            nan |= x.to_f64().is_nan();
            count += f64::from(u8::from(x == top));
        }
        let share = R::from_f64(if nan { f64::NAN } else { self.sum / count });
        row.write(|x| if nan || x == top { share } else { R::ZERO });
    }

    /// What to subtract from the candidates greater than `least`, NaN if one of them is; sorts them perhaps.
    #[inline(always)]
    fn threshold(&self, candidates: &mut [f64], least: f64) -> f64 {
        let (chunks, _) = candidates.as_chunks();
        let (mut threshold, mut before) = (least, f64::INFINITY);
        for _ in 0..STEPS {
            let (total, count) = above(chunks, threshold);
            if count >= before {
                return threshold;
            }
            (threshold, before) = ((total - self.sum) / count, count);
        }
        self.threshold_by_sorting(candidates)
    }

    #[cold]
    fn threshold_by_sorting(&self, candidates: &mut [f64]) -> f64 {
        candidates.sort_unstable_by(|a, b| b.total_cmp(a));
        let (mut threshold, mut total) = (f64::NEG_INFINITY, 0.0);
        for (&x, count) in candidates.iter().zip(1_u32..) {
            total += x;
            let next = (total - self.sum) / f64::from(count);
            if x <= next {
                break;
            }
            threshold = next;
        }
        threshold
    }
}

/// Of a vector's elements where the image is in the support.
#[derive(Default)]
struct Support {
    totals: [f64; LANES],
    count: usize,
}

impl Support {
    #[inline(always)]
    fn add<R: Real>(&mut self, image: &[R; CHUNK], vector: &[R; CHUNK]) {
        let mut count = 0;
        for &p in image {
            count += u32::from(p > R::ZERO);
        }
        if count == 0 {
            return;
        }
        self.count += count as usize;
        let mut inside = [0.0; CHUNK];
        for (inside, (&p, &v)) in inside.iter_mut().zip(image.iter().zip(vector)) {
            *inside = (if p > R::ZERO { v } else { R::ZERO }).to_f64();
        }
        for (total, sum) in self.totals.iter_mut().zip(folded(inside, |a, b| a + b)) {
            *total += sum;
        }
    }

    /// NaN where the support is empty.
    #[inline(always)]
    fn mean(self) -> f64 {
        fold(self.totals, |a, b| a + b) / self.count as f64
    }
}

/// The largest number; NaN does not count.
#[inline(always)]
fn largest<R: Real>(row: &[R]) -> R {
    let greater = |a: R, b: R| if b > a { b } else { a };
    let mut tops = [R::from_f64(f64::NEG_INFINITY); LANES];
    let (chunks, rest) = row.as_chunks::<CHUNK>();
    for chunk in chunks {
        for (top, x) in tops.iter_mut().zip(folded(*chunk, greater)) {
            *top = greater(*top, x);
        }
    }
    for part in rest.chunks(LANES) {
        for (top, &x) in tops.iter_mut().zip(part) {
            *top = greater(*top, x);
        }
    }
    fold(tops, greater)
}

/// The distances from `top` of the elements around each that is greater than `least`, or NaN; `LANES` at a time.
#[inline(always)]
fn candidates<'a, R: Real>(row: &[R], top: R, least: R, room: &'a mut Vec<f64>) -> &'a mut [f64] {
    let most = row.len() + LANES;
    if room.len() < most {
        *room = vec![0.0; most]; // not `resize`, which writes: where nothing is kept, no memory is touched
    }
    let mut count = 0;
    // Without a branch, which could not be foreseen: what is not kept is written over.
    let mut keep = |part: &[R; LANES]| {
        for (to, &x) in room[count..count + LANES].iter_mut().zip(part) {
            *to = (x - top).to_f64();
        }
        count += LANES * usize::from(any_above(part, top, least));
    };
    let (chunks, rest) = row.as_chunks::<CHUNK>();
    for chunk in chunks {
        if any_above(chunk, top, least) {
            chunk.as_chunks().0.iter().for_each(&mut keep);
        }
    }
    let (parts, rest) = rest.as_chunks();
    parts.iter().for_each(&mut keep);
    if !rest.is_empty() {
        keep(&filled(rest, R::from_f64(f64::NEG_INFINITY)));
    }
    &mut room[..count]
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

/// A few numbers, and others behind them.
#[inline(always)]
fn filled<R: Real, const N: usize>(few: &[R], other: R) -> [R; N] {
    let mut all = [other; N];
    all[..few.len()].copy_from_slice(few);
    all
}

/// All lanes as one.
#[inline(always)]
fn fold<T: Copy>(lanes: [T; LANES], with: impl Fn(T, T) -> T + Copy) -> T {
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
