//! The least of a convex quadratic form on the simplex, by an active set: Wolfe's method for the point of least norm in
//! a convex hull (Mathematical Programming 11, 1976), with a linear term.

use ndarray::{Array1, Array2, ArrayView2, s};

use super::differences::Differences;
use super::{Solver, Status};

/// Added to the squared norms, of which the largest is 1, so that of dependent points one combination is the best. Not
/// to those of zero itself, which is preferred to any that are near.
const RIDGE: f64 = 1e-14;
/// Of the gap, in units of the largest number.
const TOLERANCE: f64 = 1e-15;

/// `w^T products w / 2 + linear^T w`, of weights `w >= 0` that sum up to 1.
#[derive(Clone, Debug)]
pub struct Quadratic {
    /// Symmetric; the largest number is 1, or all are 0.
    pub products: Array2<f64>,
    pub linear: Array1<f64>,
}

impl Quadratic {
    /// The squared norm of combinations of points, from their inner products in any unit.
    pub fn norm(products: ArrayView2<f64>) -> Quadratic {
        let largest = products.fold(0.0_f64, |most, x| most.max(x.abs()));
        let unit = if largest > 0.0 { largest } else { 1.0 };
        let count = products.nrows();
        let symmetric = |(i, j)| products[[i, j]] / unit / 2.0 + products[[j, i]] / unit / 2.0;
        Quadratic {
            products: Array2::from_shape_fn((count, count), symmetric),
            linear: Array1::zeros(count),
        }
    }

    /// The value of the point itself.
    fn at(&self, point: usize) -> f64 {
        self.products[[point, point]] / 2.0 + self.linear[point]
    }
}

/// Its gap is by how much the value may exceed the least one, in units of the largest number.
pub struct SimplexQp {
    /// With the ridge.
    quadratic: Quadratic,
    weights: Array1<f64>,
    /// `products * weights`.
    along: Array1<f64>,
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

impl Solver for SimplexQp {
    type Problem = Quadratic;
    type Solution = Array1<f64>;

    fn start(mut quadratic: Quadratic, initial: Option<Array1<f64>>) -> SimplexQp {
        let mut squares = quadratic.products.diag_mut();
        squares.mapv_inplace(|x| if x > 0.0 { x + RIDGE } else { x });
        SimplexQp::with_ridge(quadratic, initial)
    }

    fn step(&mut self) {
        if let Some(point) = self.waiting.pop() {
            self.hull.join(point, self.quadratic.products.view());
            self.is_level = false;
            return;
        }
        if self.is_level {
            let best = self.lowest();
            if !self.hull.members.contains(&best) {
                self.hull.join(best, self.quadratic.products.view());
            }
        }
        self.is_level = self.hull.descend(&mut self.weights, &self.slopes, None);
        self.weights /= self.weights.sum();
        self.evaluate();
    }

    fn stop(&self) -> Option<Status> {
        if self.is_level && self.gap() <= TOLERANCE {
            return Some(Status::Converged);
        }
        (self.idle > self.weights.len() + 2).then_some(Status::Stalled)
    }

    fn gap(&self) -> f64 {
        let unit = self.quadratic.linear.fold(1.0_f64, |most, x| most.max(x.abs()));
        (self.weights.dot(&self.slopes) - self.slopes[self.lowest()]).max(0.0) / unit
    }

    fn solution(&self) -> Array1<f64> {
        self.weights.clone()
    }
}

/// The best of the points themselves; of zeros only, their mean.
fn corner(quadratic: &Quadratic) -> Array1<f64> {
    let count = quadratic.linear.len();
    let mut numbers = quadratic.products.iter().chain(&quadratic.linear);
    if numbers.all(|&x| x == 0.0) {
        return Array1::from_elem(count, 1.0 / count as f64);
    }
    let mut weights = Array1::zeros(count);
    weights[first_least(count, |i| quadratic.at(i))] = 1.0;
    weights
}

fn first_least(count: usize, value: impl Fn(usize) -> f64) -> usize {
    (1..count).fold(0, |best, i| if value(i) < value(best) { i } else { best })
}

impl SimplexQp {
    fn with_ridge(quadratic: Quadratic, initial: Option<Array1<f64>>) -> SimplexQp {
        let count = quadratic.linear.len();
        let weights = initial.unwrap_or_else(|| corner(&quadratic));
        let mut waiting: Vec<_> = (0..count).filter(|&i| weights[i] > 0.0).collect();
        // The last one comes first and makes the base; the differences to the best point are the most exact.
        waiting.sort_by(|&i, &j| quadratic.at(j).total_cmp(&quadratic.at(i)));
        let mut solver = SimplexQp {
            along: Array1::zeros(count),
            slopes: Array1::zeros(count),
            hull: Differences::new(count, RIDGE / 4.0),
            weights,
            waiting,
            is_level: true,
            least: f64::INFINITY,
            idle: 0,
            quadratic,
        };
        solver.evaluate();
        solver
    }

    /// The same problem with one more point: zero.
    pub fn with_zero(&self) -> SimplexQp {
        let count = self.weights.len();
        let mut products = Array2::zeros((count + 1, count + 1));
        products
            .slice_mut(s![..count, ..count])
            .assign(&self.quadratic.products);
        let linear = Array1::zeros(count + 1);
        SimplexQp::with_ridge(Quadratic { products, linear }, None)
    }

    /// Another linear term, the weights staying where they are.
    pub fn set_linear(&mut self, linear: Array1<f64>) {
        self.quadratic.linear = linear;
        self.is_level = false;
        (self.least, self.idle) = (f64::INFINITY, 0);
        self.evaluate();
    }

    /// The norm of the combination, without the ridge.
    pub fn norm(&self) -> f64 {
        let squares = self.quadratic.products.diag();
        let ridge: f64 = (self.weights.iter().zip(squares))
            .map(|(&w, &square)| if square > 0.0 { RIDGE * w * w } else { 0.0 })
            .sum();
        (self.weights.dot(&self.along) - ridge).max(0.0).sqrt()
    }

    /// The point with the lowest slope.
    fn lowest(&self) -> usize {
        first_least(self.slopes.len(), |i| self.slopes[i])
    }

    fn evaluate(&mut self) {
        self.along.fill(0.0);
        for (i, &w) in self.weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
            self.along.scaled_add(w, &self.quadratic.products.row(i));
        }
        self.slopes = &self.along + &self.quadratic.linear;
        let value = self.weights.dot(&self.along) / 2.0 + self.weights.dot(&self.quadratic.linear);
        self.idle = if value < self.least { 0 } else { self.idle + 1 };
        self.least = value.min(self.least);
    }
}
