//! The work on one chunk, on one thread: plain code, which the compiler turns into vector code.

use super::Rows;
use crate::kernels::linear::CHUNK;
use crate::kernels::storage::BLOCK;
use crate::kernels::vector::{Arch, MAX_LANES, Noise, Routine, Single, Vector, dispatch};
use crate::runtime::Isa;

/// Sums are kept in so many parts: part of their definition.
const LANES: usize = 16;
/// Rows that are read side by side.
const ROWS: usize = 4;

/// Element types of vectors.
pub trait Entry: Copy + Default + Send + Sync + Into<f64> {
    /// The nearest one.
    fn nearest(x: f64) -> Self;
}

impl Entry for f32 {
    #[inline(always)]
    fn nearest(x: f64) -> f32 {
        x as f32
    }
}

impl Entry for f64 {
    #[inline(always)]
    fn nearest(x: f64) -> f64 {
        x
    }
}

/// Writes the inner products of the rows' parts from `start` on with `w`.
pub fn products<T: Entry>(isa: Isa, rows: &Rows<T>, w: &[T], start: usize, to: &mut [f64]) {
    dispatch(isa, Products { rows, w, start, to });
}

struct Products<'a, T> {
    rows: &'a Rows<'a, T>,
    w: &'a [T],
    start: usize,
    to: &'a mut [f64],
}

impl<T: Entry> Routine for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let row = |i| self.rows.part(i, self.start, self.w.len());
        let mut blocks = self.to.chunks_exact_mut(ROWS);
        let mut first = 0;
        for block in &mut blocks {
            block.copy_from_slice(&together(
                std::array::from_fn::<_, ROWS, _>(|i| row(first + i)),
                self.w,
            ));
            first += ROWS;
        }
        for to in blocks.into_remainder() {
            [*to] = together([row(first)], self.w);
            first += 1;
        }
    }
}

/// The inner products of several rows with `w`.
#[inline(always)]
fn together<T: Entry, const N: usize>(rows: [&[T]; N], w: &[T]) -> [f64; N] {
    let mut sums = [[0.0; LANES]; N];
    let (whole, rest) = w.as_chunks::<LANES>();
    let vectors = rows.map(|row| row.as_chunks::<LANES>());
    for (i, w) in whole.iter().enumerate() {
        let wide: [f64; LANES] = w.map(Into::into);
        for n in 0..N {
            let row = &vectors[n].0[i];
            for lane in 0..LANES {
                sums[n][lane] += row[lane].into() * wide[lane];
            }
        }
    }
    for n in 0..N {
        for (lane, (&x, &y)) in vectors[n].1.iter().zip(rest).enumerate() {
            sums[n][lane] += x.into() * y.into();
        }
    }
    sums.map(|lanes| lanes.iter().sum())
}

/// Takes from `w` the rows' parts from `start` on, each times its factor.
pub fn subtract<T: Entry>(isa: Isa, w: &mut [T], rows: &Rows<T>, factors: &[f64], start: usize) {
    dispatch(
        isa,
        Subtract {
            w,
            rows,
            factors,
            start,
        },
    );
}

struct Subtract<'a, T> {
    w: &'a mut [T],
    rows: &'a Rows<'a, T>,
    factors: &'a [f64],
    start: usize,
}

impl<T: Entry> Routine for Subtract<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let row = |i| self.rows.part(i, self.start, self.w.len());
        let mut wide = [0.0; CHUNK];
        let wide = &mut wide[..self.w.len()];
        for (wide, &x) in wide.iter_mut().zip(&*self.w) {
            *wide = x.into();
        }
        let (whole, rest) = self.factors.as_chunks::<ROWS>();
        for (block, factors) in whole.iter().enumerate() {
            take(wide, std::array::from_fn(|i| row(block * ROWS + i)), factors);
        }
        for (i, &factor) in rest.iter().enumerate() {
            take(wide, [row(whole.len() * ROWS + i)], &[factor]);
        }
        for (x, &wide) in self.w.iter_mut().zip(&*wide) {
            *x = T::nearest(wide);
        }
    }
}

#[inline(always)]
fn take<T: Entry, const N: usize>(from: &mut [f64], rows: [&[T]; N], factors: &[f64; N]) {
    let rows = rows.map(|row| &row[..from.len()]);
    for (i, x) in from.iter_mut().enumerate() {
        for n in 0..N {
            *x -= factors[n] * rows[n][i].into();
        }
    }
}

/// Multiplies by a factor.
pub fn scale<T: Entry>(isa: Isa, w: &mut [T], factor: f64) {
    dispatch(isa, Scale { w, factor });
}

struct Scale<'a, T> {
    w: &'a mut [T],
    factor: f64,
}

impl<T: Entry> Routine for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        for x in self.w {
            *x = T::nearest((*x).into() * self.factor);
        }
    }
}

/// Random signs, or numbers between -1 and 1, for the elements of a vector from number `start` on.
pub fn fill<T: Entry>(isa: Isa, to: &mut [T], signs: bool, stream: u64, start: usize) {
    let (key, first) = (Noise::key(stream, (start / BLOCK) as u64), start % BLOCK);
    let mut numbers = [0.0; CHUNK];
    dispatch(
        isa,
        Numbers {
            key,
            first: first as u32,
            to: &mut numbers,
        },
    );
    for (to, &number) in to.iter_mut().zip(&numbers) {
        *to = T::nearest(match signs {
            false => number.into(),
            true if number < 0.0 => -1.0,
            true => 1.0,
        });
    }
}

/// Numbers between -1 and 1 for the elements of a block from number `first` on.
struct Numbers<'a> {
    key: u64,
    first: u32,
    to: &'a mut [f32; CHUNK],
}

impl Routine for Numbers<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        const { assert!(CHUNK.is_multiple_of(MAX_LANES) && BLOCK.is_multiple_of(CHUNK)) };
        for (i, lanes) in self.to.chunks_exact_mut(A::F32::LANES).enumerate() {
            // 32 bits for each element.
            let noise = Noise {
                key: self.key,
                counter: 2 * (self.first + (i * A::F32::LANES) as u32),
            };
            let number = A::F32::of_integers(noise.draw()) * 2f64.powi(-31);
            // SAFETY: the chunk is a whole vector.
            unsafe { number.store_f32(lanes.as_mut_ptr()) };
        }
    }
}
