//! How large a workspace grows, before it does.

use super::newton_schulz::bytes;
use super::plan::Plan;
use super::{Options, Precision, cost, operands_to_split};
use crate::runtime::Isa;

/// Bytes of what a [`super::Workspace`] holds for each thread.
#[derive(Default)]
pub struct Room(Vec<[usize; 6]>);

impl Room {
    /// Makes room for what [`super::orthogonalize`] takes for matrices of these shapes; `wide`: of f64 numbers.
    pub fn add(&mut self, shapes: &[(usize, usize)], wide: bool, options: &Options, threads: usize) {
        let mut shapes = shapes.to_vec();
        shapes.sort_by(|a, b| cost(b.0, b.1).total_cmp(&cost(a.0, a.1)));
        let costs: Vec<f64> = shapes.iter().map(|&(rows, cols)| cost(rows, cols)).collect();
        let spread = &shapes[operands_to_split(&costs, threads)..];
        self.grow(0, &shapes, wide, options);
        for lane in 1..threads.min(spread.len()) {
            self.grow(lane, spread, wide, options);
        }
    }

    fn grow(&mut self, lane: usize, shapes: &[(usize, usize)], wide: bool, options: &Options) {
        self.0.resize(self.0.len().max(lane + 1), [0; 6]);
        for &(rows, cols) in shapes {
            let in_f64 =
                options.precision == Precision::Float64 || (options.precision == Precision::Auto && wide);
            let of_iteration = match in_f64 {
                true => bytes(
                    &Plan::<f64>::new(options, (rows, cols), Isa::current()),
                    rows,
                    cols,
                ),
                false => bytes(
                    &Plan::<f32>::new(options, (rows, cols), Isa::current()),
                    rows,
                    cols,
                ),
            };
            let own = if in_f64 == wide {
                0
            } else {
                rows * cols * if in_f64 { 8 } else { 4 }
            };
            let needed = of_iteration.into_iter().chain([own]);
            for (most, bytes) in self.0[lane].iter_mut().zip(needed) {
                *most = bytes.max(*most);
            }
        }
    }

    pub fn bytes(&self) -> usize {
        self.0.iter().flatten().sum()
    }
}
