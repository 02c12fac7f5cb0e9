//! Element types of rows: f64 and f32 as they are, 16-bit numbers by way of f32.

use half::{bf16, f16};

use super::lanes::Number;
use super::{Map, Room, Row};
use crate::kernels::vector::{Arch, Halves, InF32, MAX_LANES, Pair, Stored, Vector};

/// Memory to work in, from row to row.
pub struct Work<R> {
    room: Room<R>,
    /// A row as it is computed with, where it is stored otherwise, and two more.
    wide: [Vec<R>; 3],
}

// Not derived, which would ask for a default of the numbers, too.
impl<R> Default for Work<R> {
    fn default() -> Self {
        Work {
            room: Room::default(),
            wide: [const { Vec::new() }; 3],
        }
    }
}

pub trait Element: Copy + Send + Sync {
    /// What is computed with.
    type Real: Number;

    fn forward<A: Arch>(map: &impl Map, row: Row<'_, Self>, work: &mut Work<Self::Real>);
    fn product<A: Arch>(
        map: &impl Map,
        told: &[Self],
        vector: &[Self],
        to: &mut [Self],
        work: &mut Work<Self::Real>,
        transposed: bool,
    );
}

macro_rules! wide {
    ($($type:ty),*) => { $(impl Element for $type {
        type Real = $type;

        #[inline(always)]
        fn forward<A: Arch>(map: &impl Map, row: Row<'_, Self>, work: &mut Work<Self>) {
            map.forward::<A, _>(row, &mut work.room);
        }

        #[inline(always)]
        fn product<A: Arch>(
            map: &impl Map,
            told: &[Self],
            vector: &[Self],
            to: &mut [Self],
            work: &mut Work<Self>,
            transposed: bool,
        ) {
            map.product::<A, _>(told, vector, to, &mut work.room, transposed);
        }
    })* };
}
wide!(f64, f32);

macro_rules! narrow {
    ($($type:ty),*) => { $(impl Element for $type {
        type Real = f32;

        #[inline(always)]
        fn forward<A: Arch>(map: &impl Map, mut row: Row<'_, Self>, work: &mut Work<f32>) {
            let wide = &mut work.wide[0];
            wide.resize(row.values().len(), 0.0);
            convert::<A, _, _>(row.values(), wide);
            map.forward::<A, _>(Row::InPlace(wide), &mut work.room);
            convert::<A, _, _>(wide, row.to());
        }

        #[inline(always)]
        fn product<A: Arch>(
            map: &impl Map,
            told: &[Self],
            vector: &[Self],
            to: &mut [Self],
            work: &mut Work<f32>,
            transposed: bool,
        ) {
            work.wide.iter_mut().for_each(|wide| wide.resize(to.len(), 0.0));
            let [wide_told, wide_vector, product] = &mut work.wide;
            convert::<A, _, _>(told, wide_told);
            convert::<A, _, _>(vector, wide_vector);
            map.product::<A, _>(wide_told, wide_vector, product, &mut work.room, transposed);
            convert::<A, _, _>(product, to);
        }
    })* };
}
narrow!(f16, bf16);

/// Writes numbers as those of another type, rounded to the nearest.
#[inline(always)]
fn convert<A: Arch, S: Stored<InF32<Halves>>, T: Stored<InF32<Halves>>>(from: &[S], to: &mut [T]) {
    assert_eq!(from.len(), to.len());
    let lanes = Pair::<A::F32, Halves>::LANES;
    let whole = to.len() - to.len() % lanes;
    for i in (0..whole).step_by(lanes) {
        // SAFETY: a whole vector at `i` lies within both.
        unsafe { T::store::<A>(S::load::<A>(from.as_ptr().add(i)), to.as_mut_ptr().add(i)) };
    }
    let (from, to) = (&from[whole..], &mut to[whole..]);
    if to.is_empty() {
        return;
    }
    // The last elements go through copies that are a vector long.
    let (mut padded, mut result) = ([S::default(); MAX_LANES], [T::default(); MAX_LANES]);
    padded[..from.len()].copy_from_slice(from);
    // SAFETY: the copies hold the longest vector.
    unsafe { T::store::<A>(S::load::<A>(padded.as_ptr()), result.as_mut_ptr()) };
    to.copy_from_slice(&result[..to.len()]);
}
