//! Operands in the order in which a micro-kernel reads them.

use std::any::TypeId;

use super::View;
use super::kernel::{Job, Kernel, Takes};
use crate::runtime::pool;

/// Values along the summed dimension that one task packs, and of how many panels.
const STRETCH: usize = 256;
const PANELS: usize = 4;
/// Values along the summed dimension that are turned at a time.
const TURN: usize = 64;
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
    /// kernels that would keep more).
    pub(super) fn fill<K: Takes<T>, T: Sync>(&mut self, source: View<'_, T>, round: bool, threads: usize) {
        self.reserve::<K>(source.rows, source.cols);
        let units = self.units::<K>();
        let stretch = STRETCH / K::DEPTH;
        let stretches = units.div_ceil(stretch);
        let panels = source.rows.div_ceil(K::WIDTH);
        let base = Shared::new(self.lines.as_mut_ptr().cast::<K::Unit>());
        pool::for_each(threads, panels.div_ceil(PANELS) * stretches, &|task| {
            let (first, start) = (task / stretches * PANELS, task % stretches * stretch);
            let count = stretch.min(units - start);
            let rows = first * K::WIDTH..source.rows.min((first + PANELS) * K::WIDTH);
            let cols = start * K::DEPTH..source.cols.min((start + count) * K::DEPTH);
            let mut to: [&mut [K::Unit]; PANELS] = Default::default();
            for (panel, to) in (first..panels).zip(&mut to) {
                // SAFETY: each task has its own stretch of its own panels, and `reserve` made room for all.
                *to = unsafe {
                    let stretch = base.get().add((panel * units + start) * K::WIDTH);
                    std::slice::from_raw_parts_mut(stretch, count * K::WIDTH)
                };
            }
            // SAFETY: kernels are handed out by `engine` only for instruction sets that the CPU has.
            unsafe {
                K::enter(Pack::<K, T> {
                    source: source.part(rows, cols),
                    to,
                    round,
                })
            }
        });
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
            for w in 0..K::WIDTH {
                to[w] = K::unit(values[0][w], values[1][w]);
            }
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
