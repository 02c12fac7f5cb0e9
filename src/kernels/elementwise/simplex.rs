//! Steps of rows that sum up to 1, by the entropic map of mirror descent: each number times the exponential of the move
//! that a rule makes of it, and divided by what the row sums up to then. Any rule gives the moves: they are what becomes
//! of zeros.

use std::marker::PhantomData;

use super::sweep::{Kernel, Span};
use super::tiles::{self, Narrow, Widen};
use super::{Rule, Unsupported, Work, kernel};
use crate::kernels::storage::{BLOCK, Buffers, Float, Rounding, Scalar, State, Storage};
use crate::kernels::vector::math::{Format, times_exp};
use crate::kernels::vector::{
    Arch, Arithmetic, Halves, InF32, InF64, MAX_LANES, Noise, Routine, Stored, Vector, dispatch,
};
use crate::runtime::Isa;

/// Sums are taken in so many lanes, whatever the instruction set.
const LANES: usize = 16;

/// Parameters of which the rows are about to be updated.
pub struct SimplexUpdates<R, const N: usize> {
    slots: Vec<Slot<R, N>>,
    tasks: usize,
    elements: usize,
    /// Multiplies the gradients.
    scale: f64,
}

struct Slot<R, const N: usize> {
    rule: R,
    moves: Kernel<R, N>,
    read: Kernel<Widen, 1>,
    write: Kernel<Narrow, 1>,
    buffers: Buffers<N>,
    /// Elements of a row.
    row: usize,
    /// Elements of a task: whole rows.
    at_once: usize,
    first_task: usize,
}

// SAFETY: the pointers are used by `run` only, for disjoint rows, while the maker of the updates keeps them valid.
unsafe impl<R: Send, const N: usize> Send for Slot<R, N> {}
// SAFETY: as above.
unsafe impl<R: Sync, const N: usize> Sync for Slot<R, N> {}

impl<R: Rule<N>, const N: usize> SimplexUpdates<R, N> {
    pub fn with_capacity(tensors: usize) -> Self {
        SimplexUpdates {
            slots: Vec::with_capacity(tensors),
            tasks: 0,
            elements: 0,
            scale: 1.0,
        }
    }

    /// Adds a parameter with rows of `row` elements, which follow one another. Refuses combinations of types that have
    /// no kernel, and states in codes.
    ///
    /// # Safety
    /// As for [`super::Updates::push`].
    pub unsafe fn push(&mut self, rule: R, buffers: Buffers<N>, row: usize) -> Result<(), Unsupported> {
        let work = buffers.dtype.arithmetic();
        if R::SUMMED.is_some() {
            return Err(Unsupported);
        }
        let in_codes = |state: &State| matches!(state.storage, Storage::Codes(_));
        if buffers.grad_dtype.arithmetic() != work || buffers.state.iter().any(in_codes) {
            return Err(Unsupported);
        }
        let at_once = (BLOCK / row.max(1)).max(1) * row.max(1);
        self.slots.push(Slot {
            rule,
            moves: kernel(work, work, Rounding::Nearest)?,
            read: kernel(buffers.dtype, work, buffers.rounding)?,
            write: kernel(buffers.dtype, work, buffers.rounding)?,
            buffers,
            row,
            at_once,
            first_task: self.tasks,
        });
        self.tasks += buffers.len.div_ceil(at_once);
        self.elements += buffers.len;
        Ok(())
    }
}

impl<R: Rule<N>, const N: usize> Work for SimplexUpdates<R, N> {
    fn blocks(&self) -> usize {
        self.tasks
    }

    fn elements(&self) -> usize {
        self.elements
    }

    fn scale(&mut self, factor: f64) {
        self.scale = factor;
    }

    fn first_blocks(&self) -> Vec<usize> {
        self.slots.iter().map(|slot| slot.first_task).collect()
    }

    fn run(&self, index: usize) -> u32 {
        let slot = &self.slots[self.slots.partition_point(|slot| slot.first_task <= index) - 1];
        let task = index - slot.first_task;
        let start = task * slot.at_once;
        let part = slot
            .buffers
            .part(start, slot.at_once.min(slot.buffers.len - start));
        // SAFETY: `push` got valid buffers and chose the kernels for their types; tasks do not overlap.
        unsafe {
            match part.dtype.arithmetic() {
                Float::F64 => slot.update::<InF64, f64>(&part, self.scale, task as u64),
                _ => slot.update::<InF32<Halves>, f32>(&part, self.scale, task as u64),
            }
        }
        0
    }
}

impl<R: Rule<N>, const N: usize> Slot<R, N> {
    /// # Safety
    /// `part` is valid, its arithmetic is `F`, and `T` the type of that.
    unsafe fn update<F: Arithmetic, T: Number<F>>(&self, part: &Buffers<N>, scale: f64, task: u64) {
        let padded = part.len.next_multiple_of(MAX_LANES);
        let mut numbers = vec![T::default(); padded];
        let mut exponents = vec![T::default(); padded];
        let noise = match part.rounding {
            Rounding::Stochastic { stream } => Noise {
                key: Noise::key(stream, task),
                counter: 0,
            },
            _ => Noise::NONE,
        };
        let moved = Buffers {
            dtype: part.dtype.arithmetic(),
            param: exponents.as_mut_ptr().cast(),
            ..part.unwritten()
        };
        // SAFETY: the caller's promise, and there is room for the part in both.
        unsafe {
            tiles::run(self.moves, &self.rule, &moved, scale, Noise::NONE, None);
            let state = State::float(numbers.as_mut_ptr().cast(), part.dtype.arithmetic());
            let span = Span::new(&part.with_states([state]), [state.data], 1.0, noise);
            (self.read)(&Widen, &span, None);
            dispatch(
                Isa::current(),
                Rows::<F, T> {
                    numbers: &mut numbers,
                    exponents: &mut exponents,
                    len: part.len,
                    row: self.row,
                    arithmetic: PhantomData,
                },
            );
            (self.write)(&Narrow, &span, None);
        }
    }
}

/// A number as vectors of `F` hold it.
trait Number<F: Arithmetic>: Stored<F> + Scalar + PartialOrd {
    fn of(x: f64) -> Self;
    fn less(self, other: Self) -> Self;
}

impl Number<InF64> for f64 {
    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn less(self, other: f64) -> f64 {
        self - other
    }
}

impl Number<InF32<Halves>> for f32 {
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn less(self, other: f32) -> f32 {
        self - other
    }
}

/// `len` numbers in rows, and the exponents of what they are multiplied by; padding follows both.
struct Rows<'a, F, T> {
    numbers: &'a mut [T],
    exponents: &'a mut [T],
    len: usize,
    row: usize,
    arithmetic: PhantomData<F>,
}

impl<F: Arithmetic, T: Number<F>> Routine for Rows<'_, F, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let (rows, row) = (self.len, self.row);
        for (numbers, exponents) in self.numbers[..rows]
            .chunks_exact(row)
            .zip(self.exponents[..rows].chunks_exact_mut(row))
        {
            let top = top(numbers, exponents);
            for exponent in exponents {
                *exponent = exponent.less(top);
            }
        }
        let lanes = F::Vector::<A>::LANES;
        let least = F::Vector::<A>::splat(<F::Vector<A> as Vector>::Lane::LEAST_NORMAL);
        for (numbers, exponents) in self
            .numbers
            .chunks_exact_mut(lanes)
            .zip(self.exponents.chunks_exact(lanes))
        {
            // SAFETY: both are whole vectors.
            unsafe {
                let number = T::load::<A>(numbers.as_ptr());
                let new = times_exp(number, T::load::<A>(exponents.as_ptr()));
                let least = least.min(number); // what is not 0 does not become 0
                T::store::<A>(new.if_less(least, least, new), numbers.as_mut_ptr());
            }
        }
        for numbers in self.numbers[..rows].chunks_exact_mut(row) {
            let total = total(numbers);
            if total != 0.0 {
                for number in numbers {
                    *number = T::of(number.wide() / total);
                }
            }
        }
    }
}

/// The greatest exponent of a number that is not 0.
#[inline(always)]
fn top<F: Arithmetic, T: Number<F>>(numbers: &[T], exponents: &[T]) -> T {
    let mut top = T::of(f64::NEG_INFINITY);
    for (&number, &exponent) in numbers.iter().zip(exponents.iter()) {
        if exponent > top && number != T::default() {
            top = exponent;
        }
    }
    top
}

#[inline(always)]
fn total<F: Arithmetic, T: Number<F>>(numbers: &[T]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = numbers.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, number) in lanes.iter_mut().zip(chunk) {
            *lane += number.wide();
        }
    }
    for (lane, number) in lanes.iter_mut().zip(rest) {
        *lane += number.wide();
    }
    lanes.iter().sum()
}
