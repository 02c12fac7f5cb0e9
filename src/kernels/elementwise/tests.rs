//! The engine with every rule: against the formulas in f64, and the same bits however the work is done.

use std::sync::{Mutex, MutexGuard};

use half::{bf16, f16};

use super::*;
use crate::kernels::storage::{Float, State};
use crate::runtime::Isa;

/// The instruction set is global; tests that switch it take turns.
static ISA: Mutex<()> = Mutex::new(());

pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    ISA.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub const ADAMW: adamw::AdamW = adamw::AdamW {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
    decoupled_weight_decay: true,
    maximize: false,
};

const LION: lion::Lion = lion::Lion {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.99,
    weight_decay: 0.1,
    maximize: false,
};

/// Numbers between -1 and 1.
pub fn numbers(count: usize, seed: u64) -> Vec<f64> {
    (0..count as u64)
        .map(|i| (Noise::key(seed, i) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0)
        .collect()
}

/// A stored element.
pub trait Number: Copy + PartialEq + std::fmt::Debug {
    const DTYPE: Float;
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
}

macro_rules! number {
    ($type:ty, $dtype:ident, $of:expr, $wide:expr) => {
        impl Number for $type {
            const DTYPE: Float = Float::$dtype;
            fn of(x: f64) -> Self {
                $of(x)
            }
            fn wide(self) -> f64 {
                $wide(self)
            }
        }
    };
}
number!(f64, F64, |x| x, |x| x);
number!(f32, F32, |x| x as f32, f64::from);
// By way of f32: `from_f64` looks at the upper half of the bits only, and takes numbers that are nearly ties for ties.
number!(f16, F16, |x| f16::from_f32(x as f32), f16::to_f64);
number!(bf16, Bf16, |x| bf16::from_f32(x as f32), bf16::to_f64);

/// A parameter with gradient, state and compensation.
#[derive(Clone, Debug, PartialEq)]
struct Tensor<P, S, const N: usize, G = P, C = P> {
    param: Vec<P>,
    grad: Vec<G>,
    state: [Vec<S>; N],
    compensation: Vec<C>,
}

impl<P: Number, S: Number, G: Number, C: Number, const N: usize> Tensor<P, S, N, G, C> {
    fn new(len: usize) -> Self {
        Tensor {
            param: numbers(len, 1).into_iter().map(P::of).collect(),
            grad: numbers(len, 2).into_iter().map(G::of).collect(),
            state: std::array::from_fn(|_| vec![S::of(0.0); len]),
            compensation: vec![C::of(0.0); len],
        }
    }

    /// Five steps.
    fn train(mut self, hyper: &impl Hyperparameters<N>, rounding: Rounding, threads: usize) -> Self {
        for step in 1..=5 {
            let mut batch = Updates::with_capacity(1);
            let buffers = Buffers {
                dtype: P::DTYPE,
                len: self.param.len(),
                param: self.param.as_mut_ptr().cast(),
                grad_dtype: G::DTYPE,
                grad: self.grad.as_ptr().cast(),
                state: std::array::from_fn(|k| State::float(self.state[k].as_mut_ptr().cast(), S::DTYPE)),
                rounding: rounding.at(0, step as u64),
                compensation: self.compensation.as_mut_ptr().cast(),
            };
            // SAFETY: the vectors have `len` elements and outlive the batch.
            unsafe { batch.push(hyper.at_step(f64::from(step)), buffers) }.unwrap();
            run(&[Box::new(batch)], threads);
        }
        self
    }
}

/// AdamW and Lion as the papers write them, on one element.
fn adamw_formula(mut p: f64, g: f64) -> f64 {
    let (mut m, mut v) = (0.0, 0.0);
    for t in 1..=5 {
        p *= 1.0 - ADAMW.lr * ADAMW.weight_decay;
        m = ADAMW.beta1 * m + (1.0 - ADAMW.beta1) * g;
        v = ADAMW.beta2 * v + (1.0 - ADAMW.beta2) * g * g;
        let (m_hat, v_hat) = (m / (1.0 - ADAMW.beta1.powi(t)), v / (1.0 - ADAMW.beta2.powi(t)));
        p -= ADAMW.lr * m_hat / (v_hat.sqrt() + ADAMW.eps);
    }
    p
}

fn lion_formula(mut p: f64, g: f64) -> f64 {
    let mut m = 0.0;
    for _ in 1..=5 {
        let u: f64 = LION.beta1 * m + (1.0 - LION.beta1) * g;
        p = p * (1.0 - LION.lr * LION.weight_decay) - LION.lr * if u == 0.0 { 0.0 } else { u.signum() };
        m = LION.beta2 * m + (1.0 - LION.beta2) * g;
    }
    p
}

/// Trains on every instruction set, compares with the formula within `tolerance`, and the sets with one another.
fn check<P: Number, S: Number, const N: usize>(
    hyper: &impl Hyperparameters<N>,
    rounding: Rounding,
    formula: fn(f64, f64) -> f64,
    tolerance: f64,
) {
    for len in (1..40).chain([BLOCK - 1, BLOCK, 2 * BLOCK + 5]) {
        let before = Tensor::<P, S, N>::new(len);
        let mut results = Vec::new();
        for isa in Isa::supported() {
            isa.select();
            let after = before.clone().train(hyper, rounding, 1);
            for i in 0..len {
                let kept = if rounding == Rounding::Kahan {
                    after.compensation[i].wide()
                } else {
                    0.0
                };
                let (got, expected) = (
                    after.param[i].wide() + kept,
                    formula(before.param[i].wide(), before.grad[i].wide()),
                );
                assert!(
                    (got - expected).abs() <= tolerance,
                    "{isa:?}, {rounding:?}, element {i} of {len}: {got} instead of {expected}"
                );
            }
            results.push(after);
        }
        assert!(
            results.windows(2).all(|pair| pair[0] == pair[1]),
            "instruction sets differ at length {len}"
        );
    }
}

#[test]
fn adamw_follows_its_formula() {
    let _turn = one_at_a_time();
    check::<f64, f64, 2>(&ADAMW, Rounding::Nearest, adamw_formula, 1e-14);
    check::<f32, f32, 2>(&ADAMW, Rounding::Nearest, adamw_formula, 1e-6);
    check::<f32, bf16, 2>(&ADAMW, Rounding::Nearest, adamw_formula, 1e-3);
    // Five roundings of numbers up to one.
    check::<bf16, f32, 2>(&ADAMW, Rounding::Nearest, adamw_formula, 5.0 / 512.0);
    check::<bf16, bf16, 2>(&ADAMW, Rounding::Kahan, adamw_formula, 1e-3);
    check::<bf16, f32, 2>(
        &ADAMW,
        Rounding::Stochastic { stream: 1 },
        adamw_formula,
        5.0 / 128.0,
    );
    check::<f16, f32, 2>(&ADAMW, Rounding::Nearest, adamw_formula, 5.0 / 4096.0);
    check::<f16, f32, 2>(&ADAMW, Rounding::Kahan, adamw_formula, 1e-6);
    check::<f16, f32, 2>(
        &ADAMW,
        Rounding::Stochastic { stream: 1 },
        adamw_formula,
        5.0 / 1024.0,
    );
}

#[test]
fn lion_follows_its_formula() {
    let _turn = one_at_a_time();
    check::<f64, f64, 1>(&LION, Rounding::Nearest, lion_formula, 1e-14);
    check::<f32, f32, 1>(&LION, Rounding::Nearest, lion_formula, 1e-6);
    check::<bf16, f32, 1>(&LION, Rounding::Nearest, lion_formula, 5.0 / 512.0);
    check::<bf16, bf16, 1>(&LION, Rounding::Kahan, lion_formula, 1e-4);
}

#[test]
fn amsgrad_keeps_the_greatest_second_moment() {
    let _turn = one_at_a_time();
    let mut tensor = Tensor::<f64, f64, 3>::new(20).train(&adamw::AmsGrad(ADAMW), Rounding::Nearest, 1);
    let before = tensor.state[2].clone();
    tensor.grad.fill(0.0); // now the second moment falls
    let after = tensor.train(&adamw::AmsGrad(ADAMW), Rounding::Nearest, 1);
    assert_eq!(after.state[2], before);
    assert!(after.state[1].iter().zip(&before).all(|(v, max)| v < max));
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let _turn = one_at_a_time();
    for rounding in [
        Rounding::Nearest,
        Rounding::Kahan,
        Rounding::Stochastic { stream: 9 },
    ] {
        let before = Tensor::<bf16, f32, 2>::new(7 * BLOCK + 3);
        let alone = before.clone().train(&ADAMW, rounding, 1);
        for threads in [2, 3, 4, 7] {
            assert!(
                before.clone().train(&ADAMW, rounding, threads) == alone,
                "{rounding:?}, {threads} threads"
            );
        }
    }
}

/// Trains bf16 parameters in two halves beside the same ones in f32: parameter, state and rest have the very bits.
fn check_split<S: Number, const N: usize>(hyper: &impl Hyperparameters<N>) {
    for isa in Isa::supported() {
        isa.select();
        for len in [1, 17, BLOCK + 3] {
            let mut halves = Tensor::<bf16, S, N>::new(len);
            // A zero, the greatest number, an infinity and a NaN, as far as there is room.
            let special = [0.0, f64::from(bf16::MAX), f64::NEG_INFINITY, f64::NAN];
            for (param, special) in halves.param.iter_mut().skip(1).zip(special) {
                *param = bf16::from_f64(special);
            }
            let mut whole = Tensor::<f32, S, N>::new(len);
            whole.param = halves.param.iter().map(|x| x.to_f32()).collect();
            for round in 0..20 {
                halves.grad = numbers(len, 2 + round).into_iter().map(bf16::of).collect();
                whole.grad = halves.grad.iter().map(|x| x.to_f32()).collect();
                halves = halves.train(hyper, Rounding::Split, 2);
                whole = whole.train(hyper, Rounding::Nearest, 1);
            }
            for i in 0..len {
                let (nearest, rest) = (halves.param[i].to_bits(), halves.compensation[i].to_bits());
                let expected = match whole.param[i] {
                    x if x.is_nan() => (0x7fc0, 0),
                    x => (((x.to_bits() + 0x8000) >> 16) as u16, x.to_bits() as u16),
                };
                assert_eq!((nearest, rest), expected, "{isa:?}, element {i} of {len}");
                for (own, other) in halves.state.iter().zip(&whole.state) {
                    let (own, other) = (own[i].wide(), other[i].wide());
                    assert!(
                        own == other || own.is_nan() && other.is_nan(),
                        "{isa:?}, {i} of {len}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_split_parameter_is_an_f32_in_two_halves() {
    let _turn = one_at_a_time();
    let sophia = sophia::Sophia {
        lr: 1e-5,
        beta1: 0.9,
        weight_decay: 0.1,
        scale: 0.01,
        eps: 1e-12,
        add_eps: false,
        maximize: false,
    };
    // Steps that are lost to the nearest bf16.
    let adamw = adamw::AdamW { lr: 1e-6, ..ADAMW };
    check_split::<f32, 2>(&adamw);
    check_split::<bf16, 2>(&adamw);
    check_split::<bf16, 3>(&adamw::AmsGrad(adamw));
    check_split::<f32, 1>(&lion::Lion { lr: 1e-6, ..LION });
    check_split::<bf16, 1>(&LION);
    check_split::<f32, 2>(&sophia);
}

/// Trains with gradients of type `G` beside the same numbers in the parameter's type: all has the same bits.
fn check_gradients<P: Number, S: Number, G: Number>(rounding: Rounding) {
    for isa in Isa::supported() {
        isa.select();
        for len in [1, 17, 63, BLOCK + 3] {
            let mut own = Tensor::<P, S, 2>::new(len);
            // Sixteenths are the same in all types.
            own.grad = numbers(len, 2)
                .into_iter()
                .map(|x| P::of((x * 16.0).round() / 16.0))
                .collect();
            let mut other = Tensor::<P, S, 2, G>::new(len);
            other.grad = own.grad.iter().map(|&x| G::of(x.wide())).collect();
            let own = own.train(&ADAMW, rounding, 1);
            let other = other.train(&ADAMW, rounding, 2);
            assert!(
                own.param == other.param && own.state == other.state,
                "{isa:?}, {len}"
            );
            assert!(own.compensation == other.compensation, "{isa:?}, {len}");
        }
    }
}

#[test]
fn gradients_of_another_type_are_widened() {
    let _turn = one_at_a_time();
    check_gradients::<f32, f32, bf16>(Rounding::Nearest);
    check_gradients::<f32, f32, f16>(Rounding::Nearest);
    check_gradients::<f32, bf16, bf16>(Rounding::Nearest);
    // Elements in pairs of even and odd ones.
    check_gradients::<bf16, bf16, f32>(Rounding::Kahan);
    check_gradients::<bf16, bf16, f16>(Rounding::Stochastic { stream: 3 });
    check_gradients::<f16, f32, bf16>(Rounding::Nearest);
}

/// Trains 16-bit parameters that have masters beside these masters as f32 parameters.
fn check_master<P: Number, S: Number, const N: usize>(hyper: &impl Hyperparameters<N>) {
    for isa in Isa::supported() {
        isa.select();
        for len in [1, 17, BLOCK + 3] {
            let mut rounded = Tensor::<P, S, N, P, f32>::new(len);
            rounded.compensation = rounded.param.iter().map(|x| x.wide() as f32).collect();
            let mut whole = Tensor::<f32, S, N, P>::new(len);
            whole.param.clone_from(&rounded.compensation);
            for written in [-1.0, 0.0, 0.5, f64::INFINITY, 1.0] {
                rounded = rounded.train(hyper, Rounding::Master, 2);
                whole = whole.train(hyper, Rounding::Nearest, 1);
                assert!(
                    rounded.compensation == whole.param && rounded.state == whole.state,
                    "{isa:?}, {len}"
                );
                for (p, &master) in rounded.param.iter().zip(&whole.param) {
                    assert_eq!(*p, P::of(master.into()), "{isa:?}, {len}");
                }
                // What someone writes stands.
                (rounded.param[0], whole.param[0]) = (P::of(written), written as f32);
            }
        }
    }
}

#[test]
fn a_parameter_with_a_master_is_that_rounded() {
    let _turn = one_at_a_time();
    let adamw = adamw::AdamW { lr: 1e-6, ..ADAMW };
    check_master::<bf16, f32, 2>(&adamw);
    check_master::<bf16, bf16, 2>(&ADAMW);
    check_master::<bf16, f32, 1>(&LION);
    check_master::<f16, f32, 2>(&adamw);
    check_master::<f16, bf16, 1>(&LION);
}

#[test]
fn combinations_without_a_kernel_are_refused() {
    for (param, state, rounding) in [
        (Float::F64, Float::F32, Rounding::Nearest),
        (Float::F32, Float::F16, Rounding::Nearest),
        (Float::F32, Float::F32, Rounding::Split),
        (Float::F32, Float::F32, Rounding::Master),
        (Float::F16, Float::F32, Rounding::Split),
        (Float::F16, Float::F16, Rounding::Split),
        (Float::F16, Float::Bf16, Rounding::Split),
    ] {
        assert!(
            kernel::<lion::Lion, 1>(param, state, rounding).is_err(),
            "{param:?}, {state:?}"
        );
    }
}

#[test]
fn nan_and_infinity_are_found_wherever_they_are() {
    let finite = |values: &[f32], threads| {
        let tensor = Values {
            dtype: Float::F32,
            len: values.len(),
            data: values.as_ptr().cast(),
        };
        // SAFETY: the slice is alive.
        unsafe { all_finite(&[tensor, tensor], threads) }
    };
    let mut values = vec![f32::MAX; 2 * BLOCK + 10];
    assert!(finite(&values, 1) && finite(&values, 2) && finite(&[], 2));
    for index in [0, BLOCK - 1, BLOCK, 2 * BLOCK + 9] {
        for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[index] = special;
            assert!(!finite(&values, 2), "{special} at {index}");
        }
        values[index] = f32::MIN_POSITIVE;
    }
    let halves = [f16::MAX, f16::INFINITY];
    let tensor = |len| Values {
        dtype: Float::F16,
        len,
        data: halves.as_ptr().cast(),
    };
    // SAFETY: the array is alive.
    assert!(unsafe { all_finite(&[tensor(1)], 1) && !all_finite(&[tensor(2)], 1) });
}
