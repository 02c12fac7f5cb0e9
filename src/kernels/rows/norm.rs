//! The Euclidean projection onto a ball of the l2 norm, and what it takes away.

use std::ops::Range;

use super::lanes::{Number, sums, total};
use super::{Map, Room, Row, write};
use crate::kernels::matmul::Real;
use crate::kernels::vector::Arch;

/// Squares of norms that neither overflow nor lose digits, as f32 either, and have an inverse of the root there.
const SQUARES: Range<f64> = 1e-24..1e50;
/// Factors below this would lose digits as f32.
const LEAST_FACTOR: f64 = f32::MIN_POSITIVE as f64;

/// Onto the rows of at most this norm; or what that takes away, the proximal operator of the norm.
#[derive(Clone, Copy, Debug)]
pub struct L2Ball {
    pub radius: f64,
    pub rest: bool,
}

impl Map for L2Ball {
    #[inline(always)]
    fn forward<A: Arch, R: Number>(&self, row: Row<'_, R>, _: &mut Room<R>) {
        let norm = norm::<A, R>(row.values());
        if norm <= self.radius {
            return row.write(|x| if self.rest { R::ZERO } else { x });
        }
        if norm.is_infinite() {
            return self.beyond(row);
        }
        let kept = if self.rest {
            norm - self.radius
        } else {
            self.radius
        };
        let factor = kept / norm;
        if factor < LEAST_FACTOR {
            return row.write(|x: R| R::from_f64(x.to_f64() / norm * kept));
        }
        let factor = R::from_f64(factor);
        row.write(|x| x * factor);
    }

    /// The row tells. The same both ways.
    #[inline(always)]
    fn product<A: Arch, R: Number>(&self, told: &[R], vector: &[R], to: &mut [R], _: &mut Room<R>, _: bool) {
        let norm = norm::<A, R>(told);
        let inside = norm <= self.radius;
        if inside || norm.is_infinite() {
            return match inside == self.rest {
                true => to.fill(R::ZERO),
                false => to.copy_from_slice(vector),
            };
        }
        let (scale, inverse) = (self.radius / norm, norm.recip());
        let is_plain = SQUARES.contains(&(norm * norm));
        let along = match is_plain {
            true => sums::<A, R, 1>(told, vector, |x, v| [(x * inverse) * v])[0],
            false => product_of_scaled(told, inverse, vector),
        };
        let (along, across) = match self.rest {
            true => (scale * along, 1.0 - scale),
            false => (-(scale * along), scale),
        };
        match is_plain {
            true => combine::<R, R>(to, told, along, inverse, vector, across),
            false => combine::<R, f64>(to, told, along, inverse, vector, across),
        }
    }
}

/// Writes `across` times the vector and `along` times the unit vector that `inverse` makes of the row, computed in `W`.
#[inline(always)]
fn combine<R: Real, W: Real>(to: &mut [R], row: &[R], along: f64, inverse: f64, vector: &[R], across: f64) {
    let (along, across, inverse) = (W::from_f64(along), W::from_f64(across), W::from_f64(inverse));
    let wide = |x: R| W::from_f64(x.to_f64());
    write(to, row, vector, |x, v| {
        R::from_f64((wide(v) * across + (wide(x) * inverse) * along).to_f64())
    });
}

#[cold]
fn product_of_scaled<R: Real>(row: &[R], factor: f64, vector: &[R]) -> f64 {
    let pairs = row.iter().zip(vector);
    pairs.map(|(x, v)| (x.to_f64() * factor) * v.to_f64()).sum()
}

impl L2Ball {
    /// Of an infinite norm: infinite numbers share what is kept among them.
    #[cold]
    fn beyond<R: Real>(&self, row: Row<'_, R>) {
        let count = row.values().iter().filter(|x| x.to_f64().is_infinite()).count();
        if count == 0 {
            let (top, root) = scaled_norm(row.values());
            let image = |x: f64| x / top * (self.radius / root);
            return row.write(|x: R| match x.to_f64() {
                x if self.rest => R::from_f64(x - image(x)),
                x => R::from_f64(image(x)),
            });
        }
        let share = self.radius / (count as f64).sqrt();
        row.write(|x: R| match (x.to_f64().is_infinite(), self.rest) {
            (true, false) => R::from_f64(share.copysign(x.to_f64())),
            (false, false) => R::ZERO,
            (_, true) => x,
        });
    }
}

/// Of any size of the numbers.
#[inline(always)]
fn norm<A: Arch, R: Number>(row: &[R]) -> f64 {
    let square = total::<A, R>(row, |x| x * x);
    match SQUARES.contains(&square) {
        true => square.sqrt(),
        false => {
            let (top, root) = scaled_norm(row);
            top * root
        }
    }
}

/// The greatest size, and the norm over it.
#[cold]
fn scaled_norm<R: Real>(row: &[R]) -> (f64, f64) {
    let (mut top, mut nan) = (0.0_f64, false);
    for x in row {
        top = top.max(x.to_f64().abs());
        nan |= x.to_f64().is_nan();
    }
    if nan || top == 0.0 || top.is_infinite() {
        return (top, if nan { f64::NAN } else { 1.0 });
    }
    let square: f64 = row.iter().map(|x| (x.to_f64() / top).powi(2)).sum();
    (top, square.sqrt())
}
