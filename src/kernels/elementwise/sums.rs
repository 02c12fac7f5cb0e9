//! Sums over the elements of a tensor, which a rule knows before it updates any. They are taken in f64, in a number of
//! lanes that is the same everywhere, tile by tile and block by block: neither threads nor instruction sets change a bit.

use std::marker::PhantomData;

use super::blocks::{by_tensor, of_blocks};
use super::tiles::{self, TILE};
use super::{Rule, Work, find};
use crate::kernels::storage::{Buffers, Float};
use crate::kernels::vector::{
    Arch, Arithmetic, Double, Halves, InF32, InF64, MAX_LANES, Routine, Stored, Vector, WIDENED, Widened,
    dispatch, prefetch,
};
use crate::runtime::Isa;

/// What is summed of each element: what [`Rule::term`] gives, or its square, which is exact for f32, or another whole
/// power of it, [`Rule::power`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Summed {
    Terms,
    Squares,
    Powers,
}

/// Numbers of a tile's states, where these are of another type.
pub struct Room<const N: usize>([[u64; TILE]; N]);

impl<const N: usize> Default for Room<N> {
    fn default() -> Self {
        Room([[0; TILE]; N])
    }
}

/// The most vectors that hold so many lanes.
const PARTS: usize = 4;

/// What the rules of all batches sum over each parameter, on up to `threads` threads; nothing for those that sum
/// nothing.
pub fn sums(batches: &[Box<dyn Work + '_>], threads: usize) -> Vec<Vec<f64>> {
    let summed: Vec<_> = batches
        .iter()
        .map(Box::as_ref)
        .filter(|batch| batch.is_to_know())
        .collect();
    let blocks = summed.iter().map(|batch| batch.blocks()).sum();
    let elements = summed.iter().map(|batch| batch.elements()).sum();
    let all = of_blocks(blocks, elements, threads, &|index| {
        let (batch, index) = find(summed.iter().copied(), index);
        batch.sum(index)
    });
    let mut rest = &all[..];
    let mut of_each = Vec::with_capacity(batches.len());
    for batch in batches {
        if !batch.is_to_know() {
            of_each.push(Vec::new());
            continue;
        }
        let own = rest.split_off(..batch.blocks()).expect("the sums of all blocks");
        of_each.push(by_tensor(&batch.first_blocks(), own, |own| own.iter().sum()));
    }
    of_each
}

/// What a rule sums over a block, with the gradient multiplied by `scale`.
///
/// # Safety
/// Gradient and states are valid for `len` elements, and nothing else uses them meanwhile.
pub unsafe fn of_block<R: Rule<N>, const N: usize>(
    rule: &R,
    block: &Buffers<N>,
    scale: f64,
    room: &mut Room<N>,
) -> f64 {
    let work = block.dtype.arithmetic();
    let mut sum = 0.0;
    for start in (0..block.len).step_by(TILE) {
        let tile = block.part(start, TILE.min(block.len - start));
        // SAFETY: the caller's promise.
        unsafe {
            let elements = Elements::of(&tile, scale, room);
            sum += match work {
                Float::F64 => of_tile::<InF64, f64, R, N>(rule, elements, tile.len),
                _ => of_tile::<InF32<Halves>, f32, R, N>(rule, elements, tile.len),
            };
        }
    }
    sum
}

/// Hands on the size of each term of some blocks, with its number there: as bits, whose order is that of the sizes. NaN
/// is as large as infinity.
///
/// # Safety
/// As for [`of_block`].
pub unsafe fn sizes<R: Rule<N>, const N: usize>(
    rule: &R,
    blocks: &Buffers<N>,
    scale: f64,
    room: &mut Room<N>,
    mut each: impl FnMut(usize, u64),
) {
    let (mut single, mut double) = ([0.0_f32; TILE], [0.0_f64; TILE]);
    for start in (0..blocks.len).step_by(TILE) {
        let tile = blocks.part(start, TILE.min(blocks.len - start));
        // SAFETY: the caller's promise, and a tile has no more elements than there is room for.
        unsafe {
            let elements = Elements::of(&tile, scale, room);
            match blocks.dtype.arithmetic() {
                Float::F64 => {
                    list::<InF64, f64, R, N>(rule, elements, &mut double[..tile.len]);
                    let infinite = f64::INFINITY.to_bits();
                    for (i, term) in double[..tile.len].iter().enumerate() {
                        each(start + i, term.abs().to_bits().min(infinite));
                    }
                }
                _ => {
                    list::<InF32<Halves>, f32, R, N>(rule, elements, &mut single[..tile.len]);
                    let infinite = f32::INFINITY.to_bits();
                    for (i, term) in single[..tile.len].iter().enumerate() {
                        each(start + i, term.abs().to_bits().min(infinite).into());
                    }
                }
            }
        }
    }
}

/// # Safety
/// The pointers are valid for reading `len` elements, the states of type `T`.
unsafe fn of_tile<F, T, R, const N: usize>(rule: &R, elements: Elements<N>, len: usize) -> f64
where
    F: Arithmetic,
    T: Stored<F> + Widened,
    R: Rule<N>,
{
    let tile = Tile::<F, T, N> {
        elements,
        len,
        types: PhantomData,
    };
    dispatch(Isa::current(), (*rule, tile))
}

/// Where the elements are that are summed over.
#[derive(Clone, Copy)]
struct Elements<const N: usize> {
    grad_dtype: Float,
    grad: *const u8,
    state: [*const u8; N],
    /// Multiplies the gradient.
    scale: f64,
}

impl<const N: usize> Elements<N> {
    /// Those of a tile, with numbers for its states in the type of its arithmetic.
    ///
    /// # Safety
    /// As for [`of_block`]; the tile has no more elements than there is room for.
    unsafe fn of(tile: &Buffers<N>, scale: f64, room: &mut Room<N>) -> Self {
        let mut state = [std::ptr::null(); N];
        for ((numbers, state), room) in state.iter_mut().zip(&tile.state).zip(&mut room.0) {
            // SAFETY: the caller's promise, and the room is large enough for numbers of any type.
            let loaded =
                unsafe { tiles::load(state, tile.dtype.arithmetic(), tile.len, room.as_mut_ptr().cast()) };
            *numbers = loaded.cast_const();
        }
        Elements {
            grad_dtype: tile.grad_dtype,
            grad: tile.grad,
            state,
            scale,
        }
    }

    /// Asks for what is further on than the longest vector at `i`.
    #[inline(always)]
    fn prefetch<F: Arithmetic, T, A: Arch>(&self, i: usize) {
        for at in (0..MAX_LANES).step_by(F::Vector::<A>::LANES) {
            F::prefetch::<A>(self.grad, self.grad_dtype, i + at);
        }
        for state in self.state {
            prefetch::<A, T>(state.cast(), i, MAX_LANES);
        }
    }
}

/// Elements whose arithmetic is `F` and whose states and terms are of type `T`.
struct Tile<F, T, const N: usize> {
    elements: Elements<N>,
    len: usize,
    types: PhantomData<(F, T)>,
}

/// The rule comes first: this is compiled with its module.
impl<F, T, R, const N: usize> Routine for (R, Tile<F, T, N>)
where
    F: Arithmetic,
    T: Stored<F> + Widened,
    R: Rule<N>,
{
    type Output = f64;

    #[inline(always)]
    unsafe fn run<A: Arch>(self) -> f64 {
        let (rule, Tile { elements, len, .. }) = self;
        let mut lanes = [A::F64::splat(0.0); PARTS];
        let whole = len - len % MAX_LANES;
        for i in (0..whole).step_by(MAX_LANES) {
            elements.prefetch::<F, T, A>(i);
            // SAFETY: the longest vector at `i` lies within the elements.
            let terms = unsafe { terms::<F, T, R, A, N>(&rule, &elements, i) };
            add::<T, R, A, N>(&rule, &mut lanes, &terms);
        }
        if whole < len {
            // SAFETY: the rest lies within the elements and is shorter than the longest vector.
            let terms = unsafe { terms_of_rest::<F, T, R, A, N>(&rule, &elements, whole, len - whole) };
            add::<T, R, A, N>(&rule, &mut lanes, &terms);
        }
        let mut all = [0.0; WIDENED];
        for (part, lanes) in lanes.iter().zip(all.chunks_exact_mut(A::F64::LANES)) {
            // SAFETY: a vector's lanes.
            unsafe { part.store_f64(lanes.as_mut_ptr()) };
        }
        all.iter().sum()
    }
}

/// Writes the terms of a tile.
///
/// # Safety
/// The pointers are valid for reading as many elements, the states of type `T`.
unsafe fn list<F, T, R, const N: usize>(rule: &R, elements: Elements<N>, to: &mut [T])
where
    F: Arithmetic,
    T: Stored<F> + Widened,
    R: Rule<N>,
{
    let list = List::<F, T, N> {
        elements,
        to,
        arithmetic: PhantomData,
    };
    dispatch(Isa::current(), (*rule, list))
}

/// Where the terms of elements are to go.
struct List<'a, F, T, const N: usize> {
    elements: Elements<N>,
    to: &'a mut [T],
    arithmetic: PhantomData<F>,
}

impl<F, T, R, const N: usize> Routine for (R, List<'_, F, T, N>)
where
    F: Arithmetic,
    T: Stored<F> + Widened,
    R: Rule<N>,
{
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let (rule, List { elements, to, .. }) = self;
        let len = to.len();
        for (i, to) in to.chunks_mut(MAX_LANES).enumerate() {
            let start = i * MAX_LANES;
            // SAFETY: the chunk lies within the elements.
            let terms = unsafe {
                match to.len() {
                    MAX_LANES => terms::<F, T, R, A, N>(&rule, &elements, start),
                    _ => terms_of_rest::<F, T, R, A, N>(&rule, &elements, start, len - start),
                }
            };
            to.copy_from_slice(&terms[..to.len()]);
        }
    }
}

/// The terms from number `i` on.
///
/// # Safety
/// As many elements as the longest vector has lanes can be read there.
#[inline(always)]
unsafe fn terms<F, T, R, A, const N: usize>(rule: &R, elements: &Elements<N>, i: usize) -> [T; MAX_LANES]
where
    F: Arithmetic,
    T: Stored<F> + Widened,
    R: Rule<N>,
    A: Arch,
{
    let mut terms = [T::default(); MAX_LANES];
    for at in (0..MAX_LANES).step_by(F::Vector::<A>::LANES) {
        // SAFETY: the caller's promise; a vector has no more lanes than the longest.
        unsafe {
            let grad = F::load::<A>(elements.grad, elements.grad_dtype, i + at) * elements.scale;
            let mut state = [F::Vector::<A>::splat(0.0); N];
            for (value, pointer) in state.iter_mut().zip(elements.state) {
                *value = T::load::<A>(pointer.cast::<T>().add(i + at));
            }
            T::store::<A>(rule.term(grad, state), terms.as_mut_ptr().add(at));
        }
    }
    terms
}

/// The terms of the last elements, and zeros.
///
/// # Safety
/// `rest` elements, fewer than the longest vector has lanes, can be read from `start` on.
#[inline(always)]
unsafe fn terms_of_rest<F, T, R, A, const N: usize>(
    rule: &R,
    elements: &Elements<N>,
    start: usize,
    rest: usize,
) -> [T; MAX_LANES]
where
    F: Arithmetic,
    T: Stored<F> + Widened,
    R: Rule<N>,
    A: Arch,
{
    let mut grad = [0_u64; MAX_LANES]; // large enough for any type
    let mut state = [[T::default(); MAX_LANES]; N];
    let size = elements.grad_dtype.size();
    let mut padded = Elements {
        grad: grad.as_ptr().cast(),
        ..*elements
    };
    // SAFETY: the elements hold `rest` from `start` on, the arrays more than that.
    let mut terms = unsafe {
        let from = elements.grad.add(start * size);
        from.copy_to_nonoverlapping(grad.as_mut_ptr().cast(), rest * size);
        for ((from, state), padded) in elements.state.iter().zip(&mut state).zip(&mut padded.state) {
            let from = from.cast::<T>().add(start);
            from.copy_to_nonoverlapping(state.as_mut_ptr(), rest);
            *padded = state.as_ptr().cast();
        }
        terms::<F, T, R, A, N>(rule, &padded, 0)
    };
    terms[rest..].fill(T::default());
    terms
}

/// Adds terms, or their powers, to the lanes.
#[inline(always)]
fn add<T: Widened, R: Rule<N>, A: Arch, const N: usize>(
    rule: &R,
    lanes: &mut [A::F64; PARTS],
    terms: &[T; MAX_LANES],
) {
    let pairs = WIDENED / A::F64::LANES / 2;
    for start in (0..MAX_LANES).step_by(WIDENED) {
        for pair in 0..pairs {
            // SAFETY: there are as many terms from `start` on.
            let [lower, upper] = unsafe { T::widen::<A::F64>(terms.as_ptr().add(start), pair) };
            for (part, term) in [(pair, lower), (pairs + pair, upper)] {
                let term = match R::SUMMED {
                    Some(Summed::Squares) => term * term,
                    Some(Summed::Powers) => to_power(term, rule.power()),
                    _ => term,
                };
                lanes[part] = lanes[part] + term;
            }
        }
    }
}

#[inline(always)]
fn to_power<V: Vector>(x: V, power: u32) -> V {
    let mut result = x;
    for _ in 1..power {
        result = result * x;
    }
    result
}

#[cfg(test)]
mod tests;
