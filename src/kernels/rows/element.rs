//! Element types of rows: f64 and f32 as they are, 16-bit numbers by way of f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::lanes::Number;
use super::{Map, Room, Row};
use crate::kernels::vector::Arch;

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
            row.values().convert_to_f32_slice(wide);
            map.forward::<A, _>(Row::InPlace(wide), &mut work.room);
            row.to().convert_from_f32_slice(wide);
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
            told.convert_to_f32_slice(wide_told);
            vector.convert_to_f32_slice(wide_vector);
            map.product::<A, _>(wide_told, wide_vector, product, &mut work.room, transposed);
            to.convert_from_f32_slice(product);
        }
    })* };
}
narrow!(f16, bf16);
