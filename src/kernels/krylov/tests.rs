use std::fmt::Debug;

use super::*;
use crate::kernels::linear::Work;
use crate::kernels::vector::Noise;

trait Entry: Work + From<f32> + Into<f64> + PartialEq + Debug {}
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

/// Vectors of norm 1 at right angles, as far as the type has it.
fn orthonormal<T: Entry>(count: usize, len: usize) -> Vec<T> {
    let mut all: Vec<f64> = vector::<f64>(count * len, 1);
    for i in 0..count {
        let (before, rest) = all.split_at_mut(i * len);
        let row = &mut rest[..len];
        for other in before.chunks_exact(len) {
            let along = dot(other, row);
            row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
        }
        let norm = dot(row, row).sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    all.into_iter().map(T::of_f64).collect()
}

/// Near the sums in another order on every instruction set, and with several threads the same bits.
fn is_right<T: Entry>(len: usize, error: f64) {
    let (product, before, q): (Vec<T>, Vec<T>, Vec<T>) = (vector(len, 2), vector(len, 3), vector(len, 4));
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
            scale(&mut w, 0.5, threads);
            all.push((alpha, norm, w));
        }
        assert!(all[0] == all[1], "{isa:?}, {len}");
    }
}

/// What a block of vectors has left, near one vector and row after the other in f64.
fn is_orthogonalized<T: Entry>(len: usize, vectors: usize, error: f64) {
    let count = 7.min(len);
    let basis: Vec<T> = orthonormal(count, len);
    let mut block: Vec<T> = vector(vectors * len, 2);
    for w in block.chunks_mut(len) {
        let norm = dot(w, w).sqrt();
        w.iter_mut().for_each(|x| *x = T::of_f64((*x).into() / norm));
    }
    let wide = |from: &[T]| from.iter().map(|&x| x.into()).collect::<Vec<f64>>();
    let (rows, mut exact) = (wide(&basis), wide(&block));
    let mut along = Vec::new();
    for w in exact.chunks(len) {
        along.extend(rows.chunks(len).map(|row| dot(row, w)));
    }
    for i in 0..vectors {
        let (before, rest) = exact.split_at_mut(i * len);
        for others in [&rows, &*before] {
            let parts: Vec<f64> = others.chunks(len).map(|other| dot(other, &rest[..len])).collect();
            for (other, part) in others.chunks(len).zip(parts) {
                rest.iter_mut().zip(other).for_each(|(x, y)| *x -= part * y);
            }
        }
    }
    let near = |x: f64, y: f64| assert!((x - y).abs() <= error, "{x} is not {y} of {len}");
    for isa in Isa::supported() {
        isa.select();
        let mut all = Vec::new();
        for threads in [1, 3] {
            let mut block = block.clone();
            let (factors, norms) = orthogonalize(Rows::new(&basis, len), &mut block, threads);
            factors.iter().zip(&along).for_each(|(x, y)| near(*x, *y));
            block.iter().zip(&exact).for_each(|(&x, y)| near(x.into(), *y));
            for (w, norm) in block.chunks(len).zip(&norms) {
                assert!((norm - dot(w, w).sqrt()).abs() <= 1e-12 * len as f64);
            }
            all.push((factors, norms, block));
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
fn blocks_of_any_size_are_orthogonalized() {
    for (len, vectors) in [(1, 1), (15, 2), (9001, 3), (20_000, 4), (600, 7)] {
        is_orthogonalized::<f32>(len, vectors, 1e-6);
        is_orthogonalized::<f64>(len, vectors, 1e-12);
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
