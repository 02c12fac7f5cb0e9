//! Updates that look at a matrix as a whole: a direction (the momentum), a chain of transforms, and the step along what
//! comes out. Muon (Jordan et al. 2024) is `[Orthogonalize]`, NorMuon (arXiv 2510.05491) `[Orthogonalize,
//! NormalizeRows]`, AuON (Maity 2025, arXiv 2509.24320) `[Normalize, DivideByCosh]`, and HybridAuON `[Orthogonalize,
//! DivideByCosh]`.
//!
//! `momentum` and `apply` are rules of the element-wise engine, which gives them storage types and rounding. A chain
//! whose transforms all tell no more than a factor has its directions written nowhere: both passes read gradient and
//! momentum, at the speed of memory. Any other takes as many matrices at once as fit the scratch memory.
//!
//! A new transform is one file here, a struct of its hyperparameters with [`Transform`], and one maker in
//! `bindings/matrix.rs`. `normalize.rs` is the shortest that tells a factor, `normalize_rows.rs` one that writes and has
//! a state of its own.

mod apply;
mod chain;
mod direction;
mod divide_by_cosh;
mod entries;
mod layout;
mod momentum;
mod normalize;
mod normalize_rows;
mod orthogonalize;
mod piece;
mod room;
mod stages;
mod step;

use super::orthogonal::{self, Numbers};
use super::storage::Scratch;
pub use apply::{AdjustLr, Apply};
pub use chain::{Chain, WritesAfterFactor};
pub use direction::{Direction, Written};
pub use divide_by_cosh::DivideByCosh;
pub use layout::{Layout, Mismatch, Part};
pub use momentum::Momentum;
pub use normalize::Normalize;
pub use normalize_rows::NormalizeRows;
pub use orthogonalize::Orthogonalize;
pub use piece::Parameter;
pub use room::Coming;
pub use stages::{AlongMove, ComingDirection};
pub use step::{MatrixRule, Step};

/// A link of the chain from a matrix's direction to what is applied.
pub trait Transform: Send + Sync {
    /// Whether it writes elements. If not, all it changes is [`Matrix::factor`]; such transforms come last.
    fn writes(&self) -> bool;

    /// The name of what it keeps of every matrix from step to step: a number for each row, at first 0, in the type of
    /// the arithmetic.
    fn row_state(&self) -> Option<&'static str> {
        None
    }

    /// The square of the norm of what it gives, or about that, where the shape alone tells.
    fn squared_norm(&self, _rows: usize, _cols: usize) -> Option<f64> {
        None
    }

    /// Makes room for what `run` takes of the workspace for matrices of such numbers and shapes.
    fn make_room(
        &self,
        _shapes: &[(usize, usize)],
        _wide: bool,
        _room: &mut orthogonal::Room,
        _threads: usize,
    ) {
    }

    /// Transforms every matrix, on up to `threads` threads. What it gives depends neither on how many nor on what other
    /// matrices there are.
    fn run(&self, matrices: &mut [Matrix<'_>], workspace: &mut Workspace, threads: usize);
}

/// A matrix with elements on its way through the chain.
pub struct Matrix<'a> {
    pub rows: usize,
    pub cols: usize,
    pub direction: Direction<'a>,
    pub factor: Factor,
    /// The [`Transform::row_state`] of the transform that runs.
    pub state: Option<Numbers<'a>>,
}

/// What a direction is yet to be multiplied by: `power * scale / divisor`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// A power of two, by which elements are multiplied first: together with `scale`, it could leave the range of the
    /// arithmetic.
    pub power: f64,
    pub scale: f64,
    pub divisor: f64,
}

impl Factor {
    pub const ONE: Factor = Factor {
        power: 1.0,
        scale: 1.0,
        divisor: 1.0,
    };

    pub fn value(&self) -> f64 {
        self.power * self.scale / self.divisor
    }
}

/// Memory that is kept from one step to the next.
#[derive(Default)]
pub struct Workspace {
    pub orthogonal: orthogonal::Workspace,
    directions: Scratch,
}

#[cfg(test)]
mod tests;
