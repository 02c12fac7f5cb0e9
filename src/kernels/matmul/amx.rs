//! AMX BF16: a tile of 16 x 16 sums takes 16 pairs of bf16 per row and column at once.

use std::arch::asm;

use super::avx512bf16::Dot;
use super::kernel::{Ahead, Job, Kernel, Takes};

/// Units are [`Dot`]'s, in groups of 16. `tdpbf16ps` takes subnormal inputs and results as zero, as `vdpbf16ps` does.
///
/// The compiler knows tiles neither as values nor as state, so each lives within one block of assembly, and their shape
/// is set for the duration of [`Kernel::enter`] only: on whatever thread that runs.
#[derive(Clone, Copy)]
pub struct Tiles;

/// Rows of a tile, and pairs or sums in one of its rows.
const SIDE: usize = 16;

/// What `ldtilecfg` reads: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const ALL_WHOLE: Shapes = {
    let mut shapes = Shapes {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    let mut tile = 0;
    while tile < 8 {
        shapes.row_bytes[tile] = 64;
        shapes.rows[tile] = SIDE as u8;
        tile += 1;
    }
    shapes
};

/// While it lives, this thread's tiles have their shape.
struct Shaped;

impl Shaped {
    /// # Safety
    /// The CPU has tiles that the process may use.
    unsafe fn new() -> Shaped {
        // SAFETY: the caller's promise; the instruction reads the 64 bytes of a constant.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &ALL_WHOLE, options(nostack, readonly, preserves_flags)) };
        Shaped
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        // SAFETY: `new` was called on a CPU that has tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

impl Kernel for Tiles {
    type Value = u16;
    type Unit = u32;
    type Acc = f32;
    const DEPTH: usize = 2;
    const LANES: usize = 16;
    const GROUP: usize = SIDE;
    const ROWS: usize = 2 * SIDE;
    const WIDTH: usize = 2 * SIDE;
    const STRETCH: usize = 128;

    unsafe fn enter<J: Job>(job: J) {
        // SAFETY: the caller promises that the CPU has this instruction set, which contains `Dot`'s.
        unsafe {
            let _shaped = Shaped::new();
            Dot::enter(job);
        }
    }

    /// Four tiles of sums, two of either operand. Asking for memory ahead costs more than it gains: a load of a tile
    /// is sixteen of cache lines, and the CPU keeps up with those.
    #[inline(always)]
    unsafe fn micro(
        units: usize,
        a: *const u32,
        b: *const u32,
        _ahead: Ahead,
        tile: *mut f32,
        stride: usize,
        first: bool,
    ) {
        debug_assert!(units.is_multiple_of(SIDE));
        let row_bytes = stride * size_of::<f32>();
        let lower = tile.wrapping_add(SIDE * stride);
        // SAFETY: within `enter` the tiles have their shape. The caller promises `units` units of both panels, which are
        // whole groups of 2 KiB: of `a` two tiles one after the other, of `b` two side by side; and a block of sums.
        unsafe {
            if first {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags)
                );
            } else {
                asm!(
                    "tileloadd tmm0, [{upper} + {row}]",
                    "tileloadd tmm1, [{upper} + {row} + 64]",
                    "tileloadd tmm2, [{lower} + {row}]",
                    "tileloadd tmm3, [{lower} + {row} + 64]",
                    upper = in(reg) tile,
                    lower = in(reg) lower,
                    row = in(reg) row_bytes,
                    options(nostack, readonly, preserves_flags)
                );
            }
            asm!(
                "test {groups}, {groups}",
                "jz 3f",
                "2:",
                "tileloadd tmm4, [{a} + {a_row}]",
                "tileloadd tmm6, [{b} + {b_row}]",
                "tileloadd tmm7, [{b} + {b_row} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a} + {a_row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "sub {groups}, 1",
                "jnz 2b",
                "3:",
                "tilestored [{upper} + {row}], tmm0",
                "tilestored [{upper} + {row} + 64], tmm1",
                "tilestored [{lower} + {row}], tmm2",
                "tilestored [{lower} + {row} + 64], tmm3",
                a = inout(reg) a => _,
                a_row = in(reg) 64usize,
                b = inout(reg) b => _,
                b_row = in(reg) 128usize,
                groups = inout(reg) units / SIDE => _,
                upper = in(reg) tile,
                lower = in(reg) lower,
                row = in(reg) row_bytes,
                options(nostack)
            );
        }
    }

    #[inline(always)]
    fn unit(first: u16, second: u16) -> u32 {
        Dot::unit(first, second)
    }
    #[inline(always)]
    unsafe fn units(first: &[u16], second: &[u16], to: &mut [u32]) {
        // SAFETY: the caller's promises are the same.
        unsafe { Dot::units(first, second, to) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promises are the same.
        unsafe { Dot::transpose(from, stride, to, to_stride) }
    }
}

impl<T> Takes<T> for Tiles
where
    Dot: Takes<T>,
{
    #[inline(always)]
    unsafe fn convert(from: &[T], to: &mut [u16]) {
        // SAFETY: the caller's promises are the same.
        unsafe { <Dot as Takes<T>>::convert(from, to) }
    }
}
