//! Log-normal noise after a rule: each parameter times the exponential of a normal number, which follows from the
//! stream and the element.

use super::egd::multiplied;
use super::sweep::{Kernel, Span};
use super::tiles::TILE;
use super::{Rule, Unsupported, kernel};
use crate::kernels::storage::{Buffers, Float, Rounding, State};
use crate::kernels::vector::math::{log, polynomial};
use crate::kernels::vector::{Bits, Distribution, Noise, Single, Vector, draw};
use crate::runtime::Isa;

/// What is done to a parameter after its rule.
#[derive(Clone, Copy)]
pub struct Disturbance {
    kernel: Kernel<Factor, 1>,
    factor: Factor,
    stream: u64,
}

/// The exponential of a normal number times this.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    deviation: f64,
}

impl Rule<1> for Factor {
    const IN_16_BITS: bool = true;
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, p: V, _: V, [normal]: [V; 1]) -> (V, [V; 1]) {
        (multiplied(p, normal * self.deviation, 0.0), [normal])
    }
}

impl Disturbance {
    /// Refuses combinations of types that have no kernel. The stream is that of a tensor at a step.
    pub fn new(deviation: f64, stream: u64, param: Float, rounding: Rounding) -> Result<Self, Unsupported> {
        Ok(Disturbance {
            kernel: kernel(param, param.arithmetic(), rounding)?,
            factor: Factor { deviation },
            stream,
        })
    }

    /// Disturbs block number `index` of the parameter.
    ///
    /// # Safety
    /// The buffers are valid, of the types that this was made for, and nothing else uses the parameter meanwhile.
    pub unsafe fn run<const N: usize>(&self, block: &Buffers<N>, index: u64) {
        let key = Noise::key(self.stream, index);
        let mut normals = [0.0_f32; TILE];
        let mut wide = [0.0_f64; TILE];
        for start in (0..block.len).step_by(TILE) {
            let tile = block.part(start, TILE.min(block.len - start));
            draw(Isa::current(), Normal, key, start as u32, &mut normals);
            let data = match block.dtype.arithmetic() {
                Float::F64 => {
                    for (wide, &normal) in wide.iter_mut().zip(&normals) {
                        *wide = normal.into();
                    }
                    wide.as_mut_ptr().cast()
                }
                _ => normals.as_mut_ptr().cast(),
            };
            let state = State::float(data, block.dtype.arithmetic());
            // Other numbers than those that rounded the rule's result.
            let noise = Noise {
                key: Noise::key(key, 0),
                counter: start as u32,
            };
            // SAFETY: the caller's promise, and there are as many numbers as elements.
            unsafe {
                (self.kernel)(
                    &self.factor,
                    &Span::new(&tile.with_states([state]), [data], 1.0, noise),
                    None,
                )
            };
        }
    }
}

/// The standard normal distribution.
#[derive(Clone, Copy)]
struct Normal;

impl Distribution for Normal {
    #[inline(always)]
    fn of<V: Single>(self, bits: V::Bits) -> V {
        normal(bits)
    }
}

/// The standard normal number of which the distribution's value is what 23 bits say: the inverse by polynomials in the
/// logarithm (as Giles, GPU Computing Gems 2011, has it; the coefficients are minimax), to about 3 parts in 10 million.
#[inline(always)]
fn normal<V: Single>(bits: V::Bits) -> V {
    const NEAR: &[f64] = &[
        2.123_313_566_671_039,
        0.348_802_659_901_310_76,
        -0.005_908_170_970_510_771,
        -0.001_773_010_154_878_696_7,
        0.000_309_150_203_673_962_47,
        -6.217_993_015_792_824e-6,
        -4.990_565_442_302_378e-6,
        4.861_039_600_596_762e-7,
        4.035_465_440_004_589e-8,
    ];
    const FAR: &[f64] = &[
        4.006_434_262_592_569,
        1.416_581_150_853_944_3,
        0.013_354_433_842_121_953,
        -0.010_778_376_722_807_227,
        0.008_073_090_809_817_262,
        -0.005_205_904_932_579_671,
        0.002_012_032_658_947_009_3,
        0.000_157_856_776_382_993_73,
        -0.000_360_223_436_000_771_8,
    ];
    // From 2 up to 4, less 3, and half a step: odd multiples of 2^-23 between -1 and 1.
    let two_to_four = bits.shr::<9>().or(V::Bits::splat(0x4000_0000));
    let x = V::from_bits(two_to_four) + -3.0 + 2.0_f64.powi(-23);
    let w = -log((V::splat(1.0) - x) * (x + 1.0));
    let near = polynomial(NEAR, w + -2.5);
    let far = polynomial(FAR, w.sqrt() + -3.0);
    x * w.if_less(V::splat(5.0), near, far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::elementwise::tests::one_at_a_time;
    use crate::kernels::vector::{Arch, MAX_LANES, Routine, dispatch};

    fn normals(key: u64, first: u32) -> [f32; TILE] {
        let mut to = [0.0; TILE];
        let to_every = Isa::supported().into_iter().map(|isa| {
            let mut to = [0.0; TILE];
            draw(isa, Normal, key, first, &mut to);
            to
        });
        for found in to_every {
            assert!(to == [0.0; TILE] || to.map(f32::to_bits) == found.map(f32::to_bits));
            to = found;
        }
        to
    }

    #[test]
    fn numbers_are_normal_on_every_instruction_set() {
        let _turn = one_at_a_time();
        let all: Vec<f64> = (0..256)
            .flat_map(|i| normals(Noise::key(7, i), 0))
            .map(f64::from)
            .collect();
        let count = all.len() as f64;
        let moment = |power| all.iter().map(|x: &f64| x.powi(power)).sum::<f64>() / count;
        // Four standard errors of a quarter of a million numbers.
        for (power, expected, allowed) in [(1, 0.0, 0.008), (2, 1.0, 0.012), (3, 0.0, 0.031), (4, 3.0, 0.08)]
        {
            assert!(
                (moment(power) - expected).abs() < allowed,
                "{power}: {}",
                moment(power)
            );
        }
        let beyond = all.iter().filter(|x| x.abs() > 3.0).count() as f64 / count;
        assert!((beyond - 0.0027).abs() < 0.0005, "{beyond}");
    }

    #[test]
    fn numbers_follow_from_the_element() {
        let _turn = one_at_a_time();
        assert_eq!(normals(3, 0)[512..], normals(3, 512)[..512]);
        assert!(normals(3, 0) != normals(4, 0));
    }

    #[test]
    fn extreme_bits_are_far_out() {
        struct Extremes;
        impl Routine for Extremes {
            type Output = [f32; 2];

            #[inline(always)]
            unsafe fn run<A: Arch>(self) -> [f32; 2] {
                [0, u32::MAX].map(|bits| {
                    let mut lanes = [0.0; MAX_LANES];
                    let bits = <A::F32 as Single>::Bits::splat(bits);
                    // SAFETY: there is room for the longest vector.
                    unsafe { normal::<A::F32>(bits).store_f32(lanes.as_mut_ptr()) };
                    lanes[0]
                })
            }
        }
        // The quantiles of 2^-24 and 1 - 2^-24.
        let [least, most] = dispatch(Isa::current(), Extremes);
        assert!((most - 5.294_7).abs() < 1e-4 && least == -most, "{least} {most}");
    }
}
