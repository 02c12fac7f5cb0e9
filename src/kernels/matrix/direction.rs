//! The elements of a matrix on its way through the chain.

use super::entries::{Entries, Size};
use crate::kernels::orthogonal::{Input, Numbers};

/// Where the elements are.
pub enum Direction<'a> {
    /// In none but the gradient and the momentum, from which they follow one by one.
    Implied(Entries<'a>, Size),
    Written(Written<'a>),
}

impl<'a> Direction<'a> {
    /// For a transform that writes: in its chain, all directions are written out.
    pub fn written(&mut self) -> &mut Written<'a> {
        match self {
            Direction::Written(written) => written,
            Direction::Implied(..) => unreachable!("the chain has a transform that writes"),
        }
    }

    /// What sums are taken over.
    pub fn entries(&mut self, threads: usize) -> Entries<'_> {
        match self {
            Direction::Implied(entries, _) => *entries,
            Direction::Written(written) => Entries::of(written.values(threads)),
        }
    }

    /// How large the elements are; for those that are written, by a pass over them.
    pub fn size(&mut self, threads: usize) -> Size {
        match self {
            Direction::Implied(_, size) => *size,
            Direction::Written(_) => self.entries(threads).size(threads),
        }
    }
}

/// Elements in memory of their own, at first perhaps in the 16 bits of the momentum's type.
pub struct Written<'a> {
    input: Input<'a>,
    values: Numbers<'a>,
}

impl<'a> Written<'a> {
    /// The input, which is as long as `values`, is what these are to hold.
    pub fn new(input: Input<'a>, values: Numbers<'a>) -> Self {
        Written { input, values }
    }

    /// The elements in the type of the arithmetic, to be changed in place.
    pub fn values(&mut self, threads: usize) -> &mut Numbers<'a> {
        std::mem::replace(&mut self.input, Input::Output).copy_to(&mut self.values, threads);
        &mut self.values
    }

    /// Where the elements are, and where the transform that calls is to write its own.
    pub fn take(&mut self) -> (Input<'a>, Numbers<'_>) {
        let input = std::mem::replace(&mut self.input, Input::Output);
        (input, self.values.reborrow())
    }
}
