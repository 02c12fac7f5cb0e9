//! What differs between f32 and f64: constants, and polynomials of the degree that the digits ask for. Coefficients are
//! minimax, by Remez's algorithm with the weight of each term in the result.

/// An element type of vectors.
pub trait Format {
    /// Binary digits of a number.
    const DIGITS: u32;
    /// From 1 to the next number: 2 to the power of `1 - DIGITS`.
    const EPSILON: f64;
    const LEAST_NORMAL: f64;
    /// A number times this, taken from itself that way, leaves half of its digits.
    const SPREAD: f64;
    /// The natural logarithm of 2 in two parts: an exponent times the first is exact.
    const LN_2: [f64; 2];
    /// e to the power of these is 0 and infinite.
    const EXP_LEAST: f64;
    const EXP_GREATEST: f64;
    /// `(e^r - 1 - r) / r^2`, in r from -ln(2) / 2 up to ln(2) / 2.
    const EXP: &'static [f64];
    /// `(2 atanh(s) - 2 s) / s^3`, in s^2 up to that of sqrt(2) = (1 + s) / (1 - s).
    const LOG: &'static [f64];
    /// `(tanh(x) / x - 1) / x^2`, in x^2 up to that of [`TANH_UP_TO`].
    const TANH: &'static [f64];
}

/// Up to here tanh is a polynomial. From here on it is 1 less something below 1/2, and hardly loses by that.
pub const TANH_UP_TO: f64 = 0.625;

impl Format for f32 {
    const DIGITS: u32 = f32::MANTISSA_DIGITS;
    const EPSILON: f64 = f32::EPSILON as f64;
    const LEAST_NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const SPREAD: f64 = ((1 << 12) + 1) as f64;
    const LN_2: [f64; 2] = [45_426.0 / 65_536.0, 1.428_606_820_309_417_2e-6];
    const EXP_LEAST: f64 = -104.0;
    const EXP_GREATEST: f64 = 89.0;
    const EXP: &'static [f64] = &[
        0.499_999_934_497_131_2,
        0.166_665_206_315_446_05,
        0.041_668_387_407_261_71,
        0.008_368_716_961_357_344,
        0.001_381_463_913_025_120_3,
    ];
    const LOG: &'static [f64] = &[
        0.666_667_764_570_112_6,
        0.399_775_315_371_481_6,
        0.298_720_163_910_995_76,
    ];
    const TANH: &'static [f64] = &[
        -0.333_333_308_029_491_9,
        0.133_332_060_151_612_93,
        -0.053_946_763_760_943_506,
        0.021_700_706_450_844_57,
        -0.008_177_405_183_061_687,
        0.002_142_967_511_826_844_3,
    ];
}

impl Format for f64 {
    const DIGITS: u32 = f64::MANTISSA_DIGITS;
    const EPSILON: f64 = f64::EPSILON;
    const LEAST_NORMAL: f64 = f64::MIN_POSITIVE;
    const SPREAD: f64 = ((1 << 27) + 1) as f64;
    const LN_2: [f64; 2] = [
        3_048_493_539_143.0 / 4_398_046_511_104.0,
        5.497_923_018_708_371e-14,
    ];
    const EXP_LEAST: f64 = -746.0;
    const EXP_GREATEST: f64 = 710.0;
    const EXP: &'static [f64] = &[
        0.500_000_000_000_001_1,
        0.166_666_666_666_664_13,
        0.041_666_666_666_530_157,
        0.008_333_333_333_494_471,
        0.001_388_888_894_363_036,
        0.000_198_412_695_065_553_56,
        0.000_024_801_493_098_733_354,
        2.755_758_639_674_158e-6,
        2.763_024_842_243_285e-7,
        2.500_005_387_888_623_3e-8,
    ];
    const LOG: &'static [f64] = &[
        0.666_666_666_666_673_4,
        0.399_999_999_994_139_64,
        0.285_714_287_425_631_6,
        0.222_221_985_536_503_34,
        0.181_835_654_146_828_57,
        0.153_140_209_262_384_7,
        0.147_962_631_080_647_94,
    ];
    const TANH: &'static [f64] = &[
        -0.333_333_333_333_328_55,
        0.133_333_333_332_620_99,
        -0.053_968_253_931_270_465,
        0.021_869_487_576_147_147,
        -0.008_863_221_003_205_248,
        0.003_591_989_177_695_684_5,
        -0.001_454_958_894_709_591_2,
        0.000_586_316_586_429_717_1,
        -0.000_228_564_289_769_066_9,
        0.000_077_144_442_221_901_29,
        -0.000_016_072_600_938_954_578,
    ];
}
