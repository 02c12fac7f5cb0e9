use std::sync::Arc;

use super::*;
use crate::kernels::orthogonal::{Options, Precision, Schedule};
use crate::kernels::storage::{Buffers, Float, Rounding, State};

fn rule(transforms: Vec<Arc<dyn Transform>>) -> MatrixRule {
    MatrixRule {
        momentum: Momentum {
            momentum: 0.0,
            nesterov: false,
            maximize: false,
            scale: 1.0,
        },
        transforms: Chain::new(transforms).unwrap(),
        apply: Apply {
            lr: 1.0,
            weight_decay: 0.0,
            cautious: false,
            adjust_lr: AdjustLr::None,
        },
        skip_zero_grad: false,
        only_moves: false,
    }
}

fn orthogonalize(schedule: Schedule) -> Arc<dyn Transform> {
    Arc::new(Orthogonalize(Options {
        precision: Precision::Float64,
        ..Options::new(schedule)
    }))
}

fn divide_by_cosh() -> Arc<dyn Transform> {
    Arc::new(DivideByCosh {
        gamma: 1.0,
        rms_eps: 0.0,
        of_normalized: false,
        eps: 0.0,
    })
}

/// The parameter after a step from `start`, as matrices that follow one another, and the momentum.
fn step(rule: MatrixRule, start: f64, parts: Vec<Part>, grad: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut param, mut momentum) = (vec![start; grad.len()], vec![0.0; grad.len()]);
    let buffers = Buffers {
        dtype: Float::F64,
        len: grad.len(),
        param: param.as_mut_ptr().cast(),
        grad_dtype: Float::F64,
        grad: grad.as_ptr().cast(),
        state: [State::float(momentum.as_mut_ptr().cast(), Float::F64)],
        rounding: Rounding::Nearest,
        compensation: std::ptr::null_mut(),
    };
    let parameter = Parameter {
        buffers,
        parts,
        row_states: Vec::new(),
    };
    // SAFETY: the vectors outlive the step, and nothing else uses them meanwhile.
    unsafe { Step::new(rule, vec![parameter]) }.run(2, &mut Workspace::default());
    (param, momentum)
}

#[test]
fn the_polynomial_of_the_singular_values_is_subtracted_from_each_matrix() {
    let (a, b, c) = (3.4445, -4.7750, 2.0315);
    let polynomial = |s: f64| a * s + b * s.powi(3) + c * s.powi(5);
    let muon = rule(vec![orthogonalize(Schedule::new(&[[a, b, c]], 1).unwrap())]);
    let matrices = vec![Part { rows: 2, cols: 2 }; 2];
    let grad = [3.0, 0.0, 0.0, 4.0, 0.0, 5.0, -12.0, 0.0];
    let (param, _) = step(muon, 0.0, matrices, &grad);
    let expected = [0.6, 0.0, 0.0, 0.8, 0.0, 5.0 / 13.0, -12.0 / 13.0, 0.0].map(|s| -polynomial(s));
    for (p, e) in param.iter().zip(expected) {
        assert!((p - e).abs() < 1e-12, "{param:?}");
    }
}

#[test]
fn the_update_is_the_gradient_by_its_norm_and_the_root_mean_square_of_the_cosine() {
    let grad = [3.0, 0.0, 0.0, 4.0];
    let unit = grad.map(|g| g / 5.0);
    let mean: f64 = unit.iter().map(|u: &f64| u.cosh().powi(2)).sum::<f64>() / 4.0;
    let auon = rule(vec![Arc::new(Normalize { eps: 0.0 }), divide_by_cosh()]);
    let (param, momentum) = step(auon, 0.0, vec![Part { rows: 2, cols: 2 }], &grad);
    for ((p, u), (m, g)) in param.iter().zip(unit).zip(momentum.iter().zip(grad)) {
        assert!((p + u / mean.sqrt()).abs() < 1e-14);
        assert_eq!(*m, g);
    }
}

#[test]
fn a_factor_is_the_same_of_a_direction_that_is_written_out() {
    let grad: Vec<f64> = (0..15).map(|i| f64::from(i) - 6.0).collect();
    let parts = || vec![Part { rows: 3, cols: 5 }];
    // One step of 1, 0, 0 leaves the matrix as it is but for its norm.
    let unchanged = || orthogonalize(Schedule::new(&[[1.0, 0.0, 0.0]], 1).unwrap());
    let normalize = || Arc::new(Normalize { eps: 0.0 });
    let (implied, _) = step(rule(vec![normalize(), divide_by_cosh()]), 0.0, parts(), &grad);
    let written = rule(vec![unchanged(), normalize(), divide_by_cosh()]);
    let (written, _) = step(written, 0.0, parts(), &grad);
    for (one, other) in implied.iter().zip(written) {
        assert!((one - other).abs() < 1e-15);
    }
}

#[test]
fn transforms_that_write_come_before_those_that_give_a_factor() {
    let orthogonalize = || orthogonalize(Schedule::named("keller", None).unwrap());
    let misplaced = Chain::new(vec![orthogonalize(), divide_by_cosh(), orthogonalize()]);
    assert_eq!(misplaced.err(), Some(WritesAfterFactor { index: 2 }));
}

#[test]
fn the_learning_rate_follows_the_shape() {
    assert_eq!(AdjustLr::None.factor(8, 2, 1.0), 1.0);
    assert_eq!(AdjustLr::Original.factor(8, 2, 1.0), 2.0);
    assert_eq!(AdjustLr::Original.factor(2, 8, 1.0), 1.0);
    assert_eq!(AdjustLr::SpectralUnclamped.factor(2, 8, 1.0), 0.5);
    assert!((AdjustLr::MatchRmsAdamw.factor(4, 16, 4.0) - 0.8).abs() < 1e-15);
    assert!((AdjustLr::MatchRmsAdamw.factor(8, 2, 1.0) - 0.8).abs() < 1e-15);
}

#[test]
fn a_matrix_without_gradient_is_left_alone_on_demand() {
    let parts = || vec![Part { rows: 1, cols: 2 }];
    let mut muon = rule(vec![orthogonalize(Schedule::named("keller", None).unwrap())]);
    muon.apply.weight_decay = 0.5;
    assert_eq!(step(muon.clone(), 1.0, parts(), &[0.0, 0.0]).0, [0.5, 0.5]);
    muon.skip_zero_grad = true;
    assert_eq!(step(muon, 1.0, parts(), &[0.0, 0.0]).0, [1.0, 1.0]);
}

#[test]
fn empty_matrices_are_left_out() {
    let auon = rule(vec![Arc::new(Normalize { eps: 0.0 })]);
    assert_eq!(
        step(auon, 0.0, vec![Part { rows: 0, cols: 4 }], &[]),
        (vec![], vec![])
    );
}
