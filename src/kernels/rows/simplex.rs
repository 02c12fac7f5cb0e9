//! The Euclidean projections onto a simplex, and onto a ball of the l1 norm, which is one in each orthant.

use super::lanes::{magnitude, signed, total};
use super::threshold::{mean_on_support, share};
use super::{Map, Room, Row};
use crate::kernels::matmul::Real;

/// Onto the rows of nonnegative numbers with this sum, which is at least 0. Infinite numbers share the sum among them;
/// a NaN makes its row NaN.
#[derive(Clone, Copy, Debug)]
pub struct Simplex {
    pub sum: f64,
}

impl Map for Simplex {
    #[inline(always)]
    fn forward<R: Real>(&self, row: Row<'_, R>, room: &mut Room) {
        share(row, self.sum, &mut room.numbers, |x| x, |_, share| share);
    }

    /// Among the support, what `vector` is more than its mean there. The image tells.
    #[inline(always)]
    fn product<R: Real>(&self, told: &[R], vector: &[R], to: &mut [R], _: &mut Room, _: bool) {
        if told[0].to_f64().is_nan() {
            return to.fill(told[0]);
        }
        let mean = R::from_f64(mean_on_support(told, vector, told, |v, _| v));
        for (to, (&p, &v)) in to.iter_mut().zip(told.iter().zip(vector)) {
            *to = if p > R::ZERO { v - mean } else { R::ZERO };
        }
    }
}

/// Onto the rows whose magnitudes have at most this sum; or what that takes away, the proximal operator of the l-inf
/// norm.
#[derive(Clone, Copy, Debug)]
pub struct L1Ball {
    pub radius: f64,
    pub rest: bool,
}

impl L1Ball {
    /// The row lies in the ball.
    #[inline(always)]
    fn holds<R: Real>(&self, row: &[R]) -> bool {
        total(row, f64::abs) <= self.radius
    }
}

impl Map for L1Ball {
    #[inline(always)]
    fn forward<R: Real>(&self, row: Row<'_, R>, room: &mut Room) {
        if self.holds(row.values()) {
            return row.write(|x| if self.rest { R::ZERO } else { x });
        }
        share(row, self.radius, &mut room.numbers, magnitude, |x, share| {
            let image = if share > R::ZERO { signed(share, x) } else { share };
            if self.rest { x - image } else { image }
        });
    }

    /// As on a simplex, with the signs of the row, which tells.
    #[inline(always)]
    fn product<R: Real>(&self, told: &[R], vector: &[R], to: &mut [R], room: &mut Room, _: bool) {
        if self.holds(told) {
            return match self.rest {
                true => to.fill(R::ZERO),
                false => to.copy_from_slice(vector),
            };
        }
        share(
            Row::Into(told, to),
            self.radius,
            &mut room.numbers,
            magnitude,
            |_, share| share,
        );
        if to[0].to_f64().is_nan() {
            return;
        }
        let mean = R::from_f64(mean_on_support(to, vector, told, signed));
        for (to, (&x, &v)) in to.iter_mut().zip(told.iter().zip(vector)) {
            let along = signed(mean, x);
            *to = match (*to > R::ZERO, self.rest) {
                (true, true) => along,
                (true, false) => v - along,
                (false, true) => v,
                (false, false) => R::ZERO,
            };
        }
    }
}
