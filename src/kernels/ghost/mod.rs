//! Normalization of the parts of a batch, each by its own mean and variance: ghosts (Hoffer, Hubara and Soudry 2017,
//! arXiv 1705.08741), and its derivative.
//!
//! A task is one ghost's elements of some channels, its part: they are read twice, the second time from a cache, and
//! written once. They are added up column by column, in the arithmetic of their type and then in f64, so that neither
//! threads nor instruction sets change a bit.

mod channels;
mod columns;
mod passes;

use std::ops::Range;

use half::{bf16, f16};

use super::linear::ELEMENTS_PER_THREAD;
use super::rows::Number;
use super::storage::{Float, with_type};
use super::vector::{Arithmetic, Halves, InF32, InF64, Stored, can_stream, dispatch};
use crate::runtime::{Isa, Shared, pool};
pub use channels::{Channels, totals};
use columns::with_columns;
use passes::{Backward, Forward};

/// Elements of a part, if a channel has no more: so many stay in a core's caches from one pass to the next.
const PART: usize = 1 << 17;
/// Columns of a part, at least and at most.
const COLUMNS: [usize; 2] = [64, 1024];
/// Bytes of a batch from which on what is written goes past the caches, which have no room for it beside what is read:
/// to read before it is written what nobody wants would be a third of the traffic.
const STREAMED: usize = 12 << 20;

/// Element types of batches.
trait Element: Stored<Self::Exact> + Send + Sync {
    /// What is computed in.
    type Exact: Arithmetic;
    /// The numbers of that.
    type Wide: Stored<Self::Exact> + Number;
}

macro_rules! elements {
    ($($type:ty: $exact:ty, $wide:ty);*) => { $(impl Element for $type {
        type Exact = $exact;
        type Wide = $wide;
    })* };
}
elements!(f64: InF64, f64; f32: InF32<Halves>, f32; f16: InF32<Halves>, f32; bf16: InF32<Halves>, f32);

/// Some columns of some rows, which begin `stride` elements one after the other.
#[derive(Clone, Copy)]
struct Part<T> {
    first: *mut T,
    stride: usize,
    rows: usize,
    columns: usize,
    /// Whether it is so large, and lies so, that what is written there is to go past the caches.
    is_streamed: bool,
}

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
    fn of_channels(self, channels: &Range<usize>) -> Affine<'a> {
        Affine {
            weight: &self.weight[channels.clone()],
            bias: &self.bias[channels.clone()],
        }
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

    /// A ghost's elements of some channels, in a batch that begins at `all`.
    fn part<T>(&self, all: &Shared<T>, ghost: usize, channels: &Range<usize>) -> Part<T> {
        let rows = self.rows_of(ghost);
        let stride = self.channels * self.run;
        let place = rows.start * stride + channels.start * self.run;
        let first = all.get().wrapping_add(place);
        let bytes = size_of::<T>() * stride;
        Part {
            first,
            stride,
            rows: rows.len(),
            columns: channels.len() * self.run,
            is_streamed: self.rows * bytes >= STREAMED && can_stream(first, bytes),
        }
    }

    /// Calls `work` for each ghost with some channels at a time, on up to `threads` threads.
    fn for_parts(&self, threads: usize, work: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let elements = self.rows * self.channels * self.run;
        let [least, most] = COLUMNS;
        let columns = (PART / self.rows_of(0).len()).clamp(least, most);
        let at_once = (columns / self.run).max(1);
        let parts = self.channels.div_ceil(at_once);
        let threads = threads.min(elements / ELEMENTS_PER_THREAD).max(1);
        pool::for_each(threads, self.ghosts() * parts, &|task| {
            let first = task % parts * at_once;
            work(task / parts, first..self.channels.min(first + at_once));
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

    /// Those of a ghost's channels.
    ///
    /// # Safety
    /// Nothing else uses them.
    unsafe fn of_part<const KINDS: usize>(
        &self,
        ghost: usize,
        channels: &Range<usize>,
    ) -> [&'a mut [f64]; KINDS] {
        let ghosts = self.shape.ghosts();
        std::array::from_fn(|kind| {
            let first = (kind * ghosts + ghost) * self.shape.channels + channels.start;
            // SAFETY: there are as many numbers, of which these are this part's; and the caller's promise.
            unsafe { std::slice::from_raw_parts_mut(self.all.get().add(first), channels.len()) }
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
    affine: Affine<'_>,
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
    affine: Affine<'_>,
    eps: f64,
    found: &Numbers<'_>,
    threads: usize,
) {
    let isa = Isa::current();
    let [from, to] = [from.cast_mut(), to].map(|all| Shared::new(all.cast::<T>()));
    shape.for_parts(threads, &|ghost, channels| {
        let [x, y] = [&from, &to].map(|all| shape.part(all, ghost, &channels));
        // SAFETY: the caller's promise; each task has elements and numbers of its own.
        let found = unsafe { found.of_part(ghost, &channels) };
        with_columns(&x, shape.run, |columns| {
            let forward = Forward {
                from: x,
                to: y,
                columns,
                affine: affine.of_channels(&channels),
                eps,
                found,
            };
            dispatch(isa, forward);
        });
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
    weight: &[f64],
    known: &[f64],
    found: &mut [f64],
    threads: usize,
) {
    let found = Numbers::of(shape, found, 2);
    // SAFETY: the caller's promise, with the type that `dtype` names.
    unsafe {
        with_type!(
            shape.dtype,
            backward_of(shape, from, to, weight, known, &found, threads)
        )
    }
}

/// # Safety
/// As for [`backward`], with elements of type `T`.
unsafe fn backward_of<T: Element>(
    shape: &Shape,
    from: [*const u8; 2],
    to: *mut u8,
    weight: &[f64],
    known: &[f64],
    found: &Numbers<'_>,
    threads: usize,
) {
    let isa = Isa::current();
    let (means, rest) = known.split_at(shape.ghosts() * shape.channels);
    let [from, by] = from.map(|all| Shared::new(all.cast_mut().cast::<T>()));
    let to = Shared::new(to.cast::<T>());
    shape.for_parts(threads, &|ghost, channels| {
        let [x, dy, dx] = [&from, &by, &to].map(|all| shape.part(all, ghost, &channels));
        let place = ghost * shape.channels + channels.start;
        let own = place..place + channels.len();
        // SAFETY: the caller's promise; each task has elements and numbers of its own.
        let found = unsafe { found.of_part(ghost, &channels) };
        with_columns(&dx, shape.run, |columns| {
            let backward = Backward {
                from: [x, dy],
                to: dx,
                columns,
                weight: &weight[channels.clone()],
                statistics: [&means[own.clone()], &rest[own]],
                found,
            };
            dispatch(isa, backward);
        });
    });
}

#[cfg(test)]
mod tests;
