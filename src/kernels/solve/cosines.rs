//! Gradients by their directions and lengths: what does not depend on a loss's unit is decided by the directions.

use ndarray::{Array1, Array2, ArrayView2};

/// Inner products as those of unit vectors, and the vectors' lengths.
#[derive(Clone, Debug)]
pub struct Cosines {
    /// Symmetric, with ones on the diagonal; rows and columns of zeros where the length is 0.
    pub products: Array2<f64>,
    /// In units of the largest, or all 0.
    pub lengths: Array1<f64>,
}

impl Cosines {
    pub fn of(products: ArrayView2<f64>) -> Cosines {
        let roots = products.diag().mapv(|square| square.max(0.0).sqrt());
        let largest = roots.fold(0.0_f64, |most, &x| most.max(x));
        let cosine = |(i, j)| {
            if roots[i] == 0.0 || roots[j] == 0.0 {
                return 0.0;
            }
            if i == j {
                return 1.0;
            }
            let both =
                products[[i, j]] / roots[i] / roots[j] / 2.0 + products[[j, i]] / roots[j] / roots[i] / 2.0;
            both.clamp(-1.0, 1.0)
        };
        Cosines {
            products: Array2::from_shape_fn(products.dim(), cosine),
            lengths: if largest > 0.0 {
                &roots / largest
            } else {
                roots.clone()
            },
        }
    }
}
