//! What a micro-kernel must be, and the one that all instruction sets share.

use crate::kernels::matmul::Real;

/// An instruction set's vector operations and the shape of its register block.
///
/// An operand is packed into panels of `WIDTH` rows. A unit is `DEPTH` consecutive values along the summed dimension,
/// and `GROUP` units follow one another there in a group. For the right side, a panel is a run of `WIDTH`-long columns
/// of units; for the left side, a run of groups, each `WIDTH` rows of `GROUP` units. With groups of one unit both are
/// the same, so that one copy serves on either side.
/// The register block takes `ROWS` rows of a panel of the left operand and a whole panel of the right one.
///
/// The operations are `unsafe` because they need the CPU to have the instruction set, which [`Kernel::enter`] states
/// to the compiler: everything is called from inside it.
pub trait Kernel: Copy + Send + Sync + 'static {
    /// What is multiplied, before packing into units.
    type Value: Copy + Default;
    /// What is packed.
    type Unit: Copy + Default;
    /// What is summed.
    type Acc: Real;

    const DEPTH: usize;
    const GROUP: usize = 1;
    /// Rows and columns of units that [`Kernel::transpose`] takes.
    const LANES: usize;
    const ROWS: usize;
    const WIDTH: usize;
    /// Units of the inner dimension between two visits of a block of sums.
    const STRETCH: usize = 384;

    /// A unit of `DEPTH` values, which lies in memory as these in a row; `second` is not used where `DEPTH` is 1.
    fn unit(first: Self::Value, second: Self::Value) -> Self::Unit;

    /// Units of pairs of values; see [`Kernel::unit`].
    ///
    /// # Safety
    /// Called within [`Kernel::enter`].
    #[inline(always)]
    unsafe fn units(first: &[Self::Value], second: &[Self::Value], to: &mut [Self::Unit]) {
        for (i, to) in to.iter_mut().enumerate() {
            *to = Self::unit(first[i], second[i]);
        }
    }

    /// Rounds values to bf16, for kernels whose values are f32.
    #[inline(always)]
    fn round(_values: &mut [Self::Value]) {}

    /// Runs `job` compiled for this instruction set. Not by `vector::dispatch`: its routines know f32 and f64 vectors and
    /// no bf16 dot products or tiles, which need features of their own, and tiles a shape that is set and given back.
    ///
    /// # Safety
    /// The CPU must have the instruction set.
    unsafe fn enter<J: Job>(job: J);

    /// Adds (or, when `first`, writes) `units` units of the product to the `ROWS` x `WIDTH` block at `tile`.
    ///
    /// # Safety
    /// Called within `enter`. `a` and `b` point to `units` units, whole groups, of panels packed for the left and the
    /// right side (`a` possibly some rows down),
    /// `tile` to a block whose rows are `stride` apart.
    unsafe fn micro(
        units: usize,
        a: *const Self::Unit,
        b: *const Self::Unit,
        ahead: Ahead,
        tile: *mut Self::Acc,
        stride: usize,
        first: bool,
    );

    /// Asks for the cache line at `at`, which need not be valid.
    #[inline(always)]
    fn prefetch(_at: *const u8) {}

    /// Transposes a block of `LANES` x `LANES` units.
    ///
    /// # Safety
    /// Called within `enter`. The blocks lie in memory, with rows `stride` and `to_stride` units apart.
    #[inline(always)]
    unsafe fn transpose(from: *const Self::Unit, stride: usize, to: *mut Self::Unit, to_stride: usize) {
        for i in 0..Self::LANES {
            for j in 0..Self::LANES {
                // SAFETY: inside the blocks; rows of packed values need not be aligned for units.
                unsafe { *to.add(j * to_stride + i) = from.add(i * stride + j).read_unaligned() };
            }
        }
    }
}

/// A kernel whose register block is made of vectors.
pub trait Vectors: Kernel {
    /// A vector of units.
    type Factor: Copy;
    /// A vector of sums.
    type Sum: Copy;

    /// # Safety
    /// Called within `enter`.
    unsafe fn zero() -> Self::Sum;
    /// # Safety
    /// Called within `enter`; `LANES` units can be read at `from`.
    unsafe fn load(from: *const Self::Unit) -> Self::Factor;
    /// # Safety
    /// Called within `enter`.
    unsafe fn splat(unit: Self::Unit) -> Self::Factor;
    /// `sum + a * b`
    ///
    /// # Safety
    /// Called within `enter`.
    unsafe fn fma(a: Self::Factor, b: Self::Factor, sum: Self::Sum) -> Self::Sum;
    /// Adds the products of a unit of `MR` rows, from `a` on, with one of `NV` vectors of columns, from `b` on.
    ///
    /// # Safety
    /// Called within `enter`; `MR` units can be read at `a`, and `NV * LANES` at `b`.
    #[inline(always)]
    unsafe fn add_products<const MR: usize, const NV: usize>(
        a: *const Self::Unit,
        b: *const Self::Unit,
        sums: &mut [[Self::Sum; NV]; MR],
    ) {
        // SAFETY: the caller's promises.
        unsafe {
            let mut factors = [Self::load(b); NV];
            for (v, factor) in factors.iter_mut().enumerate().skip(1) {
                *factor = Self::load(b.add(v * Self::LANES));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let left = Self::splat(*a.add(r));
                for v in 0..NV {
                    row[v] = Self::fma(left, factors[v], row[v]);
                }
            }
        }
    }
    /// Writes `sum` to memory, or adds it to what is there.
    ///
    /// # Safety
    /// Called within `enter`; `LANES` sums can be written at `to`.
    unsafe fn store(sum: Self::Sum, to: *mut Self::Acc, first: bool);
}

/// What is needed after a call of [`Kernel::micro`]: it asks for `step` bytes more with each unit. The CPU's own
/// prefetching does not reach from one stretch of a panel to the next.
#[derive(Clone, Copy)]
pub struct Ahead {
    pub at: *const u8,
    pub step: usize,
}

/// Work that [`Kernel::enter`] compiles for an instruction set: `run` must be `#[inline(always)]`.
pub trait Job {
    fn run(self);
}

/// How a kernel takes in matrices of `T`.
pub trait Takes<T>: Kernel {
    /// Converts `from` element by element.
    ///
    /// # Safety
    /// Called within [`Kernel::enter`].
    unsafe fn convert(from: &[T], to: &mut [Self::Value]);
}

/// The body of [`Kernel::micro`] for vectors: `MR` x `NV` vectors of sums that stay in registers.
///
/// # Safety
/// As [`Kernel::micro`].
#[inline(always)]
pub unsafe fn register_block<K: Vectors, const MR: usize, const NV: usize>(
    units: usize,
    mut a: *const K::Unit,
    mut b: *const K::Unit,
    mut ahead: Ahead,
    tile: *mut K::Acc,
    stride: usize,
    first: bool,
) {
    const { assert!(MR == K::ROWS && NV * K::LANES == K::WIDTH && K::WIDTH.is_multiple_of(K::ROWS)) };
    // SAFETY: the caller's promises; the pointers move by one packed column per unit.
    unsafe {
        let mut sums = [[K::zero(); NV]; MR];
        for _ in 0..units {
            K::add_products(a, b, &mut sums);
            K::prefetch(ahead.at);
            ahead.at = ahead.at.wrapping_add(ahead.step);
            a = a.add(K::WIDTH);
            b = b.add(K::WIDTH);
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                K::store(sum, tile.add(r * stride + v * K::LANES), first);
            }
        }
    }
}

/// Implements [`Kernel`]'s parts that differ between instruction sets only by names.
macro_rules! block {
    ($rows:literal x $vectors:literal, $features:literal) => {
        const ROWS: usize = $rows;
        const WIDTH: usize = $vectors * Self::LANES;

        unsafe fn enter<J: $crate::kernels::matmul::kernel::Job>(job: J) {
            #[target_feature(enable = $features)]
            unsafe fn within<J: $crate::kernels::matmul::kernel::Job>(job: J) {
                job.run();
            }
            // SAFETY: the caller promises that the CPU has these features.
            unsafe { within(job) }
        }

        #[inline(always)]
        unsafe fn micro(
            units: usize,
            a: *const Self::Unit,
            b: *const Self::Unit,
            ahead: $crate::kernels::matmul::kernel::Ahead,
            tile: *mut Self::Acc,
            stride: usize,
            first: bool,
        ) {
            // SAFETY: the caller's promises are the same.
            unsafe {
                $crate::kernels::matmul::kernel::register_block::<Self, $rows, $vectors>(
                    units, a, b, ahead, tile, stride, first,
                )
            }
        }

        #[inline(always)]
        fn prefetch(at: *const u8) {
            // SAFETY: SSE is part of x86-64, and a prefetch does nothing where there is no memory.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
        }
    };
}
pub(super) use block;
