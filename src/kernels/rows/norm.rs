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
        let (top, root) = parts_of_norm::<A, R>(row.values());
        let norm = top * root;
        if norm <= self.radius {
            return row.write(|x| if self.rest { R::ZERO } else { x });
        }
        if top.is_infinite() {
            return self.share(row);
        }
        if norm.is_infinite() {
            return self.beyond(row, top, root);
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
        let (top, root) = parts_of_norm::<A, R>(told);
        let inside = top * root <= self.radius;
        if inside || top.is_infinite() {
            return match inside == self.rest {
                true => to.fill(R::ZERO),
                false => to.copy_from_slice(vector),
            };
        }
        let (scale, inverse) = (self.radius / top / root, root.recip());
        let (is_plain, unit) = (top == 1.0, |x: f64| x / top * inverse);
        let along = match is_plain {
            true => sums::<A, R, 1>(told, vector, |x, v| [(x * inverse) * v])[0],
            false => product_of_units(told, unit, vector),
        };
        let (along, across) = match self.rest {
            true => (scale * along, 1.0 - scale),
            false => (-(scale * along), scale),
        };
        let plain = R::from_f64(inverse);
        match is_plain {
            true => combine(to, told, |x: R| x * plain, along, vector, across),
            false => combine(to, told, unit, along, vector, across),
        }
    }
}

/// Writes `across` times the vector and `along` times the unit vector of the row, computed in `W`.
#[inline(always)]
fn combine<R: Real, W: Real>(
    to: &mut [R],
    row: &[R],
    unit: impl Fn(W) -> W,
    along: f64,
    vector: &[R],
    across: f64,
) {
    let (along, across) = (W::from_f64(along), W::from_f64(across));
    let wide = |x: R| W::from_f64(x.to_f64());
    write(to, row, vector, |x, v| {
        R::from_f64((wide(v) * across + unit(wide(x)) * along).to_f64())
    });
}

#[cold]
fn product_of_units<R: Real>(row: &[R], unit: impl Fn(f64) -> f64, vector: &[R]) -> f64 {
    let pairs = row.iter().zip(vector);
    pairs.map(|(x, v)| unit(x.to_f64()) * v.to_f64()).sum()
}

impl L2Ball {
    /// Of finite numbers with a norm beyond the range.
    #[cold]
    fn beyond<R: Real>(&self, row: Row<'_, R>, top: f64, root: f64) {
        let image = |x: f64| x / top * (self.radius / root);
        row.write(|x: R| match x.to_f64() {
            x if self.rest => R::from_f64(x - image(x)),
            x => R::from_f64(image(x)),
        });
    }

    /// Infinite numbers share the norm among them.
    #[cold]
    fn share<R: Real>(&self, row: Row<'_, R>) {
        let count = row.values().iter().filter(|x| x.to_f64().is_infinite()).count();
        let share = self.radius / (count as f64).sqrt();
        row.write(|x: R| match (x.to_f64().is_infinite(), self.rest) {
            (true, false) => R::from_f64(share.copysign(x.to_f64())),
            (false, false) => R::ZERO,
            (_, true) => x,
        });
    }
}

/// Two factors of the norm, of which neither is beyond the range: 1 and the norm, where its square is not either.
#[inline(always)]
fn parts_of_norm<A: Arch, R: Number>(row: &[R]) -> (f64, f64) {
    let square = total::<A, R>(row, |x| x * x);
    match SQUARES.contains(&square) {
        true => (1.0, square.sqrt()),
        false => scaled_norm(row),
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
        return (if nan { f64::NAN } else { top }, 1.0);
    }
    let square: f64 = row.iter().map(|x| (x.to_f64() / top).powi(2)).sum();
    (top, square.sqrt())
}
