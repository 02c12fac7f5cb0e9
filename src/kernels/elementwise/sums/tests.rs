use half::bf16;

use super::*;
use crate::kernels::elementwise::Updates;
use crate::kernels::elementwise::tests::{Number, numbers, one_at_a_time};
use crate::kernels::storage::{BLOCK, Rounding, State};

/// Sums `(state / 2 + gradient)^2`, or that without the square.
#[derive(Clone, Copy)]
struct Half<const SQUARES: bool>;

impl<const SQUARES: bool> Rule<1> for Half<SQUARES> {
    const SUMMED: Option<Summed> = Some(if SQUARES { Summed::Squares } else { Summed::Terms });

    fn update<V: Vector>(&self, param: V, _: V, state: [V; 1]) -> (V, [V; 1]) {
        (param, state)
    }

    #[inline(always)]
    fn term<V: Vector>(&self, grad: V, [state]: [V; 1]) -> V {
        state * 0.5 + grad
    }
}

/// Sums numbers that are rounded.
#[derive(Clone, Copy)]
struct Third;

impl Rule<1> for Third {
    const SUMMED: Option<Summed> = Some(Summed::Terms);

    fn update<V: Vector>(&self, param: V, _: V, state: [V; 1]) -> (V, [V; 1]) {
        (param, state)
    }

    #[inline(always)]
    fn term<V: Vector>(&self, grad: V, _: [V; 1]) -> V {
        grad * (1.0 / 3.0)
    }
}

/// The sums of a rule over two tensors, with the gradient times 2.
fn sums<P: Number, S: Number, R: Rule<1>>(rule: R, lens: [usize; 2], threads: usize) -> Vec<f64> {
    let mut updates = Updates::with_capacity(2);
    let mut memory: Vec<(Vec<P>, Vec<S>)> = vec![];
    for len in lens {
        let grad = numbers(len, 1)
            .into_iter()
            .map(|x| P::of((x * 16.0).round()))
            .collect();
        let state = numbers(len, 2)
            .into_iter()
            .map(|x| S::of((x * 16.0).round()))
            .collect();
        memory.push((grad, state));
    }
    for (grad, state) in &mut memory {
        let buffers = Buffers {
            dtype: P::DTYPE,
            len: grad.len(),
            param: std::ptr::null_mut(),
            grad_dtype: P::DTYPE,
            grad: grad.as_ptr().cast(),
            state: [State::float(state.as_mut_ptr().cast(), S::DTYPE)],
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
        };
        // SAFETY: only the sums are asked for, which read the vectors, and these outlive the updates.
        unsafe { updates.push(rule, buffers) }.unwrap();
    }
    updates.scale(2.0);
    let updates: Box<dyn Work> = Box::new(updates);
    super::sums(&[updates], threads).remove(0)
}

/// Whole numbers are summed without rounding, in whatever order.
fn check<P: Number, S: Number>() {
    for lens in [
        [1, 0],
        [31, 33],
        [TILE + 1, BLOCK + 7],
        [0, 2 * BLOCK + TILE + 63],
    ] {
        for isa in Isa::supported() {
            isa.select();
            let expected = lens.map(|len| {
                let pairs = numbers(len, 1).into_iter().zip(numbers(len, 2));
                let terms = pairs.map(|(g, s)| (s * 16.0).round() * 0.5 + 2.0 * (g * 16.0).round());
                let terms: Vec<f64> = terms.collect();
                (
                    terms.iter().sum::<f64>(),
                    terms.iter().map(|x| x * x).sum::<f64>(),
                )
            });
            let [plain, squared] = [expected.map(|(x, _)| x), expected.map(|(_, x)| x)];
            assert_eq!(
                sums::<P, S, _>(Half::<false>, lens, 2),
                plain,
                "{isa:?}, {lens:?}"
            );
            assert_eq!(
                sums::<P, S, _>(Half::<true>, lens, 2),
                squared,
                "{isa:?}, {lens:?}"
            );
        }
    }
}

#[test]
fn sums_are_those_of_the_formula() {
    let _turn = one_at_a_time();
    check::<f64, f64>();
    check::<f32, f32>();
    check::<f32, bf16>();
    check::<bf16, bf16>();
    check::<bf16, f32>();
}

#[test]
fn neither_threads_nor_instruction_sets_change_a_bit() {
    let _turn = one_at_a_time();
    let of_thirds = |threads| sums::<f64, f64, _>(Third, [3 * BLOCK + 45, TILE + 1], threads);
    let mut all = vec![];
    for isa in Isa::supported() {
        isa.select();
        all.extend([1, 2, 3].map(of_thirds));
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
}
