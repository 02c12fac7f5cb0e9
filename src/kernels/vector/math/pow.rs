//! Powers: of the exponent exactly, of the mantissa by way of its logarithm.

use std::f64::consts::{LN_2, LOG2_E};

use super::{Format, below, expm1_at_once, parts, round};
use crate::kernels::vector::Vector;

/// `x` to the power of `y`, of an x that is not negative and a y that is positive.
#[inline(always)]
pub fn pow<V: Vector>(x: V, y: f64) -> V {
    let is_plain = V::splat(V::Lane::LEAST_NORMAL).all_below(x) && x.all_below(V::splat(f64::INFINITY));
    let (f, exponent) = match is_plain {
        true => {
            let (mantissa, exponent) = x.frexp();
            (mantissa + -1.0, exponent)
        }
        false => parts(x), // the same bits, and those of other numbers
    };
    let (half, fine) = below(f);
    let logarithm = (f - (half - fine)) * y;
    // The leading digits of y, whose product with an exponent is exact.
    let spread = y * (2_f64.powi(53 - (V::Lane::DIGITS / 2) as i32) + 1.0);
    let y_head = spread - (spread - y);
    let coarse = exponent * y_head;
    let whole = round(coarse + logarithm * LOG2_E);
    let rest = (coarse - whole) * LN_2 + (logarithm + exponent * ((y - y_head) * LN_2));
    let power = expm1_at_once(rest) + 1.0;
    let limit = V::splat(-V::Lane::EXP_LEAST);
    if is_plain && whole.abs().all_below(limit) {
        return power * whole.pow2(); // the same bits as below
    }
    // Beyond twice these it is 0 or infinite.
    let whole = (-limit * 2.0).max(whole).min(limit * 2.0);
    let half = round(whole * 0.5);
    let result = power * half.pow2() * (whole - half).pow2();
    // 0, infinity and NaN are their own powers.
    let result = V::splat(0.0).if_less(x, result, x);
    x.if_less(V::splat(f64::INFINITY), result, x)
}
