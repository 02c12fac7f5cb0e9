//! Matrices of which one rule updates selected elements, with states for these only, and a rule without states the
//! others: in one pass, a stretch of the parameter at a time, while it is in the cache.

use super::gather::{Chosen, Room};
use super::taking::take_and_update;
use super::{BLOCK, Code, Rule, Unsupported, Work};
use crate::kernels::storage::{Buffers, Rounding, State};
use crate::kernels::vector::Noise;

/// Elements that are visited at once where single elements are gathered: with the gathered ones they stay in the nearest
/// cache.
const STRETCH: usize = 2048;

/// A rule with the code for a parameter's types, whatever its number of states.
pub trait Piece: Send + Sync {
    /// # Safety
    /// The buffers and states, as many as the rule has, are valid for `len` elements of the types that the piece was
    /// made for, and nobody else has them.
    unsafe fn run(&self, part: &Buffers<0>, states: &[State], scale: f64, noise: Noise);

    /// As `run` without states; the room takes the chosen elements as they were, and their gradients.
    ///
    /// # Safety
    /// As for `run`.
    unsafe fn run_taking(
        &self,
        part: &Buffers<0>,
        scale: f64,
        noise: Noise,
        chosen: &Chosen<'_>,
        room: &mut Room,
    ) -> Buffers<0>;
}

struct OfTypes<R, const N: usize> {
    rule: R,
    code: Code<R, N>,
}

/// A rule for the types of a parameter and its states. Refuses other numbers of states, combinations of types that have
/// no kernel, and rules that take more than elements.
pub fn piece<R: Rule<N>, const N: usize>(
    rule: R,
    buffers: &Buffers<0>,
    states: &[State],
) -> Result<Box<dyn Piece>, Unsupported> {
    let states: [State; N] = states.try_into().map_err(|_| Unsupported)?;
    if R::SUMMED.is_some() || R::COUNTS {
        return Err(Unsupported);
    }
    let code = Code::of(&buffers.with_states(states))?;
    Ok(Box::new(OfTypes { rule, code }))
}

impl<R: Rule<N>, const N: usize> Piece for OfTypes<R, N> {
    unsafe fn run(&self, part: &Buffers<0>, states: &[State], scale: f64, noise: Noise) {
        let states: [State; N] = states.try_into().expect("as many states as the rule has");
        // SAFETY: the caller's promise is the same.
        unsafe {
            self.code
                .run(&self.rule, &part.with_states(states), scale, noise, None)
        };
    }

    unsafe fn run_taking(
        &self,
        part: &Buffers<0>,
        scale: f64,
        noise: Noise,
        chosen: &Chosen<'_>,
        room: &mut Room,
    ) -> Buffers<0> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            if Self::HAS_NO_STATES
                && let Some(taken) = take_and_update(room, part, chosen, (self.rule, self.code), scale)
            {
                return taken;
            }
            // The gradients come from the memory while all are updated, and are gathered from the cache.
            room.take(part, chosen);
            self.run(part, &[], scale, noise);
            room.with_gradients(part, chosen)
        }
    }
}

impl<R: Rule<N>, const N: usize> OfTypes<R, N> {
    /// A constant, so that nothing is compiled for rules with states.
    const HAS_NO_STATES: bool = N == 0;
}

/// Which elements of a matrix are selected.
pub enum Selection {
    /// Whole rows, by rising numbers.
    Rows(Vec<u32>),
    /// Whole columns.
    Columns(Columns),
    /// Single elements, by their bits.
    Entries(Bits),
}

/// A bit for each column, the lowest of a byte first, and how many are set.
pub struct Columns {
    bits: Vec<u8>,
    count: usize,
}

impl Columns {
    /// The numbers of columns below `of`, each once.
    pub fn new(numbers: &[u32], of: usize) -> Columns {
        let mut bits = vec![0; of.div_ceil(8)];
        for &number in numbers {
            bits[number as usize / 8] |= 1 << (number % 8);
        }
        Columns {
            bits,
            count: numbers.len(),
        }
    }
}

/// A bit for each element, the lowest of a byte first.
pub struct Bits {
    data: *const u8,
    /// For each block, how many are set before it.
    before: Vec<usize>,
}

impl Bits {
    /// The bits of `len` elements at `data`, with the number of those that are set. None if bits beyond are set.
    ///
    /// # Safety
    /// `data` is valid for reading a bit for each element, now and while the bits live.
    pub unsafe fn new(data: *const u8, len: usize) -> Option<(Bits, usize)> {
        let bytes = match len {
            0 => &[][..],
            // SAFETY: the caller's promise.
            _ => unsafe { std::slice::from_raw_parts(data, len.div_ceil(8)) },
        };
        if !len.is_multiple_of(8) && bytes.last().is_some_and(|last| last >> (len % 8) != 0) {
            return None;
        }
        let (mut before, mut count) = (Vec::with_capacity(len / BLOCK + 1), 0);
        for block in bytes.chunks(BLOCK / 8) {
            before.push(count);
            count += set(block);
        }
        Some((Bits { data, before }, count))
    }

    /// Those of `len` elements from `start` on, a multiple of 8, as one row.
    fn row(&self, start: usize, len: usize) -> Chosen<'_> {
        // SAFETY: the maker's promise.
        let bits = unsafe { std::slice::from_raw_parts(self.data.add(start / 8), len.div_ceil(8)) };
        let count = set(bits);
        Chosen {
            bits,
            count,
            row: len,
            rows: 1,
        }
    }
}

/// How many bits are set.
fn set(bytes: &[u8]) -> usize {
    bytes.iter().map(|byte| byte.count_ones() as usize).sum()
}

struct Slot {
    inner: Box<dyn Piece>,
    rest: Option<Box<dyn Piece>>,
    selection: Selection,
    buffers: Buffers<0>,
    /// Those of the selected elements, one after the other.
    states: Vec<State>,
    columns: usize,
    /// Elements of a block: whole rows, unless single elements are selected.
    block: usize,
    first_block: usize,
}

// SAFETY: the pointers are used by `run` only, for disjoint blocks, while the maker of the updates keeps them valid.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

/// Matrices about to be updated.
#[derive(Default)]
pub struct SelectedUpdates {
    slots: Vec<Slot>,
    blocks: usize,
    elements: usize,
    /// Multiplies the gradients; 1 where nothing is said.
    scale: Option<f64>,
}

impl SelectedUpdates {
    /// Adds a matrix of so many columns: `inner` is for the selected elements, `rest`, if there is one, for the others.
    ///
    /// # Safety
    /// As for [`super::Updates::push`], and the states are valid for the selected elements. These lie within the matrix;
    /// both pieces are for the types of the buffers, and `inner` has these states.
    pub unsafe fn push(
        &mut self,
        inner: Box<dyn Piece>,
        rest: Option<Box<dyn Piece>>,
        selection: Selection,
        buffers: Buffers<0>,
        states: Vec<State>,
        columns: usize,
    ) {
        let block = match selection {
            Selection::Entries(_) => BLOCK,
            _ => (BLOCK / columns.max(1)).max(1) * columns.max(1),
        };
        self.slots.push(Slot {
            inner,
            rest,
            selection,
            buffers,
            states,
            columns,
            block,
            first_block: self.blocks,
        });
        self.blocks += buffers.len.div_ceil(block);
        self.elements += buffers.len;
    }
}

impl Work for SelectedUpdates {
    fn blocks(&self) -> usize {
        self.blocks
    }

    fn elements(&self) -> usize {
        self.elements
    }

    fn scale(&mut self, factor: f64) {
        self.scale = Some(factor);
    }

    fn first_blocks(&self) -> Vec<usize> {
        self.slots.iter().map(|slot| slot.first_block).collect()
    }

    fn run(&self, index: usize) -> u32 {
        let slot = &self.slots[self.slots.partition_point(|slot| slot.first_block <= index) - 1];
        let block = index - slot.first_block;
        let start = block * slot.block;
        let visit = Visit {
            slot,
            start,
            end: (start + slot.block).min(slot.buffers.len),
            scale: self.scale.unwrap_or(1.0),
        };
        // SAFETY: `push` got what is valid; the block lies within it, and nobody else has it.
        unsafe {
            match &slot.selection {
                Selection::Rows(rows) => visit.rows(rows),
                Selection::Columns(columns) => visit.columns(columns),
                Selection::Entries(bits) => visit.entries(bits, bits.before[block]),
            }
        }
        0
    }
}

/// A block on its way through.
struct Visit<'a> {
    slot: &'a Slot,
    start: usize,
    end: usize,
    scale: f64,
}

/// Safety of all: the block is valid, and nobody else has it.
impl Visit<'_> {
    unsafe fn rows(&self, selected: &[u32]) {
        let columns = self.slot.columns;
        let (mut row, end) = (self.start / columns, self.end / columns);
        let mut rank = selected.partition_point(|&each| (each as usize) < row);
        while row < end {
            let (first, before) = (row, rank);
            while row < end && selected.get(rank).is_some_and(|&each| each as usize == row) {
                (row, rank) = (row + 1, rank + 1);
            }
            if row > first {
                let part = self.slot.buffers.part(first * columns, (row - first) * columns);
                // SAFETY: the caller's promise; so many rows before these have states.
                unsafe { self.inner(&part, before * columns, first * columns) };
                continue;
            }
            row = selected.get(rank).map_or(end, |&each| end.min(each as usize));
            // SAFETY: the caller's promise.
            unsafe { self.rest(first * columns, row * columns) };
        }
    }

    unsafe fn columns(&self, selected: &Columns) {
        let row = self.slot.columns;
        let mut room = Room::default();
        let stretch = (STRETCH / row).max(1) * row;
        for start in (self.start..self.end).step_by(stretch) {
            let end = self.end.min(start + stretch);
            let chosen = Chosen {
                bits: &selected.bits,
                count: selected.count,
                row,
                rows: (end - start) / row,
            };
            // SAFETY: the caller's promise.
            unsafe { self.stretch(start, end, &chosen, start / row * selected.count, &mut room) };
        }
    }

    unsafe fn entries(&self, bits: &Bits, mut rank: usize) {
        let mut room = Room::default();
        for start in (self.start..self.end).step_by(STRETCH) {
            let end = self.end.min(start + STRETCH);
            let chosen = bits.row(start, end - start);
            // SAFETY: the caller's promise.
            unsafe { self.stretch(start, end, &chosen, rank, &mut room) };
            rank += chosen.count;
        }
    }

    /// Updates elements from `start` to `end`, of which some are selected; there are `rank` selected ones before them.
    unsafe fn stretch(&self, start: usize, end: usize, chosen: &Chosen<'_>, rank: usize, room: &mut Room) {
        let part = self.slot.buffers.part(start, end - start);
        // SAFETY: the caller's promise; the room is made large enough.
        unsafe {
            let gathered = match &self.slot.rest {
                Some(rest) => rest.run_taking(&part, self.scale, self.noise(start as u64), chosen, room),
                None => {
                    room.take(&part, chosen);
                    room.with_gradients(&part, chosen)
                }
            };
            self.inner(&gathered, rank, start);
            room.scatter(&part, chosen);
        }
    }

    /// Random numbers that no other part of the parameter has, for the part from element `start` on.
    fn noise(&self, start: u64) -> Noise {
        match self.slot.buffers.rounding {
            Rounding::Stochastic { stream } => Noise {
                key: Noise::key(stream, start),
                counter: 0,
            },
            _ => Noise::NONE,
        }
    }

    unsafe fn inner(&self, part: &Buffers<0>, rank: usize, start: usize) {
        let noise = self.noise(!(start as u64));
        let mut states = [State::float(std::ptr::null_mut(), part.dtype); MOST_STATES];
        for (state, own) in states.iter_mut().zip(&self.slot.states) {
            *state = own.from(rank);
        }
        // SAFETY: the caller's promise.
        unsafe {
            self.slot
                .inner
                .run(part, &states[..self.slot.states.len()], self.scale, noise)
        };
    }

    unsafe fn rest(&self, start: usize, end: usize) {
        let noise = self.noise(start as u64);
        if let Some(rest) = &self.slot.rest {
            // SAFETY: the caller's promise.
            unsafe {
                rest.run(
                    &self.slot.buffers.part(start, end - start),
                    &[],
                    self.scale,
                    noise,
                )
            };
        }
    }
}

/// States of a rule, at most.
const MOST_STATES: usize = 4;

/// `count` of the numbers below `of`, rising: each such choice is as likely as any other. It depends on the key alone.
/// Knuth's selection sampling (The Art of Computer Programming, 3.4.2, Algorithm S).
pub fn sample(of: u64, count: u64, key: u64) -> impl Iterator<Item = u64> {
    let mut missing = count;
    (0..of).filter(move |&number| {
        let drawn = u128::from(Noise::key(key, number));
        let is_chosen = (drawn * u128::from(of - number)) >> 64 < u128::from(missing);
        missing -= u64::from(is_chosen);
        is_chosen
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_rises_and_has_as_many_as_are_asked_for() {
        for (of, count) in [(0, 0), (1, 0), (1, 1), (10, 3), (1000, 250), (64, 64)] {
            let chosen: Vec<u64> = sample(of, count, 7).collect();
            assert_eq!(chosen.len() as u64, count);
            assert!(chosen.is_sorted_by(|one, next| one < next) && chosen.iter().all(|&each| each < of));
        }
        assert!(sample(1000, 250, 7).eq(sample(1000, 250, 7)));
        assert!(!sample(1000, 250, 7).eq(sample(1000, 250, 8)));
    }

    #[test]
    fn bits_are_counted_and_refused_beyond_the_last_element() {
        let bytes = [0b1010_0001, 0b0000_0110];
        let of = |len| {
            // SAFETY: both bytes are there.
            unsafe { Bits::new(bytes.as_ptr(), len) }
        };
        let (bits, count) = of(11).expect("no bit is set beyond");
        assert_eq!((count, bits.before), (5, vec![0]));
        assert!(of(10).is_none());
        assert_eq!(of(0).map(|(_, count)| count), Some(0));
    }

    #[test]
    fn blocks_know_how_many_are_set_before_them() {
        let bytes = vec![0b0001_0001; BLOCK / 4];
        // SAFETY: two blocks are there.
        let (bits, count) = unsafe { Bits::new(bytes.as_ptr(), 2 * BLOCK) }.expect("no bit is set beyond");
        assert_eq!((count, bits.before.clone()), (BLOCK / 2, vec![0, BLOCK / 4]));
        let row = bits.row(BLOCK, 64);
        assert_eq!((row.count, row.row, row.rows, row.bits.len()), (16, 64, 1, 8));
    }

    #[test]
    fn columns_are_bits() {
        let columns = Columns::new(&[0, 5, 9], 10);
        assert_eq!((columns.bits, columns.count), (vec![0b0010_0001, 0b10], 3));
    }
}
