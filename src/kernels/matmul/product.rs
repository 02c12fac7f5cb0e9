//! The loops of a product, once for every kernel: blocks of the result, each summed over the whole inner dimension in
//! a tile that stays in cache, and finished from there. A block's arithmetic depends on nothing outside it.

use std::mem::MaybeUninit;

use super::blocks::{BLOCK, grid, lower_blocks};
use super::kernel::{Ahead, Job, Kernel};
use super::packed::Packed;
use super::{Finish, Output, Real, Symmetry};
use crate::runtime::{Shared, pool};

/// Terms that a result may have.
const MOST_TERMS: usize = 2;

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
    assert!(finish.terms.len() <= MOST_TERMS, "too many terms");
    for (_, term) in finish.terms {
        assert!(
            (term.rows, term.cols, term.col_stride) == (c.rows, c.cols, 1),
            "a term has the result's shape"
        );
    }
    let blocks = match symmetry {
        Symmetry::None => grid(c.rows, c.cols).collect(),
        Symmetry::Lower => lower_blocks(c.rows),
    };
    let destination = Destination::new(c);
    pool::for_each(threads, blocks.len(), &|task| {
        let (row, col) = blocks[task];
        let job = Block::<K> {
            a,
            b,
            on_diagonal: symmetry == Symmetry::Lower && row == col,
            finish,
            to: destination.region(row, col),
            next: blocks.get(task + 1).copied().unwrap_or((row, col)),
        };
        // SAFETY: kernels are handed out by `engine` only for instruction sets that the CPU has.
        unsafe { K::enter(job) }
    });
}

/// Copies what [`product`] wrote of a symmetric result to its mirror image.
pub(super) fn mirror<K: Kernel>(c: Output<'_, K::Acc>, threads: usize) {
    assert!(c.rows == c.cols, "a symmetric result is square");
    let below: Vec<_> = grid(c.rows, c.cols).filter(|(row, col)| row > col).collect();
    let destination = Destination::new(c);
    pool::for_each(threads, below.len(), &|task| {
        let (row, col) = below[task];
        // SAFETY: kernels are handed out by `engine` only for instruction sets that the CPU has.
        unsafe { K::enter(Mirror::<K>(destination.region(row, col))) }
    });
}

/// An output that tasks share, each writing its own blocks.
struct Destination<S> {
    base: Shared<S>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<S> Destination<S> {
    fn new(c: Output<'_, S>) -> Self {
        Destination {
            base: Shared::new(c.data.as_mut_ptr()),
            rows: c.rows,
            cols: c.cols,
            stride: c.row_stride,
        }
    }

    fn region(&self, row: usize, col: usize) -> Region<'_, S> {
        Region {
            destination: self,
            row,
            col,
            rows: BLOCK.min(self.rows - row),
            cols: BLOCK.min(self.cols - col),
        }
    }
}

/// A block of an output.
struct Region<'a, S> {
    destination: &'a Destination<S>,
    row: usize,
    col: usize,
    rows: usize,
    cols: usize,
}

impl<S: Real> Region<'_, S> {
    /// Element (i, j) of the block.
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> *mut S {
        let offset = (self.row + i) * self.destination.stride + self.col + j;
        self.destination.base.get().wrapping_add(offset)
    }

    /// Where element (i, j) of the block is mirrored to.
    #[inline(always)]
    fn mirrored(&self, i: usize, j: usize) -> *mut S {
        let offset = (self.col + j) * self.destination.stride + self.row + i;
        self.destination.base.get().wrapping_add(offset)
    }

    /// Copies the block, or what of it is below the diagonal, to its mirror image.
    ///
    /// # Safety
    /// Within `enter`; both are the task's own.
    #[inline(always)]
    unsafe fn mirror<K: Kernel<Acc = S>>(&self) {
        const { assert!(size_of::<K::Unit>() == size_of::<S>()) };
        let (side, stride) = (K::LANES, self.destination.stride);
        let on_diagonal = self.row == self.col;
        for i in (0..self.rows).step_by(side) {
            let last = if on_diagonal { i + 1 } else { self.cols };
            for j in (0..last).step_by(side) {
                let whole = i + side <= self.rows && j + side <= self.cols;
                if whole && !(on_diagonal && i == j) {
                    // SAFETY: a square of the block and its mirror image, which is another; units are as large as sums.
                    unsafe { K::transpose(self.at(i, j).cast(), stride, self.mirrored(i, j).cast(), stride) };
                    continue;
                }
                for i in i..self.rows.min(i + side) {
                    let last = if on_diagonal { i } else { self.cols };
                    for j in j..last.min(j + side) {
                        // SAFETY: an element of the block and its mirror image.
                        unsafe { *self.mirrored(i, j) = *self.at(i, j) };
                    }
                }
            }
        }
    }
}

struct Mirror<'a, K: Kernel>(Region<'a, K::Acc>);

impl<K: Kernel> Job for Mirror<'_, K> {
    #[inline(always)]
    fn run(self) {
        // SAFETY: a task's own block below the diagonal, within `enter`.
        unsafe { self.0.mirror::<K>() }
    }
}

#[repr(C, align(64))]
struct Tile<T>([MaybeUninit<T>; BLOCK * BLOCK]);

struct Block<'a, K: Kernel> {
    a: &'a Packed,
    b: &'a Packed,
    on_diagonal: bool,
    finish: &'a Finish<'a, K::Acc>,
    to: Region<'a, K::Acc>,
    /// The first row and column of the block that probably follows on this thread.
    next: (usize, usize),
}

impl<K: Kernel> Job for Block<'_, K> {
    #[inline(always)]
    fn run(self) {
        const { assert!(BLOCK.is_multiple_of(K::WIDTH) && BLOCK.is_multiple_of(K::ROWS)) };
        let mut tile: Tile<K::Acc> = Tile([const { MaybeUninit::uninit() }; BLOCK * BLOCK]);
        let tile = tile.0.as_mut_ptr().cast::<K::Acc>();
        // SAFETY: `tile` has room for a block of whole register blocks; `sum` writes all of it that `finish` reads;
        // `finish` writes the block of `c` that this task owns.
        unsafe {
            self.sum(tile);
            self.finish(tile);
            if self.on_diagonal {
                self.to.mirror::<K>();
            }
        }
    }
}

impl<K: Kernel> Block<'_, K> {
    /// Whether the register block at (row, col) within the block is needed.
    #[inline(always)]
    fn needed(&self, row: usize, col: usize) -> bool {
        !self.on_diagonal || row + K::ROWS > col
    }

    #[inline(always)]
    unsafe fn sum(&self, tile: *mut K::Acc) {
        let units = self.a.units::<K>();
        let mut start = 0;
        loop {
            let count = K::STRETCH.min(units - start);
            let mut calls = 0;
            for col in (0..self.to.cols).step_by(K::WIDTH) {
                let b = self.b.right::<K>(self.to.col + col);
                for row in (0..self.to.rows)
                    .step_by(K::ROWS)
                    .filter(|&row| self.needed(row, col))
                {
                    let a = self.a.left::<K>(self.to.row + row);
                    // SAFETY: the panels hold `units` units, and the tile whole register blocks.
                    unsafe {
                        let (a, b) = (a.add(start * K::WIDTH), b.add(start * K::WIDTH));
                        let to = tile.add(row * BLOCK + col);
                        let ahead = self.ahead(start + count, calls, count);
                        K::micro(count, a, b, ahead, to, BLOCK, start == 0);
                    }
                    calls += 1;
                }
            }
            start += count;
            if start >= units {
                return;
            }
        }
    }

    /// What call `number` of a stretch asks for: a share of the panels' next stretch, which begins at unit `start` or,
    /// after the last, in the next block.
    #[inline(always)]
    fn ahead(&self, start: usize, number: usize, count: usize) -> Ahead {
        let calls_per_panel = const { BLOCK / K::ROWS / 2 }; // of either operand
        let step = const { (K::WIDTH * size_of::<K::Unit>()).div_ceil(BLOCK / K::ROWS / 2) };
        let ((row, col), start) = match start < self.a.units::<K>() {
            true => ((self.to.row, self.to.col), start),
            false => (self.next, 0),
        };
        let down = number / calls_per_panel * K::WIDTH;
        let panel = match down < BLOCK {
            true => self.a.left::<K>((row + down).min(self.a.rows - 1)),
            false => self.b.right::<K>((col + down - BLOCK).min(self.b.rows - 1)),
        };
        let at = panel.wrapping_add(start * K::WIDTH).cast::<u8>();
        Ahead {
            at: at.wrapping_add(number % calls_per_panel * count * step),
            step,
        }
    }

    #[inline(always)]
    unsafe fn finish(&self, tile: *const K::Acc) {
        let Finish { beta, terms, .. } = *self.finish;
        for i in 0..self.to.rows {
            let count = if self.on_diagonal { i + 1 } else { self.to.cols };
            // SAFETY: `sum` wrote the first `count` values of this row of the tile; the row lies in `c`, and no other
            // task touches this block.
            let (values, to) = unsafe {
                let values = std::slice::from_raw_parts(tile.add(i * BLOCK), count);
                (values, std::slice::from_raw_parts_mut(self.to.at(i, 0), count))
            };
            let (row, cols) = (self.to.row + i, self.to.col..self.to.col + count);
            let term = |t: usize| (terms[t].0, terms[t].1.row(row, cols.clone()));
            match (terms.len(), beta != K::Acc::ZERO) {
                (0, false) => self.finish_row::<false, 0>(values, [], to),
                (0, true) => self.finish_row::<true, 0>(values, [], to),
                (1, false) => self.finish_row::<false, 1>(values, [term(0)], to),
                (1, true) => self.finish_row::<true, 1>(values, [term(0)], to),
                (_, false) => self.finish_row::<false, MOST_TERMS>(values, [term(0), term(1)], to),
                (_, true) => self.finish_row::<true, MOST_TERMS>(values, [term(0), term(1)], to),
            }
        }
    }

    #[inline(always)]
    fn finish_row<const BETA: bool, const N: usize>(
        &self,
        values: &[K::Acc],
        terms: [(K::Acc, &[K::Acc]); N],
        to: &mut [K::Acc],
    ) {
        // Whole rows in one pass and without loops of unknown length, because this is a tenth of a product's time.
        if let (Ok(values), Ok(to)) = (values.try_into(), to.try_into()) {
            let terms = terms.map(|(factor, term)| (factor, term.try_into().expect("rows of one length")));
            return self.finish_whole::<BETA, N>(values, terms, to);
        }
        let Finish { alpha, beta, .. } = *self.finish;
        for (i, (to, &value)) in to.iter_mut().zip(values).enumerate() {
            let mut sum = value * alpha;
            if BETA {
                sum = sum + beta * *to;
            }
            for (factor, term) in terms {
                sum = sum + factor * term[i];
            }
            *to = sum;
        }
    }

    #[inline(always)]
    fn finish_whole<const BETA: bool, const N: usize>(
        &self,
        values: &[K::Acc; BLOCK],
        terms: [(K::Acc, &[K::Acc; BLOCK]); N],
        to: &mut [K::Acc; BLOCK],
    ) {
        let Finish { alpha, beta, .. } = *self.finish;
        let mut row = [K::Acc::ZERO; BLOCK];
        for i in 0..BLOCK {
            row[i] = values[i] * alpha;
            if BETA {
                row[i] = row[i] + beta * to[i];
            }
            for (factor, term) in terms {
                row[i] = row[i] + factor * term[i];
            }
        }
        *to = row;
    }
}
