//! Blocks of 8-bit codes with a scale each: the dynamic tree quantization of Dettmers et al. 2021, arXiv 2110.02861.

use std::sync::LazyLock;

use super::Scalar;

/// Elements that share a scale. It divides [`BLOCK`](super::BLOCK), so that each of these blocks is one task's.
pub const CODE_BLOCK: usize = 256;

/// The code of a zero where there are signs; codes below stand for negative numbers.
const SIGNED_ZERO: u8 = 127;

/// Numbers of so few binary digits, sign and exponent apart, share a bucket.
const BUCKET_DIGITS: u32 = 7;
const BUCKET_SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - BUCKET_DIGITS;
/// The bucket of 2^-23, which is nearer to zero than to the least number that has a code.
const FIRST_BUCKET: u32 = 0x3400_0000 >> BUCKET_SHIFT;
const BUCKETS: usize = (0x3f80_0000 >> BUCKET_SHIFT) as usize - FIRST_BUCKET as usize + 1;

/// What codes stand for, as fractions of a block's scale. The numbers lie the closer the smaller they are, over seven
/// decades.
///
/// The scale is the block's number of greatest magnitude, with its sign, whose code stands for 1: so it is kept exactly,
/// and decoded numbers have the very codes that they come from. Others become the nearest number that has a code, ties
/// away from zero. Zeros stay zeros. A block with a NaN or an infinity is all NaN; one without a normal f32 is all zero.
#[derive(Debug)]
pub struct Codebook {
    /// By code.
    values: [f32; 256],
    zero: u8,
    /// By the number of a magnitude, in their order: the least that is nearer to the next one.
    limits: [f32; 256],
    /// By bucket: the number of the magnitude nearest to the least in the bucket.
    nearest: [u8; BUCKETS],
}

impl Codebook {
    /// Positive and negative numbers: from -0.993 to 1, the least magnitude is 5.5e-7.
    pub fn signed() -> &'static Codebook {
        static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(SIGNED_ZERO));
        &BOOK
    }

    /// From 0 to 1, the least is 3.25e-7. What is below zero becomes zero.
    pub fn unsigned() -> &'static Codebook {
        static BOOK: LazyLock<Codebook> = LazyLock::new(|| Codebook::new(0));
        &BOOK
    }

    fn new(zero: u8) -> Codebook {
        // The codes above that of zero stand for the middles of 1, 2, 4, ... equal parts of each decade, or of twice as
        // many where there are no signs, and for 1.
        let mut magnitudes = vec![0.0];
        let first = if zero == 0 { 2 } else { 1 };
        for (i, top) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
            let parts = first << i;
            let middle = |part: u32| 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(parts);
            magnitudes.extend((0..parts).map(|part| (top * middle(part)) as f32));
        }
        magnitudes.push(1.0);
        let mut limits = [f32::INFINITY; 256];
        for (limit, pair) in limits.iter_mut().zip(magnitudes.windows(2)) {
            let middle = (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
            let rounded = middle as f32;
            *limit = if f64::from(rounded) < middle {
                rounded.next_up()
            } else {
                rounded
            };
        }
        let nearest = std::array::from_fn(|bucket| {
            let least = f32::from_bits((bucket as u32 + FIRST_BUCKET) << BUCKET_SHIFT);
            limits.partition_point(|&limit| limit <= least) as u8
        });
        let value = |code: usize| match code.checked_sub(zero.into()) {
            Some(number) => magnitudes[number],
            None => -magnitudes[usize::from(zero) - code],
        };
        Codebook {
            values: std::array::from_fn(value),
            zero,
            limits,
            nearest,
        }
    }

    /// The numbers of a block.
    #[inline(always)]
    pub fn decode<T: From<f32>>(&self, codes: &[u8], scale: f32, to: &mut [T]) {
        for (number, &code) in to.iter_mut().zip(codes) {
            // Adding zero makes a zero of a negative one, which a negative scale gives.
            *number = (self.values[usize::from(code)] * scale + 0.0).into();
        }
    }

    /// Writes the codes of a block and returns its scale.
    #[inline(always)]
    pub fn encode<T: Scalar>(&self, from: &[T], codes: &mut [u8]) -> f32 {
        let scale = self.scale(from);
        if !scale.is_normal() {
            codes.fill(self.zero);
            return if scale.is_finite() { 0.0 } else { f32::NAN };
        }
        for (code, &number) in codes.iter_mut().zip(from) {
            *code = self.code(number.wide() as f32 / scale);
        }
        scale
    }

    /// The number of greatest magnitude, the positive one of two such; NaN is greater than all.
    #[inline(always)]
    fn scale<T: Scalar>(&self, from: &[T]) -> f32 {
        let positive_only = self.zero == 0;
        let mut greatest = 0;
        for &number in from {
            let number = number.wide() as f32;
            let number = if positive_only & (number < 0.0) {
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
        let magnitude = number.abs();
        let bucket = (magnitude.to_bits() >> BUCKET_SHIFT).saturating_sub(FIRST_BUCKET) as usize;
        // A bucket has one limit at most.
        let below = self.nearest[bucket.min(BUCKETS - 1)];
        let nearest = below + u8::from(magnitude >= self.limits[usize::from(below)]);
        if number < 0.0 {
            self.zero - nearest.min(self.zero)
        } else {
            self.zero + nearest
        }
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

    fn round_trip(book: &Codebook, block: &[f32]) -> (Vec<u8>, f32, Vec<f32>) {
        let (mut codes, mut decoded) = (vec![0; block.len()], vec![f32::NAN; block.len()]);
        let scale = book.encode(block, &mut codes);
        book.decode(&codes, scale, &mut decoded);
        (codes, scale, decoded)
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
            let limits = book.limits.iter().filter(|limit| limit.is_finite());
            let edges =
                (0..=BUCKETS as u32).map(|bucket| f32::from_bits((bucket + FIRST_BUCKET) << BUCKET_SHIFT));
            let near = |x: f32| [x.next_down(), x, x.next_up()];
            let magnitudes: Vec<f32> = limits.copied().chain(edges).flat_map(near).collect();
            for number in magnitudes
                .iter()
                .flat_map(|&x| [x, -x])
                .filter(|x| x.abs() <= 1.0)
            {
                let distance =
                    |code: u8| (f64::from(book.values[usize::from(code)]) - f64::from(number)).abs();
                let code = book.code(number);
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
        let mut decoded = [f32::NAN; 2];
        Codebook::signed().decode(&[0, 0], 0.0, &mut decoded);
        assert_eq!(decoded.map(f32::to_bits), [0, 0]);
        let decoded = round_trip(Codebook::signed(), &[0.0, -3.0, 1.0]).2;
        assert_eq!((decoded[0].to_bits(), decoded[1]), (0, -3.0));
        assert_eq!(
            round_trip(Codebook::unsigned(), &[-5.0, 2.0, -1.0]).2,
            [0.0, 2.0, 0.0]
        );
    }
}
