//! What is known of the columns of a batch, while these are gone over.

use std::cell::RefCell;

use super::Part;
use crate::kernels::rows::{Number, total};
use crate::kernels::vector::{Arch, MAX_LANES};

/// How far a mean may be from 0, in squares and variances.
const FAR: f64 = 16.0;

/// Numbers that a thread keeps from task to task.
const KEPT: usize = 1 << 16;

/// Numbers of the columns of a part, of which each channel has `run`; a whole number of any vectors.
pub struct Columns<'a, R> {
    pub run: usize,
    /// What deviations are taken from.
    pub about: &'a mut [R],
    /// What is written is the elements, or the derivatives by what came of them, times this,
    pub factor: &'a mut [R],
    /// in the latter case the elements' deviations times this,
    pub slope: &'a mut [R],
    /// and this.
    pub offset: &'a mut [R],
    pub sums: [&'a mut [f64]; 2],
}

/// Calls `work` with memory for the columns of a part.
pub fn with_columns<R: Number, T>(part: &Part<T>, run: usize, work: impl FnOnce(Columns<'_, R>)) {
    thread_local! {
        static MEMORY: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
    }
    let width = part.columns.next_multiple_of(MAX_LANES);
    MEMORY.with_borrow_mut(|memory| {
        memory.resize(memory.len().max(6 * width), 0.0);
        let (sums, numbers) = memory.split_at_mut(2 * width);
        // SAFETY: any bits are a number of either type.
        let (_, numbers, _) = unsafe { numbers.align_to_mut::<R>() };
        let [about, factor, slope, offset] = pieces(numbers, width);
        work(Columns {
            run,
            about,
            factor,
            slope,
            offset,
            sums: pieces(sums, width),
        });
        if memory.len() > KEPT {
            *memory = Vec::new();
        }
    });
}

/// The first `N` stretches of a length.
fn pieces<R, const N: usize>(mut numbers: &mut [R], len: usize) -> [&mut [R]; N] {
    std::array::from_fn(|_| numbers.split_off_mut(..len).expect("memory for all"))
}

impl<R: Number> Columns<'_, R> {
    /// Deviations are taken from a number of each channel, which is rounded, and nothing has been added up yet.
    #[inline(always)]
    pub fn center(&mut self, about: &mut [f64]) {
        for (to, number) in self.about.iter_mut().zip(&mut *about) {
            *to = R::from_f64(*number);
            *number = to.to_f64();
        }
        spread(self.about, self.run, about.len());
        for sums in &mut self.sums {
            sums.fill(0.0);
        }
    }

    /// The means over the channels of the numbers that deviations are taken from.
    #[inline(always)]
    pub fn means<A: Arch>(&self, means: &mut [f64]) {
        for (i, mean) in means.iter_mut().enumerate() {
            *mean = match self.run {
                1 => self.about[i].to_f64(),
                run => total::<A, R>(&self.about[i * run..][..run], |x| x) / run as f64,
            };
        }
    }

    /// Makes the sums those of so many channels.
    #[inline(always)]
    pub fn fold<A: Arch>(&mut self, channels: usize) {
        let run = self.run;
        if run > 1 {
            for sums in &mut self.sums {
                for i in 0..channels {
                    sums[i] = total::<A, f64>(&sums[i * run..][..run], |x| x);
                }
            }
        }
    }

    /// Makes the sums of `count` deviations of each channel, and of their squares, their mean, and the sum of squares of
    /// deviations from that. Says whether those have lost digits, as the mean was far from 0.
    #[inline(always)]
    pub fn deviations<A: Arch>(&mut self, channels: usize, count: f64) -> bool {
        self.fold::<A>(channels);
        let [sums, squares] = self.sums.each_mut().map(|sums| &mut sums[..channels]);
        let mut is_far = false;
        for i in 0..channels {
            let mean = sums[i] / count;
            let square = squares[i] - sums[i] * mean;
            is_far |= sums[i] * mean > FAR * square;
            sums[i] = mean;
            squares[i] = if square < 0.0 { 0.0 } else { square };
        }
        is_far
    }

    /// Gives the numbers of the channels to their columns.
    #[inline(always)]
    pub fn spread(&mut self, channels: usize) {
        for numbers in [&mut *self.factor, &mut *self.slope, &mut *self.offset] {
            spread(numbers, self.run, channels);
        }
    }
}

/// Repeats each of so many numbers, in their place.
#[inline(always)]
fn spread<R: Number>(numbers: &mut [R], times: usize, count: usize) {
    if times > 1 {
        for i in (0..count).rev() {
            let number = numbers[i];
            numbers[i * times..(i + 1) * times].fill(number);
        }
    }
}
