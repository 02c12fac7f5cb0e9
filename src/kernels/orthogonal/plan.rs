//! What is computed how: the form of the iteration and the precision of each product.

use super::schedule::Triple;
use super::{Algorithm, Options, Precision};
use crate::kernels::matmul::{Element, Engine, Factors, Real};
use crate::runtime::Isa;

/// A Gram phase may amplify what rounding leaves in R by the product of its remaining `a`s. Measured on the hard inputs
/// of the tests: with bf16 factors the steps that are followed by more than this much need exact ones instead.
const EXACT_BEFORE_GAIN: f64 = 6.0;
/// With more gain than this within a phase, "auto" does not use the Gram form: rounding in f32 is felt as well.
const LARGEST_GAIN: f64 = 100.0;
/// Steps, from the first, in which a standard iteration with bf16 factors adds `a X` unrounded. Small singular values
/// are then amplified free of rounding; later steps gain more from a small deviation of Q from its mean.
const STEPS_KEEPING_X: usize = 2;

/// n / m from which "auto" takes the Gram form: below, it costs as much as the standard form and is less accurate.
const GRAM_FROM: f64 = 1.25;
const GRAM_FROM_BF16: f64 = 2.0;
/// On tiles, where one of its exact products takes as long as six rounded ones: at 4, it was 10% slower still.
const GRAM_FROM_TILES: f64 = 6.0;
/// Rows or columns, whichever are fewer, from which "auto" rounds factors to bf16: below, nothing is gained.
const BF16_FROM: usize = 32;

/// How to iterate on matrices of one shape.
pub struct Plan<S: Element<Acc = S> + Real> {
    pub gram: bool,
    pub triples: Vec<Triple>,
    pub restarts: Vec<usize>,
    /// For the rectangular products of the Gram form.
    pub outer: &'static dyn Engine<S>,
    engines: Vec<&'static dyn Engine<S>>,
    rounded: bool,
}

impl<S: Element<Acc = S> + Real> Plan<S> {
    /// For matrices of `rows` x `cols`.
    pub fn new(options: &Options, (rows, cols): (usize, usize), isa: Isa) -> Self {
        let triples = options.schedule.triples().to_vec();
        let rounded = match options.precision {
            Precision::Bfloat16 => true,
            Precision::Auto => {
                size_of::<S>() == 4
                    && isa.has_fast_bf16()
                    && rows.min(cols) >= BF16_FROM
                    && !options.schedule.needs_exact_factors()
            }
            Precision::Float32 | Precision::Float64 => false,
        };
        let gains = gains(&triples, &options.restarts);
        let exact_before = if options.precision == Precision::Auto {
            EXACT_BEFORE_GAIN
        } else {
            f64::INFINITY
        };
        let gram = match options.algorithm {
            Algorithm::Standard => false,
            Algorithm::Gram => true,
            Algorithm::Auto => {
                let ratio = rows.max(cols) as f64 / rows.min(cols) as f64;
                let from = match (rounded, isa) {
                    (false, _) => GRAM_FROM,
                    (true, Isa::AmxBf16) => GRAM_FROM_TILES,
                    (true, _) => GRAM_FROM_BF16,
                };
                let largest = gains
                    .iter()
                    .zip(&triples)
                    .map(|(gain, [a, ..])| gain * a)
                    .fold(0.0, f64::max);
                // Where every factor must be bf16, no step can be saved by exact ones.
                let stable = exact_before.is_finite() || !rounded;
                ratio >= from && stable && largest <= LARGEST_GAIN
            }
        };
        let engine = |rounded| S::engine(isa, if rounded { Factors::Bf16 } else { Factors::Exact });
        let engines = gains
            .iter()
            .map(|&gain| engine(rounded && !(gram && gain > exact_before)));
        Plan {
            gram,
            engines: engines.collect(),
            outer: engine(rounded),
            triples,
            restarts: options.restarts.clone(),
            rounded,
        }
    }

    /// For the products of step `i`, except the rectangular ones of the Gram form.
    pub fn engine(&self, i: usize) -> &'static dyn Engine<S> {
        self.engines[i]
    }

    /// Whether step `i` of the standard form adds `a X` itself instead of `mean * X`.
    pub fn keeps_x(&self, i: usize) -> bool {
        self.rounded && i < STEPS_KEEPING_X
    }
}

/// For every step the product of the `a`s of the steps after it in its phase.
fn gains(triples: &[Triple], restarts: &[usize]) -> Vec<f64> {
    let mut gains = vec![1.0; triples.len()];
    for i in (1..triples.len()).rev() {
        if !restarts.contains(&i) {
            gains[i - 1] = gains[i] * triples[i][0];
        }
    }
    gains
}
