//! Updates that look at a tensor as a whole, where the element-wise engine looks at one element.

use super::orthogonal;
use super::storage::Scratch;

/// The updates of a parameter group, checked and ready.
pub trait Whole: Send {
    /// Updates every parameter, on up to `threads` threads; once.
    fn run(&mut self, threads: usize, workspace: &mut Workspace);
}

/// Memory that is kept from one step to the next.
#[derive(Default)]
pub struct Workspace {
    pub orthogonal: orthogonal::Workspace,
    pub scratch: Scratch,
}
