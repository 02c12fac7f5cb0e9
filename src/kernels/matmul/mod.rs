//! Dense and symmetric matrix products: f64, f32, and bf16 with sums in f32.
//!
//! `product` and `packed` hold the loops, which know nothing of instructions; `kernel` says what a micro-kernel is, and
//! there is one thin file per instruction set. Sums run over the inner dimension in a fixed order, so that results
//! depend neither on the number of threads nor on what else is computed.
//!
//! Ours because no crate has bf16 factors or a symmetric product at full rate. In GFLOP/s of useful operations, f32, two
//! threads of a Zen 5 CPU, n = 768 and 2048, medians in one run: full products 229 and 209 with gemm 0.19, 408 and 420
//! with faer 0.24, 417 and 422 here; symmetric ones 375 and 327 with faer's triangular product, 407 and 377 here.

mod blocks;
mod kernel;
mod packed;
mod portable;
mod product;
mod round;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::{Add, Div, Mul, Range, Sub};

use half::bf16;

use crate::runtime::Isa;
use kernel::{Kernel, Takes};
pub use packed::{Packed, Sides};

/// What sums are kept in.
pub trait Real:
    Copy
    + Default
    + PartialEq
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    /// The nearest value to `value`.
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// The nearest bf16.
    fn to_bf16(self) -> Self;
}

macro_rules! real {
    ($type:ty, $to_bf16:expr) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn to_bf16(self) -> Self {
                $to_bf16(self)
            }
        }
    };
}
real!(f32, round::to_bf16);
real!(f64, |value| bf16::from_f64(value).to_f64());

/// A matrix in memory, its element (i, j) at `i * row_stride + j * col_stride`.
#[derive(Debug)]
pub struct MatrixRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<T> Clone for MatrixRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for MatrixRef<'_, T> {}

impl<'a, T> MatrixRef<'a, T> {
    /// # Panics
    /// Where `data` is too short for the last element.
    pub fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!(
                (rows - 1) * row_stride + (cols - 1) * col_stride < data.len(),
                "a view beyond its data"
            );
        }
        MatrixRef {
            data,
            rows,
            cols,
            row_stride,
            col_stride,
        }
    }

    /// Rows one after the other.
    pub fn row_major(data: &'a [T], rows: usize, cols: usize) -> Self {
        MatrixRef::new(data, rows, cols, cols, 1)
    }

    /// The transpose, in place.
    pub fn t(self) -> Self {
        MatrixRef {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    #[inline(always)]
    fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let start = (rows.start * self.row_stride + cols.start * self.col_stride).min(self.data.len());
        MatrixRef {
            data: &self.data[start..],
            rows: rows.len(),
            cols: cols.len(),
            ..self
        }
    }

    /// Part of a row of a view whose `col_stride` is 1.
    #[inline(always)]
    fn row(&self, row: usize, cols: Range<usize>) -> &'a [T] {
        &self.data[row * self.row_stride..][cols]
    }

    /// A column of a view whose `row_stride` is 1.
    #[inline(always)]
    fn column(&self, col: usize) -> &'a [T] {
        &self.data[col * self.col_stride..][..self.rows]
    }

    #[inline(always)]
    fn element(&self, row: usize, col: usize) -> &'a [T] {
        &self.data[row * self.row_stride + col * self.col_stride..][..1]
    }
}

/// Where a product goes: rows `row_stride` apart, each contiguous.
#[derive(Debug)]
pub struct Output<'a, S> {
    data: &'a mut [S],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, S> Output<'a, S> {
    /// # Panics
    /// Where `data` is too short for the last element, or rows would overlap.
    pub fn new(data: &'a mut [S], rows: usize, cols: usize, row_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!(
                (rows - 1) * row_stride + cols <= data.len(),
                "an output beyond its data"
            );
            assert!(rows == 1 || row_stride >= cols, "rows of an output overlap");
        }
        Output {
            data,
            rows,
            cols,
            row_stride,
        }
    }

    /// Rows one after the other.
    pub fn row_major(data: &'a mut [S], rows: usize, cols: usize) -> Self {
        Output::new(data, rows, cols, cols)
    }

    fn reborrow(&mut self) -> Output<'_, S> {
        Output {
            data: self.data,
            ..*self
        }
    }
}

/// What becomes of a product P: `C = alpha * P + beta * C + Σ factor * term`, with up to two terms. C is not read where
/// `beta` is 0. Terms have C's shape and contiguous rows.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a, S> {
    pub alpha: S,
    pub beta: S,
    pub terms: &'a [(S, MatrixRef<'a, S>)],
}

/// Whether a matrix is known to be symmetric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symmetry {
    None,
    /// Only the lower triangle is computed and read. Of what lies above it, just the blocks on the diagonal are written,
    /// as exact mirror images; [`Engine::mirror`] does the rest where that is wanted. For `A * Aᵀ` and for commuting
    /// symmetric factors, with terms that are symmetric as well.
    Lower,
}

/// What the factors of a product are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factors {
    /// As they come.
    Exact,
    /// bf16, which doubles the rate where the CPU has bf16 dot products, and rounds alike where it has not.
    Bf16,
}

/// Products on one instruction set.
pub trait Engine<T: Element>: Sync {
    /// Packs `source`, whose columns are the inner dimension of the products that it will be a factor of.
    fn pack(
        &self,
        source: MatrixRef<'_, T>,
        symmetry: Symmetry,
        sides: Sides,
        into: &mut Packed,
        threads: usize,
    );

    /// Bytes that a matrix of this shape takes when it is packed.
    fn packed_bytes(&self, rows: usize, cols: usize, sides: Sides) -> usize;

    /// `a * bᵀ`, finished into `c`. Both factors packed by this engine, for their sides.
    fn product(
        &self,
        a: &Packed,
        b: &Packed,
        symmetry: Symmetry,
        finish: &Finish<'_, T::Acc>,
        c: Output<'_, T::Acc>,
        threads: usize,
    );

    /// Completes a result of [`Symmetry::Lower`].
    fn mirror(&self, c: Output<'_, T::Acc>, threads: usize);
}

/// Element types that can be multiplied.
pub trait Element: Copy + Send + Sync + 'static {
    /// What their products are summed in.
    type Acc: Real;
    /// The best engine that `isa` has.
    fn engine(isa: Isa, factors: Factors) -> &'static dyn Engine<Self>;
}

#[derive(Clone, Copy)]
struct On<K> {
    _kernel: K,
    round: bool,
}

impl<T: Element, K: Takes<T> + Kernel<Acc = T::Acc>> Engine<T> for On<K> {
    fn pack(
        &self,
        source: MatrixRef<'_, T>,
        symmetry: Symmetry,
        sides: Sides,
        into: &mut Packed,
        threads: usize,
    ) {
        into.fill::<K, T>(source, symmetry, sides, self.round, threads);
    }

    fn packed_bytes(&self, rows: usize, cols: usize, sides: Sides) -> usize {
        Packed::bytes::<K>(rows, cols, sides)
    }

    fn product(
        &self,
        a: &Packed,
        b: &Packed,
        symmetry: Symmetry,
        finish: &Finish<'_, T::Acc>,
        c: Output<'_, T::Acc>,
        threads: usize,
    ) {
        product::product::<K>(a, b, symmetry, finish, c, threads);
    }

    fn mirror(&self, c: Output<'_, T::Acc>, threads: usize) {
        product::mirror::<K>(c, threads);
    }
}

/// An engine of kernel `K`; `round` where `K` itself would not round the factors.
macro_rules! on {
    ($kernel:expr, $round:expr) => {
        &On {
            _kernel: $kernel,
            round: $round,
        }
    };
}

impl Element for f32 {
    type Acc = f32;
    fn engine(isa: Isa, factors: Factors) -> &'static dyn Engine<f32> {
        isa.check();
        match (isa, factors) {
            #[cfg(target_arch = "x86_64")]
            (Isa::AmxBf16, Factors::Bf16) => on!(amx::Tiles, false),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Factors::Bf16) => on!(avx512bf16::Dot, false),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Factors::Bf16) => on!(avx512::F32, true),
            #[cfg(target_arch = "x86_64")]
            (Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512, Factors::Exact) => on!(avx512::F32, false),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Factors::Bf16) => on!(avx2::F32, true),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Factors::Exact) => on!(avx2::F32, false),
            (_, Factors::Bf16) => on!(portable::Portable::<f32>::NEW, true),
            (_, Factors::Exact) => on!(portable::Portable::<f32>::NEW, false),
        }
    }
}

impl Element for bf16 {
    type Acc = f32;
    fn engine(isa: Isa, _: Factors) -> &'static dyn Engine<bf16> {
        isa.check();
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::AmxBf16 => on!(amx::Tiles, false),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => on!(avx512bf16::Dot, false),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => on!(avx512::F32, false),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => on!(avx2::F32, false),
            _ => on!(portable::Portable::<f32>::NEW, false),
        }
    }
}

impl Element for f64 {
    type Acc = f64;
    /// f64 factors are never rounded.
    fn engine(isa: Isa, _: Factors) -> &'static dyn Engine<f64> {
        isa.check();
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::AmxBf16 | Isa::Avx512Bf16 | Isa::Avx512 => on!(avx512::F64, false),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => on!(avx2::F64, false),
            _ => on!(portable::Portable::<f64>::NEW, false),
        }
    }
}

/// `C = alpha * A * B + beta * C`, C not being read where `beta` is 0. The factors are packed in `memory`.
///
/// # Panics
/// Where the shapes do not fit together, or the CPU does not run `isa`.
pub fn multiply<T: Element>(
    isa: Isa,
    (alpha, beta): (T::Acc, T::Acc),
    a: MatrixRef<'_, T>,
    b: MatrixRef<'_, T>,
    c: Output<'_, T::Acc>,
    [left, right]: &mut [Packed; 2],
    threads: usize,
) {
    let engine = T::engine(isa, Factors::Exact);
    engine.pack(a, Symmetry::None, Sides::Left, left, threads);
    engine.pack(b.t(), Symmetry::None, Sides::Right, right, threads);
    let finish = Finish {
        alpha,
        beta,
        terms: &[],
    };
    engine.product(left, right, Symmetry::None, &finish, c, threads);
}

/// `C = alpha * A * Aᵀ + beta * C` with a symmetric C, exactly symmetric.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_by_transpose<T: Element>(
    isa: Isa,
    (alpha, beta): (T::Acc, T::Acc),
    a: MatrixRef<'_, T>,
    mut c: Output<'_, T::Acc>,
    [packed, _]: &mut [Packed; 2],
    threads: usize,
) {
    let engine = T::engine(isa, Factors::Exact);
    engine.pack(a, Symmetry::None, Sides::Both, packed, threads);
    let finish = Finish {
        alpha,
        beta,
        terms: &[],
    };
    engine.product(packed, packed, Symmetry::Lower, &finish, c.reborrow(), threads);
    engine.mirror(c, threads);
}
