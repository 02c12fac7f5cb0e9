//! The two passes over a part: one adds up, one writes.

use super::columns::Columns;
use super::{Affine, Element, Part};
use crate::kernels::matmul::Real;
use crate::kernels::vector::{
    Arch, Arithmetic, MAX_LANES, Routine, Stored, Vector, end_streams, prefetch_at, stream,
};

/// Rows that are gone over together, and added up in the arithmetic of their type: few enough that this loses no more
/// than their own rounding.
const ROWS: usize = 8;
/// Rows between those that are read and those whose memory is asked for: rows may be far apart, which the CPU does not
/// expect.
const AHEAD: usize = 4;

type Lanes<A, T> = <<T as Element>::Exact as Arithmetic>::Vector<A>;

/// Statistics of each channel, and its elements normalized by them.
pub struct Forward<'a, T: Element> {
    pub from: Part<T>,
    pub to: Part<T>,
    pub columns: Columns<'a, T::Wide>,
    pub affine: Affine<'a>,
    pub eps: f64,
    /// Where mean, scale and variance of each channel go.
    pub found: [&'a mut [f64]; 3],
}

impl<T: Element> Routine for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let Forward {
            from, mut columns, ..
        } = self;
        let elements = Elements(from);
        let [means, scales, variances] = self.found;
        let count = (from.rows * columns.run) as f64;
        // The squares of the elements themselves would leave nothing of variances much smaller: deviations are from the
        // mean of the first row or, where that is far off, once more from that of all.
        for column in (0..from.columns).step_by(Lanes::<A, T>::LANES) {
            // SAFETY: whoever makes a `Forward` vouches for the memory; there are whole vectors of columns.
            unsafe {
                let elements = load::<A, T>(&from, column, from.columns - column);
                T::Wide::store::<A>(elements, columns.about.as_mut_ptr().add(column));
            }
        }
        columns.means::<A>(means);
        for _ in 0..2 {
            columns.center(means);
            // SAFETY: as above; the columns are those of such parts.
            unsafe { add_up::<A, T, _>(&elements, &from, &mut columns) };
            let is_far = columns.deviations::<A>(means.len(), count);
            for (mean, &off) in means.iter_mut().zip(&*columns.sums[0]) {
                *mean += off;
            }
            if !is_far {
                break;
            }
        }
        let [offs, squares] = columns.sums.each_ref().map(|sums| &sums[..means.len()]);
        let Affine { weight, bias } = self.affine;
        // Several loops, as the compiler makes no vector code of one that writes so many arrays.
        for i in 0..offs.len() {
            variances[i] = squares[i] / (count - 1.0);
        }
        for i in 0..offs.len() {
            scales[i] = 1.0 / (squares[i] / count + self.eps).sqrt();
        }
        for i in 0..offs.len() {
            columns.factor[i] = T::Wide::from_f64(weight[i] * scales[i]);
        }
        for i in 0..offs.len() {
            columns.offset[i] = T::Wide::from_f64(bias[i] - offs[i] * weight[i] * scales[i]);
        }
        columns.spread(means.len());
        // SAFETY: as above.
        unsafe { write::<A, T, _>(&elements, &self.to, &columns) };
    }
}

/// The derivatives by each channel's elements, weight and bias.
pub struct Backward<'a, T: Element> {
    /// The elements, and the derivative by what came of them.
    pub from: [Part<T>; 2],
    pub to: Part<T>,
    pub columns: Columns<'a, T::Wide>,
    pub weight: &'a [f64],
    /// Means and scales of the channels.
    pub statistics: [&'a [f64]; 2],
    /// Where the derivatives by the channels' weights and biases go.
    pub found: [&'a mut [f64]; 2],
}

impl<T: Element> Routine for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arch>(self) {
        let Backward { to, mut columns, .. } = self;
        let derivatives = Derivatives(self.from);
        let ([means, scales], weight) = (self.statistics, self.weight);
        let [by_weights, by_biases] = self.found;
        let count = (to.rows * columns.run) as f64;
        by_weights.copy_from_slice(means);
        columns.center(by_weights);
        // SAFETY: whoever makes a `Backward` vouches for the memory; the columns are those of such parts.
        unsafe { add_up::<A, T, _>(&derivatives, &to, &mut columns) };
        columns.fold::<A>(means.len());
        let [sums, products] = columns.sums.each_ref().map(|sums| &sums[..means.len()]);
        // Several loops, as above.
        for i in 0..sums.len() {
            by_biases[i] = means[i] - by_weights[i]; // what the mean has lost as it was rounded
        }
        for i in 0..sums.len() {
            by_weights[i] = (products[i] - sums[i] * by_biases[i]) * scales[i];
        }
        for i in 0..sums.len() {
            columns.factor[i] = T::Wide::from_f64(weight[i] * scales[i]);
        }
        for i in 0..sums.len() {
            columns.slope[i] = T::Wide::from_f64(-weight[i] * scales[i] * scales[i] * by_weights[i] / count);
        }
        for i in 0..sums.len() {
            let offset = scales[i] * by_weights[i] * by_biases[i] - sums[i];
            columns.offset[i] = T::Wide::from_f64(weight[i] * scales[i] * offset / count);
        }
        by_biases.copy_from_slice(sums);
        columns.spread(means.len());
        // SAFETY: as above.
        unsafe { write::<A, T, _>(&derivatives, &to, &columns) };
    }
}

/// What is read, and what is computed of it.
trait Source<T: Element> {
    /// The elements at one place of each part.
    type Values<A: Arch>: Copy;

    fn parts(&self) -> &[Part<T>];

    /// Those from a place on.
    ///
    /// # Safety
    /// As of [`load`].
    unsafe fn values<A: Arch>(&self, place: usize, few: usize) -> Self::Values<A>;

    /// Two terms that are added up.
    fn terms<A: Arch>(values: Self::Values<A>, about: Lanes<A, T>) -> (Lanes<A, T>, Lanes<A, T>);

    /// What is written, but for an offset.
    fn image<A: Arch>(
        values: Self::Values<A>,
        about: Lanes<A, T>,
        factor: Lanes<A, T>,
        slope: Lanes<A, T>,
    ) -> Lanes<A, T>;
}

/// What is to be normalized: its deviations, and their squares.
struct Elements<T>(Part<T>);

impl<T: Element> Source<T> for Elements<T> {
    type Values<A: Arch> = Lanes<A, T>;

    #[inline(always)]
    fn parts(&self) -> &[Part<T>] {
        std::slice::from_ref(&self.0)
    }

    #[inline(always)]
    unsafe fn values<A: Arch>(&self, place: usize, few: usize) -> Lanes<A, T> {
        // SAFETY: the caller's promise.
        unsafe { load::<A, T>(&self.0, place, few) }
    }

    #[inline(always)]
    fn terms<A: Arch>(x: Lanes<A, T>, about: Lanes<A, T>) -> (Lanes<A, T>, Lanes<A, T>) {
        let deviation = x - about;
        (deviation, deviation * deviation)
    }

    #[inline(always)]
    fn image<A: Arch>(
        x: Lanes<A, T>,
        about: Lanes<A, T>,
        factor: Lanes<A, T>,
        _: Lanes<A, T>,
    ) -> Lanes<A, T> {
        (x - about) * factor
    }
}

/// The elements, and the derivative by what came of them: that, and its product with the deviations, which are to be
/// taken out of it.
struct Derivatives<T>([Part<T>; 2]);

impl<T: Element> Source<T> for Derivatives<T> {
    type Values<A: Arch> = (Lanes<A, T>, Lanes<A, T>);

    #[inline(always)]
    fn parts(&self) -> &[Part<T>] {
        &self.0
    }

    #[inline(always)]
    unsafe fn values<A: Arch>(&self, place: usize, few: usize) -> Self::Values<A> {
        let [x, dy] = &self.0;
        // SAFETY: the caller's promise.
        unsafe { (load::<A, T>(x, place, few), load::<A, T>(dy, place, few)) }
    }

    #[inline(always)]
    fn terms<A: Arch>((x, dy): Self::Values<A>, about: Lanes<A, T>) -> (Lanes<A, T>, Lanes<A, T>) {
        (dy, dy * (x - about))
    }

    #[inline(always)]
    fn image<A: Arch>(
        (x, dy): Self::Values<A>,
        about: Lanes<A, T>,
        factor: Lanes<A, T>,
        slope: Lanes<A, T>,
    ) -> Lanes<A, T> {
        dy * factor + (x - about) * slope
    }
}

/// Adds the terms of each column to its sums.
///
/// # Safety
/// The elements are valid for reading; source, part and columns are of one shape.
#[inline(always)]
unsafe fn add_up<A: Arch, T: Element, S: Source<T>>(
    source: &S,
    part: &Part<T>,
    columns: &mut Columns<'_, T::Wide>,
) {
    let lanes = Lanes::<A, T>::LANES;
    for first in (0..part.rows).step_by(ROWS) {
        let rows = first..part.rows.min(first + ROWS);
        for column in (0..part.columns).step_by(lanes) {
            let few = part.columns - column;
            let (mut sum, mut other) = (Lanes::<A, T>::splat(0.0), Lanes::<A, T>::splat(0.0));
            // SAFETY: the caller's promise; there are whole vectors of columns.
            unsafe {
                let about = T::Wide::load::<A>(columns.about.as_ptr().add(column));
                for row in rows.clone() {
                    for part in source.parts() {
                        prefetch_at::<A, T>(part.first.wrapping_add(ahead(part, row) + column), lanes);
                    }
                    let values = source.values::<A>(row * part.stride + column, few);
                    let (one, two) = S::terms::<A>(values, about);
                    sum = sum + one;
                    other = other + two;
                }
            }
            for (sums, added) in columns.sums.iter_mut().zip([sum, other]) {
                let mut each = [T::Wide::ZERO; MAX_LANES];
                // SAFETY: a vector has no more lanes.
                unsafe { T::Wide::store::<A>(added, each.as_mut_ptr()) };
                let sums = &mut sums[column..column + lanes];
                for lane in 0..lanes {
                    sums[lane] += each[lane].to_f64();
                }
            }
        }
    }
}

/// Where the row begins whose memory is asked for; after the last ones come the first of the columns beside these.
#[inline(always)]
fn ahead<T>(part: &Part<T>, row: usize) -> usize {
    let next = row + AHEAD;
    if next < part.rows {
        next * part.stride
    } else {
        (next - part.rows) * part.stride + part.columns
    }
}

/// Writes the images of the elements to a part.
///
/// # Safety
/// As for [`add_up`], with a part that is valid for writing.
#[inline(always)]
unsafe fn write<A: Arch, T: Element, S: Source<T>>(
    source: &S,
    part: &Part<T>,
    columns: &Columns<'_, T::Wide>,
) {
    let lanes = Lanes::<A, T>::LANES;
    let numbers = [&columns.about, &columns.factor, &columns.slope, &columns.offset];
    for row in 0..part.rows {
        for column in (0..part.columns).step_by(lanes) {
            let (place, few) = (row * part.stride + column, part.columns - column);
            // SAFETY: the caller's promise; there are whole vectors of columns.
            unsafe {
                let about = T::Wide::load::<A>(numbers[0].as_ptr().add(column));
                let factor = T::Wide::load::<A>(numbers[1].as_ptr().add(column));
                let slope = T::Wide::load::<A>(numbers[2].as_ptr().add(column));
                let offset = T::Wide::load::<A>(numbers[3].as_ptr().add(column));
                let values = source.values::<A>(place, few);
                let image = S::image::<A>(values, about, factor, slope) + offset;
                let to = part.first.add(place);
                if few >= lanes && !part.is_streamed {
                    T::store::<A>(image, to);
                    continue;
                }
                let mut own = [T::default(); MAX_LANES];
                T::store::<A>(image, own.as_mut_ptr());
                if few >= lanes {
                    stream(own.as_ptr(), to, lanes);
                } else {
                    to.copy_from_nonoverlapping(own.as_ptr(), few);
                }
            }
        }
    }
    if part.is_streamed {
        end_streams();
    }
}

/// The elements from a place on: a vector, or so `few` and zeros after them.
///
/// # Safety
/// There are as many.
#[inline(always)]
unsafe fn load<A: Arch, T: Element>(part: &Part<T>, place: usize, few: usize) -> Lanes<A, T> {
    // SAFETY: the caller's promise.
    unsafe {
        let from = part.first.add(place).cast_const();
        if few >= Lanes::<A, T>::LANES {
            return T::load::<A>(from);
        }
        let mut rest = [T::default(); MAX_LANES];
        from.copy_to_nonoverlapping(rest.as_mut_ptr(), few);
        T::load::<A>(rest.as_ptr())
    }
}
