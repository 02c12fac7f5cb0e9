//! UPGrad (Quinton & Rey 2024, arXiv 2406.16232): every gradient projected onto the dual cone of all, which holds what
//! goes against none of them.

use ndarray::{Array1, Array2, Axis, s};

use super::cone::ConeQp;
use super::cosines::Cosines;
use super::{Solver, Status};

/// Added to the squared norms, which are 1, so that of dependent gradients one combination is the best.
const RIDGE: f64 = 1e-14;

/// One task after the other: what the projection adds to `g_i` are the weights `w >= 0` of all gradients with the least
/// `|g_i + sum_j w_j g_j|` (Proposition 1 of the paper).
///
/// Its solution has the weights of task i's projected gradient in row i; the gap is the most that one of these has
/// against any gradient or, where that was added, with it: as products of directions, in units of task i's length.
pub struct UpGrad {
    lengths: Array1<f64>,
    /// The directions' inner products, with the ridge, and those of zero in the last place.
    products: Array2<f64>,
    initial: Option<Array2<f64>>,
    solution: Array2<f64>,
    gaps: Array1<f64>,
    /// Of the task whose turn it is.
    search: Option<ConeQp>,
    task: usize,
    is_exact: bool,
}

impl Solver for UpGrad {
    type Problem = Cosines;
    type Solution = Array2<f64>;

    fn start(Cosines { products, lengths }: Cosines, initial: Option<Array2<f64>>) -> UpGrad {
        let count = lengths.len();
        let mut with_zero = Array2::zeros((count + 1, count + 1));
        with_zero.slice_mut(s![..count, ..count]).assign(&products);
        let mut squares = with_zero.diag_mut();
        squares.mapv_inplace(|x| if x > 0.0 { x + RIDGE } else { x });
        UpGrad {
            gaps: products.map_axis(Axis(1), |row| row.fold(0.0, |most, &x| f64::max(most, -x))),
            lengths,
            products: with_zero,
            initial,
            solution: Array2::eye(count),
            search: None,
            task: 0,
            is_exact: true,
        }
    }

    fn step(&mut self) {
        let search = match self.search.take() {
            None => self.begin(),
            Some(mut search) => {
                search.step(self.products.view());
                search
            }
        };
        self.write(&search);
        match search.stop() {
            None => self.search = Some(search),
            Some(status) => {
                self.is_exact &= status == Status::Converged;
                self.task += 1;
            }
        }
    }

    fn stop(&self) -> Option<Status> {
        let status = if self.is_exact {
            Status::Converged
        } else {
            Status::Stalled
        };
        (self.task == self.lengths.len()).then_some(status)
    }

    fn gap(&self) -> f64 {
        self.gaps.fold(0.0, |most, &gap| f64::max(most, gap))
    }

    fn solution(&self) -> Array2<f64> {
        self.solution.clone()
    }
}

impl UpGrad {
    /// The task's program, from the weights that it had before where they are known.
    fn begin(&self) -> ConeQp {
        let mut weights = Array1::zeros(self.lengths.len() + 1);
        if let Some(initial) = &self.initial {
            for (other, &weight) in initial.row(self.task).indexed_iter() {
                let own = if other == self.task { 1.0 } else { 0.0 };
                let added = (weight - own) / self.ratio(other);
                weights[other] = if added.is_finite() { added.max(0.0) } else { 0.0 };
            }
        }
        let linear = self.products.row(self.task).to_owned();
        ConeQp::start(self.products.view(), linear, weights, RIDGE / 4.0)
    }

    /// What is known of the task's projected gradient.
    fn write(&mut self, search: &ConeQp) {
        self.gaps[self.task] = search.gap();
        for other in 0..self.lengths.len() {
            let added = search.weights[other] * self.ratio(other);
            self.solution[[self.task, other]] = if other == self.task { 1.0 + added } else { added };
        }
    }

    /// The task's length in units of another's, and 0 where one is 0.
    fn ratio(&self, other: usize) -> f64 {
        match self.lengths[other] > 0.0 {
            true => self.lengths[self.task] / self.lengths[other],
            false => 0.0,
        }
    }
}
