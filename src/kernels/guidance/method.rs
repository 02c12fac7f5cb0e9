//! What each method makes of the sums over a sample.

use super::MAX_INPUTS;
use crate::kernels::linear::Sums;

/// A variance below this share of the mean square is none: it is a difference of sums, good to some 1e-13 of them.
const ROUNDING: f64 = 1e-12;

/// Factors of what is combined; see [`Method`] for what that is.
pub type Coefficients = [f64; MAX_INPUTS];

/// A method of guidance, by which a conditional prediction c and an unconditional one u become one.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Classifier-free guidance (arXiv 2207.12598): u + scale d, d = c - u.
    Cfg,
    /// Adaptive projected guidance (arXiv 2410.02416).
    Apg(Apg),
    /// CFG-Zero* (arXiv 2503.18886): CFG with u times the factor that brings it closest to c.
    ZeroStar,
    /// Tangential CFG (arXiv 2503.18137): CFG with u's component along the first right singular vector of (c, u).
    Tangential,
    /// Magnitude-aware guidance (MAMBO-G, arXiv 2508.03442): CFG whose strength, scale - 1, is multiplied by
    /// exp(-alpha |d| / |u|).
    MagnitudeAware { alpha: f64 },
    /// Perp-Neg (arXiv 2304.04968): CFG with d less the components orthogonal to d of n - u, for each negative
    /// prediction n, times its weight.
    PerpNeg { weights: Vec<f64> },
    /// The components of the second tensor along the first and orthogonal to it.
    Project,
}

/// Adaptive projected guidance: what d has along c shrinks by `eta`, after d was shrunk to the norm `threshold`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Apg {
    pub eta: f64,
    pub threshold: f64,
    /// d is the momentum d + momentum * (the last one) where this is given.
    pub momentum: Option<f64>,
    /// c + (scale - 1) d as the paper has it, or u + scale d.
    pub from_uncond: bool,
}

/// A method, its scale, and how much of the result's standard deviation is made the conditional prediction's (arXiv
/// 2305.08891).
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    pub method: Method,
    /// One for all samples, or one for each.
    pub scales: Vec<f64>,
    pub rescale: f64,
}

/// Sums over a sample of what is combined.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gram {
    pub count: f64,
    pub sums: Coefficients,
    /// Of products; only those with `i <= j`.
    pub products: [Coefficients; MAX_INPUTS],
}

impl Gram {
    /// Of sums over `count` elements.
    pub fn of<const N: usize>(sums: &Sums<N>, count: usize) -> Gram {
        let mut gram = Gram {
            count: count as f64,
            ..Gram::default()
        };
        for i in 0..N {
            gram.sums[i] = sums.sums[i];
            gram.products[i][..N].copy_from_slice(&sums.products[i]);
        }
        gram
    }
}

impl Guidance {
    /// The number of tensors: c, u, and the momentum or the negative predictions.
    pub fn inputs(&self) -> usize {
        match &self.method {
            Method::PerpNeg { weights, .. } => 2 + weights.len(),
            _ => 2 + usize::from(self.momentum().is_some()),
        }
    }

    pub fn outputs(&self) -> usize {
        1 + usize::from(self.method == Method::Project)
    }

    pub fn momentum(&self) -> Option<f64> {
        match self.method {
            Method::Apg(apg) => apg.momentum,
            _ => None,
        }
    }

    /// Whether c, d and n - u are combined, rather than the tensors: methods of d would lose it where c and u are close.
    pub fn takes_differences(&self) -> bool {
        match self.method {
            Method::Cfg | Method::MagnitudeAware { .. } | Method::PerpNeg { .. } => true,
            Method::Apg(apg) => apg.momentum.is_none(),
            Method::ZeroStar | Method::Tangential | Method::Project => false,
        }
    }

    pub fn needs_means(&self) -> bool {
        self.rescale != 0.0
    }

    /// Whether the coefficients depend on the scale only.
    pub fn is_constant(&self) -> bool {
        self.method == Method::Cfg && !self.needs_means()
    }

    /// Of a sample; any number stands for it where all have one scale.
    pub fn scale(&self, sample: usize) -> f64 {
        self.scales[sample % self.scales.len()]
    }

    /// The coefficients for each output.
    pub fn coefficients(&self, gram: &Gram, scale: f64) -> [Coefficients; 2] {
        // Of the first two that are combined: c and d, c and u, or what is projected on and what is.
        let [aa, ab, bb] = [gram.products[0][0], gram.products[0][1], gram.products[1][1]];
        let first = match &self.method {
            Method::Cfg => with(&[1.0, scale - 1.0]),
            Method::Apg(apg) => apg.coefficients(gram, scale),
            Method::ZeroStar => with(&[scale, (1.0 - scale) * (ab / (bb + 1e-8))]),
            Method::Tangential => {
                // The eigenvector of the largest eigenvalue of ((|c|², <c, u>), (<c, u>, |u|²)).
                let (sin, cos) = (0.5 * (2.0 * ab).atan2(aa - bb)).sin_cos();
                with(&[scale + (1.0 - scale) * cos * sin, (1.0 - scale) * sin * sin])
            }
            Method::MagnitudeAware { alpha } => {
                // Any number does where there is no d; without u, d is infinitely long beside it.
                let damping = if *alpha == 0.0 || bb == 0.0 {
                    1.0
                } else {
                    let uncond = (aa - 2.0 * ab + bb).max(0.0);
                    (-alpha * (bb / uncond).sqrt()).exp()
                };
                with(&[1.0, (scale - 1.0) * damping])
            }
            Method::PerpNeg { weights } => {
                let mut all = with(&[1.0, scale - 1.0]);
                for (i, weight) in weights.iter().enumerate() {
                    all[1] += scale * weight * ratio(gram.products[1][2 + i], bb);
                    all[2 + i] = -scale * weight;
                }
                all
            }
            Method::Project => {
                let along = ratio(ab, aa);
                return [with(&[along, 0.0]), with(&[-along, 1.0])];
            }
        };
        let factor = self.rescaling(gram, &first);
        [first.map(|each| each * factor), with(&[])]
    }

    /// Of a result with these coefficients.
    fn rescaling(&self, gram: &Gram, coefficients: &Coefficients) -> f64 {
        if !self.needs_means() {
            return 1.0;
        }
        let covariance =
            |i: usize, j: usize| gram.products[i.min(j)][i.max(j)] - gram.sums[i] * gram.sums[j] / gram.count;
        let told = |variance: f64, square: f64| {
            if variance <= ROUNDING * square {
                0.0
            } else {
                variance
            }
        };
        let (mut variance, mut size) = (0.0, 0.0);
        for i in 0..self.inputs() {
            size += coefficients[i].abs() * gram.products[i][i].sqrt();
            for j in 0..self.inputs() {
                variance += coefficients[i] * coefficients[j] * covariance(i, j);
            }
        }
        let variance = told(variance, size * size);
        // A constant result has no deviation to change.
        if variance == 0.0 {
            return 1.0;
        }
        let goal = told(covariance(0, 0), gram.products[0][0]);
        self.rescale * (goal / variance).sqrt() + (1.0 - self.rescale)
    }
}

impl Apg {
    fn coefficients(&self, gram: &Gram, scale: f64) -> Coefficients {
        let direction = if self.momentum.is_some() { 2 } else { 1 };
        let norm = gram.products[direction][direction].sqrt();
        let shrink = if self.threshold > 0.0 && norm > self.threshold {
            self.threshold / norm
        } else {
            1.0
        };
        let along = ratio(gram.products[0][direction], gram.products[0][0]);
        let strength = shrink * if self.from_uncond { scale } else { scale - 1.0 };
        let lost = strength * (1.0 - self.eta) * along;
        match (self.momentum, self.from_uncond) {
            (None, false) => with(&[1.0 - lost, strength]),
            (None, true) => with(&[1.0 - lost, strength - 1.0]),
            (Some(_), false) => with(&[1.0 - lost, 0.0, strength]),
            (Some(_), true) => with(&[-lost, 1.0, strength]),
        }
    }
}

/// A projection's factor; nothing lies along zero.
fn ratio(dividend: f64, divisor: f64) -> f64 {
    if divisor == 0.0 { 0.0 } else { dividend / divisor }
}

fn with(first: &[f64]) -> Coefficients {
    std::array::from_fn(|i| first.get(i).copied().unwrap_or(0.0))
}
