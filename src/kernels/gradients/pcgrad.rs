//! PCGrad (arXiv 2001.06782, Algorithm 1) on weights: gradients are known by their inner products.

use ndarray::{Array2, ArrayView2};

/// Row i makes task i's gradient without what it has against the others', met in the order `orders[i]`.
pub fn pcgrad(products: ArrayView2<f64>, orders: &[Vec<usize>]) -> Array2<f64> {
    let mut rows = Array2::eye(orders.len());
    for (own, (mut row, order)) in rows.rows_mut().into_iter().zip(orders).enumerate() {
        for &other in order.iter().filter(|&&other| other != own) {
            let along: f64 = row.dot(&products.column(other));
            if along < 0.0 {
                row[other] -= along / products[[other, other]];
            }
        }
    }
    rows
}
