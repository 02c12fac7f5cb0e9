//! Updates that look at a tensor as a whole, where the element-wise engine looks at one element.

use super::orthogonal;

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

/// Room for numbers of any type. What it holds is left from its last use.
#[derive(Default)]
pub struct Scratch(Vec<u64>);

impl Scratch {
    /// Memory of at least `bytes`, aligned for every number; valid until the next call.
    pub fn room(&mut self, bytes: usize) -> *mut u8 {
        let words = bytes.div_ceil(8);
        if self.0.len() < words {
            self.0 = vec![0; words];
        }
        self.0.as_mut_ptr().cast()
    }
}
