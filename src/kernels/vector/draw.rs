//! Random numbers in memory: each follows from a key and its place, on every instruction set.

use super::{Arch, MAX_LANES, Noise, Routine, Single, Vector, dispatch};
use crate::runtime::Isa;

/// What random numbers are made of 32 random bits in each lane.
pub trait Distribution: Copy {
    fn of<V: Single>(self, bits: V::Bits) -> V;
}

/// Fills `to`, whose length is one of the longest vectors', with the numbers for the elements of a block from number
/// `first` on.
pub fn draw(isa: Isa, distribution: impl Distribution, key: u64, first: u32, to: &mut [f32]) {
    assert!(to.len().is_multiple_of(MAX_LANES));
    dispatch(isa, (distribution, Draw { key, first, to }));
}

struct Draw<'a> {
    key: u64,
    first: u32,
    to: &'a mut [f32],
}

/// The distribution comes first: this is compiled with its module.
impl<D: Distribution> Routine for (D, Draw<'_>) {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let (distribution, Draw { key, first, to }) = self;
        for (i, lanes) in to.chunks_exact_mut(A::F32::LANES).enumerate() {
            // A counter counts 16 bits.
            let counter = 2 * (first + (i * A::F32::LANES) as u32);
            let bits = Noise { key, counter }.draw();
            // SAFETY: the chunk is a whole vector.
            unsafe { distribution.of::<A::F32>(bits).store_f32(lanes.as_mut_ptr()) };
        }
    }
}
