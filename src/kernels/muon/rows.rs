//! NorMuon's normalization: every row by a running root mean square, then all to the norm from before
//! (arXiv 2510.05491, Algorithm 1).

use crate::kernels::elementwise::DType;
use crate::kernels::matmul::{Job, Real, Shared, run_on};
use crate::runtime::{Isa, pool};

/// As in the authors' code.
const EPS: f64 = 1e-10;
/// A row's sum is taken in so many lanes, whatever the instruction set.
const LANES: usize = 16;
/// Elements that are worth a task.
const TASK: usize = 1 << 14;

/// A row-major matrix with a second moment for every row, all f64 or all f32.
#[derive(Clone, Copy)]
pub struct Rows {
    pub values: *mut u8,
    pub moments: *mut u8,
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
}

// SAFETY: the pointers are used for disjoint rows.
unsafe impl Sync for Rows {}

/// Normalizes every matrix and updates its moments.
///
/// # Safety
/// The pointers are valid for `rows * cols` values and `rows` moments of the type, and nothing else uses them.
pub unsafe fn normalize(matrices: &[Rows], beta: f64, threads: usize) {
    let isa = Isa::current();
    for matrix in matrices {
        // SAFETY: the caller's promise.
        unsafe {
            match matrix.dtype {
                DType::F64 => normalize_one::<f64>(matrix, beta, isa, threads),
                _ => normalize_one::<f32>(matrix, beta, isa, threads),
            }
        }
    }
}

/// # Safety
/// As for [`normalize`], with the type `S`.
unsafe fn normalize_one<S: Real>(matrix: &Rows, beta: f64, isa: Isa, threads: usize) {
    let &Rows { rows, cols, .. } = matrix;
    // SAFETY: the caller's promise.
    let moments = unsafe { std::slice::from_raw_parts_mut(matrix.moments.cast::<S>(), rows) };
    let values = Shared::new(matrix.values.cast::<S>());
    // SAFETY: rows lie one after the other within the matrix, and each is one task's.
    let row = |r: usize| unsafe { std::slice::from_raw_parts_mut(values.get().add(r * cols), cols) };

    let mut squares = vec![0.0; rows];
    let to = Shared::new(squares.as_mut_ptr());
    for_rows(rows, cols, threads, &|r| {
        // SAFETY: every row has its own square.
        let square = unsafe { &mut *to.get().add(r) };
        run_on(isa, MeanSquare { row: row(r), square });
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
    for_rows(rows, cols, threads, &|r| {
        let factor = S::from_f64(scales[r] * restore);
        run_on(isa, Scale { row: row(r), factor });
    });
}

fn for_rows(rows: usize, cols: usize, threads: usize, work: &(dyn Fn(usize) + Sync)) {
    let at_once = (TASK / cols.max(1)).max(1);
    pool::for_each(threads, rows.div_ceil(at_once), &|task| {
        (task * at_once..rows.min((task + 1) * at_once)).for_each(work);
    });
}

struct MeanSquare<'a, S> {
    row: &'a [S],
    square: &'a mut f64,
}

impl<S: Real> Job for MeanSquare<'_, S> {
    #[inline(always)]
    fn run(self) {
        let mut sums = [S::ZERO; LANES];
        let (whole, rest) = self.row.as_chunks::<LANES>();
        for chunk in whole {
            for (sum, &value) in sums.iter_mut().zip(chunk) {
                *sum = *sum + value * value;
            }
        }
        for (sum, &value) in sums.iter_mut().zip(rest) {
            *sum = *sum + value * value;
        }
        *self.square = sums.iter().map(|sum| sum.to_f64()).sum::<f64>() / self.row.len() as f64;
    }
}

struct Scale<'a, S> {
    row: &'a mut [S],
    factor: S,
}

impl<S: Real> Job for Scale<'_, S> {
    #[inline(always)]
    fn run(self) {
        for value in self.row {
            *value = *value * self.factor;
        }
    }
}
