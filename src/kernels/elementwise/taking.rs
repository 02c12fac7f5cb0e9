//! Selected elements of a stretch, taken while a rule without states updates all of it: so each byte comes from the memory
//! once, which takes a sixth less time than three passes.

use super::gather::{Chosen, Room};
use super::{Code, Rule};
use crate::kernels::storage::{Buffers, Float, Rounding, State};
use crate::kernels::vector::{
    Arch, Arithmetic, Bits, Halves, InF32, Noise, Routine, Single, Stored, Vector, dispatch, prefetch,
};
use crate::runtime::Isa;

/// Takes elements and their gradients as they are before a rule without states updates them and all others. None, and
/// nothing has happened, but for f32 that is rounded to the nearest.
///
/// # Safety
/// As for [`Code::run`].
pub(super) unsafe fn take_and_update<R: Rule<N>, const N: usize>(
    room: &mut Room,
    part: &Buffers<0>,
    chosen: &Chosen<'_>,
    (rule, code): (R, Code<R, N>),
    scale: f64,
) -> Option<Buffers<0>> {
    let is_plain =
        part.dtype == Float::F32 && part.grad_dtype == Float::F32 && part.rounding == Rounding::Nearest;
    if !is_plain {
        return None;
    }
    let taking = Taking {
        part: *part,
        chosen,
        code,
        scale,
    };
    dispatch(Isa::current(), (rule, taking, room.of_f32(chosen)));
    Some(room.taken(part, chosen))
}

/// A stretch of f32 whose elements are all updated by a rule without states, after the chosen ones have been taken.
struct Taking<'a, R, const N: usize> {
    part: Buffers<0>,
    chosen: &'a Chosen<'a>,
    code: Code<R, N>,
    scale: f64,
}

/// The rule comes first: this is compiled with its module. Last come the rooms of parameters and gradients.
impl<R: Rule<N>, const N: usize> Routine for (R, Taking<'_, R, N>, [*mut u32; 2]) {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let (rule, taking, mut together) = self;
        assert!(taking.chosen.has_all_bits());
        for row in 0..taking.chosen.rows {
            // SAFETY: the maker's promise.
            together = unsafe { taking.row::<A>(rule, row * taking.chosen.row, together) };
        }
    }
}

impl<R: Rule<N>, const N: usize> Taking<'_, R, N> {
    /// Takes and updates a row that starts at an element; returns where the next ones are together.
    #[inline(always)]
    unsafe fn row<A: Arch>(&self, rule: R, start: usize, mut together: [*mut u32; 2]) -> [*mut u32; 2] {
        type Row<A> = <InF32<Halves> as Arithmetic>::Vector<A>;
        type B<A> = <<A as Arch>::F32 as Single>::Bits;
        let lanes = Row::<A>::LANES;
        let param = self.part.param.cast::<f32>().wrapping_add(start);
        let grad = self.part.grad.cast::<f32>().wrapping_add(start);
        let whole = self.chosen.row - self.chosen.row % lanes;
        for i in (0..whole).step_by(lanes) {
            prefetch::<A, f32>(param.cast(), i, lanes);
            prefetch::<A, f32>(grad.cast(), i, lanes);
            // SAFETY: the caller's promise; vectors at `i` lie within the row, and there is room beyond the last.
            unsafe {
                for i in (i..i + lanes).step_by(B::<A>::LANES) {
                    let which = self.chosen.which(i, B::<A>::LANES);
                    for (from, to) in [param.cast_const(), grad].into_iter().zip(&mut together) {
                        let own = B::<A>::load_u32(from.add(i).cast());
                        own.compress(which).store_u32(*to);
                        *to = to.add(which.count_ones() as usize);
                    }
                }
                let gradient = <f32 as Stored<InF32<Halves>>>::load::<A>(grad.add(i)) * self.scale;
                let old = <f32 as Stored<InF32<Halves>>>::load::<A>(param.add(i));
                let (new, _) = rule.update(old, gradient, [Row::<A>::splat(0.0); N]);
                <f32 as Stored<InF32<Halves>>>::store::<A>(new, param.add(i));
            }
        }
        for i in whole..self.chosen.row {
            if self.chosen.has(i) {
                for (from, to) in [param.cast_const(), grad].into_iter().zip(&mut together) {
                    // SAFETY: the caller's promise.
                    unsafe { **to = *from.add(i).cast() };
                    *to = to.wrapping_add(1);
                }
            }
        }
        let rest = self.part.part(start + whole, self.chosen.row - whole);
        if rest.len > 0 {
            let states = [State::float(std::ptr::null_mut(), Float::F32); N]; // none
            // SAFETY: the caller's promise.
            unsafe {
                self.code
                    .run(&rule, &rest.with_states(states), self.scale, Noise::NONE, None)
            };
        }
        together
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::elementwise::frugal::SignDescent;
    use crate::kernels::elementwise::tests::{numbers, one_at_a_time};

    /// Updates 3 rows of signs at once, or in three passes; what becomes of them, and what was taken before.
    fn taken_and_updated(row: usize, at_once: bool) -> [Vec<f32>; 3] {
        let all = |key| numbers(3 * row, key).into_iter().map(|x| x as f32).collect();
        let (mut param, grad): (Vec<f32>, Vec<f32>) = (all(1), all(2));
        let part = Buffers {
            dtype: Float::F32,
            len: param.len(),
            param: param.as_mut_ptr().cast(),
            grad_dtype: Float::F32,
            grad: grad.as_ptr().cast(),
            state: [],
            rounding: Rounding::Nearest,
            compensation: std::ptr::null_mut(),
        };
        let rule = SignDescent {
            lr: 0.1,
            weight_decay: 0.5,
            maximize: false,
        };
        let is_chosen = |i: usize| Noise::key(3, i as u64).is_multiple_of(4);
        let mut bits = vec![0_u8; row.div_ceil(8)];
        (0..row)
            .filter(|&i| is_chosen(i))
            .for_each(|i| bits[i / 8] |= 1 << (i % 8));
        let chosen = Chosen {
            bits: &bits,
            count: (0..row).filter(|&i| is_chosen(i)).count(),
            row,
            rows: 3,
        };
        let code = Code::of(&part).expect("f32 has a kernel");
        let mut room = Room::default();
        // SAFETY: the vectors outlive this.
        let taken = unsafe {
            if at_once {
                let taken = take_and_update(&mut room, &part, &chosen, (rule, code), 2.0);
                taken.expect("f32, rounded to the nearest")
            } else {
                room.take(&part, &chosen);
                code.run(&rule, &part, 2.0, Noise::NONE, None);
                room.with_gradients(&part, &chosen)
            }
        };
        let own = |data: *const u8| {
            // SAFETY: the room holds so many.
            unsafe { std::slice::from_raw_parts(data.cast(), taken.len) }.to_vec()
        };
        [own(taken.param), own(taken.grad), param]
    }

    #[test]
    fn elements_are_taken_before_they_are_updated() {
        let _turn = one_at_a_time();
        for row in [1, 15, 31, 32, 33, 64, 70, 200] {
            let expected = taken_and_updated(row, false);
            for isa in Isa::supported() {
                isa.select();
                assert_eq!(taken_and_updated(row, true), expected, "{isa:?}, rows of {row}");
            }
        }
    }
}
