//! Every kernel against the triple loop, over sizes, strides, alpha and beta.

use half::bf16;

use super::*;

/// Deterministic values in (-1, 1).
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    })
    .skip(8)
    .take(count)
    .collect()
}

trait Test: Element {
    /// Units in the last place of the sums, and of the factors.
    const EPSILON: f64;
    fn new(value: f64) -> Self;
    fn get(self) -> f64;
}
macro_rules! test_element {
    ($type:ty, $epsilon:expr, $new:expr, $get:expr) => {
        impl Test for $type {
            const EPSILON: f64 = $epsilon;
            fn new(value: f64) -> Self {
                $new(value)
            }
            fn get(self) -> f64 {
                $get(self)
            }
        }
    };
}
test_element!(f32, f32::EPSILON as f64, |v| v as f32, f64::from);
test_element!(f64, f64::EPSILON, |v| v, |v| v);
test_element!(bf16, f32::EPSILON as f64, bf16::from_f64, f64::from);

const SHAPES: [(usize, usize, usize); 18] = [
    (0, 3, 2),
    (3, 0, 2),
    (3, 2, 0),
    (1, 1, 1),
    (1, 40, 7),
    (40, 1, 7),
    (5, 7, 1),
    (8, 32, 2),
    (15, 17, 31),
    (16, 32, 64),
    (33, 31, 65),
    (63, 65, 32),
    (64, 16, 300),
    (97, 95, 33),
    (96, 192, 64),
    (100, 200, 300),
    (130, 1, 600),
    (13, 11, 1100),
];

fn check<T: Test>(isa: Isa, (m, n, k): (usize, usize, usize), layout: usize, (alpha, beta): (f64, f64)) {
    let strides = |rows: usize, cols: usize, layout: usize| match layout {
        0 => (cols.max(1), 1),
        1 => (1, rows.max(1)),
        2 => (2 * cols + 3, 2),
        _ => (cols + 5, 1),
    };
    let a_strides = strides(m, k, layout % 4);
    let b_strides = strides(k, n, layout / 4);
    let values = |seed, rows: usize, cols: usize, (rs, cs): (usize, usize)| -> Vec<T> {
        noise(seed, rows * rs + cols * cs)
            .into_iter()
            .map(T::new)
            .collect()
    };
    let (a, b) = (values(1, m, k, a_strides), values(2, k, n, b_strides));
    let row_stride = n + 3;
    let before: Vec<T::Acc> = if beta == 0.0 {
        vec![T::Acc::from_f64(f64::NAN); m * row_stride]
    } else {
        noise(3, m * row_stride)
            .into_iter()
            .map(T::Acc::from_f64)
            .collect()
    };
    let mut c = before.clone();
    multiply(
        isa,
        (T::Acc::from_f64(alpha), T::Acc::from_f64(beta)),
        MatrixRef::new(&a, m, k, a_strides.0, a_strides.1),
        MatrixRef::new(&b, k, n, b_strides.0, b_strides.1),
        Output::new(&mut c, m, n, row_stride),
        &mut Default::default(),
        1 + layout % 3,
    );
    for i in 0..m {
        for j in 0..row_stride {
            let (got, old) = (
                c[i * row_stride + j].to_f64(),
                before[i * row_stride + j].to_f64(),
            );
            if j >= n {
                assert_eq!(got.to_bits(), old.to_bits(), "wrote between the rows");
                continue;
            }
            let product = |i: usize, j: usize, l: usize| {
                a[i * a_strides.0 + l * a_strides.1].get() * b[l * b_strides.0 + j * b_strides.1].get()
            };
            let sum: f64 = (0..k).map(|l| product(i, j, l)).sum();
            let size: f64 = (0..k).map(|l| product(i, j, l).abs()).sum();
            let want = alpha * sum + if beta == 0.0 { 0.0 } else { beta * old };
            let bound = T::EPSILON * ((k as f64).sqrt() + 4.0) * (size * alpha.abs() + 1.0);
            assert!(
                (got - want).abs() <= bound,
                "{isa:?} {m}x{n}x{k} layout {layout} ({i},{j}): {got} {want}"
            );
        }
    }
}

#[test]
fn every_kernel_agrees_with_the_triple_loop() {
    for isa in Isa::supported() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            for layout in 0..16 {
                // Every pair of layouts meets every shape; alpha and beta take turns.
                for factors in [[(1.0, 0.0)], [(-0.5, 1.0)], [(2.0, -3.0)]][(i + layout) % 3] {
                    check::<f32>(isa, shape, layout, factors);
                    check::<f64>(isa, shape, layout, factors);
                    check::<bf16>(isa, shape, layout, factors);
                }
            }
        }
    }
}

#[test]
fn a_times_its_transpose_is_the_full_product_and_exactly_symmetric() {
    for isa in Isa::supported() {
        for (m, k) in [(1, 5), (31, 64), (97, 33), (200, 300), (256, 1)] {
            for (row_stride, col_stride) in [(k, 1), (1, m)] {
                let a: Vec<f32> = noise(5, m * k).into_iter().map(|v| v as f32).collect();
                let view = MatrixRef::new(&a, m, k, row_stride, col_stride);
                let (mut full, mut half) = (vec![0.0; m * m], vec![f32::NAN; m * m]);
                multiply(
                    isa,
                    (2.0, 0.0),
                    view,
                    view.t(),
                    Output::row_major(&mut full, m, m),
                    &mut Default::default(),
                    2,
                );
                let to = Output::row_major(&mut half, m, m);
                multiply_by_transpose(isa, (2.0, 0.0), view, to, &mut Default::default(), 2);
                for i in 0..m {
                    for j in 0..m {
                        assert_eq!(half[i * m + j].to_bits(), half[j * m + i].to_bits());
                        if i >= j {
                            assert_eq!(half[i * m + j].to_bits(), full[i * m + j].to_bits(), "{isa:?}");
                        }
                    }
                }
            }
        }
    }
}

/// What is not finite reaches its row of the product, and nothing else.
fn stays_in_its_row<T: Test>(bad: f64) {
    for isa in Isa::supported() {
        for (m, n, k) in [(1, 1, 1), (17, 15, 33), (40, 70, 100)] {
            let (row, inner) = (m / 2, k / 3);
            let mut a: Vec<T> = noise(1, m * k).into_iter().map(T::new).collect();
            a[row * k + inner] = T::new(bad);
            let b: Vec<T> = noise(2, k * n).into_iter().map(T::new).collect();
            let mut c = vec![T::Acc::ZERO; m * n];
            let (a, b) = (MatrixRef::row_major(&a, m, k), MatrixRef::row_major(&b, k, n));
            let to = Output::row_major(&mut c, m, n);
            multiply(
                isa,
                (T::Acc::ONE, T::Acc::ZERO),
                a,
                b,
                to,
                &mut Default::default(),
                2,
            );
            for (i, value) in c.iter().enumerate() {
                let value = value.to_f64();
                assert_eq!(
                    value.is_finite(),
                    i / n != row,
                    "{isa:?} {m}x{n}x{k} {i}: {value}"
                );
                assert!(i / n != row || value.is_nan() == bad.is_nan(), "{isa:?} {value}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        stays_in_its_row::<f32>(bad);
        stays_in_its_row::<f64>(bad);
        stays_in_its_row::<bf16>(bad);
    }
}

#[test]
fn terms_are_added_and_threads_change_nothing() {
    let m = 210;
    let noise: Vec<f32> = noise(7, m * m).into_iter().map(|v| v as f32).collect();
    let view = MatrixRef::row_major(&noise, m, m);
    for isa in Isa::supported() {
        for factors in [Factors::Exact, Factors::Bf16] {
            let engine = f32::engine(isa, factors);
            let mut packed = Packed::default();
            let mut square = vec![0.0f32; m * m];
            engine.pack(view, Symmetry::None, Sides::Both, &mut packed, 1);
            let plain = Finish {
                alpha: 1.0,
                beta: 0.0,
                terms: &[],
            };
            let to = Output::row_major(&mut square, m, m);
            engine.product(&packed, &packed, Symmetry::Lower, &plain, to, 1);
            let term = MatrixRef::row_major(&square, m, m);
            let finish = Finish {
                alpha: 0.5,
                beta: -1.0,
                terms: &[(2.0, term), (0.25, term)],
            };
            let results: Vec<Vec<f32>> = [1, 2, 4]
                .into_iter()
                .map(|threads| {
                    let mut c = square.clone();
                    engine.pack(view, Symmetry::None, Sides::Both, &mut packed, threads);
                    let to = Output::row_major(&mut c, m, m);
                    engine.product(&packed, &packed, Symmetry::Lower, &finish, to, threads);
                    c
                })
                .collect();
            let mut whole = results[0].clone();
            engine.mirror(Output::row_major(&mut whole, m, m), 2);
            for (i, j) in (0..m).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                assert_eq!(whole[i * m + j].to_bits(), results[0][i * m + j].to_bits());
                assert_eq!(whole[i * m + j].to_bits(), whole[j * m + i].to_bits());
            }
            for (got, was) in results[0].iter().zip(&square) {
                assert!(
                    (got - 1.75 * was).abs() <= 1e-5 * (1.0 + was.abs()),
                    "{got} {was}"
                );
            }
            assert!(results.iter().all(|r| r == &results[0]));
        }
    }
}

/// A symmetric matrix packed from its lower triangle gives what it gives packed whole.
fn lower_packs_alike<T: Test>() {
    for isa in Isa::supported() {
        for m in [1, 95, 96, 97, 200, 300] {
            let mut whole: Vec<T> = noise(9, m * m).into_iter().map(T::new).collect();
            for (i, j) in (0..m).flat_map(|i| (0..i).map(move |j| (i, j))) {
                whole[j * m + i] = whole[i * m + j];
            }
            let mut lower = whole.clone();
            for (i, j) in (0..m).flat_map(|i| (0..m).map(move |j| (i, j))) {
                if i / blocks::BLOCK < j / blocks::BLOCK {
                    lower[i * m + j] = T::new(f64::NAN);
                }
            }
            let engine = T::engine(isa, Factors::Exact);
            let results = [(&whole, Symmetry::None), (&lower, Symmetry::Lower)].map(|(values, symmetry)| {
                let mut packed = Packed::default();
                engine.pack(
                    MatrixRef::row_major(values, m, m),
                    symmetry,
                    Sides::Both,
                    &mut packed,
                    2,
                );
                let mut c = vec![T::Acc::ZERO; m * m];
                let finish = Finish {
                    alpha: T::Acc::ONE,
                    beta: T::Acc::ZERO,
                    terms: &[],
                };
                let to = Output::row_major(&mut c, m, m);
                engine.product(&packed, &packed, Symmetry::None, &finish, to, 2);
                c
            });
            assert!(results[0] == results[1], "{isa:?} {m}");
        }
    }
}

#[test]
fn the_lower_triangle_is_enough_to_pack() {
    lower_packs_alike::<f32>();
    lower_packs_alike::<f64>();
    lower_packs_alike::<bf16>();
}

#[test]
fn rounding_is_that_of_half() {
    let hard = [
        0.0,
        -0.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        f32::MAX,
        f32::INFINITY,
        1e-45,
        -1e-40,
    ];
    for value in hard
        .into_iter()
        .chain(noise(1, 1000).into_iter().map(|v| v as f32))
    {
        assert_eq!(
            round::to_bf16(value).to_bits(),
            bf16::from_f32(value).to_f32().to_bits()
        );
    }
    assert!(round::to_bf16(f32::NAN).is_nan() && round::to_bf16(f32::from_bits(0x7f80_0001)).is_nan());
}

#[test]
#[should_panic(expected = "packed for another kernel")]
fn factors_of_another_kernel_are_refused() {
    let data = [1.0f32; 4];
    let mut packed = Packed::default();
    f32::engine(Isa::Portable, Factors::Exact).pack(
        MatrixRef::row_major(&data, 2, 2),
        Symmetry::None,
        Sides::Both,
        &mut packed,
        1,
    );
    let mut c = [0.0f64; 4];
    let finish = Finish {
        alpha: 1.0,
        beta: 0.0,
        terms: &[],
    };
    let to = Output::row_major(&mut c, 2, 2);
    f64::engine(Isa::Portable, Factors::Exact).product(&packed, &packed, Symmetry::None, &finish, to, 1);
}

/// `cargo test --release --lib -- --ignored --nocapture --test-threads 1 rates`
#[test]
#[ignore = "a measurement"]
fn rates() {
    for n in [256, 768, 2048] {
        rates_of::<f32>("f32", n, Factors::Exact);
        rates_of::<bf16>("bf16", n, Factors::Exact);
        rates_of::<f32>("f32 rounded to bf16", n, Factors::Bf16);
    }
}

/// The best of many times, packing included; what is useful of a symmetric product is half of the full one.
fn rates_of<T: Test>(name: &str, n: usize, factors: Factors) {
    let values: Vec<T> = noise(1, n * n).into_iter().map(T::new).collect();
    let view = MatrixRef::row_major(&values, n, n);
    let mut c = vec![T::Acc::ZERO; n * n];
    let engine = T::engine(Isa::current(), factors);
    for (symmetry, useful) in [(Symmetry::None, 2.0), (Symmetry::Lower, 1.0)] {
        for threads in [1, 2] {
            let (mut a, mut b) = (Packed::default(), Packed::default());
            let finish = Finish {
                alpha: T::Acc::ONE,
                beta: T::Acc::ZERO,
                terms: &[],
            };
            let (mut packing, mut all) = (f64::MAX, f64::MAX);
            for _ in 0..(40_000_000_000 / (2 * n * n * n)).clamp(3, 200) {
                let start = std::time::Instant::now();
                let sides = if symmetry == Symmetry::None {
                    Sides::Left
                } else {
                    Sides::Both
                };
                engine.pack(view, Symmetry::None, sides, &mut a, threads);
                if symmetry == Symmetry::None {
                    engine.pack(view.t(), Symmetry::None, Sides::Right, &mut b, threads);
                }
                let packed = start.elapsed().as_secs_f64();
                let right = if symmetry == Symmetry::None { &b } else { &a };
                let to = Output::row_major(&mut c, n, n);
                engine.product(&a, right, symmetry, &finish, to, threads);
                let total = start.elapsed().as_secs_f64();
                if total < all {
                    (packing, all) = (packed, total);
                }
            }
            let rate = useful * (n as f64).powi(3) / all / 1e9;
            let part = 100.0 * packing / all;
            println!("{n:5} {name}, {symmetry:?}, {threads} thread(s): {rate:.1} GF/s, packing {part:.1}%");
        }
    }
}
