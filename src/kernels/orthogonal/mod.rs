//! Newton–Schulz orthogonalization: the approximate polar factor `U Vᵀ` of `G = U Σ Vᵀ`, the update of the Muon family.
//!
//! `schedule` has the coefficients, `plan` decides how to compute, `newton_schulz` iterates on one matrix, and
//! [`orthogonalize`] spreads many over threads. Wide and tall matrices are both taken as they lie: the iteration works
//! on the smaller Gram matrix and never transposes.

mod memory;
mod newton_schulz;
mod normalize;
mod operand;
mod plan;
mod room;
mod schedule;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::kernels::matmul::{Element, Real};
use crate::kernels::storage::Scalar;
use crate::runtime::{Isa, pool};
pub use memory::{Memory, orthogonalize_all};
use newton_schulz::{Iteration, Scratch};
use normalize::Norm;
pub use operand::{Input, Numbers, Operand};
use plan::Plan;
pub use room::Room;
pub use schedule::{Schedule, ScheduleError, Triple};

/// The form of the iteration. Both evaluate the same polynomials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The Gram form where the matrix is oblong enough for it to be faster and the schedule tame enough, otherwise the
    /// standard one.
    Auto,
    /// On the matrix itself.
    Standard,
    /// On the Gram matrix of the smaller side (Dao-AILab/gram-newton-schulz), with restarts.
    Gram,
}

/// What products are computed in. Sums and what is carried from step to step are f32, or f64 where the precision is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f64 input in f64. Everything else: where bf16 products outrun f32's ([`Isa::has_fast_bf16`]), factors of products
    /// in bf16 except where the schedule would amplify their rounding; in f32 elsewhere.
    Auto,
    Float64,
    Float32,
    /// All factors of products rounded to bf16, also on CPUs where that is no faster.
    Bfloat16,
}

/// How to orthogonalize.
#[derive(Clone, Debug)]
pub struct Options {
    pub schedule: Schedule,
    pub algorithm: Algorithm,
    pub precision: Precision,
    /// The matrix is divided by `max(norm, eps)`. With 0 the result does not depend on the scale of the input; torch
    /// has 1e-7.
    pub eps: f64,
    /// Steps (counted from 0) before which the Gram form multiplies X and starts anew: what is lost to rounding in the
    /// Gram matrix is then recovered. Those that are no step of the schedule have no effect.
    pub restarts: Vec<usize>,
}

impl Options {
    /// `schedule` with "auto" precision and form, restart at step 2, no `eps`.
    pub fn new(schedule: Schedule) -> Options {
        Options {
            schedule,
            algorithm: Algorithm::Auto,
            precision: Precision::Auto,
            eps: 0.0,
            restarts: vec![2],
        }
    }
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// Operand `index` has a buffer of another length than its shape says.
    Length {
        index: usize,
        buffer: &'static str,
        length: usize,
        rows: usize,
        cols: usize,
    },
    Eps {
        eps: f64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Length {
                index,
                buffer,
                length,
                rows,
                cols,
            } => {
                write!(
                    f,
                    "matrix {index}: the {buffer} has {length} elements, expected {rows} x {cols}"
                )
            }
            Error::Eps { eps } => write!(f, "eps must be finite and at least 0, got {eps}"),
        }
    }
}

impl std::error::Error for Error {}

/// Memory that is kept from one call to the next: about `4 n² + 2 m n` values for every thread that works on a matrix.
#[derive(Default)]
pub struct Workspace {
    f32: Vec<Mutex<Scratch<f32>>>,
    f64: Vec<Mutex<Scratch<f64>>>,
}

/// Orthogonalizes every operand, on up to `threads` threads. The result does not depend on how many, nor on what other
/// operands there are. A zero matrix stays zero; one with an element that is not finite becomes NaN altogether.
///
/// # Errors
/// Where a buffer does not have its shape's length; then no operand has been touched.
pub fn orthogonalize(
    operands: &mut [Operand<'_>],
    options: &Options,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<(), Error> {
    orthogonalize_on(Isa::current(), operands, options, workspace, threads)
}

fn orthogonalize_on(
    isa: Isa,
    operands: &mut [Operand<'_>],
    options: &Options,
    workspace: &mut Workspace,
    threads: usize,
) -> Result<(), Error> {
    for (index, operand) in operands.iter().enumerate() {
        operand.check(index)?;
    }
    if !(options.eps >= 0.0 && options.eps.is_finite()) {
        return Err(Error::Eps { eps: options.eps });
    }
    let threads = threads.max(1);
    workspace
        .f32
        .resize_with(workspace.f32.len().max(threads), Mutex::default);
    workspace
        .f64
        .resize_with(workspace.f64.len().max(threads), Mutex::default);
    let mut queue: Vec<Mutex<&mut Operand<'_>>> = operands.iter_mut().map(Mutex::new).collect();
    queue.sort_by(|a, b| locked(b).cost().total_cmp(&locked(a).cost()));
    let costs: Vec<f64> = queue.iter().map(|operand| locked(operand).cost()).collect();
    let (split, spread) = queue.split_at(operands_to_split(&costs, threads));
    for operand in split {
        locked(operand).run(options, isa, workspace, 0, threads);
    }
    let next = AtomicUsize::new(0);
    pool::for_each(threads, threads.min(spread.len()), &|lane| {
        while let Some(operand) = spread.get(next.fetch_add(1, Ordering::Relaxed)) {
            locked(operand).run(options, isa, workspace, lane, 1);
        }
    });
    Ok(())
}

/// A lock that nobody else waits for; after a panic its content is only memory to be written over.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Proportional to the time of one step.
fn cost(rows: usize, cols: usize) -> f64 {
    let (rows, cols) = (rows as f64, cols as f64);
    rows.min(cols).powi(2) * (rows + cols)
}

/// How many of the largest operands to split over all threads, one after the other, before the rest are spread, one
/// thread each: those that are large, and as few more as leave a rest that spreads evenly.
fn operands_to_split(descending: &[f64], threads: usize) -> usize {
    /// From here on, a matrix and what is made of it leave a core's own cache: two threads on one matrix were 8 to 10%
    /// faster than each on its own (768 x 768 to 768 x 3072 on a Zen 5 CPU).
    const LARGE: f64 = 5e8;
    /// Below this, threads wait longer for each other than they work. In units of [`cost`].
    const SMALL: f64 = 1e6;
    /// How much longer than evenly spread work the longest thread may take: splitting costs about as much.
    const UNEVEN: f64 = 1.1;
    let evenly = |rest: &[f64]| {
        let mut loads = vec![0.0; threads];
        for cost in rest {
            *loads
                .iter_mut()
                .min_by(|a, b| f64::total_cmp(a, b))
                .expect("a thread") += cost;
        }
        let longest = loads.iter().copied().fold(0.0, f64::max);
        longest <= UNEVEN * loads.iter().sum::<f64>() / threads as f64
    };
    let at_least = |least: f64| descending.partition_point(|&cost| cost >= least);
    (at_least(LARGE)..at_least(SMALL))
        .find(|&count| evenly(&descending[count..]))
        .unwrap_or(at_least(SMALL))
}

/// Types that the iteration computes in.
trait Compute: Element<Acc = Self> + Real + Scalar {
    fn scratch(workspace: &Workspace, lane: usize) -> &Mutex<Scratch<Self>>;
    fn of<'t>(target: &'t mut Numbers<'_>) -> Option<&'t mut [Self]>;
}

impl Compute for f32 {
    fn scratch(workspace: &Workspace, lane: usize) -> &Mutex<Scratch<f32>> {
        &workspace.f32[lane]
    }
    fn of<'t>(target: &'t mut Numbers<'_>) -> Option<&'t mut [f32]> {
        match target {
            Numbers::F32(values) => Some(values),
            Numbers::F64(_) => None,
        }
    }
}

impl Compute for f64 {
    fn scratch(workspace: &Workspace, lane: usize) -> &Mutex<Scratch<f64>> {
        &workspace.f64[lane]
    }
    fn of<'t>(target: &'t mut Numbers<'_>) -> Option<&'t mut [f64]> {
        match target {
            Numbers::F64(values) => Some(values),
            Numbers::F32(_) => None,
        }
    }
}

impl Operand<'_> {
    fn check(&self, index: usize) -> Result<(), Error> {
        let (rows, cols) = (self.rows, self.cols);
        let input = self.input.len().map(|length| ("input", length));
        for (buffer, length) in input.into_iter().chain([("output", self.output.len())]) {
            if rows.checked_mul(cols) != Some(length) {
                return Err(Error::Length {
                    index,
                    buffer,
                    length,
                    rows,
                    cols,
                });
            }
        }
        Ok(())
    }

    fn cost(&self) -> f64 {
        cost(self.rows, self.cols)
    }

    fn run(&mut self, options: &Options, isa: Isa, workspace: &Workspace, lane: usize, threads: usize) {
        let wide_input = matches!(
            (&self.input, &self.output),
            (Input::F64(_), _) | (Input::Output, Numbers::F64(_))
        );
        if options.precision == Precision::Float64 || (options.precision == Precision::Auto && wide_input) {
            self.run_in::<f64>(options, isa, workspace, lane, threads);
        } else {
            self.run_in::<f32>(options, isa, workspace, lane, threads);
        }
    }

    fn run_in<S: Compute>(
        &mut self,
        options: &Options,
        isa: Isa,
        workspace: &Workspace,
        lane: usize,
        threads: usize,
    ) {
        let (rows, cols) = (self.rows, self.cols);
        if rows * cols == 0 {
            return;
        }
        let plan = Plan::<S>::new(options, (rows, cols), isa);
        let scratch = &mut *locked(S::scratch(workspace, lane));
        let mut own = std::mem::take(&mut scratch.x);
        let given = S::of(&mut self.output).is_some();
        let length = if given { 0 } else { rows * cols };
        if own.len() < length {
            own.resize(length, S::ZERO);
        }
        let norm = self.normalize(&mut own[..length], options.eps, isa, &mut scratch.sums, threads);
        let x = S::of(&mut self.output).unwrap_or(&mut own[..length]);
        match norm {
            Norm::Zero => x.fill(S::ZERO),
            Norm::NotFinite => x.fill(S::from_f64(f64::NAN)),
            Norm::Scale(..) => Iteration {
                x,
                rows,
                cols,
                plan: &plan,
                scratch,
                threads,
            }
            .run(),
        }
        if !given {
            let x = &own[..length];
            match &mut self.output {
                Numbers::F64(to) => normalize::scale(x, to, (1.0, 1.0), isa, threads),
                Numbers::F32(to) => normalize::scale(x, to, (1.0, 1.0), isa, threads),
            }
        }
        scratch.x = own;
    }

    /// The input divided by its norm, into the output where that is of type S, otherwise into `own`.
    fn normalize<S: Compute>(
        &mut self,
        own: &mut [S],
        eps: f64,
        isa: Isa,
        sums: &mut Vec<f64>,
        threads: usize,
    ) -> Norm {
        let mut normalize = Normalize {
            eps,
            isa,
            sums,
            threads,
        };
        if matches!(self.input, Input::Output) {
            if let Some(x) = S::of(&mut self.output) {
                return normalize.in_place(x);
            }
            return match &self.output {
                Numbers::F64(values) => normalize.copy(values, own),
                Numbers::F32(values) => normalize.copy(values, own),
            };
        }
        let to = S::of(&mut self.output).unwrap_or(own);
        match self.input {
            Input::F64(values) => normalize.copy(values, to),
            Input::F32(values) => normalize.copy(values, to),
            Input::Bf16(values) => normalize.copy(values, to),
            Input::F16(values) => normalize.copy(values, to),
            Input::Output => unreachable!("returned above"),
        }
    }
}

struct Normalize<'a> {
    eps: f64,
    isa: Isa,
    sums: &'a mut Vec<f64>,
    threads: usize,
}

impl Normalize<'_> {
    fn copy<T: Scalar, S: Real>(&mut self, from: &[T], to: &mut [S]) -> Norm {
        let norm = normalize::norm(from, self.eps, self.isa, self.sums, self.threads);
        if let Norm::Scale(first, second) = norm {
            normalize::scale(from, to, (first, second), self.isa, self.threads);
        }
        norm
    }

    fn in_place<S: Real + Scalar>(&mut self, values: &mut [S]) -> Norm {
        let norm = normalize::norm(values, self.eps, self.isa, self.sums, self.threads);
        if let Norm::Scale(first, second) = norm {
            normalize::scale_in_place(values, (first, second), self.isa, self.threads);
        }
        norm
    }
}
