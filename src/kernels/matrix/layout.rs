//! How a parameter of any shape is seen as matrices.

use std::fmt;

/// One of the matrices that follow one another in a parameter's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub rows: usize,
    pub cols: usize,
}

/// What a parameter's dimensions mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// It must be a matrix.
    Matrix,
    /// The first dimension counts rows, all others together columns: a convolution.
    Flatten,
    /// The same of any shape; fewer than two dimensions are no matrix that could be taller than wide, but one row.
    Whole,
    /// The last two are a matrix, the others count them: experts.
    Batch,
    /// A matrix of so many of equal height, one above the other: attention heads.
    Heads(usize),
    /// A matrix of several with these heights, one above the other: a fused projection.
    Split(Vec<usize>),
}

/// A shape that a layout does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    expected: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expected)
    }
}

impl Layout {
    /// The matrices of a parameter of this shape.
    pub fn parts(&self, shape: &[usize]) -> Result<Vec<Part>, Mismatch> {
        let refuse = |expected: String| Err(Mismatch { expected });
        let (rows, cols) = match (self, shape) {
            (_, &[rows, cols]) => (rows, cols),
            (Layout::Whole, &[] | &[_]) => (1, shape.iter().product()),
            (Layout::Flatten | Layout::Whole, &[rows, ref rest @ .., last]) => {
                (rows, rest.iter().product::<usize>() * last)
            }
            (Layout::Batch, &[ref count @ .., rows, cols]) => {
                return Ok(stack(count.iter().product(), rows, cols));
            }
            (Layout::Flatten | Layout::Batch, _) => return refuse("2 or more dimensions".into()),
            _ => return refuse("2 dimensions".into()),
        };
        match self {
            Layout::Heads(heads) if *heads == 0 || rows % heads != 0 => {
                refuse(format!("rows for {heads} heads of equal height"))
            }
            Layout::Heads(heads) => Ok(stack(*heads, rows / heads, cols)),
            Layout::Split(heights) if sum(heights) != rows => {
                refuse(format!("{} rows, the sum of {heights:?}", sum(heights)))
            }
            Layout::Split(heights) => Ok(heights.iter().map(|&rows| Part { rows, cols }).collect()),
            _ => Ok(vec![Part { rows, cols }]),
        }
    }
}

/// So many matrices; none if they have no elements, of which there may be more than memory has room for.
fn stack(count: usize, rows: usize, cols: usize) -> Vec<Part> {
    let count = if rows * cols == 0 { 0 } else { count };
    vec![Part { rows, cols }; count]
}

/// The most there is where the sum is beyond it: no tensor has as many rows.
fn sum(heights: &[usize]) -> usize {
    heights.iter().copied().fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_seen_as_their_layout_says() {
        let parts = |layout: Layout, shape: &[usize]| {
            let parts = layout.parts(shape).map_err(|mismatch| mismatch.to_string())?;
            Ok::<_, String>(
                parts
                    .into_iter()
                    .map(|part| (part.rows, part.cols))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(parts(Layout::Matrix, &[3, 5]), Ok(vec![(3, 5)]));
        assert_eq!(parts(Layout::Flatten, &[8, 4, 3, 3]), Ok(vec![(8, 36)]));
        assert_eq!(parts(Layout::Flatten, &[8, 4, 3]), Ok(vec![(8, 12)]));
        assert_eq!(parts(Layout::Whole, &[8, 4, 3]), Ok(vec![(8, 12)]));
        assert_eq!(parts(Layout::Whole, &[7]), Ok(vec![(1, 7)]));
        assert_eq!(parts(Layout::Whole, &[]), Ok(vec![(1, 1)]));
        assert_eq!(parts(Layout::Batch, &[2, 3, 4, 5]), Ok(vec![(4, 5); 6]));
        assert_eq!(parts(Layout::Batch, &[4, 5]), Ok(vec![(4, 5)]));
        assert_eq!(parts(Layout::Heads(3), &[6, 5]), Ok(vec![(2, 5); 3]));
        assert_eq!(
            parts(Layout::Split(vec![4, 2]), &[6, 5]),
            Ok(vec![(4, 5), (2, 5)])
        );
        assert_eq!(parts(Layout::Heads(usize::MAX), &[0, 5]), Ok(vec![]));
        assert_eq!(parts(Layout::Batch, &[usize::MAX, 0, 5]), Ok(vec![]));
        for (layout, shape) in [
            (Layout::Matrix, &[3][..]),
            (Layout::Matrix, &[3, 4, 5]),
            (Layout::Flatten, &[3]),
            (Layout::Batch, &[]),
            (Layout::Heads(4), &[6, 5]),
            (Layout::Heads(0), &[6, 5]),
            (Layout::Heads(2), &[6, 5, 2]),
            (Layout::Split(vec![4, 4]), &[6, 5]),
            (Layout::Split(vec![usize::MAX, 7]), &[6, 5]),
        ] {
            assert!(parts(layout.clone(), shape).is_err(), "{layout:?} {shape:?}");
        }
    }
}
