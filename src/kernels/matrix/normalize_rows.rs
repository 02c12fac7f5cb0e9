//! NorMuon's normalization: every row by a running root mean square, then all to the norm from before
//! (arXiv 2510.05491, Algorithm 1).

use super::{Matrix, Transform, Workspace};
use crate::kernels::matmul::{Job, Real, run_on};
use crate::kernels::orthogonal::Numbers;
use crate::runtime::{Isa, Shared, pool};

/// As in the authors' code.
const EPS: f64 = 1e-10;
/// A row's sum is taken in so many lanes, whatever the instruction set.
const LANES: usize = 16;
/// Elements that are worth a task.
const TASK: usize = 1 << 14;

/// Rows divided by the root of a running mean of their squares, and the matrix brought back to its norm. State: that
/// mean, for every row.
#[derive(Clone, Copy, Debug)]
pub struct NormalizeRows {
    /// The decay rate of the mean.
    pub beta: f64,
}

impl Transform for NormalizeRows {
    fn writes(&self) -> bool {
        true
    }

    fn row_state(&self) -> Option<&'static str> {
        Some("second_momentum_buffer")
    }

    fn run(&self, matrices: &mut [Matrix<'_>], _: &mut Workspace, threads: usize) {
        let isa = Isa::current();
        for matrix in matrices {
            match (matrix.direction.written().values(threads), &mut matrix.state) {
                (Numbers::F64(values), Some(Numbers::F64(moments))) => {
                    normalize(values, moments, self.beta, isa, threads);
                }
                (Numbers::F32(values), Some(Numbers::F32(moments))) => {
                    normalize(values, moments, self.beta, isa, threads);
                }
                _ => unreachable!("the state has the type of the arithmetic"),
            }
        }
    }
}

fn normalize<S: Real>(values: &mut [S], moments: &mut [S], beta: f64, isa: Isa, threads: usize) {
    let (rows, cols) = (moments.len(), values.len() / moments.len());
    let mut squares = vec![0.0; rows];
    for_rows(values, &mut squares, threads, &|values, squares| {
        run_on(isa, MeanSquares { values, squares });
    });
    let (mut before, mut after) = (0.0, 0.0);
    let mut scales = squares;
    for (scale, moment) in scales.iter_mut().zip(moments) {
        let square = *scale;
        *moment = S::from_f64(beta * moment.to_f64() + (1.0 - beta) * square);
        *scale = 1.0 / (moment.to_f64().sqrt() + EPS);
        before += square;
        after += square * *scale * *scale;
    }
    let cols_root = (cols as f64).sqrt();
    let restore = before.sqrt() * cols_root / (after.sqrt() * cols_root + EPS);
    scales.iter_mut().for_each(|scale| *scale *= restore);
    for_rows(values, &mut scales, threads, &|values, scales| {
        run_on(isa, Scale { values, scales });
    });
}

/// Calls `work` with several rows at a time and the number of each.
fn for_rows<S: Real>(
    values: &mut [S],
    numbers: &mut [f64],
    threads: usize,
    work: &(dyn Fn(&mut [S], &mut [f64]) + Sync),
) {
    let (rows, cols) = (numbers.len(), values.len() / numbers.len());
    let at_once = (TASK / cols).max(1);
    let (values, numbers) = (
        Shared::new(values.as_mut_ptr()),
        Shared::new(numbers.as_mut_ptr()),
    );
    pool::for_each(threads, rows.div_ceil(at_once), &|task| {
        let first = task * at_once;
        let count = at_once.min(rows - first);
        // SAFETY: the rows and the numbers lie one after the other, and each is one task's.
        let (values, numbers) = unsafe {
            (
                std::slice::from_raw_parts_mut(values.get().add(first * cols), count * cols),
                std::slice::from_raw_parts_mut(numbers.get().add(first), count),
            )
        };
        work(values, numbers);
    });
}

struct MeanSquares<'a, S> {
    values: &'a [S],
    squares: &'a mut [f64],
}

impl<S: Real> Job for MeanSquares<'_, S> {
    #[inline(always)]
    fn run(self) {
        let cols = self.values.len() / self.squares.len();
        for (row, square) in self.values.chunks_exact(cols).zip(self.squares) {
            let mut sums = [S::ZERO; LANES];
            let (whole, rest) = row.as_chunks::<LANES>();
            for chunk in whole {
                for (sum, &value) in sums.iter_mut().zip(chunk) {
                    *sum = *sum + value * value;
                }
            }
            for (sum, &value) in sums.iter_mut().zip(rest) {
                *sum = *sum + value * value;
            }
            *square = sums.iter().map(|sum| sum.to_f64()).sum::<f64>() / cols as f64;
        }
    }
}

struct Scale<'a, S> {
    values: &'a mut [S],
    scales: &'a [f64],
}

impl<S: Real> Job for Scale<'_, S> {
    #[inline(always)]
    fn run(self) {
        let cols = self.values.len() / self.scales.len();
        for (row, &scale) in self.values.chunks_exact_mut(cols).zip(self.scales) {
            let factor = S::from_f64(scale);
            for value in row {
                *value = *value * factor;
            }
        }
    }
}
