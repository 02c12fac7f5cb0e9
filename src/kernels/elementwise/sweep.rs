//! The loop over the elements of a block, for every instruction set and storage type.

use half::bf16;

use super::Rule;
use crate::kernels::storage::Buffers;
use crate::kernels::vector::{MAX_LANES, Noise, Order, Pair, Splits, Stored, Vector, portable};
#[cfg(target_arch = "x86_64")]
use crate::kernels::vector::{avx2, avx512};
use crate::runtime::Isa;

/// A stretch of one parameter: `len` elements in every buffer.
#[derive(Clone, Copy)]
pub struct Span<const N: usize> {
    pub param: *mut u8,
    pub grad: *const u8,
    pub state: [*mut u8; N],
    pub compensation: *mut u8,
    pub len: usize,
    pub noise: Noise,
}

impl<const N: usize> Span<N> {
    /// All elements of a parameter's buffers, with their states at `state`.
    pub fn new(buffers: &Buffers<N>, state: [*mut u8; N], noise: Noise) -> Self {
        Span {
            param: buffers.param,
            grad: buffers.grad,
            state,
            compensation: buffers.compensation,
            len: buffers.len,
            noise,
        }
    }
}

/// Applies a rule to a span and returns what the rule counted.
///
/// Safety of a call: the buffers are valid for `len` elements of the types that the kernel was made for and do not
/// overlap, and the CPU has the instruction set that it was made for.
pub type Kernel<R, const N: usize> = unsafe fn(&R, &Span<N>) -> u32;

type Portable<O> = Pair<portable::F32, O>;
#[cfg(target_arch = "x86_64")]
type Avx2<O> = Pair<avx2::F32, O>;
#[cfg(target_arch = "x86_64")]
type Avx512<O> = Pair<avx512::F32, O>;

/// A storage type of f32 arithmetic in an order of lanes, on every instruction set.
#[cfg(target_arch = "x86_64")]
pub trait Element<O: Order>: Stored<Portable<O>> + Stored<Avx2<O>> + Stored<Avx512<O>> {}
#[cfg(target_arch = "x86_64")]
impl<O: Order, P: Stored<Portable<O>> + Stored<Avx2<O>> + Stored<Avx512<O>>> Element<O> for P {}
#[cfg(not(target_arch = "x86_64"))]
pub trait Element<O: Order>: Stored<Portable<O>> {}
#[cfg(not(target_arch = "x86_64"))]
impl<O: Order, P: Stored<Portable<O>>> Element<O> for P {}

/// A rounding mode: how a parameter of type `P` is read and written.
pub trait Mode<V: Vector, P: Stored<V>> {
    /// Whether there is a compensation buffer, of elements as large as the parameter's.
    const COMPENSATED: bool = false;

    /// # Safety
    /// `span.param` and, if the mode uses it, `span.compensation` are valid for reading a vector at `i`.
    unsafe fn read<const N: usize>(span: &Span<N>, i: usize) -> V;

    /// # Safety
    /// As for `read`, but for writing.
    unsafe fn write<const N: usize>(value: V, span: &Span<N>, i: usize);
}

/// A mode for f32 arithmetic, on every instruction set.
#[cfg(target_arch = "x86_64")]
pub trait Rounds<O: Order, P: Element<O>>:
    Mode<Portable<O>, P> + Mode<Avx2<O>, P> + Mode<Avx512<O>, P>
{
}
#[cfg(target_arch = "x86_64")]
impl<O, P, M> Rounds<O, P> for M
where
    O: Order,
    P: Element<O>,
    M: Mode<Portable<O>, P> + Mode<Avx2<O>, P> + Mode<Avx512<O>, P>,
{
}
#[cfg(not(target_arch = "x86_64"))]
pub trait Rounds<O: Order, P: Element<O>>: Mode<Portable<O>, P> {}
#[cfg(not(target_arch = "x86_64"))]
impl<O: Order, P: Element<O>, M: Mode<Portable<O>, P>> Rounds<O, P> for M {}

pub struct Nearest;
pub struct Stochastic;
pub struct Kahan;
pub struct Split;

impl<V: Vector, P: Stored<V>> Mode<V, P> for Nearest {
    #[inline(always)]
    unsafe fn read<const N: usize>(span: &Span<N>, i: usize) -> V {
        // SAFETY: the caller's promise is the same.
        unsafe { P::load(span.param.cast::<P>().add(i)) }
    }
    #[inline(always)]
    unsafe fn write<const N: usize>(value: V, span: &Span<N>, i: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { P::store(value, span.param.cast::<P>().add(i)) }
    }
}

impl<V: Vector, P: Stored<V>> Mode<V, P> for Stochastic {
    #[inline(always)]
    unsafe fn read<const N: usize>(span: &Span<N>, i: usize) -> V {
        // SAFETY: the caller's promise is the same.
        unsafe { P::load(span.param.cast::<P>().add(i)) }
    }
    #[inline(always)]
    unsafe fn write<const N: usize>(value: V, span: &Span<N>, i: usize) {
        let noise = Noise {
            counter: span.noise.counter + i as u32,
            ..span.noise
        };
        // SAFETY: the caller's promise is the same.
        unsafe { P::store_dithered(value, span.param.cast::<P>().add(i), noise) }
    }
}

/// Parameter and compensation together are the value: the compensation is what the parameter's rounding lost. This is
/// Kahan summation with the step in f32; the weight decay goes through it, too.
impl<V: Vector, P: Stored<V>> Mode<V, P> for Kahan {
    const COMPENSATED: bool = true;

    #[inline(always)]
    unsafe fn read<const N: usize>(span: &Span<N>, i: usize) -> V {
        // SAFETY: the caller's promise is the same.
        let (rounded, lost): (V, V) = unsafe {
            (
                P::load(span.param.cast::<P>().add(i)),
                P::load(span.compensation.cast::<P>().add(i)),
            )
        };
        rounded + lost
    }
    #[inline(always)]
    unsafe fn write<const N: usize>(value: V, span: &Span<N>, i: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            let param = span.param.cast::<P>().add(i);
            P::store(value, param);
            let rounded: V = P::load(param);
            P::store(value - rounded, span.compensation.cast::<P>().add(i));
        }
    }
}

/// Parameter and compensation together are an f32, bit by bit.
impl<V: Splits> Mode<V, bf16> for Split
where
    bf16: Stored<V>,
{
    const COMPENSATED: bool = true;

    #[inline(always)]
    unsafe fn read<const N: usize>(span: &Span<N>, i: usize) -> V {
        // SAFETY: the caller's promise is the same; both hold 16 bits for each element.
        unsafe {
            V::load_split(
                span.param.cast::<bf16>().add(i),
                span.compensation.cast::<i16>().add(i),
            )
        }
    }
    #[inline(always)]
    unsafe fn write<const N: usize>(value: V, span: &Span<N>, i: usize) {
        // SAFETY: as above.
        unsafe {
            value.store_split(
                span.param.cast::<bf16>().add(i),
                span.compensation.cast::<i16>().add(i),
            )
        }
    }
}

/// The kernel for f64 everywhere.
pub fn double<R: Rule<N>, const N: usize>(isa: Isa) -> Kernel<R, N> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::AmxBf16 => with_avx512::<avx512::F64, f64, f64, Nearest, R, N>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => with_avx2::<avx2::F64, f64, f64, Nearest, R, N>,
        _ => sweep::<portable::F64, f64, f64, Nearest, R, N>,
    }
}

/// The kernel for f32 arithmetic on parameters of type `P` and state of type `S`, with lanes in order `O`, rounded in
/// mode `M`.
pub fn single<O, P, S, M, R, const N: usize>(isa: Isa) -> Kernel<R, N>
where
    O: Order,
    P: Element<O>,
    S: Element<O>,
    M: Rounds<O, P>,
    R: Rule<N>,
{
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::AmxBf16 => with_avx512::<Avx512<O>, P, S, M, R, N>,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => with_avx2::<Avx2<O>, P, S, M, R, N>,
        _ => sweep::<Portable<O>, P, S, M, R, N>,
    }
}

/// # Safety
/// See [`Kernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn with_avx512<V: Vector, P: Stored<V>, S: Stored<V>, M: Mode<V, P>, R: Rule<N>, const N: usize>(
    rule: &R,
    span: &Span<N>,
) -> u32 {
    // SAFETY: the caller's promise is the same.
    unsafe { sweep::<V, P, S, M, R, N>(rule, span) }
}

/// # Safety
/// See [`Kernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<V: Vector, P: Stored<V>, S: Stored<V>, M: Mode<V, P>, R: Rule<N>, const N: usize>(
    rule: &R,
    span: &Span<N>,
) -> u32 {
    // SAFETY: the caller's promise is the same.
    unsafe { sweep::<V, P, S, M, R, N>(rule, span) }
}

/// # Safety
/// See [`Kernel`].
#[inline(always)]
unsafe fn sweep<V: Vector, P: Stored<V>, S: Stored<V>, M: Mode<V, P>, R: Rule<N>, const N: usize>(
    rule: &R,
    span: &Span<N>,
) -> u32 {
    let rule = *rule; // a local copy: the compiler sees that no store changes it
    let whole = span.len - span.len % V::LANES;
    let mut counted = 0;
    for i in (0..whole).step_by(V::LANES) {
        // SAFETY: a whole vector at `i` lies within the span.
        counted += unsafe { update::<V, P, S, M, R, N>(&rule, span, i) };
    }
    if whole < span.len {
        // SAFETY: the rest lies within the span and is shorter than a vector.
        counted += unsafe { update_rest::<V, P, S, M, R, N>(&rule, span, whole) };
    }
    counted
}

/// Updates one vector and returns what the rule counted.
///
/// # Safety
/// As for [`Kernel`], with `span.len >= i + V::LANES`.
#[inline(always)]
unsafe fn update<V: Vector, P: Stored<V>, S: Stored<V>, M: Mode<V, P>, R: Rule<N>, const N: usize>(
    rule: &R,
    span: &Span<N>,
    i: usize,
) -> u32 {
    // SAFETY: the caller's promise is the same.
    unsafe {
        let param = M::read(span, i);
        let grad = P::load(span.grad.cast::<P>().add(i));
        // A loop, as a closure would not always be inlined, and by itself lacks the instruction set.
        let mut state = [V::splat(0.0); N];
        for (value, pointer) in state.iter_mut().zip(span.state) {
            *value = S::load(pointer.cast::<S>().add(i));
        }
        let (param, state) = rule.update(param, grad, state);
        if R::WRITES_PARAM {
            M::write(param, span, i);
        }
        // By value: kept in memory meanwhile, plain arrays of lanes become vector code; by index they do not.
        for (value, pointer) in state.into_iter().zip(span.state).take(R::WRITES_STATES) {
            S::store(value, pointer.cast::<S>().add(i));
        }
        if R::COUNTS { rule.count(state) } else { 0 }
    }
}

/// Updates the last elements, fewer than a vector, through copies that are a vector long: the same instructions as for
/// all others, hence the same bits.
///
/// # Safety
/// As for [`Kernel`], with `start < span.len < start + V::LANES`.
#[inline(always)]
unsafe fn update_rest<V: Vector, P: Stored<V>, S: Stored<V>, M: Mode<V, P>, R: Rule<N>, const N: usize>(
    rule: &R,
    span: &Span<N>,
    start: usize,
) -> u32 {
    let rest = span.len - start;
    let mut param = [P::default(); MAX_LANES];
    let mut grad = [P::default(); MAX_LANES];
    let mut compensation = [P::default(); MAX_LANES];
    let mut state = [[S::default(); MAX_LANES]; N];
    let padded = Span {
        param: param.as_mut_ptr().cast(),
        grad: grad.as_ptr().cast(),
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
        copy::<P>(span.grad, start, grad.as_mut_ptr().cast(), 0, rest);
        if M::COMPENSATED {
            copy::<P>(span.compensation, start, padded.compensation, 0, rest);
        }
        for k in 0..N {
            copy::<S>(span.state[k], start, padded.state[k], 0, rest);
        }
        let counted = update::<V, P, S, M, R, N>(rule, &padded, 0);
        if R::WRITES_PARAM {
            copy::<P>(padded.param, 0, span.param, start, rest);
        }
        if M::COMPENSATED {
            copy::<P>(padded.compensation, 0, span.compensation, start, rest);
        }
        for k in 0..R::WRITES_STATES {
            copy::<S>(padded.state[k], 0, span.state[k], start, rest);
        }
        counted
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
