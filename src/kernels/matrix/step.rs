//! A step over parameters: direction, chain, apply.

use std::fmt;
use std::sync::Arc;

use super::apply::AlongMomentum;
use super::entries::{Entries, Sums};
use super::{Apply, Direction, Factor, Matrix, Momentum, Part, Transform, Workspace, Written};
use crate::kernels::elementwise::{self, Work};
use crate::kernels::orthogonal::{Input, Numbers};
use crate::kernels::storage::{BLOCK, Buffers, Float, Rounding, Scratch};
use crate::runtime::{Isa, Shared, pool};

/// Scratch memory is for so many elements, or for the largest matrix.
const ELEMENTS_AT_ONCE: usize = 1 << 22;
/// Fewer elements than this are not worth waking a thread for.
const ELEMENTS_PER_THREAD: usize = 16_384;

/// Transforms that run one after the other.
#[derive(Clone)]
pub struct Chain(Vec<Arc<dyn Transform>>);

/// Transform `index` of a chain writes elements, and one before it has left them a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritesAfterFactor {
    pub index: usize,
}

impl fmt::Display for WritesAfterFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "transform {} writes elements, expected before all that give a factor",
            self.index
        )
    }
}

impl Chain {
    pub fn new(transforms: Vec<Arc<dyn Transform>>) -> Result<Chain, WritesAfterFactor> {
        let writing = transforms
            .iter()
            .take_while(|transform| transform.writes())
            .count();
        match transforms[writing..]
            .iter()
            .position(|transform| transform.writes())
        {
            Some(after) => Err(WritesAfterFactor {
                index: writing + after,
            }),
            None => Ok(Chain(transforms)),
        }
    }

    /// The names of all row states, in the order of the transforms.
    pub fn row_states(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter_map(|transform| transform.row_state())
    }

    pub fn writes(&self) -> bool {
        self.0.first().is_some_and(|transform| transform.writes())
    }

    fn squared_norm(&self, rows: usize, cols: usize) -> f64 {
        let given = self
            .0
            .iter()
            .filter_map(|transform| transform.squared_norm(rows, cols));
        given.last().unwrap_or(1.0)
    }
}

/// Hyperparameters of a step.
#[derive(Clone)]
pub struct MatrixRule {
    pub momentum: Momentum,
    pub transforms: Chain,
    pub apply: Apply,
    /// Leave a matrix alone whose gradient is all zero.
    pub skip_zero_grad: bool,
}

/// The tensors of a parameter. State: the momentum.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The matrices one after the other, each row-major; where the chain does not write, in any order of elements.
    pub buffers: Buffers<1>,
    pub parts: Vec<Part>,
    /// The [row states](Chain::row_states), with a number for every row of every matrix.
    pub row_states: Vec<*mut u8>,
}

/// A step over the parameters of a group, checked and ready.
pub struct Step {
    rule: MatrixRule,
    parameters: Vec<Parameter>,
}

// SAFETY: the pointers are used by `run` only, while the maker of the step keeps them valid.
unsafe impl Send for Step {}

impl Step {
    /// # Safety
    /// Until the step is dropped, all pointers are valid for their types and for as many elements as `parts` say, for
    /// writing where they are `*mut`, and nothing else reads or writes what they write. There are as many row states as
    /// the rule has, and it [takes](MatrixRule::takes) the types.
    pub unsafe fn new(rule: MatrixRule, parameters: Vec<Parameter>) -> Step {
        Step { rule, parameters }
    }

    /// Updates every parameter, on up to `threads` threads; once.
    pub fn run(&mut self, threads: usize, workspace: &mut Workspace) {
        let mut pieces: Vec<Piece> = self.parameters.iter().flat_map(Piece::all).collect();
        if self.rule.skip_zero_grad {
            pieces.retain(|piece| !piece.grad_is_zero());
        }
        let mut rest = &pieces[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.rule.how_many_at_once(rest));
            self.rule.update(now, threads, workspace);
            rest = later;
        }
    }
}

/// The memory of one matrix of a parameter.
struct Piece {
    buffers: Buffers<1>,
    rows: usize,
    cols: usize,
    row_states: Vec<*mut u8>,
}

impl Piece {
    /// The matrices of a parameter that have elements.
    fn all(parameter: &Parameter) -> impl Iterator<Item = Piece> + '_ {
        let (mut start, mut first_row) = (0, 0);
        let one_of_many = parameter.parts.len() > 1;
        let pieces = parameter.parts.iter().enumerate().map(move |(i, part)| {
            let len = part.rows * part.cols;
            let buffers = parameter.buffers.part(start, len);
            let rounding = match one_of_many {
                true => buffers.rounding.of_part(i as u64),
                false => buffers.rounding,
            };
            let skipped = first_row * work_type(buffers.dtype).size();
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

    fn work_type(&self) -> Float {
        work_type(self.buffers.dtype)
    }

    fn grad_is_zero(&self) -> bool {
        let bytes = self.buffers.len * self.buffers.dtype.size();
        // SAFETY: the maker of the step vouched for the gradient.
        let grad = unsafe { std::slice::from_raw_parts(self.buffers.grad, bytes) };
        // The sign bit is the last byte's highest: -0 is a zero, too.
        let last = self.buffers.dtype.size() - 1;
        grad.chunks_exact(last + 1)
            .all(|value| value[..last].iter().all(|&byte| byte == 0) && value[last] & 0x7f == 0)
    }

    /// Bytes of scratch memory for the direction in the momentum's type, where that is not the arithmetic's, and in the
    /// arithmetic's.
    fn scratch(&self) -> (usize, usize) {
        let (state, work) = (self.buffers.state_dtype, self.work_type());
        let narrow = if state == work {
            0
        } else {
            self.buffers.len * state.size()
        };
        (
            narrow.next_multiple_of(64),
            (self.buffers.len * work.size()).next_multiple_of(64),
        )
    }

    fn matrix<'a>(&self, direction: Direction<'a>) -> Matrix<'a> {
        Matrix {
            rows: self.rows,
            cols: self.cols,
            direction,
            factor: Factor::ONE,
            state: None,
        }
    }
}

/// The type of the arithmetic.
fn work_type(dtype: Float) -> Float {
    if dtype == Float::F64 {
        Float::F64
    } else {
        Float::F32
    }
}

impl MatrixRule {
    /// Whether parameters of a type can have their momentum in another, and be rounded so.
    pub fn takes(&self, dtype: Float, state_dtype: Float, rounding: Rounding) -> bool {
        if !self.transforms.writes() {
            return elementwise::is_supported(dtype, state_dtype, rounding);
        }
        elementwise::is_supported(dtype, state_dtype, Rounding::Nearest)
            && elementwise::is_supported(dtype, work_type(dtype), rounding)
    }

    fn how_many_at_once(&self, pieces: &[Piece]) -> usize {
        if !self.transforms.writes() {
            return pieces.len();
        }
        let mut elements = 0;
        let fitting = pieces.iter().take_while(|piece| {
            elements += piece.buffers.len;
            elements <= ELEMENTS_AT_ONCE
        });
        fitting.count().max(1)
    }

    fn update(&self, pieces: &[Piece], threads: usize, workspace: &mut Workspace) {
        let mut scratch = std::mem::take(&mut workspace.directions);
        let mut matrices = match self.transforms.writes() {
            true => self.write_directions(pieces, &mut scratch, threads),
            false => self.imply_directions(pieces, threads),
        };
        self.transform(pieces, &mut matrices, workspace, threads);
        self.apply(pieces, matrices, threads);
        workspace.directions = scratch;
    }

    /// Updates the momenta and writes out the directions that follow.
    fn write_directions<'a>(
        &self,
        pieces: &[Piece],
        scratch: &'a mut Scratch,
        threads: usize,
    ) -> Vec<Matrix<'a>> {
        let places = places(pieces, scratch);
        let mut batch = elementwise::Batch::with_capacity(pieces.len());
        for (piece, place) in pieces.iter().zip(&places) {
            let [momentum] = piece.buffers.state;
            let states = [momentum, place.direction];
            let buffers = piece.buffers.with_states(states, piece.buffers.state_dtype);
            // SAFETY: the maker of the step vouched for the tensors, `places` for the direction.
            unsafe { batch.push(self.momentum, buffers.unwritten()) }.expect("a supported combination");
        }
        elementwise::run(&[Box::new(batch) as Box<dyn Work>], threads);
        let written = |(piece, place): (&Piece, &Place)| {
            let len = piece.buffers.len;
            // SAFETY: the places are disjoint parts of the scratch memory, with room for each direction in both types.
            let written = unsafe {
                let input = match piece.buffers.state_dtype {
                    Float::Bf16 => Input::Bf16(std::slice::from_raw_parts(place.direction.cast(), len)),
                    Float::F16 => Input::F16(std::slice::from_raw_parts(place.direction.cast(), len)),
                    Float::F32 | Float::F64 => Input::Output,
                };
                Written::new(input, Numbers::new(piece.work_type(), place.values, len))
            };
            piece.matrix(Direction::Written(written))
        };
        pieces.iter().zip(&places).map(written).collect()
    }

    /// Updates the momenta. Each block of the directions that follow is summed right after its momentum was written,
    /// while that is in the cache.
    fn imply_directions<'a>(&self, pieces: &[Piece], threads: usize) -> Vec<Matrix<'a>> {
        let mut batch = elementwise::Batch::<_, 1>::with_capacity(pieces.len());
        let (mut directions, mut blocks) = (Vec::with_capacity(pieces.len()), Vec::new());
        for piece in pieces {
            // SAFETY: the maker of the step vouched for the tensors; of a block, one task sums and writes in turn.
            let entries = unsafe {
                batch
                    .push(self.momentum, piece.buffers.unwritten())
                    .expect("a supported combination");
                Entries::new(piece.buffers, self.momentum)
            };
            blocks.extend((0..piece.buffers.len.div_ceil(BLOCK)).map(|block| (entries, block)));
            directions.push(entries);
        }
        let mut sums = vec![Sums::default(); blocks.len()];
        let to = Shared::new(sums.as_mut_ptr());
        let useful = batch.elements().div_ceil(ELEMENTS_PER_THREAD);
        let isa = Isa::current();
        pool::for_each(threads.min(useful), sums.len(), &|index| {
            batch.run(index);
            let (entries, block) = &blocks[index];
            // SAFETY: every block has its own sums.
            unsafe { *to.get().add(index) = entries.block_sums(*block, isa) };
        });
        let mut sums = sums.into_iter();
        let matrix = |(piece, entries): (&Piece, Entries<'a>)| {
            let own = Sums::total(sums.by_ref().take(piece.buffers.len.div_ceil(BLOCK)));
            piece.matrix(Direction::Implied(entries, entries.size_from(own, threads)))
        };
        pieces.iter().zip(directions).map(matrix).collect()
    }

    fn transform(
        &self,
        pieces: &[Piece],
        matrices: &mut [Matrix<'_>],
        workspace: &mut Workspace,
        threads: usize,
    ) {
        let mut row_state = 0;
        for transform in &self.transforms.0 {
            let is_kept = transform.row_state().is_some();
            for (matrix, piece) in matrices.iter_mut().zip(pieces) {
                // SAFETY: the maker of the step vouched for the row states, of which these rows are this piece's.
                matrix.state = is_kept.then(|| unsafe {
                    Numbers::new(piece.work_type(), piece.row_states[row_state], piece.rows)
                });
            }
            transform.run(matrices, workspace, threads);
            row_state += usize::from(is_kept);
        }
    }

    fn apply(&self, pieces: &[Piece], matrices: Vec<Matrix<'_>>, threads: usize) {
        let mut written = elementwise::Batch::with_capacity(pieces.len());
        let mut implied = elementwise::Batch::with_capacity(pieces.len());
        for (piece, matrix) in pieces.iter().zip(matrices) {
            let squared_norm = self.transforms.squared_norm(piece.rows, piece.cols);
            let along = self
                .apply
                .along(piece.rows, piece.cols, squared_norm, matrix.factor);
            // SAFETY: the maker of the step vouched for the tensors, and the numbers are the piece's own.
            let pushed = unsafe {
                match matrix.direction {
                    Direction::Written(mut numbers) => {
                        let state = numbers.values(threads).as_mut_ptr();
                        written.push(along, piece.buffers.with_states([state], piece.work_type()))
                    }
                    Direction::Implied(..) => {
                        let momentum = self.momentum;
                        implied.push(AlongMomentum { along, momentum }, piece.buffers)
                    }
                }
            };
            pushed.expect("a supported combination");
        }
        elementwise::run(&[Box::new(written) as Box<dyn Work>, Box::new(implied)], threads);
    }
}

/// Where a matrix's direction lies in the momentum's type, and where in the arithmetic's.
struct Place {
    direction: *mut u8,
    values: *mut u8,
}

/// Room for every matrix; one place serves for both where the types are the same.
fn places(pieces: &[Piece], scratch: &mut Scratch) -> Vec<Place> {
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
