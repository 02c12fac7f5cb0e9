//! The check that no two tensors share memory of which one is written.

use super::view::{Runs, View};
use crate::kernels::storage::Dims;

/// Whose memory it is: an argument, and the tensor's number in it. In a step, arguments are those of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub argument: u32,
    pub group: u32,
    pub index: u32,
}

impl Owner {
    /// A tensor of an argument, where there are no groups.
    pub fn new(argument: usize, index: usize) -> Owner {
        Owner {
            argument: argument as u32,
            group: 0,
            index: index as u32,
        }
    }
}

/// A tensor's claim on a range of memory.
#[derive(Clone, Debug)]
pub struct Claim {
    start: usize,
    end: usize,
    owner: Owner,
    /// With `Role::in_place`, the strides of what is not contiguous: they tell apart two claims of one shape on one place.
    in_place: Option<Option<Box<Dims>>>,
    /// Where the range has gaps: other tensors may lie in them.
    gaps: Option<Box<View>>,
}

impl Claim {
    #[inline]
    pub fn new(view: &View, owner: Owner, in_place: bool) -> Claim {
        let (low, high) = match view.is_contiguous {
            true => (0, view.len as isize - 1),
            false => view.reach(),
        };
        let (first, item) = (view.data as isize, view.dtype.size() as isize);
        let gaps = (high - low + 1) as usize > view.len;
        Claim {
            start: (first + low * item) as usize,
            end: (first + (high + 1) * item) as usize,
            owner,
            in_place: in_place.then(|| (!view.is_contiguous).then(|| Box::new(view.strides.clone()))),
            gaps: gaps.then(|| Box::new(view.clone())),
        }
    }

    /// Whether a write may be in the same place, and is.
    fn is_written_by(&self, write: &Claim) -> bool {
        self.in_place.is_some()
            && self.in_place == write.in_place
            && (self.start, self.end, self.owner.index) == (write.start, write.end, write.owner.index)
    }

    fn overlaps(&self, other: &Claim) -> bool {
        if self.start >= other.end || other.start >= self.end {
            return false;
        }
        if self.gaps.is_none() && other.gaps.is_none() {
            return true;
        }
        let (own, others) = (self.runs(), other.runs());
        let (mut i, mut j) = (0, 0);
        while let (Some(one), Some(other)) = (own.starts.get(i), others.starts.get(j)) {
            if one + own.len <= *other {
                i += 1;
            } else if other + others.len <= *one {
                j += 1;
            } else {
                return true;
            }
        }
        false
    }

    fn runs(&self) -> Runs {
        match &self.gaps {
            Some(view) => view.runs(),
            None => Runs {
                starts: vec![self.start],
                len: self.end - self.start,
            },
        }
    }
}

/// Two claims that overlap, where at least one is in `writes`. Sorts `writes`.
pub fn find(writes: &mut [Claim], reads: &[Claim]) -> Option<(Owner, Owner)> {
    writes.sort_unstable_by_key(|claim| claim.start);
    // The claim that reaches farthest so far may overlap a later one than the next.
    let mut farthest = 0;
    for i in 1..writes.len() {
        if writes[i].start < writes[farthest].end
            && writes[..i].iter().any(|earlier| earlier.overlaps(&writes[i]))
        {
            return least_pair(writes);
        }
        if writes[i].end > writes[farthest].end {
            farthest = i;
        }
    }
    for read in reads {
        let below = writes.partition_point(|write| write.start < read.end);
        // Ranges without gaps are disjoint by now, so only the last below can reach into the read; with gaps, any.
        let candidates = match writes[..below].iter().any(|write| write.gaps.is_some()) {
            true => &writes[..below],
            false => &writes[below.saturating_sub(1)..below],
        };
        let clashes = |write: &&Claim| write.overlaps(read) && !read.is_written_by(write);
        if let Some(write) = candidates.iter().find(clashes) {
            return Some((read.owner, write.owner));
        }
    }
    None
}

/// Of all overlapping pairs the one of the least owners: where a parameter is listed twice, the error is to name the
/// parameter rather than one of its states.
fn least_pair(claims: &[Claim]) -> Option<(Owner, Owner)> {
    let pairs = claims.iter().enumerate().flat_map(|(i, one)| {
        let others = claims[i + 1..].iter().take_while(|other| other.start < one.end);
        others.filter(|other| one.overlaps(other)).map(|other| {
            let (a, b) = (one.owner, other.owner);
            if a < b { (a, b) } else { (b, a) }
        })
    });
    pairs.min()
}
