//! Isotonic regression by pooling adjacent violators (Best and Chakravarti, Math. Program. 47, 1990), and the
//! projections that are one of sorted rows: SLOPE's proximal operator (arXiv 1407.3824) and the projection onto a
//! permutahedron, which makes soft ranks (arXiv 2002.08871).

use super::lanes::Number;
use super::{Map, Room, Row};
use crate::kernels::matmul::Real;
use crate::kernels::vector::Arch;

/// Neighbours that have one value.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    count: usize,
    weight: f64,
    sum: f64,
    mean: f64,
}

impl Block {
    fn of(count: usize, weight: f64, sum: f64) -> Block {
        let mean = sum / weight;
        Block {
            count,
            weight,
            sum,
            mean,
        }
    }
}

/// The blocks of the nearest numbers that do not fall, by numbers with their weights. Equal ones are one block.
fn pool(numbers: impl Iterator<Item = (f64, f64)>, blocks: &mut Vec<Block>) {
    blocks.clear();
    for (number, weight) in numbers {
        let mut last = Block::of(1, weight, weight * number);
        while let Some(before) = blocks.pop_if(|before| before.mean >= last.mean) {
            last = Block::of(
                before.count + last.count,
                before.weight + last.weight,
                before.sum + last.sum,
            );
        }
        blocks.push(last);
    }
}

/// The nearest row that does not fall, or does not rise, by weights, which are positive; all 1 where there are none.
#[derive(Clone, Debug)]
pub struct Isotonic {
    pub increasing: bool,
    pub weights: Option<Vec<f64>>,
}

impl Isotonic {
    fn weight(&self, i: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |weights| weights[i])
    }

    /// Writes the blocks of a row's distances from its first number, with the sign that makes them rise.
    fn pool<R: Real>(&self, row: &[R], blocks: &mut Vec<Block>) {
        let (sign, origin) = (self.sign(), origin(row));
        let number = |(i, x): (usize, &R)| (sign * (x.to_f64() - origin), self.weight(i));
        pool(row.iter().enumerate().map(number), blocks);
    }

    fn sign(&self) -> f64 {
        if self.increasing { 1.0 } else { -1.0 }
    }
}

/// What numbers are measured from: the first, if it is finite. Sums of large ones would lose digits.
fn origin<R: Real>(row: &[R]) -> f64 {
    let first = row[0].to_f64();
    if first.is_finite() { first } else { 0.0 }
}

/// Makes the row NaN if a number of it is.
fn spread_nan<R: Real>(row: &mut Row<'_, R>) -> bool {
    let nan = row.values().iter().any(|x| x.to_f64().is_nan());
    if nan {
        row.to().fill(R::from_f64(f64::NAN));
    }
    nan
}

impl Map for Isotonic {
    fn forward<A: Arch, R: Number>(&self, mut row: Row<'_, R>, room: &mut Room<R>) {
        if spread_nan(&mut row) {
            return;
        }
        self.pool(row.values(), &mut room.blocks);
        let (sign, origin) = (self.sign(), origin(row.values()));
        let mut to = row.to();
        for block in &room.blocks {
            let (these, others) = to.split_at_mut(block.count);
            these.fill(R::from_f64(sign * block.mean + origin));
            to = others;
        }
    }

    /// Means over blocks, which the row tells; transposed, by the weights the other way round.
    fn product<A: Arch, R: Number>(
        &self,
        told: &[R],
        vector: &[R],
        to: &mut [R],
        room: &mut Room<R>,
        transposed: bool,
    ) {
        if spread_nan(&mut Row::Into(told, to)) {
            return;
        }
        self.pool(told, &mut room.blocks);
        let mut first = 0;
        for block in &room.blocks {
            let these = first..first + block.count;
            let term = |i: usize| if transposed { 1.0 } else { self.weight(i) } * vector[i].to_f64();
            let mean = these.clone().map(term).sum::<f64>() / block.weight;
            for i in these {
                to[i] = R::from_f64(if transposed { self.weight(i) } else { 1.0 } * mean);
            }
            first += block.count;
        }
    }
}

/// What is left of a row, sorted, once the isotonic regression of what it is more than the weights is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sorted {
    /// SLOPE: of magnitudes, that regression where it is positive.
    Slope,
    /// The projection onto the permutations of the weights and what lies between: the row less the regression.
    Permutahedron,
}

/// By weights from the largest to the smallest.
#[derive(Clone, Debug)]
pub struct SortedMap {
    pub kind: Sorted,
    pub weights: Vec<f64>,
}

impl SortedMap {
    /// What a row is sorted by.
    fn key<R: Real>(&self, x: R) -> f64 {
        match self.kind {
            Sorted::Slope => x.to_f64().abs(),
            Sorted::Permutahedron => x.to_f64(),
        }
    }

    /// The order of the row, from the largest, and the blocks in that order; the means are negative ones.
    fn pool<R: Real>(&self, row: &[R], room: &mut Room<R>) {
        let Room { order, blocks, .. } = room;
        order.clear();
        order.extend(0..row.len());
        order.sort_by(|&i, &j| self.key(row[j]).total_cmp(&self.key(row[i])));
        let excess = |(&i, weight): (&usize, &f64)| (weight - self.key(row[i]), 1.0);
        pool(order.iter().zip(&self.weights).map(excess), blocks);
    }
}

impl Map for SortedMap {
    fn forward<A: Arch, R: Number>(&self, mut row: Row<'_, R>, room: &mut Room<R>) {
        if spread_nan(&mut row) {
            return;
        }
        self.pool(row.values(), room);
        let (mut order, mut weights) = (&room.order[..], &self.weights[..]);
        for block in &room.blocks {
            let (these, of_these);
            (these, order) = order.split_at(block.count);
            (of_these, weights) = weights.split_at(block.count);
            // Measured from the block's first number: in sums with large ones the weights would lose digits.
            let origin = origin(&[row.values()[these[0]]]);
            let excess = |(&i, weight): (&usize, &f64)| weight - (row.values()[i].to_f64() - origin);
            let mean = these.iter().zip(of_these).map(excess).sum::<f64>() / block.weight;
            for &i in these {
                let x = row.values()[i].to_f64();
                let image = match self.kind {
                    Sorted::Slope => (-block.mean).max(0.0).copysign(x),
                    Sorted::Permutahedron => x - origin + mean,
                };
                row.to()[i] = R::from_f64(image);
            }
        }
    }

    /// Means over blocks, or what is left of them; the row tells. The same both ways.
    fn product<A: Arch, R: Number>(
        &self,
        told: &[R],
        vector: &[R],
        to: &mut [R],
        room: &mut Room<R>,
        _: bool,
    ) {
        if spread_nan(&mut Row::Into(told, to)) {
            return;
        }
        self.pool(told, room);
        let mut order = &room.order[..];
        for block in &room.blocks {
            let (these, others) = order.split_at(block.count);
            let signed = |i: usize| match self.kind {
                Sorted::Slope if told[i] < R::ZERO => -1.0,
                _ => 1.0,
            };
            let mean = these.iter().map(|&i| signed(i) * vector[i].to_f64()).sum::<f64>() / block.weight;
            for &i in these {
                to[i] = R::from_f64(match self.kind {
                    Sorted::Slope if block.mean >= 0.0 => 0.0,
                    Sorted::Slope => signed(i) * mean,
                    Sorted::Permutahedron => vector[i].to_f64() - mean,
                });
            }
            order = others;
        }
    }
}
