//! Sums of elements and products in f64, in a fixed number of lanes, so that threads and instruction sets make no
//! difference.

use super::Gram;
use crate::kernels::matmul::{Job, run_on};
use crate::kernels::orthogonal::Scalar;
use crate::runtime::Isa;

const LANES: usize = 16;

/// Over elements of `N` tensors.
#[derive(Clone, Copy, Debug)]
pub struct Sums<const N: usize> {
    sums: [f64; N],
    /// Only those with `i <= j`.
    products: [[f64; N]; N],
}

impl<const N: usize> Default for Sums<N> {
    fn default() -> Self {
        Sums {
            sums: [0.0; N],
            products: [[0.0; N]; N],
        }
    }
}

impl<const N: usize> Sums<N> {
    pub fn add(&mut self, other: &Sums<N>) {
        for i in 0..N {
            self.sums[i] += other.sums[i];
            for j in i..N {
                self.products[i][j] += other.products[i][j];
            }
        }
    }

    /// Of `count` elements.
    pub fn gram(&self, count: usize) -> Gram {
        let mut gram = Gram {
            count: count as f64,
            ..Gram::default()
        };
        for i in 0..N {
            gram.sums[i] = self.sums[i];
            gram.products[i][..N].copy_from_slice(&self.products[i]);
        }
        gram
    }
}

/// Of the tensors or, with `DIFFERENCES`, of what `Predictions` says; plain sums only with `means`.
pub fn sums<T: Scalar, const DIFFERENCES: bool, const N: usize>(
    isa: Isa,
    inputs: [&[T]; N],
    means: bool,
) -> Sums<N> {
    let mut sums = Sums::default();
    let to = &mut sums;
    if means {
        run_on(isa, Moments::<T, DIFFERENCES, true, N> { inputs, to });
    } else {
        run_on(isa, Moments::<T, DIFFERENCES, false, N> { inputs, to });
    }
    sums
}

struct Moments<'a, T, const DIFFERENCES: bool, const MEANS: bool, const N: usize> {
    inputs: [&'a [T]; N],
    to: &'a mut Sums<N>,
}

impl<T: Scalar, const DIFFERENCES: bool, const MEANS: bool, const N: usize> Job
    for Moments<'_, T, DIFFERENCES, MEANS, N>
{
    #[inline(always)]
    fn run(self) {
        let mut lanes = Lanes::<DIFFERENCES, MEANS, N>::default();
        let parts = self.inputs.map(|input| input.as_chunks::<LANES>());
        let whole = parts.map(|(whole, _)| whole);
        for at in 0..whole[0].len() {
            lanes.add(std::array::from_fn(|i| {
                std::array::from_fn(|lane| whole[i][at][lane].wide())
            }));
        }
        lanes.add(std::array::from_fn(|i| {
            let rest = parts[i].1;
            std::array::from_fn(|lane| rest.get(lane).map_or(0.0, |value| value.wide()))
        }));
        for i in 0..N {
            self.to.sums[i] = lanes.sums[i].iter().sum();
            for j in i..N {
                self.to.products[i][j] = lanes.products[i][j].iter().sum();
            }
        }
    }
}

struct Lanes<const DIFFERENCES: bool, const MEANS: bool, const N: usize> {
    sums: [[f64; LANES]; N],
    products: [[[f64; LANES]; N]; N],
}

impl<const DIFFERENCES: bool, const MEANS: bool, const N: usize> Default for Lanes<DIFFERENCES, MEANS, N> {
    #[inline(always)]
    fn default() -> Self {
        Lanes {
            sums: [[0.0; LANES]; N],
            products: [[[0.0; LANES]; N]; N],
        }
    }
}

impl<const DIFFERENCES: bool, const MEANS: bool, const N: usize> Lanes<DIFFERENCES, MEANS, N> {
    #[inline(always)]
    fn add(&mut self, mut values: [[f64; LANES]; N]) {
        if DIFFERENCES {
            let second = values[1];
            for lane in 0..LANES {
                values[1][lane] = values[0][lane] - second[lane];
            }
            for other in &mut values[2..] {
                for lane in 0..LANES {
                    other[lane] -= second[lane];
                }
            }
        }
        for i in 0..N {
            if MEANS {
                for lane in 0..LANES {
                    self.sums[i][lane] += values[i][lane];
                }
            }
            for j in i..N {
                for lane in 0..LANES {
                    self.products[i][j][lane] += values[i][lane] * values[j][lane];
                }
            }
        }
    }
}
