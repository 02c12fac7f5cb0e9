use std::fmt::Debug;

use super::*;
use crate::kernels::vector::Noise;

trait Entry: Element + From<f32> + Into<f64> + PartialEq + Debug {}
impl Entry for f32 {}
impl Entry for f64 {}

/// Numbers between -1 and 1.
fn vector<T: Entry>(len: usize, seed: u64) -> Vec<T> {
    let mut values = vec![T::default(); len];
    fill(&mut values, false, Noise::key(seed, 0), 1);
    values
}

fn dot<T: Entry>(x: &[T], y: &[T]) -> f64 {
    x.iter().zip(y).map(|(&x, &y)| x.into() * y.into()).sum()
}

/// Near the sums in another order on every instruction set, and with several threads the same bits.
fn is_right<T: Entry>(len: usize, error: f64) {
    let count = 7;
    let basis: Vec<T> = vector(count * len, 1);
    let (product, before, q): (Vec<T>, Vec<T>, Vec<T>) = (vector(len, 2), vector(len, 3), vector(len, 4));
    let rows = Rows::new(&basis, len);
    for isa in Isa::supported() {
        isa.select();
        let mut all = Vec::new();
        for threads in [1, 3] {
            let mut w = vec![T::default(); len];
            let alpha = recur(&product, &before, 0.75, &q, &mut w, threads);
            assert!((alpha - dot(&w, &q)).abs() <= 1e-12 * len as f64);
            for i in 0..len {
                let exact = product[i].into() - 0.75 * before[i].into();
                assert!((w[i].into() - exact).abs() <= error);
            }
            let norm = subtract(&mut w, &q, alpha, threads);
            assert!((norm - dot(&w, &w).sqrt()).abs() <= 1e-12 * len as f64);
            let mut block = [w.clone(), q.clone()].concat();
            let (factors, norms) = orthogonalize(rows, &mut block, threads);
            for (i, before) in [w.clone(), q.clone()].iter().enumerate() {
                let (after, factors) = (&block[i * len..][..len], &factors[i * count..][..count]);
                assert!((norms[i] - dot(after, after).sqrt()).abs() <= 1e-12 * len as f64);
                for (n, factor) in factors.iter().enumerate() {
                    assert!((factor - dot(&basis[n * len..][..len], before)).abs() <= 1e-12 * len as f64);
                }
                let size = 1.0 + factors.iter().map(|factor| factor.abs()).sum::<f64>();
                for (at, (x, y)) in before.iter().zip(after).enumerate() {
                    let parts = (0..count).map(|n| factors[n] * basis[n * len + at].into());
                    let exact = (*x).into() - parts.sum::<f64>();
                    assert!(((*y).into() - exact).abs() <= error * size);
                }
            }
            scale(&mut w, 0.5, threads);
            all.push((alpha, norm, factors, norms, block, w));
        }
        assert!(all[0] == all[1], "{isa:?}, {len}");
    }
}

#[test]
fn results_are_right_and_always_the_same() {
    for len in [1, 15, 4096, 9001, 70_000] {
        is_right::<f32>(len, 1e-6);
        is_right::<f64>(len, 1e-11);
    }
}

#[test]
fn signs_are_random_and_always_the_same() {
    let len = 100_001;
    let mut all = Vec::new();
    for isa in Isa::supported() {
        isa.select();
        for threads in [1, 3] {
            let mut signs = vec![0.0f32; len];
            fill(&mut signs, true, Noise::key(3, 0), threads);
            all.push(signs);
        }
    }
    assert!(all.iter().all(|each| *each == all[0]));
    assert!(all[0].iter().all(|sign| sign.abs() == 1.0));
    assert!(all[0].iter().sum::<f32>().abs() < 4.0 * (len as f32).sqrt());
}
