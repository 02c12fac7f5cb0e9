//! Selected elements of a stretch of a parameter, moved to where they lie one after the other, and back.

use crate::kernels::storage::{Buffers, Rounding};
use crate::kernels::vector::{self, Arch, MAX_LANES, Routine, Single, dispatch};
use crate::runtime::Isa;

/// Which elements of a stretch are selected: the same of each row.
pub struct Chosen<'a> {
    /// One for each element of a row, the lowest of a byte first; none are set beyond.
    pub bits: &'a [u8],
    /// How many are set.
    pub count: usize,
    /// Elements of a row.
    pub row: usize,
    pub rows: usize,
}

impl Chosen<'_> {
    /// Whether there is a bit for each element of a row.
    pub fn has_all_bits(&self) -> bool {
        self.bits.len() >= self.row.div_ceil(8)
    }

    /// Whether element `i` of a row is one of them.
    pub fn has(&self, i: usize) -> bool {
        self.bits[i / 8] >> (i % 8) & 1 == 1
    }

    /// The bits of so many elements of a row from number `i` on, a multiple of `lanes`: a power of two up to 16.
    ///
    /// # Safety
    /// They lie within the row, and there is a bit for each of its elements.
    #[inline(always)]
    pub unsafe fn which(&self, i: usize, lanes: usize) -> u32 {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.bits.as_ptr().add(i / 8);
            let bits = match lanes > 8 {
                true => u16::from_le_bytes(at.cast::<[u8; 2]>().read()).into(),
                false => u32::from(*at),
            };
            bits >> (i % 8) & ((1 << lanes) - 1)
        }
    }
}

/// Where the selected elements of a stretch lie one after the other.
#[derive(Default)]
pub struct Room {
    param: Vec<u64>,
    grad: Vec<u64>,
    compensation: Vec<u64>,
}

/// Numbers at the end of a room for what a whole vector reads or writes beyond the last element.
const BEYOND: usize = MAX_LANES / 2;

impl Room {
    /// Takes what an update overwrites.
    ///
    /// # Safety
    /// The part is valid for reading.
    pub unsafe fn take(&mut self, part: &Buffers<0>, chosen: &Chosen<'_>) {
        let kept = size_of_kept(part);
        // SAFETY: the caller's promise.
        unsafe {
            gathered(part.param, part.dtype.size(), chosen, &mut self.param);
            gathered(part.compensation, kept, chosen, &mut self.compensation);
        }
    }

    /// What was taken, with the gradients.
    ///
    /// # Safety
    /// The part is valid for reading.
    pub unsafe fn with_gradients(&mut self, part: &Buffers<0>, chosen: &Chosen<'_>) -> Buffers<0> {
        // SAFETY: the caller's promise.
        unsafe { gathered(part.grad, part.grad_dtype.size(), chosen, &mut self.grad) };
        self.taken(part, chosen)
    }

    /// Where so many f32 and their gradients have room.
    pub fn of_f32(&mut self, chosen: &Chosen<'_>) -> [*mut u32; 2] {
        [&mut self.param, &mut self.grad].map(|room| room_for(chosen, size_of::<f32>(), room).cast())
    }

    /// A parameter of what has been taken of one.
    pub fn taken(&mut self, part: &Buffers<0>, chosen: &Chosen<'_>) -> Buffers<0> {
        Buffers {
            len: chosen.count * chosen.rows,
            param: self.param.as_mut_ptr().cast(),
            grad: self.grad.as_ptr().cast(),
            compensation: self.compensation.as_mut_ptr().cast(),
            ..*part
        }
    }

    /// # Safety
    /// The part is valid for writing, nobody else has it, and the room holds what was gathered of it.
    pub unsafe fn scatter(&self, part: &Buffers<0>, chosen: &Chosen<'_>) {
        let kept = size_of_kept(part);
        // SAFETY: the caller's promise.
        unsafe {
            scattered(&self.param, part.param, part.dtype.size(), chosen);
            scattered(&self.compensation, part.compensation, kept, chosen);
        }
    }
}

/// The bytes of an element that makes up for rounding.
fn size_of_kept(part: &Buffers<0>) -> usize {
    match part.rounding {
        Rounding::Nearest | Rounding::Stochastic { .. } => 0,
        rounding => rounding.compensation_size(part.dtype),
    }
}

/// # Safety
/// `from` is valid for reading elements of `size` bytes.
unsafe fn gathered(from: *const u8, size: usize, chosen: &Chosen<'_>, room: &mut Vec<u64>) {
    let to = room_for(chosen, size, room);
    // SAFETY: the caller's promise, and there is room.
    unsafe { moved::<true>(from.cast_mut(), to, size, chosen) };
}

/// Where so many elements of `size` bytes, and what is written beyond, have room.
fn room_for(chosen: &Chosen<'_>, size: usize, room: &mut Vec<u64>) -> *mut u8 {
    let numbers = (chosen.count * chosen.rows * size).div_ceil(8) + BEYOND;
    room.resize(room.len().max(numbers), 0);
    room.as_mut_ptr().cast()
}

/// # Safety
/// `to` is valid for writing elements of `size` bytes, and `room` holds the selected ones.
unsafe fn scattered(room: &[u64], to: *mut u8, size: usize, chosen: &Chosen<'_>) {
    // SAFETY: the caller's promise.
    unsafe { moved::<false>(to, room.as_ptr().cast_mut().cast(), size, chosen) }
}

/// Copies elements from where they are apart to where they are together, or back.
///
/// # Safety
/// `apart` is valid for elements of `size` bytes, and `together` for the selected ones and [`BEYOND`].
unsafe fn moved<const GATHERS: bool>(apart: *mut u8, together: *mut u8, size: usize, chosen: &Chosen<'_>) {
    macro_rules! moved {
        ($type:ty) => {
            dispatch(
                Isa::current(),
                Move::<$type, GATHERS> {
                    apart: apart.cast(),
                    together: together.cast(),
                    chosen,
                },
            )
        };
    }
    match size {
        2 => moved!(u16),
        4 => moved!(u32),
        8 => moved!(u64),
        _ => debug_assert_eq!(size, 0, "no elements have such a size"),
    }
}

/// Elements of a size, in lanes of 32 bits.
trait Element: Copy {
    /// So many in a vector of so many lanes.
    fn of(lanes: usize) -> usize {
        lanes
    }

    /// The bits of their lanes.
    #[inline(always)]
    fn lanes(which: u32) -> u32 {
        which
    }

    /// # Safety
    /// `from` is valid for reading as many elements as are in a vector.
    unsafe fn load<B: vector::Bits>(from: *const Self) -> B;

    /// # Safety
    /// `to` is valid for writing as many elements as are in a vector.
    unsafe fn store<B: vector::Bits>(lanes: B, to: *mut Self);
}

macro_rules! element {
    ($type:ty: $load:ident, $store:ident $(, $more:item)*) => {
        impl Element for $type {
            $($more)*

            #[inline(always)]
            unsafe fn load<B: vector::Bits>(from: *const Self) -> B {
                // SAFETY: the caller's promise.
                unsafe { B::$load(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store<B: vector::Bits>(lanes: B, to: *mut Self) {
                // SAFETY: the caller's promise.
                unsafe { lanes.$store(to.cast()) }
            }
        }
    };
}
element!(u16: load_u16, store_u16);
element!(u32: load_u32, store_u32);
element!(
    u64: load_u32, store_u32,
    fn of(lanes: usize) -> usize {
        lanes / 2
    },
    /// Each bit twice.
    #[inline(always)]
    fn lanes(which: u32) -> u32 {
        let apart = (which | which << 4) & 0x0f0f;
        let apart = (apart | apart << 2) & 0x3333;
        let apart = (apart | apart << 1) & 0x5555;
        apart | apart << 1
    }
);

/// Bytes ahead of what is gathered that are fetched: with as many requests under way the memory gives the most.
const AHEAD: usize = 1024;

#[inline(always)]
fn prefetch(_at: *const u8) {
    // SAFETY: SSE is part of x86-64, and a prefetch does nothing where there is no memory.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(_at.cast());
    }
}

struct Move<'a, T, const GATHERS: bool> {
    apart: *mut T,
    together: *mut T,
    chosen: &'a Chosen<'a>,
}

impl<T: Element, const GATHERS: bool> Routine for Move<'_, T, GATHERS> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        assert!(self.chosen.has_all_bits());
        let mut together = self.together;
        for row in 0..self.chosen.rows {
            // SAFETY: the maker's promise: the rows are valid, and so is what is together.
            together = unsafe { self.row::<A>(self.apart.add(row * self.chosen.row), together) };
        }
    }
}

impl<T: Element, const GATHERS: bool> Move<'_, T, GATHERS> {
    /// Moves those of a row; returns where the next ones are together.
    #[inline(always)]
    unsafe fn row<A: Arch>(&self, apart: *mut T, mut together: *mut T) -> *mut T {
        type B<A> = <<A as Arch>::F32 as Single>::Bits;
        let len = T::of(<B<A> as vector::Bits>::LANES);
        let (row, mut i) = (self.chosen.row, 0);
        // SAFETY: the caller's promise; a vector at `i` lies within the row.
        unsafe {
            while i + len <= row {
                if GATHERS {
                    prefetch(apart.cast::<u8>().wrapping_add(i * size_of::<T>() + AHEAD));
                }
                let which = self.chosen.which(i, len);
                let lanes = T::lanes(which);
                let own: B<A> = T::load(apart.add(i));
                match GATHERS {
                    true => T::store(vector::Bits::compress(own, lanes), together),
                    false => T::store(vector::Bits::expand(own, lanes, T::load(together)), apart.add(i)),
                }
                together = together.add(which.count_ones() as usize);
                i += len;
            }
            for i in i..row {
                // what is left
                if self.chosen.has(i) {
                    match GATHERS {
                        true => *together = *apart.add(i),
                        false => *apart.add(i) = *together,
                    }
                    together = together.add(1);
                }
            }
        }
        together
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::vector::Noise;

    /// Elements that a vector does not divide, in rows of all lengths, on every instruction set.
    fn check<T: Element + PartialEq + std::fmt::Debug>(of: impl Fn(u64) -> T) {
        for isa in Isa::supported() {
            for row in (0..70).chain([256, 300]) {
                let (rows, mut bits) = (3, vec![0_u8; usize::div_ceil(row, 8)]);
                let is_chosen = |i: usize| Noise::key(row as u64, i as u64).is_multiple_of(4);
                (0..row)
                    .filter(|&i| is_chosen(i))
                    .for_each(|i| bits[i / 8] |= 1 << (i % 8));
                let count = (0..row).filter(|&i| is_chosen(i)).count();
                let chosen = Chosen {
                    bits: &bits,
                    count,
                    row,
                    rows,
                };
                let before: Vec<T> = (0..(row * rows) as u64).map(|i| of(Noise::key(7, i))).collect();
                let places = (0..row * rows).filter(|&i| is_chosen(i % row));
                let expected: Vec<T> = places.clone().map(|i| before[i]).collect();
                let mut apart = before.clone();
                let mut room = vec![0_u64; (count * rows * size_of::<T>()).div_ceil(8) + BEYOND];
                let together = room.as_mut_ptr().cast::<T>();
                let there = Move::<T, true> {
                    apart: apart.as_mut_ptr(),
                    together,
                    chosen: &chosen,
                };
                dispatch(isa, there);
                // SAFETY: the room holds so many.
                let found = unsafe { std::slice::from_raw_parts_mut(together, count * rows) };
                assert_eq!(found, expected, "{isa:?}, rows of {row}");
                found.iter_mut().for_each(|x| *x = of(0));
                let back = Move::<T, false> {
                    apart: apart.as_mut_ptr(),
                    together,
                    chosen: &chosen,
                };
                dispatch(isa, back);
                let mut expected = before;
                places.for_each(|i| expected[i] = of(0));
                assert_eq!(apart, expected, "{isa:?}, rows of {row}");
            }
        }
    }

    #[test]
    fn elements_of_all_sizes_go_there_and_back() {
        check(|x| x as u16);
        check(|x| x as u32);
        check(|x| x);
    }
}
