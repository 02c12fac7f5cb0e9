//! Memory that is kept from one step to the next.

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
