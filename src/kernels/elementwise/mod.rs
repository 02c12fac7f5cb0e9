//! The element-wise engine: one pass over parameters, gradients and state, whatever the rule.
//!
//! A rule is a struct of hyperparameters and one per-element function ([`Rule`]); the engine gives it every
//! instruction set, storage type, rounding mode and any number of threads.

mod ball;
mod blocks;
mod carried;
mod code;
mod coded;
mod combinations;
mod declared;
mod disturb;
mod finite;
mod gather;
mod largest;
mod norms;
mod selected;
mod simplex;
mod sums;
mod sweep;
mod taking;
mod terms;
mod tiles;
mod work;

pub mod adagrad;
pub mod adagrad_norm;
pub mod adamax;
pub mod adamw;
pub mod ascent;
pub mod blend;
pub mod diagonal;
pub mod diffgrad;
pub mod egd;
pub mod frugal;
pub mod lion;
pub mod lion_norms;
pub mod nadam;
pub mod nigt;
pub mod optimistic;
pub mod radam;
pub mod rmsprop;
pub mod sgd;
pub mod sophia;
pub mod storm;

use ball::Ball;
pub use carried::CarriedUpdates;
use code::Code;
pub use combinations::is_supported;
use combinations::kernel;
pub use declared::{ByName, Declaration, HyperparameterKind, Hyperparameters, Source, Steady, Visitor};
use declared::{hyperparameters, rules};
pub use disturb::Disturbance;
pub use finite::{Values, all_finite};
pub use norms::{NormSums, norms, run_measured};
pub use selected::{Bits, Columns, Piece, SelectedUpdates, Selection, piece, sample};
pub use simplex::SimplexUpdates;
pub use sums::{Summed, sums};
use work::find;
pub use work::{Work, prepare, run};

use super::linear::Norms;
use super::storage::{BLOCK, Buffers, Rounding};
use super::vector::{Noise, Vector};

/// Fewer elements than this are not worth waking a thread for: see `benchmarks/README.md`.
const ELEMENTS_PER_THREAD: usize = 16_384;

rules! {
    adagrad::Adagrad,
    adagrad_norm::AdaGradNorm,
    adamax::Adamax,
    adamw::AdamW,
    adamw::AmsGrad,
    ascent::Ascent,
    blend::Blend,
    diagonal::HessianSquare,
    diagonal::HessianProduct,
    diagonal::HessianEstimate,
    diffgrad::DiffGrad,
    egd::Egd,
    egd::EgdMomentum,
    egd::EgdAdam,
    frugal::AveragedDescent,
    frugal::Descent,
    frugal::OnlyDecay,
    frugal::SignDescent,
    lion::Lion,
    lion::LionDeadZone,
    lion::LionHuber,
    lion::LionIdentity,
    lion::LionTopK,
    lion_norms::LionL2,
    lion_norms::LionLp,
    lion_norms::LionRow,
    nadam::NAdam,
    nigt::Nigt,
    optimistic::OptimisticMd,
    optimistic::OptimisticMdAdaptive,
    optimistic::OptimisticAdam,
    radam::RAdam,
    rmsprop::RMSprop,
    rmsprop::RMSpropMomentum,
    rmsprop::RMSpropCentered,
    rmsprop::RMSpropCenteredMomentum,
    sgd::Sgd,
    sgd::SgdMomentum,
    sophia::Sophia,
    storm::Storm,
    storm::StormPlain,
    storm::StormAdaptive,
}

/// Vectors that go from [`Rule::begin`] to [`Rule::finish`].
const BEGUN: usize = 3;

/// What happens to one element that has `N` numbers of state.
pub trait Rule<const N: usize>: Copy + Send + Sync + 'static {
    /// Whether the parameter is written, and how many of the states are, from the first on; the others are only read.
    const WRITES_PARAM: bool = true;
    const WRITES_STATES: usize = N;
    /// Whether there is code of its own for numbers in 16 bits, rather than for those that [`tiles`] makes of them: the
    /// last fifth of speed, for ten times the time of building.
    const IN_16_BITS: bool = false;
    /// Whether an update in 16 bits may be begun for some vectors before any of them is finished: see [`Rule::begin`].
    const IN_TWO_PARTS: bool = false;
    /// Whether elements are counted.
    const COUNTS: bool = false;
    /// What the rule has to know the sum of, over its tensor or over several, before the first element is updated.
    const SUMMED: Option<Summed> = None;
    /// Whether the sum is over each row of a tensor by itself; a row is all dimensions but the first.
    const BY_ROW: bool = false;
    /// Whether the rule takes the terms that are largest in their tensor.
    const TAKES_LARGEST: bool = false;
    /// Whether the rule may keep its tensor within a [`Ball`].
    const IN_BALL: bool = false;

    /// The new parameter and state from the old ones and the gradient.
    fn update<V: Vector>(&self, param: V, grad: V, state: [V; N]) -> (V, [V; N]);

    /// With `IN_TWO_PARTS`: the first part of [`Rule::update`], with the new state. Where a quotient waits for a root, that
    /// is its end.
    fn begin<V: Vector>(&self, param: V, grad: V, state: [V; N]) -> ([V; BEGUN], [V; N]) {
        let (param, state) = self.update(param, grad, state);
        ([param; BEGUN], state)
    }

    /// With `IN_TWO_PARTS`: the second part, from what the first one gave.
    fn finish<V: Vector>(&self, [param, ..]: [V; BEGUN]) -> V {
        param
    }

    /// With `COUNTS`: how many elements of a vector are to be counted, from their new state; none where all is 0.
    fn count<V: Vector>(&self, _state: [V; N]) -> u32 {
        0
    }

    /// With `SUMMED` or `TAKES_LARGEST`: what is summed, or compared by size, from the gradient and the old state.
    fn term<V: Vector>(&self, grad: V, _state: [V; N]) -> V {
        grad
    }

    /// With [`Summed::Powers`]: the power.
    fn power(&self) -> u32 {
        1
    }

    /// With `SUMMED`: the rule that knows the sum. Rows of one element are updated without it.
    fn knowing(self, _sum: f64) -> Self {
        self
    }

    /// With `TAKES_LARGEST`: how many.
    fn taken(&self) -> usize {
        0
    }

    /// With `TAKES_LARGEST`: the rule that takes what is larger than this.
    fn taking_above(self, _size: f64) -> Self {
        self
    }

    /// With `IN_BALL`: the ball.
    fn ball(&mut self) -> Option<&mut Ball> {
        None
    }
}

/// One parameter with the rule for it and the code for its types.
struct Slot<R, const N: usize> {
    rule: R,
    code: Code<R, N>,
    buffers: Buffers<N>,
    /// Elements of a row that is summed by itself, if rows are.
    row: Option<usize>,
    /// Elements of a block.
    block: usize,
    disturbance: Option<Disturbance>,
    /// With [`Rule::TAKES_LARGEST`]: the elements before this one are for the first rule, the others for the slot's.
    first: Option<(usize, R)>,
    first_block: usize,
}

// SAFETY: the pointers are used by `run` only, for disjoint blocks, while the maker of the updates keeps them valid.
unsafe impl<R: Send, const N: usize> Send for Slot<R, N> {}
// SAFETY: as above.
unsafe impl<R: Sync, const N: usize> Sync for Slot<R, N> {}

/// Parameters that a rule is about to update.
pub struct Updates<R, const N: usize> {
    slots: Vec<Slot<R, N>>,
    blocks: usize,
    elements: usize,
    /// Multiplies the gradients.
    scale: f64,
}

impl<R: Rule<N>, const N: usize> Updates<R, N> {
    pub fn with_capacity(tensors: usize) -> Self {
        Updates {
            slots: Vec::with_capacity(tensors),
            blocks: 0,
            elements: 0,
            scale: 1.0,
        }
    }

    /// Adds a parameter. Refuses combinations of types that have no kernel.
    ///
    /// # Safety
    /// Until the updates are dropped, the pointers of `buffers` stay valid for `len` elements of their types, for writing
    /// where they are `*mut`, and nothing else reads or writes what they write.
    pub unsafe fn push(&mut self, rule: R, buffers: Buffers<N>) -> Result<(), Unsupported> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.push_in_blocks(rule, buffers, None, BLOCK) }
    }

    /// Adds a parameter that is disturbed after the rule.
    ///
    /// # Safety
    /// As for [`Updates::push`].
    pub unsafe fn push_disturbed(
        &mut self,
        rule: R,
        buffers: Buffers<N>,
        disturbance: Option<Disturbance>,
    ) -> Result<(), Unsupported> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.push(rule, buffers)? };
        if let Some(slot) = self.slots.last_mut() {
            slot.disturbance = disturbance;
        }
        Ok(())
    }

    /// Adds a parameter whose rows, of `row` elements one after the other, are updated each by itself.
    ///
    /// # Safety
    /// As for [`Updates::push`].
    pub unsafe fn push_rows(&mut self, rule: R, buffers: Buffers<N>, row: usize) -> Result<(), Unsupported> {
        if row <= 1 {
            // SAFETY: the caller's promise is the same.
            return unsafe { self.push(rule, buffers) };
        }
        if buffers.state.iter().any(|state| state.dtype().is_none()) {
            return Err(Unsupported); // codes of several rows have a scale in common
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.push_in_blocks(rule, buffers, Some(row), (BLOCK / row).max(1) * row) }
    }

    /// # Safety
    /// As for [`Updates::push`].
    unsafe fn push_in_blocks(
        &mut self,
        rule: R,
        buffers: Buffers<N>,
        row: Option<usize>,
        block: usize,
    ) -> Result<(), Unsupported> {
        let in_codes = buffers.state.iter().any(|state| state.dtype().is_none());
        if R::TAKES_LARGEST && in_codes {
            return Err(Unsupported); // no scale is to be of two rules' elements
        }
        self.slots.push(Slot {
            rule,
            code: Code::of(&buffers)?,
            buffers,
            row,
            block,
            disturbance: None,
            first: None,
            first_block: self.blocks,
        });
        self.blocks += buffers.len.div_ceil(block);
        self.elements += buffers.len;
        Ok(())
    }
}

impl<R: Rule<N>, const N: usize> Updates<R, N> {
    /// Block `index`: whose it is, its number there, and its memory.
    fn block(&self, index: usize) -> (&Slot<R, N>, usize, Buffers<N>) {
        let slot = &self.slots[self.slots.partition_point(|slot| slot.first_block <= index) - 1];
        let block = index - slot.first_block;
        let start = block * slot.block;
        let part = slot.buffers.part(start, slot.block.min(slot.buffers.len - start));
        (slot, block, part)
    }

    /// Updates block `index`, and adds its gradient to the norms, if there are any.
    fn visit(&self, index: usize, norms: Option<&mut Norms>) -> u32 {
        let (slot, block, part) = self.block(index);
        let counted = match slot.row {
            Some(row) => self.update_rows(slot, block, &part, row),
            None => self.update_block(slot, &part, block, norms),
        };
        if let Some(disturbance) = &slot.disturbance {
            // SAFETY: `push` got buffers valid for `len` elements, within which the part lies; nobody else has it.
            unsafe { disturbance.run(&part, block as u64) };
        }
        counted
    }

    /// Updates block number `block` by the rules for its elements.
    fn update_block(
        &self,
        slot: &Slot<R, N>,
        part: &Buffers<N>,
        block: usize,
        norms: Option<&mut Norms>,
    ) -> u32 {
        let by_first = match slot.first {
            Some((end, _)) => end.saturating_sub(block * slot.block).min(part.len),
            None => 0,
        };
        let (first, others) = (part.part(0, by_first), part.part(by_first, part.len - by_first));
        let mut counted = 0;
        if let (Some((_, rule)), 1..) = (&slot.first, first.len) {
            counted += self.update(slot, rule, &first, block, 0, None);
        }
        if others.len > 0 {
            counted += self.update(slot, &slot.rule, &others, block, by_first, norms);
        }
        counted
    }

    /// Updates a part of a parameter, element `start` of number `place` of those with a key for their random numbers,
    /// by a rule that knows what it has to.
    fn update(
        &self,
        slot: &Slot<R, N>,
        rule: &R,
        part: &Buffers<N>,
        place: usize,
        start: usize,
        norms: Option<&mut Norms>,
    ) -> u32 {
        let key = match part.rounding {
            Rounding::Stochastic { stream } => Noise::key(stream, place as u64),
            _ => 0,
        };
        let counter = start.next_multiple_of(2) as u32;
        let noise = Noise { key, counter };
        // SAFETY: `push` got buffers valid for `len` elements and chose the code for their types; the part lies within
        // them, and nobody else has it.
        unsafe { slot.code.run(rule, part, self.scale, noise, norms) }
    }

    /// Sums and updates the rows of a block one by one, while each is in the cache.
    fn update_rows(&self, slot: &Slot<R, N>, block: usize, part: &Buffers<N>, row: usize) -> u32 {
        let first = block * (slot.block / row);
        let mut room = sums::Room::default();
        let of_row = |i| {
            let part = part.part(i * row, row);
            // SAFETY: `push` got buffers valid for `len` elements, within which the row lies; nobody else has it.
            let sum = unsafe { sums::of_block(&slot.rule, &part, self.scale, &mut room) };
            self.update(slot, &slot.rule.knowing(sum), &part, first + i, 0, None)
        };
        (0..part.len / row).map(of_row).sum()
    }
}

impl<R: Rule<N>, const N: usize> Updates<R, N> {
    /// Tells the rules which terms are the largest of their tensors.
    fn select(&mut self, threads: usize) {
        for slot in &mut self.slots {
            // SAFETY: `push` got buffers valid for `len` elements; nobody else has them.
            let limit = unsafe { largest::limit(&slot.rule, &slot.buffers, self.scale, threads) };
            slot.first = Some((limit.end, slot.rule.taking_above(limit.below)));
            slot.rule = slot.rule.taking_above(limit.size);
        }
    }

    /// Tells the rules with a ball how far their tensors would go.
    fn keep_in_ball(&mut self, threads: usize) {
        let has_ball = |slot: &mut Slot<R, N>| slot.rule.ball().is_some_and(|ball| ball.is_bounded());
        if !self.slots.iter_mut().any(has_ball) {
            return;
        }
        let updates = &*self;
        let squares = blocks::of_blocks(updates.blocks, updates.elements, threads, &|index| {
            let (slot, _, part) = updates.block(index);
            // SAFETY: `push` got buffers valid for `len` elements, within which the part lies; nobody else has it.
            unsafe { ball::squared_norm(&slot.rule, &part, updates.scale) }
        });
        let squares = blocks::by_tensor(&self.first_blocks(), &squares, |own| own.iter().sum());
        for (slot, squares) in self.slots.iter_mut().zip(squares) {
            if let Some(ball) = slot.rule.ball() {
                ball.know(squares);
            }
        }
    }
}

/// A combination of types without a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

impl<R: Rule<N>, const N: usize> Work for Updates<R, N> {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn elements(&self) -> usize {
        self.elements
    }

    fn scale(&mut self, factor: f64) {
        self.scale = factor;
    }

    fn first_blocks(&self) -> Vec<usize> {
        self.slots.iter().map(|slot| slot.first_block).collect()
    }

    fn is_to_know(&self) -> bool {
        R::SUMMED.is_some() && !R::BY_ROW
    }

    fn sum(&self, index: usize) -> f64 {
        if R::SUMMED.is_none() {
            return 0.0;
        }
        let (slot, _, part) = self.block(index);
        // SAFETY: `push` got buffers valid for `len` elements, within which the part lies; nobody else has the block.
        unsafe { sums::of_block(&slot.rule, &part, self.scale, &mut sums::Room::default()) }
    }

    fn know(&mut self, sums: &[f64]) {
        for (slot, &sum) in self.slots.iter_mut().zip(sums) {
            slot.rule = slot.rule.knowing(sum);
        }
    }

    fn prepare(&mut self, threads: usize) {
        if R::TAKES_LARGEST {
            self.select(threads);
        }
        if R::IN_BALL {
            self.keep_in_ball(threads);
        }
    }

    fn run(&self, index: usize) -> u32 {
        self.visit(index, None)
    }

    fn measures(&self) -> bool {
        !R::BY_ROW && !R::TAKES_LARGEST
    }

    fn run_measured(&self, index: usize, norms: &mut Norms) -> u32 {
        self.visit(index, self.measures().then_some(norms))
    }
}

#[cfg(test)]
mod tests;
