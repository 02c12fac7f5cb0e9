use half::{bf16, f16};

use super::*;
use crate::kernels::storage::Scalar;

const SIMPLEX: Simplex = Simplex { sum: 1.0 };

/// Numbers between -2 and 2.
fn noise(count: usize) -> Vec<f64> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 11) as f64 / (1_u64 << 51) as f64 - 2.0
    };
    (0..count).map(|_| next()).collect()
}

fn project<T: Copy>(dtype: Float, map: impl Map, values: &[T], len: usize, threads: usize) -> Vec<T> {
    let shape = Shape {
        dtype,
        rows: values.len() / len,
        len,
    };
    let (mut to, mut in_place) = (values.to_vec(), values.to_vec());
    let same = in_place.as_mut_ptr();
    // SAFETY: as many elements of the type.
    unsafe {
        forward(
            &map,
            shape,
            values.as_ptr().cast(),
            to.as_mut_ptr().cast(),
            threads,
        );
        forward(&map, shape, same.cast_const().cast(), same.cast(), threads);
    }
    let bytes = |values: &[T]| unsafe {
        // SAFETY: any number is bytes.
        std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)).to_vec()
    };
    assert!(bytes(&to) == bytes(&in_place), "in place");
    to
}

fn product<T: Copy>(dtype: Float, images: &[T], vectors: &[T], len: usize, threads: usize) -> Vec<T> {
    let shape = Shape {
        dtype,
        rows: images.len() / len,
        len,
    };
    let mut to = vectors.to_vec();
    let product = Product {
        told: images.as_ptr().cast(),
        vectors: vectors.as_ptr().cast(),
        to: to.as_mut_ptr().cast(),
        transposed: false,
    };
    // SAFETY: as many elements of the type.
    unsafe { super::product(&SIMPLEX, shape, product, threads) };
    to
}

/// By sorting all of it.
fn expected(row: &[f64], sum: f64) -> Vec<f64> {
    let mut sorted = row.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut threshold, mut total) = (0.0, 0.0);
    for (i, x) in sorted.iter().enumerate() {
        total += x;
        let next = (total - sum) / (i + 1) as f64;
        if *x > next {
            threshold = next;
        }
    }
    row.iter().map(|x| (x - threshold).max(0.0)).collect()
}

fn assert_near(actual: &[f64], expected: &[f64], allowed: f64) {
    assert_eq!(actual.len(), expected.len());
    for (a, b) in actual.iter().zip(expected) {
        assert!((a - b).abs() <= allowed, "{a} {b}");
    }
}

#[test]
fn rows_land_on_the_simplex_whatever_their_length() {
    for len in [1, 2, 15, 16, 17, 33, 64, 100, 1000] {
        for sum in [1e-3, 1.0, 50.0, 1e6] {
            let values = noise(3 * len);
            let images = project(Float::F64, Simplex { sum }, &values, len, 1);
            for (image, row) in images.chunks(len).zip(values.chunks(len)) {
                assert_near(image, &expected(row, sum), 1e-14 * (sum + 4.0));
            }
        }
    }
}

#[test]
fn series_that_lose_one_candidate_at_a_time_are_sorted() {
    let row: Vec<f64> = (0..3000)
        .map(|i| -(0.5 - 0.5_f64.powi(i % 60)) - 1e-4 * i as f64)
        .collect();
    let geometric: Vec<f64> = (0..200).map(|i| -(1.1_f64.powi(-i))).rev().collect();
    for row in [row, geometric] {
        assert_near(
            &project(Float::F64, SIMPLEX, &row, row.len(), 1),
            &expected(&row, 1.0),
            1e-14,
        );
    }
}

#[test]
fn infinities_share_and_nan_spreads_over_its_row_only() {
    const INF: f64 = f64::INFINITY;
    for (row, image) in [
        ([INF, 1.0, INF, -INF], [0.5, 0.0, 0.5, 0.0]),
        ([-INF, 1.0, 1.5, -INF], [0.0, 0.25, 0.75, 0.0]),
        ([-INF; 4], [0.25; 4]),
        ([3.0; 4], [0.25; 4]),
    ] {
        assert_eq!(project(Float::F64, SIMPLEX, &row, 4, 1), image);
        let row = row.map(|x| x as f32);
        assert_eq!(project(Float::F32, SIMPLEX, &row, 4, 1), image.map(|x| x as f32));
    }
    for other in [1.0, INF, -INF, f64::NAN] {
        let images = project(Float::F64, SIMPLEX, &[0.0, f64::NAN, other, 0.0, 0.5, 0.5], 3, 1);
        assert!(images[..3].iter().all(|x| x.is_nan()));
        assert_eq!(images[3..], [0.0, 0.5, 0.5]);
        let products = product(Float::F64, &images, &[1.0; 6], 3, 1);
        assert!(products[..3].iter().all(|x| x.is_nan()));
        assert_eq!(products[3..], [0.0; 3]);
    }
    let nothing = project(Float::F64, Simplex { sum: 0.0 }, &[1.0, 2.0, INF, f64::NAN], 2, 1);
    assert_eq!(nothing[..2], [0.0; 2]);
    assert!(nothing[2..].iter().all(|x| x.is_nan()));
    assert_eq!(product(Float::F64, &[0.0; 2], &[1.0, 2.0], 2, 1), [0.0; 2]);
}

#[test]
fn the_jacobian_takes_the_mean_over_the_support() {
    let (image, vector) = ([0.0, 0.65, 0.0, 0.35, 0.0], [1.0, -2.0, 3.0, 0.5, f64::NAN]);
    assert_eq!(
        product(Float::F64, &image, &vector, 5, 1),
        [0.0, -1.25, 0.0, 1.25, 0.0]
    );
}

#[test]
fn instruction_sets_and_threads_give_the_same_bits() {
    let before = Isa::current();
    let rows = noise(70_000);
    let all = |threads| {
        [7, 64, 700, 70_000].map(|len| {
            let single: Vec<f32> = rows.iter().map(|&x| x as f32).collect();
            let vectors: Vec<f32> = single.iter().rev().copied().collect();
            let images = project(Float::F32, SIMPLEX, &single, len, threads);
            let products = product(Float::F32, &images, &vectors, len, threads);
            let wide = project(Float::F64, SIMPLEX, &rows, len, threads);
            (
                images.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                products.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                wide.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            )
        })
    };
    let expected = all(1);
    for isa in Isa::supported() {
        isa.select();
        for threads in [1, 3] {
            assert!(all(threads) == expected, "{} {threads}", isa.name());
        }
    }
    before.select();
}

#[test]
fn sixteen_bits_are_rounded_once() {
    let rows = noise(1000);
    let half: Vec<f16> = rows.iter().map(|&x| f16::from_f64(x)).collect();
    let brain: Vec<bf16> = rows.iter().map(|&x| bf16::from_f64(x)).collect();
    let single = |row: Vec<f64>| row.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let from_half = single(half.iter().map(|x| x.wide()).collect());
    let from_brain = single(brain.iter().map(|x| x.wide()).collect());
    let round_half = |row: &[f32]| row.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
    let round_brain = |row: &[f32]| row.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>();
    let images = project(Float::F16, SIMPLEX, &half, 50, 1);
    assert_eq!(
        images,
        round_half(&project(Float::F32, SIMPLEX, &from_half, 50, 1))
    );
    assert_eq!(
        project(Float::Bf16, SIMPLEX, &brain, 50, 1),
        round_brain(&project(Float::F32, SIMPLEX, &from_brain, 50, 1))
    );
    let wide_images: Vec<f32> = images.iter().map(|x| x.wide() as f32).collect();
    assert_eq!(
        product(Float::F16, &images, &half, 50, 1),
        round_half(&product(Float::F32, &wide_images, &from_half, 50, 1))
    );
}

#[test]
fn single_numbers_are_mapped_alike_wherever_they_stand() {
    let shrink = ByEntry(Shrink {
        threshold: 0.5,
        factor: 0.75,
        nonnegative: false,
    });
    let image = |x: f32| x.signum() * (x.abs() - 0.5).max(0.0) * 0.75;
    for len in [1, 31, 33, 1000, ELEMENTS_PER_THREAD + 17] {
        let shape = Shape {
            dtype: Float::Bf16,
            rows: 1,
            len,
        };
        let values: Vec<bf16> = noise(len).into_iter().map(bf16::from_f64).collect();
        let mut images = vec![bf16::NAN; len];
        let mut products = images.clone();
        // SAFETY: as many elements of the type.
        unsafe { shrink.forward(shape, values.as_ptr().cast(), images.as_mut_ptr().cast(), 2) };
        let product = Product {
            told: images.as_ptr().cast(),
            vectors: values.as_ptr().cast(),
            to: products.as_mut_ptr().cast(),
            transposed: true,
        };
        // SAFETY: as above.
        unsafe { shrink.product(shape, product, 2) };
        for (i, &x) in values.iter().enumerate() {
            assert_eq!(images[i], bf16::from_f32(image(x.to_f32())), "{i} of {len}");
            let kept = if images[i] == bf16::ZERO { 0.0 } else { 0.75 };
            assert_eq!(products[i], bf16::from_f32(x.to_f32() * kept), "{i} of {len}");
        }
    }
}

#[test]
fn isotonic_rows_do_not_fall_and_keep_their_sum() {
    let increasing = Isotonic {
        increasing: true,
        weights: None,
    };
    let rows = noise(3 * 200);
    let images = project(Float::F64, increasing, &rows, 200, 1);
    for (row, image) in rows.chunks(200).zip(images.chunks(200)) {
        assert!(image.is_sorted());
        assert_near(&[image.iter().sum::<f64>()], &[row.iter().sum::<f64>()], 1e-12);
    }
}

#[test]
fn norms_of_any_size_are_found() {
    let ball = L2Ball {
        radius: 1.0,
        rest: false,
    };
    let small = L2Ball {
        radius: 1e-200,
        rest: false,
    };
    assert_near(
        &project(Float::F64, ball, &[3e200, -4e200], 2, 1),
        &[0.6, -0.8],
        1e-15,
    );
    assert_near(
        &project(Float::F64, small, &[3e-190, 4e-190], 2, 1),
        &[6e-201, 8e-201],
        1e-215,
    );
    assert_eq!(project(Float::F64, ball, &[f64::INFINITY, 1.0], 2, 1), [1.0, 0.0]);
}

#[test]
fn what_is_too_large_or_too_small_for_sums_in_f32_is_summed_in_f64() {
    let ball = |radius| L2Ball { radius, rest: false };
    for (size, len) in [(1e30, 64), (1e30, 5), (1e-30, 64), (1e-30, 5)] {
        let row = vec![size as f32; len];
        let image = project(Float::F32, ball(size), &row, len, 1);
        let expected = (size / (len as f64).sqrt()) as f32;
        assert!(
            image.iter().all(|x| (x / expected - 1.0).abs() < 1e-6),
            "{image:?}"
        );
    }
    let row = vec![3e38_f32; 64];
    let inside = L1Ball {
        radius: 2e40,
        rest: false,
    };
    assert_eq!(project(Float::F32, inside, &row, 64, 1), row);
    let image = project(Float::F32, Simplex { sum: 6.4e39 }, &row, 64, 1);
    assert!(image.iter().all(|x| (x / 1e38 - 1.0).abs() < 1e-6), "{image:?}");
}

#[test]
fn sections_reach_their_sum_and_impossible_ones_are_none() {
    let section = |sum| Section::new(vec![-1.0; 50], vec![0.5; 50], vec![0.5; 50], sum);
    assert!(section(12.6).is_none() && section(-25.1).is_none());
    for sum in [-25.0, -3.0, 0.0, 12.5] {
        for image in project(Float::F64, section(sum).unwrap(), &noise(150), 50, 1).chunks(50) {
            assert_near(&[image.iter().sum::<f64>() / 2.0], &[sum], 1e-13);
            assert!(image.iter().all(|x| (-1.0..=0.5).contains(x)));
        }
    }
}
