//! States that are stored in different ways, or as codes, and whatever a rule has no kernel for: a tile of the numbers
//! at a time is taken into the type of the arithmetic, updated by the kernel for that type, and stored again. So no
//! kernel is needed for each of the ways together, and where there is one the results are the same.

use super::sweep::{Kernel, Span};
use super::{Rule, Unsupported, coded, is_supported, kernel};
use crate::kernels::linear::Norms;
use crate::kernels::storage::{Buffers, CODE_BLOCK, Float, Rounding, State, Storage};
use crate::kernels::vector::{Noise, Vector};

/// Elements that are taken in at once; with their states they stay in the nearest cache.
pub const TILE: usize = 4 * CODE_BLOCK;

/// The kernel for [`run`]: each state may be stored in any way that all of them could be, and as codes where the
/// arithmetic is that of f32.
pub fn kernel_of<R: Rule<N>, const N: usize>(buffers: &Buffers<N>) -> Result<Kernel<R, N>, Unsupported> {
    let work = buffers.dtype.arithmetic();
    let is_coded = buffers.state.iter().any(|state| state.dtype().is_none());
    let mut dtypes = buffers.state.iter().filter_map(State::dtype).chain([work]);
    if is_coded && work != Float::F32
        || !dtypes.all(|state| is_supported(buffers.dtype, state, buffers.rounding))
    {
        return Err(Unsupported);
    }
    match R::IN_16_BITS {
        true => kernel(buffers.dtype, work, buffers.rounding),
        false => kernel(work, work, Rounding::Nearest),
    }
}

/// Room in which no vector crosses the lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Aligned<T>(T);

/// Applies a rule to a block, adds its gradient to the norms, if there are any, and returns what the rule counted.
///
/// # Safety
/// The kernel is that of [`kernel_of`]; the buffers are valid for `len` elements and do not overlap.
pub unsafe fn run<R: Rule<N>, const N: usize>(
    kernel: Kernel<R, N>,
    rule: &R,
    block: &Buffers<N>,
    scale: f64,
    noise: Noise,
    mut norms: Option<&mut Norms>,
) -> u32 {
    let work = block.dtype.arithmetic();
    let is_widened = !R::IN_16_BITS && block.dtype != work;
    let mut room = [Aligned([0_u64; TILE]); N];
    let mut param = Aligned([0_f32; TILE]);
    let mut counted = 0;
    for start in (0..block.len).step_by(TILE) {
        let tile = block.part(start, TILE.min(block.len - start));
        let narrow = tile.with_states([]);
        let param = param.0.as_mut_ptr().cast();
        let mut numbers = [std::ptr::null_mut(); N];
        // SAFETY: the caller's promise, and the room is large enough for numbers of any type.
        unsafe {
            for ((numbers, state), room) in numbers.iter_mut().zip(&tile.state).zip(&mut room) {
                *numbers = load(state, work, tile.len, room.0.as_mut_ptr().cast());
            }
            let noise = Noise {
                counter: noise.counter + start as u32,
                ..noise
            };
            let mut span = Span::new(&tile, numbers, scale, noise);
            if is_widened {
                convert(Widen, &narrow, param, noise);
                span.param = param;
            }
            counted += kernel(rule, &span, norms.as_deref_mut());
            if is_widened && R::WRITES_PARAM {
                convert(Narrow, &narrow, param, noise);
            }
            for (numbers, state) in numbers.iter().zip(&tile.state).take(R::WRITES_STATES) {
                store(state, work, tile.len, *numbers);
            }
        }
    }
    counted
}

/// Writes the numbers that a parameter stands for, in the type of the arithmetic.
///
/// # Safety
/// As for [`convert`].
pub unsafe fn read(param: &Buffers<0>, to: *mut u8) {
    // SAFETY: the caller's promise is the same.
    unsafe { convert(Widen, param, to, Noise::NONE) };
}

/// Where `len` numbers of a state are in the type of the arithmetic: in its own memory if it is of that type, else in
/// `room`.
///
/// # Safety
/// Both are valid for `len` elements, and nothing else uses them meanwhile.
pub unsafe fn load(state: &State, work: Float, len: usize, room: *mut u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        match state.storage {
            Storage::Float(dtype) if dtype == work => return state.data,
            Storage::Float(dtype) => convert(Widen, &narrow(dtype, state.data, len), room, Noise::NONE),
            Storage::Codes(codes) => {
                let scales = std::slice::from_raw_parts(codes.scales, len.div_ceil(CODE_BLOCK));
                let bytes = std::slice::from_raw_parts(state.data, len);
                let numbers = std::slice::from_raw_parts_mut(room.cast(), len);
                coded::decode(codes.book, bytes, scales, numbers);
            }
        }
    }
    room
}

/// Stores the numbers from where [`load`] said that they are.
///
/// # Safety
/// As for [`load`].
unsafe fn store(state: &State, work: Float, len: usize, numbers: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match state.storage {
            Storage::Float(dtype) if dtype == work => {}
            Storage::Float(dtype) => convert(Narrow, &narrow(dtype, state.data, len), numbers, Noise::NONE),
            Storage::Codes(codes) => {
                let scales = std::slice::from_raw_parts_mut(codes.scales, len.div_ceil(CODE_BLOCK));
                let bytes = std::slice::from_raw_parts_mut(state.data, len);
                let numbers = std::slice::from_raw_parts(numbers.cast(), len);
                coded::encode(codes.book, numbers, bytes, scales);
            }
        }
    }
}

/// The state becomes what the parameter is.
#[derive(Clone, Copy)]
pub struct Widen;

/// The parameter becomes what the state is.
#[derive(Clone, Copy)]
pub struct Narrow;

impl Rule<1> for Widen {
    const IN_16_BITS: bool = true;
    const WRITES_PARAM: bool = false;

    #[inline(always)]
    fn update<V: Vector>(&self, narrow: V, _: V, _: [V; 1]) -> (V, [V; 1]) {
        (narrow, [narrow])
    }
}

impl Rule<1> for Narrow {
    const IN_16_BITS: bool = true;
    const WRITES_STATES: usize = 0;

    #[inline(always)]
    fn update<V: Vector>(&self, _: V, _: V, [wide]: [V; 1]) -> (V, [V; 1]) {
        (wide, [wide])
    }
}

/// A state in 16 bits as a tensor of its own.
fn narrow(dtype: Float, data: *mut u8, len: usize) -> Buffers<0> {
    Buffers {
        dtype,
        len,
        param: data,
        grad_dtype: dtype,
        grad: data,
        state: [],
        rounding: Rounding::Nearest,
        compensation: std::ptr::null_mut(),
    }
}

/// Converts between a tensor and numbers of its arithmetic's type as kernels do. Its gradient plays no part.
///
/// # Safety
/// Both are valid for the tensor's elements, and nothing else uses them meanwhile.
unsafe fn convert<R: Rule<1>>(rule: R, narrow: &Buffers<0>, wide: *mut u8, noise: Noise) {
    let work = narrow.dtype.arithmetic();
    let kernel = kernel::<R, 1>(narrow.dtype, work, narrow.rounding);
    let both = narrow.with_states([State::float(wide, work)]);
    // SAFETY: the caller's promise.
    unsafe {
        kernel.expect("the arithmetic's type beside any")(&rule, &Span::new(&both, [wide], 1.0, noise), None)
    };
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::kernels::elementwise::tests::{ADAMW, Number, numbers, one_at_a_time};
    use crate::kernels::elementwise::{self, Hyperparameters, Updates, adamw};
    use crate::kernels::storage::{BLOCK, Codebook, Codes};
    use crate::runtime::Isa;

    /// A state tensor in any storage.
    #[derive(Clone, Debug, PartialEq)]
    enum Stored {
        F32(Vec<f32>),
        F16(Vec<f16>),
        Bf16(Vec<bf16>),
        Codes {
            signed: bool,
            codes: Vec<u8>,
            scales: Vec<f32>,
        },
    }

    impl Stored {
        fn codes(signed: bool) -> Stored {
            Stored::Codes {
                signed,
                codes: vec![],
                scales: vec![],
            }
        }

        fn book(signed: bool) -> &'static Codebook {
            if signed {
                Codebook::signed()
            } else {
                Codebook::unsigned()
            }
        }

        fn state(&mut self) -> State {
            match self {
                Stored::F32(all) => State::float(all.as_mut_ptr().cast(), Float::F32),
                Stored::F16(all) => State::float(all.as_mut_ptr().cast(), Float::F16),
                Stored::Bf16(all) => State::float(all.as_mut_ptr().cast(), Float::Bf16),
                Stored::Codes {
                    signed,
                    codes,
                    scales,
                } => State {
                    data: codes.as_mut_ptr(),
                    storage: Storage::Codes(Codes {
                        book: Stored::book(*signed),
                        scales: scales.as_mut_ptr(),
                    }),
                },
            }
        }

        fn get(&self) -> Vec<f64> {
            match self {
                Stored::F32(all) => all.iter().map(|&x| x.into()).collect(),
                Stored::F16(all) => all.iter().map(|x| x.to_f64()).collect(),
                Stored::Bf16(all) => all.iter().map(|x| x.to_f64()).collect(),
                Stored::Codes {
                    signed,
                    codes,
                    scales,
                } => {
                    let mut numbers = vec![0.0; codes.len()];
                    coded::decode(Stored::book(*signed), codes, scales, &mut numbers);
                    numbers.into_iter().map(f64::from).collect()
                }
            }
        }

        fn put(&mut self, numbers: &[f64]) {
            let singles = numbers.iter().map(|&x| x as f32);
            match self {
                Stored::F32(all) => *all = singles.collect(),
                Stored::F16(all) => *all = singles.map(f16::from_f32).collect(),
                Stored::Bf16(all) => *all = singles.map(bf16::from_f32).collect(),
                Stored::Codes {
                    signed,
                    codes,
                    scales,
                } => {
                    let singles: Vec<_> = singles.collect();
                    *codes = vec![0; singles.len()];
                    *scales = vec![0.0; singles.len().div_ceil(CODE_BLOCK)];
                    coded::encode(Stored::book(*signed), &singles, codes, scales);
                }
            }
        }
    }

    /// A parameter with its states.
    #[derive(Clone, Debug, PartialEq)]
    struct Tensor<P, const N: usize> {
        param: Vec<P>,
        /// For parameters of 16 bits, which alone use it.
        compensation: Vec<u16>,
        states: [Stored; N],
    }

    impl<P: Number, const N: usize> Tensor<P, N> {
        fn new(len: usize, mut states: [Stored; N]) -> Self {
            states.iter_mut().for_each(|state| state.put(&vec![0.0; len]));
            Tensor {
                param: numbers(len, 1).into_iter().map(P::of).collect(),
                compensation: vec![0; len],
                states,
            }
        }

        fn step(&mut self, hyper: &impl Hyperparameters<N>, step: u32, rounding: Rounding, threads: usize) {
            let grad: Vec<P> = numbers(self.param.len(), 2 + u64::from(step))
                .into_iter()
                .map(P::of)
                .collect();
            let mut states = self.states.iter_mut();
            let buffers = Buffers {
                dtype: P::DTYPE,
                len: self.param.len(),
                param: self.param.as_mut_ptr().cast(),
                grad_dtype: P::DTYPE,
                grad: grad.as_ptr().cast(),
                state: std::array::from_fn(|_| states.next().unwrap().state()),
                rounding: rounding.at(0, step.into()),
                compensation: self.compensation.as_mut_ptr().cast(),
            };
            let mut batch = Updates::with_capacity(1);
            // SAFETY: the vectors have `len` elements and outlive the batch.
            unsafe { batch.push(hyper.at_step(step.into()), buffers) }.unwrap();
            elementwise::run(&[Box::new(batch)], threads);
        }
    }

    /// Trains with the states as they are, and beside it with states of the arithmetic's type that are put through the
    /// storage after every step.
    fn check<P: Number, const N: usize>(
        hyper: &impl Hyperparameters<N>,
        rounding: Rounding,
        states: [Stored; N],
    ) {
        let work = Stored::F32(vec![]);
        for len in [1, 15, CODE_BLOCK - 1, CODE_BLOCK, TILE + 1, BLOCK + TILE + 77] {
            let mut results = vec![];
            for isa in Isa::supported() {
                isa.select();
                let mut tensor = Tensor::<P, N>::new(len, states.clone());
                let mut model = Tensor::<P, N>::new(len, std::array::from_fn(|_| work.clone()));
                for step in 1..=3 {
                    tensor.step(hyper, step, rounding, 1);
                    model.step(hyper, step, rounding, 1);
                    for (state, stored) in model.states.iter_mut().zip(&mut states.clone()) {
                        stored.put(&state.get());
                        state.put(&stored.get());
                    }
                }
                assert!(
                    tensor.param == model.param,
                    "{isa:?}, {rounding:?}, {len}: parameters"
                );
                assert!(
                    tensor.compensation == model.compensation,
                    "{isa:?}, {rounding:?}, {len}: compensation"
                );
                for (state, model) in tensor.states.iter().zip(&model.states) {
                    assert!(
                        state.get() == model.get(),
                        "{isa:?}, {rounding:?}, {len}: {states:?}"
                    );
                }
                results.push(tensor);
            }
            assert!(
                results.windows(2).all(|pair| pair[0] == pair[1]),
                "instruction sets differ at length {len}"
            );
        }
    }

    #[test]
    fn states_of_any_storage_are_those_of_the_arithmetic_put_through_it() {
        let _turn = one_at_a_time();
        let (f32s, f16s, bf16s) = (Stored::F32(vec![]), Stored::F16(vec![]), Stored::Bf16(vec![]));
        let (signed, unsigned) = (Stored::codes(true), Stored::codes(false));
        let nearest = Rounding::Nearest;
        check::<f32, 2>(&ADAMW, nearest, [bf16s.clone(), f32s.clone()]);
        check::<f32, 2>(&ADAMW, nearest, [signed.clone(), f32s.clone()]);
        let three = [signed.clone(), bf16s.clone(), f32s.clone()];
        check::<f32, 3>(&adamw::AmsGrad(ADAMW), nearest, three);
        let stochastic = Rounding::Stochastic { stream: 3 };
        for rounding in [nearest, stochastic, Rounding::Kahan, Rounding::Split] {
            check::<bf16, 2>(&ADAMW, rounding, [signed.clone(), unsigned.clone()]);
            check::<bf16, 2>(&ADAMW, rounding, [bf16s.clone(), f32s.clone()]);
        }
        for rounding in [nearest, stochastic, Rounding::Kahan] {
            check::<f16, 2>(&ADAMW, rounding, [f16s.clone(), bf16s.clone()]);
        }
    }

    #[test]
    fn states_of_one_type_and_of_several_agree_within_its_rounding() {
        let _turn = one_at_a_time();
        let of = |states| {
            let mut tensor = Tensor::<f32, 2>::new(TILE + 3, states);
            (1..=5).for_each(|step| tensor.step(&ADAMW, step, Rounding::Nearest, 1));
            tensor.param
        };
        let exact = of([Stored::F32(vec![]), Stored::F32(vec![])]);
        for (tolerance, states) in [
            (1e-3, [Stored::Bf16(vec![]), Stored::F32(vec![])]),
            (1e-3, [Stored::F32(vec![]), Stored::Bf16(vec![])]),
            (1e-2, [Stored::codes(true), Stored::F32(vec![])]),
        ] {
            let error = of(states.clone())
                .iter()
                .zip(&exact)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(error < tolerance && error > 0.0, "{error} with {states:?}");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let _turn = one_at_a_time();
        let after = |threads| {
            let states = [Stored::codes(true), Stored::codes(false)];
            let mut tensor = Tensor::<bf16, 2>::new(5 * BLOCK + 3, states);
            tensor.step(&ADAMW, 1, Rounding::Stochastic { stream: 9 }, threads);
            tensor
        };
        let alone = after(1);
        for threads in [2, 3, 4] {
            assert!(after(threads) == alone, "{threads} threads");
        }
    }

    #[test]
    fn each_state_has_to_be_one_that_all_could_be() {
        let refused = |dtype, states: [Float; 2], rounding| {
            let buffers = Buffers {
                dtype,
                len: 0,
                param: std::ptr::null_mut(),
                grad_dtype: dtype,
                grad: std::ptr::null(),
                state: states.map(|dtype| State::float(std::ptr::null_mut(), dtype)),
                rounding,
                compensation: std::ptr::null_mut(),
            };
            kernel_of::<adamw::AdamWRule, 2>(&buffers).is_err()
        };
        use Float::*;
        assert!(!refused(F32, [Bf16, F32], Rounding::Nearest));
        assert!(refused(F32, [F32, F16], Rounding::Nearest));
        assert!(refused(F32, [F64, F32], Rounding::Nearest));
        assert!(refused(F64, [F64, F32], Rounding::Nearest));
        assert!(refused(F16, [Bf16, F32], Rounding::Split));
    }
}
