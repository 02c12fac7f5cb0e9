//! Sums over the elements of a tensor, which a rule knows before it updates any. They are taken in f64, in a number of
//! lanes that is the same everywhere, tile by tile and block by block: neither threads nor instruction sets change a bit.

use std::marker::PhantomData;

use super::finite::Values;
use super::tiles::{self, TILE};
use super::{ELEMENTS_PER_THREAD, Rule, Updates, Work, sums};
use crate::kernels::storage::{Buffers, Float, Rounding};
use crate::kernels::vector::{
    Arch, Arithmetic, Double, Halves, InF32, InF64, MAX_LANES, Routine, Stored, Vector, WIDENED, Widened,
    dispatch,
};
use crate::runtime::{Isa, Shared, pool};

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

/// The sum over each tensor, from those over all blocks; `first_blocks` are the numbers of the tensors' first ones.
pub fn by_tensor(first_blocks: &[usize], sums: &[f64]) -> Vec<f64> {
    let ends = first_blocks.iter().skip(1).copied().chain([sums.len()]);
    let of_tensor = |(&first, end): (&usize, usize)| sums[first..end].iter().sum();
    first_blocks.iter().zip(ends).map(of_tensor).collect()
}

/// What `block` gives for each of so many blocks, with so many elements in all.
pub fn of_blocks(
    blocks: usize,
    elements: usize,
    threads: usize,
    block: &(dyn Fn(usize) -> f64 + Sync),
) -> Vec<f64> {
    let mut sums = vec![0.0; blocks];
    let to = Shared::new(sums.as_mut_ptr());
    let useful = elements.div_ceil(ELEMENTS_PER_THREAD);
    pool::for_each(threads.min(useful), blocks, &|index| {
        // SAFETY: every block has a place of its own.
        unsafe { *to.get().add(index) = block(index) };
    });
    sums
}

/// The squared norm of each of the tensors.
///
/// # Safety
/// Each `data` is valid for reading `len` elements of its type, and nothing writes them meanwhile.
pub unsafe fn squared_norms(tensors: &[Values], threads: usize) -> Vec<f64> {
    let mut updates = Updates::with_capacity(tensors.len());
    for &Values { dtype, len, data } in tensors {
        let gradient = Buffers {
            dtype,
            len,
            param: std::ptr::null_mut(),
            grad_dtype: dtype,
            grad: data,
            state: [],
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
        };
        // SAFETY: the caller's promise; the parameter, of which there is none, is not asked for.
        unsafe { updates.push(Gradient, gradient) }.expect("a type that is its own");
    }
    let updates: Box<dyn Work> = Box::new(updates);
    sums(&[updates], threads).remove(0)
}

/// Sums a gradient's squares.
#[derive(Clone, Copy)]
struct Gradient;

impl Rule<0> for Gradient {
    const SUMMED: Option<Summed> = Some(Summed::Squares);

    #[inline(always)]
    fn update<V: Vector>(&self, param: V, _: V, []: [V; 0]) -> (V, [V; 0]) {
        (param, [])
    }
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
        let mut state = [std::ptr::null(); N];
        // SAFETY: the caller's promise, and the room is large enough for numbers of any type.
        unsafe {
            for ((numbers, state), room) in state.iter_mut().zip(&tile.state).zip(&mut room.0) {
                *numbers = tiles::load(state, work, tile.len, room.as_mut_ptr().cast()).cast_const();
            }
            let elements = Elements {
                grad_dtype: tile.grad_dtype,
                grad: tile.grad,
                state,
                scale,
            };
            sum += match work {
                Float::F64 => of_tile::<InF64, f64, R, N>(rule, elements, tile.len),
                _ => of_tile::<InF32<Halves>, f32, R, N>(rule, elements, tile.len),
            };
        }
    }
    sum
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
        for k in 0..N {
            let from = elements.state[k].cast::<T>().add(start);
            from.copy_to_nonoverlapping(state[k].as_mut_ptr(), rest);
            padded.state[k] = state[k].as_ptr().cast();
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
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernels::elementwise::tests::{Number, numbers, one_at_a_time};
    use crate::kernels::storage::{BLOCK, State};

    /// Sums `(state / 2 + gradient)^2`, or that without the square.
    #[derive(Clone, Copy)]
    struct Half<const SQUARES: bool>;

    impl<const SQUARES: bool> Rule<1> for Half<SQUARES> {
        const SUMMED: Option<Summed> = Some(if SQUARES { Summed::Squares } else { Summed::Terms });

        fn update<V: Vector>(&self, param: V, _: V, state: [V; 1]) -> (V, [V; 1]) {
            (param, state)
        }

        #[inline(always)]
        fn term<V: Vector>(&self, grad: V, [state]: [V; 1]) -> V {
            state * 0.5 + grad
        }
    }

    /// The sums of a rule over two tensors, with the gradient times 2.
    fn sums<P: Number, S: Number, R: Rule<1>>(rule: R, lens: [usize; 2], threads: usize) -> Vec<f64> {
        let mut updates = Updates::with_capacity(2);
        let mut memory: Vec<(Vec<P>, Vec<S>)> = vec![];
        for len in lens {
            let grad = numbers(len, 1)
                .into_iter()
                .map(|x| P::of((x * 16.0).round()))
                .collect();
            let state = numbers(len, 2)
                .into_iter()
                .map(|x| S::of((x * 16.0).round()))
                .collect();
            memory.push((grad, state));
        }
        for (grad, state) in &mut memory {
            let buffers = Buffers {
                dtype: P::DTYPE,
                len: grad.len(),
                param: std::ptr::null_mut(),
                grad_dtype: P::DTYPE,
                grad: grad.as_ptr().cast(),
                state: [State::float(state.as_mut_ptr().cast(), S::DTYPE)],
                rounding: Rounding::Nearest,
                compensation: std::ptr::null_mut(),
            };
            // SAFETY: only the sums are asked for, which read the vectors, and these outlive the updates.
            unsafe { updates.push(rule, buffers) }.unwrap();
        }
        updates.scale(2.0);
        let updates: Box<dyn Work> = Box::new(updates);
        super::sums(&[updates], threads).remove(0)
    }

    /// Whole numbers are summed without rounding, in whatever order.
    fn check<P: Number, S: Number>() {
        for lens in [
            [1, 0],
            [31, 33],
            [TILE + 1, BLOCK + 7],
            [0, 2 * BLOCK + TILE + 63],
        ] {
            for isa in Isa::supported() {
                isa.select();
                let expected = lens.map(|len| {
                    let pairs = numbers(len, 1).into_iter().zip(numbers(len, 2));
                    let terms = pairs.map(|(g, s)| (s * 16.0).round() * 0.5 + 2.0 * (g * 16.0).round());
                    let terms: Vec<f64> = terms.collect();
                    (
                        terms.iter().sum::<f64>(),
                        terms.iter().map(|x| x * x).sum::<f64>(),
                    )
                });
                let [plain, squared] = [expected.map(|(x, _)| x), expected.map(|(_, x)| x)];
                assert_eq!(
                    sums::<P, S, _>(Half::<false>, lens, 2),
                    plain,
                    "{isa:?}, {lens:?}"
                );
                assert_eq!(
                    sums::<P, S, _>(Half::<true>, lens, 2),
                    squared,
                    "{isa:?}, {lens:?}"
                );
            }
        }
    }

    #[test]
    fn sums_are_those_of_the_formula() {
        let _turn = one_at_a_time();
        check::<f64, f64>();
        check::<f32, f32>();
        check::<f32, bf16>();
        check::<bf16, bf16>();
        check::<bf16, f32>();
    }

    #[test]
    fn neither_threads_nor_instruction_sets_change_a_bit() {
        let _turn = one_at_a_time();
        let norms = |threads| {
            let wide = numbers(3 * BLOCK + 45, 7);
            let single: Vec<f32> = wide.iter().map(|&x| x as f32).collect();
            let tensor = |dtype, data: *const u8| Values {
                dtype,
                len: wide.len(),
                data,
            };
            let tensors = [
                tensor(Float::F64, wide.as_ptr().cast()),
                tensor(Float::F32, single.as_ptr().cast()),
            ];
            // SAFETY: the vectors are alive.
            unsafe { squared_norms(&tensors, threads) }
        };
        let mut all = vec![];
        for isa in Isa::supported() {
            isa.select();
            all.extend([1, 2, 3].map(norms));
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
    }
}
