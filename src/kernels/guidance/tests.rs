use half::{bf16, f16};

use super::*;
use crate::kernels::storage::Scalar;

fn plain(method: Method, scale: f64) -> Guidance {
    Guidance {
        method,
        scales: vec![scale],
        rescale: 0.0,
    }
}

fn apg(eta: f64, threshold: f64) -> Apg {
    Apg {
        eta,
        threshold,
        momentum: None,
        from_uncond: false,
    }
}

/// The outputs of `guidance` over one group for each row of the inputs.
fn guide<T: Copy + Default>(
    guidance: &Guidance,
    dtype: Float,
    inputs: &mut [Vec<T>],
    groups: usize,
    threads: usize,
) -> Vec<Vec<T>> {
    let mut outputs = vec![vec![T::default(); inputs[0].len()]; guidance.outputs()];
    let memory = Memory {
        dtype,
        groups,
        len: inputs[0].len() / groups,
        per_sample: 1,
        inputs: inputs.iter_mut().map(|input| input.as_mut_ptr().cast()).collect(),
        outputs: outputs
            .iter_mut()
            .map(|output| output.as_mut_ptr().cast())
            .collect(),
    };
    // SAFETY: vectors of one length, each of its own.
    unsafe { run(guidance, &memory, threads) };
    outputs
}

fn assert_close(result: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(result.len(), expected.len());
    for (a, b) in result.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance, "{result:?} is not {expected:?}");
    }
}

#[test]
fn the_oracles_of_the_specification_hold() {
    let pair = || [vec![3.0, 4.0], vec![1.0, 1.0]];
    for (method, expected) in [
        (apg(0.0, 0.0), [2.36, 4.48]),
        (apg(1.0, 0.0), [11.0, 16.0]),
        (apg(0.5, 0.0), [6.68, 10.24]),
        (apg(0.0, 1.0), [2.8225, 4.1331]),
    ] {
        let result = guide(&plain(Method::Apg(method), 5.0), Float::F64, &mut pair(), 1, 1);
        assert_close(&result[0], &expected, 5e-5);
    }
    let four = || [vec![1.0, 2.0, 3.0, 5.0], vec![0.5, 1.0, 1.5, 2.0]];
    let rescaled = Guidance {
        method: Method::Cfg,
        scales: vec![5.0],
        rescale: 0.7,
    };
    let result = guide(&rescaled, Float::F64, &mut four(), 1, 1);
    assert_close(&result[0], &[1.4957, 2.9913, 4.4870, 8.4755], 5e-5);
    let zero_star = plain(Method::ZeroStar, 5.0);
    let result = guide(&zero_star, Float::F64, &mut four(), 1, 1);
    assert_close(&result[0], &[0.4667, 0.9333, 1.4, 6.8667], 5e-5);
    // |d| / |u| = 5 / 10; where u is 0, nothing is added to c.
    let aware = plain(Method::MagnitudeAware { alpha: 2.0 }, 5.0);
    let mut inputs = [vec![9.0, 12.0, 1.0, 2.0], vec![6.0, 8.0, 0.0, 0.0]];
    let result = guide(&aware, Float::F64, &mut inputs, 2, 1);
    let damped = 4.0 * (-1.0_f64).exp();
    assert_close(
        &result[0],
        &[9.0 + 3.0 * damped, 12.0 + 4.0 * damped, 1.0, 2.0],
        1e-12,
    );
}

#[test]
fn each_sample_may_have_its_own_scale() {
    let weights = vec![0.5];
    for method in [
        Method::Cfg,
        Method::Apg(apg(0.2, 1.0)),
        Method::ZeroStar,
        Method::Tangential,
        Method::MagnitudeAware { alpha: 2.0 },
        Method::PerpNeg { weights },
    ] {
        let value = |i: usize, seed: usize| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1000.0 - 1.0;
        let with = |scales: Vec<f64>, threads: usize| {
            let guidance = Guidance {
                method: method.clone(),
                scales,
                rescale: 0.0,
            };
            let input = |seed| (0..60_000).map(|i| value(i, seed)).collect();
            let mut inputs: Vec<Vec<f64>> = (0..guidance.inputs()).map(input).collect();
            guide(&guidance, Float::F64, &mut inputs, 3, threads).remove(0)
        };
        let scales = [2.0, 5.0, -1.0];
        for threads in [1, 4] {
            let together = with(scales.to_vec(), threads);
            for (sample, scale) in scales.into_iter().enumerate() {
                let here = sample * 20_000..(sample + 1) * 20_000;
                let alone = with(vec![scale], threads);
                // Not to a bit: another test may choose another instruction set meanwhile.
                assert_close(&together[here.clone()], &alone[here], 1e-12);
            }
        }
    }
}

#[test]
fn constant_results_are_not_rescaled() {
    let guidance = Guidance {
        method: Method::Cfg,
        scales: vec![5.3],
        rescale: 0.7,
    };
    for len in [1, 3, 4097, 100_000] {
        let mut inputs = [vec![3.7; len], vec![1.1; len]];
        let result = guide(&guidance, Float::F64, &mut inputs, 1, 1);
        assert_close(&result[0], &vec![1.1 + 5.3 * 2.6; len], 1e-12);
    }
}

#[test]
fn the_momentum_is_kept() {
    let method = Apg {
        momentum: Some(-0.5),
        ..apg(0.0, 0.0)
    };
    let mut inputs = [vec![3.0, 4.0], vec![1.0, 1.0], vec![0.0, 0.0]];
    let first = guide(&plain(Method::Apg(method), 5.0), Float::F64, &mut inputs, 1, 1);
    assert_close(&first[0], &[2.36, 4.48], 1e-12);
    assert_close(&inputs[2], &[2.0, 3.0], 0.0);
    inputs[0] = vec![3.0, 3.0];
    let second = guide(&plain(Method::Apg(method), 5.0), Float::F64, &mut inputs, 1, 1);
    assert_close(&inputs[2], &[1.0, 0.5], 0.0);
    assert_close(&second[0], &[4.0, 2.0], 1e-12);
}

#[test]
fn a_projection_has_two_parts() {
    let mut inputs = [vec![3.0, 4.0], vec![1.0, 2.0]];
    let result = guide(&plain(Method::Project, 1.0), Float::F64, &mut inputs, 1, 1);
    assert_close(&result[0], &[33.0 / 25.0, 44.0 / 25.0], 1e-15);
    assert_close(&result[1], &[-8.0 / 25.0, 6.0 / 25.0], 1e-15);
}

#[test]
fn negatives_along_the_difference_change_nothing() {
    let method = Method::PerpNeg {
        weights: vec![0.5, 2.0],
    };
    // d = (2, 0); the first negative differs along d, the second across.
    let mut inputs = [vec![3.0, 1.0], vec![1.0, 1.0], vec![2.0, 1.0], vec![4.0, 2.0]];
    let result = guide(&plain(method, 3.0), Float::F64, &mut inputs, 1, 1);
    assert_close(&result[0], &[1.0 + 3.0 * 2.0, 1.0 - 3.0 * 2.0], 1e-15);
}

#[test]
fn neither_threads_nor_instruction_sets_with_fused_multiply_adds_change_a_bit() {
    let value = |i: usize, seed: usize| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1000.0 - 1.0;
    let momentum = Apg {
        momentum: Some(-0.75),
        ..apg(0.3, 2.5)
    };
    let guidances = [
        plain(Method::Cfg, 7.5),
        plain(Method::Apg(apg(0.0, 15.0)), 7.5),
        Guidance {
            method: Method::Apg(momentum),
            scales: vec![7.5, 3.0],
            rescale: 0.7,
        },
        plain(Method::Tangential, 3.0),
        plain(
            Method::PerpNeg {
                weights: vec![0.5; 4],
            },
            3.0,
        ),
        plain(Method::Project, 1.0),
    ];
    fn check<T: Scalar + Default>(
        guidance: &Guidance,
        dtype: Float,
        groups: usize,
        of: &dyn Fn(usize, usize) -> T,
    ) {
        let run = |threads| {
            let mut inputs: Vec<Vec<T>> = (0..guidance.inputs())
                .map(|seed| (0..groups * 30_011).map(|i| of(i, seed)).collect())
                .collect();
            let mut result = guide(guidance, dtype, &mut inputs, groups, threads);
            result.extend(inputs.into_iter().skip(2).take(1));
            result
                .into_iter()
                .map(|part| part.into_iter().map(|v| v.wide().to_bits()).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        let before = Isa::current();
        let mut with_and_without = [None, None];
        for isa in Isa::supported() {
            isa.select();
            let expected = &mut with_and_without[usize::from(isa == Isa::Portable)];
            for threads in [1, 2, 4] {
                let result = run(threads);
                assert_eq!(expected.get_or_insert_with(|| result.clone()), &result, "{isa:?}");
            }
        }
        before.select();
    }
    for guidance in &guidances {
        for groups in [1, 5] {
            check(guidance, Float::F64, groups, &value);
            check(guidance, Float::F32, groups, &|i, seed| value(i, seed) as f32);
            check(guidance, Float::F16, groups, &|i, seed| {
                f16::from_f64(value(i, seed))
            });
            check(guidance, Float::Bf16, groups, &|i, seed| {
                bf16::from_f64(value(i, seed))
            });
        }
    }
}
