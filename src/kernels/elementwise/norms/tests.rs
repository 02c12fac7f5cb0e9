use half::{bf16, f16};

use super::*;
use crate::kernels::elementwise::tests::{ADAMW, Number, numbers, one_at_a_time};
use crate::kernels::elementwise::tiles::TILE;
use crate::kernels::elementwise::{Hyperparameters, Updates, run};
use crate::kernels::storage::{Buffers, Rounding, State};

const LENS: [usize; 4] = [1, TILE + 17, 0, BLOCK + TILE + 77];

fn values<T: Number>(gradient: &[T]) -> Values {
    Values {
        dtype: T::DTYPE,
        len: gradient.len(),
        data: gradient.as_ptr().cast(),
    }
}

/// The norms of some tensors, on any number of threads and any instruction set.
fn found<T: Number>(gradients: &[Vec<T>], powers: Powers) -> Vec<NormSums> {
    let tensors: Vec<Values> = gradients.iter().map(|gradient| values(gradient)).collect();
    let mut first = None;
    for isa in Isa::supported() {
        isa.select();
        for threads in [1, 3] {
            // SAFETY: the vectors live.
            let found = unsafe { norms(&tensors, powers, threads) };
            assert_eq!(*first.get_or_insert(found.clone()), found, "{isa:?}, {threads}");
        }
    }
    first.unwrap()
}

fn check_definition<T: Number>() {
    let gradients = LENS.map(|len| -> Vec<T> { numbers(len, 3).into_iter().map(T::of).collect() });
    let both = found(&gradients, Powers::Both);
    for (gradient, [sizes, squares]) in gradients.iter().zip(&both) {
        let wide = || gradient.iter().map(|x| x.wide());
        let expected = [wide().map(f64::abs).sum::<f64>(), wide().map(|x| x * x).sum()];
        for (found, expected) in [sizes, squares].into_iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 1e-12 * expected,
                "{found}, expected {expected}"
            );
        }
    }
    let first = |of: &[NormSums]| of.iter().map(|own| own[0]).collect::<Vec<_>>();
    let second = |of: &[NormSums]| of.iter().map(|own| own[1]).collect::<Vec<_>>();
    assert_eq!(first(&both), first(&found(&gradients, Powers::Sizes)));
    assert_eq!(second(&both), second(&found(&gradients, Powers::Squares)));
}

#[test]
fn norms_are_those_of_the_definition() {
    let _turn = one_at_a_time();
    check_definition::<f64>();
    check_definition::<f32>();
    check_definition::<f16>();
    check_definition::<bf16>();
}

/// AdamW's parameter after a step on one gradient, measured or not.
fn stepped<P: Number, S: Number>(
    gradient: &[P],
    rounding: Rounding,
    powers: Option<Powers>,
) -> (Vec<P>, Vec<NormSums>) {
    let len = gradient.len();
    let mut param: Vec<P> = numbers(len, 1).into_iter().map(P::of).collect();
    let mut states = [vec![S::of(0.0); len], vec![S::of(0.0); len]];
    let buffers = Buffers {
        dtype: P::DTYPE,
        len,
        param: param.as_mut_ptr().cast(),
        grad_dtype: P::DTYPE,
        grad: gradient.as_ptr().cast(),
        state: states
            .each_mut()
            .map(|state| State::float(state.as_mut_ptr().cast(), S::DTYPE)),
        rounding,
        compensation: std::ptr::null_mut(),
    };
    let mut batch = Updates::with_capacity(1);
    // SAFETY: the vectors have `len` elements and outlive the batch.
    unsafe { batch.push(ADAMW.at_step(1.0), buffers) }.unwrap();
    let batches: [Box<dyn Work>; 1] = [Box::new(batch)];
    let left = match powers {
        Some(powers) => run_measured(&batches, powers, 3).1.remove(0),
        None => {
            run(&batches, 3);
            Vec::new()
        }
    };
    (param, left)
}

fn check_step<P: Number, S: Number>(rounding: Rounding) {
    for len in LENS {
        let gradient: Vec<P> = numbers(len, 2).into_iter().map(P::of).collect();
        for isa in Isa::supported() {
            isa.select();
            let (plain, _) = stepped::<P, S>(&gradient, rounding, None);
            for powers in [Powers::Sizes, Powers::Squares, Powers::Both] {
                let (measured, left) = stepped::<P, S>(&gradient, rounding, Some(powers));
                assert_eq!(measured, plain, "{isa:?}, {len}");
                // SAFETY: the gradient lives.
                assert_eq!(left, unsafe { norms(&[values(&gradient)], powers, 1) });
            }
        }
    }
}

#[test]
fn steps_leave_the_norms_of_a_pass_and_are_the_same() {
    let _turn = one_at_a_time();
    check_step::<f64, f64>(Rounding::Nearest);
    check_step::<f32, f32>(Rounding::Nearest);
    check_step::<f32, bf16>(Rounding::Nearest);
    check_step::<bf16, f32>(Rounding::Stochastic { stream: 5 });
    check_step::<f16, f16>(Rounding::Stochastic { stream: 5 });
}
