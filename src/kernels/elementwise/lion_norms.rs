//! Lion-K whose convex function is a norm (Chen et al. 2024, arXiv 2310.05898): of a tensor, or of each of its rows.

use super::lion::{Kappa, Lion, LionK, STATES};
use super::{Hyperparameters, Summed, hyperparameters};
use crate::kernels::vector::Vector;
use crate::kernels::vector::math::pow;

hyperparameters! {
    /// The interpolated momentum divided by its norm.
    pub struct LionL2(Lion);
}

hyperparameters! {
    /// Every row of it divided by its norm.
    pub struct LionRow(Lion);
}

hyperparameters! {
    /// The gradient of another norm, of which `kappa_param` is the p.
    pub struct LionLp(LionK);
}

/// What makes a vector's norm 1: a power of two that brings it near 1, and the rest. Together they could leave the range
/// of the arithmetic.
#[derive(Clone, Copy, Debug)]
struct Unit {
    power: f64,
    scale: f64,
}

impl Unit {
    fn of(norm: f64) -> Unit {
        let power = 2_f64.powi(-norm.log2().floor().clamp(-120.0, 120.0) as i32);
        let scale = match norm {
            0.0 => 0.0,
            other if other.is_finite() => 1.0 / (other * power),
            _ => f64::NAN,
        };
        Unit { power, scale }
    }

    #[inline(always)]
    fn times<V: Vector>(self, u: V) -> V {
        u * self.power * self.scale
    }
}

/// Of a whole tensor, or of each row.
#[derive(Clone, Copy, Debug)]
pub struct Normalized<const BY_ROW: bool> {
    options: Lion,
    /// None for a row of one element.
    unit: Option<Unit>,
}

macro_rules! normalized {
    ($($name:ident: $by_row:literal),*) => { $(impl Hyperparameters<1> for $name {
        type Rule = Normalized<$by_row>;

        const STATES: [&'static str; 1] = STATES;
        const COUNTS_STEPS: bool = false;

        fn at_step(&self, _step: f64) -> Normalized<$by_row> {
            Normalized { options: self.0, unit: None }
        }
    })* };
}
normalized!(LionL2: false, LionRow: true);

impl<const BY_ROW: bool> Kappa for Normalized<BY_ROW> {
    const SUMMED: Option<Summed> = Some(Summed::Squares);
    const BY_ROW: bool = BY_ROW;

    fn options(&self) -> Lion {
        self.options
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        match self.unit {
            Some(unit) => unit.times(u),
            None => u.sign(),
        }
    }

    fn knowing(self, squares: f64) -> Self {
        let unit = Some(Unit::of(squares.sqrt()));
        Normalized { unit, ..self }
    }
}

/// Of `norm_p`: the sign, times a power of what the element is in units of the norm.
#[derive(Clone, Copy, Debug)]
pub struct LionLpRule {
    options: LionK,
    /// What is summed is this power of each element, to the power of a whole number: in f64, where nothing is too small.
    root: Power,
    whole: u32,
    /// p - 1
    exponent: Power,
    unit: Unit,
}

impl Hyperparameters<1> for LionLp {
    type Rule = LionLpRule;

    const STATES: [&'static str; 1] = STATES;
    const COUNTS_STEPS: bool = false;

    fn at_step(&self, _step: f64) -> LionLpRule {
        let p = self.0.kappa_param;
        let whole = match 2.0 * p {
            _ if p.fract() == 0.0 => p,
            twice if twice.fract() == 0.0 => twice,
            _ => p.ceil(),
        };
        LionLpRule {
            options: self.0,
            root: Power::of(p / whole),
            whole: whole as u32,
            exponent: Power::of(p - 1.0),
            unit: Unit::of(0.0),
        }
    }
}

impl Kappa for LionLpRule {
    const SUMMED: Option<Summed> = Some(Summed::Powers);

    fn options(&self) -> Lion {
        self.options.options()
    }

    #[inline(always)]
    fn term<V: Vector>(&self, u: V) -> V {
        self.root.to(u.abs())
    }

    fn power(&self) -> u32 {
        self.whole
    }

    fn knowing(self, sum: f64) -> Self {
        let unit = Unit::of(sum.powf(1.0 / self.options.kappa_param));
        LionLpRule { unit, ..self }
    }

    #[inline(always)]
    fn gradient<V: Vector>(&self, u: V) -> V {
        let size = self.exponent.to(self.unit.times(u.abs()));
        let zero = V::splat(0.0);
        u.if_less(zero, -size, size)
    }
}

/// A positive power: by multiplications and a root where it is a half of a whole number, which takes the memory's time.
#[derive(Clone, Copy, Debug)]
enum Power {
    Halves(u32),
    Any(f64),
}

impl Power {
    fn of(exponent: f64) -> Power {
        match 2.0 * exponent {
            halves if halves.fract() == 0.0 && halves <= 16.0 => Power::Halves(halves as u32),
            _ => Power::Any(exponent),
        }
    }

    /// Of numbers that are not negative.
    #[inline(always)]
    fn to<V: Vector>(self, x: V) -> V {
        match self {
            Power::Halves(halves) => {
                let mut result = if halves % 2 == 0 { V::splat(1.0) } else { x.sqrt() };
                for _ in 0..halves / 2 {
                    result = result * x;
                }
                result
            }
            Power::Any(exponent) => pow(x, exponent),
        }
    }
}
