//! Guidance of diffusion models: a few sums over each sample's predictions give the coefficients of one linear
//! combination of them. At most two passes over memory, whatever the method.

mod method;

use super::linear::{CHUNK, ELEMENTS_PER_THREAD, Element, Sums, sums};
use super::storage::{Float, with_type};
use crate::runtime::{Isa, Shared, pool};
pub use method::{Apg, Guidance, Method};
use method::{Coefficients, Gram};

/// The most tensors that go into a combination.
pub const MAX_INPUTS: usize = 6;
/// The memory of a call: tensors of `groups * len` elements in one order. Sums are taken over each group.
#[derive(Clone, Debug)]
pub struct Memory {
    pub dtype: Float,
    pub groups: usize,
    pub len: usize,
    /// So many groups after each other are of one sample, the next of the next, over and over.
    pub per_sample: usize,
    /// As [`Guidance::inputs`] has them. An APG's momentum is written, too.
    pub inputs: Vec<*mut u8>,
    /// May be inputs.
    pub outputs: Vec<*mut u8>,
}

// SAFETY: the pointers are used by `run` only, whose caller answers for the memory.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Computes `guidance` on up to `threads` threads.
///
/// # Safety
/// The pointers are valid for `groups * len` elements of the type, and nothing else uses what is written. Two of them
/// are the same or far enough apart not to overlap.
///
/// # Panics
/// If the number of inputs or outputs is not the method's.
pub unsafe fn run(guidance: &Guidance, memory: &Memory, threads: usize) {
    assert_eq!(memory.inputs.len(), guidance.inputs());
    assert_eq!(memory.outputs.len(), guidance.outputs());
    // SAFETY: the caller's promise, with the type that `dtype` names.
    unsafe { with_type!(memory.dtype, typed(guidance, memory, threads)) }
}

/// # Safety
/// As for [`run`], for elements of type `T`.
unsafe fn typed<T: Element>(guidance: &Guidance, memory: &Memory, threads: usize) {
    // SAFETY: the caller's promise; the numbers of inputs are those of the methods.
    unsafe {
        match (guidance.takes_differences(), memory.inputs.len()) {
            (false, 2) => guide::<T, false, 2>(guidance, memory, threads),
            (false, _) => guide::<T, false, 3>(guidance, memory, threads),
            (true, 2) => guide::<T, true, 2>(guidance, memory, threads),
            (true, 3) => guide::<T, true, 3>(guidance, memory, threads),
            (true, 4) => guide::<T, true, 4>(guidance, memory, threads),
            (true, 5) => guide::<T, true, 5>(guidance, memory, threads),
            (true, _) => guide::<T, true, MAX_INPUTS>(guidance, memory, threads),
        }
    }
}

/// # Safety
/// As for [`typed`], with `N` inputs.
unsafe fn guide<T: Element, const DIFFERENCES: bool, const N: usize>(
    guidance: &Guidance,
    memory: &Memory,
    threads: usize,
) {
    let Memory {
        groups,
        len,
        per_sample,
        ..
    } = *memory;
    let elements = groups * len;
    let threads = threads.min(elements / ELEMENTS_PER_THREAD).max(1);
    let predictions = Predictions::<T, DIFFERENCES, N> {
        guidance,
        inputs: std::array::from_fn(|i| memory.inputs[i].cast()),
        outputs: memory.outputs.iter().map(|to| to.cast()).collect(),
        isa: Isa::current(),
    };
    if guidance.is_constant() {
        let len = match guidance.scales.len() {
            1 => elements,
            _ => per_sample * len,
        };
        let chunks = len.div_ceil(CHUNK);
        pool::for_each(threads, elements / len * chunks, &|i| {
            let (sample, start) = (i / chunks, i % chunks * CHUNK);
            let coefficients = guidance.coefficients(&Gram::default(), guidance.scale(sample));
            // SAFETY: the caller's promise; each chunk is one task's.
            unsafe { predictions.combine(&coefficients, sample * len + start, CHUNK.min(len - start)) };
        });
        return;
    }
    let coefficients_of = |sums: &Sums<N>, group: usize| {
        guidance.coefficients(&Gram::of(sums, len), guidance.scale(group / per_sample))
    };
    let chunks = len.div_ceil(CHUNK);
    let span = |group: usize, chunk: usize| (group * len + chunk * CHUNK, CHUNK.min(len - chunk * CHUNK));
    if threads == 1 || groups >= 2 * threads {
        // A group after the other, while it is in the cache; several small ones make a task.
        let per_task = ELEMENTS_PER_THREAD.div_ceil(len);
        pool::for_each(threads, groups.div_ceil(per_task), &|task| {
            for group in task * per_task..groups.min((task + 1) * per_task) {
                let mut sums = Sums::default();
                for chunk in 0..chunks {
                    let (start, len) = span(group, chunk);
                    // SAFETY: the caller's promise; each group is one task's.
                    sums.add(&unsafe { predictions.sums(start, len) });
                }
                let coefficients = coefficients_of(&sums, group);
                for chunk in 0..chunks {
                    let (start, len) = span(group, chunk);
                    // SAFETY: as above.
                    unsafe { predictions.combine(&coefficients, start, len) };
                }
            }
        });
        return;
    }
    let mut parts = vec![Sums::<N>::default(); groups * chunks];
    let to = Shared::new(parts.as_mut_ptr());
    pool::for_each(threads, parts.len(), &|i| {
        let (start, len) = span(i / chunks, i % chunks);
        // SAFETY: the caller's promise; each chunk is one task's, and has its own place.
        unsafe { *to.get().add(i) = predictions.sums(start, len) };
    });
    let coefficients: Vec<[Coefficients; 2]> = parts
        .chunks(chunks)
        .enumerate()
        .map(|(group, parts)| {
            let mut sums = Sums::default();
            parts.iter().for_each(|part| sums.add(part));
            coefficients_of(&sums, group)
        })
        .collect();
    pool::for_each(threads, groups * chunks, &|i| {
        let (start, len) = span(i / chunks, i % chunks);
        // SAFETY: the caller's promise; each chunk is one task's.
        unsafe { predictions.combine(&coefficients[i / chunks], start, len) };
    });
}

/// The tensors of a call. With `DIFFERENCES`, what is summed and combined is the first, what it is more than the second,
/// and what each other is more than the second; else the tensors themselves.
struct Predictions<'a, T, const DIFFERENCES: bool, const N: usize> {
    guidance: &'a Guidance,
    inputs: [*mut T; N],
    outputs: Vec<*mut T>,
    isa: Isa,
}

// SAFETY: only pointers, whose users answer for the memory.
unsafe impl<T, const DIFFERENCES: bool, const N: usize> Sync for Predictions<'_, T, DIFFERENCES, N> {}

impl<T: Element, const DIFFERENCES: bool, const N: usize> Predictions<'_, T, DIFFERENCES, N> {
    /// Over `len` elements from `start`, after the momentum has taken them in.
    ///
    /// # Safety
    /// As for [`guide`]; nothing else uses these elements meanwhile.
    unsafe fn sums(&self, start: usize, len: usize) -> Sums<N> {
        let inputs = self.inputs.map(|input| input.wrapping_add(start).cast_const());
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(momentum) = self.guidance.momentum() {
                let to = self.inputs[2].wrapping_add(start);
                let factors = std::array::from_fn(|i| [1.0, -1.0, momentum].get(i).copied().unwrap_or(0.0));
                T::combine::<false, N>(self.isa, &inputs, &factors, to, len);
            }
            sums::<T, DIFFERENCES, N>(self.isa, inputs, len, self.guidance.needs_means())
        }
    }

    /// Writes all outputs of `len` elements from `start`.
    ///
    /// # Safety
    /// As for [`Predictions::sums`].
    unsafe fn combine(&self, coefficients: &[Coefficients; 2], start: usize, len: usize) {
        let inputs = self.inputs.map(|input| input.wrapping_add(start).cast_const());
        for (to, all) in self.outputs.iter().zip(coefficients) {
            let factors = std::array::from_fn(|i| all[i]);
            // SAFETY: the caller's promise.
            unsafe { T::combine::<DIFFERENCES, N>(self.isa, &inputs, &factors, to.wrapping_add(start), len) };
        }
    }
}

#[cfg(test)]
mod tests;
