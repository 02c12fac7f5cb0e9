use super::normal::{Normal, padded};
use super::*;
use crate::kernels::storage::Float;
use crate::runtime::Isa;

/// Pseudorandom numbers between -1 and 1.
fn numbers(len: usize) -> Vec<f64> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn rows<T>(data: &[T], dtype: Float, rows: usize, cols: usize) -> Rows {
    assert_eq!(data.len(), rows * cols);
    let data = data.as_ptr().cast();
    Rows {
        data,
        dtype,
        rows,
        cols,
    }
}

#[test]
fn products_are_those_of_plain_loops_on_any_threads_and_instruction_set() {
    for (m, n) in [(1, 1), (3, 5), (4, 32), (37, 45), (1100, 33)] {
        let numbers = numbers(m * n + n);
        let (matrix, vector) = numbers.split_at(m * n);
        let product: Vec<f64> = matrix
            .chunks(n)
            .map(|row| row.iter().zip(vector).map(|(a, v)| a * v).sum())
            .collect();
        let expected: Vec<f64> = (0..n)
            .map(|j| (0..m).map(|i| matrix[i * n + j] * product[i]).sum())
            .collect();
        let single: Vec<f32> = matrix.iter().map(|&x| x as f32).collect();
        for isa in Isa::supported() {
            check::<f64>(isa, rows(matrix, Float::F64, m, n), vector, &expected, 1e-13);
            check::<f32>(isa, rows(&single, Float::F32, m, n), vector, &expected, 3e-6);
        }
    }
}

fn check<S: Work>(isa: Isa, matrix: Rows, vector: &[f64], expected: &[f64], tolerance: f64) {
    let mut whole = vec![S::default(); padded(matrix.cols)];
    for (to, &x) in whole.iter_mut().zip(vector) {
        *to = S::of_f64(x);
    }
    let scale = expected.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
    let mut first = Vec::new();
    for threads in [1, 3] {
        let mut to = whole.clone();
        // SAFETY: the matrix lives in the caller.
        unsafe { Normal::new(matrix, 1.0).multiply(isa, &whole, &mut to, threads) };
        let found: Vec<f64> = to.iter().map(|x| x.to_f64()).collect();
        assert!(found[matrix.cols..].iter().all(|&x| x == 0.0));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= tolerance * scale,
                "{found} is not {expected}"
            );
        }
        assert!(first.is_empty() || first == found, "threads make a difference");
        first = found;
    }
}

#[test]
fn the_largest_singular_value_of_two_by_two() {
    let (matrix, mut vector) = ([3.0, 0.0, 4.0, 5.0], [1.0, 0.0]);
    // SAFETY: the matrix lives until then.
    let found = unsafe {
        top_singular_value::<f64>(
            Isa::current(),
            rows(&matrix, Float::F64, 2, 2),
            &mut vector,
            (8, 0.0),
            1,
        )
    };
    assert!((found.value - 45_f64.sqrt()).abs() < 1e-13, "{found:?}");
    assert!((vector[0].abs() - 0.5_f64.sqrt()).abs() < 1e-13, "{vector:?}");
    assert_eq!(found.steps, 2);
}

#[test]
fn sizes_of_matrices_make_no_difference() {
    for size in [1e-30_f32, 1.0, 1e30] {
        let (matrix, mut vector) = ([3.0 * size, 0.0, 4.0 * size, 5.0 * size], [1.0, 0.0]);
        // SAFETY: the matrix lives until then.
        let found = unsafe {
            top_singular_value::<f32>(
                Isa::current(),
                rows(&matrix, Float::F32, 2, 2),
                &mut vector,
                (8, 0.0),
                1,
            )
        };
        let value = found.value / f64::from(size);
        assert!((value - 45_f64.sqrt()).abs() < 1e-5, "{found:?}");
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let (matrix, mut vector) = ([1.0, bad, 1.0, 1.0], [1.0, 0.0]);
        // SAFETY: as above.
        let found = unsafe {
            top_singular_value::<f32>(
                Isa::current(),
                rows(&matrix, Float::F32, 2, 2),
                &mut vector,
                (8, 0.0),
                1,
            )
        };
        assert!(!found.squared_norm.is_finite() && vector == [1.0, 0.0]);
    }
}

#[test]
fn residuals_bound_the_distance_to_a_singular_value() {
    // Singular values 1 to 40 of a diagonal matrix.
    let n = 40;
    let matrix: Vec<f64> = (0..n * n)
        .map(|i| if i / n == i % n { (i % n + 1) as f64 } else { 0.0 })
        .collect();
    for steps in [1, 3, 10, 40] {
        let mut vector = vec![1.0; n];
        // SAFETY: the matrix lives until then.
        let found = unsafe {
            top_singular_value::<f64>(
                Isa::current(),
                rows(&matrix, Float::F64, n, n),
                &mut vector,
                (steps, 0.0),
                2,
            )
        };
        let nearest = (1..=n)
            .map(|i| (found.value - i as f64).abs())
            .fold(f64::MAX, f64::min);
        assert!(nearest <= found.residual + 1e-12, "{steps}: {found:?}");
        assert!(found.value <= n as f64 + 1e-12);
        let length: f64 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-12);
    }
}
