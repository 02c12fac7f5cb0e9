//! Blocks of 8-bit codes with a scale each: the dynamic tree quantization of Dettmers et al. 2021, arXiv 2110.02861.

use std::sync::LazyLock;

/// Elements that share a scale. It divides [`BLOCK`](super::BLOCK), so that each of these blocks is one task's.
pub const CODE_BLOCK: usize = 256;

/// What codes stand for, as fractions of a block's scale. The numbers lie the closer the smaller they are, over seven
/// decades.
///
/// The scale is the block's number of greatest magnitude, with its sign, whose code stands for 1: so it is kept exactly,
/// and decoded numbers have the very codes that they come from. Others become the nearest number that has a code (within
/// roundings of f32, either of two at the same distance); but where none is negative, no positive number becomes zero:
/// what is divided by its root would be without bounds (Li et al. 2023, arXiv 2309.01507). Zeros stay zeros. A block with
/// a NaN or an infinity is all NaN; one without a normal f32 is all zero.
///
/// Number `n`, counted from that for zero, is the middle of a part of its decade, which has parts of one size, twice as
/// many as the decade below. So within a decade numbers are linear in `n`, and which decade it is, an exponent tells.
#[derive(Debug)]
pub struct Codebook {
    /// The code of zero. Those below it stand for the numbers of those above with the other sign.
    pub zero: u8,
    /// What is added to `2 * n` to make the number of which the exponent tells the decade.
    pub odd: u8,
    pub decode: Decoding,
    pub encode: Encoding,
}

/// Number `n` is `(9 * m - start) * unit`, where m is `2 * n + odd`: by the last three bits of m's exponent.
#[derive(Debug)]
pub struct Decoding {
    pub start: [f32; 8],
    pub unit: [f32; 8],
}

/// The `n` of a magnitude is `x * slope + offset`, rounded, `last` at most: by decades, with 1 for the last, of which the
/// first has place 7, the next one 0, and so on.
#[derive(Debug)]
pub struct Encoding {
    pub slope: [f32; 8],
    pub offset: [f32; 8],
    pub last: [f32; 8],
    /// The least magnitude of the decade's numbers.
    pub begin: [f32; 8],
    /// Magnitudes below it have the same code: its own.
    pub least: f32,
}

/// Before the greatest, 1.
const DECADES: usize = 7;

impl Codebook {
    /// Positive and negative numbers: from -0.993 to 1, the least magnitude is 5.5e-7.
    pub fn signed() -> &'static Codebook {
        static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(127));
        &BOOK
    }

    /// From 0 to 1, the least is 3.25e-7. What is below zero becomes zero.
    pub fn unsigned() -> &'static Codebook {
        static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(0));
        &BOOK
    }

    pub fn is_signed(&self) -> bool {
        self.zero > 0
    }

    /// The decade from `10^(i - 7)` on has `2^i` parts if there is a sign, else twice as many.
    fn new(zero: u8) -> Codebook {
        let (shift, greatest) = if zero > 0 { (0, 128.0) } else { (1, 255.0) };
        let odd = 2 * shift as u8 + 1;
        let place = |decade: usize| (decade + 7) % 8;
        // Zero and 1 are the ends of one line.
        let at = place(DECADES + shift);
        let (mut start, mut unit) = ([9.0 * f32::from(odd); 8], [0.0; 8]);
        unit[at] = (1.0 / (18.0 * greatest)) as f32;
        let (mut slope, mut offset, mut last, mut begin) = ([0.0; 8], [0.0; 8], [0.0; 8], [0.0; 8]);
        for i in 0..DECADES {
            let j = i + shift;
            let (parts, of_decade) = (f64::exp2(j as f64), 10_f64.powi(i as i32 - 7));
            let exact = of_decade / (2.0 * parts);
            (start[place(j)], unit[place(j)]) = ((16.0 * parts) as f32, exact as f32);
            slope[place(i)] = (1.0 / (18.0 * exact)) as f32;
            // Less a half, as what follows rounds to the nearest and the numbers are the middles.
            offset[place(i)] = (16.0 * parts / 18.0 - shift as f64 - 0.5) as f32;
            last[place(i)] = (2.0 * parts - 1.0 - shift as f64) as f32;
            let (top, above) = (
                of_decade * (10.0 - 4.5 / parts),
                10.0 * of_decade * (1.0 + 2.25 / parts),
            );
            begin[place(i + 1)] = ((top + if i + 1 < DECADES { above } else { 1.0 }) / 2.0) as f32;
        }
        if zero > 0 {
            // Half of the least magnitude and more are its code.
            (slope[place(0)], offset[place(0)]) = ((1.0 / 2.75e-7) as f32, -0.5);
        }
        (offset[place(DECADES)], last[place(DECADES)]) = (greatest as f32, greatest as f32);
        Codebook {
            zero,
            odd,
            decode: Decoding { start, unit },
            encode: Encoding {
                slope,
                offset,
                last,
                begin,
                least: if zero > 0 { 1e-7 } else { 3.25e-7 },
            },
        }
    }
}
