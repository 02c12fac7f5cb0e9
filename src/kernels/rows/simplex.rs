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
        candidates(row.values(), top, R::from_f64(-self.sum), room);
        if room.is_empty() {
            return row.write(|_| R::ZERO); // the sum is 0
        }
        let threshold = self.threshold(room);
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
        let (images, image_rest) = image.as_chunks::<LANES>();
        let (vectors, vector_rest) = vector.as_chunks::<LANES>();
        let mut support = Support::default();
        for (image, vector) in images.iter().zip(vectors) {
            support.add(image, vector);
        }
        support.add(image_rest, vector_rest);
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

    /// What to subtract from the candidates, NaN if one of them is; sorts them perhaps.
    #[inline(always)]
    fn threshold(&self, candidates: &mut [f64]) -> f64 {
        let (mut threshold, mut before) = (f64::NEG_INFINITY, usize::MAX);
        for _ in 0..STEPS {
            let (total, count) = above(candidates, threshold);
            if count >= before {
                return threshold;
            }
            (threshold, before) = ((total - self.sum) / count as f64, count);
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
struct Support {
    totals: [f64; LANES],
    counts: [u32; LANES],
}

impl Default for Support {
    fn default() -> Self {
        Support {
            totals: [0.0; LANES],
            counts: [0; LANES],
        }
    }
}

impl Support {
    #[inline(always)]
    fn add<R: Real>(&mut self, image: &[R], vector: &[R]) {
        for (lane, (&p, &v)) in image.iter().zip(vector).enumerate() {
            let inside = p > R::ZERO;
            self.totals[lane] += if inside { v.to_f64() } else { 0.0 };
            self.counts[lane] += u32::from(inside);
        }
    }

    /// NaN where the support is empty.
    #[inline(always)]
    fn mean(self) -> f64 {
        fold(self.totals, |a, b| a + b) / f64::from(fold(self.counts, |a, b| a + b))
    }
}

/// The largest number; NaN does not count.
#[inline(always)]
fn largest<R: Real>(row: &[R]) -> R {
    let greater = |a: R, b: R| if b > a { b } else { a };
    let mut tops = [R::from_f64(f64::NEG_INFINITY); 2 * LANES];
    let (chunks, rest) = row.as_chunks::<{ 2 * LANES }>();
    for chunk in chunks {
        for (top, &x) in tops.iter_mut().zip(chunk) {
            *top = greater(*top, x);
        }
    }
    for (top, &x) in tops.iter_mut().zip(rest) {
        *top = greater(*top, x);
    }
    fold(tops, greater)
}

/// The distances from `top` that are greater than `least`, or NaN.
#[inline(always)]
fn candidates<R: Real>(row: &[R], top: R, least: R, to: &mut Vec<f64>) {
    to.clear();
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        let mut dropped = 0;
        for &x in chunk {
            dropped += u32::from(x - top <= least);
        }
        if dropped < LANES as u32 {
            gather(chunk, top, least, to);
        }
    }
    gather(rest, top, least, to);
}

/// As [`candidates`], of at most `LANES` numbers, without a branch for each.
#[inline(always)]
fn gather<R: Real>(chunk: &[R], top: R, least: R, to: &mut Vec<f64>) {
    let (mut found, mut count) = ([0.0; LANES], 0);
    for &x in chunk {
        let dropped = x - top <= least;
        found[count] = (x - top).to_f64();
        count += usize::from(!dropped);
    }
    to.extend_from_slice(&found[..count]);
}

/// The total of the numbers above a threshold, and how many these are; NaN is above all.
#[inline(always)]
fn above(values: &[f64], threshold: f64) -> (f64, usize) {
    let (mut totals, mut counts) = ([0.0; LANES], [0; LANES]);
    let mut add = |chunk: &[f64]| {
        for (lane, &x) in chunk.iter().enumerate() {
            let below = x <= threshold;
            totals[lane] += if below { 0.0 } else { x };
            counts[lane] += usize::from(!below);
        }
    };
    let (chunks, rest) = values.as_chunks::<LANES>();
    chunks.iter().for_each(|chunk| add(chunk));
    add(rest);
    (fold(totals, |a, b| a + b), fold(counts, |a, b| a + b))
}

/// All lanes as one, in halves.
#[inline(always)]
fn fold<T: Copy, const N: usize>(mut lanes: [T; N], with: impl Fn(T, T) -> T) -> T {
    let mut width = N;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = with(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}
