//! Powers: the same bits on every instruction set, and the error, which grows with the exponent.

use super::*;

/// Exponents, and the bounds on the error for f32 and for f64.
const EXPONENTS: [(f64, f64, f64); 6] = [
    (0.01, 1.2, 1.2),
    (0.5, 1.1, 1.1),
    (1.1, 1.6, 1.6),
    (2.0, 1.5, 1.5),
    (4.7, 4.0, 4.0),
    (20.3, 18.0, 18.0),
];

struct Powers<'a, F, T> {
    exponent: f64,
    values: &'a mut [T],
    arithmetic: PhantomData<F>,
}

impl<F: Arithmetic, T: Stored<F>> Routine for Powers<'_, F, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        for values in self.values.chunks_exact_mut(F::Vector::<A>::LANES) {
            let at = values.as_mut_ptr();
            // SAFETY: the chunk is a whole vector.
            unsafe { T::store::<A>(pow(T::load::<A>(at), self.exponent), at) }
        }
    }
}

/// The results of every instruction set, which are the same.
fn powers<F: Arithmetic, T: Stored<F> + Into<f64>>(exponent: f64, values: &[T]) -> Vec<T> {
    assert_eq!(values.len() % MAX_LANES, 0);
    let mut all = Isa::supported().into_iter().map(|isa| {
        let mut results = values.to_vec();
        let powers = Powers::<F, T> {
            exponent,
            values: &mut results,
            arithmetic: PhantomData,
        };
        dispatch(isa, powers);
        results
    });
    let first = all.next().unwrap();
    for others in all {
        for (&one, &other) in first.iter().zip(&others) {
            let (one, other): (f64, f64) = (one.into(), other.into());
            assert!(one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan());
        }
    }
    first
}

/// As many as whole vectors hold, spread over all positive numbers.
fn inputs() -> Vec<f64> {
    let numbers = (0..1 << 16).map(|i: u64| f64::from_bits(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1));
    let near_one = (0..1 << 14).map(|i| 0.5 + f64::from(i) / 8192.0);
    let inputs = numbers.chain(near_one).map(|x| if x.is_nan() { 1.0 } else { x });
    inputs.collect()
}

#[test]
fn powers_of_f32_are_within_their_bounds() {
    let inputs: Vec<f32> = (0..1 << 31)
        .step_by(1 << 11)
        .map(f32::from_bits)
        .map(|x| if x.is_nan() { 1.0 } else { x })
        .chain((0..1 << 14).map(|i| 0.5 + i as f32 / 8192.0))
        .collect();
    for (exponent, bound, _) in EXPONENTS {
        let mut worst = (0.0, 0.0);
        for (&x, result) in inputs.iter().zip(powers::<InF32<Halves>, f32>(exponent, &inputs)) {
            let exact = f64::from(x).powf(exponent);
            if (exact as f32).is_infinite() || exact == 0.0 {
                assert_eq!(result, exact as f32, "{x:e} to the {exponent}");
                continue;
            }
            let error = ulps_of_f32(result, exact);
            if error > worst.0 {
                worst = (error, x);
            }
        }
        println!("to the {exponent}: {:.3} ULP at {:e}", worst.0, worst.1);
        assert!(
            worst.0 <= bound,
            "to the {exponent}: {:.3} ULP at {:e}",
            worst.0,
            worst.1
        );
    }
}

#[test]
fn powers_of_f64_are_within_their_bounds() {
    let inputs = inputs();
    for (exponent, _, bound) in EXPONENTS {
        let mut worst = (0.0, 0.0);
        for (&x, result) in inputs.iter().zip(powers::<InF64, f64>(exponent, &inputs)) {
            let near = x.powf(exponent);
            if !near.is_finite() || near == 0.0 {
                assert_eq!(result, near, "{x:e} to the {exponent}");
                continue;
            }
            let error = ulps_of_f64(result, twice::exp_of(twice::log(x) * exponent.into()));
            if error > worst.0 {
                worst = (error, x);
            }
        }
        println!("to the {exponent}: {:.3} ULP at {:e}", worst.0, worst.1);
        assert!(
            worst.0 <= bound,
            "to the {exponent}: {:.3} ULP at {:e}",
            worst.0,
            worst.1
        );
    }
}

#[test]
fn powers_of_special_values() {
    let mut special = vec![0.0_f32, f32::INFINITY, f32::NAN, 1.0];
    special.resize(MAX_LANES, 1.0);
    for (exponent, ..) in EXPONENTS {
        let found = powers::<InF32<Halves>, f32>(exponent, &special);
        assert_eq!([found[0], found[1], found[3]], [0.0, f32::INFINITY, 1.0]);
        assert!(found[2].is_nan());
    }
}
