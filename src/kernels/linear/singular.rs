//! The largest singular value of a matrix, by Lanczos iteration for AᵀA with full reorthogonalization (Golub and Van
//! Loan, Matrix Computations, chapter 10). It makes the products that power iteration makes, and takes the best vector
//! of all that they span: where the largest singular values lie close together, tens of products do what takes power
//! iteration hundreds.

use super::normal::{Normal, Rows, Work, padded};
use super::{ELEMENTS_PER_THREAD, Element, combine, sums};
use crate::kernels::storage::with_type;
use crate::runtime::{Isa, Shared, pool};

/// The largest singular value σ, from below.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Singular {
    pub value: f64,
    /// The norm of Aᵀu - σv for the unit vectors u = A v / σ and v: a singular value lies within this distance.
    pub residual: f64,
    /// The sum of the squares of the matrix's elements.
    pub squared_norm: f64,
    /// Products with AᵀA.
    pub steps: usize,
}

/// With at most `steps` products, fewer where the residual is at most `tolerance` times the value. `vector`, which is
/// not zero, is the first vector, and becomes the best one. Nothing is found of a matrix whose norm is not finite.
///
/// # Safety
/// As for [`Normal::multiply`].
///
/// # Panics
/// Where there are no columns, or the vector has not as many elements.
pub unsafe fn top_singular_value<S: Work>(
    isa: Isa,
    matrix: Rows,
    vector: &mut [S],
    (steps, tolerance): (usize, f64),
    threads: usize,
) -> Singular {
    assert!(
        matrix.cols > 0 && vector.len() == matrix.cols,
        "a vector of another length"
    );
    // SAFETY: the caller's promise.
    let squared_norm = unsafe { squared_norm(isa, matrix, threads) };
    let size = squared_norm.sqrt();
    let mut result = Singular {
        value: size,
        residual: 0.0,
        squared_norm,
        steps: 0,
    };
    if !(size > 0.0 && size < f64::INFINITY) {
        return result;
    }
    let mut normal = Normal::new(matrix, 1.0 / size);
    let mut space = Space::new(isa, vector);
    while result.steps < steps.min(matrix.cols) {
        // SAFETY: the caller's promise.
        space.take(isa, |newest, to| unsafe {
            normal.multiply(isa, newest, to, threads)
        });
        let (square, left) = space.top();
        result.steps += 1;
        result.value = (square.max(0.0) * size).sqrt();
        result.residual = match result.value > 0.0 {
            true => size * left / result.value,
            false => 0.0,
        };
        let is_close = result.residual <= tolerance * result.value;
        if is_close || !space.go_on(isa) {
            break;
        }
    }
    space.best(isa, vector);
    result
}

/// The vectors that the products of a symmetric matrix span, and what the matrix is between them.
struct Space<S> {
    basis: Vec<Vec<S>>,
    /// What the last product has beside the basis.
    next: Vec<S>,
    matrix: Tridiagonal,
    /// The largest eigenvalue of that matrix, and the vector's parts of the basis.
    top: (f64, Vec<f64>),
}

impl<S: Work> Space<S> {
    fn new(isa: Isa, first: &[S]) -> Space<S> {
        let mut next = vec![S::default(); padded(first.len())];
        next[..first.len()].copy_from_slice(first);
        let length = norm(isa, &next);
        scale(isa, &mut next, 1.0 / length);
        Space {
            basis: Vec::new(),
            next,
            matrix: Tridiagonal::default(),
            top: (0.0, vec![1.0]),
        }
    }

    /// Takes the next vector in, with its product.
    fn take(&mut self, isa: Isa, multiply: impl FnOnce(&[S], &mut [S])) {
        let room = vec![S::default(); self.next.len()];
        let newest = std::mem::replace(&mut self.next, room);
        multiply(&newest, &mut self.next);
        self.matrix.diagonal.push(dot(isa, &newest, &self.next));
        self.basis.push(newest);
        // The second time removes what rounding left of the first.
        for each in self.basis.iter().chain(&self.basis) {
            let part = dot(isa, each, &self.next);
            add(isa, &mut self.next, -part, each);
        }
        self.matrix.beside.push(norm(isa, &self.next));
        self.top = self.matrix.top();
    }

    /// The largest eigenvalue between the vectors, and what its eigenvector's product has beside them.
    fn top(&self) -> (f64, f64) {
        let (value, parts) = &self.top;
        let last = parts.last().expect("there is a vector");
        (*value, self.left() * last.abs())
    }

    fn left(&self) -> f64 {
        *self.matrix.beside.last().expect("a vector has been taken in")
    }

    /// Makes a unit vector of what is left; false where that is what rounding leaves.
    fn go_on(&mut self, isa: Isa) -> bool {
        let rounding = 10.0 * S::EPSILON * self.top.0 * (self.next.len() as f64).sqrt();
        let goes_on = self.left() > rounding;
        if goes_on {
            let factor = 1.0 / self.left();
            scale(isa, &mut self.next, factor);
        }
        goes_on
    }

    /// Writes the eigenvector.
    fn best(mut self, isa: Isa, to: &mut [S]) {
        self.next.fill(S::default());
        for (each, part) in self.basis.iter().zip(&self.top.1) {
            add(isa, &mut self.next, *part, each);
        }
        to.copy_from_slice(&self.next[..to.len()]);
    }
}

/// The sum of the squares of a matrix's elements.
///
/// # Safety
/// As for [`Normal::multiply`].
unsafe fn squared_norm(isa: Isa, matrix: Rows, threads: usize) -> f64 {
    let len = matrix.rows * matrix.cols;
    let mut parts = vec![0.0; len.div_ceil(ELEMENTS_PER_THREAD)];
    let to = Shared::new(parts.as_mut_ptr());
    pool::for_each(threads, parts.len(), &|task| {
        let start = task * ELEMENTS_PER_THREAD;
        // SAFETY: the elements lie in the matrix; each task has its own part.
        unsafe {
            let from = matrix.at(start);
            *to.get().add(task) = with_type!(
                matrix.dtype,
                squares(isa, from, ELEMENTS_PER_THREAD.min(len - start))
            );
        }
    });
    parts.iter().sum()
}

/// # Safety
/// `from` is valid for reading `len` elements, and nothing writes there.
unsafe fn squares<T: Element>(isa: Isa, from: *const u8, len: usize) -> f64 {
    // SAFETY: the caller's promise.
    unsafe { sums::<T, false, 1>(isa, [from.cast()], len, false) }.products[0][0]
}

/// A symmetric tridiagonal matrix; the last element beside the diagonal leads out of it.
#[derive(Default)]
struct Tridiagonal {
    diagonal: Vec<f64>,
    beside: Vec<f64>,
}

impl Tridiagonal {
    /// The largest eigenvalue and its unit vector.
    fn top(&self) -> (f64, Vec<f64>) {
        let beside = &self.beside[..self.diagonal.len() - 1];
        let reach = beside.iter().fold(0.0, |most: f64, each| most.max(each.abs()));
        let largest = self.diagonal.iter().copied().fold(f64::MIN, f64::max);
        // By Gershgorin's circles between these; of NaN neither changes.
        let (mut low, mut high) = (largest, largest + 2.0 * reach);
        for _ in 0..64 {
            let middle = 0.5 * (low + high);
            match self.pivots(middle).iter().all(|&pivot| pivot > 0.0) {
                true => high = middle,
                false => low = middle,
            }
        }
        // Inverse iteration from just above it, where the matrix `high - T` is positive and its factors need no pivoting.
        let smallest = f64::MIN_POSITIVE.max(high.abs() * f64::EPSILON);
        let pivots: Vec<f64> = self
            .pivots(high)
            .into_iter()
            .map(|pivot| pivot.max(smallest))
            .collect();
        let mut x = vec![1.0; pivots.len()];
        for _ in 0..3 {
            for i in 1..x.len() {
                x[i] += beside[i - 1] / pivots[i - 1] * x[i - 1];
            }
            for i in (0..x.len()).rev() {
                x[i] /= pivots[i];
                if i + 1 < x.len() {
                    x[i] += beside[i] / pivots[i] * x[i + 1];
                }
            }
            let most = x.iter().fold(0.0, |most: f64, each| most.max(each.abs()));
            let length = most * x.iter().map(|each| (each / most).powi(2)).sum::<f64>().sqrt();
            x.iter_mut().for_each(|each| *each /= length);
        }
        (high, x)
    }

    /// Those of Gaussian elimination in `at - T`, all positive where `at` is greater than all eigenvalues.
    fn pivots(&self, at: f64) -> Vec<f64> {
        let mut pivots: Vec<f64> = Vec::with_capacity(self.diagonal.len());
        for (i, diagonal) in self.diagonal.iter().enumerate() {
            let before = match i {
                0 => 0.0,
                _ => self.beside[i - 1].powi(2) / pivots[i - 1],
            };
            pivots.push(at - diagonal - before);
        }
        pivots
    }
}

fn dot<S: Work>(isa: Isa, one: &[S], other: &[S]) -> f64 {
    assert_eq!(one.len(), other.len());
    // SAFETY: both are as long.
    unsafe { sums::<S, false, 2>(isa, [one.as_ptr(), other.as_ptr()], one.len(), false) }.products[0][1]
}

fn norm<S: Work>(isa: Isa, vector: &[S]) -> f64 {
    dot(isa, vector, vector).sqrt()
}

fn scale<S: Work>(isa: Isa, vector: &mut [S], factor: f64) {
    let (to, len) = (vector.as_mut_ptr(), vector.len());
    // SAFETY: the vector is its own input.
    unsafe { combine::<S, false, 1>(isa, &[to.cast_const()], &[factor], to, len) };
}

fn add<S: Work>(isa: Isa, vector: &mut [S], factor: f64, other: &[S]) {
    assert_eq!(vector.len(), other.len());
    let (to, len) = (vector.as_mut_ptr(), vector.len());
    // SAFETY: both are as long, and the first is its own input.
    unsafe { combine::<S, false, 2>(isa, &[to.cast_const(), other.as_ptr()], &[1.0, factor], to, len) };
}
