//! Blocks of 8-bit codes with a scale each: the dynamic tree quantization of Dettmers et al. 2021, arXiv 2110.02861.

use std::sync::LazyLock;

/// Elements that share a scale. It divides [`BLOCK`](super::BLOCK), so that each of these blocks is one task's.
pub const CODE_BLOCK: usize = 256;

/// What codes stand for, as fractions of a block's scale. The numbers lie the closer the smaller they are, over seven
/// decades.
///
/// The scale is the block's number of greatest magnitude, with its sign, whose code stands for 1: so it is kept exactly,
/// and decoded numbers have the very codes that they come from. Others become the nearest number that has a code, the
/// greater of two; but where none is negative, no positive number becomes zero: what is divided by its root would be
/// without bounds (Li et al. 2023, arXiv 2309.01507). Zeros stay zeros. A block with a NaN or an infinity is all NaN; one without a normal f32 is all zero.
#[derive(Debug)]
pub struct Codebook {
    /// By code, ascending.
    values: [f32; 256],
    zero: u8,
    /// By code: the least number that is as near to the next value.
    limits: [f32; 256],
    /// By the upper half of a number's bits: the code of the least number that has them. None has two limits.
    least: [u8; 1 << 16],
}

impl Codebook {
    /// Positive and negative numbers: from -0.993 to 1, the least magnitude is 5.5e-7.
    pub fn signed() -> &'static Codebook {
        static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(127, 1));
        &BOOK
    }

    /// From 0 to 1, the least is 3.25e-7. What is below zero becomes zero.
    pub fn unsigned() -> &'static Codebook {
        static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(0, 2));
        &BOOK
    }

    /// The codes above `zero`, that of a zero, stand for the middles of `parts` equal parts of the first decade, of twice
    /// as many of each next, and for 1; those below for the same numbers with the other sign.
    fn new(zero: u8, parts: u32) -> Codebook {
        let mut magnitudes = vec![0.0];
        for (i, top) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
            let parts = parts << i;
            let middle = |part: u32| 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts);
            magnitudes.extend((0..parts).map(|part| (top * middle(part)) as f32));
        }
        magnitudes.push(1.0);
        let values: [f32; 256] = std::array::from_fn(|code| match code.checked_sub(zero.into()) {
            Some(number) => magnitudes[number],
            None => -magnitudes[usize::from(zero) - code],
        });
        let mut limits = [f32::INFINITY; 256];
        for (limit, pair) in limits.iter_mut().zip(values.windows(2)) {
            let middle = (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
            let rounded = middle as f32;
            *limit = if f64::from(rounded) < middle {
                rounded.next_up()
            } else {
                rounded
            };
        }
        if zero == 0 {
            limits[0] = f32::from_bits(1);
        }
        let least = std::array::from_fn(|upper| {
            let ends = [0, 0xffff].map(|lower| f32::from_bits((upper as u32) << 16 | lower));
            let least = ends[0].min(ends[1]);
            limits.partition_point(|&limit| limit <= least) as u8
        });
        Codebook {
            values,
            zero,
            limits,
            least,
        }
    }

    /// The numbers of a block.
    #[inline(always)]
    pub fn decode(&self, codes: &[u8; CODE_BLOCK], scale: f32, to: &mut [f32; CODE_BLOCK]) {
        // In two loops: the first looks up, one by one, the second computes in vectors.
        for (number, &code) in to.iter_mut().zip(codes) {
            *number = self.values[usize::from(code)];
        }
        for number in to {
            // Adding zero makes a zero of a negative one, which a negative scale gives.
            *number = *number * scale + 0.0;
        }
    }

    /// Writes the codes of a block, which is filled up with zeros, and returns its scale.
    #[inline(always)]
    pub fn encode(&self, from: &[f32; CODE_BLOCK], codes: &mut [u8; CODE_BLOCK]) -> f32 {
        let scale = self.scale(from);
        if !scale.is_normal() {
            codes.fill(self.zero);
            return if scale.is_finite() { 0.0 } else { f32::NAN };
        }
        // In two loops, as above.
        let mut fractions = [0.0; CODE_BLOCK];
        for (fraction, &number) in fractions.iter_mut().zip(from) {
            *fraction = number / scale;
        }
        for (code, &fraction) in codes.iter_mut().zip(&fractions) {
            *code = self.code(fraction);
        }
        scale
    }

    /// The number of greatest magnitude, the positive one of two such; NaN is greater than all.
    #[inline(always)]
    fn scale(&self, from: &[f32; CODE_BLOCK]) -> f32 {
        let without_sign = self.zero == 0;
        let mut greatest = 0;
        for &number in from {
            let number = if without_sign & (number < 0.0) {
                0.0
            } else {
                number
            };
            // The sign goes to the lowest bit, to decide between equal magnitudes only.
            greatest = greatest.max(number.to_bits().rotate_left(1) ^ 1);
        }
        f32::from_bits((greatest ^ 1).rotate_right(1))
    }

    /// The code of a number between -1 and 1.
    #[inline(always)]
    fn code(&self, number: f32) -> u8 {
        let least = self.least[(number.to_bits() >> 16) as usize];
        least + u8::from(number >= self.limits[usize::from(least)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::vector::Noise;

    const BOOKS: [fn() -> &'static Codebook; 2] = [Codebook::signed, Codebook::unsigned];

    /// Numbers of a normal distribution, near enough.
    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let uniform = |i| (Noise::key(seed, i) >> 40) as f32 / (1 << 24) as f32;
        (0..count as u64)
            .map(|i| (12 * i..12 * i + 12).map(uniform).sum::<f32>() - 6.0)
            .collect()
    }

    fn round_trip(book: &Codebook, numbers: &[f32]) -> (Vec<u8>, f32, Vec<f32>) {
        let mut block = [0.0; CODE_BLOCK];
        block[..numbers.len()].copy_from_slice(numbers);
        let (mut codes, mut decoded) = ([0; CODE_BLOCK], [f32::NAN; CODE_BLOCK]);
        let scale = book.encode(&block, &mut codes);
        book.decode(&codes, scale, &mut decoded);
        (
            codes[..numbers.len()].to_vec(),
            scale,
            decoded[..numbers.len()].to_vec(),
        )
    }

    #[test]
    fn the_books_are_the_published_ones() {
        let (signed, unsigned) = (Codebook::signed(), Codebook::unsigned());
        for (book, code, value) in [
            (signed, 0, -0.992_968_75),
            (signed, 126, -5.5e-7),
            (signed, 127, 0.0),
            (signed, 128, 5.5e-7),
            (signed, 254, 0.992_968_75),
            (signed, 255, 1.0),
            (unsigned, 0, 0.0),
            (unsigned, 1, 3.25e-7),
            (unsigned, 254, 0.996_484_4),
            (unsigned, 255, 1.0),
        ] {
            assert_eq!(book.values[code], value, "code {code}");
        }
        assert!(BOOKS.iter().all(|book| book().values.is_sorted_by(|a, b| a < b)));
    }

    #[test]
    fn numbers_become_the_nearest_that_has_a_code() {
        for book in BOOKS.map(|book| book()) {
            let uppers = (0..1 << 16).map(|upper| f32::from_bits(upper << 16));
            let near = |x: f32| [x.next_down(), x, x.next_up()];
            for number in book
                .limits
                .into_iter()
                .chain(uppers)
                .flat_map(near)
                .filter(|x| x.abs() <= 1.0)
            {
                let distance =
                    |code: u8| (f64::from(book.values[usize::from(code)]) - f64::from(number)).abs();
                let code = book.code(number);
                if book.zero == 0 && (0.0..book.values[1]).contains(&number) {
                    assert_eq!(code, u8::from(number > 0.0), "{number}");
                    continue;
                }
                let nearest = (0..=255).map(distance).fold(f64::INFINITY, f64::min);
                assert_eq!(
                    distance(code),
                    nearest,
                    "{number} is not {}",
                    book.values[usize::from(code)]
                );
            }
        }
    }

    #[test]
    fn what_was_decoded_has_the_codes_that_it_came_from() {
        for book in BOOKS.map(|book| book()) {
            for len in [1, 2, 17, 255, CODE_BLOCK] {
                for power in [-126, -100, -20, 0, 20, 100, 123] {
                    let block: Vec<f32> = normal(len, len as u64)
                        .iter()
                        .map(|x| x * 2_f32.powi(power))
                        .collect();
                    let once = round_trip(book, &block);
                    assert_eq!(round_trip(book, &once.2), once, "{len} numbers near 2^{power}");
                }
            }
        }
    }

    #[test]
    fn the_error_is_that_of_seven_digits_at_most() {
        let numbers = normal(100 * CODE_BLOCK, 1);
        let decoded: Vec<f32> = numbers
            .chunks(CODE_BLOCK)
            .flat_map(|block| round_trip(Codebook::signed(), block).2)
            .collect();
        let square =
            |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let error = square(&mut numbers.iter().zip(&decoded).map(|(a, b)| a - b))
            / square(&mut numbers.iter().copied());
        assert!((0.01..0.012).contains(&error.sqrt()), "{}", error.sqrt());
        for (block, decoded) in numbers.chunks(CODE_BLOCK).zip(decoded.chunks(CODE_BLOCK)) {
            let greatest = |block: &[f32]| block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
            assert_eq!(greatest(block), greatest(decoded));
        }
    }

    #[test]
    fn signs_and_powers_of_two_pass_through() {
        let block = normal(CODE_BLOCK, 5);
        let (codes, scale, decoded) = round_trip(Codebook::signed(), &block);
        for factor in [-1.0, 0.125, 2_f32.powi(-90), -2_f32.powi(90)] {
            let scaled = round_trip(
                Codebook::signed(),
                &block.iter().map(|x| x * factor).collect::<Vec<_>>(),
            );
            assert_eq!(
                scaled,
                (
                    codes.clone(),
                    scale * factor,
                    decoded.iter().map(|x| x * factor).collect()
                )
            );
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_not_finite_is_seen() {
        for book in BOOKS.map(|book| book()) {
            for block in [[0.0, 0.0, 0.0], [0.0, -0.0, 1e-39], [0.0, -1e-39, 1e-45]] {
                let (codes, scale, decoded) = round_trip(book, &block);
                assert_eq!((codes, scale), (vec![book.zero; 3], 0.0));
                assert!(decoded.iter().all(|x| x.to_bits() == 0), "{decoded:?}");
            }
            for special in [f32::NAN, -f32::NAN, f32::INFINITY] {
                let (_, scale, decoded) = round_trip(book, &[1.0, special, 0.0]);
                assert!(scale.is_nan() && decoded.iter().all(|x| x.is_nan()), "{special}");
            }
        }
        // As memory comes from an allocation of zeros.
        let mut decoded = [f32::NAN; CODE_BLOCK];
        Codebook::signed().decode(&[0; CODE_BLOCK], 0.0, &mut decoded);
        assert!(decoded.iter().all(|x| x.to_bits() == 0), "{decoded:?}");
        let decoded = round_trip(Codebook::signed(), &[0.0, -3.0, 1.0]).2;
        assert_eq!((decoded[0].to_bits(), decoded[1]), (0, -3.0));
        assert_eq!(
            round_trip(Codebook::unsigned(), &[-5.0, 2.0, -1.0]).2,
            [0.0, 2.0, 0.0]
        );
    }
}
