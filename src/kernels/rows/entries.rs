//! Functions of each number by itself.

use super::lanes::{Number, magnitude};
use super::{Map, Room, Row, write};
use crate::kernels::vector::Arch;

/// Onto the numbers between two bounds, of which `low` is not the greater one.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    pub low: f64,
    pub high: f64,
}

impl Map for Clip {
    const BY_ENTRY: bool = true;

    #[inline(always)]
    fn forward<A: Arch, R: Number>(&self, row: Row<'_, R>, _: &mut Room<R>) {
        let [low, high] = [self.low, self.high].map(R::from_f64);
        row.write(|x| {
            let x = if x < low { low } else { x };
            if x > high { high } else { x }
        });
    }

    /// The row tells, which rounds otherwise than the bounds.
    #[inline(always)]
    fn product<A: Arch, R: Number>(&self, told: &[R], vector: &[R], to: &mut [R], _: &mut Room<R>, _: bool) {
        let [low, high] = [self.low, self.high].map(R::from_f64);
        write(to, told, vector, |x, v| {
            let outside = x <= low || x >= high;
            if x.to_f64().is_nan() {
                x
            } else if outside {
                R::ZERO
            } else {
                v
            }
        });
    }
}

/// Magnitudes less a threshold, but not below 0, times a factor; negative numbers become 0, if it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Shrink {
    pub threshold: f64,
    pub factor: f64,
    pub nonnegative: bool,
}

impl Map for Shrink {
    const BY_ENTRY: bool = true;

    #[inline(always)]
    fn forward<A: Arch, R: Number>(&self, row: Row<'_, R>, _: &mut Room<R>) {
        let [threshold, factor] = [self.threshold, self.factor].map(R::from_f64);
        row.write(|x| {
            let size = if self.nonnegative { x } else { magnitude(x) };
            let rest = size - threshold;
            let rest = if rest < R::ZERO { R::ZERO } else { rest } * factor;
            if x < R::ZERO { R::ZERO - rest } else { rest }
        });
    }

    /// The image tells, but where nothing is cut off.
    #[inline(always)]
    fn product<A: Arch, R: Number>(&self, told: &[R], vector: &[R], to: &mut [R], _: &mut Room<R>, _: bool) {
        let factor = R::from_f64(self.factor);
        let linear = self.threshold == 0.0 && !self.nonnegative;
        write(to, told, vector, |y, v| {
            let kept = if linear || y != R::ZERO {
                v * factor
            } else {
                R::ZERO
            };
            if y.to_f64().is_nan() { y } else { kept }
        });
    }
}
