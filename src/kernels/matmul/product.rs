//! The loops of a product, once for every kernel: blocks of the result, each summed over the whole inner dimension in
//! a tile that stays in cache, and finished from there. A block's arithmetic depends on nothing outside it.

use std::mem::MaybeUninit;

use super::kernel::{Job, Kernel};
use super::packed::{Packed, Shared};
use super::{Finish, Output, Real, Symmetry};
use crate::runtime::pool;

/// Rows and columns of a block: a multiple of every kernel's `WIDTH`, and a tile fits the L2 cache twenty times.
const BLOCK: usize = 96;
/// Units of the inner dimension between two visits of the tile.
const STRETCH: usize = 192;

/// `a * bᵀ` of packed operands, finished into `c`.
pub(super) fn product<K: Kernel>(
    a: &Packed,
    b: &Packed,
    symmetry: Symmetry,
    finish: &Finish<'_, K::Acc>,
    c: Output<'_, K::Acc>,
    threads: usize,
) {
    assert!(
        (a.rows, b.rows) == (c.rows, c.cols) && a.depth == b.depth,
        "shapes of a product do not match"
    );
    assert!(
        symmetry == Symmetry::None || c.rows == c.cols,
        "a symmetric result is square"
    );
    for (_, term) in finish.terms {
        assert!(
            (term.rows, term.cols, term.col_stride) == (c.rows, c.cols, 1),
            "a term has the result's shape"
        );
    }
    let blocks = blocks(c.rows, c.cols, symmetry);
    let base = Shared::new(c.data.as_mut_ptr());
    pool::for_each(threads, blocks.len(), &|task| {
        let (row, col) = blocks[task];
        let job = Block::<K> {
            a,
            b,
            symmetric: symmetry == Symmetry::Lower,
            finish,
            to: &base,
            stride: c.row_stride,
            row,
            col,
            rows: BLOCK.min(c.rows - row),
            cols: BLOCK.min(c.cols - col),
        };
        // SAFETY: kernels are handed out by `engine` only for instruction sets that the CPU has.
        unsafe { K::enter(job) }
    });
}

/// The first row and column of every block, the whole ones of a triangle before the halves on its diagonal: these
/// even out what the threads have left to do.
fn blocks(rows: usize, cols: usize, symmetry: Symmetry) -> Vec<(usize, usize)> {
    let grid = (0..rows)
        .step_by(BLOCK)
        .flat_map(|row| (0..cols).step_by(BLOCK).map(move |col| (row, col)));
    match symmetry {
        Symmetry::None => grid.collect(),
        Symmetry::Lower => {
            let below = grid.filter(|(row, col)| row > col);
            below
                .chain((0..rows).step_by(BLOCK).map(|start| (start, start)))
                .collect()
        }
    }
}

#[repr(C, align(64))]
struct Tile<T>([MaybeUninit<T>; BLOCK * BLOCK]);

struct Block<'a, K: Kernel> {
    a: &'a Packed,
    b: &'a Packed,
    symmetric: bool,
    finish: &'a Finish<'a, K::Acc>,
    to: &'a Shared<K::Acc>,
    stride: usize,
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
}

impl<K: Kernel> Job for Block<'_, K> {
    #[inline(always)]
    fn run(self) {
        let mut tile: Tile<K::Acc> = Tile([const { MaybeUninit::uninit() }; BLOCK * BLOCK]);
        let tile = tile.0.as_mut_ptr().cast::<K::Acc>();
        // SAFETY: `tile` has room for a block of whole register blocks; `sum` writes all of it that `finish` reads;
        // `finish` writes the block of `c` that this task owns, and its mirror image.
        unsafe {
            self.sum(tile);
            self.finish(tile);
        }
    }
}

impl<K: Kernel> Block<'_, K> {
    /// Whether the register block at (row, col) within the block is needed.
    #[inline(always)]
    fn needed(&self, row: usize, col: usize) -> bool {
        !self.symmetric || self.row + row + K::ROWS > self.col + col
    }

    #[inline(always)]
    unsafe fn sum(&self, tile: *mut K::Acc) {
        let units = self.a.units::<K>();
        let mut start = 0;
        loop {
            let count = STRETCH.min(units - start);
            for col in (0..self.cols).step_by(K::WIDTH) {
                let b = self.b.panel::<K>(self.col + col);
                for row in (0..self.rows)
                    .step_by(K::ROWS)
                    .filter(|&row| self.needed(row, col))
                {
                    let a = self.a.panel::<K>(self.row + row);
                    // SAFETY: the panels hold `units` units, and the tile whole register blocks.
                    unsafe {
                        let (a, b) = (a.add(start * K::WIDTH), b.add(start * K::WIDTH));
                        K::micro(count, a, b, tile.add(row * BLOCK + col), BLOCK, start == 0);
                    }
                }
            }
            start += count;
            if start >= units {
                return;
            }
        }
    }

    #[inline(always)]
    unsafe fn finish(&self, tile: *mut K::Acc) {
        let Finish { alpha, beta, terms } = *self.finish;
        for i in 0..self.rows {
            let row = self.row + i;
            let count = if self.symmetric {
                self.cols.min(row - self.col + 1)
            } else {
                self.cols
            };
            // SAFETY: `sum` wrote the first `count` values of this row of the tile.
            let values = unsafe { std::slice::from_raw_parts_mut(tile.add(i * BLOCK), count) };
            // SAFETY: the row lies in `c`, and no other task touches this block.
            let to = unsafe {
                std::slice::from_raw_parts_mut(self.to.get().add(row * self.stride + self.col), count)
            };
            if alpha != K::Acc::ONE {
                values.iter_mut().for_each(|v| *v = *v * alpha);
            }
            if beta != K::Acc::ZERO {
                values.iter_mut().zip(&*to).for_each(|(v, &c)| *v = *v + beta * c);
            }
            for &(factor, term) in terms {
                let term = term.row(row, self.col..self.col + count);
                values
                    .iter_mut()
                    .zip(term)
                    .for_each(|(v, &t)| *v = *v + factor * t);
            }
            to.copy_from_slice(values);
        }
        if self.symmetric {
            // SAFETY: the mirror image of this block is its own, too.
            unsafe { self.mirror(tile) }
        }
    }

    /// Copies what lies below the diagonal to its mirror image.
    #[inline(always)]
    unsafe fn mirror(&self, tile: *const K::Acc) {
        const { assert!(size_of::<K::Unit>() == size_of::<K::Acc>()) };
        // Off the diagonal, whole squares at a time.
        let square = if self.row > self.col { K::LANES } else { usize::MAX };
        let (rows, cols) = (self.rows - self.rows % square, self.cols - self.cols % square);
        for j in (0..cols).step_by(square) {
            for i in (0..rows).step_by(square) {
                // SAFETY: a square of the tile, and its mirror image in `c`; units are as large as sums.
                unsafe {
                    let to = self.to.get().add((self.col + j) * self.stride + self.row + i);
                    K::transpose(tile.add(i * BLOCK + j).cast(), BLOCK, to.cast(), self.stride);
                }
            }
        }
        for j in 0..self.cols {
            let col = self.col + j;
            let below = if col < self.row { 0 } else { col - self.row + 1 };
            for i in if j < cols { rows } else { 0 }.max(below)..self.rows {
                // SAFETY: (i, j) is below the diagonal, where the tile is written; `c` is square.
                unsafe {
                    *self.to.get().add(col * self.stride + self.row + i) = *tile.add(i * BLOCK + j);
                }
            }
        }
    }
}
