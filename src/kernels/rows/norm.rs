//! The Euclidean projection onto a ball of the l2 norm, and what it takes away.

use super::lanes::{dot, largest, magnitude, total};
use super::{Map, Room, Row};
use crate::kernels::matmul::Real;

/// Squares of norms below this have lost digits, or may have.
const LEAST_SQUARE: f64 = 1e-280;
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
    fn forward<R: Real>(&self, row: Row<'_, R>, _: &mut Room) {
        let norm = norm(row.values());
        if norm <= self.radius {
            return row.write(|x| if self.rest { R::ZERO } else { x });
        }
        if norm.is_infinite() {
            return self.share(row);
        }
        let kept = if self.rest {
            norm - self.radius
        } else {
            self.radius
        };
        let factor = kept / norm;
        if factor < LEAST_FACTOR {
            return row.write(|x| R::from_f64(x.to_f64() * factor));
        }
        let factor = R::from_f64(factor);
        row.write(|x| x * factor);
    }

    /// The row tells. The same both ways.
    #[inline(always)]
    fn product<R: Real>(&self, told: &[R], vector: &[R], to: &mut [R], _: &mut Room, _: bool) {
        let norm = norm(told);
        let inside = norm <= self.radius;
        if inside || norm.is_infinite() {
            return match inside == self.rest {
                true => to.fill(R::ZERO),
                false => to.copy_from_slice(vector),
            };
        }
        let (scale, inverse) = (self.radius / norm, norm.recip());
        let radial = scale * (dot(told, vector) * inverse);
        let (along, across) = match self.rest {
            true => (radial, 1.0 - scale),
            false => (-radial, scale),
        };
        for (to, (x, v)) in to.iter_mut().zip(told.iter().zip(vector)) {
            *to = R::from_f64(v.to_f64() * across + (x.to_f64() * inverse) * along);
        }
    }
}

impl L2Ball {
    /// Infinite numbers share the norm among them.
    #[cold]
    fn share<R: Real>(&self, row: Row<'_, R>) {
        let count = total(row.values(), |x| f64::from(u8::from(x.is_infinite())));
        let share = self.radius / count.sqrt();
        row.write(|x| match (x.to_f64().is_infinite(), self.rest) {
            (true, false) => R::from_f64(share.copysign(x.to_f64())),
            (false, false) => R::ZERO,
            (_, true) => x,
        });
    }
}

/// Of any size of the numbers.
#[inline(always)]
fn norm<R: Real>(row: &[R]) -> f64 {
    let square = total(row, |x| x * x);
    match square.is_finite() && square >= LEAST_SQUARE {
        true => square.sqrt(),
        false => norm_by_scaling(row, square),
    }
}

#[cold]
fn norm_by_scaling<R: Real>(row: &[R], square: f64) -> f64 {
    let top = largest(row, magnitude).to_f64();
    if square.is_nan() || top == 0.0 || top.is_infinite() {
        return if square.is_nan() { square } else { top };
    }
    top * total(row, |x| (x / top) * (x / top)).sqrt()
}
