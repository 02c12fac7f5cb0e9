//! Operands in the order in which a micro-kernel reads them.

use std::any::TypeId;

use super::blocks::{BLOCK, lower_blocks};
use super::kernel::{Job, Kernel, Takes};
use super::{MatrixRef, Symmetry};
use crate::runtime::{Shared, pool};

/// Values along the summed dimension that one task packs, and of how many panels.
const STRETCH: usize = 2 * BLOCK;
const PANELS: usize = 4;
/// Values along the summed dimension that are turned at a time.
const TURN: usize = BLOCK;
/// The widest panel of any kernel, and the most units of a group.
const WIDEST: usize = 32;
const LONGEST: usize = 16;
/// Columns between one that is packed and one that is asked for.
const AHEAD: usize = 32;

/// 64 bytes, so that panels start at cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u64; 8]);

/// The sides of products on which a packed matrix can stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sides {
    Left,
    Right,
    #[default]
    Both,
}

/// A matrix packed for a kernel, and the memory for it, which is kept from one use to the next. For both sides of a
/// kernel whose groups have more than one unit, the left side's panels come first, then the right side's.
#[derive(Default)]
pub struct Packed {
    lines: Vec<Line>,
    pub(super) rows: usize,
    pub(super) depth: usize,
    sides: Sides,
    kernel: Option<TypeId>,
}

impl Packed {
    /// Units of one panel: the summed dimension, filled up to whole groups.
    pub(super) fn units<K: Kernel>(&self) -> usize {
        self.depth.div_ceil(K::DEPTH).next_multiple_of(K::GROUP)
    }

    /// The first unit of the panel for the left side that holds row `row`, and how far down `row` is.
    pub(super) fn left<K: Kernel>(&self, row: usize) -> *const K::Unit {
        assert!(
            K::GROUP == 1 || self.sides != Sides::Right,
            "packed for the right side"
        );
        self.panel::<K>(0, row)
    }

    /// [`Packed::left`] for the right side.
    pub(super) fn right<K: Kernel>(&self, row: usize) -> *const K::Unit {
        assert!(
            K::GROUP == 1 || self.sides != Sides::Left,
            "packed for the left side"
        );
        self.panel::<K>(self.right_start::<K>(), row)
    }

    fn panel<K: Kernel>(&self, start: usize, row: usize) -> *const K::Unit {
        assert!(
            self.kernel == Some(TypeId::of::<K>()),
            "operand packed for another kernel"
        );
        assert!(row < self.rows.next_multiple_of(K::WIDTH));
        let at = start + row / K::WIDTH * K::WIDTH * self.units::<K>() + row % K::WIDTH;
        // SAFETY: `reserve` made room for all panels, and `row` is in one of them.
        unsafe { self.lines.as_ptr().cast::<K::Unit>().add(at) }
    }

    /// Units of the panels for one side.
    fn side<K: Kernel>(&self) -> usize {
        self.rows.next_multiple_of(K::WIDTH) * self.units::<K>()
    }

    fn right_start<K: Kernel>(&self) -> usize {
        match self.sides {
            Sides::Both if K::GROUP > 1 => self.side::<K>(),
            _ => 0,
        }
    }

    /// Lines for all panels.
    fn needed<K: Kernel>(&self) -> usize {
        let units = self.right_start::<K>() + self.side::<K>();
        (units * size_of::<K::Unit>()).div_ceil(size_of::<Line>())
    }

    /// Bytes that a matrix of this shape takes.
    pub(super) fn bytes<K: Kernel>(rows: usize, depth: usize, sides: Sides) -> usize {
        let packed = Packed {
            rows,
            depth,
            sides,
            ..Packed::default()
        };
        packed.needed::<K>() * size_of::<Line>()
    }

    fn reserve<K: Kernel>(&mut self, rows: usize, depth: usize, sides: Sides) {
        (self.rows, self.depth, self.sides) = (rows, depth, sides);
        self.kernel = Some(TypeId::of::<K>());
        let lines = self.needed::<K>();
        if self.lines.len() < lines {
            self.lines = Vec::new(); // what is there is not needed: room for both at once would be
            self.lines.resize(lines, Line([0; 8]));
        }
    }

    /// Packs `source`, its columns being the summed dimension. `round`: take the values as rounded to bf16 (for
    /// kernels that would keep more). Of a symmetric one, only what [`Symmetry::Lower`] has written is read.
    pub(super) fn fill<K: Takes<T>, T: Sync>(
        &mut self,
        source: MatrixRef<'_, T>,
        symmetry: Symmetry,
        sides: Sides,
        round: bool,
        threads: usize,
    ) {
        const { assert!(K::WIDTH <= WIDEST && K::DEPTH <= 2 && K::GROUP <= LONGEST) };
        const { assert!(TURN.is_multiple_of(K::DEPTH * K::GROUP) && K::WIDTH.is_multiple_of(K::GROUP)) };
        self.reserve::<K>(source.rows, source.cols, sides);
        let base: *mut K::Unit = self.lines.as_mut_ptr().cast();
        let filling = Filling::<K> {
            left: (K::GROUP > 1 && sides != Sides::Right).then(|| Shared::new(base)),
            right: (K::GROUP == 1 || sides != Sides::Left)
                .then(|| Shared::new(base.wrapping_add(self.right_start::<K>()))),
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

/// Panels being filled, by several tasks. With groups of one unit, those of the right side are all.
struct Filling<K: Kernel> {
    left: Option<Shared<K::Unit>>,
    right: Option<Shared<K::Unit>>,
    units: usize,
    round: bool,
}

impl<K: Kernel> Filling<K> {
    /// Packs a part of the matrix that begins at (row, col), which are whole panels and units.
    ///
    /// # Safety
    /// There is room for the part, which nobody else uses meanwhile.
    unsafe fn pack<T>(&self, source: MatrixRef<'_, T>, row: usize, col: usize)
    where
        K: Takes<T>,
    {
        let units = source.cols.div_ceil(K::DEPTH).next_multiple_of(K::GROUP);
        for first in (0..source.rows).step_by(PANELS * K::WIDTH) {
            let rows = first..source.rows.min(first + PANELS * K::WIDTH);
            let mut to: [Stretch<'_, K::Unit>; PANELS] = Default::default();
            for (start, to) in rows.clone().step_by(K::WIDTH).zip(&mut to) {
                let at = (row + start) * self.units + col / K::DEPTH * K::WIDTH;
                let side = |base: &Option<Shared<K::Unit>>| match base {
                    // SAFETY: the caller's promise.
                    Some(base) => unsafe {
                        std::slice::from_raw_parts_mut(base.get().add(at), units * K::WIDTH)
                    },
                    None => &mut [],
                };
                *to = Stretch {
                    left: side(&self.left),
                    right: side(&self.right),
                };
            }
            let source = source.part(rows, 0..source.cols);
            let round = self.round;
            // SAFETY: kernels are handed out by `engine` only for instruction sets that the CPU has.
            unsafe { K::enter(Pack::<K, T> { source, to, round }) };
        }
    }
}

/// Whole groups of a panel, for each side; empty for one that is not wanted.
#[derive(Default)]
struct Stretch<'a, U> {
    left: &'a mut [U],
    right: &'a mut [U],
}

/// A stretch of a few panels.
struct Pack<'a, K: Kernel, T> {
    source: MatrixRef<'a, T>,
    to: [Stretch<'a, K::Unit>; PANELS],
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
fn interleave<K: Takes<T>, T>(
    source: MatrixRef<'_, T>,
    to: &mut [Stretch<'_, K::Unit>; PANELS],
    round: bool,
) {
    // Loops over indices, here and below: iterators over two slices are not always inlined into a function with
    // features of its own.
    let mut groups = [[K::Unit::default(); WIDEST * LONGEST]; PANELS];
    let panels = source.rows.div_ceil(K::WIDTH);
    for first in (0..source.cols.div_ceil(K::DEPTH)).step_by(K::GROUP) {
        let part = first * K::WIDTH..(first + K::GROUP) * K::WIDTH;
        for unit in first..first + K::GROUP {
            for panel in 0..panels {
                let row = panel * K::WIDTH;
                let source = source.part(row..source.rows.min(row + K::WIDTH), 0..source.cols);
                let to = match to[panel].right.is_empty() {
                    true => &mut groups[panel][(unit - first) * K::WIDTH..][..K::WIDTH],
                    false => &mut to[panel].right[unit * K::WIDTH..][..K::WIDTH],
                };
                column::<K, T>(source, unit * K::DEPTH, to, round);
            }
        }
        for panel in 0..panels {
            let Stretch { left, right } = &mut to[panel];
            if left.is_empty() {
                continue;
            }
            let columns = match right.is_empty() {
                true => &groups[panel][..K::GROUP * K::WIDTH],
                false => &right[part.clone()],
            };
            let to = &mut left[part.clone()];
            for row in (0..K::WIDTH).step_by(K::GROUP) {
                // SAFETY: within `enter`; a square of the group on either side.
                unsafe {
                    let to = to.as_mut_ptr().add(row * K::GROUP);
                    K::transpose(columns.as_ptr().add(row), K::WIDTH, to, K::GROUP);
                }
            }
        }
    }
}

/// A packed column: `DEPTH` contiguous columns of the source from `first`, or zeros beyond the last.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // see `interleave`
fn column<K: Takes<T>, T>(source: MatrixRef<'_, T>, first: usize, to: &mut [K::Unit], round: bool) {
    let mut values = [[K::Value::default(); WIDEST]; 2];
    for d in 0..K::DEPTH {
        if first + d >= source.cols {
            continue;
        }
        let from = source.column(first + d);
        K::prefetch(from.as_ptr().wrapping_add(AHEAD * source.col_stride).cast());
        // The same with a length that the compiler knows.
        match from.len() == K::WIDTH {
            true => take::<K, T>(&from[..K::WIDTH], &mut values[d][..K::WIDTH], round),
            false => take::<K, T>(from, &mut values[d][..from.len()], round),
        }
    }
    // SAFETY: within `enter`.
    unsafe { K::units(&values[0], &values[1], to) };
}

/// Rows are contiguous (or nothing is): a stretch of every row is converted, then turned.
#[inline(always)]
fn turn<K: Takes<T>, T>(source: MatrixRef<'_, T>, to: Stretch<'_, K::Unit>, round: bool) {
    let mut values = [[K::Value::default(); TURN]; WIDEST];
    let whole = const { TURN / K::DEPTH * K::WIDTH };
    let Stretch { left, right } = to;
    for start in (0..source.cols).step_by(TURN) {
        let first = start / K::DEPTH * K::WIDTH;
        let part = first..left.len().max(right.len()).min(first + whole);
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
        if !left.is_empty() {
            rows_of_groups::<K>(&values, &mut left[part.clone()]);
        }
        if !right.is_empty() {
            columns::<K>(&values, &mut right[part]);
        }
    }
}

/// Values of every row to the left side's groups.
#[inline(always)]
fn rows_of_groups<K: Kernel>(values: &[[K::Value; TURN]; WIDEST], to: &mut [K::Unit]) {
    for (group, to) in to.chunks_exact_mut(K::GROUP * K::WIDTH).enumerate() {
        for (to, values) in to.chunks_exact_mut(K::GROUP).zip(values) {
            let from = values[group * K::GROUP * K::DEPTH..][..K::GROUP * K::DEPTH].as_ptr();
            // SAFETY: a row of values is a row of units, which need not be aligned there.
            unsafe {
                std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.as_mut_ptr().cast(), size_of_val(to))
            };
        }
    }
}

/// Values of every row to the right side's columns.
#[inline(always)]
fn columns<K: Kernel>(values: &[[K::Value; TURN]; WIDEST], to: &mut [K::Unit]) {
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
        for (to, values) in to.iter_mut().zip(values) {
            *to = K::unit(values[first], values[second]);
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
