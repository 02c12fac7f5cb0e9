//! Powers, by way of the logarithm in two parts.

use super::{Format, Power, leading, log_of, parts, sum_of};
use crate::kernels::vector::Vector;

/// `x` to the power of `y`, of an x that is not negative and a y that is positive.
#[inline(always)]
pub fn pow<V: Vector>(x: V, y: f64) -> V {
    let (f, exponent) = parts(x);
    let (high, low) = log_of(f, exponent, V::splat(0.0));
    let (high, low) = sum_of(high, low);
    // The product with y, from the leading digits of both, whose product is exact.
    let spread = y * (2_f64.powi(53 - (V::Lane::DIGITS / 2) as i32) + 1.0);
    let y_head = spread - (spread - y);
    let head = leading(high);
    let rest = high * (y - y_head) + (high - head) * y_head + low * y;
    let (product, rest) = sum_of(head * y_head, rest);
    let power = Power::of(product);
    let result = power.scale(power.high + (power.low + power.high * rest));
    // 0, infinity and NaN are their own powers.
    let result = V::splat(0.0).if_less(x, result, x);
    x.if_less(V::splat(f64::INFINITY), result, x)
}
