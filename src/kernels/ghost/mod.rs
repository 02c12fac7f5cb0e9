//! Normalization of the parts of a batch, each by its own mean and variance: ghosts (Hoffer, Hubara and Soudry 2017,
//! arXiv 1705.08741), and its derivative.
//!
//! A task is one ghost's elements of some channels: they are read from memory once, and again from the cache. Statistics
//! are taken in f64, in a fixed number of lanes and without a fused multiply-add, so that neither threads nor
//! instruction sets change a bit; elements are written in the arithmetic of their type.

mod block;
mod passes;

use std::ops::Range;

use super::linear::{ELEMENTS_PER_THREAD, Element};
use super::storage::{Float, with_type};
use super::vector::dispatch;
use crate::runtime::{Isa, Shared, pool};
use block::{Block, Room};
use passes::{Backward, Forward};

/// A batch: `rows` samples, each of `channels` runs of `run` elements, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub dtype: Float,
    pub rows: usize,
    pub channels: usize,
    pub run: usize,
    /// Rows of a ghost; the last takes what is left over, too.
    pub size: usize,
}

/// Numbers of the channels: what normalized elements are multiplied by, and what is added to them.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    pub weight: &'a [f64],
    pub bias: &'a [f64],
}

impl<'a> Affine<'a> {
    /// Those of a list that has all weights first.
    pub fn of(numbers: &'a [f64], channels: usize) -> Affine<'a> {
        let (weight, bias) = numbers.split_at(channels);
        Affine { weight, bias }
    }
}

impl Shape {
    /// How many ghosts there are.
    pub fn ghosts(&self) -> usize {
        (self.rows / self.size).max(1)
    }

    /// The rows of a ghost.
    fn rows_of(&self, ghost: usize) -> Range<usize> {
        let end = match ghost + 1 == self.ghosts() {
            true => self.rows,
            false => (ghost + 1) * self.size,
        };
        ghost * self.size..end
    }

    /// Calls `work` for each ghost with some channels at a time, on up to `threads` threads.
    fn for_blocks(&self, threads: usize, work: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let elements = self.rows * self.channels * self.run;
        let of_channel = self.rows_of(0).len() * self.run;
        let least = if self.run == 1 { block::LINE } else { 1 };
        let at_once = (ELEMENTS_PER_THREAD / of_channel.max(1)).max(least);
        let blocks = self.channels.div_ceil(at_once);
        let threads = threads.min(elements / ELEMENTS_PER_THREAD).max(1);
        pool::for_each(threads, self.ghosts() * blocks, &|task| {
            let first = task % blocks * at_once;
            work(task / blocks, first..self.channels.min(first + at_once));
        });
    }
}

/// Numbers of each channel of each ghost, `[(kind * ghosts + ghost) * channels + channel]`, which tasks share.
struct Numbers<'a> {
    all: Shared<f64>,
    shape: &'a Shape,
}

impl<'a> Numbers<'a> {
    fn of(shape: &'a Shape, numbers: &mut [f64], kinds: usize) -> Numbers<'a> {
        let expected = kinds * shape.ghosts() * shape.channels;
        assert_eq!(numbers.len(), expected, "numbers for each channel of each ghost");
        let all = Shared::new(numbers.as_mut_ptr());
        Numbers { all, shape }
    }

    /// Where those of a ghost's channels from `channel` on begin.
    fn places<const KINDS: usize>(&self, ghost: usize, channel: usize) -> [*mut f64; KINDS] {
        let (ghosts, channels) = (self.shape.ghosts(), self.shape.channels);
        std::array::from_fn(|kind| {
            self.all
                .get()
                .wrapping_add((kind * ghosts + ghost) * channels + channel)
        })
    }
}

/// Normalizes each ghost of `from`. Of each of its channels `found` gets the mean; the scale, that is one by the root of
/// `eps` and the variance with divisor n; and the variance with divisor n - 1, which is NaN for one element.
///
/// # Safety
/// `from` is valid for reading, and `to` for writing, as many elements of the type as `shape` says; they do not overlap,
/// and nothing else uses what is written.
///
/// # Panics
/// Where there are not as many numbers.
pub unsafe fn forward(
    shape: &Shape,
    from: *const u8,
    to: *mut u8,
    affine: Option<Affine<'_>>,
    eps: f64,
    found: &mut [f64],
    threads: usize,
) {
    let found = Numbers::of(shape, found, 3);
    // SAFETY: the caller's promise, with the type that `dtype` names.
    unsafe {
        with_type!(
            shape.dtype,
            forward_of(shape, from, to, affine, eps, &found, threads)
        )
    }
}

/// # Safety
/// As for [`forward`], with elements of type `T`.
unsafe fn forward_of<T: Element>(
    shape: &Shape,
    from: *const u8,
    to: *mut u8,
    affine: Option<Affine<'_>>,
    eps: f64,
    found: &Numbers<'_>,
    threads: usize,
) {
    let isa = Isa::current();
    let [from, to] = [from.cast_mut(), to].map(|all| Shared::new(all.cast::<T>()));
    shape.for_blocks(threads, &|ghost, channels| {
        let [x, y] = [&from, &to].map(|all| Block::of(shape, all.get(), ghost, channels.start));
        let mut room = Room::default();
        // SAFETY: the caller's promise; each task has a block and numbers of its own.
        unsafe {
            let inner = room.gather(x, channels.len());
            let forward = Forward {
                from: inner,
                to: if room.is_empty() { y } else { inner },
                affine,
                eps,
                found: found.places(ghost, channels.start),
                channels: channels.clone(),
            };
            dispatch(isa, forward);
            room.scatter(y, channels.len());
        }
    });
}

/// Writes to `to` the derivative by the elements `from[0]` that were normalized, from that by what came of them,
/// `from[1]`; and to `found` the parts of each ghost in the derivatives by weight and bias.
///
/// # Safety
/// As for [`forward`], with two that are read; `known` is what that found.
///
/// # Panics
/// Where there are not as many numbers.
pub unsafe fn backward(
    shape: &Shape,
    from: [*const u8; 2],
    to: *mut u8,
    affine: Option<Affine<'_>>,
    known: &[f64],
    found: &mut [f64],
    threads: usize,
) {
    let found = Numbers::of(shape, found, 2);
    // SAFETY: the caller's promise, with the type that `dtype` names.
    unsafe {
        with_type!(
            shape.dtype,
            backward_of(shape, from, to, affine, known, &found, threads)
        )
    }
}

/// # Safety
/// As for [`backward`], with elements of type `T`.
unsafe fn backward_of<T: Element>(
    shape: &Shape,
    from: [*const u8; 2],
    to: *mut u8,
    affine: Option<Affine<'_>>,
    known: &[f64],
    found: &Numbers<'_>,
    threads: usize,
) {
    let isa = Isa::current();
    let (means, rest) = known.split_at(shape.ghosts() * shape.channels);
    let [from, by] = from.map(|all| Shared::new(all.cast_mut().cast::<T>()));
    let to = Shared::new(to.cast::<T>());
    shape.for_blocks(threads, &|ghost, channels| {
        let [x, dy, dx] = [&from, &by, &to].map(|all| Block::of(shape, all.get(), ghost, channels.start));
        let (mut room, mut other) = (Room::default(), Room::default());
        let place = ghost * shape.channels + channels.start;
        let own = place..place + channels.len();
        // SAFETY: the caller's promise; each task has a block and numbers of its own.
        unsafe {
            let inner = [room.gather(x, channels.len()), other.gather(dy, channels.len())];
            let backward = Backward {
                from: inner,
                to: if other.is_empty() { dx } else { inner[1] },
                affine,
                statistics: [&means[own.clone()], &rest[own]],
                found: found.places(ghost, channels.start),
                channels: channels.clone(),
            };
            dispatch(isa, backward);
            other.scatter(dx, channels.len());
        }
    });
}

#[cfg(test)]
mod tests;
