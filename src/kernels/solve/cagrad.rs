//! CAGrad (arXiv 2110.14048): the mean gradient, moved by a share of its norm towards the worst combination.

use ndarray::{Array1, s};

use super::simplex::{Quadratic, SimplexQp};
use super::{Solver, Status};

/// The hull's least norm is 0 below this part of the largest: inner products tell no more than the root of 1e-16.
const HULL: f64 = 1e-7;
/// The most that is added of all gradients, in units of the mean's square over the largest: `t |g|^2 / |g_0|^2`.
const MOST: f64 = 1e6;
/// Of the norm that is searched for.
const TOLERANCE: f64 = 1e-15;
/// The least shift that counts, in units of the largest gradient.
const LEAST: f64 = 1e-100;

/// Gradients, and how far from their mean, in units of its norm.
#[derive(Clone, Debug)]
pub struct Conflict {
    pub norm: Quadratic,
    pub c: f64,
}

/// The worst combination w has the least `t |g_w|^2 / 2 + <g_w, g_0>` on the simplex, where `t |g_w| = r = c |g_0|`;
/// as `t |g_w|` grows with t, `t = r / s` is found by halving for `s = |g_w|`.
///
/// With 0 in the hull no task gains without another's loss, so one that has nothing to gain (a gradient of 0) joins, and
/// `t g_w` ends where no task loses any more, at the latest at -g_0: there t stays finite, where `r / |g_w|` would not.
///
/// Its solution are the weights of the moved gradient; its gap is the interval that is left for s, as a part of s.
pub struct Cagrad {
    search: Search,
    worst: SimplexQp,
    mean: Array1<f64>,
    /// The mean's inner products with the gradients.
    along: Array1<f64>,
    /// The mean's norm, and how much of it the shift may have.
    length: f64,
    c: f64,
    /// The norm that is tried, and between which ones it is.
    s: f64,
    low: f64,
    high: f64,
    /// Whether all that `worst` found was to its tolerance.
    is_exact: bool,
}

#[derive(PartialEq)]
enum Search {
    /// For the hull's least norm.
    Hull,
    /// For s.
    Norm,
    Ended,
}

impl Solver for Cagrad {
    type Problem = Conflict;
    type Solution = Array1<f64>;

    fn start(Conflict { norm, c }: Conflict, initial: Option<Array1<f64>>) -> Cagrad {
        let count = norm.linear.len();
        let mean = Array1::from_elem(count, 1.0 / count as f64);
        let along = norm.products.dot(&mean);
        let length = mean.dot(&along).max(0.0).sqrt();
        let high = norm.products.diag().fold(0.0_f64, |most, &x| most.max(x)).sqrt();
        let is_mean = high == 0.0 || c * length < LEAST;
        let worst = initial.and_then(|weights| combination(weights - &mean));
        Cagrad {
            search: if is_mean { Search::Ended } else { Search::Hull },
            worst: SimplexQp::start(norm, worst),
            mean,
            along,
            length,
            c,
            s: f64::INFINITY,
            low: 0.0,
            high: if is_mean { 0.0 } else { high },
            is_exact: true,
        }
    }

    fn step(&mut self) {
        let Some(status) = self.worst.stop() else {
            return self.worst.step();
        };
        self.is_exact &= status == Status::Converged;
        match self.search {
            Search::Hull => self.begin(),
            Search::Norm => self.halve(),
            Search::Ended => {}
        }
    }

    fn stop(&self) -> Option<Status> {
        let status = if self.is_exact {
            Status::Converged
        } else {
            Status::Stalled
        };
        (self.search == Search::Ended).then_some(status)
    }

    fn gap(&self) -> f64 {
        if self.high > 0.0 {
            (self.high - self.low) / self.high
        } else {
            0.0
        }
    }

    fn solution(&self) -> Array1<f64> {
        let worst = self.worst.solution();
        let factor = self.radius() / self.worst.norm().max(self.s);
        &self.mean + &(worst.slice(s![..self.mean.len()]).to_owned() * factor)
    }
}

/// The positive part, as weights.
fn combination(weights: Array1<f64>) -> Option<Array1<f64>> {
    let largest = weights.fold(0.0_f64, |most, &w| most.max(w));
    let positive = weights.mapv(|w| w.max(0.0) / largest); // their sum might be infinite
    (largest > 0.0).then(|| &positive / positive.sum())
}

impl Cagrad {
    fn radius(&self) -> f64 {
        self.c * self.length
    }

    /// From the hull's least norm to the search between it and the largest one.
    fn begin(&mut self) {
        self.low = self.worst.norm().min(self.high);
        if self.low <= HULL * self.high {
            self.c = self.c.min(1.0);
            self.low = (self.c * self.high * self.high / (MOST * self.length)).min(self.high);
            self.along = ndarray::concatenate![ndarray::Axis(0), self.along, ndarray::array![0.0]];
            self.worst = self.worst.with_zero();
        }
        self.search = Search::Norm;
        self.attempt();
    }

    fn attempt(&mut self) {
        self.s = (self.low + self.high) / 2.0;
        self.worst.set_linear(&self.along * (self.s / self.radius()));
    }

    fn halve(&mut self) {
        let is_low = self.worst.norm() > self.s;
        *(if is_low { &mut self.low } else { &mut self.high }) = self.s;
        if self.gap() <= TOLERANCE {
            self.search = Search::Ended;
        } else {
            self.attempt();
        }
    }
}
