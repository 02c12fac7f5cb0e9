//! Functions of rows for Python.

use numpy::PyReadonlyArray1;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::arguments::{at_least_zero, finite, no_nan};
use super::call::{Call, Names, Owner, Role};
use super::errors::Problem;
use super::view::View;
use crate::kernels::rows::{
    self, ByEntry, Clip, Isotonic, L1Ball, L2Ball, Plane, Product, Section, Shape, Shrink, Simplex, Sorted,
    SortedMap,
};
use crate::kernels::storage::Access;

/// A function of rows with its numbers, checked.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Map(Kind);

enum Kind {
    Simplex(Simplex),
    L1Ball(L1Ball),
    L2Ball(L2Ball),
    Clip(ByEntry<Clip>),
    Shrink(ByEntry<Shrink>),
    Plane(Plane),
    Section(Section),
    Isotonic(Isotonic),
    Sorted(SortedMap),
}

/// Calls a function of the engine that the kind's map is for.
macro_rules! with_map {
    ($kind:expr, $function:ident($($argument:expr),*)) => {
        match $kind {
            Kind::Clip(map) => map.$function($($argument),*),
            Kind::Shrink(map) => map.$function($($argument),*),
            Kind::Simplex(map) => rows::$function(map, $($argument),*),
            Kind::L1Ball(map) => rows::$function(map, $($argument),*),
            Kind::L2Ball(map) => rows::$function(map, $($argument),*),
            Kind::Plane(map) => rows::$function(map, $($argument),*),
            Kind::Section(map) => rows::$function(map, $($argument),*),
            Kind::Isotonic(map) => rows::$function(map, $($argument),*),
            Kind::Sorted(map) => rows::$function(map, $($argument),*),
        }
    };
}

type Numbers<'py> = PyReadonlyArray1<'py, f64>;

#[pymethods]
impl Map {
    #[staticmethod]
    fn simplex(s: &Bound<'_, PyAny>) -> PyResult<Map> {
        let sum = at_least_zero("s", s)?;
        Ok(Map(Kind::Simplex(Simplex { sum })))
    }

    #[staticmethod]
    fn l1_ball(r: &Bound<'_, PyAny>, rest: bool) -> PyResult<Map> {
        let radius = at_least_zero("r", r)?;
        Ok(Map(Kind::L1Ball(L1Ball { radius, rest })))
    }

    #[staticmethod]
    fn l2_ball(r: &Bound<'_, PyAny>, rest: bool) -> PyResult<Map> {
        let radius = at_least_zero("r", r)?;
        Ok(Map(Kind::L2Ball(L2Ball { radius, rest })))
    }

    #[staticmethod]
    fn clip(lo: &Bound<'_, PyAny>, hi: &Bound<'_, PyAny>) -> PyResult<Map> {
        let (low, high) = (no_nan("lo", lo)?, no_nan("hi", hi)?);
        match low <= high {
            true => Ok(Map(Kind::Clip(ByEntry(Clip { low, high })))),
            false => Err(PyValueError::new_err(format!(
                "Invalid hi: {high:?}; expected lo, which is {low:?}, at least"
            ))),
        }
    }

    #[staticmethod]
    fn shrink(threshold: &Bound<'_, PyAny>, factor: &Bound<'_, PyAny>, nonnegative: bool) -> PyResult<Map> {
        let (threshold, factor) = (
            at_least_zero("threshold", threshold)?,
            at_least_zero("factor", factor)?,
        );
        Ok(Map(Kind::Shrink(ByEntry(Shrink {
            threshold,
            factor,
            nonnegative,
        }))))
    }

    #[staticmethod]
    fn plane(b: &Bound<'_, PyAny>, a: Numbers<'_>, half: bool) -> PyResult<Map> {
        let normal = finite_numbers("a", &a)?;
        let plane = Plane::new(normal, finite("b", b)?, half);
        plane
            .map(|plane| Map(Kind::Plane(plane)))
            .ok_or_else(|| PyValueError::new_err("a has no finite norm above 0, expected a direction"))
    }

    #[staticmethod]
    fn section(c: &Bound<'_, PyAny>, lo: Numbers<'_>, hi: Numbers<'_>, w: Numbers<'_>) -> PyResult<Map> {
        let [low, high, weights] = [
            finite_numbers("lo", &lo)?,
            finite_numbers("hi", &hi)?,
            finite_numbers("w", &w)?,
        ];
        let sum = finite("c", c)?;
        if low.len() != weights.len() || high.len() != weights.len() {
            return Err(PyValueError::new_err(
                "lo, hi and w have several lengths, expected one",
            ));
        }
        if low.iter().zip(&high).any(|(low, high)| low > high) {
            return Err(PyValueError::new_err(
                "lo is above hi somewhere, expected it below or equal",
            ));
        }
        let section = Section::new(low, high, weights, sum);
        section.map(|section| Map(Kind::Section(section))).ok_or_else(|| {
            PyValueError::new_err(format!(
                "Invalid c: {sum:?}; expected what w.p is for some p between lo and hi"
            ))
        })
    }

    #[staticmethod]
    #[pyo3(signature = (increasing, weight=None))]
    fn isotonic(increasing: bool, weight: Option<Numbers<'_>>) -> PyResult<Map> {
        let weights = weight
            .map(|weight| finite_numbers("weight", &weight))
            .transpose()?;
        if weights.iter().flatten().any(|&weight| weight <= 0.0) {
            return Err(PyValueError::new_err(
                "weight has numbers that are not positive, expected positive ones",
            ));
        }
        Ok(Map(Kind::Isotonic(Isotonic { increasing, weights })))
    }

    #[staticmethod]
    fn sorted(w: Numbers<'_>, slope: bool) -> PyResult<Map> {
        let mut weights = finite_numbers("w", &w)?;
        if slope && weights.iter().any(|&weight| weight < 0.0) {
            return Err(PyValueError::new_err(
                "w has negative numbers, expected numbers of at least 0",
            ));
        }
        weights.sort_by(|a, b| b.total_cmp(a));
        let kind = if slope {
            Sorted::Slope
        } else {
            Sorted::Permutahedron
        };
        Ok(Map(Kind::Sorted(SortedMap { kind, weights })))
    }

    /// Writes the image of every row; see `_core.pyi`.
    fn forward(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        dim: i64,
        threads: usize,
    ) -> PyResult<()> {
        let name = if out.is(x) { "x" } else { "out" };
        // SAFETY: `run` passes pointers to so many elements, and `out` overlaps no more than `x` itself, element by
        // element.
        self.run(
            py,
            &[("x", x), (name, out)],
            dim,
            threads,
            true,
            |shape, pointers| unsafe {
                with_map!(&self.0, forward(shape, pointers[0], pointers[1], threads));
            },
        )
    }

    /// Writes the products with every row's Jacobian; see `_core.pyi`.
    #[pyo3(signature = (told, v, out, dim, threads, *, transposed=false))]
    #[allow(clippy::too_many_arguments)]
    fn product(
        &self,
        py: Python<'_>,
        told: &Bound<'_, PyAny>,
        v: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        dim: i64,
        threads: usize,
        transposed: bool,
    ) -> PyResult<()> {
        let tensors = [("told", told), ("v", v), ("out", out)];
        // SAFETY: `run` passes pointers to so many elements, and `out` overlaps none of the others.
        self.run(py, &tensors, dim, threads, false, |shape, pointers| unsafe {
            let product = Product {
                told: pointers[0],
                vectors: pointers[1],
                to: pointers[2],
                transposed,
            };
            with_map!(&self.0, product(shape, product, threads));
        })
    }
}

impl Map {
    /// The name of an argument that has a number for each element of a row, and how many.
    fn fixed_len(&self) -> Option<(&'static str, usize)> {
        match &self.0 {
            Kind::Plane(plane) => Some(("a", plane.row_len())),
            Kind::Section(section) => Some(("w", section.row_len())),
            Kind::Isotonic(isotonic) => isotonic.weights.as_ref().map(|weights| ("weight", weights.len())),
            Kind::Sorted(sorted) => Some(("w", sorted.weights.len())),
            Kind::Simplex(_) | Kind::L1Ball(_) | Kind::L2Ball(_) | Kind::Clip(_) | Kind::Shrink(_) => None,
        }
    }

    /// Calls `kernel` with tensors that are read and, last, the one that is written: one of them, or fresh.
    fn run(
        &self,
        py: Python<'_>,
        tensors: &[(&str, &Bound<'_, PyAny>)],
        dim: i64,
        threads: usize,
        in_place: bool,
        kernel: impl Fn(Shape, &[*mut u8]) + Sync,
    ) -> PyResult<()> {
        let mut call = Call::new(|owner: Owner| tensors[owner.argument as usize].0.to_string());
        let mut views: SmallVec<[View; 3]> = SmallVec::new();
        let access = |i: usize| match i + 1 == tensors.len() {
            true => Access::Writes,
            false => Access::Reads,
        };
        for (i, (_, tensor)) in tensors.iter().enumerate() {
            let role = Role::new(access(i)).like(views.first());
            let role = if in_place { role.in_place() } else { role };
            let is_fresh = access(i) == Access::Writes && !tensors[0].1.is(*tensor);
            let role = if is_fresh { role.fresh() } else { role };
            let view = call.take(Owner::new(i, 0), tensor, &role)?;
            views.push(view);
        }
        let first = &views[0];
        let dim = dimension(&call, tensors[0].0, first, dim)?;
        let len = first.shape[dim] as usize;
        if let Some((name, expected)) = self.fixed_len().filter(|&(_, fixed)| fixed != len) {
            return Err(PyValueError::new_err(format!(
                "{name} has {expected} numbers, expected {len}: one for each element of a row of {}",
                tensors[0].0
            )));
        }
        let shape = Shape {
            dtype: first.float(),
            rows: first.len / len,
            len,
        };
        // The rows along the dimension, in the order in which the first tensor has them.
        let mut order = first.order();
        order.sort_by_key(|&each| each == dim); // stable
        let stage = |(i, view): (usize, &View)| call.stage(view, &order, access(i));
        let pointers = views.iter().enumerate().map(stage).collect();
        let tensors = Tensors { shape, pointers };
        call.run(py, threads, || {
            let Tensors { shape, pointers } = &{ tensors }; // all of it: by themselves, its pointers are not `Send`
            if shape.rows > 0 {
                kernel(*shape, pointers);
            }
            Some(())
        })?;
        Ok(())
    }
}

/// The numbers, unless one is infinite or NaN.
fn finite_numbers(argument: &str, given: &Numbers<'_>) -> PyResult<Vec<f64>> {
    let numbers = given.as_array().to_vec();
    match numbers.iter().find(|number| !number.is_finite()) {
        Some(number) => Err(PyValueError::new_err(format!(
            "{argument} has a number {number:?}, expected finite ones"
        ))),
        None => Ok(numbers),
    }
}

/// Tensors of one shape and dtype, in the order of their rows.
struct Tensors {
    shape: Shape,
    pointers: SmallVec<[*mut u8; 3]>,
}

// SAFETY: the pointers are used by the kernel only, while the call keeps the tensors.
unsafe impl Send for Tensors {}

/// The dimension, counted from 0, with at least one element.
fn dimension(call: &Call<impl Names>, name: &str, view: &View, dim: i64) -> PyResult<usize> {
    let rank = view.shape.len() as i64;
    if rank == 0 {
        let (shape, expected) = (view.shape.clone(), "1 or more dimensions".into());
        return Err(call.refuse(Owner::new(0, 0), Problem::Matrices { shape, expected }));
    }
    if !(-rank..rank).contains(&dim) {
        return Err(PyIndexError::new_err(format!(
            "Invalid dim: {dim}; expected {} to {} for {name} of shape {:?}",
            -rank,
            rank - 1,
            view.shape
        )));
    }
    let at = dim.rem_euclid(rank) as usize;
    match view.shape[at] {
        0 => Err(PyValueError::new_err(format!(
            "{name} has shape {:?}, expected an element along dim {dim} at least",
            view.shape
        ))),
        _ => Ok(at),
    }
}
