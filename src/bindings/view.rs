//! Tensors as typed views of memory, and how they lie in it.

use pyo3::prelude::*;
use smallvec::SmallVec;

use super::errors::Problem;
use crate::kernels::storage::{DType, Dims, Float, Strided};

/// A tensor's memory. Complex numbers appear as a last dimension of two.
#[derive(Clone, Debug)]
pub struct View {
    pub data: *mut u8,
    pub len: usize,
    pub dtype: DType,
    /// Whether the elements lie without gaps in the order of the dimensions.
    pub is_contiguous: bool,
    pub shape: Dims,
    /// In elements.
    pub strides: Dims,
}

impl View {
    #[inline]
    pub fn new(data: *mut u8, dtype: DType, complex: bool, mut shape: Dims, mut strides: Dims) -> View {
        if complex {
            strides.iter_mut().for_each(|stride| *stride *= 2);
            shape.push(2);
            strides.push(1);
        }
        let (mut len, mut is_contiguous) = (1, true);
        for (&size, &stride) in shape.iter().zip(&strides).rev() {
            is_contiguous &= size == 1 || stride == len;
            len *= size;
        }
        View {
            data,
            len: len as usize,
            dtype,
            is_contiguous,
            shape,
            strides,
        }
    }

    /// How its elements are stored, of a view that was asked for as one of floating-point numbers.
    #[inline]
    pub fn float(&self) -> Float {
        match self.dtype {
            DType::Float(float) => float,
            DType::Integer(_) | DType::Bool => unreachable!("the reader was to refuse other elements"),
        }
    }

    /// The type that numbers of the arithmetic are kept in.
    pub fn work_dtype(&self) -> DType {
        DType::Float(self.float().arithmetic())
    }

    /// Whether both are the same elements in the same memory.
    pub fn is(&self, other: &View) -> bool {
        self.data == other.data && self.strides == other.strides
    }

    /// The dimensions from the largest stride to the smallest.
    pub fn order(&self) -> SmallVec<[usize; 4]> {
        let mut order: SmallVec<[usize; 4]> = (0..self.shape.len()).collect();
        if !self.is_contiguous {
            order.sort_by_key(|&dim| std::cmp::Reverse((self.strides[dim].abs(), self.shape[dim])));
        }
        order
    }

    /// The elements of a row: of all dimensions but the first.
    pub fn row(&self) -> usize {
        self.len / self.shape.first().map_or(1, |&rows| rows.max(1)) as usize
    }

    /// Whether the elements lie without gaps in the order of dimensions `order`.
    #[inline]
    pub fn is_dense_in(&self, order: &[usize]) -> bool {
        if order.is_sorted() {
            return self.is_contiguous || self.len == 0;
        }
        let mut expected = 1;
        order.iter().rev().all(|&dim| {
            let fits = self.shape[dim] == 1 || self.strides[dim] == expected;
            expected *= self.shape[dim];
            fits
        }) || self.len == 0
    }

    /// How far the elements reach before the first one and after it, in elements.
    pub fn reach(&self) -> (isize, isize) {
        let (mut low, mut high) = (0, 0);
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = (size - 1) as isize * stride as isize;
            low += reach.min(0);
            high += reach.max(0);
        }
        (low, high)
    }

    /// Whether several elements may have the same place: a dimension that does not step over the smaller ones.
    #[inline]
    pub fn overlaps_itself(&self) -> bool {
        let mut reach = 0;
        self.len > 1
            && !self.is_contiguous
            && self
                .order()
                .iter()
                .rev()
                .filter(|&&dim| self.shape[dim] > 1)
                .any(|&dim| {
                    let stride = self.strides[dim].abs();
                    let overlaps = stride <= reach;
                    reach += stride * (self.shape[dim] - 1);
                    overlaps
                })
    }

    /// The memory with its dimensions in the order `order`.
    pub fn strided(&self, order: &[usize]) -> Strided {
        Strided {
            data: self.data,
            item: self.dtype.size(),
            shape: order.iter().map(|&dim| self.shape[dim]).collect(),
            strides: order.iter().map(|&dim| self.strides[dim]).collect(),
        }
    }

    /// The bytes of the elements, which there are.
    pub fn runs(&self) -> Runs {
        let (mut start, mut len) = (self.data as isize, self.dtype.size() as isize);
        let mut steps: SmallVec<[(isize, isize); 4]> = SmallVec::new();
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let (size, stride) = (size as isize, stride as isize * self.dtype.size() as isize);
            start += (size - 1) * stride.min(0);
            if size > 1 && stride != 0 {
                steps.push((stride.abs(), size));
            }
        }
        steps.sort_unstable();
        let mut starts = vec![start];
        for (stride, size) in steps {
            match stride == len && starts.len() == 1 {
                true => len *= size,
                false => {
                    starts = (0..size)
                        .flat_map(|i| starts.iter().map(move |at| at + i * stride))
                        .collect()
                }
            }
        }
        starts.sort_unstable();
        Runs {
            starts: starts.into_iter().map(|at| at as usize).collect(),
            len: len as usize,
        }
    }
}

/// Stretches of memory of one length, by their addresses in ascending order.
pub struct Runs {
    pub starts: Vec<usize>,
    pub len: usize,
}

/// A tensor's memory, or why it cannot be had.
pub type Viewed = Result<View, Box<Problem>>;

pub fn refuse(problem: Problem) -> PyResult<Viewed> {
    Ok(Err(Box::new(problem)))
}

/// What a tensor's elements are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// Floating-point numbers, real or complex.
    Floats,
    Only(DType),
}

impl Elements {
    pub fn admit(self, dtype: DType) -> bool {
        match self {
            Elements::Floats => matches!(dtype, DType::Float(_)),
            Elements::Only(only) => dtype == only,
        }
    }

    /// What errors call them.
    pub fn name(self) -> &'static str {
        match self {
            Elements::Floats => "float32, float64, bfloat16 or float16",
            Elements::Only(dtype) => dtype.name(),
        }
    }
}
