//! Numbers of the channels in tensors of any type: weights, biases, derivatives by these, running statistics.

use half::{bf16, f16};

use crate::kernels::storage::{Float, Scalar, with_type};

/// A number of each channel.
#[derive(Clone, Copy, Debug)]
pub struct Channels {
    pub data: *mut u8,
    pub dtype: Float,
    pub len: usize,
}

// SAFETY: used by kernels only, whose callers vouch for the memory.
unsafe impl Send for Channels {}

impl Channels {
    /// # Safety
    /// There are as many of the type to read.
    pub unsafe fn read(&self) -> Vec<f64> {
        // SAFETY: the caller's promise, with the type that `dtype` names.
        unsafe { with_type!(self.dtype, read_of(self)) }
    }

    /// # Safety
    /// There is room for as many of the type, which nothing else uses.
    pub unsafe fn write(&self, numbers: &[f64]) {
        // SAFETY: the caller's promise, with the type that `dtype` names.
        unsafe { with_type!(self.dtype, write_of(self, numbers)) }
    }

    /// Takes statistics `[ghost * channels + channel]` into running ones, ghost by ghost: each moves them by `momentum`
    /// or, without one, so that they are the mean of these and the `counted` before.
    ///
    /// # Safety
    /// As for [`Self::read`] and [`Self::write`].
    pub unsafe fn follow(&self, statistics: &[f64], momentum: Option<f64>, counted: f64) {
        // SAFETY: the caller's promise.
        let mut running = unsafe { self.read() };
        let mut count = counted;
        for of_ghost in statistics.chunks_exact(self.len.max(1)) {
            count += 1.0;
            let share = momentum.unwrap_or(1.0 / count);
            for (running, own) in running.iter_mut().zip(of_ghost) {
                *running = *running * (1.0 - share) + own * share;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.write(&running) };
    }
}

/// The sum over the ghosts, of numbers `[ghost * channels + channel]`.
pub fn totals(numbers: &[f64], channels: usize) -> Vec<f64> {
    let mut totals = vec![0.0; channels];
    for of_ghost in numbers.chunks_exact(channels) {
        for (total, own) in totals.iter_mut().zip(of_ghost) {
            *total += own;
        }
    }
    totals
}

/// # Safety
/// As for [`Channels::read`], with numbers of type `T`.
unsafe fn read_of<T: Scalar>(from: &Channels) -> Vec<f64> {
    // SAFETY: the caller's promise.
    let numbers = unsafe { std::slice::from_raw_parts(from.data.cast::<T>(), from.len) };
    numbers.iter().map(|number| number.wide()).collect()
}

/// # Safety
/// As for [`Channels::write`], with numbers of type `T`.
unsafe fn write_of<T: Nearest>(to: &Channels, numbers: &[f64]) {
    // SAFETY: the caller's promise.
    let to = unsafe { std::slice::from_raw_parts_mut(to.data.cast::<T>(), to.len) };
    for (to, &number) in to.iter_mut().zip(numbers) {
        *to = T::nearest(number);
    }
}

/// Types that a number can be rounded to.
trait Nearest {
    fn nearest(number: f64) -> Self;
}

macro_rules! nearest {
    ($($type:ty: $round:expr),*) => { $(impl Nearest for $type {
        fn nearest(number: f64) -> Self {
            $round(number)
        }
    })* };
}
nearest!(f64: |x| x, f32: |x| x as f32, f16: f16::from_f64, bf16: bf16::from_f64);
