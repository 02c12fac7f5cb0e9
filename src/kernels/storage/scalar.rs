//! Single elements as f64.

/// Elements that can be taken in.
pub trait Scalar: Copy + Send + Sync {
    fn wide(self) -> f64;
}

macro_rules! scalar {
    ($($type:ty),*) => { $(impl Scalar for $type {
        #[inline(always)]
        fn wide(self) -> f64 {
            f64::from(self)
        }
    })* };
}
scalar!(f32, f64);

// Not `f64::from`: half's own conversions ask the CPU for its features element by element.
impl Scalar for half::bf16 {
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(f32::from_bits(u32::from(self.to_bits()) << 16))
    }
}

impl Scalar for half::f16 {
    #[inline(always)]
    fn wide(self) -> f64 {
        let bits = u32::from(self.to_bits());
        let (sign, rest) = ((bits & 0x8000) << 16, bits & 0x7fff);
        // The exponent moves from f16's place and bias to f32's by a multiplication, which also serves subnormals.
        let finite = f32::from_bits(rest << 13) * f32::from_bits((254 - 15) << 23);
        let value = if rest >= 0x7c00 {
            f32::from_bits(0x7f80_0000 | rest << 13)
        } else {
            finite
        };
        f64::from(f32::from_bits(value.to_bits() | sign))
    }
}
