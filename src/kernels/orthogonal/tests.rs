//! The oracles of the family's spec (section 8), on every instruction set and precision.

use half::{bf16, f16};

use super::*;
use crate::kernels::matmul::tests::noise;
use crate::kernels::matmul::{MatrixRef, Output, multiply};

const PRECISIONS: [Precision; 4] = [
    Precision::Float64,
    Precision::Float32,
    Precision::Bfloat16,
    Precision::Auto,
];
const FORMS: [Algorithm; 3] = [Algorithm::Standard, Algorithm::Gram, Algorithm::Auto];

fn options(name: &str, algorithm: Algorithm, precision: Precision) -> Options {
    Options {
        algorithm,
        precision,
        ..Options::new(Schedule::named(name, None).unwrap())
    }
}

fn keller(algorithm: Algorithm, precision: Precision) -> Options {
    options("keller", algorithm, precision)
}

/// One matrix through f32 (f64 with `Precision::Float64`).
fn run(isa: Isa, g: &[f64], rows: usize, cols: usize, options: &Options, threads: usize) -> Vec<f64> {
    let workspace = &mut Workspace::default();
    if options.precision == Precision::Float64 {
        let mut out = vec![f64::NAN; g.len()];
        let operand = Operand {
            input: Input::F64(g),
            output: Numbers::F64(&mut out),
            rows,
            cols,
        };
        orthogonalize_on(isa, &mut [operand], options, workspace, threads).unwrap();
        return out;
    }
    let g: Vec<f32> = g.iter().map(|&v| v as f32).collect();
    let mut out = vec![f32::NAN; g.len()];
    let operand = Operand {
        input: Input::F32(&g),
        output: Numbers::F32(&mut out),
        rows,
        cols,
    };
    orthogonalize_on(isa, &mut [operand], options, workspace, threads).unwrap();
    out.into_iter().map(f64::from).collect()
}

fn times(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    let (a, b) = (MatrixRef::row_major(a, m, k), MatrixRef::row_major(b, k, n));
    multiply(
        Isa::current(),
        (1.0, 0.0),
        a,
        b,
        Output::row_major(&mut c, m, n),
        &mut Default::default(),
        2,
    );
    c
}

fn transpose(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|i| a[i % rows * cols + i / rows]).collect()
}

/// Sums of two uniform values: enough like Gaussian ones.
fn random(seed: u64, count: usize) -> Vec<f64> {
    noise(seed, count)
        .iter()
        .zip(noise(seed + 1000, count))
        .map(|(a, b)| a + b)
        .collect()
}

/// A product of reflections.
fn orthogonal_matrix(seed: u64, n: usize) -> Vec<f64> {
    let mut q: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    for step in 0..32 {
        let v = random(seed * 100 + step, n);
        let square: f64 = v.iter().map(|x| x * x).sum();
        for row in q.chunks_exact_mut(n) {
            let along: f64 = row.iter().zip(&v).map(|(a, b)| a * b).sum::<f64>() * 2.0 / square;
            row.iter_mut().zip(&v).for_each(|(a, b)| *a -= along * b);
        }
    }
    q
}

/// `U diag(values) Vᵀ` for given factors, m <= n.
fn compose(u: &[f64], values: &[f64], v: &[f64], m: usize, n: usize) -> Vec<f64> {
    let scaled: Vec<f64> = (0..m * m).map(|i| u[i] * values[i % m]).collect();
    times(&scaled, &v[..m * n], m, m, n)
}

/// G with given singular values, and the polar factor that the schedule should make of it.
fn with_singular_values(values: &[f64], n: usize, schedule: &Schedule) -> (Vec<f64>, Vec<f64>) {
    let m = values.len();
    let (u, v) = (orthogonal_matrix(1, m), orthogonal_matrix(2, n));
    let norm = values.iter().map(|s| s * s).sum::<f64>().sqrt();
    let images: Vec<f64> = values.iter().map(|s| schedule.image(s / norm)).collect();
    (compose(&u, values, &v, m, n), compose(&u, &images, &v, m, n))
}

fn spectrum(m: usize, condition: f64) -> Vec<f64> {
    (0..m)
        .map(|i| condition.powf(-(i as f64) / (m - 1) as f64))
        .collect()
}

fn error(got: &[f64], want: &[f64]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    square(&mut got.iter().zip(want).map(|(a, b)| a - b)) / square(&mut want.iter().copied())
}

/// What is within reach for well conditioned input.
fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::Float64 => 1e-12,
        Precision::Float32 => 1e-5,
        Precision::Bfloat16 | Precision::Auto => 0.06,
    }
}

fn everywhere(mut test: impl FnMut(Isa, Algorithm, Precision)) {
    for isa in Isa::supported() {
        for form in FORMS {
            for precision in PRECISIONS {
                test(isa, form, precision);
            }
        }
    }
}

#[test]
fn multiples_of_the_identity_follow_the_scalar_map() {
    everywhere(|isa, form, precision| {
        for (n, want) in [
            (1, 0.6964364094697522),
            (2, 1.1081111156829304),
            (3, 0.6857849207555402),
            (4, 0.7654385304543396),
            (16, 0.714526261333035),
        ] {
            let g: Vec<f64> = (0..n * n)
                .map(|i| if i / n == i % n { -3.5 } else { 0.0 })
                .collect();
            for (i, got) in run(isa, &g, n, n, &keller(form, precision), 2)
                .into_iter()
                .enumerate()
            {
                let want = if i / n == i % n { -want } else { 0.0 };
                assert!(
                    (got - want).abs() <= bound(precision),
                    "{isa:?} {form:?} {precision:?} {n}: {got}"
                );
            }
        }
    });
}

#[test]
fn the_polar_factor_of_known_singular_vectors_is_found() {
    everywhere(|isa, form, precision| {
        for name in [
            "keller",
            "quintic",
            "polar_express_1.01",
            "cans_1.01",
            "cubic5",
            "classic",
        ] {
            let options = options(name, form, precision);
            // Gram loses in f32 what the schedule amplifies before the restart.
            let bound = match (form, precision) {
                (Algorithm::Gram | Algorithm::Auto, Precision::Float32) => 5e-5,
                (Algorithm::Gram, Precision::Bfloat16) => 0.6,
                _ => bound(precision),
            };
            for (m, n) in [(40, 40), (33, 100)] {
                let (g, want) = with_singular_values(&spectrum(m, 30.0), n, &options.schedule);
                let got = error(&run(isa, &g, m, n, &options, 2), &want);
                assert!(
                    got <= bound,
                    "{isa:?} {form:?} {precision:?} {name} {m}x{n}: {got}"
                );
            }
        }
    });
}

#[test]
fn rank_one_is_mapped_to_its_own_direction() {
    let (m, n) = (24, 60);
    let mut values = vec![0.0; m];
    values[0] = 2.5;
    for isa in Isa::supported() {
        let (g, want) = with_singular_values(&values, n, &keller(Algorithm::Auto, Precision::Auto).schedule);
        let exact = run(isa, &g, m, n, &keller(Algorithm::Auto, Precision::Float64), 1);
        assert!(error(&exact, &want) <= 1e-11);
        // The input's own rounding to f32 leaves noise of 1e-7, amplified 485 times.
        let f32 = run(isa, &g, m, n, &keller(Algorithm::Auto, Precision::Float32), 1);
        assert!(error(&f32, &want) <= 5e-4, "{isa:?} {}", error(&f32, &want));
    }
}

#[test]
fn gram_agrees_with_standard() {
    for isa in Isa::supported() {
        for (precision, bound) in [(Precision::Float64, 1e-10), (Precision::Float32, 5e-5)] {
            for (m, n) in [(30, 30), (64, 150), (150, 64), (1, 50), (50, 1)] {
                let g = random(3, m * n);
                let standard = run(isa, &g, m, n, &keller(Algorithm::Standard, precision), 2);
                for restarts in [vec![2], vec![1, 3], vec![1, 2, 3, 4]] {
                    let options = Options {
                        restarts,
                        ..keller(Algorithm::Gram, precision)
                    };
                    let gram = run(isa, &g, m, n, &options, 2);
                    assert!(error(&gram, &standard) <= bound, "{isa:?} {precision:?} {m}x{n}");
                }
            }
        }
    }
}

#[test]
fn transposition_rotation_sign_and_scale_commute_with_it() {
    let (m, n) = (35, 50);
    let g = random(4, m * n);
    let (p, q) = (orthogonal_matrix(5, m), orthogonal_matrix(6, n));
    everywhere(|isa, form, precision| {
        // Gram in bf16 alone is not stable: see `Precision::Auto`.
        let bound = if precision == Precision::Bfloat16 {
            0.3
        } else {
            bound(precision).max(1e-11)
        };
        let of = |g: &[f64], m, n| run(isa, g, m, n, &keller(form, precision), 2);
        let o = of(&g, m, n);
        let close = |got: Vec<f64>, want: &[f64], what: &str| {
            let error = error(&got, want);
            assert!(error <= bound, "{isa:?} {form:?} {precision:?} {what}: {error}");
        };
        close(transpose(&of(&transpose(&g, m, n), n, m), n, m), &o, "transpose");
        let rotate = |g: &[f64]| times(&times(&p, g, m, m, n), &q, m, n, n);
        close(of(&rotate(&g), m, n), &rotate(&o), "rotation");
        let negative: Vec<f64> = of(&g.iter().map(|v| -v).collect::<Vec<_>>(), m, n);
        assert!(
            negative.iter().zip(&o).all(|(a, b)| *a == -b),
            "{isa:?} {form:?} {precision:?}"
        );
        for scale in [1e-30, 1e-12, 1e12, 1e30] {
            close(
                of(&g.iter().map(|v| v * scale).collect::<Vec<_>>(), m, n),
                &o,
                "scale",
            );
        }
    });
}

#[test]
fn zero_stays_zero_and_what_is_not_finite_becomes_nan() {
    everywhere(|isa, form, precision| {
        let options = keller(form, precision);
        assert!(run(isa, &[0.0; 12], 3, 4, &options, 1).iter().all(|&v| v == 0.0));
        for bad in [f64::NAN, f64::INFINITY] {
            let g = [1.0, bad, 2.0, 3.0, 4.0, 5.0];
            assert!(run(isa, &g, 2, 3, &options, 1).iter().all(|v| v.is_nan()));
        }
        assert!(run(isa, &[], 0, 3, &options, 1).is_empty());
    });
}

#[test]
fn eps_bounds_the_divisor_as_in_torch() {
    for isa in Isa::supported() {
        let with_eps = Options {
            eps: 1e-3,
            ..keller(Algorithm::Standard, Precision::Float64)
        };
        let got = run(isa, &[1e-3, 0.0, 0.0, 1e-3], 2, 2, &with_eps, 1)[0];
        assert!((got - with_eps.schedule.image(0.5f64.sqrt())).abs() < 1e-12);
        let got = run(isa, &[1e-4, 0.0, 0.0, 1e-4], 2, 2, &with_eps, 1)[0];
        assert!((got - with_eps.schedule.image(0.1)).abs() < 1e-12);
    }
}

#[test]
fn a_batch_is_its_matrices_one_by_one_for_any_number_of_threads() {
    let shapes = [
        (200, 130),
        (3, 3),
        (1, 9),
        (130, 200),
        (64, 64),
        (0, 5),
        (150, 150),
        (40, 250),
        (64, 64),
    ];
    let inputs: Vec<Vec<f32>> = shapes
        .iter()
        .enumerate()
        .map(|(i, (m, n))| random(i as u64, m * n).into_iter().map(|v| v as f32).collect())
        .collect();
    everywhere(|isa, form, precision| {
        let options = keller(form, precision);
        let workspace = &mut Workspace::default();
        let all = |workspace: &mut Workspace, threads| {
            let mut outputs: Vec<Vec<f32>> = inputs.iter().map(|g| vec![0.0; g.len()]).collect();
            let mut operands: Vec<Operand<'_>> = inputs
                .iter()
                .zip(&mut outputs)
                .zip(shapes)
                .map(|((g, o), (rows, cols))| Operand {
                    input: Input::F32(g),
                    output: Numbers::F32(o),
                    rows,
                    cols,
                })
                .collect();
            orthogonalize_on(isa, &mut operands, &options, workspace, threads).unwrap();
            outputs
        };
        let together = all(workspace, 1);
        for threads in [2, 4] {
            assert!(
                all(workspace, threads) == together,
                "{isa:?} {form:?} {precision:?} {threads} threads"
            );
        }
        for ((g, o), (rows, cols)) in inputs.iter().zip(&together).zip(shapes) {
            let mut alone = g.clone();
            let mut operands = [Operand {
                input: Input::Output,
                output: Numbers::F32(&mut alone),
                rows,
                cols,
            }];
            orthogonalize_on(isa, &mut operands, &options, workspace, 2).unwrap();
            assert!(&alone == o, "{isa:?} {form:?} {precision:?} {rows}x{cols}");
        }
    });
}

#[test]
fn all_input_and_output_types_agree() {
    let (rows, cols) = (20, 30);
    let g: Vec<f16> = random(9, rows * cols).into_iter().map(f16::from_f64).collect();
    let g: Vec<bf16> = g.into_iter().map(|v| bf16::from_f32(v.to_f32())).collect();
    let (f32s, f64s): (Vec<f32>, Vec<f64>) = g.iter().map(|v| (v.to_f32(), v.to_f64())).unzip();
    let f16s: Vec<f16> = f32s.iter().map(|&v| f16::from_f32(v)).collect();
    for precision in PRECISIONS {
        let options = keller(Algorithm::Auto, precision);
        let want = run(
            Isa::current(),
            &f64s,
            rows,
            cols,
            &keller(Algorithm::Auto, Precision::Float64),
            1,
        );
        for input in [
            Input::F64(&f64s),
            Input::F32(&f32s),
            Input::Bf16(&g),
            Input::F16(&f16s),
            Input::Output,
        ] {
            let (mut narrow, mut wide) = (f32s.clone(), f64s.clone());
            let mut operands = [
                Operand {
                    input,
                    output: Numbers::F32(&mut narrow),
                    rows,
                    cols,
                },
                Operand {
                    input,
                    output: Numbers::F64(&mut wide),
                    rows,
                    cols,
                },
            ];
            orthogonalize(&mut operands, &options, &mut Workspace::default(), 2).unwrap();
            let narrow: Vec<f64> = narrow.into_iter().map(f64::from).collect();
            let limit = bound(precision).max(1e-7);
            assert!(
                error(&narrow, &want) <= limit && error(&wide, &want) <= limit,
                "{precision:?} {input:?}"
            );
        }
    }
}

#[test]
fn wrong_lengths_are_refused_before_anything_is_written() {
    let (mut good, mut short) = (vec![1.0f32; 6], vec![1.0f32; 5]);
    let mut operands = [
        Operand {
            input: Input::Output,
            output: Numbers::F32(&mut good),
            rows: 2,
            cols: 3,
        },
        Operand {
            input: Input::Output,
            output: Numbers::F32(&mut short),
            rows: 2,
            cols: 3,
        },
    ];
    let options = keller(Algorithm::Auto, Precision::Auto);
    let refused = orthogonalize(&mut operands, &options, &mut Workspace::default(), 1).unwrap_err();
    assert_eq!(
        refused,
        Error::Length {
            index: 1,
            buffer: "output",
            length: 5,
            rows: 2,
            cols: 3
        }
    );
    assert_eq!(
        refused.to_string(),
        "matrix 1: the output has 5 elements, expected 2 x 3"
    );
    let options = Options {
        eps: f64::NAN,
        ..options
    };
    assert!(orthogonalize(&mut [], &options, &mut Workspace::default(), 1).is_err());
    assert!(good.iter().all(|&v| v == 1.0));
}

/// torch.optim.Muon's iteration: everything rounded to bf16 between products, whose sums are f32.
fn torch_bf16(g: &[f64], m: usize, n: usize, schedule: &Schedule) -> Vec<f64> {
    let round = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let scale = g.iter().map(|v| v * v).sum::<f64>().sqrt();
    let mut x = round(g.iter().map(|v| (v / scale) as f32).collect());
    for &[a, b, c] in schedule.triples() {
        let view = |x, rows, cols| MatrixRef::row_major(x, rows, cols);
        let mut gram = vec![0.0; m * m];
        let isa = Isa::current();
        multiply(
            isa,
            (1.0, 0.0),
            view(&x, m, n),
            view(&x, m, n).t(),
            Output::row_major(&mut gram, m, m),
            &mut Default::default(),
            2,
        );
        let gram = round(gram);
        let mut step: Vec<f32> = gram.iter().map(|v| v.to_f32()).collect();
        let to = Output::row_major(&mut step, m, m);
        multiply(
            isa,
            (c as f32, b as f32),
            view(&gram, m, m),
            view(&gram, m, m),
            to,
            &mut Default::default(),
            2,
        );
        let step = round(step);
        let mut next: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        let to = Output::row_major(&mut next, m, n);
        multiply(
            isa,
            (1.0, a as f32),
            view(&step, m, m),
            view(&x, m, n),
            to,
            &mut Default::default(),
            2,
        );
        x = round(next);
    }
    x.iter().map(|v| v.to_f64()).collect()
}

/// The inputs on which bf16 goes wrong, and how many times torch's error ours may have. In the last two torch amplifies
/// little noise, and the Gram form of the steepest schedules (polar_express, cans) comes out a little behind at this size.
fn hard_inputs(m: usize, n: usize) -> Vec<(&'static str, Vec<f64>, f64)> {
    let schedule = Schedule::named("keller", None).unwrap();
    let low = times(&random(21, m * 8), &random(22, 8 * n), m, 8, n);
    let low_rank = low
        .iter()
        .zip(random(23, m * n))
        .map(|(a, b)| a + 1e-4 * b)
        .collect();
    vec![
        ("gaussian", random(20, m * n), 1.0),
        ("low rank", low_rank, 1.0),
        (
            "condition 1e6",
            with_singular_values(&spectrum(m, 1e6), n, &schedule).0,
            1.0,
        ),
        (
            "condition 1e3",
            with_singular_values(&spectrum(m, 1e3), n, &schedule).0,
            1.25,
        ),
        (
            "half rank",
            times(&random(24, m * m / 2), &random(25, m / 2 * n), m, m / 2, n),
            1.25,
        ),
    ]
}

#[test]
fn auto_is_at_least_as_accurate_as_torch() {
    for (m, n) in [(128, 128), (128, 192), (128, 256), (128, 512)] {
        for (input, g, worse) in hard_inputs(m, n) {
            for name in [
                "keller",
                "quintic",
                "polar_express_1.01",
                "cans_1.01",
                "cubic5",
                "deepseekv4",
            ] {
                let options = options(name, Algorithm::Standard, Precision::Float64);
                let want = run(Isa::current(), &g, m, n, &options, 2);
                let torch = error(&torch_bf16(&g, m, n, &options.schedule), &want);
                for isa in Isa::supported() {
                    let options = Options {
                        algorithm: Algorithm::Auto,
                        precision: Precision::Auto,
                        ..options.clone()
                    };
                    let ours = error(&run(isa, &g, m, n, &options, 2), &want);
                    println!(
                        "{input} {name} {m}x{n} {}: {ours:.5}, torch {torch:.5}",
                        isa.name()
                    );
                    assert!(
                        ours <= torch * worse,
                        "{input} {name} {m}x{n} {isa:?}: {ours}, torch {torch}"
                    );
                }
            }
        }
    }
}

/// `cargo test --release --lib -- --ignored --nocapture times_of_shapes`
#[test]
#[ignore = "a measurement"]
fn times_of_shapes() {
    type Set = (&'static str, &'static [(usize, usize)], usize);
    let sets: [Set; 8] = [
        ("768x768 x12", &[(768, 768)], 12),
        ("768x2304 x12", &[(768, 2304)], 12),
        ("768x3072 x12", &[(768, 3072)], 12),
        ("3072x768 x12", &[(3072, 768)], 12),
        (
            "GPT-2 124M",
            &[(768, 2304), (768, 768), (768, 3072), (3072, 768)],
            12,
        ),
        ("2048x2048", &[(2048, 2048)], 1),
        ("256x512 x64", &[(256, 512)], 64),
        ("768x3072", &[(768, 3072)], 1),
    ];
    let threads = std::thread::available_parallelism().unwrap().get();
    for (name, shapes, count) in sets {
        let shapes: Vec<_> = shapes
            .iter()
            .copied()
            .cycle()
            .take(shapes.len() * count)
            .collect();
        let inputs: Vec<Vec<f32>> = shapes
            .iter()
            .enumerate()
            .map(|(i, (m, n))| noise(i as u64, m * n).into_iter().map(|v| v as f32).collect())
            .collect();
        let mut outputs = inputs.clone();
        for precision in [Precision::Float32, Precision::Auto] {
            let mut best = f64::MAX;
            let workspace = &mut Workspace::default();
            for _ in 0..4 {
                let mut operands: Vec<Operand<'_>> = inputs
                    .iter()
                    .zip(&mut outputs)
                    .zip(&shapes)
                    .map(|((g, o), &(rows, cols))| Operand {
                        input: Input::F32(g),
                        output: Numbers::F32(o),
                        rows,
                        cols,
                    })
                    .collect();
                let start = std::time::Instant::now();
                orthogonalize(
                    &mut operands,
                    &keller(Algorithm::Auto, precision),
                    workspace,
                    threads,
                )
                .unwrap();
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!("{name:14} {precision:?}: {:.1} ms", best * 1e3);
        }
    }
}
