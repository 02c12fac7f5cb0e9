//! Muon's transform.

use super::{Matrix, Transform, Workspace};
use crate::kernels::orthogonal::{Operand, Options, Room, orthogonalize};

/// The approximate polar factor of the direction, by Newton-Schulz; see [`crate::kernels::orthogonal`].
pub struct Orthogonalize(pub Options);

impl Transform for Orthogonalize {
    fn writes(&self) -> bool {
        true
    }

    fn squared_norm(&self, rows: usize, cols: usize) -> Option<f64> {
        Some(rows.min(cols) as f64)
    }

    fn make_room(&self, shapes: &[(usize, usize)], wide: bool, room: &mut Room, threads: usize) {
        room.add(shapes, wide, &self.0, threads);
    }

    fn run(&self, matrices: &mut [Matrix<'_>], workspace: &mut Workspace, threads: usize) {
        let operands = matrices.iter_mut().map(|matrix| {
            let (input, output) = matrix.direction.written().take();
            Operand {
                input,
                output,
                rows: matrix.rows,
                cols: matrix.cols,
            }
        });
        let mut operands: Vec<Operand<'_>> = operands.collect();
        orthogonalize(&mut operands, &self.0, &mut workspace.orthogonal, threads)
            .expect("operands of the matrices' own sizes");
    }
}
