//! The iteration on one matrix, X being m x n with m <= n, or the transpose of such a matrix.
//!
//! Symmetric matrices are kept as `shift * I + values`, the shift being near the mean of the diagonal: what is rounded
//! for a product is then the deviation from it, and in a converging iteration that is small. Sums and what is carried
//! from step to step are never rounded to bf16, only the factors of products; so noise in small singular values, which
//! the iteration amplifies five-hundredfold, does not come from us.

use super::plan::Plan;
use super::schedule::Triple;
use crate::kernels::matmul::{Element, Engine, Finish, MatrixRef, Output, Packed, Real, Sides, Symmetry};

/// Memory for one matrix at a time, kept from one to the next.
#[derive(Default)]
pub struct Scratch<S> {
    gram: Symmetric<S>,
    step: Symmetric<S>,
    total: Symmetric<S>,
    half: Symmetric<S>,
    left: Packed,
    right: Packed,
    step_packed: Packed,
    /// Where X is kept when the output has another type.
    pub(super) x: Vec<S>,
    pub(super) sums: Vec<f64>,
}

/// `shift * I + values`, of which there is the lower triangle and what [`Symmetry::Lower`] adds to it.
#[derive(Default)]
struct Symmetric<S> {
    values: Vec<S>,
    size: usize,
    stride: usize,
    shift: S,
}

impl<S: Real> Symmetric<S> {
    fn stride_of(size: usize) -> usize {
        let per_line = 64 / size_of::<S>();
        // An odd number of cache lines: rows of a block then do not compete for the same places in a cache.
        (size.div_ceil(per_line) | 1) * per_line
    }

    fn reserve(&mut self, size: usize) {
        self.stride = Self::stride_of(size);
        self.size = size;
        if self.values.len() < size * self.stride {
            self.values.resize(size * self.stride, S::ZERO);
        }
    }

    fn view(&self) -> MatrixRef<'_, S> {
        MatrixRef::new(&self.values, self.size, self.size, self.stride, 1)
    }

    fn output(&mut self) -> Output<'_, S> {
        Output::new(&mut self.values, self.size, self.size, self.stride)
    }

    fn pack(&self, engine: &dyn Engine<S>, sides: Sides, into: &mut Packed, threads: usize)
    where
        S: Element<Acc = S>,
    {
        engine.pack(self.view(), Symmetry::Lower, sides, into, threads);
    }

    /// Moves `by` from the diagonal of `values` to the shift.
    fn move_to_shift(&mut self, by: S) {
        for i in 0..self.size {
            let diagonal = &mut self.values[i * (self.stride + 1)];
            *diagonal = *diagonal - by;
        }
        self.shift = self.shift + by;
    }

    /// Makes the shift the mean of the diagonal.
    fn center(&mut self) {
        let sum: f64 = (0..self.size)
            .map(|i| self.values[i * (self.stride + 1)].to_f64())
            .sum();
        self.move_to_shift(S::from_f64(sum / self.size as f64));
    }
}

/// Bytes of the buffers of [`Scratch`] that [`Iteration::run`] makes for a matrix: those of every form, of the Gram form,
/// and the packed ones.
pub fn bytes<S: Element<Acc = S> + Real>(plan: &Plan<S>, rows: usize, cols: usize) -> [usize; 5] {
    let (n, m) = (rows.min(cols), rows.max(cols));
    let two = 2 * n * Symmetric::<S>::stride_of(n) * size_of::<S>();
    let square = |sides| {
        let engines = (0..plan.triples.len()).map(|i| plan.engine(i));
        let of_each = engines.map(|engine| engine.packed_bytes(n, n, sides));
        of_each.max().unwrap_or(0)
    };
    let of_x = |rows, cols, sides| plan.outer.packed_bytes(rows, cols, sides);
    let of_gram = |bytes| if plan.gram { bytes } else { 0 };
    let left = of_x(n, m, Sides::Both).max(square(Sides::Both));
    let right = of_x(m, n, Sides::Right).max(of_gram(square(Sides::Left)));
    [two, of_gram(two), left, right, of_gram(square(Sides::Right))]
}

/// One matrix on its way.
pub struct Iteration<'a, S: Element<Acc = S> + Real> {
    pub x: &'a mut [S],
    pub rows: usize,
    pub cols: usize,
    pub plan: &'a Plan<S>,
    pub scratch: &'a mut Scratch<S>,
    pub threads: usize,
}

impl<S: Element<Acc = S> + Real> Iteration<'_, S> {
    /// Runs all steps: X becomes its approximate polar factor.
    pub fn run(mut self) {
        let size = self.rows.min(self.cols);
        let Scratch {
            gram,
            step,
            total,
            half,
            ..
        } = &mut *self.scratch;
        gram.reserve(size);
        step.reserve(size);
        if self.plan.gram {
            total.reserve(size);
            half.reserve(size);
            self.gram_form();
        } else {
            self.standard_form();
        }
    }

    /// `X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X`, step by step.
    fn standard_form(&mut self) {
        for (i, &triple) in self.plan.triples.iter().enumerate() {
            let engine = self.plan.engine(i);
            self.form_gram(engine);
            self.form_step(engine, triple);
            let step = &mut self.scratch.step;
            step.shift = step.shift + S::from_f64(triple[0]);
            if self.plan.keeps_x(i) {
                let by = S::from_f64(triple[0]) - step.shift;
                step.move_to_shift(by);
            } else {
                step.center();
            }
            self.apply(engine, false);
        }
    }

    /// The same polynomials on the Gram matrix R: Q collects them, and R follows as `R <- Q R Q`. X is multiplied at
    /// the end and at restarts, where R is formed anew.
    fn gram_form(&mut self) {
        let outer = self.plan.outer;
        self.form_gram(outer);
        let last = self.plan.triples.len() - 1;
        let mut fresh = true;
        for (i, &triple) in self.plan.triples.iter().enumerate() {
            if i > 0 && self.plan.restarts.contains(&i) {
                self.apply(outer, true);
                self.form_gram(outer);
                fresh = true;
            }
            let goes_on = i < last && !self.plan.restarts.contains(&(i + 1));
            self.gram_step(i, triple, fresh, goes_on);
            fresh = false;
        }
        self.apply(outer, true);
    }

    /// One step on R and Q; `fresh`: Q is still the identity; `goes_on`: R is needed afterwards.
    fn gram_step(&mut self, i: usize, triple: Triple, fresh: bool, goes_on: bool) {
        let (engine, threads, a) = (self.plan.engine(i), self.threads, S::from_f64(triple[0]));
        self.form_step(engine, triple);
        let Scratch {
            gram,
            step,
            total,
            half,
            left,
            right,
            step_packed,
            ..
        } = &mut *self.scratch;
        step.center();
        if goes_on || !fresh {
            step.pack(engine, Sides::Right, step_packed, threads);
        }
        if !fresh {
            total.pack(engine, Sides::Left, right, threads);
            // Q <- Q (aI + Z), where it stands.
            let finish = Finish {
                alpha: S::ONE,
                beta: step.shift + a,
                terms: &[(total.shift, step.view())],
            };
            engine.product(
                right,
                step_packed,
                Symmetry::Lower,
                &finish,
                total.output(),
                threads,
            );
            total.shift = total.shift * (step.shift + a);
            total.center();
        }
        if goes_on {
            if triple[2] == 0.0 {
                // Otherwise `form_step` has left it packed.
                gram.pack(engine, Sides::Left, left, threads);
            }
            multiply(engine, (left, step_packed), gram, step, a, half, threads);
            half.center();
            half.pack(engine, Sides::Left, right, threads);
            multiply(engine, (right, step_packed), half, step, a, gram, threads);
            gram.center();
        }
        if fresh {
            step.shift = step.shift + a;
            std::mem::swap(step, total);
        }
    }

    /// R = X Xᵀ, or Xᵀ X when X is tall.
    fn form_gram(&mut self, engine: &dyn Engine<S>) {
        let Scratch { gram, left, .. } = &mut *self.scratch;
        let x = MatrixRef::row_major(self.x, self.rows, self.cols);
        let x = if self.rows <= self.cols { x } else { x.t() };
        engine.pack(x, Symmetry::None, Sides::Both, left, self.threads);
        let finish = Finish {
            alpha: S::ONE,
            beta: S::ZERO,
            terms: &[],
        };
        engine.product(left, left, Symmetry::Lower, &finish, gram.output(), self.threads);
        gram.shift = S::ZERO;
        gram.center();
    }

    /// Z = b R + c R²
    fn form_step(&mut self, engine: &dyn Engine<S>, [_, b, c]: Triple) {
        let Scratch { gram, step, left, .. } = &mut *self.scratch;
        let (b, c, shift) = (S::from_f64(b), S::from_f64(c), gram.shift);
        let linear = b + (c + c) * shift;
        step.shift = shift * (b + c * shift);
        if c == S::ZERO {
            let count = gram.size * gram.stride;
            for (to, &from) in step.values[..count].iter_mut().zip(&gram.values[..count]) {
                *to = linear * from;
            }
            return;
        }
        gram.pack(engine, Sides::Both, left, self.threads);
        let finish = Finish {
            alpha: c,
            beta: S::ZERO,
            terms: &[(linear, gram.view())],
        };
        engine.product(left, left, Symmetry::Lower, &finish, step.output(), self.threads);
    }

    /// `X <- Q X`, or `X Q` when X is tall; Q is `total` or `step`.
    fn apply(&mut self, engine: &dyn Engine<S>, total: bool) {
        let threads = self.threads;
        let Scratch {
            step,
            total: product,
            left,
            right,
            ..
        } = &mut *self.scratch;
        let q = if total { product } else { step };
        let wide = self.rows <= self.cols;
        let (q_side, x_side) = match wide {
            true => (Sides::Left, Sides::Right),
            false => (Sides::Right, Sides::Left),
        };
        q.pack(engine, q_side, left, threads);
        let x = MatrixRef::row_major(self.x, self.rows, self.cols);
        let x = if wide { x.t() } else { x };
        engine.pack(x, Symmetry::None, x_side, right, threads);
        let finish = Finish {
            alpha: S::ONE,
            beta: q.shift,
            terms: &[],
        };
        let to = Output::row_major(self.x, self.rows, self.cols);
        let (left, right) = if wide {
            (&*left, &*right)
        } else {
            (&*right, &*left)
        };
        engine.product(left, right, Symmetry::None, &finish, to, threads);
    }
}

/// `to = (aI + step) * other`, of commuting matrices packed as (other, step).
fn multiply<S: Element<Acc = S> + Real>(
    engine: &dyn Engine<S>,
    (other_packed, step_packed): (&Packed, &Packed),
    other: &Symmetric<S>,
    step: &Symmetric<S>,
    a: S,
    to: &mut Symmetric<S>,
    threads: usize,
) {
    let factor = step.shift + a;
    to.shift = factor * other.shift;
    let terms = [(factor, other.view()), (other.shift, step.view())];
    let finish = Finish {
        alpha: S::ONE,
        beta: S::ZERO,
        terms: &terms,
    };
    engine.product(
        other_packed,
        step_packed,
        Symmetry::Lower,
        &finish,
        to.output(),
        threads,
    );
}
