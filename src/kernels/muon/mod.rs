//! Muon: the momentum of a matrix parameter, orthogonalized (Jordan et al. 2024; Newton-Schulz in
//! [`super::orthogonal`]), with NorMuon's normalization of rows (arXiv 2510.05491).
//!
//! Three stages over as many matrices as fit the scratch memory: the momentum of all, the orthogonalization of all, the
//! step of all. The first and the last are rules of the element-wise engine, which gives them storage types and rounding.

mod matrices;
mod rows;
mod stages;

use super::auon::{Cosh, Direction, Entries};
use super::elementwise::{self, Work};
use super::orthogonal::{Input, Job, Options, Target, orthogonalize};
use super::storage::{Buffers, Float, Rounding, Scratch, State};
use super::whole::{Whole, Workspace};
pub use matrices::{Layout, Mismatch, Part};
use rows::Rows;
pub use stages::{Apply, Momentum};

/// Scratch memory is for so many elements, or for the largest matrix.
const ELEMENTS_AT_ONCE: usize = 1 << 22;

/// How the learning rate follows from a matrix's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustLr {
    None,
    /// sqrt(max(1, rows / cols)), Keller Jordan's.
    Original,
    /// 0.2 sqrt(max(rows, cols)), Moonshot's (arXiv 2502.16982): the RMS of an AdamW step.
    MatchRmsAdamw,
    /// sqrt(rows / cols)
    SpectralUnclamped,
}

impl AdjustLr {
    pub fn factor(self, rows: usize, cols: usize) -> f64 {
        let (rows, cols) = (rows as f64, cols as f64);
        match self {
            AdjustLr::None => 1.0,
            AdjustLr::Original => (rows / cols).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * rows.max(cols).sqrt(),
            AdjustLr::SpectralUnclamped => (rows / cols).sqrt(),
        }
    }
}

/// Hyperparameters of Muon.
#[derive(Clone, Debug)]
pub struct Muon {
    pub lr: f64,
    pub weight_decay: f64,
    /// Decay only elements whose step does not oppose it (arXiv 2510.12402).
    pub cautious: bool,
    pub momentum: Momentum,
    pub orthogonal: Options,
    pub adjust_lr: AdjustLr,
    /// NorMuon's decay rate of the rows' second moments.
    pub row_beta: Option<f64>,
    /// HybridAuON: divide the orthogonalized matrix by the root mean square of its hyperbolic cosine.
    pub cosh: Option<DivideByCosh>,
    /// Leave a matrix alone whose gradient is all zero.
    pub skip_zero_grad: bool,
}

/// The last stage of HybridAuON (arXiv 2509.24320).
#[derive(Clone, Copy, Debug)]
pub struct DivideByCosh {
    pub cosh: Cosh,
    /// Take the cosine of the matrix divided by its norm, as the authors' package does, and not of the matrix itself.
    pub of_normalized: bool,
    /// Added to that norm.
    pub eps: f64,
}

/// The tensors of a parameter, row-major. State: the momentum.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub buffers: Buffers<1>,
    /// The matrices that follow one another in it.
    pub parts: Vec<Part>,
    /// A second moment for every row, with [`Muon::row_beta`]; f64 where the parameter is, else f32.
    pub row_moments: *mut u8,
}

/// A Muon step over parameters.
pub struct Update {
    rule: Muon,
    parameters: Vec<Parameter>,
}

// SAFETY: the pointers are used by `run` only, while the maker of the update keeps them valid.
unsafe impl Send for Update {}

/// Whether parameters of a type can have their momentum in another.
pub fn is_supported(dtype: Float, state_dtype: Float, rounding: Rounding) -> bool {
    elementwise::is_supported(dtype, state_dtype, Rounding::Nearest)
        && elementwise::is_supported(dtype, work_type(dtype), rounding)
}

/// The type of the arithmetic.
fn work_type(dtype: Float) -> Float {
    if dtype == Float::F64 {
        Float::F64
    } else {
        Float::F32
    }
}

impl Update {
    /// # Safety
    /// Until the update is dropped, all pointers are valid for their types and for as many elements as `parts` say, for
    /// writing where they are `*mut`, and nothing else reads or writes what they write. The types are
    /// [supported](is_supported).
    pub unsafe fn new(rule: Muon, parameters: Vec<Parameter>) -> Update {
        Update { rule, parameters }
    }
}

impl Whole for Update {
    fn run(&mut self, threads: usize, workspace: &mut Workspace) {
        let mut matrices: Vec<Matrix> = self.parameters.iter().flat_map(Matrix::all).collect();
        if self.rule.skip_zero_grad {
            matrices.retain(|matrix| !matrix.grad_is_zero());
        }
        let mut rest = &matrices[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(how_many_fit(rest));
            self.rule.update(now, threads, workspace);
            rest = later;
        }
    }
}

fn how_many_fit(matrices: &[Matrix]) -> usize {
    let mut elements = 0;
    let fitting = matrices.iter().take_while(|matrix| {
        elements += matrix.len();
        elements <= ELEMENTS_AT_ONCE
    });
    fitting.count().max(1)
}

/// One matrix of a parameter.
#[derive(Clone, Copy)]
struct Matrix {
    buffers: Buffers<1>,
    rows: usize,
    cols: usize,
    row_moments: *mut u8,
}

// SAFETY: the pointers are used for disjoint memory by the task that has the matrix.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// The matrices of a parameter that have elements.
    fn all(parameter: &Parameter) -> impl Iterator<Item = Matrix> + '_ {
        let (mut start, mut first_row) = (0, 0);
        let one_of_many = parameter.parts.len() > 1;
        let matrices = parameter.parts.iter().enumerate().map(move |(i, part)| {
            let len = part.rows * part.cols;
            let buffers = parameter.buffers.part(start, len);
            let rounding = match one_of_many {
                true => buffers.rounding.of_part(i as u64),
                false => buffers.rounding,
            };
            let matrix = Matrix {
                buffers: Buffers { rounding, ..buffers },
                rows: part.rows,
                cols: part.cols,
                row_moments: parameter
                    .row_moments
                    .wrapping_add(first_row * work_type(parameter.buffers.dtype).size()),
            };
            start += len;
            first_row += part.rows;
            matrix
        });
        matrices.filter(|matrix| matrix.len() > 0)
    }

    /// The buffers with the result in the place of the momentum.
    fn with_result(&self, place: &Place) -> Buffers<1> {
        let work = work_type(self.buffers.dtype);
        self.buffers.with_states([State::float(place.result, work)])
    }

    fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// The type of the momentum: one that [`is_supported`] has seen.
    fn state_dtype(&self) -> Float {
        self.buffers.state_dtype().expect("a momentum of floats")
    }

    fn grad_is_zero(&self) -> bool {
        let bytes = self.len() * self.buffers.dtype.size();
        // SAFETY: the maker of the update vouched for the gradient.
        let grad = unsafe { std::slice::from_raw_parts(self.buffers.grad, bytes) };
        // The sign bit is the last byte's highest: -0 is a zero, too.
        let last = self.buffers.dtype.size() - 1;
        grad.chunks_exact(last + 1)
            .all(|value| value[..last].iter().all(|&byte| byte == 0) && value[last] & 0x7f == 0)
    }

    /// Bytes of scratch memory for the direction in the momentum's type, where that is not the arithmetic's, and for
    /// the orthogonalized matrix.
    fn scratch(&self) -> (usize, usize) {
        let (state, work) = (self.state_dtype(), work_type(self.buffers.dtype));
        let narrow = if state == work {
            0
        } else {
            self.len() * state.size()
        };
        (
            narrow.next_multiple_of(64),
            (self.len() * work.size()).next_multiple_of(64),
        )
    }
}

/// Where a matrix's direction lies, and where its orthogonalized direction.
#[derive(Clone, Copy)]
struct Place {
    direction: *mut u8,
    result: *mut u8,
}

impl DivideByCosh {
    /// What an orthogonalized matrix is divided by.
    fn of(&self, matrix: &Matrix, place: &Place, threads: usize) -> f64 {
        let entries = Entries {
            buffers: &matrix.with_result(place),
            direction: &Direction::ITSELF,
            threads,
        };
        // SAFETY: the maker of the update vouched for the tensors, `places` for the result, and nothing writes now.
        let squares = unsafe {
            let unit = match self.of_normalized {
                true => {
                    let norm = entries.sums(1.0).squares.sqrt();
                    if norm == 0.0 { 0.0 } else { 1.0 / (norm + self.eps) }
                }
                false => 1.0,
            };
            entries.sinh_squares(1.0, self.cosh.gamma * unit)
        };
        (1.0 + squares / matrix.len() as f64).sqrt() + self.cosh.eps
    }
}

impl Muon {
    fn update(&self, matrices: &[Matrix], threads: usize, workspace: &mut Workspace) {
        let places = places(matrices, &mut workspace.scratch);
        self.take_momentum(matrices, &places, threads);
        // SAFETY: the places are disjoint parts of the scratch memory with room for each matrix.
        let mut jobs = unsafe { jobs(matrices, &places) };
        orthogonalize(&mut jobs, &self.orthogonal, &mut workspace.orthogonal, threads)
            .expect("jobs of the matrices' own sizes");
        if let Some(beta) = self.row_beta {
            let rows = matrices.iter().zip(&places).map(|(matrix, place)| Rows {
                values: place.result,
                moments: matrix.row_moments,
                dtype: work_type(matrix.buffers.dtype),
                rows: matrix.rows,
                cols: matrix.cols,
            });
            // SAFETY: as for the jobs, which are over; the moments are the parameter's own.
            unsafe { rows::normalize(&rows.collect::<Vec<_>>(), beta, threads) };
        }
        self.apply(matrices, &places, threads);
    }

    fn take_momentum(&self, matrices: &[Matrix], places: &[Place], threads: usize) {
        let mut batch = elementwise::Batch::with_capacity(matrices.len());
        for (matrix, place) in matrices.iter().zip(places) {
            let [momentum] = matrix.buffers.state;
            let direction = State::float(place.direction, matrix.state_dtype());
            let buffers = matrix.buffers.with_states([momentum, direction]);
            // SAFETY: the maker of the update vouched for the tensors, `places` for the direction.
            unsafe { batch.push(self.momentum, buffers.unwritten()) }.expect("a supported combination");
        }
        elementwise::run(&[Box::new(batch) as Box<dyn Work>], threads);
    }

    fn apply(&self, matrices: &[Matrix], places: &[Place], threads: usize) {
        let mut batch = elementwise::Batch::with_capacity(matrices.len());
        for (matrix, place) in matrices.iter().zip(places) {
            let rule = Apply {
                decay: self.lr * self.weight_decay,
                cautious: self.cautious,
                step: self.lr * self.adjust_lr.factor(matrix.rows, matrix.cols)
                    / self.cosh.map_or(1.0, |cosh| cosh.of(matrix, place, threads)),
            };
            let buffers = matrix.with_result(place);
            // SAFETY: as for the momentum.
            unsafe { batch.push(rule, buffers) }.expect("a supported combination");
        }
        elementwise::run(&[Box::new(batch) as Box<dyn Work>], threads);
    }
}

/// Room for every matrix's direction and result; one place serves for both where their types are the same.
fn places(matrices: &[Matrix], scratch: &mut Scratch) -> Vec<Place> {
    let total = matrices
        .iter()
        .map(|matrix| matrix.scratch())
        .map(|(a, b)| a + b)
        .sum();
    let mut at = scratch.room(total);
    let mut place = |matrix: &Matrix| {
        let (narrow, wide) = matrix.scratch();
        let result = at.wrapping_add(narrow);
        let direction = if narrow == 0 { result } else { at };
        at = result.wrapping_add(wide);
        Place { direction, result }
    };
    matrices.iter().map(&mut place).collect()
}

/// # Safety
/// The places are valid, disjoint and large enough for the matrices while the jobs live.
unsafe fn jobs<'a>(matrices: &[Matrix], places: &[Place]) -> Vec<Job<'a>> {
    let job = |(matrix, place): (&Matrix, &Place)| {
        let len = matrix.len();
        // SAFETY: the caller's promise, for the types that `Matrix::scratch` reckoned with.
        let (input, output) = unsafe {
            let output = match work_type(matrix.buffers.dtype) {
                Float::F64 => Target::F64(std::slice::from_raw_parts_mut(place.result.cast(), len)),
                _ => Target::F32(std::slice::from_raw_parts_mut(place.result.cast(), len)),
            };
            let input = match matrix.state_dtype() {
                Float::Bf16 => Input::Bf16(std::slice::from_raw_parts(place.direction.cast(), len)),
                Float::F16 => Input::F16(std::slice::from_raw_parts(place.direction.cast(), len)),
                Float::F32 | Float::F64 => Input::Output,
            };
            (input, output)
        };
        Job {
            input,
            output,
            rows: matrix.rows,
            cols: matrix.cols,
        }
    };
    matrices.iter().zip(places).map(job).collect()
}

#[cfg(test)]
mod tests;
