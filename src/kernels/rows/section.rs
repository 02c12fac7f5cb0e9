//! The Euclidean projection onto the part of a box where weights give a sum: `clip(x - t w)`, with a `t` that gives it.

use super::lanes::Number;
use super::{Map, Room, Row};
use crate::kernels::matmul::Real;
use crate::kernels::vector::Arch;

/// Onto the rows between `low` and `high` whose inner product with the weights is `sum`.
#[derive(Clone, Debug)]
pub struct Section {
    low: Vec<f64>,
    high: Vec<f64>,
    weights: Vec<f64>,
    sum: f64,
}

impl Section {
    /// None where the box has no such rows. All have one length; bounds are finite, `low` not above `high`.
    pub fn new(low: Vec<f64>, high: Vec<f64>, weights: Vec<f64>, sum: f64) -> Option<Section> {
        let (mut least, mut most) = (0.0, 0.0);
        for (&w, (&low, &high)) in weights.iter().zip(low.iter().zip(&high)) {
            let (a, b) = (w * low, w * high);
            least += a.min(b);
            most += a.max(b);
        }
        let section = Section {
            low,
            high,
            weights,
            sum,
        };
        (least <= sum && sum <= most).then_some(section)
    }

    pub fn row_len(&self) -> usize {
        self.weights.len()
    }

    /// The number `x`, at place `i`, for a `t`: its image, and whether it moves with `t`.
    fn image(&self, i: usize, x: f64, t: f64) -> (f64, bool) {
        let moved = x - t * self.weights[i];
        let image = moved.clamp(self.low[i], self.high[i]);
        (image, self.low[i] < moved && moved < self.high[i])
    }

    fn total<R: Real>(&self, row: &[R], t: f64) -> f64 {
        row.iter()
            .enumerate()
            .map(|(i, x)| self.weights[i] * self.image(i, x.to_f64(), t).0)
            .sum()
    }

    /// The `t`: the total falls in it, linearly between the points where a number meets a bound.
    fn solve<R: Real>(&self, row: &[R], bends: &mut Vec<f64>) -> f64 {
        bends.clear();
        for (i, x) in row.iter().enumerate().filter(|&(i, _)| self.weights[i] != 0.0) {
            let bend = |bound: f64| (x.to_f64() - bound) / self.weights[i];
            bends.extend([bend(self.low[i]), bend(self.high[i])]);
        }
        bends.sort_unstable_by(f64::total_cmp);
        let next = bends.partition_point(|&t| self.total(row, t) > self.sum);
        let (Some(&before), Some(&after)) = (next.checked_sub(1).and_then(|i| bends.get(i)), bends.get(next))
        else {
            // All lies at bounds there.
            return bends.get(next).or(bends.last()).copied().unwrap_or(0.0);
        };
        let middle = before / 2.0 + after / 2.0;
        let (mut fixed, mut free, mut square) = (0.0, 0.0, 0.0);
        for (i, x) in row.iter().enumerate() {
            let (image, moves) = self.image(i, x.to_f64(), middle);
            match moves {
                true => {
                    free += self.weights[i] * x.to_f64();
                    square += self.weights[i] * self.weights[i];
                }
                false => fixed += self.weights[i] * image,
            }
        }
        match square > 0.0 {
            true => ((fixed + free - self.sum) / square).clamp(before, after),
            false => after,
        }
    }
}

impl Map for Section {
    fn forward<A: Arch, R: Number>(&self, mut row: Row<'_, R>, room: &mut Room<R>) {
        if row.values().iter().any(|x| !x.to_f64().is_finite()) {
            return row.to().fill(R::from_f64(f64::NAN));
        }
        let t = self.solve(row.values(), &mut room.numbers);
        for i in 0..self.row_len() {
            let image = self.image(i, row.values()[i].to_f64(), t).0;
            row.to()[i] = R::from_f64(image);
        }
    }

    /// Of what moves, the part across the weights; the row tells. The same both ways.
    fn product<A: Arch, R: Number>(
        &self,
        told: &[R],
        vector: &[R],
        to: &mut [R],
        room: &mut Room<R>,
        _: bool,
    ) {
        if told.iter().any(|x| !x.to_f64().is_finite()) {
            return to.fill(R::from_f64(f64::NAN));
        }
        let t = self.solve(told, &mut room.numbers);
        let (mut along, mut square) = (0.0, 0.0);
        for (i, (&x, v)) in told.iter().zip(vector).enumerate() {
            if self.image(i, x.to_f64(), t).1 {
                along += self.weights[i] * v.to_f64();
                square += self.weights[i] * self.weights[i];
            }
        }
        let mean = if square > 0.0 { along / square } else { 0.0 };
        for (i, (to, v)) in to.iter_mut().zip(vector).enumerate() {
            let moves = self.image(i, told[i].to_f64(), t).1;
            *to = R::from_f64(if moves {
                v.to_f64() - self.weights[i] * mean
            } else {
                0.0
            });
        }
    }
}
