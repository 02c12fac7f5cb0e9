//! Exponential and logarithm and what is made of them, in lanes of f32 or f64: written once, in operations that every
//! instruction set rounds alike, so that each gives the same bits.
//!
//! The arithmetic is that of the lanes, with what a rounding lost carried on where that matters. The greatest error
//! found, in units in the last place of the result, over two million f32 and half a million f64 (`tests.rs`):
//!
//! | | f32 | f64 |
//! |---|---|---|
//! | [`exp`] | 0.71 | 0.73 |
//! | [`times_exp`] | 1.20 | 1.37 |
//! | [`times_expm1`] | 3.16 | 3.29 |
//! | [`log`] | 0.72 | 0.79 |
//! | [`log1p`] | 0.78 | 0.80 |
//! | [`tanh`] | 0.78 | 0.79 |
//! | [`sigmoid`] | 0.77 | 0.79 |
//! | [`pow`], to 1.1; to 4.7 | 1.48; 3.43 | 1.39; 3.02 |
//!
//! NaN gives NaN. Results below the normal numbers are rounded to subnormal ones, and these are taken as they are, as
//! long as the thread has not been told to flush them.

mod format;
mod pow;

pub use format::Format;
pub use pow::pow;

use super::Vector;

/// Below this, less than ln(2) / 2, nothing is to be taken from an exponent.
const EXP_AT_ONCE: f64 = 0.34;

/// e to the power of `x`: infinite where that is too large, and 0 where it is too small.
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    let power = Power::of(x);
    power.scale(power.high)
}

/// `value * e^x`. Where x is small, what it changes is not rounded beside 1, as the power would be; and only where the
/// product is too large or too small is it infinite or 0, whatever the power is. A 0 stays one, times infinity, too.
#[inline(always)]
pub fn times_exp<V: Vector>(value: V, x: V) -> V {
    if x.abs().all_below(V::splat(EXP_AT_ONCE)) {
        return value + value * expm1_at_once(x); // the same bits as below
    }
    // Nothing is so small, or so large, that what is beyond twice these would not make it infinite, or 0.
    let x = V::splat(2.0 * V::Lane::EXP_LEAST).max(x);
    let x = V::splat(-2.0 * V::Lane::EXP_LEAST).min(x);
    let (exponent, rest, lost) = reduced(x);
    let more = rest + (rest * rest * polynomial(V::Lane::EXP, rest) + lost);
    let quarter = round(exponent * 0.25);
    let factor = quarter.pow2();
    let last = (exponent - quarter * 3.0).pow2();
    // Where the power is below 1, a part of it comes first, so that the sum does not take a great value beyond the range;
    // where it is above, the sum must not be one of infinities, as `more` may be negative.
    let (least, one) = (factor.min(last), V::splat(1.0));
    let value = value * least.min(one);
    (value + value * more) * least.max(one) * factor * factor * factor.max(last)
}

/// `value * (e^x - 1)`: what [`times_exp`] adds to a value.
#[inline(always)]
pub fn times_expm1<V: Vector>(value: V, x: V) -> V {
    let near = value * expm1_at_once(x);
    let (size, bound) = (x.abs(), V::splat(EXP_AT_ONCE));
    if size.all_below(bound) {
        return near;
    }
    size.if_less(bound, near, times_exp(value, x) - value)
}

/// `e^x - 1`, of an x below [`EXP_AT_ONCE`].
#[inline(always)]
fn expm1_at_once<V: Vector>(x: V) -> V {
    x + x * x * polynomial(V::Lane::EXP, x)
}

/// The natural logarithm: minus infinity of 0, NaN of what is less.
#[inline(always)]
pub fn log<V: Vector>(x: V) -> V {
    let (f, exponent) = parts(x);
    let (high, low) = log_of(f, exponent, V::splat(0.0));
    on_domain(x, high + low)
}

/// The natural logarithm of `1 + x`, as if the sum were not rounded: minus infinity of -1, NaN of what is less.
#[inline(always)]
pub fn log1p<V: Vector>(x: V) -> V {
    let sum = x + 1.0;
    // Knuth's: which of both is the greater plays no part.
    let share = sum + -1.0;
    let lost = (x - share) + (V::splat(1.0) - (sum - share));
    let (mantissa, exponent) = sum.frexp();
    let (high, low) = log_of(mantissa + -1.0, exponent, lost / sum);
    let result = on_domain(sum, high + low);
    // Where it is x to the last digit; 0 keeps its sign.
    let tiny = V::splat(V::Lane::EPSILON / 4.0);
    x.abs().if_less(tiny, x, result)
}

/// The hyperbolic tangent.
#[inline(always)]
pub fn tanh<V: Vector>(x: V) -> V {
    let size = x.abs();
    let square = x * x;
    // Of -0, this zero makes a +0, whose product with -0 is again -0.
    let small = x + x * (square * polynomial(V::Lane::TANH, square) + 0.0);
    let great = V::splat(1.0) - tail(size + size) * 2.0;
    let great = x.if_less(V::splat(0.0), -great, great);
    size.if_less(V::splat(format::TANH_UP_TO), small, great)
}

/// The logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<V: Vector>(x: V) -> V {
    let tail = tail(x.abs());
    x.if_less(V::splat(0.0), tail, V::splat(1.0) - tail)
}

/// `e^x = (high + low) * 2^exponent`, of x between limits beyond which the result is infinite or 0.
struct Power<V> {
    high: V,
    low: V,
    exponent: V,
}

impl<V: Vector> Power<V> {
    #[inline(always)]
    fn of(x: V) -> Self {
        // The second of both where either is NaN.
        let x = V::splat(V::Lane::EXP_LEAST).max(x);
        let x = V::splat(V::Lane::EXP_GREATEST).min(x);
        let (exponent, rest, lost) = reduced(x);
        let (one_and, more) = sum_of(V::splat(1.0), rest);
        let more = more + (rest * rest * polynomial(V::Lane::EXP, rest) + lost);
        let (high, low) = sum_of(one_and, more);
        Power { high, low, exponent }
    }

    /// `value * 2^exponent`, rounded once: the exponent may be beyond those of normal numbers, but not half of it.
    #[inline(always)]
    fn scale(&self, value: V) -> V {
        let half = round(self.exponent * 0.5);
        value * half.pow2() * (self.exponent - half).pow2()
    }
}

/// `x = exponent * ln(2) + rest + lost`, with a whole exponent and the rest from -ln(2) / 2 up to ln(2) / 2.
#[inline(always)]
fn reduced<V: Vector>(x: V) -> (V, V, V) {
    let exponent = round(x * std::f64::consts::LOG2_E);
    // This product and this difference are exact; where the latter is smaller than what follows, both are too small to
    // matter.
    let coarse = x - exponent * V::Lane::LN_2[0];
    let (rest, lost) = sum_of(coarse, -(exponent * V::Lane::LN_2[1]));
    (exponent, rest, lost)
}

/// `e^-x / (1 + e^-x)` of an x that is not negative.
#[inline(always)]
fn tail<V: Vector>(x: V) -> V {
    let power = Power::of(-x);
    let (over, over_low) = (power.scale(power.high), power.scale(power.low));
    let (under, under_low) = sum_of(V::splat(1.0), over);
    let quotient = over / under;
    // What is left of the division, from the leading digits of both, whose product is exact.
    let (head, under_head) = (leading(quotient), leading(under));
    let under_rest = (under - under_head) + (under_low + over_low);
    let left = (over - head * under_head) + (over_low - head * under_rest);
    // The quotient is 1 less 1 / under.
    head + left * (V::splat(1.0) - quotient)
}

/// `(f, exponent)` with `x = (1 + f) * 2^exponent` and `1 + f` from sqrt(1/2) up to sqrt(2), of a positive finite number.
#[inline(always)]
fn parts<V: Vector>(x: V) -> (V, V) {
    let least = V::splat(V::Lane::LEAST_NORMAL);
    let normal = x.if_less(least, x * (2.0 / V::Lane::EPSILON), x);
    let shift = x.if_less(least, V::splat(-f64::from(V::Lane::DIGITS)), V::splat(0.0));
    let (mantissa, exponent) = normal.frexp();
    (mantissa + -1.0, exponent + shift)
}

/// `log((1 + f) * 2^exponent) + more`, with `1 + f` from sqrt(1/2) up to sqrt(2) and a small `more`: the sum of both.
#[inline(always)]
fn log_of<V: Vector>(f: V, exponent: V, more: V) -> (V, V) {
    let (half, fine) = below(f);
    let (sum, lost) = sum_of(exponent * V::Lane::LN_2[0], f);
    (sum, lost - (half - (fine + (exponent * V::Lane::LN_2[1] + more))))
}

/// What takes f to its logarithm: `log(1 + f)` is `f` less the first, which is half of its square, and more by the second.
#[inline(always)]
fn below<V: Vector>(f: V) -> (V, V) {
    // log(1 + f) = 2 atanh(s) = f - f^2 / 2 + s * (f^2 / 2 + s^2 * (2/3 + 2/5 s^2 + ...))
    let s = f / (f + 2.0);
    let square = s * s;
    let half = f * f * 0.5;
    (half, s * (half + square * polynomial(V::Lane::LOG, square)))
}

/// `result` where `x` is positive and finite, else what a logarithm is there.
#[inline(always)]
fn on_domain<V: Vector>(x: V, result: V) -> V {
    let zero = V::splat(0.0);
    let result = zero.if_less(x, result, V::splat(f64::NEG_INFINITY));
    let result = x.if_less(V::splat(f64::INFINITY), result, x);
    x.if_less(zero, V::splat(f64::NAN), result)
}

/// The sum of two numbers, and what its rounding lost: all of it where `a` is 0 or not the smaller one (Dekker).
#[inline(always)]
fn sum_of<V: Vector>(a: V, b: V) -> (V, V) {
    let sum = a + b;
    (sum, b - (sum - a))
}

/// The first half of the digits (Veltkamp).
#[inline(always)]
fn leading<V: Vector>(x: V) -> V {
    let spread = x * V::Lane::SPREAD;
    spread - (spread - x)
}

/// The nearest whole number, of no more than half as many digits as there are: where this constant is added, no digit
/// is left for a fraction.
#[inline(always)]
fn round<V: Vector>(x: V) -> V {
    let constant = 1.5 / V::Lane::EPSILON;
    (x + constant) + -constant
}

/// Of coefficients from the constant one on, by Horner's rule.
#[inline(always)]
pub fn polynomial<V: Vector>(coefficients: &[f64], x: V) -> V {
    let mut at = coefficients.len() - 1;
    let mut sum = V::splat(coefficients[at]);
    while at > 0 {
        at -= 1;
        sum = sum * x + coefficients[at];
    }
    sum
}

#[cfg(test)]
mod tests;
