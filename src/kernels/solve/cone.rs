//! The least of a convex quadratic form of numbers that are not negative, by an active set: Wolfe's method as in
//! [`super::simplex`], on the linear hull instead of the affine one.

use ndarray::{Array1, ArrayView2};

use super::Status;
use super::differences::Differences;

/// Of the slopes, in units of what they are sums of.
const TOLERANCE: f64 = 4e-15;
/// Multiplications in a step, by which the points of a start join the hull.
const WORK: usize = 1 << 20;

/// `w^T products w / 2 + linear^T w`. The last point is zero, and its weight, which may be anything, 0: the differences
/// to it are the points.
pub struct ConeQp {
    pub weights: Array1<f64>,
    linear: Array1<f64>,
    slopes: Array1<f64>,
    hull: Differences,
    /// Points with a weight that are not in the hull yet.
    waiting: Vec<usize>,
    /// Whether the weights are the best ones of the hull's points, as far as is known.
    is_level: bool,
    least: f64,
    /// Steps since the value was the least.
    idle: usize,
}

impl ConeQp {
    pub fn start(products: ArrayView2<f64>, linear: Array1<f64>, weights: Array1<f64>, pivot: f64) -> ConeQp {
        let zero = weights.len() - 1;
        let mut hull = Differences::new(zero + 1, pivot);
        hull.join(zero, products);
        let mut solver = ConeQp {
            slopes: Array1::zeros(zero + 1),
            waiting: (0..zero).filter(|&i| weights[i] > 0.0).collect(),
            weights,
            linear,
            hull,
            is_level: true,
            least: f64::INFINITY,
            idle: 0,
        };
        solver.evaluate(products);
        solver
    }

    pub fn step(&mut self, products: ArrayView2<f64>) {
        let mut work = 0;
        while work < WORK
            && let Some(point) = self.waiting.pop()
        {
            self.hull.join(point, products);
            self.is_level = false;
            work += self.hull.members.len().pow(2);
        }
        if !self.waiting.is_empty() {
            return;
        }
        if self.is_level {
            let best = self.lowest();
            if !self.hull.members.contains(&best) {
                self.hull.join(best, products);
            }
        }
        let zero = self.weights.len() - 1;
        self.is_level = self.hull.descend(&mut self.weights, &self.slopes, Some(zero));
        self.evaluate(products);
    }

    pub fn stop(&self) -> Option<Status> {
        let unit = 1.0 + self.weights.sum();
        if self.is_level && self.gap() <= TOLERANCE * unit {
            return Some(Status::Converged);
        }
        (self.idle > self.weights.len() + 2).then_some(Status::Stalled)
    }

    /// How far a slope is from where it may be: 0 where there is a weight, and not below 0 elsewhere.
    pub fn gap(&self) -> f64 {
        let off = |(&w, &slope): (&f64, &f64)| if w > 0.0 { slope.abs() } else { -slope };
        (self.weights.iter().zip(&self.slopes).map(off)).fold(0.0, f64::max)
    }

    fn lowest(&self) -> usize {
        (1..self.slopes.len()).fold(0, |best, i| {
            if self.slopes[i] < self.slopes[best] {
                i
            } else {
                best
            }
        })
    }

    fn evaluate(&mut self, products: ArrayView2<f64>) {
        self.slopes.assign(&self.linear);
        for (i, &w) in self.weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            self.slopes.scaled_add(w, &products.row(i));
        }
        let value = self.weights.dot(&self.slopes) + self.weights.dot(&self.linear);
        self.idle = if value < self.least { 0 } else { self.idle + 1 };
        self.least = value.min(self.least);
    }
}
