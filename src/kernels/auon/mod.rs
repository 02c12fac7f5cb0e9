//! AuON: the Nesterov momentum divided by its norm and by the root mean square of its hyperbolic cosine (Maity 2025,
//! arXiv 2509.24320). No product of matrices: one pass takes the momentum in and its norm, one makes the step.

mod reduce;
mod stages;

use super::elementwise::{self, Work};
use super::storage::{BLOCK, Buffers, Float};
use super::whole::{Whole, Workspace};
use crate::runtime::{Isa, Shared, pool};
pub use reduce::{Cosh, Entries};
use reduce::{Sums, direction_sums};
use stages::{Ema, Step};

/// Fewer elements than this are not worth waking a thread for.
const ELEMENTS_PER_THREAD: usize = 16_384;

/// What is applied: the preprint's update, or that of the authors' package, which is not normalized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Paper,
    Package,
}

/// How the learning rate follows from a tensor's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdjustLr {
    None,
    /// sqrt(max(1, rows / cols))
    Original,
    /// 0.2 sqrt(elements): the RMS of an AdamW step.
    MatchRmsAdamw,
}

impl AdjustLr {
    pub fn factor(self, rows: usize, cols: usize) -> f64 {
        match self {
            AdjustLr::None => 1.0,
            AdjustLr::Original => (rows as f64 / cols as f64).max(1.0).sqrt(),
            AdjustLr::MatchRmsAdamw => 0.2 * (rows as f64 * cols as f64).sqrt(),
        }
    }
}

/// The momentum's direction from a gradient and the new momentum.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    pub momentum: f64,
    pub nesterov: bool,
    pub maximize: bool,
}

impl Direction {
    /// The momentum is the direction.
    pub const ITSELF: Direction = Direction {
        momentum: 1.0,
        nesterov: false,
        maximize: false,
    };
}

/// Hyperparameters of AuON.
#[derive(Clone, Copy, Debug)]
pub struct Auon {
    pub lr: f64,
    pub weight_decay: f64,
    pub direction: Direction,
    pub cosh: Cosh,
    /// Added to the norm.
    pub eps: f64,
    pub variant: Variant,
    pub adjust_lr: AdjustLr,
}

/// The tensors of a parameter, in one order. State: the momentum.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub buffers: Buffers<1>,
    /// The tensor as a matrix, for the learning rate.
    pub rows: usize,
    pub cols: usize,
}

/// An AuON step over parameters.
pub struct Update {
    rule: Auon,
    parameters: Vec<Parameter>,
}

// SAFETY: the pointers are used by `run` only, while the maker of the update keeps them valid.
unsafe impl Send for Update {}
// SAFETY: as above.
unsafe impl Sync for Update {}

impl Update {
    /// # Safety
    /// Until the update is dropped, all pointers are valid for `len` elements of their types, for writing where they
    /// are `*mut`, and nothing else reads or writes what they write. The types are
    /// [supported](elementwise::is_supported).
    pub unsafe fn new(rule: Auon, mut parameters: Vec<Parameter>) -> Update {
        parameters.retain(|parameter| parameter.buffers.len > 0);
        Update { rule, parameters }
    }
}

impl Whole for Update {
    fn run(&mut self, threads: usize, _: &mut Workspace) {
        let sums = self.take_momentum(threads);
        let mut steps = elementwise::Batch::with_capacity(self.parameters.len());
        for (parameter, sums) in self.parameters.iter().zip(sums) {
            let rule = self.step(parameter, sums, threads);
            // SAFETY: the maker of the update vouched for the tensors.
            unsafe { steps.push(rule, parameter.buffers) }.expect("a supported combination");
        }
        elementwise::run(&[Box::new(steps) as Box<dyn Work>], threads);
    }
}

impl Update {
    /// Updates all momenta, and returns the sums over the directions that follow. Each block is summed right after it
    /// was written, while it is in the cache.
    fn take_momentum(&self, threads: usize) -> Vec<Sums> {
        let direction = self.rule.direction;
        let rule = Ema(direction);
        let mut batch = elementwise::Batch::with_capacity(self.parameters.len());
        let mut blocks = Vec::new();
        for parameter in &self.parameters {
            let buffers = parameter.buffers.unwritten();
            // SAFETY: the maker of the update vouched for the tensors.
            unsafe { batch.push(rule, buffers) }.expect("a supported combination");
            let starts = (0..buffers.len).step_by(BLOCK);
            blocks.extend(starts.map(|start| buffers.part(start, BLOCK.min(buffers.len - start))));
        }
        let mut sums = vec![Sums::default(); blocks.len()];
        let to = Shared::new(sums.as_mut_ptr());
        let blocks = Blocks(blocks);
        let useful = batch.elements().div_ceil(ELEMENTS_PER_THREAD);
        let isa = Isa::current();
        pool::for_each(threads.min(useful), sums.len(), &|index| {
            batch.run(index);
            // SAFETY: the maker of the update vouched for the tensors, of which this task alone uses this block, and
            // every block has its own sums.
            unsafe { *to.get().add(index) = direction_sums(blocks.get(index), &direction, 1.0, isa) };
        });
        let mut sums = sums.into_iter();
        let of_parameter = |parameter: &Parameter| {
            let own = sums.by_ref().take(parameter.buffers.len.div_ceil(BLOCK));
            own.fold(Sums::default(), Sums::and)
        };
        self.parameters.iter().map(of_parameter).collect()
    }

    /// The step of a parameter, from the sums over its direction.
    fn step(&self, parameter: &Parameter, sums: Sums, threads: usize) -> Step {
        let Auon {
            lr,
            direction,
            cosh,
            eps,
            variant,
            adjust_lr,
            ..
        } = self.rule;
        let step = |power: f64, scale: f64| Step {
            direction,
            decay: lr * self.rule.weight_decay,
            power,
            scale,
        };
        if sums.squares.is_nan() || sums.largest.is_infinite() {
            return step(1.0, f64::NAN);
        }
        if sums.largest == 0.0 {
            return step(1.0, 0.0);
        }
        // A power of two keeps squares within f64, and the step's factors within the type of the arithmetic.
        let range = if parameter.buffers.dtype == Float::F64 {
            1000.0
        } else {
            120.0
        };
        let power = 2f64.powi(-sums.largest.log2().floor().clamp(-range, range) as i32);
        let is_safe = sums.squares.is_finite() && sums.squares >= f64::MIN_POSITIVE / f64::EPSILON;
        let entries = Entries {
            buffers: &parameter.buffers,
            direction: &direction,
            threads,
        };
        let norm = if is_safe {
            sums.squares.sqrt() * power
        } else {
            // SAFETY: the maker of the update vouched for the tensors; nothing writes now.
            unsafe { entries.sums(power) }.squares.sqrt()
        };
        let unit = 1.0 / (norm + eps * power);
        let count = parameter.buffers.len as f64;
        let mean = (cosh.gamma * norm * unit).powi(2) / count;
        // sinh(z)^2 = z^2 + z^4 / 3 + ...: what the first term leaves out, in the root mean square.
        let left_out = (cosh.gamma * sums.largest * power * unit).powi(2) * mean / 6.0;
        let tolerance = if parameter.buffers.dtype == Float::F64 {
            1e-17
        } else {
            1e-9
        };
        let mean = if left_out < tolerance {
            mean
        } else {
            // SAFETY: as above.
            unsafe { entries.sinh_squares(power, cosh.gamma * unit) / count }
        };
        let divisor = (1.0 + mean).sqrt() + cosh.eps;
        let rate = lr * adjust_lr.factor(parameter.rows, parameter.cols) / divisor;
        match variant {
            Variant::Paper => step(power, rate * unit),
            Variant::Package => step(1.0, rate),
        }
    }
}

/// The blocks of all parameters.
struct Blocks(Vec<Buffers<1>>);

// SAFETY: only pointers; each block is one task's.
unsafe impl Sync for Blocks {}

impl Blocks {
    fn get(&self, index: usize) -> &Buffers<1> {
        &self.0[index]
    }
}

#[cfg(test)]
mod tests;
