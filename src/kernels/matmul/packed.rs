//! Operands in the order in which a micro-kernel reads them.

use std::any::TypeId;

use super::kernel::{Job, Kernel, Takes};
use super::product::{BLOCK, lower_blocks};
use super::{Symmetry, View};
use crate::runtime::pool;

/// Values along the summed dimension that one task packs, and of how many panels.
const STRETCH: usize = 2 * BLOCK;
const PANELS: usize = 4;
/// Values along the summed dimension that are turned at a time.
const TURN: usize = BLOCK;
/// The widest panel of any kernel.
const WIDEST: usize = 32;

/// 64 bytes, so that panels start at cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// A matrix packed for a kernel, and the memory for it, which is kept from one use to the next.
#[derive(Default)]
pub struct Packed {
    lines: Vec<Line>,
    pub(super) rows: usize,
    pub(super) depth: usize,
    kernel: Option<TypeId>,
}

impl Packed {
    /// Units of one panel: the summed dimension, filled up to whole units.
    pub(super) fn units<K: Kernel>(&self) -> usize {
        self.depth.div_ceil(K::DEPTH)
    }

    /// The first unit of the panel that holds row `row`, and how far down `row` is.
    pub(super) fn panel<K: Kernel>(&self, row: usize) -> *const K::Unit {
        assert!(
            self.kernel == Some(TypeId::of::<K>()),
            "operand packed for another kernel"
        );
        assert!(row < self.rows.next_multiple_of(K::WIDTH));
        let start = row / K::WIDTH * K::WIDTH * self.units::<K>() + row % K::WIDTH;
        // SAFETY: `reserve` made room for all panels, and `row` is in one of them.
        unsafe { self.lines.as_ptr().cast::<K::Unit>().add(start) }
    }

    fn reserve<K: Kernel>(&mut self, rows: usize, depth: usize) {
        (self.rows, self.depth, self.kernel) = (rows, depth, Some(TypeId::of::<K>()));
        let units = rows.next_multiple_of(K::WIDTH) * self.units::<K>();
        let lines = (units * size_of::<K::Unit>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 8]));
        }
    }

    /// Packs `source`, its columns being the summed dimension. `round`: take the values as rounded to bf16 (for
    /// kernels that would keep more). Of a symmetric one, only what [`Symmetry::Lower`] has written is read.
    pub(super) fn fill<K: Takes<T>, T: Sync>(
        &mut self,
        source: View<'_, T>,
        symmetry: Symmetry,
        round: bool,
        threads: usize,
    ) {
        const { assert!(K::WIDTH <= WIDEST && K::DEPTH <= 2 && BLOCK.is_multiple_of(K::DEPTH)) };
        self.reserve::<K>(source.rows, source.cols);
        let filling = Filling::<K> {
            base: Shared::new(self.lines.as_mut_ptr().cast()),
            units: self.units::<K>(),
            round,
        };
        if symmetry == Symmetry::Lower {
            let blocks = lower_blocks(source.rows);
            pool::for_each(threads, blocks.len(), &|task| {
                let (row, col) = blocks[task];
                let end = |start: usize| source.rows.min(start + BLOCK);
                let block = source.part(row..end(row), col..end(col));
                // SAFETY: `reserve` made room for all; the block and its mirror image are this task's.
                unsafe {
                    filling.pack(block, row, col);
                    if row > col {
                        filling.pack(block.t(), col, row);
                    }
                }
            });
            return;
        }
        let (height, stretches) = (PANELS * K::WIDTH, source.cols.div_ceil(STRETCH));
        pool::for_each(threads, source.rows.div_ceil(height) * stretches, &|task| {
            let (row, col) = (task / stretches * height, task % stretches * STRETCH);
            let rows = row..source.rows.min(row + height);
            let part = source.part(rows, col..source.cols.min(col + STRETCH));
            // SAFETY: as above.
            unsafe { filling.pack(part, row, col) };
        });
    }
}

/// Panels being filled, by several tasks.
struct Filling<K: Kernel> {
    base: Shared<K::Unit>,
    units: usize,
    round: bool,
}

impl<K: Kernel> Filling<K> {
    /// Packs a part of the matrix that begins at (row, col), which are whole panels and units.
    ///
    /// # Safety
    /// There is room for the part, which nobody else uses meanwhile.
    unsafe fn pack<T>(&self, source: View<'_, T>, row: usize, col: usize)
    where
        K: Takes<T>,
    {
        let units = source.cols.div_ceil(K::DEPTH);
        for first in (0..source.rows).step_by(PANELS * K::WIDTH) {
            let rows = first..source.rows.min(first + PANELS * K::WIDTH);
            let mut to: [&mut [K::Unit]; PANELS] = Default::default();
            for (start, to) in rows.clone().step_by(K::WIDTH).zip(&mut to) {
                let at = (row + start) * self.units + col / K::DEPTH * K::WIDTH;
                // SAFETY: the caller's promise.
                *to = unsafe { std::slice::from_raw_parts_mut(self.base.get().add(at), units * K::WIDTH) };
            }
            let source = source.part(rows, 0..source.cols);
            let round = self.round;
            // SAFETY: kernels are handed out by `engine` only for instruction sets that the CPU has.
            unsafe { K::enter(Pack::<K, T> { source, to, round }) };
        }
    }
}

/// A pointer that tasks share, each writing its own part.
pub(crate) struct Shared<T>(*mut T);

// SAFETY: only a pointer; each use says why its part is its own.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(pointer: *mut T) -> Self {
        Shared(pointer)
    }
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

/// A stretch of a few panels.
struct Pack<'a, K: Kernel, T> {
    source: View<'a, T>,
    to: [&'a mut [K::Unit]; PANELS],
    round: bool,
}

impl<K: Takes<T>, T> Job for Pack<'_, K, T> {
    #[inline(always)]
    fn run(self) {
        let Pack {
            source,
            mut to,
            round,
        } = self;
        if source.row_stride == 1 && source.rows > 1 {
            interleave::<K, T>(source, &mut to, round);
            return;
        }
        for (row, to) in (0..source.rows).step_by(K::WIDTH).zip(to) {
            let rows = row..source.rows.min(row + K::WIDTH);
            turn::<K, T>(source.part(rows, 0..source.cols), to, round);
        }
    }
}

/// Columns are contiguous: `DEPTH` of them at a time become a packed column of every panel.
#[inline(always)]
fn interleave<K: Takes<T>, T>(source: View<'_, T>, to: &mut [&mut [K::Unit]; PANELS], round: bool) {
    let mut values = [[K::Value::default(); WIDEST]; 2];
    for unit in 0..source.cols.div_ceil(K::DEPTH) {
        for (row, to) in (0..source.rows).step_by(K::WIDTH).zip(&mut *to) {
            let rows = K::WIDTH.min(source.rows - row);
            for d in 0..K::DEPTH {
                let values = &mut values[d];
                let column = unit * K::DEPTH + d;
                if column >= source.cols {
                    values.fill(K::Value::default());
                } else if rows == K::WIDTH {
                    // The same with a length that the compiler knows.
                    take::<K, T>(
                        &source.column(column)[row..][..K::WIDTH],
                        &mut values[..K::WIDTH],
                        round,
                    );
                } else {
                    values.fill(K::Value::default());
                    take::<K, T>(&source.column(column)[row..], &mut values[..rows], round);
                }
            }
            let to = &mut to[unit * K::WIDTH..][..K::WIDTH];
            // SAFETY: within `enter`.
            unsafe { K::units(&values[0], &values[1], to) };
        }
    }
}

/// Rows are contiguous (or nothing is): a stretch of every row is converted, then turned.
#[inline(always)]
fn turn<K: Takes<T>, T>(source: View<'_, T>, to: &mut [K::Unit], round: bool) {
    let mut values = [[K::Value::default(); TURN]; WIDEST];
    for (piece, to) in to.chunks_mut(TURN / K::DEPTH * K::WIDTH).enumerate() {
        let start = piece * TURN;
        let count = TURN.min(source.cols - start);
        for (row, values) in values.iter_mut().enumerate().take(source.rows) {
            if source.col_stride != 1 {
                for (i, value) in values[..count].iter_mut().enumerate() {
                    take::<K, T>(source.element(row, start + i), std::slice::from_mut(value), round);
                }
            } else if count == TURN {
                take::<K, T>(&source.row(row, start..start + TURN)[..TURN], values, round);
            } else {
                take::<K, T>(source.row(row, start..start + count), &mut values[..count], round);
            }
            values[count..].fill(K::Value::default());
        }
        let units = to.len() / K::WIDTH;
        let squares = units - units % K::LANES;
        for unit in (0..squares).step_by(K::LANES) {
            for row in (0..K::WIDTH).step_by(K::LANES) {
                // SAFETY: within `enter`; both blocks are inside `values` and `to`; a row of values is a row of units.
                unsafe {
                    let from = values
                        .as_ptr()
                        .cast::<K::Value>()
                        .add(row * TURN + unit * K::DEPTH);
                    let to = to.as_mut_ptr().add(unit * K::WIDTH + row);
                    K::transpose(from.cast(), TURN / K::DEPTH, to, K::WIDTH);
                }
            }
        }
        for (unit, to) in to.chunks_exact_mut(K::WIDTH).enumerate().skip(squares) {
            let (first, second) = (unit * K::DEPTH, unit * K::DEPTH + K::DEPTH - 1);
            for (to, values) in to.iter_mut().zip(&values) {
                *to = K::unit(values[first], values[second]);
            }
        }
    }
}

#[inline(always)]
fn take<K: Takes<T>, T>(from: &[T], to: &mut [K::Value], round: bool) {
    // SAFETY: within `enter`.
    unsafe { K::convert(from, to) };
    if round {
        K::round(to);
    }
}
