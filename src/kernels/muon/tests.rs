use super::*;
use crate::kernels::orthogonal::{Precision, Schedule};

fn rule(schedule: Schedule) -> Muon {
    Muon {
        lr: 1.0,
        weight_decay: 0.0,
        cautious: false,
        momentum: Momentum {
            momentum: 0.0,
            nesterov: false,
            maximize: false,
        },
        orthogonal: Options {
            precision: Precision::Float64,
            ..Options::new(schedule)
        },
        adjust_lr: AdjustLr::None,
        row_beta: None,
        cosh: None,
        skip_zero_grad: false,
    }
}

/// The parameter after a step from `start`, as matrices that follow one another.
fn step(rule: Muon, start: f64, parts: Vec<Part>, grad: &[f64]) -> Vec<f64> {
    let (mut param, mut momentum) = (vec![start; grad.len()], vec![0.0; grad.len()]);
    let buffers = Buffers {
        dtype: Float::F64,
        len: grad.len(),
        param: param.as_mut_ptr().cast(),
        grad: grad.as_ptr().cast(),
        state: [State::float(momentum.as_mut_ptr().cast(), Float::F64)],
        rounding: Rounding::Nearest,
        compensation: std::ptr::null_mut(),
    };
    let parameter = Parameter {
        buffers,
        parts,
        row_moments: std::ptr::null_mut(),
    };
    // SAFETY: the vectors outlive the update, and nothing else uses them meanwhile.
    unsafe { Update::new(rule, vec![parameter]) }.run(2, &mut Workspace::default());
    param
}

#[test]
fn the_polynomial_of_the_singular_values_is_subtracted_from_each_matrix() {
    let (a, b, c) = (3.4445, -4.7750, 2.0315);
    let polynomial = |s: f64| a * s + b * s.powi(3) + c * s.powi(5);
    let schedule = Schedule::new(&[[a, b, c]], 1).unwrap();
    let matrices = vec![Part { rows: 2, cols: 2 }; 2];
    let grad = [3.0, 0.0, 0.0, 4.0, 0.0, 5.0, -12.0, 0.0];
    let param = step(rule(schedule), 0.0, matrices, &grad);
    let expected = [0.6, 0.0, 0.0, 0.8, 0.0, 5.0 / 13.0, -12.0 / 13.0, 0.0].map(|s| -polynomial(s));
    for (p, e) in param.iter().zip(expected) {
        assert!((p - e).abs() < 1e-12, "{param:?}");
    }
}

#[test]
fn the_learning_rate_follows_the_shape() {
    assert_eq!(AdjustLr::Original.factor(8, 2), 2.0);
    assert_eq!(AdjustLr::Original.factor(2, 8), 1.0);
    assert_eq!(AdjustLr::SpectralUnclamped.factor(2, 8), 0.5);
    assert!((AdjustLr::MatchRmsAdamw.factor(4, 16) - 0.8).abs() < 1e-15);
}

#[test]
fn a_matrix_without_gradient_is_left_alone_on_demand() {
    let schedule = Schedule::named("keller", None).unwrap();
    let parts = || vec![Part { rows: 1, cols: 2 }];
    let decaying = Muon {
        weight_decay: 0.5,
        ..rule(schedule)
    };
    assert_eq!(step(decaying.clone(), 1.0, parts(), &[0.0, 0.0]), [0.5, 0.5]);
    let skipping = Muon {
        skip_zero_grad: true,
        ..decaying
    };
    assert_eq!(step(skipping, 1.0, parts(), &[0.0, 0.0]), [1.0, 1.0]);
}
