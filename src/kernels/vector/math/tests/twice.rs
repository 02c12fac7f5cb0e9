//! Numbers of twice f64's digits, as sums of two, and the functions in these.

use std::ops::{Add, Div, Mul, Neg, Sub};

#[derive(Clone, Copy, Debug)]
pub struct Twice(f64, f64);

impl From<f64> for Twice {
    fn from(x: f64) -> Self {
        Twice(x, 0.0)
    }
}

impl Twice {
    pub fn leading(self) -> f64 {
        self.0
    }

    /// Of any two.
    fn sum(a: f64, b: f64) -> Self {
        let sum = a + b;
        let share = sum - a;
        Twice(sum, (a - (sum - share)) + (b - share))
    }
}

impl Add for Twice {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let (high, low) = (Twice::sum(self.0, other.0), Twice::sum(self.1, other.1));
        let first = Twice::sum(high.0, high.1 + low.0);
        Twice::sum(first.0, first.1 + low.1)
    }
}

impl Neg for Twice {
    type Output = Self;
    fn neg(self) -> Self {
        Twice(-self.0, -self.1)
    }
}

impl Sub for Twice {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Twice {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let product = self.0 * other.0;
        let lost = self.0.mul_add(other.0, -product);
        Twice::sum(product, lost + (self.0 * other.1 + self.1 * other.0))
    }
}

impl Div for Twice {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let first = Twice::from(self.0 / other.0);
        let rest = self - first * other;
        let second = Twice::from(rest.0 / other.0);
        let rest = rest - second * other;
        first + second + Twice::from(rest.0 / other.0)
    }
}

/// `value * 2^exponent`, which may be too small for f64's digits.
#[derive(Clone, Copy, Debug)]
pub struct Scaled {
    pub value: Twice,
    exponent: i32,
}

impl From<Twice> for Scaled {
    fn from(value: Twice) -> Self {
        Scaled { value, exponent: 0 }
    }
}

impl Scaled {
    /// `x * 2^-exponent`, exactly.
    pub fn unscaled(&self, x: f64) -> f64 {
        let half = self.exponent / 2;
        x * 2.0_f64.powi(-half) * 2.0_f64.powi(half - self.exponent)
    }

    pub fn times(self, x: f64) -> Self {
        Scaled {
            value: self.value * x.into(),
            ..self
        }
    }

    fn rounded(self) -> Twice {
        let scale = 2.0_f64.powi(self.exponent.max(-1000));
        Twice(self.value.0 * scale, self.value.1 * scale)
    }
}

const LN_2: Twice = Twice(std::f64::consts::LN_2, 2.319_046_813_846_299_6e-17);
const ONE: Twice = Twice(1.0, 0.0);

/// Of coefficients `1 / divisor` from the constant one on.
fn series(divisors: &[f64], x: Twice) -> Twice {
    let sum = |sum: Twice, &divisor: &f64| sum * x + ONE / divisor.into();
    divisors.iter().rev().fold(0.0.into(), sum)
}

pub fn exp(x: f64) -> Scaled {
    exp_of(x.into())
}

pub fn exp_of(x: Twice) -> Scaled {
    const HALVINGS: i32 = 6;
    let exponent = (x.0 / std::f64::consts::LN_2).round();
    let rest = x - Twice::from(exponent) * LN_2;
    let part = rest * 2.0_f64.powi(-HALVINGS).into();
    let factorials: Vec<f64> = (0..15).map(|n| (1..=n).map(f64::from).product()).collect();
    let mut value = series(&factorials, part);
    for _ in 0..HALVINGS {
        value = value * value;
    }
    Scaled {
        value,
        exponent: exponent as i32,
    }
}

pub fn expm1(x: f64) -> Scaled {
    match x {
        x if x.abs() < 1e-30 => Twice::from(x).into(),
        x if x > 100.0 => exp(x),
        x if x < -100.0 => (-ONE).into(),
        x => (exp(x).rounded() - ONE).into(),
    }
}

pub fn log(x: f64) -> Twice {
    // Away from where 1 / x leaves the range.
    let scaled = |power: i32| {
        let x = Twice::from(x * 2.0_f64.powi(-power));
        log_of(x) + Twice::from(f64::from(power)) * LN_2
    };
    match x {
        x if x < 1e-200 => scaled(-500),
        x if x > 1e200 => scaled(500),
        x => log_of(x.into()),
    }
}

pub fn log1p(x: f64) -> Twice {
    match x {
        x if x.abs() < 1e-30 => x.into(),
        x if x > 1e200 => log(x),
        x => log_of(Twice::sum(1.0, x)),
    }
}

fn log_of(x: Twice) -> Twice {
    let rest = x - ONE;
    if rest.0.abs() < 1e-3 {
        let divisors: Vec<f64> = (1..14)
            .map(|n| f64::from(if n % 2 == 1 { n } else { -n }))
            .collect();
        return rest * series(&divisors, rest);
    }
    // A step of Newton's.
    let near = x.0.ln();
    Twice::from(near) + (x * exp_of(Twice::from(-near)).rounded() - ONE)
}

/// From here on, e^-x is less than any f64, and next to 1 it is nothing.
const ENOUGH: f64 = 800.0;

pub fn tanh(x: f64) -> Twice {
    if x.abs() < 1e-3 {
        let square = Twice::from(x) * x.into();
        let coefficients = [
            (1.0, 1.0),
            (-1.0, 3.0),
            (2.0, 15.0),
            (-17.0, 315.0),
            (62.0, 2835.0),
        ];
        let sum = coefficients.iter().rev().fold(Twice::from(0.0), |sum, &(a, b)| {
            sum * square + Twice::from(a) / b.into()
        });
        return sum * x.into();
    }
    let power = exp(-2.0 * x.abs().min(ENOUGH)).rounded();
    let size = (ONE - power) / (ONE + power);
    if x < 0.0 { -size } else { size }
}

pub fn sigmoid(x: f64) -> Scaled {
    let power = exp(-x.abs().min(ENOUGH));
    let under = ONE + power.rounded();
    match x < 0.0 {
        true => Scaled {
            value: power.value / under,
            ..power
        },
        false => Scaled::from(ONE / under),
    }
}
