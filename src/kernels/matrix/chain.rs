//! The transforms of a rule.

use std::fmt;
use std::sync::Arc;

use super::piece::Piece;
use super::{Matrix, Transform, Workspace};
use crate::kernels::orthogonal::Room;

/// Transforms that run one after the other.
#[derive(Clone)]
pub struct Chain(Vec<Arc<dyn Transform>>);

/// Transform `index` of a chain writes elements, and one before it has left them a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritesAfterFactor {
    pub index: usize,
}

impl fmt::Display for WritesAfterFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "transform {} writes elements, expected before all that give a factor",
            self.index
        )
    }
}

impl Chain {
    pub fn new(transforms: Vec<Arc<dyn Transform>>) -> Result<Chain, WritesAfterFactor> {
        let misplaced = transforms
            .windows(2)
            .position(|pair| !pair[0].writes() && pair[1].writes());
        match misplaced {
            Some(before) => Err(WritesAfterFactor { index: before + 1 }),
            None => Ok(Chain(transforms)),
        }
    }

    /// The names of all row states, in the order of the transforms.
    pub fn row_states(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter_map(|transform| transform.row_state())
    }

    /// Whether directions are to be written out.
    pub fn writes(&self) -> bool {
        self.0.first().is_some_and(|transform| transform.writes())
    }

    /// The square of the norm that what comes of a matrix has, as the transforms tell.
    pub fn squared_norm(&self, rows: usize, cols: usize) -> f64 {
        let told = self
            .0
            .iter()
            .rev()
            .find_map(|transform| transform.squared_norm(rows, cols));
        told.unwrap_or(1.0)
    }

    /// Makes room for the transforms of matrices.
    pub fn make_room(&self, shapes: &[(usize, usize)], wide: bool, room: &mut Room, threads: usize) {
        for transform in &self.0 {
            transform.make_room(shapes, wide, room, threads);
        }
    }

    /// Transforms the matrix of every piece.
    pub fn run(
        &self,
        pieces: &[Piece],
        matrices: &mut [Matrix<'_>],
        workspace: &mut Workspace,
        threads: usize,
    ) {
        let mut row_state = 0;
        for transform in &self.0 {
            let is_kept = transform.row_state().is_some();
            for (matrix, piece) in matrices.iter_mut().zip(pieces) {
                // SAFETY: the pieces' memory is valid for this call, and no other matrix has this piece.
                matrix.state = is_kept.then(|| unsafe { piece.row_state(row_state) });
            }
            transform.run(matrices, workspace, threads);
            row_state += usize::from(is_kept);
        }
    }
}
