//! Nash-MTL (Navon et al. 2022, arXiv 2202.01017): weights `a > 0` with `G a = n / a`, at which every task gains the
//! same share of the product of all gains.

use ndarray::{Array1, Array2, Axis, s};

use super::cosines::Cosines;
use super::{Solver, Status};

/// Added to the squared norms of the directions: without it the weights grow for ever where 0 is a combination of the
/// gradients. As products of them tell no more than 1e-16, a combination shorter than its root counts as 0.
const RIDGE: f64 = 1e-12;
/// Of a task's share, in units of what it is a sum of.
const TOLERANCE: f64 = 2e-15;
/// Multiplications in a step: of some hundred tasks, factoring the matrix takes several steps.
const WORK: usize = 1 << 20;
/// Where Newton's decrement is below, the whole step is sure to lower the value.
const NEAR: f64 = 0.25;

/// The weights of the directions, `b_i = a_i |g_i| / sqrt(n)`, have the least `b^T C b / 2 - sum_i log b_i`, a convex
/// and self-concordant function: damped Newton steps `b <- b (1 + t z)` lead there from anywhere (Nesterov & Nemirovskii
/// 1994). `n` is the Frobenius norm of G, with which the weights have no unit; the paper has 1.
///
/// Its gap is by how much the value may exceed the least one, by the dual problem.
pub struct Nash {
    count: usize,
    /// Those that have a gradient; the others' weights are 0.
    tasks: Vec<usize>,
    /// In units of the root of n.
    lengths: Array1<f64>,
    /// The directions' inner products, with the ridge.
    products: Array2<f64>,
    weights: Array1<f64>,
    /// The directions' weights.
    parts: Array1<f64>,
    /// `b_i (C b)_i`, which are to be 1.
    shares: Array1<f64>,
    /// What they are sums of: `b_i (|C| b)_i`.
    sizes: Array1<f64>,
    /// Of `I + diag(b) C diag(b)`, as far as it is known.
    factor: Array2<f64>,
    rows: usize,
    /// The least that the tasks' shares were off from 1, and steps since.
    least: f64,
    idle: usize,
}

impl Solver for Nash {
    type Problem = Cosines;
    type Solution = Array1<f64>;

    fn start(Cosines { products, lengths }: Cosines, initial: Option<Array1<f64>>) -> Nash {
        let count = lengths.len();
        let tasks: Vec<usize> = (0..count).filter(|&i| lengths[i] > 0.0).collect();
        let of = |(i, j)| products[[i, j]] * lengths[i] * lengths[j];
        let squares: f64 = ndarray::indices_of(&products)
            .into_iter()
            .map(|at| of(at).powi(2))
            .sum();
        let unit = squares.sqrt().sqrt();
        let lengths = lengths.select(Axis(0), &tasks) / unit;
        let known = |(&task, &length): (&usize, &f64)| {
            let weight = initial.as_ref().map_or(0.0, |weights| weights[task]);
            let is_near = (RIDGE..1.0 / RIDGE).contains(&(weight * length));
            if is_near { weight } else { 1.0 / length }
        };
        let mut products = products.select(Axis(0), &tasks).select(Axis(1), &tasks);
        products.diag_mut().mapv_inplace(|square| square + RIDGE);
        let len = tasks.len();
        let mut solver = Nash {
            count,
            weights: tasks.iter().zip(&lengths).map(known).collect(),
            tasks,
            lengths,
            products,
            parts: Array1::zeros(len),
            shares: Array1::zeros(len),
            sizes: Array1::zeros(len),
            factor: Array2::zeros((len, len)),
            rows: 0,
            least: f64::INFINITY,
            idle: 0,
        };
        solver.evaluate();
        // The best of its multiples.
        let sum = solver.shares.sum();
        if sum > 0.0 && solver.stop().is_none() {
            solver.weights *= (len as f64 / sum).sqrt();
            solver.evaluate();
        }
        solver
    }

    fn step(&mut self) {
        let mut work = 0;
        while work < WORK && self.rows < self.tasks.len() {
            work += (self.rows + 1).pow(2);
            self.factor_row();
        }
        if self.rows == self.tasks.len() {
            self.advance();
            self.rows = 0;
        }
    }

    fn stop(&self) -> Option<Status> {
        if self.rows > 0 {
            return None;
        }
        if self.off() <= TOLERANCE {
            return Some(Status::Converged);
        }
        (self.idle > 3).then_some(Status::Stalled)
    }

    fn gap(&self) -> f64 {
        let excess = |&share: &f64| match share > 0.0 {
            true => (share - 1.0) - (share - 1.0).ln_1p(),
            false => f64::INFINITY,
        };
        self.shares.iter().map(excess).sum::<f64>().max(0.0)
    }

    fn solution(&self) -> Array1<f64> {
        let mut weights = Array1::zeros(self.count);
        (self.tasks.iter().zip(&self.weights)).for_each(|(&task, &weight)| weights[task] = weight);
        weights
    }
}

impl Nash {
    fn evaluate(&mut self) {
        self.parts = &self.weights * &self.lengths;
        for (i, row) in self.products.rows().into_iter().enumerate() {
            let size = |(x, part): (&f64, &f64)| x.abs() * part;
            self.shares[i] = self.parts[i] * row.dot(&self.parts);
            self.sizes[i] = self.parts[i] * row.iter().zip(&self.parts).map(size).sum::<f64>();
        }
    }

    /// By how much a share is off at most, in units of its size.
    fn off(&self) -> f64 {
        let part = |(&share, &size): (&f64, &f64)| (share - 1.0).abs() / size;
        (self.shares.iter().zip(&self.sizes).map(part)).fold(0.0, f64::max)
    }

    /// The next row of the Cholesky factor.
    fn factor_row(&mut self) {
        let at = self.rows;
        let own = self.parts[at];
        for column in 0..=at {
            let known = (self.factor.slice(s![at, ..column])).dot(&self.factor.slice(s![column, ..column]));
            let rest = own * self.products[[at, column]] * self.parts[column] - known;
            self.factor[[at, column]] = if column < at {
                rest / self.factor[[column, column]]
            } else {
                (1.0 + rest).max(RIDGE).sqrt()
            };
        }
        self.rows += 1;
    }

    fn advance(&mut self) {
        let towards = self.solve(1.0 - &self.shares);
        let decrement = towards.dot(&(1.0 - &self.shares)).max(0.0).sqrt();
        let part = if decrement < NEAR {
            1.0
        } else {
            1.0 / (1.0 + decrement)
        };
        for (weight, by) in self.weights.iter_mut().zip(&towards) {
            *weight *= (1.0 + part * by).max(RIDGE); // rounding may fall below
        }
        self.evaluate();
        let off = self.off();
        self.idle = if off < self.least || part < 1.0 {
            0
        } else {
            self.idle + 1
        };
        self.least = off.min(self.least);
    }

    /// By the factor.
    fn solve(&self, mut x: Array1<f64>) -> Array1<f64> {
        for i in 0..x.len() {
            let known = self.factor.slice(s![i, ..i]).dot(&x.slice(s![..i]));
            x[i] = (x[i] - known) / self.factor[[i, i]];
        }
        for i in (0..x.len()).rev() {
            x[i] /= self.factor[[i, i]];
            let last = x[i];
            x.slice_mut(s![..i])
                .scaled_add(-last, &self.factor.slice(s![i, ..i]));
        }
        x
    }
}
