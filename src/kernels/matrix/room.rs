//! How much memory a step works in, before it does.

use super::MatrixRule;
use super::piece::scratch;
use crate::kernels::orthogonal::Room;

/// A matrix of a step to come, with the bytes of a number of the arithmetic and of the momentum.
#[derive(Clone, Copy, Debug)]
pub struct Coming {
    pub rows: usize,
    pub cols: usize,
    pub work: usize,
    pub state: usize,
}

impl Coming {
    fn len(&self) -> usize {
        self.rows * self.cols
    }
}

impl MatrixRule {
    /// The bytes that a [`super::Workspace`] has after a step.
    pub fn working_memory(&self, matrices: &[Coming], threads: usize) -> usize {
        if !self.transforms.writes() {
            return 0;
        }
        let (mut directions, mut room) = (0, Room::default());
        let mut rest = matrices;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.how_many_at_once(rest.iter().map(Coming::len)));
            let of_each = now.iter().map(|one| scratch(one.len(), one.state, one.work));
            directions = directions.max(of_each.map(|(narrow, wide)| narrow + wide).sum());
            for wide in [false, true] {
                let own = now.iter().filter(|one| (one.work == 8) == wide);
                let shapes: Vec<_> = own.map(|one| (one.rows, one.cols)).collect();
                self.transforms.make_room(&shapes, wide, &mut room, threads);
            }
            rest = later;
        }
        directions + room.bytes()
    }
}
