//! The last transform of AuON and of HybridAuON (arXiv 2509.24320).

use super::entries::{Fold, LANES};
use super::{Direction, Matrix, Transform, Workspace};
use crate::kernels::storage::Float;

/// The direction divided by the root mean square of its hyperbolic cosine.
#[derive(Clone, Copy, Debug)]
pub struct DivideByCosh {
    /// Multiplies what the cosine is of.
    pub gamma: f64,
    /// Added to the root mean square.
    pub rms_eps: f64,
    /// Take the cosine of the matrix divided by its norm, as the authors' package does, and not of the matrix itself.
    pub of_normalized: bool,
    /// Added to that norm.
    pub eps: f64,
}

impl Transform for DivideByCosh {
    fn writes(&self) -> bool {
        false
    }

    fn run(&self, matrices: &mut [Matrix<'_>], _: &mut Workspace, threads: usize) {
        for matrix in matrices {
            matrix.factor.divisor *= (1.0 + self.mean_of_sinh(matrix, threads)).sqrt() + self.rms_eps;
        }
    }
}

impl DivideByCosh {
    /// The mean square of the hyperbolic sine: cosh(z)^2 = 1 + sinh(z)^2, where 1 would round most of the second away.
    fn mean_of_sinh(&self, matrix: &mut Matrix<'_>, threads: usize) -> f64 {
        let (power, unit) = if self.of_normalized {
            let size = matrix.direction.size(threads);
            (size.power, size.unit(self.eps / matrix.factor.value()))
        } else {
            (matrix.factor.power, matrix.factor.scale / matrix.factor.divisor)
        };
        if let Some(mean) = self.first_term(&matrix.direction, power, unit) {
            return mean;
        }
        let entries = matrix.direction.entries(threads);
        let sinh = SinhSquares {
            power,
            scale: self.gamma * unit,
        };
        entries.fold(sinh, threads).into_iter().sum::<f64>() / entries.len() as f64
    }

    /// What the norm alone says, where that is enough: of a direction whose elements it would take a pass over gradient
    /// and momentum to read again.
    fn first_term(&self, direction: &Direction<'_>, power: f64, unit: f64) -> Option<f64> {
        let Direction::Implied(entries, size) = direction else {
            return None;
        };
        let norm = size.norm * (power / size.power);
        let mean = (self.gamma * norm * unit).powi(2) / entries.len() as f64;
        // sinh(z)^2 = z^2 + z^4 / 3 + ...: what the first term leaves out, in the root mean square.
        let left_out = (self.gamma * size.largest * power * unit).powi(2) * mean / 6.0;
        let tolerance = if entries.dtype() == Float::F64 {
            1e-17
        } else {
            1e-9
        };
        (left_out < tolerance).then_some(mean)
    }
}

/// Terms of `sinh(z)^2 = z^2 + z^4 / 3 + ...`, in z^2.
const TERMS: [f64; 7] = [
    1.0,
    1.0 / 3.0,
    2.0 / 45.0,
    1.0 / 315.0,
    2.0 / 14_175.0,
    2.0 / 467_775.0,
    4.0 / 42_567_525.0,
];
/// Up to here the terms are exact to the last digits of f64.
const SMALL: f64 = 0.25;

/// `sinh(element * power * scale)^2`
#[derive(Clone, Copy)]
struct SinhSquares {
    power: f64,
    scale: f64,
}

impl Fold for SinhSquares {
    type Lanes = [f64; LANES];
    type Sum = f64;

    #[inline(always)]
    fn add(&self, values: [f64; LANES], sums: &mut Self::Lanes) {
        let small = values.iter().fold(true, |small, value| {
            small & ((value * self.power * self.scale).abs() <= SMALL)
        });
        for lane in 0..LANES {
            let z = values[lane] * self.power * self.scale;
            sums[lane] += if small {
                let square = z * z;
                TERMS.iter().rev().fold(0.0, |sum, term| sum * square + term) * square
            } else {
                let sinh = z.sinh();
                sinh * sinh
            };
        }
    }

    #[inline(always)]
    fn finish(&self, sums: Self::Lanes) -> f64 {
        sums.iter().sum()
    }
}
