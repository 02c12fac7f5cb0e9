//! The affine hull of some points, of which only the inner products are known: an orthonormal basis of their
//! differences, kept while points join and leave.

use ndarray::{Array1, Array2, ArrayView2, s};

/// The first member is the base. The others' differences to it are the rows of a lower triangular matrix, which is the
/// Cholesky factor of the differences' inner products: exact where these are small beside the points themselves, as
/// elimination of a constraint that the weights sum up to 1 is.
pub struct Differences {
    pub members: Vec<usize>,
    factor: Array2<f64>,
    /// The least square of a pivot: what is below is rounding.
    least: f64,
}

impl Differences {
    /// Of no points yet, and at most so many.
    pub fn new(count: usize, least: f64) -> Differences {
        Differences {
            members: Vec::with_capacity(count),
            factor: Array2::zeros((count, count)), // untouched pages take no memory
            least,
        }
    }

    /// Takes in a point, in O(members^2).
    pub fn join(&mut self, point: usize, products: ArrayView2<f64>) {
        let Some((&base, others)) = self.members.split_first() else {
            self.members.push(point);
            return;
        };
        let with_base = products[[base, base]] - products[[point, base]];
        let along = |other: usize| products[[point, other]] - products[[other, base]] + with_base;
        let size = others.len();
        let mut row: Array1<f64> = others.iter().map(|&other| along(other)).collect();
        for i in 0..size {
            let known = self.factor.slice(s![i, ..i]).dot(&row.slice(s![..i]));
            row[i] = (row[i] - known) / self.factor[[i, i]];
        }
        let length = products[[point, point]] - products[[point, base]] + with_base;
        let pivot = (length - row.dot(&row)).max(self.least).sqrt();
        self.factor.slice_mut(s![size, ..size]).assign(&row);
        self.factor[[size, size]] = pivot;
        self.members.push(point);
    }

    /// Lets the member at `place` go, in O(members^2). Where it is the base, the next one becomes it.
    pub fn leave(&mut self, place: usize) {
        self.members.remove(place);
        let size = self.members.len();
        // The row that goes leaves its column behind, to be rotated into those after it. Another base is subtracted
        // from every row, and stands in the first column only.
        let gone = place.saturating_sub(1);
        let base = if place == 0 { self.factor[[0, 0]] } else { 0.0 };
        let mut rotations: Vec<(f64, f64)> = Vec::with_capacity(size);
        for from in gone + 1..size {
            let mut extra = self.factor[[from, gone]] - base;
            let (mut above, row) = self.factor.multi_slice_mut((s![from - 1, ..], s![from, ..]));
            above.slice_mut(s![..gone]).assign(&row.slice(s![..gone]));
            for (i, &(cos, sin)) in rotations.iter().enumerate() {
                let (to, old) = (gone + i, row[gone + i + 1]);
                above[to] = cos * old + sin * extra;
                extra = cos * extra - sin * old;
            }
            let pivot = row[from].hypot(extra);
            above[from - 1] = pivot;
            rotations.push((row[from] / pivot, extra / pivot));
        }
    }

    /// Moves the weights to where the slopes of all members are the same, until one would fall below 0: that leaves. The
    /// weight of `free` may be anything, and is not kept. Says whether all members stayed.
    pub fn descend(&mut self, weights: &mut Array1<f64>, slopes: &Array1<f64>, free: Option<usize>) -> bool {
        let step = self.level(slopes);
        let mut first = (0, f64::INFINITY);
        for (place, &point) in self.members.iter().enumerate() {
            let reach = weights[point] / -step[place];
            if step[place] < 0.0 && Some(point) != free && reach < first.1 {
                first = (place, reach);
            }
        }
        let part = first.1.min(1.0);
        for (&point, &by) in self.members.iter().zip(&step) {
            if Some(point) != free {
                weights[point] = (weights[point] + part * by).max(0.0); // rounding may fall below
            }
        }
        if part < 1.0 {
            weights[self.members[first.0]] = 0.0;
            self.leave(first.0);
        }
        part == 1.0
    }

    /// The step of the members' weights, without change of their sum, to where `slopes + products * step` is the same
    /// for all members: for each member, in their order.
    pub fn level(&self, slopes: &Array1<f64>) -> Array1<f64> {
        let base = slopes[self.members[0]];
        let size = self.members.len() - 1;
        let mut step: Array1<f64> = self.members.iter().map(|&i| base - slopes[i]).collect();
        let mut rest = step.slice_mut(s![1..]);
        for i in 0..size {
            let known = self.factor.slice(s![i, ..i]).dot(&rest.slice(s![..i]));
            rest[i] = (rest[i] - known) / self.factor[[i, i]];
        }
        for i in (0..size).rev() {
            rest[i] /= self.factor[[i, i]];
            let last = rest[i];
            rest.slice_mut(s![..i])
                .scaled_add(-last, &self.factor.slice(s![i, ..i]));
        }
        step[0] = -rest.sum();
        step
    }
}
