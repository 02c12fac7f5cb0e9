//! Codes to numbers and back, on the vectors of any instruction set.

use crate::kernels::storage::{CODE_BLOCK, Codebook};
use crate::kernels::vector::{Arch, Bits, MAX_LANES, Routine, Single, dispatch, prefetch};
use crate::runtime::Isa;

/// Writes the numbers that codes stand for.
pub fn decode(book: &Codebook, codes: &[u8], scales: &[f32], to: &mut [f32]) {
    let routine = Decode {
        book,
        codes,
        scales,
        to,
    };
    dispatch(Isa::current(), routine);
}

/// Writes codes for numbers, and the scale of each block.
pub fn encode(book: &Codebook, from: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    let routine = Encode {
        book,
        from,
        codes,
        scales,
    };
    dispatch(Isa::current(), routine);
}

struct Decode<'a> {
    book: &'a Codebook,
    codes: &'a [u8],
    scales: &'a [f32],
    to: &'a mut [f32],
}

struct Encode<'a> {
    book: &'a Codebook,
    from: &'a [f32],
    codes: &'a mut [u8],
    scales: &'a mut [f32],
}

impl Routine for Decode<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        match self.book.is_signed() {
            true => self.decode::<A, true>(),
            false => self.decode::<A, false>(),
        }
    }
}

impl Decode<'_> {
    #[inline(always)]
    fn decode<A: Arch, const SIGNED: bool>(self) {
        let (codes, last_codes) = self.codes.as_chunks();
        let (blocks, last) = self.to.as_chunks_mut();
        for ((to, codes), &scale) in blocks.iter_mut().zip(codes).zip(self.scales) {
            prefetch::<A, u8>(codes.as_ptr(), 0, CODE_BLOCK);
            decode_block::<A::F32, SIGNED>(self.book, codes, scale, to);
        }
        if let Some(&scale) = self.scales.get(blocks.len()) {
            let (mut codes, mut to) = ([0; CODE_BLOCK], [0.0; CODE_BLOCK]);
            codes[..last.len()].copy_from_slice(last_codes);
            decode_block::<A::F32, SIGNED>(self.book, &codes, scale, &mut to);
            last.copy_from_slice(&to[..last.len()]);
        }
    }
}

impl Routine for Encode<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        match self.book.is_signed() {
            true => self.encode::<A::F32, true>(),
            false => self.encode::<A::F32, false>(),
        }
    }
}

impl Encode<'_> {
    #[inline(always)]
    fn encode<V: Single, const SIGNED: bool>(self) {
        let (blocks, last) = self.from.as_chunks();
        let (codes, last_codes) = self.codes.as_chunks_mut();
        // All scales first: each takes a while that the others fill.
        for (from, scale) in blocks.iter().zip(&mut *self.scales) {
            *scale = greatest::<V, SIGNED>(from);
        }
        for ((from, codes), scale) in blocks.iter().zip(codes).zip(&mut *self.scales) {
            *scale = encode_block::<V, SIGNED>(self.book, from, *scale, codes);
        }
        if let Some(scale) = self.scales.get_mut(blocks.len()) {
            let (mut from, mut codes) = ([0.0; CODE_BLOCK], [0; CODE_BLOCK]);
            from[..last.len()].copy_from_slice(last);
            *scale = encode_block::<V, SIGNED>(self.book, &from, greatest::<V, SIGNED>(&from), &mut codes);
            last_codes.copy_from_slice(&codes[..last.len()]);
        }
    }
}

/// The bits of an f32 below the exponent.
const FRACTION: u32 = 23;
const SIGN: u32 = 1 << 31;

/// Vectors that take each step of the arithmetic together: a number's steps wait for each other, and those of one vector
/// after the other would not fill the CPU.
const TOGETHER: usize = 4;

/// The numbers of a block.
#[inline(always)]
fn decode_block<V: Single, const SIGNED: bool>(
    book: &Codebook,
    codes: &[u8; CODE_BLOCK],
    scale: f32,
    to: &mut [f32; CODE_BLOCK],
) {
    let (start, unit) = (V::table(&book.decode.start), V::table(&book.decode.unit));
    let (zero, odd) = (-f64::from(book.zero), f64::from(book.odd) / 2.0);
    for i in (0..CODE_BLOCK).step_by(TOGETHER * V::LANES) {
        let mut from_zero = [V::splat(0.0); TOGETHER];
        for (j, from_zero) in from_zero.iter_mut().enumerate() {
            // SAFETY: as many elements as there are lanes, `TOGETHER` times which divide the block.
            let code = V::of_integers(unsafe { V::Bits::load_u8(codes.as_ptr().add(i + j * V::LANES)) });
            *from_zero = if SIGNED { code + zero } else { code };
        }
        let mut numbers = from_zero;
        for number in &mut numbers {
            let m = if SIGNED { number.abs() } else { *number } + odd;
            let decade = m.to_bits().shr::<FRACTION>();
            *number = (m * 18.0 - start.pick(decade)) * unit.pick(decade);
        }
        for (j, (magnitude, from_zero)) in numbers.into_iter().zip(from_zero).enumerate() {
            let number = match SIGNED {
                // Adding zero makes a zero of a negative one, which a negative scale gives.
                true => with_sign_of(from_zero, magnitude) * f64::from(scale) + 0.0,
                false => magnitude * f64::from(scale),
            };
            // SAFETY: as above.
            unsafe { number.store_f32(to.as_mut_ptr().add(i + j * V::LANES)) }
        }
    }
}

/// `x` if `sign` has none, else `-x`.
#[inline(always)]
fn with_sign_of<V: Single>(sign: V, x: V) -> V {
    V::from_bits(sign.to_bits().and(V::Bits::splat(SIGN)).xor(x.to_bits()))
}

/// Writes the codes of a block, which is filled up with zeros and has the given greatest number, and returns its scale.
#[inline(always)]
fn encode_block<V: Single, const SIGNED: bool>(
    book: &Codebook,
    from: &[f32; CODE_BLOCK],
    greatest: f32,
    codes: &mut [u8; CODE_BLOCK],
) -> f32 {
    if !greatest.is_normal() {
        codes.fill(book.zero);
        return if greatest.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = f64::from(1.0 / greatest);
    let lines = Lines::new(book);
    for i in (0..CODE_BLOCK).step_by(TOGETHER * V::LANES) {
        let mut fractions = [V::splat(0.0); TOGETHER];
        for (j, fraction) in fractions.iter_mut().enumerate() {
            // SAFETY: as many elements as there are lanes, `TOGETHER` times which divide the block.
            *fraction = unsafe { V::load_f32(from.as_ptr().add(i + j * V::LANES)) } * inverse;
        }
        // SAFETY: as above.
        unsafe { V::Bits::store_saturated_u8(lines.codes::<SIGNED>(fractions), codes.as_mut_ptr().add(i)) }
    }
    greatest
}

/// The lines on which the codes of each decade lie.
struct Lines<V> {
    begin: V,
    slope: V,
    offset: V,
    last: V,
    least: f64,
    zero: u32,
}

impl<V: Single> Lines<V> {
    #[inline(always)]
    fn new(book: &Codebook) -> Self {
        Lines {
            begin: V::table(&book.encode.begin),
            slope: V::table(&book.encode.slope),
            offset: V::table(&book.encode.offset),
            last: V::table(&book.encode.last),
            least: book.encode.least.into(),
            zero: book.zero.into(),
        }
    }

    /// The codes of fractions of a scale; of -1, for which there is none, the one below that of the least; without a sign
    /// less than 0 for what is below zero.
    #[inline(always)]
    fn codes<const SIGNED: bool>(&self, fractions: [V; TOGETHER]) -> [V::Bits; TOGETHER] {
        let mut magnitudes = fractions;
        let mut decades = [V::Bits::splat(0); TOGETHER];
        for (magnitude, above) in magnitudes.iter_mut().zip(&mut decades) {
            let least = V::splat(self.least);
            *magnitude = if SIGNED { magnitude.abs() } else { *magnitude }.max(least);
            *above = decade_or_above(*magnitude);
        }
        for (magnitude, decade) in magnitudes.iter().zip(&mut decades) {
            let is_below = (*magnitude - self.begin.pick(*decade)).to_bits().sar::<31>();
            *decade = decade.add(is_below);
        }
        for (number, &decade) in magnitudes.iter_mut().zip(&decades) {
            *number =
                (*number * self.slope.pick(decade) + self.offset.pick(decade)).min(self.last.pick(decade));
        }
        let mut codes = decades;
        for ((code, number), fraction) in codes.iter_mut().zip(magnitudes).zip(fractions) {
            *code = match SIGNED {
                true => with_sign_of(fraction, number)
                    .to_integers()
                    .add(V::Bits::splat(self.zero)),
                // Of zero the bits are 0, of what is below it they are less; of all others they are more than any code.
                false => number.to_integers().signed_min(fraction.to_bits()),
            };
        }
        codes
    }
}

/// In the last three bits the place of a magnitude's decade, or of the one above it, from the least of the book up to 1;
/// the decades' numbers begin up to their first part above a power of ten.
#[inline(always)]
fn decade_or_above<V: Single>(magnitude: V) -> V::Bits {
    // The upper bits of a number are, near enough, 2^7 times 127 more than its logarithm to the base 2; times 154 / 2^16
    // that is the logarithm to the base 10 and 38.2, and where decades begin half of one is to spare on either side.
    magnitude.to_bits().mul_upper(154).shr::<16>()
}

/// The number of greatest magnitude, the positive one of two such; NaN is greater than all. Without a sign negative
/// numbers are zero.
#[inline(always)]
fn greatest<V: Single, const SIGNED: bool>(from: &[f32; CODE_BLOCK]) -> f32 {
    let (positive, negative) = greatest_bits::<V, SIGNED>(from);
    match SIGNED {
        true if negative < SIGN || negative - SIGN <= positive => f32::from_bits(positive),
        true => f32::from_bits(negative),
        false if negative < SIGN => f32::from_bits(negative),
        false => {
            let or_nan = |greatest, &x: &f32| if x > greatest || x.is_nan() { x } else { greatest };
            from.iter().fold(0.0, or_nan)
        }
    }
}

/// The greatest of the numbers' bits as signed integers, which are in the order of the numbers but for negative ones, and
/// as unsigned integers, of which the negative numbers are the greater ones, by their size.
#[inline(always)]
fn greatest_bits<V: Single, const SIGNED: bool>(from: &[f32; CODE_BLOCK]) -> (u32, u32) {
    let (mut positive, mut negative) = (V::Bits::splat(SIGN), V::Bits::splat(0));
    for i in (0..CODE_BLOCK).step_by(V::LANES) {
        // SAFETY: as many elements as there are lanes, which divide the block, from `i` on.
        let bits = unsafe { V::load_f32(from.as_ptr().add(i)) }.to_bits();
        if SIGNED {
            positive = positive.signed_max(bits);
        }
        negative = negative.max(bits);
    }
    let (mut signed, mut unsigned) = ([0; MAX_LANES], [0; MAX_LANES]);
    // SAFETY: there is room for the longest vector.
    unsafe {
        positive.store_u32(signed.as_mut_ptr());
        negative.store_u32(unsigned.as_mut_ptr());
    }
    let lanes = &signed[..V::LANES];
    (
        lanes.iter().fold(i32::MIN, |a, &b| a.max(b as i32)) as u32,
        unsigned.into_iter().fold(0, u32::max),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::elementwise::tests::one_at_a_time;
    use crate::kernels::vector::Noise;

    const BOOKS: [fn() -> &'static Codebook; 2] = [Codebook::signed, Codebook::unsigned];

    /// Numbers of a normal distribution, near enough.
    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let uniform = |i| (Noise::key(seed, i) >> 40) as f32 / (1 << 24) as f32;
        (0..count as u64)
            .map(|i| (12 * i..12 * i + 12).map(uniform).sum::<f32>() - 6.0)
            .collect()
    }

    /// What all instruction sets give.
    fn on_all<T: PartialEq + std::fmt::Debug>(run: impl Fn() -> T) -> T {
        let _turn = one_at_a_time();
        let results = Isa::supported().into_iter().map(|isa| {
            isa.select();
            run()
        });
        results
            .reduce(|first, other| {
                assert_eq!(first, other);
                first
            })
            .unwrap()
    }

    fn decoded(book: &Codebook, codes: &[u8], scales: &[f32]) -> Vec<f32> {
        // By their bits, as NaN is to equal itself.
        let bits = on_all(|| {
            let mut numbers = vec![f32::NAN; codes.len()];
            decode(book, codes, scales, &mut numbers);
            numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        bits.into_iter().map(f32::from_bits).collect()
    }

    fn encoded(book: &Codebook, numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let (codes, scales) = on_all(|| {
            let mut codes = vec![0; numbers.len()];
            let mut scales = vec![0.0; numbers.len().div_ceil(CODE_BLOCK)];
            encode(book, numbers, &mut codes, &mut scales);
            (codes, scales.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        (codes, scales.into_iter().map(f32::from_bits).collect())
    }

    fn round_trip(book: &Codebook, numbers: &[f32]) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        let (codes, scales) = encoded(book, numbers);
        let numbers = decoded(book, &codes, &scales);
        (codes, scales, numbers)
    }

    /// What the codes stand for.
    fn values(book: &Codebook) -> Vec<f32> {
        decoded(book, &(0..=255).collect::<Vec<_>>(), &[1.0])
    }

    #[test]
    fn the_books_are_the_published_ones() {
        for (book, code, value) in [
            (Codebook::signed(), 0, -0.992_968_75),
            (Codebook::signed(), 126, -5.5e-7),
            (Codebook::signed(), 127, 0.0),
            (Codebook::signed(), 128, 5.5e-7),
            (Codebook::signed(), 254, 0.992_968_75),
            (Codebook::signed(), 255, 1.0),
            (Codebook::unsigned(), 0, 0.0),
            (Codebook::unsigned(), 1, 3.25e-7),
            (Codebook::unsigned(), 254, 0.996_484_4),
            (Codebook::unsigned(), 255, 1.0),
        ] {
            let found: f32 = values(book)[code];
            assert!(
                (found - value).abs() <= 1e-7 * value.abs(),
                "code {code}: {found}"
            );
        }
        for book in BOOKS.map(|book| book()) {
            assert!(values(book).is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn numbers_become_the_nearest_that_has_a_code() {
        for book in BOOKS.map(|book| book()) {
            let values = values(book);
            let ends = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
            let near = |x: f32| [x * (1.0 - 1e-6), x, x * (1.0 + 1e-6)];
            let spread = (0..200_000).map(|i| f32::from_bits(0x3f80_0000 - 1500 * i));
            let numbers: Vec<f32> = ends.flat_map(near).chain(spread.flat_map(|x| [x, -x])).collect();
            let mut blocks = vec![];
            for part in numbers.chunks(CODE_BLOCK - 1) {
                blocks.push(1.0);
                blocks.extend(part);
            }
            for (&number, code) in blocks.iter().zip(encoded(book, &blocks).0) {
                if !book.is_signed() && number < values[1] {
                    assert_eq!(code, u8::from(number > 0.0), "{number}");
                    continue;
                }
                let distance = |value: f32| (f64::from(value) - f64::from(number)).abs();
                let nearest = values.iter().copied().map(distance).fold(f64::INFINITY, f64::min);
                let found = values[usize::from(code)];
                let allowed = nearest + 1e-6 * f64::from(number.abs());
                assert!(distance(found) <= allowed, "{number} is not {found}");
            }
        }
    }

    #[test]
    fn what_was_decoded_has_the_codes_that_it_came_from() {
        for book in BOOKS.map(|book| book()) {
            for len in [1, 2, 17, 255, CODE_BLOCK, 3 * CODE_BLOCK + 5] {
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
        let decoded = round_trip(Codebook::signed(), &numbers).2;
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
                    vec![scale[0] * factor],
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
                assert_eq!((codes, scale), (vec![book.zero; 3], vec![0.0]));
                assert!(decoded.iter().all(|x| x.to_bits() == 0), "{decoded:?}");
            }
            for special in [f32::NAN, -f32::NAN, f32::INFINITY] {
                let (_, scale, decoded) = round_trip(book, &[1.0, special, 0.0]);
                assert!(
                    scale[0].is_nan() && decoded.iter().all(|x| x.is_nan()),
                    "{special}"
                );
            }
        }
        // As memory comes from an allocation of zeros.
        let zeros = decoded(Codebook::signed(), &[0; CODE_BLOCK], &[0.0]);
        assert!(zeros.iter().all(|x| x.to_bits() == 0), "{zeros:?}");
        let decoded = round_trip(Codebook::signed(), &[0.0, -3.0, 1.0]).2;
        assert_eq!((decoded[0].to_bits(), decoded[1]), (0, -3.0));
        assert_eq!(
            round_trip(Codebook::unsigned(), &[-5.0, 2.0, -1.0]).2,
            [0.0, 2.0, 0.0]
        );
    }
}
