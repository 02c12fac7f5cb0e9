//! A step over parameters: direction, chain, apply.

use super::apply::AlongMomentum;
use super::entries::{Entries, Sums};
use super::piece::{Piece, Place, places};
use super::{Apply, Chain, Direction, Matrix, Momentum, Parameter, Workspace, Written};
use crate::kernels::elementwise::{self, Work};
use crate::kernels::orthogonal::{Input, Numbers};
use crate::kernels::storage::{BLOCK, Buffers, Rounding, Scratch, State};
use crate::runtime::{Isa, Shared, pool};

/// Scratch memory is for so many elements, or for the largest matrix.
const ELEMENTS_AT_ONCE: usize = 1 << 22;
/// Fewer elements than this are not worth waking a thread for.
const ELEMENTS_PER_THREAD: usize = 16_384;

/// Hyperparameters of a step.
#[derive(Clone)]
pub struct MatrixRule {
    pub momentum: Momentum,
    pub transforms: Chain,
    pub apply: Apply,
    /// Leave a matrix alone whose gradient is all zero.
    pub skip_zero_grad: bool,
    /// Whether the momentum is the direction and stays, and the parameter becomes the move, whatever it was.
    pub only_moves: bool,
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

    /// Multiplies the gradients of this step.
    pub fn scale(&mut self, factor: f64) {
        self.rule.momentum.scale = factor;
    }

    /// Updates every parameter, on up to `threads` threads; once.
    pub fn run(&mut self, threads: usize, workspace: &mut Workspace) {
        let mut pieces: Vec<Piece> = self.parameters.iter().flat_map(Piece::all).collect();
        if self.rule.skip_zero_grad {
            pieces.retain(|piece| !piece.grad_is_zero());
        }
        let mut rest = &pieces[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(
                self.rule
                    .how_many_at_once(rest.iter().map(|piece| piece.buffers.len)),
            );
            self.rule.update(now, threads, workspace);
            rest = later;
        }
    }
}

impl MatrixRule {
    /// Whether there are kernels for the types of a parameter and its momentum, a float's, and for its rounding.
    pub fn takes(&self, buffers: &Buffers<1>) -> bool {
        let &Buffers { dtype, rounding, .. } = buffers;
        let Some(state_dtype) = buffers.state_dtype() else {
            return false;
        };
        if self.only_moves {
            return dtype == dtype.arithmetic();
        }
        if !self.transforms.writes() {
            return elementwise::is_supported(dtype, state_dtype, rounding);
        }
        elementwise::is_supported(dtype, state_dtype, Rounding::Nearest)
            && elementwise::is_supported(dtype, dtype.arithmetic(), rounding)
    }

    /// Of matrices with so many elements, the number of those that are stepped together.
    pub(super) fn how_many_at_once(&self, lens: impl ExactSizeIterator<Item = usize>) -> usize {
        if !self.transforms.writes() {
            return lens.len();
        }
        let mut elements = 0;
        let fitting = lens.take_while(|len| {
            elements += len;
            elements <= ELEMENTS_AT_ONCE
        });
        fitting.count().max(1)
    }

    fn update(&self, pieces: &[Piece], threads: usize, workspace: &mut Workspace) {
        let mut scratch = std::mem::take(&mut workspace.directions);
        let mut matrices = match self.transforms.writes() {
            _ if self.only_moves => pieces.iter().map(given_direction).collect(),
            true => self.write_directions(pieces, &mut scratch, threads),
            false => self.imply_directions(pieces, threads),
        };
        self.transforms.run(pieces, &mut matrices, workspace, threads);
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
        let mut batch = elementwise::Updates::with_capacity(pieces.len());
        for (piece, place) in pieces.iter().zip(&places) {
            let [momentum] = piece.buffers.state;
            let direction = State::float(place.direction, piece.state_type());
            let buffers = piece.buffers.with_states([momentum, direction]);
            // SAFETY: the maker of the step vouched for the tensors, `places` for the direction.
            unsafe { batch.push(self.momentum, buffers.unwritten()) }.expect("a supported combination");
        }
        elementwise::run(&[Box::new(batch) as Box<dyn Work>], threads);
        let written = |(piece, place): (&Piece, &Place)| {
            let len = piece.buffers.len;
            // SAFETY: the places are disjoint parts of the scratch memory, with room for each direction in both types.
            let written = unsafe {
                let input = match piece.state_type() {
                    state if state == piece.work_type() => Input::Output,
                    state => Input::new(state, place.direction, len),
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
        let mut batch = elementwise::Updates::<_, 1>::with_capacity(pieces.len());
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

    fn apply(&self, pieces: &[Piece], matrices: Vec<Matrix<'_>>, threads: usize) {
        let mut moves = elementwise::Updates::with_capacity(pieces.len());
        let mut written = elementwise::Updates::with_capacity(pieces.len());
        let mut implied = elementwise::Updates::with_capacity(pieces.len());
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
                        if self.only_moves {
                            moves.push(along.only_move(), piece.buffers.with_states([]))
                        } else {
                            written.push(
                                along,
                                piece
                                    .buffers
                                    .with_states([State::float(state, piece.work_type())]),
                            )
                        }
                    }
                    Direction::Implied(..) => {
                        let momentum = self.momentum;
                        implied.push(AlongMomentum { along, momentum }, piece.buffers)
                    }
                }
            };
            pushed.expect("a supported combination");
        }
        let all: [Box<dyn Work>; 3] = [Box::new(moves), Box::new(written), Box::new(implied)];
        elementwise::run(&all, threads);
    }
}

/// The direction that lies where the momentum does, and is transformed where the parameter does.
fn given_direction<'a>(piece: &Piece) -> Matrix<'a> {
    let Buffers { len, param, .. } = piece.buffers;
    let [direction] = piece.buffers.state;
    // SAFETY: the maker of the step vouched for the tensors, and `takes` saw that numbers of the arithmetic fit.
    let written = unsafe {
        let input = Input::new(piece.state_type(), direction.data, len);
        Written::new(input, Numbers::new(piece.work_type(), param, len))
    };
    piece.matrix(Direction::Written(written))
}
