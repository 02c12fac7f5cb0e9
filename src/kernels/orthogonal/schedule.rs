//! The coefficients of the iteration: for every step an odd polynomial `a σ + b σ³ + c σ⁵` of the singular values.

use std::fmt;

/// Coefficients (a, b, c) of one step.
pub type Triple = [f64; 3];

/// Keller Jordan's Muon, https://kellerjordan.github.io/posts/muon/
const KELLER: [Triple; 1] = [[3.4445, -4.7750, 2.0315]];
/// Su Jianlin's per-step coefficients ("YOU"), as in gram-newton-schulz.
const QUINTIC: [Triple; 5] = [
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
];
/// Polar Express, arXiv 2505.16932, without a safety factor.
const POLAR_EXPRESS: [Triple; 8] = [
    [8.28721201814563, -23.595886519098837, 17.300387312530933],
    [4.107059111542203, -2.9478499167379106, 0.5448431082926601],
    [3.9486908534822946, -2.908902115962949, 0.5518191394370137],
    [3.3184196573706015, -2.488488024314874, 0.51004894012372],
    [2.300652019954817, -1.6689039845747493, 0.4188073119525673],
    [1.891301407787398, -1.2679958271945868, 0.37680408948524835],
    [1.8750014808534479, -1.2500016453999487, 0.3750001645474248],
    [1.875, -1.25, 0.375],
];
/// CANS, arXiv 2506.10935, without a safety factor.
const CANS: [Triple; 5] = [
    [8.4703, -25.1081, 18.6293],
    [4.1828, -3.1087, 0.5806],
    [3.9619, -2.9541, 0.5630],
    [3.2866, -2.4647, 0.5074],
    [2.2737, -1.6447, 0.4162],
];
/// microsoft/dion's Polar Express: their own constants, a safety factor of 1.02 in all but the last.
const DION_POLAR: [Triple; 5] = [
    [8.156554524902461, -22.48329292557795, 15.878769915207462],
    [4.042929935166739, -2.808917465908714, 0.5000178451051316],
    [3.8916678022926607, -2.772484153217685, 0.5060648178503393],
    [3.285753657755655, -2.3681294933425376, 0.46449024233003106],
    [2.3465413258596377, -1.7097828382687081, 0.42323551169305323],
];
/// DeepSeek V4: Keller's eight times, then two that end at 1.
const DEEPSEEK_V4: [Triple; 10] = [
    KELLER[0],
    KELLER[0],
    KELLER[0],
    KELLER[0],
    KELLER[0],
    KELLER[0],
    KELLER[0],
    KELLER[0],
    [2.0, -1.5, 0.5],
    [2.0, -1.5, 0.5],
];
/// Five cubic steps, from CANS as well; they belong together.
const CUBIC5: [Triple; 5] = [
    [3.3656576, -3.3420992, 0.0],
    [2.5744352, -1.4957376, 0.0],
    [2.5368962, -1.4312570, 0.0],
    [2.4418906, -1.2764040, 0.0],
    [2.2230472, -0.9630650, 0.0],
];
/// The Taylor coefficients: slow and sure.
const CLASSIC: [Triple; 1] = [[1.875, -1.25, 0.375]];

/// What names are understood, for error messages.
const NAMES: &str = "keller, quintic, polar_express_F, cans_F, dion_polar_1.02, deepseekv4, cubic5, classic \
                     (F: a safety factor such as 1.01)";

/// How far beyond 1 singular values must stay positive. Rounding to bf16 can leave 1 + 2⁻⁸.
const LARGEST: f64 = 1.01;
/// For `cubic5`, which turns negative at 1.0035.
const LARGEST_EXACT: f64 = 1.003;
/// The smallest safety factor, for the same 1 + 2⁻⁸.
const SMALLEST_FACTOR: f64 = 1.004;

/// One triple for every step, known to keep every singular value in (0, 1.01] positive.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    triples: Vec<Triple>,
    exact: bool,
}

/// Why a schedule was refused.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleError {
    Unknown {
        name: String,
    },
    Factor {
        name: String,
    },
    Steps {
        name: String,
        steps: usize,
        needed: usize,
    },
    Empty,
    NotPositive {
        sigma: f64,
        image: f64,
        step: usize,
    },
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScheduleError::Unknown { name } => {
                write!(f, "no coefficients called {name:?}; known are {NAMES}")
            }
            ScheduleError::Factor { name } => {
                write!(
                    f,
                    "{name:?} needs a safety factor of {SMALLEST_FACTOR} to 2 in its name, such as {name}_1.01"
                )
            }
            ScheduleError::Steps { name, steps, needed } => {
                write!(f, "{name} is made for {needed} steps, got {steps}")
            }
            ScheduleError::Empty => write!(f, "expected at least one step and one triple of coefficients"),
            ScheduleError::NotPositive { sigma, image, step } => write!(
                f,
                "coefficients take the singular value {sigma:.6} to {image:.6} in step {step}; \
                 those in (0, {LARGEST}] must stay positive and finite"
            ),
        }
    }
}

impl std::error::Error for ScheduleError {}

impl Schedule {
    /// The schedule called `name`; `steps`: how many (default: as published, and 5 where any number will do). The
    /// last triple repeats; fewer steps than were published together are refused.
    pub fn named(name: &str, steps: Option<usize>) -> Result<Schedule, ScheduleError> {
        let guarded = |triples: &[Triple], factor: &str| {
            let factor: f64 = factor
                .parse()
                .ok()
                .filter(|f| (SMALLEST_FACTOR..=2.0).contains(f))
                .ok_or_else(|| ScheduleError::Factor {
                    name: name.trim_end_matches(factor).trim_end_matches('_').into(),
                })?;
            // Each step is the best after those before it, so that the first few serve as well.
            let triples = triples
                .iter()
                .take(steps.unwrap_or(5))
                .map(|[a, b, c]| [a / factor, b / factor.powi(3), c / factor.powi(5)]);
            Schedule::new(&triples.collect::<Vec<_>>(), steps.unwrap_or(5))
        };
        let wrong_steps = |triples: &[Triple]| ScheduleError::Steps {
            name: name.into(),
            steps: steps.unwrap_or(0),
            needed: triples.len(),
        };
        let whole = |triples: &[Triple]| match steps {
            Some(steps) if steps < triples.len() => Err(wrong_steps(triples)),
            _ => Schedule::new(triples, steps.unwrap_or(triples.len())),
        };
        match name {
            "keller" => Schedule::new(&KELLER, steps.unwrap_or(5)),
            "quintic" => whole(&QUINTIC),
            "dion_polar_1.02" => whole(&DION_POLAR),
            "deepseekv4" => whole(&DEEPSEEK_V4),
            "classic" => Schedule::new(&CLASSIC, steps.unwrap_or(5)),
            "cubic5" if steps.is_none_or(|steps| steps == 5) => Schedule {
                triples: CUBIC5.to_vec(),
                exact: true,
            }
            .checked(LARGEST_EXACT),
            "cubic5" => Err(wrong_steps(&CUBIC5)),
            _ => match (name.strip_prefix("polar_express"), name.strip_prefix("cans")) {
                (Some(factor), _) => guarded(&POLAR_EXPRESS, factor.trim_start_matches('_')),
                (_, Some(factor)) => guarded(&CANS, factor.trim_start_matches('_')),
                _ => Err(ScheduleError::Unknown { name: name.into() }),
            },
        }
    }

    /// `triples` in turn, the last one repeated up to `steps`; all must have their turn.
    pub fn new(triples: &[Triple], steps: usize) -> Result<Schedule, ScheduleError> {
        if (1..triples.len()).contains(&steps) {
            return Err(ScheduleError::Steps {
                name: format!("a sequence of {} triples", triples.len()),
                steps,
                needed: triples.len(),
            });
        }
        let last = *triples.last().filter(|_| steps > 0).ok_or(ScheduleError::Empty)?;
        let triples: Vec<_> = triples
            .iter()
            .copied()
            .chain(std::iter::repeat(last))
            .take(steps)
            .collect();
        Schedule {
            triples,
            exact: false,
        }
        .checked(LARGEST)
    }

    /// Whether the coefficients leave no room for bf16's rounding of singular values near 1.
    pub fn needs_exact_factors(&self) -> bool {
        self.exact
    }

    /// The triple of every step.
    pub fn triples(&self) -> &[Triple] {
        &self.triples
    }

    /// The singular value that becomes of `sigma`.
    pub fn image(&self, sigma: f64) -> f64 {
        self.triples
            .iter()
            .fold(sigma, |sigma, triple| polynomial(triple, sigma))
    }

    /// On evenly spaced values, and on small ones evenly spaced in the exponent.
    fn checked(self, largest: f64) -> Result<Schedule, ScheduleError> {
        const POINTS: i32 = 20_000;
        let even = (1..=POINTS).map(|i| largest * f64::from(i) / f64::from(POINTS));
        let small = (0..2_000).map(|i| 10f64.powf(f64::from(-i) / 200.0));
        for start in even.chain(small) {
            let mut sigma = start;
            for (step, triple) in self.triples.iter().enumerate() {
                sigma = polynomial(triple, sigma);
                if !(sigma > 0.0 && sigma.is_finite()) {
                    return Err(ScheduleError::NotPositive {
                        sigma: start,
                        image: sigma,
                        step,
                    });
                }
            }
        }
        Ok(self)
    }
}

fn polynomial([a, b, c]: &Triple, sigma: f64) -> f64 {
    let square = sigma * sigma;
    sigma * (a + square * (b + square * c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec of the family, section 2: the images of [1e-2, 1], and the slope at 0.
    #[test]
    fn presets_have_their_published_images() {
        for (name, low, high, slope) in [
            ("keller", 0.682, 1.134, 485.0),
            ("quintic", 0.978, 1.032, 493.0),
            ("dion_polar_1.02", 0.859, 1.141, 990.0),
            ("deepseekv4", 0.9999, 1.0006, 7.9e4),
            ("cubic5", 0.774, 1.300, 119.0),
            ("classic", 0.229, 1.0, 23.0),
        ] {
            check_images(&Schedule::named(name, None).unwrap(), low, high, slope);
        }
        // Without a safety factor, which their names insist on.
        for (triples, low, high, slope) in [
            (&POLAR_EXPRESS[..5], 0.876, 1.124, 1026.0),
            (&CANS[..], 0.884, 1.120, 1049.0),
        ] {
            let schedule = Schedule {
                triples: triples.to_vec(),
                exact: true,
            };
            check_images(&schedule, low, high, slope);
        }
        let keller = Schedule::named("keller", None).unwrap();
        for (sigma, image) in [
            (1.0, 0.6964364094697522),
            (0.6, 0.722876168617117),
            (0.8, 1.1192039299160428),
        ] {
            assert!((keller.image(sigma) - image).abs() < 1e-14);
        }
    }

    fn check_images(schedule: &Schedule, low: f64, high: f64, slope: f64) {
        let images = (0..=200_000).map(|i| schedule.image(0.01 + 0.99 * f64::from(i) / 2e5));
        let (min, max) = images.fold((f64::MAX, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
        assert!(
            (min - low).abs() < 1.1e-3 && (max - high).abs() < 1.1e-3,
            "{schedule:?}: {min} {max}"
        );
        let at_zero: f64 = schedule.triples().iter().map(|t| t[0]).product();
        assert!((at_zero / slope - 1.0).abs() < 0.01, "{schedule:?}: {at_zero}");
    }

    #[test]
    fn guarded_presets_are_safe_and_raw_ones_refused() {
        for name in [
            "polar_express_1.01",
            "polar_express_1.05",
            "cans_1.01",
            "cans_1.02",
        ] {
            let schedule = Schedule::named(name, None).unwrap();
            let images = (1..=200_000).map(|i| schedule.image(1.01 * f64::from(i) / 2e5));
            assert!(images.fold(f64::MAX, f64::min) > 0.0, "{name}");
        }
        let named = |name| Schedule::named(name, None).unwrap_err();
        assert_eq!(named("cans"), ScheduleError::Factor { name: "cans".into() });
        assert_eq!(
            named("polar_express_x"),
            ScheduleError::Factor {
                name: "polar_express".into()
            }
        );
        assert_eq!(
            named("polar_express_1.001"),
            ScheduleError::Factor {
                name: "polar_express".into()
            }
        );
        assert!(named("aol").to_string().contains("keller"));
        for (name, steps) in [("cubic5", 4), ("cubic5", 6), ("quintic", 1), ("deepseekv4", 5)] {
            let error = Schedule::named(name, Some(steps)).unwrap_err();
            assert!(
                error.to_string().contains(&format!("{name} is made for")),
                "{error}"
            );
        }
        assert!(Schedule::named("polar_express_1.01", Some(3)).is_ok());
        assert!(Schedule::new(&QUINTIC, 4).is_err());
        assert_eq!(Schedule::new(&[], 5), Err(ScheduleError::Empty));
        assert_eq!(Schedule::new(&KELLER, 0), Err(ScheduleError::Empty));
        // A published set that takes 1 to -0.585 in its first step.
        assert!(Schedule::new(&[[4.0098, -7.0585, 2.4635]], 1).is_err());
        assert!(Schedule::new(&[[f64::NAN, 0.0, 0.0]], 1).is_err());
    }

    #[test]
    fn the_last_triple_repeats() {
        let schedule = Schedule::named("polar_express_1.01", Some(10)).unwrap();
        assert_eq!(schedule.triples().len(), 10);
        assert_eq!(schedule.triples()[9], schedule.triples()[7]);
    }
}
