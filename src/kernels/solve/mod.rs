//! Solvers: what is found step by step and not in one pass. A solver starts, does bounded pieces of work, says when to
//! stop, and can give its best answer at any time; [`solve`] runs it, counts, and lets an observer see and interrupt.

mod cagrad;
mod cone;
mod cosines;
mod differences;
mod nash;
mod simplex;
#[cfg(test)]
mod tests;
mod upgrad;

use std::time::{Duration, Instant};

pub use cagrad::{Cagrad, Conflict};
pub use cosines::Cosines;
pub use nash::Nash;
pub use simplex::{Quadratic, SimplexQp};
pub use upgrad::UpGrad;

/// A problem on its way to its solution.
pub trait Solver: Sized {
    type Problem;
    type Solution;

    /// Takes in the problem, with a point near the solution where the caller knows one.
    fn start(problem: Self::Problem, initial: Option<Self::Solution>) -> Self;
    /// A piece of work that takes some milliseconds at most: an observer is asked only in between.
    fn step(&mut self);
    /// Why another step would be in vain; none where it would not.
    fn stop(&self) -> Option<Status>;
    /// How far from the solution this is at most, in the unit that the solver names.
    fn gap(&self) -> f64;
    /// The best that is known now.
    fn solution(&self) -> Self::Solution;
}

/// Why a solver stopped, or that it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Running,
    /// The gap is within the solver's tolerance.
    Converged,
    /// Rounding lets no step come nearer, although the gap is not within the tolerance.
    Stalled,
    /// The steps that it was allowed did not suffice.
    OutOfSteps,
    /// The observer said so.
    Interrupted,
}

/// How far a solver has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    pub steps: usize,
    pub gap: f64,
    pub status: Status,
}

/// What a caller allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub steps: usize,
    /// The observer is asked no more often than this.
    pub every: Duration,
}

impl Default for Limits {
    /// No bound on the steps, since solvers notice when they stall; often enough for a person who waits.
    fn default() -> Self {
        Limits {
            steps: usize::MAX,
            every: Duration::from_millis(50),
        }
    }
}

/// Runs a solver to its end, or until the observer answers false. The result does not depend on how often it is asked.
pub fn solve<S: Solver>(
    problem: S::Problem,
    initial: Option<S::Solution>,
    limits: Limits,
    observe: &mut dyn FnMut(&Report) -> bool,
) -> (S::Solution, Report) {
    let mut asked = Instant::now();
    let mut solver = S::start(problem, initial);
    let mut steps = 0;
    let report = |solver: &S, steps, status| Report {
        steps,
        gap: solver.gap(),
        status,
    };
    let status = loop {
        if let Some(status) = solver.stop() {
            break status;
        }
        if steps == limits.steps {
            break Status::OutOfSteps;
        }
        if asked.elapsed() >= limits.every {
            if !observe(&report(&solver, steps, Status::Running)) {
                break Status::Interrupted;
            }
            asked = Instant::now();
        }
        solver.step();
        steps += 1;
    };
    (solver.solution(), report(&solver, steps, status))
}
