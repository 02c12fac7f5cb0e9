//! The Euclidean projections onto a hyperplane `a.x = b` and onto the halfspace below it.

use super::lanes::{Number, dot};
use super::{Map, Room, Row};
use crate::kernels::vector::Arch;
use crate::kernels::vector::portable::Portable;

/// Onto the hyperplane, or the halfspace `a.x <= b`; `normal` is not 0.
#[derive(Clone, Debug)]
pub struct Plane {
    normal: Vec<f64>,
    square: f64,
    offset: f64,
    half: bool,
}

impl Plane {
    /// None where the normal has no finite square that is positive.
    pub fn new(normal: Vec<f64>, offset: f64, half: bool) -> Option<Plane> {
        let square = dot::<Portable, f64>(&normal, &normal);
        let plane = Plane {
            normal,
            square,
            offset,
            half,
        };
        (square > 0.0 && square.is_finite()).then_some(plane)
    }

    pub fn row_len(&self) -> usize {
        self.normal.len()
    }

    /// How far along the normal what has this product with it is to go, if at all.
    #[inline(always)]
    fn distance<A: Arch, R: Number>(&self, row: &[R]) -> Option<f64> {
        let excess = dot::<A, R>(row, &self.normal) - self.offset;
        let inside = self.half && excess <= 0.0;
        (!inside).then_some(excess / self.square)
    }
}

impl Map for Plane {
    #[inline(always)]
    fn forward<A: Arch, R: Number>(&self, row: Row<'_, R>, _: &mut Room<R>) {
        match self.distance::<A, R>(row.values()) {
            Some(t) => row.write_by(&self.normal, |x, a| R::from_f64(x.to_f64() - a * t)),
            None => row.write(|x| x),
        }
    }

    /// The row tells. The same both ways.
    #[inline(always)]
    fn product<A: Arch, R: Number>(&self, told: &[R], vector: &[R], to: &mut [R], _: &mut Room<R>, _: bool) {
        if self.distance::<A, R>(told).is_none() {
            return to.copy_from_slice(vector);
        }
        let t = dot::<A, R>(vector, &self.normal) / self.square;
        Row::Into(vector, to).write_by(&self.normal, |v, a| R::from_f64(v.to_f64() - a * t));
    }
}
