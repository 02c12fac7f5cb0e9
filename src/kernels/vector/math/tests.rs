//! Every function on every instruction set: the same bits, special values, and the error in units in the last place,
//! for f32 against f64's functions and for f64 against twice its digits.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::*;
use crate::kernels::vector::{
    Arch, Arithmetic, EvenOdd, Halves, InF32, InF64, MAX_LANES, Routine, Stored, dispatch,
};
use crate::runtime::Isa;
use twice::{Scaled, Twice};

mod pow;
mod twice;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Exp,
    TimesExp,
    TimesExpm1,
    Log,
    Log1p,
    Tanh,
    Sigmoid,
}

use Function::*;

/// The bounds on the error, of f32 and of f64: somewhat above the module's table.
const BOUNDS: [(Function, f64, f64); 7] = [
    (Exp, 0.75, 0.75),
    (TimesExp, 1.5, 1.5),
    (TimesExpm1, 3.6, 3.6),
    (Log, 0.8, 0.8),
    (Log1p, 0.85, 0.85),
    (Tanh, 0.85, 0.85),
    (Sigmoid, 0.85, 0.85),
];

/// What [`times_exp`] and [`times_expm1`] are tried with: the product with a power of e is rounded once more.
const FACTOR: f64 = 1.375;

#[inline(always)]
fn factor_times_exp<V: Vector>(x: V) -> V {
    times_exp(V::splat(FACTOR), x)
}

#[inline(always)]
fn factor_times_expm1<V: Vector>(x: V) -> V {
    times_expm1(V::splat(FACTOR), x)
}

/// Replaces values by a function of them. No function of its own: another one's call, handed in, is not inlined.
macro_rules! each {
    ($function:ident, $values:expr, $arch:ty, $arithmetic:ty) => {
        for values in $values.chunks_exact_mut(<$arithmetic>::Vector::<$arch>::LANES) {
            let at = values.as_mut_ptr();
            // SAFETY: the chunk is a whole vector.
            unsafe { T::store::<$arch>($function(T::load::<$arch>(at)), at) }
        }
    };
}

/// A function of all values, whole vectors of them, in arithmetic `F`.
struct Map<'a, F, T> {
    function: Function,
    values: &'a mut [T],
    arithmetic: PhantomData<F>,
}

impl<F: Arithmetic, T: Stored<F>> Routine for Map<'_, F, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        match self.function {
            Exp => each!(exp, self.values, A, F),
            TimesExp => each!(factor_times_exp, self.values, A, F),
            TimesExpm1 => each!(factor_times_expm1, self.values, A, F),
            Log => each!(log, self.values, A, F),
            Log1p => each!(log1p, self.values, A, F),
            Tanh => each!(tanh, self.values, A, F),
            Sigmoid => each!(sigmoid, self.values, A, F),
        }
    }
}

fn map<F: Arithmetic, T: Stored<F>>(isa: Isa, function: Function, values: &[T]) -> Vec<T> {
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(MAX_LANES), T::default());
    let map = Map::<F, T> {
        function,
        values: &mut padded,
        arithmetic: PhantomData,
    };
    dispatch(isa, map);
    padded.truncate(values.len());
    padded
}

/// The results of the best instruction set, which are those of all others.
fn map_on_every_isa<F: Arithmetic, T: Stored<F> + Into<f64>>(function: Function, values: &[T]) -> Vec<T> {
    let bits = |x: T| match x.into() {
        x if x.is_nan() => u64::MAX,
        x => x.to_bits(),
    };
    let mut results = Isa::supported()
        .into_iter()
        .map(|isa| (isa, map::<F, T>(isa, function, values)));
    let (_, first) = results.next().unwrap();
    for (isa, others) in results {
        for (i, (&one, &other)) in first.iter().zip(&others).enumerate() {
            let x: f64 = values[i].into();
            assert_eq!(bits(one), bits(other), "{isa:?}: {function:?} of {x:e}");
        }
    }
    first
}

impl Function {
    fn in_f64(self, x: f64) -> f64 {
        match self {
            Exp => x.exp(),
            TimesExp => (x + FACTOR.ln()).exp(),
            TimesExpm1 => FACTOR * x.exp_m1(),
            Log => x.ln(),
            Log1p => x.ln_1p(),
            Tanh => x.tanh(),
            Sigmoid if x < 0.0 => x.exp() / (1.0 + x.exp()),
            Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }

    /// Where the result is neither NaN, nor infinite, nor 0.
    fn in_twice(self, x: f64) -> Scaled {
        match self {
            Exp => twice::exp(x),
            TimesExp => twice::exp(x).times(FACTOR),
            TimesExpm1 => twice::expm1(x).times(FACTOR),
            Log => Scaled::from(twice::log(x)),
            Log1p => Scaled::from(twice::log1p(x)),
            Tanh => Scaled::from(twice::tanh(x)),
            Sigmoid => twice::sigmoid(x),
        }
    }
}

/// The power of 2 that is not greater; 0 below the normal numbers.
fn power_below(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & f64::INFINITY.to_bits())
}

/// How far `result` is from `exact`, in units in the last place of a format.
fn ulps_of_f32(result: f32, exact: f64) -> f64 {
    let power = power_below(exact).max(f32::MIN_POSITIVE.into());
    (f64::from(result) - exact).abs() / (power * f64::from(f32::EPSILON))
}

fn ulps_of_f64(result: f64, exact: Scaled) -> f64 {
    let difference = Twice::from(exact.unscaled(result)) - exact.value;
    let power = power_below(result).max(f64::MIN_POSITIVE);
    difference.leading().abs() / (exact.unscaled(power) * f64::EPSILON)
}

/// The greatest error over the inputs, with where it is. Results that f32 has exactly (NaN, infinite, 0) are to be so.
fn worst_of_f32(function: Function, inputs: &[f32]) -> (f64, f32) {
    let mut worst = (0.0, 0.0);
    for (&x, result) in inputs
        .iter()
        .zip(map_on_every_isa::<InF32<Halves>, f32>(function, inputs))
    {
        let exact = function.in_f64(x.into());
        if exact.is_nan() || (exact as f32).is_infinite() || exact == 0.0 {
            assert!(
                result == exact as f32 || result.is_nan() && exact.is_nan(),
                "{function:?} of {x:e} is {result:e}, not {exact:e}"
            );
            continue;
        }
        let error = ulps_of_f32(result, exact);
        if error.is_nan() || error > worst.0 {
            worst = (error, x);
        }
    }
    worst
}

#[test]
fn f32_functions_are_within_their_bounds() {
    let inputs: Vec<f32> = (0..=u32::MAX).step_by(1999).map(f32::from_bits).collect();
    for (function, bound, _) in BOUNDS {
        let (error, at) = worst_of_f32(function, &inputs);
        println!("{function:?}: {error:.3} ULP at {at:e}");
        assert!(error <= bound, "{function:?}: {error:.3} ULP at {at:e}");
    }
}

fn check_every_f32(of: Function) {
    const PART: u64 = 1 << 22;
    let bound = BOUNDS
        .into_iter()
        .find(|(function, ..)| *function == of)
        .unwrap()
        .1;
    let mut worst = (0.0, 0.0);
    for start in (0..1 << 32).step_by(PART as usize) {
        let inputs: Vec<f32> = (start..start + PART)
            .map(|bits| f32::from_bits(bits as u32))
            .collect();
        let found = worst_of_f32(of, &inputs);
        if found.0.is_nan() || found.0 > worst.0 {
            worst = found;
        }
    }
    println!("{of:?}: {:.3} ULP at {:e}", worst.0, worst.1);
    assert!(worst.0 <= bound, "{of:?}: {:.3} ULP at {:e}", worst.0, worst.1);
}

macro_rules! check_every_f32 {
    ($($name:ident: $function:ident),*) => { $(
        #[test]
        #[ignore = "takes minutes"]
        fn $name() {
            check_every_f32($function);
        }
    )* };
}
check_every_f32!(
    exp_of_every_f32: Exp,
    times_exp_of_every_f32: TimesExp,
    times_expm1_of_every_f32: TimesExpm1,
    log_of_every_f32: Log,
    log1p_of_every_f32: Log1p,
    tanh_of_every_f32: Tanh,
    sigmoid_of_every_f32: Sigmoid
);

/// Spread over all exponents, and over where functions do something.
fn f64_inputs() -> Vec<f64> {
    let numbers = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let spread = (1..100_000).map(|i| f64::from_bits(numbers(i)));
    let unit = |i: u64| (numbers(i) >> 11) as f64 / (1_u64 << 53) as f64;
    let within = (1..100_000).flat_map(|i| {
        [
            2.0 * unit(i) - 1.0,
            80.0 * unit(i) - 40.0,
            1500.0 * unit(i) - 750.0,
            1.0 + unit(i) / 64.0,
            0.5 + unit(i),
        ]
    });
    spread.chain(within).filter(|x| !x.is_nan()).collect()
}

#[test]
fn f64_functions_are_within_their_bounds() {
    let inputs = f64_inputs();
    for (function, _, bound) in BOUNDS {
        let mut worst = (0.0, 0.0);
        for (&x, result) in inputs
            .iter()
            .zip(map_on_every_isa::<InF64, f64>(function, &inputs))
        {
            let near = function.in_f64(x);
            if !near.is_finite() || near == 0.0 {
                assert!(
                    result == near || result.is_nan() && near.is_nan(),
                    "{function:?} of {x:e} is {result:e}, not {near:e}"
                );
                continue;
            }
            let error = ulps_of_f64(result, function.in_twice(x));
            if error.is_nan() || error > worst.0 {
                worst = (error, x);
            }
        }
        let (error, at) = worst;
        println!("{function:?}: {error:.3} ULP at {at:e}");
        assert!(error <= bound, "{function:?}: {error:.3} ULP at {at:e}");
    }
}

const INFINITE: f64 = f64::INFINITY;

/// What comes of what.
const SPECIAL: [(Function, &[(f64, f64)]); 7] = [
    (
        Exp,
        &[
            (0.0, 1.0),
            (-0.0, 1.0),
            (INFINITE, INFINITE),
            (-INFINITE, 0.0),
            (1e30, INFINITE),
            (-1e30, 0.0),
        ],
    ),
    (
        TimesExp,
        &[
            (0.0, FACTOR),
            (-0.0, FACTOR),
            (INFINITE, INFINITE),
            (-INFINITE, 0.0),
            (1e30, INFINITE),
            (-1e30, 0.0),
        ],
    ),
    (
        TimesExpm1,
        &[
            (0.0, 0.0),
            (-0.0, 0.0),
            (INFINITE, INFINITE),
            (-INFINITE, -FACTOR),
            (1e30, INFINITE),
            (-1e30, -FACTOR),
        ],
    ),
    (
        Log,
        &[
            (1.0, 0.0),
            (0.0, -INFINITE),
            (-0.0, -INFINITE),
            (INFINITE, INFINITE),
            (-INFINITE, f64::NAN),
            (-1.0, f64::NAN),
            (-1e-30, f64::NAN),
        ],
    ),
    (
        Log1p,
        &[
            (0.0, 0.0),
            (-0.0, -0.0),
            (-1.0, -INFINITE),
            (INFINITE, INFINITE),
            (-INFINITE, f64::NAN),
            (-2.0, f64::NAN),
        ],
    ),
    (
        Tanh,
        &[
            (0.0, 0.0),
            (-0.0, -0.0),
            (INFINITE, 1.0),
            (-INFINITE, -1.0),
            (1e30, 1.0),
            (-1e30, -1.0),
        ],
    ),
    (
        Sigmoid,
        &[
            (0.0, 0.5),
            (-0.0, 0.5),
            (INFINITE, 1.0),
            (-INFINITE, 0.0),
            (1e30, 1.0),
            (-1e30, 0.0),
        ],
    ),
];

fn has_special_values<F: Arithmetic, T: Stored<F> + Into<f64>>(of: impl Fn(f64) -> T) {
    for (function, pairs) in SPECIAL {
        for &(x, expected) in pairs.iter().chain(&[(f64::NAN, f64::NAN)]) {
            let found: f64 = map_on_every_isa::<F, T>(function, &[of(x)])[0].into();
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{function:?} of {x} is {found}, not {expected}"
            );
        }
    }
}

#[test]
fn special_values_give_special_values() {
    has_special_values::<InF64, f64>(|x| x);
    has_special_values::<InF32<Halves>, f32>(|x| x as f32);
    has_special_values::<InF32<EvenOdd>, bf16>(bf16::from_f64);
}

/// The bits of `value * e^x`, which every instruction set gives.
fn times_exp_of(value: f32, x: f32) -> f32 {
    struct Product(f32, f32);
    impl Routine for Product {
        type Output = f32;

        #[inline(always)]
        unsafe fn run<A: Arch>(self) -> f32 {
            type V<A> = <InF32<Halves> as Arithmetic>::Vector<A>;
            let mut lanes = [0.0_f32; MAX_LANES];
            let product = times_exp(V::<A>::splat(self.0.into()), V::<A>::splat(self.1.into()));
            // SAFETY: there is room for the longest vector.
            unsafe { f32::store::<A>(product, lanes.as_mut_ptr()) };
            lanes[0]
        }
    }
    let mut results = Isa::supported()
        .into_iter()
        .map(|isa| dispatch(isa, Product(value, x)));
    let first = results.next().unwrap();
    assert!(
        results.all(|other| other.to_bits() == first.to_bits()),
        "{value:e}, {x:e}"
    );
    first
}

#[test]
fn products_are_finite_where_the_power_or_the_value_beside_it_is_not() {
    let great = [-0.4, -0.9, -1.6, -2.3, -3.0, -40.0].map(|x| (f32::MAX, x));
    let powers = [(1e-30, 95.0), (-1e-38, 150.0), (1e38, -120.0), (-3e38, -170.0)];
    for (value, x) in powers.into_iter().chain(great) {
        let exact = f64::from(value) * f64::from(x).exp();
        let error = ulps_of_f32(times_exp_of(value, x).abs(), exact.abs());
        assert!(error <= 1.5, "{value:e}, {x:e}: {error:.3} ULP");
    }
    for x in [f32::INFINITY, -f32::INFINITY, 1.0] {
        assert_eq!(times_exp_of(0.0, x), 0.0);
        assert_eq!(times_exp_of(-0.0, x), 0.0);
    }
    for x in [0.4, 0.9, 2.5, 4.75, 40.0, 200.0] {
        assert_eq!(times_exp_of(f32::MAX, x), f32::INFINITY, "{x:e}");
        assert_eq!(times_exp_of(-f32::MAX, x), -f32::INFINITY, "{x:e}");
    }
    assert_eq!(times_exp_of(1e-45, f32::INFINITY), f32::INFINITY);
    assert_eq!(
        times_exp_of(-1e38, -f32::INFINITY).to_bits(),
        (-0.0_f32).to_bits()
    );
    // What is less than half of what 1 can be told from still counts to the last digit.
    assert_eq!(
        times_exp_of(1.0 + 4.0 * f32::EPSILON, 2.0_f32.powi(-25)),
        1.0 + 4.0 * f32::EPSILON
    );
}

#[test]
fn sixteen_bits_are_computed_in_f32() {
    let narrow: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
    for (function, ..) in BOUNDS {
        let found = map_on_every_isa::<InF32<Halves>, f16>(function, &narrow);
        let expected = map::<InF32<Halves>, f32>(Isa::current(), function, &wide);
        for (found, expected) in found.into_iter().zip(expected) {
            let expected = f16::from_f32(expected);
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{function:?}: {found} is not {expected}"
            );
        }
    }
}

/// Nanoseconds per element, with the numbers in the cache.
fn rate<F: Arithmetic, T: Stored<F>>(isa: Isa, function: Function, values: &[T]) -> f64 {
    const ROUNDS: usize = 60;
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let mut results = values.to_vec();
            let map = Map::<F, T> {
                function,
                values: &mut results,
                arithmetic: PhantomData,
            };
            let start = std::time::Instant::now();
            dispatch(isa, map);
            let time = start.elapsed().as_secs_f64();
            assert_eq!(std::hint::black_box(results).len(), values.len());
            time / values.len() as f64 * 1e9
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

#[test]
#[ignore = "a measurement"]
fn rates() {
    let numbers: Vec<f64> = (0..1 << 20)
        .map(|i| f64::from(i) * 8.0 / f64::from(1 << 20) + 1e-3)
        .collect();
    let narrow: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
    for isa in Isa::supported() {
        for (function, ..) in BOUNDS {
            println!(
                "{isa:?} {function:?}: f32 {:.2} ns, f64 {:.2} ns",
                rate::<InF32<Halves>, f32>(isa, function, &narrow),
                rate::<InF64, f64>(isa, function, &numbers)
            );
        }
    }
}
