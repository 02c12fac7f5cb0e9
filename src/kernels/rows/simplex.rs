//! The Euclidean projections onto a simplex, and onto a ball of the l1 norm, which is one in each orthant.

use super::lanes::{Itself, Magnitude, Number, signed, total};
use super::threshold::{Image, mean_on_support, share};
use super::{Map, Room, Row, update, write};
use crate::kernels::matmul::Real;
use crate::kernels::vector::{Arch, Vector};

/// Onto the rows of nonnegative numbers with this sum, which is at least 0. Infinite numbers share the sum among them;
/// a NaN makes its row NaN.
#[derive(Clone, Copy, Debug)]
pub struct Simplex {
    pub sum: f64,
}

impl Map for Simplex {
    #[inline(always)]
    fn forward<A: Arch, R: Number>(&self, row: Row<'_, R>, room: &mut Room<R>) {
        share::<A, R>(row, self.sum, &mut room.candidates, Itself, Share);
    }

    /// Among the support, what `vector` is more than its mean there. The image tells.
    #[inline(always)]
    fn product<A: Arch, R: Number>(&self, told: &[R], vector: &[R], to: &mut [R], _: &mut Room<R>, _: bool) {
        if told[0].to_f64().is_nan() {
            return to.fill(told[0]);
        }
        let mean = R::from_f64(mean_on_support::<A, R>(told, vector));
        write(
            to,
            told,
            vector,
            |p, v| if p != R::ZERO { v - mean } else { R::ZERO },
        );
    }
}

/// The share itself.
#[derive(Clone, Copy)]
struct Share;

impl Image for Share {
    #[inline(always)]
    fn of<R: Real>(self, _: R, share: R) -> R {
        share
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
    fn holds<A: Arch, R: Number>(&self, row: &[R]) -> bool {
        total::<A, R>(row, |x| x.abs()) <= self.radius
    }
}

/// The share with the number's sign, or what that leaves of the number.
#[derive(Clone, Copy)]
struct Signed {
    rest: bool,
}

impl Image for Signed {
    #[inline(always)]
    fn of<R: Real>(self, x: R, share: R) -> R {
        let image = signed(share, x);
        let rest = x - image;
        if self.rest { rest } else { image }
    }
}

impl Map for L1Ball {
    #[inline(always)]
    fn forward<A: Arch, R: Number>(&self, row: Row<'_, R>, room: &mut Room<R>) {
        if self.holds::<A, R>(row.values()) {
            return row.write(|x| if self.rest { R::ZERO } else { x });
        }
        share::<A, R>(
            row,
            self.radius,
            &mut room.candidates,
            Magnitude,
            Signed { rest: self.rest },
        );
    }

    /// As on a simplex, with the signs of the row, which tells.
    #[inline(always)]
    fn product<A: Arch, R: Number>(
        &self,
        told: &[R],
        vector: &[R],
        to: &mut [R],
        room: &mut Room<R>,
        _: bool,
    ) {
        if self.holds::<A, R>(told) {
            return match self.rest {
                true => to.fill(R::ZERO),
                false => to.copy_from_slice(vector),
            };
        }
        let row = Row::Into(told, &mut *to);
        share::<A, R>(
            row,
            self.radius,
            &mut room.candidates,
            Magnitude,
            Signed { rest: false },
        );
        if to[0].to_f64().is_nan() {
            return;
        }
        let (mean, is_rest) = (R::from_f64(mean_on_support::<A, R>(to, vector)), self.rest);
        update(to, vector, |p, v| {
            let along = signed(mean, p);
            let (inside, outside) = if is_rest { (along, v) } else { (v - along, R::ZERO) };
            if p != R::ZERO { inside } else { outside }
        });
    }
}
