//! The loop over the elements of a block, for every instruction set and storage type.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use half::bf16;

use super::{BEGUN, Rule, norms};
use crate::kernels::linear::Norms;
use crate::kernels::storage::{Buffers, Float};
use crate::kernels::vector::{
    Arch, Arithmetic, Halves, InF32, MAX_LANES, Noise, Order, Pair, Routine, Stored, Vector, WIDENED,
    dispatch, prefetch,
};
use crate::runtime::Isa;

/// A stretch of one parameter: `len` elements in every buffer.
#[derive(Clone, Copy)]
pub struct Span<const N: usize> {
    pub param: *mut u8,
    pub grad_dtype: Float,
    pub grad: *const u8,
    /// Multiplies the gradient.
    pub scale: f64,
    pub state: [*mut u8; N],
    pub compensation: *mut u8,
    pub len: usize,
    pub noise: Noise,
}

impl<const N: usize> Span<N> {
    /// All elements of a parameter's buffers, with their states at `state`.
    pub fn new(buffers: &Buffers<N>, state: [*mut u8; N], scale: f64, noise: Noise) -> Self {
        Span {
            param: buffers.param,
            grad_dtype: buffers.grad_dtype,
            grad: buffers.grad,
            scale,
            state,
            compensation: buffers.compensation,
            len: buffers.len,
            noise,
        }
    }
}

/// Elements after which a kernel adds up their gradients for the norms: few enough for the CPU to do that while the
/// elements around them wait for memory, so many that a call costs little. See `benchmarks/README.md`.
const STRETCH: usize = 128;
const _: () = assert!(STRETCH.is_multiple_of(MAX_LANES) && STRETCH.is_multiple_of(WIDENED));

/// A parameter, its gradient and its state.
type Read<V, const N: usize> = (V, V, [V; N]);

/// Room for what is begun in a stretch.
#[repr(align(64))]
struct Room(MaybeUninit<[[f64; STRETCH]; BEGUN]>);

/// Applies a rule to a span, adds its gradient to the norms, if there are any, and returns what the rule counted.
///
/// Safety of a call: the buffers are valid for `len` elements of the types that the kernel was made for and do not
/// overlap.
pub type Kernel<R, const N: usize> = unsafe fn(&R, &Span<N>, Option<&mut Norms>) -> u32;

/// A rounding mode: how a parameter of type `P` is read and written.
pub trait Mode<F: Arithmetic, P: Stored<F>> {
    /// The elements in the place of the compensation, of no size where there is none.
    type Compensation: Copy + Default;

    /// # Safety
    /// `span.param` and, if the mode uses it, `span.compensation` are valid for reading a vector at `i`.
    unsafe fn read<A: Arch, const N: usize>(span: &Span<N>, i: usize) -> F::Vector<A>;

    /// # Safety
    /// As for `read`, but for writing.
    unsafe fn write<A: Arch, const N: usize>(value: F::Vector<A>, span: &Span<N>, i: usize);
}

pub struct Nearest;
pub struct Stochastic;
pub struct Kahan;
pub struct Split;
pub struct Master;

impl<F: Arithmetic, P: Stored<F>> Mode<F, P> for Nearest {
    type Compensation = ();

    #[inline(always)]
    unsafe fn read<A: Arch, const N: usize>(span: &Span<N>, i: usize) -> F::Vector<A> {
        // SAFETY: the caller's promise is the same.
        unsafe { P::load::<A>(span.param.cast::<P>().add(i)) }
    }
    #[inline(always)]
    unsafe fn write<A: Arch, const N: usize>(value: F::Vector<A>, span: &Span<N>, i: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { P::store::<A>(value, span.param.cast::<P>().add(i)) }
    }
}

impl<F: Arithmetic, P: Stored<F>> Mode<F, P> for Stochastic {
    type Compensation = ();

    #[inline(always)]
    unsafe fn read<A: Arch, const N: usize>(span: &Span<N>, i: usize) -> F::Vector<A> {
        // SAFETY: the caller's promise is the same.
        unsafe { P::load::<A>(span.param.cast::<P>().add(i)) }
    }
    #[inline(always)]
    unsafe fn write<A: Arch, const N: usize>(value: F::Vector<A>, span: &Span<N>, i: usize) {
        let noise = Noise {
            counter: span.noise.counter + i as u32,
            ..span.noise
        };
        // SAFETY: the caller's promise is the same.
        unsafe { P::store_dithered::<A>(value, span.param.cast::<P>().add(i), noise) }
    }
}

/// Parameter and compensation together are the value: the compensation is what the parameter's rounding lost. This is
/// Kahan summation with the step in f32; the weight decay goes through it, too.
impl<F: Arithmetic, P: Stored<F>> Mode<F, P> for Kahan {
    type Compensation = P;

    #[inline(always)]
    unsafe fn read<A: Arch, const N: usize>(span: &Span<N>, i: usize) -> F::Vector<A> {
        // SAFETY: the caller's promise is the same.
        let (rounded, lost) = unsafe {
            (
                P::load::<A>(span.param.cast::<P>().add(i)),
                P::load::<A>(span.compensation.cast::<P>().add(i)),
            )
        };
        rounded + lost
    }
    #[inline(always)]
    unsafe fn write<A: Arch, const N: usize>(value: F::Vector<A>, span: &Span<N>, i: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            let param = span.param.cast::<P>().add(i);
            P::store::<A>(value, param);
            let rounded = P::load::<A>(param);
            P::store::<A>(value - rounded, span.compensation.cast::<P>().add(i));
        }
    }
}

/// Parameter and compensation together are an f32, bit by bit.
impl<O: Order> Mode<InF32<O>, bf16> for Split {
    type Compensation = i16;

    #[inline(always)]
    unsafe fn read<A: Arch, const N: usize>(span: &Span<N>, i: usize) -> Pair<A::F32, O> {
        // SAFETY: the caller's promise is the same; both hold 16 bits for each element.
        unsafe {
            Pair::load_split(
                span.param.cast::<bf16>().add(i),
                span.compensation.cast::<i16>().add(i),
            )
        }
    }
    #[inline(always)]
    unsafe fn write<A: Arch, const N: usize>(value: Pair<A::F32, O>, span: &Span<N>, i: usize) {
        // SAFETY: as above.
        unsafe {
            value.store_split(
                span.param.cast::<bf16>().add(i),
                span.compensation.cast::<i16>().add(i),
            )
        }
    }
}

/// The compensation is the value, and the parameter that value rounded. A parameter that is not has been written by
/// someone since, and stands.
impl<P: Stored<InF32<Halves>>> Mode<InF32<Halves>, P> for Master {
    type Compensation = f32;

    #[inline(always)]
    unsafe fn read<A: Arch, const N: usize>(span: &Span<N>, i: usize) -> Pair<A::F32, Halves> {
        let mut left = [P::default(); MAX_LANES];
        // SAFETY: the caller's promise is the same, and a vector has no more lanes than there is room for.
        unsafe {
            let found = P::load::<A>(span.param.cast::<P>().add(i));
            let master = f32::load::<A>(span.compensation.cast::<f32>().add(i));
            P::store::<A>(master, left.as_mut_ptr());
            master.unless_changed(P::load::<A>(left.as_ptr()), found)
        }
    }
    #[inline(always)]
    unsafe fn write<A: Arch, const N: usize>(value: Pair<A::F32, Halves>, span: &Span<N>, i: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            P::store::<A>(value, span.param.cast::<P>().add(i));
            f32::store::<A>(value, span.compensation.cast::<f32>().add(i));
        }
    }
}

/// The [`Kernel`] for arithmetic `F` on parameters of type `P` and state of type `S`, rounded in mode `M`.
///
/// # Safety
/// See [`Kernel`].
pub unsafe fn sweep<F, P, S, M, R, const N: usize>(rule: &R, span: &Span<N>, norms: Option<&mut Norms>) -> u32
where
    F: Arithmetic,
    P: Stored<F>,
    S: Stored<F>,
    M: Mode<F, P>,
    R: Rule<N>,
{
    let sweep = Sweep::<F, P, S, M, R, N> {
        span: *span,
        norms,
        types: PhantomData,
    };
    dispatch(Isa::current(), (*rule, sweep)) // a copy: the compiler sees that no store changes it
}

/// Where a rule goes, which is as [`Kernel`] asks.
struct Sweep<'a, F, P, S, M, R, const N: usize> {
    span: Span<N>,
    norms: Option<&'a mut Norms>,
    types: PhantomData<(F, P, S, M, R)>,
}

/// The rule comes first: this is compiled with its module.
impl<F, P, S, M, R, const N: usize> Routine for (R, Sweep<'_, F, P, S, M, R, N>)
where
    F: Arithmetic,
    P: Stored<F>,
    S: Stored<F>,
    M: Mode<F, P>,
    R: Rule<N>,
{
    type Output = u32;

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> u32 {
        let (rule, Sweep { span, mut norms, .. }) = self;
        let lanes = F::Vector::<A>::LANES;
        let whole = span.len - span.len % lanes;
        let mut room = Room(MaybeUninit::uninit());
        let mut counted = 0;
        for start in (0..span.len).step_by(STRETCH) {
            let end = start + STRETCH;
            let places = (start..end.min(whole)).step_by(lanes);
            if R::IN_TWO_PARTS && A::IN_PARTS && size_of::<P>() == 2 {
                let room: *mut [F::Vector<A>; BEGUN] = room.0.as_mut_ptr().cast();
                for (k, i) in places.clone().enumerate() {
                    Sweep::<F, P, S, M, R, N>::prefetch::<A>(&span, i);
                    // SAFETY: a whole vector at `i` lies within the span, and there is room for a stretch of them.
                    unsafe {
                        let (param, grad, state) = Sweep::<F, P, S, M, R, N>::read::<A>(&span, i);
                        let (begun, state) = rule.begin(param, grad, state);
                        counted += Sweep::<F, P, S, M, R, N>::write_state::<A>(&rule, state, &span, i);
                        room.add(k).write(begun);
                    }
                }
                for (k, i) in places.enumerate() {
                    // SAFETY: as above, and what is read has been written.
                    unsafe { M::write::<A, N>(rule.finish(room.add(k).read()), &span, i) };
                }
            } else {
                for i in places {
                    Sweep::<F, P, S, M, R, N>::prefetch::<A>(&span, i);
                    // SAFETY: a whole vector at `i` lies within the span.
                    counted += unsafe { Sweep::<F, P, S, M, R, N>::update::<A>(&rule, &span, i) };
                }
            }
            if let Some(norms) = norms.as_deref_mut() {
                let from = span.grad.wrapping_add(start * span.grad_dtype.size());
                // SAFETY: the stretch lies within the span.
                unsafe {
                    norms::add(
                        norms,
                        Isa::current(),
                        span.grad_dtype,
                        from,
                        end.min(span.len) - start,
                    )
                };
            }
        }
        if whole < span.len {
            // SAFETY: the rest lies within the span and is shorter than a vector.
            counted += unsafe { Sweep::<F, P, S, M, R, N>::update_rest::<A>(&rule, &span, whole) };
        }
        counted
    }
}

impl<F, P, S, M, R, const N: usize> Sweep<'_, F, P, S, M, R, N>
where
    F: Arithmetic,
    P: Stored<F>,
    S: Stored<F>,
    M: Mode<F, P>,
    R: Rule<N>,
{
    /// Asks for what a vector further on is going to be.
    #[inline(always)]
    fn prefetch<A: Arch>(span: &Span<N>, i: usize) {
        let lanes = F::Vector::<A>::LANES;
        prefetch::<A, P>(span.param, i, lanes);
        prefetch::<A, M::Compensation>(span.compensation, i, lanes);
        F::prefetch::<A>(span.grad, span.grad_dtype, i);
        for state in span.state {
            prefetch::<A, S>(state, i, lanes);
        }
    }

    /// Updates one vector and returns what the rule counted.
    ///
    /// # Safety
    /// As for [`Kernel`], with a whole vector at `i` within the span.
    #[inline(always)]
    unsafe fn update<A: Arch>(rule: &R, span: &Span<N>, i: usize) -> u32 {
        // SAFETY: the caller's promise is the same.
        unsafe {
            let (param, grad, state) = Self::read::<A>(span, i);
            let (param, state) = rule.update(param, grad, state);
            // The states first, as they are known before the parameter: with AdamW in bf16 up to 8% less on AVX2.
            let counted = Self::write_state::<A>(rule, state, span, i);
            if R::WRITES_PARAM {
                M::write::<A, N>(param, span, i);
            }
            counted
        }
    }

    /// What there is of one vector.
    ///
    /// # Safety
    /// As for [`Sweep::update`].
    #[inline(always)]
    unsafe fn read<A: Arch>(span: &Span<N>, i: usize) -> Read<F::Vector<A>, N> {
        // SAFETY: the caller's promise is the same.
        unsafe {
            let param = M::read::<A, N>(span, i);
            let grad = F::load::<A>(span.grad, span.grad_dtype, i) * span.scale;
            // A loop, as a closure would not always be inlined, and by itself lacks the instruction set.
            let mut state = [F::Vector::<A>::splat(0.0); N];
            for (value, pointer) in state.iter_mut().zip(span.state) {
                *value = S::load::<A>(pointer.cast::<S>().add(i));
            }
            (param, grad, state)
        }
    }

    /// Writes the state of one vector and returns what the rule counts.
    ///
    /// # Safety
    /// As for [`Sweep::update`].
    #[inline(always)]
    unsafe fn write_state<A: Arch>(rule: &R, state: [F::Vector<A>; N], span: &Span<N>, i: usize) -> u32 {
        // By value: kept in memory meanwhile, plain arrays of lanes become vector code; by index they do not.
        for (value, pointer) in state.into_iter().zip(span.state).take(R::WRITES_STATES) {
            // SAFETY: the caller's promise is the same.
            unsafe { S::store::<A>(value, pointer.cast::<S>().add(i)) };
        }
        if R::COUNTS { rule.count(state) } else { 0 }
    }

    /// Updates the last elements, fewer than a vector, through copies that are a vector long: the same instructions as
    /// for all others, hence the same bits.
    ///
    /// # Safety
    /// As for [`Kernel`], with fewer elements from `start` on than a vector has, but not none.
    #[inline(always)]
    unsafe fn update_rest<A: Arch>(rule: &R, span: &Span<N>, start: usize) -> u32 {
        let rest = span.len - start;
        let mut param = [P::default(); MAX_LANES];
        let mut grad = [0_u64; MAX_LANES]; // large enough for any type
        let mut compensation = [M::Compensation::default(); MAX_LANES];
        let mut state = [[S::default(); MAX_LANES]; N];
        let padded = Span {
            param: param.as_mut_ptr().cast(),
            grad_dtype: span.grad_dtype,
            grad: grad.as_ptr().cast(),
            scale: span.scale,
            state: std::array::from_fn(|k| state[k].as_mut_ptr().cast()),
            compensation: compensation.as_mut_ptr().cast(),
            len: MAX_LANES,
            noise: Noise {
                counter: span.noise.counter + start as u32,
                ..span.noise
            },
        };
        // SAFETY: the span holds `rest` elements from `start` on, the arrays more than that.
        unsafe {
            copy::<P>(span.param, start, param.as_mut_ptr().cast(), 0, rest);
            let size = span.grad_dtype.size();
            copy::<u8>(span.grad, start * size, grad.as_mut_ptr().cast(), 0, rest * size);
            copy::<M::Compensation>(span.compensation, start, padded.compensation, 0, rest);
            for k in 0..N {
                copy::<S>(span.state[k], start, padded.state[k], 0, rest);
            }
            let counted = Self::update::<A>(rule, &padded, 0);
            if R::WRITES_PARAM {
                copy::<P>(padded.param, 0, span.param, start, rest);
            }
            copy::<M::Compensation>(padded.compensation, 0, span.compensation, start, rest);
            for k in 0..R::WRITES_STATES {
                copy::<S>(padded.state[k], 0, span.state[k], start, rest);
            }
            counted
        }
    }
}

/// # Safety
/// `from` and `to` are valid for `count` elements from their offsets on and do not overlap.
#[inline(always)]
unsafe fn copy<T>(from: *const u8, from_offset: usize, to: *mut u8, to_offset: usize, count: usize) {
    // SAFETY: the caller's promise is the same.
    unsafe {
        from.cast::<T>()
            .add(from_offset)
            .copy_to_nonoverlapping(to.cast::<T>().add(to_offset), count)
    }
}
