use super::*;
use crate::kernels::storage::{Rounding, State};

fn step(rule: Auon, rows: usize, cols: usize, grad: &[f64], steps: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut param, mut momentum) = (vec![0.0; grad.len()], vec![0.0; grad.len()]);
    for _ in 0..steps {
        let buffers = Buffers {
            dtype: Float::F64,
            len: grad.len(),
            param: param.as_mut_ptr().cast(),
            grad: grad.as_ptr().cast(),
            state: [State::float(momentum.as_mut_ptr().cast(), Float::F64)],
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
        };
        let parameter = Parameter { buffers, rows, cols };
        // SAFETY: the vectors outlive the update, and nothing else uses them meanwhile.
        unsafe { Update::new(rule, vec![parameter]) }.run(2, &mut Workspace::default());
    }
    (param, momentum)
}

fn rule(variant: Variant) -> Auon {
    Auon {
        lr: 1.0,
        weight_decay: 0.0,
        direction: Direction::ITSELF,
        cosh: Cosh { gamma: 1.0, eps: 0.0 },
        eps: 0.0,
        variant,
        adjust_lr: AdjustLr::None,
    }
}

#[test]
fn the_update_is_the_gradient_by_its_norm_and_the_root_mean_square_of_the_cosine() {
    let grad = [3.0, 0.0, 0.0, 4.0];
    let unit = grad.map(|g| g / 5.0);
    let mean: f64 = unit.iter().map(|u: &f64| u.cosh().powi(2)).sum::<f64>() / 4.0;
    let direction = Direction {
        momentum: 0.0,
        ..Direction::ITSELF
    };
    let (param, momentum) = step(
        Auon {
            direction,
            ..rule(Variant::Paper)
        },
        2,
        2,
        &grad,
        1,
    );
    for ((p, u), (m, g)) in param.iter().zip(unit).zip(momentum.iter().zip(grad)) {
        assert!((p + u / mean.sqrt()).abs() < 1e-14);
        assert_eq!(*m, g);
    }
}

#[test]
fn the_learning_rate_follows_the_shape() {
    assert_eq!(AdjustLr::None.factor(8, 2), 1.0);
    assert_eq!(AdjustLr::Original.factor(8, 2), 2.0);
    assert_eq!(AdjustLr::Original.factor(2, 8), 1.0);
    assert!((AdjustLr::MatchRmsAdamw.factor(8, 2) - 0.8).abs() < 1e-15);
}

#[test]
fn empty_tensors_are_left_out() {
    assert_eq!(step(rule(Variant::Package), 0, 4, &[], 1), (vec![], vec![]));
}
