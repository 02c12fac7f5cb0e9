//! AuON's first transform.

use super::{Factor, Matrix, Transform, Workspace};

/// The direction divided by its Frobenius norm. A zero matrix stays zero; one with an element that is not finite becomes
/// NaN altogether.
#[derive(Clone, Copy, Debug)]
pub struct Normalize {
    /// Added to the norm.
    pub eps: f64,
}

impl Transform for Normalize {
    fn writes(&self) -> bool {
        false
    }

    fn squared_norm(&self, _: usize, _: usize) -> Option<f64> {
        Some(1.0)
    }

    fn run(&self, matrices: &mut [Matrix<'_>], _: &mut Workspace, threads: usize) {
        for matrix in matrices {
            let size = matrix.direction.size(threads);
            matrix.factor = Factor {
                power: size.power,
                scale: size.unit(self.eps / matrix.factor.value()),
                ..Factor::ONE
            };
        }
    }
}
