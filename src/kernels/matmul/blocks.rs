//! How a result is cut into blocks.

use std::ops::Range;

/// Rows and columns of a block: a multiple of every kernel's `WIDTH` and `ROWS`, and a tile fits the L2 cache twenty times.
pub(super) const BLOCK: usize = 96;
/// Rows and columns of blocks that are computed one after the other.
const SQUARE: usize = 2 * BLOCK;
/// The first row and column of every block, square by square, so that neighbours share panels while these are in cache.
pub(super) fn grid(rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = |rows: Range<usize>, cols: Range<usize>, step: usize| {
        rows.step_by(step)
            .flat_map(move |row| cols.clone().step_by(step).map(move |col| (row, col)))
    };
    starts(0..rows, 0..cols, SQUARE)
        .flat_map(move |(row, col)| starts(row..rows.min(row + SQUARE), col..cols.min(col + SQUARE), BLOCK))
}

/// The blocks of the lower triangle, the whole ones before the halves on the diagonal: these even out what the threads
/// have left to do.
pub(super) fn lower_blocks(size: usize) -> Vec<(usize, usize)> {
    let below = grid(size, size).filter(|(row, col)| row > col);
    below
        .chain((0..size).step_by(BLOCK).map(|start| (start, start)))
        .collect()
}
