//! The memory of matrices: their parameters' tensors, and room for their directions.

use super::{Direction, Factor, Matrix, Part};
use crate::kernels::orthogonal::Numbers;
use crate::kernels::storage::{Buffers, Float, Scratch};

/// The tensors of a parameter. State: the momentum.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The matrices one after the other, each row-major; where the chain does not write, in any order of elements.
    pub buffers: Buffers<1>,
    pub parts: Vec<Part>,
    /// The [row states](super::Chain::row_states), with a number for every row of every matrix.
    pub row_states: Vec<*mut u8>,
}

/// The memory of one matrix of a parameter.
pub struct Piece {
    pub buffers: Buffers<1>,
    pub rows: usize,
    pub cols: usize,
    row_states: Vec<*mut u8>,
}

impl Piece {
    /// The matrices of a parameter that have elements.
    pub fn all(parameter: &Parameter) -> impl Iterator<Item = Piece> + '_ {
        let (mut start, mut first_row) = (0, 0);
        let one_of_many = parameter.parts.len() > 1;
        let pieces = parameter.parts.iter().enumerate().map(move |(i, part)| {
            let len = part.rows * part.cols;
            let buffers = parameter.buffers.part(start, len);
            let rounding = match one_of_many {
                true => buffers.rounding.of_part(i as u64),
                false => buffers.rounding,
            };
            let skipped = first_row * buffers.dtype.arithmetic().size();
            let rows_of = |state: &*mut u8| state.wrapping_add(skipped);
            start += len;
            first_row += part.rows;
            Piece {
                buffers: Buffers { rounding, ..buffers },
                rows: part.rows,
                cols: part.cols,
                row_states: parameter.row_states.iter().map(rows_of).collect(),
            }
        });
        pieces.filter(|piece| piece.buffers.len > 0)
    }

    /// The type of the arithmetic.
    pub fn work_type(&self) -> Float {
        self.buffers.dtype.arithmetic()
    }

    /// The type of the momentum, one that the rule [takes](super::MatrixRule::takes).
    pub fn state_type(&self) -> Float {
        self.buffers.state_dtype().expect("a momentum of floats")
    }

    pub fn grad_is_zero(&self) -> bool {
        let size = self.buffers.grad_dtype.size();
        let bytes = self.buffers.len * size;
        // SAFETY: the maker of the step vouched for the gradient.
        let grad = unsafe { std::slice::from_raw_parts(self.buffers.grad, bytes) };
        // The sign bit is the last byte's highest: -0 is a zero, too.
        let last = size - 1;
        grad.chunks_exact(last + 1)
            .all(|value| value[..last].iter().all(|&byte| byte == 0) && value[last] & 0x7f == 0)
    }

    /// Bytes of scratch memory for the direction in the momentum's type, where that is not the arithmetic's, and in the
    /// arithmetic's.
    fn scratch(&self) -> (usize, usize) {
        scratch(
            self.buffers.len,
            self.state_type().size(),
            self.work_type().size(),
        )
    }

    /// The numbers of row state `index`, one for every row.
    ///
    /// # Safety
    /// For `'a`, what the maker of the step vouched for holds, and nothing else uses these numbers.
    pub unsafe fn row_state<'a>(&self, index: usize) -> Numbers<'a> {
        // SAFETY: the caller's promise.
        unsafe { Numbers::new(self.work_type(), self.row_states[index], self.rows) }
    }

    pub fn matrix<'a>(&self, direction: Direction<'a>) -> Matrix<'a> {
        Matrix {
            rows: self.rows,
            cols: self.cols,
            direction,
            factor: Factor::ONE,
            state: None,
        }
    }
}

/// [`Piece::scratch`] of so many elements, by the bytes of one in either type.
pub fn scratch(len: usize, state: usize, work: usize) -> (usize, usize) {
    let narrow = if state == work { 0 } else { len * state };
    (narrow.next_multiple_of(64), (len * work).next_multiple_of(64))
}

/// Where a matrix's direction lies in the momentum's type, and where in the arithmetic's.
pub struct Place {
    pub direction: *mut u8,
    pub values: *mut u8,
}

/// Room for every matrix; one place serves for both where the types are the same.
pub fn places(pieces: &[Piece], scratch: &mut Scratch) -> Vec<Place> {
    let total = pieces
        .iter()
        .map(|piece| piece.scratch())
        .map(|(a, b)| a + b)
        .sum();
    let mut at = scratch.room(total);
    let mut place = |piece: &Piece| {
        let (narrow, wide) = piece.scratch();
        let values = at.wrapping_add(narrow);
        let direction = if narrow == 0 { values } else { at };
        at = values.wrapping_add(wide);
        Place { direction, values }
    };
    pieces.iter().map(&mut place).collect()
}
