//! The largest terms of a tensor: from which size on, and how many of those that have it. First all terms are counted by
//! their leading bits, then those are looked at that share these bits with the last one to be taken.

use super::sums::{self, Room};
use super::{ELEMENTS_PER_THREAD, Rule};
use crate::kernels::storage::{BLOCK, Buffers, Float};
use crate::runtime::{Shared, pool};

/// Different leading bits of a size.
const BINS: usize = 1 << 11;
/// Parts that a tensor is looked at in, for each thread.
const PARTS_PER_THREAD: usize = 4;

/// What is taken: elements of a size above `size`, and of those before number `end` what is above `below`, the number
/// next to it: in all as many as are to be taken, of equally large ones the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    pub size: f64,
    pub below: f64,
    pub end: usize,
}

/// Takes whatever is not 0.
const NONE: Limit = Limit {
    size: 0.0,
    below: 0.0,
    end: 0,
};

/// A term's size in bits, whose order is that of the sizes, with its number.
type Size = (u64, usize);

/// The limit for the terms of a rule, with the gradients multiplied by `scale`.
///
/// # Safety
/// The buffers are valid, and nothing writes them meanwhile.
pub unsafe fn limit<R: Rule<N>, const N: usize>(
    rule: &R,
    buffers: &Buffers<N>,
    scale: f64,
    threads: usize,
) -> Limit {
    let taken = rule.taken();
    if taken >= buffers.len {
        return NONE;
    }
    let is_wide = buffers.dtype.arithmetic() == Float::F64;
    let shift = if is_wide { 52 } else { 20 };
    let parts = Parts::of(buffers, threads);
    let counts = parts.each(|part, _| {
        let mut counts = vec![0; BINS];
        // SAFETY: the caller's promise.
        unsafe {
            sums::sizes(rule, part, scale, &mut Room::default(), |_, size| {
                counts[(size >> shift) as usize] += 1
            })
        };
        counts
    });
    let (bin, rank) = bin_of(taken, &counts);
    let near: Vec<Vec<Size>> = parts.each(|part, start| {
        let mut near = vec![];
        // SAFETY: the caller's promise.
        unsafe {
            sums::sizes(rule, part, scale, &mut Room::default(), |i, size| {
                if (size >> shift) as usize == bin && size != 0 {
                    near.push((size, start + i));
                }
            })
        };
        near
    });
    let mut near = near.concat();
    if near.len() < rank {
        return NONE; // the others are 0
    }
    let by_size = |a: &Size, b: &Size| b.0.cmp(&a.0).then(a.1.cmp(&b.1));
    let (size, last) = *near.select_nth_unstable_by(rank - 1, by_size).1;
    let number = |bits: u64| match is_wide {
        true => f64::from_bits(bits),
        false => f32::from_bits(bits as u32).into(),
    };
    Limit {
        size: number(size),
        below: number(size - 1),
        end: last + 1,
    }
}

/// The bin that number `rank` of the largest is in, from 1, and its rank there.
fn bin_of(mut rank: usize, counts: &[Vec<usize>]) -> (usize, usize) {
    for bin in (0..BINS).rev() {
        let count: usize = counts.iter().map(|part| part[bin]).sum();
        if rank <= count {
            return (bin, rank);
        }
        rank -= count;
    }
    unreachable!("there are as many elements as are to be taken")
}

/// Whole blocks of a tensor, in their order.
struct Parts<'a, const N: usize> {
    buffers: &'a Buffers<N>,
    /// Elements of each but the last.
    len: usize,
    threads: usize,
}

// SAFETY: the pointers are read only, by `each`, whose closures promise that they are valid.
unsafe impl<const N: usize> Sync for Parts<'_, N> {}

impl<'a, const N: usize> Parts<'a, N> {
    fn of(buffers: &'a Buffers<N>, threads: usize) -> Self {
        let threads = threads.min(buffers.len.div_ceil(ELEMENTS_PER_THREAD));
        let len = buffers.len.div_ceil(threads.max(1) * PARTS_PER_THREAD);
        Parts {
            buffers,
            len: len.next_multiple_of(BLOCK),
            threads,
        }
    }

    /// What `look` finds in each part, which it gets with the number of its first element.
    fn each<T: Send + Default + Clone>(&self, look: impl Fn(&Buffers<N>, usize) -> T + Sync) -> Vec<T> {
        let mut found = vec![T::default(); self.buffers.len.div_ceil(self.len)];
        let to = Shared::new(found.as_mut_ptr());
        let parts = self; // all of it, which may be shared, and not its pointers
        pool::for_each(self.threads, found.len(), &|index| {
            let start = index * parts.len;
            let part = parts
                .buffers
                .part(start, parts.len.min(parts.buffers.len - start));
            // SAFETY: every part has a place of its own.
            unsafe { *to.get().add(index) = look(&part, start) };
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of which bins 1, 4 and 7 have some, in two parts.
    #[test]
    fn the_bin_of_a_rank_and_the_rank_within_it() {
        let mut counts = vec![vec![0; BINS]; 2];
        (counts[0][7], counts[1][7], counts[1][4], counts[0][1]) = (2, 1, 4, 5);
        for (rank, expected) in [
            (1, (7, 1)),
            (3, (7, 3)),
            (4, (4, 1)),
            (7, (4, 4)),
            (8, (1, 1)),
            (12, (1, 5)),
        ] {
            assert_eq!(bin_of(rank, &counts), expected);
        }
    }
}
