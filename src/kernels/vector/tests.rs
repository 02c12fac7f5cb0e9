//! Every instruction set of this machine against the `half` crate and plain f32.

use half::{bf16, f16};

use super::*;
use crate::runtime::Isa;

/// What a function that is generic over an instruction set returns on each that the machine has.
macro_rules! on_every_isa {
    ($function:ident -> $output:ty) => {{
        struct Check(Isa);
        impl Routine for Check {
            type Output = $output;
            #[inline(always)]
            unsafe fn run<A: Arch>(self) -> $output {
                $function::<A>(self.0)
            }
        }
        let run = |isa| dispatch(isa, Check(isa));
        Isa::supported().into_iter().map(run).collect::<Vec<_>>()
    }};
    ($function:ident) => {
        drop::<Vec<()>>(on_every_isa!($function -> ()))
    };
}

type InHalves = InF32<Halves>;
type Apart = InF32<EvenOdd>;

/// All kinds of f32: special values, boundaries of the 16-bit formats, and patterns spread over all exponents.
fn samples() -> Vec<f32> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::MIN_POSITIVE,
        f32::MAX,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        65504.0,
        65519.9,
        65520.0,
        f32::from_bits(1),
        6.1e-5,
        5.9e-8,
        2.9e-8,
        1.001_953_1,
        1.003_906_2,
    ];
    let spread = (0..100_000_u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
    let mut samples: Vec<f32> = special.into_iter().chain(spread).collect();
    samples.resize(samples.len().next_multiple_of(MAX_LANES), 0.0);
    samples
}

/// A number's nearest bf16, ties away from zero, and the rest.
fn halves(x: f32) -> (u16, i16) {
    match x.is_nan() {
        true => (0x7fc0, 0),
        false => (((x.to_bits() + 0x8000) >> 16) as u16, x.to_bits() as i16),
    }
}

fn load<A: Arch, O: Order>(values: &[f32]) -> Pair<A::F32, O> {
    let (mut nearest, mut rest) = ([bf16::ZERO; MAX_LANES], [0_i16; MAX_LANES]);
    for (lane, &x) in values.iter().take(2 * A::F32::LANES).enumerate() {
        let (upper, lower) = halves(x);
        (nearest[lane], rest[lane]) = (bf16::from_bits(upper), lower);
    }
    // SAFETY: the arrays hold the longest vector.
    unsafe { Pair::load_split(nearest.as_ptr(), rest.as_ptr()) }
}

/// Loads f32 and stores `T`.
fn convert<A: Arch, O: Order, T: Stored<InF32<O>>>(values: &[f32]) -> Vec<T> {
    let mut out = vec![T::default(); values.len()];
    for i in (0..values.len()).step_by(2 * A::F32::LANES) {
        // SAFETY: a vector at `i` lies within `out`, whose length is a multiple of any number of lanes.
        unsafe { T::store::<A>(load::<A, O>(&values[i..]), out.as_mut_ptr().add(i)) }
    }
    out
}

fn dither<A: Arch, O: Order, T: Stored<InF32<O>>>(values: &[f32], key: u64) -> Vec<T> {
    let mut out = vec![T::default(); values.len()];
    for i in (0..values.len()).step_by(2 * A::F32::LANES) {
        let noise = Noise {
            key,
            counter: i as u32,
        };
        // SAFETY: as in `convert`.
        unsafe { T::store_dithered::<A>(load::<A, O>(&values[i..]), out.as_mut_ptr().add(i), noise) }
    }
    out
}

/// Every bf16, and what lies about half way to the next.
fn about_half_way() -> impl Iterator<Item = f32> {
    let after = |upper: u32| [0, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| upper << 16 | lower);
    (0..=u16::MAX.into()).flat_map(after).map(f32::from_bits)
}

fn rounds_like_half<A: Arch>(isa: Isa) {
    let mut samples = samples();
    samples.extend(about_half_way());
    assert!(samples.len().is_multiple_of(MAX_LANES));
    for narrow in [
        convert::<A, Halves, bf16>(&samples),
        convert::<A, EvenOdd, bf16>(&samples),
    ] {
        for (x, y) in samples.iter().zip(&narrow) {
            let expected = bf16::from_f32(*x);
            assert!(
                y.to_bits() == expected.to_bits() || x.is_nan() && y.is_nan(),
                "{isa:?}: {x} became {y}"
            );
        }
    }
    let half = convert::<A, Halves, f16>(&samples);
    for (x, y) in samples.iter().zip(&half) {
        let expected = f16::from_f32(*x);
        assert!(
            y.to_bits() == expected.to_bits() || x.is_nan() && y.is_nan(),
            "{isa:?}: {x} became {y}"
        );
    }
}

#[test]
fn rounding_to_nearest_is_that_of_the_half_crate() {
    on_every_isa!(rounds_like_half);
}

fn loads_every_16_bit_pattern<A: Arch>(isa: Isa) {
    let patterns: Vec<u16> = (0..=u16::MAX).collect();
    for i in (0..patterns.len()).step_by(2 * A::F32::LANES) {
        let mut wide = [0.0_f32; MAX_LANES];
        let check = |wide: &[f32], expected: fn(u16) -> f32| {
            for (lane, &x) in wide.iter().take(2 * A::F32::LANES).enumerate() {
                let expected = expected(patterns[i + lane]);
                assert!(
                    x.to_bits() == expected.to_bits() || x.is_nan() && expected.is_nan(),
                    "{isa:?}"
                );
            }
        };
        let from = patterns[i..].as_ptr();
        // SAFETY: a vector at `i` lies within the patterns, and `wide` holds the longest vector.
        unsafe {
            let narrow = <bf16 as Stored<InHalves>>::load::<A>(from.cast());
            f32::store::<A>(narrow, wide.as_mut_ptr());
            check(&wide, |bits| bf16::from_bits(bits).to_f32());
            let half = <f16 as Stored<InHalves>>::load::<A>(from.cast());
            f32::store::<A>(half, wide.as_mut_ptr());
            check(&wide, |bits| f16::from_bits(bits).to_f32());
        }
    }
}

#[test]
fn every_16_bit_pattern_loads_as_in_the_half_crate() {
    on_every_isa!(loads_every_16_bit_pattern);
}

/// The bits of bf16 in order, of bf16 in pairs, and of f16.
fn dithers_to_a_neighbour<A: Arch>(isa: Isa) -> [Vec<u16>; 3] {
    let samples = samples();
    let narrow = dither::<A, Halves, bf16>(&samples, 7);
    let apart = dither::<A, EvenOdd, bf16>(&samples, 7);
    let half = dither::<A, Halves, f16>(&samples, 7);
    for ((&x, y), z) in samples.iter().zip(&narrow).zip(&half) {
        let exact = f64::from(x);
        let (near_y, near_z) = (bf16::from_f32(x).to_f64(), f16::from_f32(x).to_f64());
        if !x.is_finite() {
            assert!(
                near_y == y.to_f64() || x.is_nan() && y.is_nan() && z.is_nan(),
                "{isa:?}: {x}, {y}, {z}"
            );
        } else {
            // Within one spacing, and exactly itself where it can be.
            let spacing = |near: f64, digits: i32, least: i32| {
                f64::powi(2.0, (near.abs().log2().floor() as i32 - digits).max(least))
            };
            if near_y.is_finite() && y.is_finite() {
                assert!(
                    (y.to_f64() - exact).abs() < 2.0 * spacing(near_y, 7, -133),
                    "{isa:?}: {x} became {y}"
                );
                assert!(near_y != exact || y.to_f64() == exact, "{isa:?}: {x} became {y}");
            }
            if near_z.is_finite() && z.is_finite() {
                assert!(
                    (z.to_f64() - exact).abs() < 2.0 * spacing(near_z, 10, -24),
                    "{isa:?}: {x} became {z}"
                );
                assert!(near_z != exact || z.to_f64() == exact, "{isa:?}: {x} became {z}");
            }
        }
    }
    let bits = |x: u16, is_nan: bool| if is_nan { u16::MAX } else { x };
    [
        narrow.iter().map(|y| bits(y.to_bits(), y.is_nan())).collect(),
        apart.iter().map(|y| bits(y.to_bits(), y.is_nan())).collect(),
        half.iter().map(|z| bits(z.to_bits(), z.is_nan())).collect(),
    ]
}

#[test]
fn dithering_gives_a_neighbour_and_the_same_one_on_every_instruction_set() {
    let found = on_every_isa!(dithers_to_a_neighbour -> [Vec<u16>; 3]);
    let [narrow, apart, half] = &found[0];
    assert!(narrow == apart, "bf16 differs between orders");
    for [other, _, other_half] in &found {
        assert!(narrow == other, "bf16 differs between instruction sets");
        assert!(half == other_half, "f16 differs between instruction sets");
    }
}

fn is_unbiased<A: Arch>(isa: Isa) {
    for (x, exponent) in [(1.001_953_1, -7), (-3.3e-20, -72)] {
        has_mean::<A, bf16>(isa, x, f64::powi(2.0, exponent));
    }
    for (x, exponent) in [(1.000_1, -10), (-1.234e-6, -24), (6.1035e-5, -24)] {
        has_mean::<A, f16>(isa, x, f64::powi(2.0, exponent));
    }
}

fn has_mean<A: Arch, T: Stored<InHalves> + Into<f64>>(isa: Isa, x: f32, spacing: f64) {
    const COUNT: usize = 160_000;
    let rounded = dither::<A, Halves, T>(&vec![x; COUNT], 3);
    let mean = rounded.into_iter().map(Into::into).sum::<f64>() / COUNT as f64;
    // Six standard deviations of the mean of a number that is off by less than a spacing.
    let tolerance = 6.0 * 0.5 * spacing / (COUNT as f64).sqrt();
    assert!(
        (mean - f64::from(x)).abs() < tolerance,
        "{isa:?}: the mean of {x} is {mean}"
    );
}

#[test]
fn dithering_is_right_in_expectation() {
    on_every_isa!(is_unbiased);
}

fn splits_and_joins<A: Arch>(isa: Isa) {
    split_and_join::<A, Halves>(isa);
    split_and_join::<A, EvenOdd>(isa);
}

fn split_and_join<A: Arch, O: Order>(isa: Isa) {
    for x in samples().chunks(2 * A::F32::LANES) {
        let (mut nearest, mut rest) = ([bf16::ZERO; MAX_LANES], [0_i16; MAX_LANES]);
        // SAFETY: the arrays hold the longest vector.
        unsafe { load::<A, O>(x).store_split(nearest.as_mut_ptr(), rest.as_mut_ptr()) };
        for (lane, &x) in x.iter().enumerate() {
            assert_eq!((nearest[lane].to_bits(), rest[lane]), halves(x), "{isa:?}: {x}");
        }
    }
}

#[test]
fn halves_of_a_number_join_to_its_very_bits() {
    on_every_isa!(splits_and_joins);
}

fn joins_what_never_was_one<A: Arch>(isa: Isa) {
    join_what_never_was_one::<A, Halves>(isa);
    join_what_never_was_one::<A, EvenOdd>(isa);
}

fn join_what_never_was_one<A: Arch, O: Order>(isa: Isa) {
    for first in [0.0, f32::NEG_INFINITY, f32::NAN, -0.0] {
        for rest in [1, i16::MAX, i16::MIN, -1] {
            let (first, rest) = ([bf16::from_f32(first); MAX_LANES], [rest; MAX_LANES]);
            let (mut nearest, mut left) = (first, rest);
            // SAFETY: the arrays hold the longest vector.
            unsafe {
                Pair::<A::F32, O>::load_split(first.as_ptr(), rest.as_ptr())
                    .store_split(nearest.as_mut_ptr(), left.as_mut_ptr())
            };
            let same = nearest[0].to_bits() == first[0].to_bits();
            assert!(
                same || first[0].is_infinite(),
                "{isa:?}: {first:?} became {nearest:?}"
            );
            assert_eq!(nearest[0].is_nan(), first[0].is_nan(), "{isa:?}: {first:?}");
        }
    }
}

#[test]
fn a_number_written_over_the_first_half_is_not_lost_to_the_second() {
    on_every_isa!(joins_what_never_was_one);
}

fn loads_the_same_apart<A: Arch>(isa: Isa) {
    let patterns: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    for pattern in patterns.chunks(2 * A::F32::LANES) {
        let (mut nearest, mut rest) = ([bf16::ZERO; MAX_LANES], [0_i16; MAX_LANES]);
        // SAFETY: the patterns are a whole number of any vectors, and the arrays hold the longest.
        unsafe {
            <bf16 as Stored<Apart>>::load::<A>(pattern.as_ptr())
                .store_split(nearest.as_mut_ptr(), rest.as_mut_ptr())
        };
        for (lane, x) in pattern.iter().enumerate() {
            let found = (nearest[lane].to_bits(), rest[lane]);
            assert_eq!(found, halves(x.to_f32()), "{isa:?}: {x}");
        }
    }
}

#[test]
fn every_bf16_is_loaded_apart() {
    on_every_isa!(loads_the_same_apart);
}

fn compares_as_documented<A: Arch>(isa: Isa) {
    compare_as_documented::<A, InHalves, f32>(isa);
    compare_as_documented::<A, InF64, f64>(isa);
}

fn compare_as_documented<A: Arch, F: Arithmetic, T: Stored<F> + Into<f64>>(isa: Isa) {
    let numbers = [1.0, 2.0, -1.0, -0.0, 0.0, f64::NAN, -f64::NAN, f64::INFINITY];
    let pairs = numbers.iter().flat_map(|&a| numbers.map(|b| (a, b)));
    for (a, b) in pairs {
        let (x, y) = (F::Vector::<A>::splat(a), F::Vector::<A>::splat(b));
        let check = |name: &str, found: F::Vector<A>, expected: f64| {
            let mut lanes = [T::default(); MAX_LANES];
            // SAFETY: the array holds the longest vector.
            unsafe { T::store::<A>(found, lanes.as_mut_ptr()) };
            let found: f64 = lanes[0].into();
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{isa:?}: {name} of {a} and {b} is {found}"
            );
        };
        check("the greater", x.max(y), if a > b { a } else { b });
        check("the lesser", x.min(y), if a < b { a } else { b });
        check("the sign", x.sign(), f64::from(a > 0.0) - f64::from(a < 0.0));
        check("the size", x.abs(), a.abs());
        let (then, otherwise) = (F::Vector::<A>::splat(3.0), F::Vector::<A>::splat(4.0));
        check(
            "what is chosen",
            x.if_less(y, then, otherwise),
            if a < b { 3.0 } else { 4.0 },
        );
    }
}

#[test]
fn comparisons_treat_nan_as_documented() {
    on_every_isa!(compares_as_documented);
}
