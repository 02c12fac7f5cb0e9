//! Guidance of diffusion models for Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::errors::{Place, Problem, refuse};
use super::orthogonal::unknown;
use super::overlap::{self, Claim};
use super::tensor::{Reader, View};
use crate::kernels::guidance::{self, Apg, MAX_INPUTS, Memory, Rule};
use crate::kernels::storage::Staged;

/// A rule with its numbers.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Guidance(guidance::Guidance);

fn checked(rule: Rule, scales: Vec<f64>, rescale: f64) -> PyResult<Guidance> {
    for &scale in &scales {
        finite("scale", scale)?;
    }
    if !(0.0..=1.0).contains(&rescale) {
        return Err(invalid("rescale", rescale, "a number from 0 to 1"));
    }
    Ok(Guidance(guidance::Guidance {
        rule,
        scales,
        rescale,
    }))
}

fn finite(name: &str, value: f64) -> PyResult<f64> {
    match value.is_finite() {
        true => Ok(value),
        false => Err(invalid(name, value, "a finite number")),
    }
}

fn invalid(name: &str, value: f64, expected: &str) -> PyErr {
    PyValueError::new_err(format!("Invalid {name}: {value}; expected {expected}"))
}

#[pymethods]
impl Guidance {
    #[staticmethod]
    fn cfg(scales: Vec<f64>, rescale: f64) -> PyResult<Self> {
        checked(Rule::Cfg, scales, rescale)
    }

    #[staticmethod]
    fn apg(
        scales: Vec<f64>,
        eta: f64,
        norm_threshold: f64,
        momentum: Option<f64>,
        base: &str,
        rescale: f64,
    ) -> PyResult<Self> {
        if norm_threshold.is_nan() {
            return Err(invalid("norm_threshold", norm_threshold, "a number"));
        }
        let from_uncond = match base {
            "cond" => false,
            "uncond" => true,
            other => return Err(unknown("base", other, "'cond' or 'uncond'")),
        };
        let apg = Apg {
            eta: finite("eta", eta)?,
            threshold: norm_threshold,
            momentum: momentum
                .map(|momentum| finite("momentum", momentum))
                .transpose()?,
            from_uncond,
        };
        checked(Rule::Apg(apg), scales, rescale)
    }

    #[staticmethod]
    fn cfg_zero_star(scales: Vec<f64>, rescale: f64) -> PyResult<Self> {
        checked(Rule::ZeroStar, scales, rescale)
    }

    #[staticmethod]
    fn tangential(scales: Vec<f64>, rescale: f64) -> PyResult<Self> {
        checked(Rule::Tangential, scales, rescale)
    }

    #[staticmethod]
    fn perp_neg(scales: Vec<f64>, weights: Vec<f64>) -> PyResult<Self> {
        let most = MAX_INPUTS - 2;
        if weights.is_empty() || weights.len() > most {
            return Err(PyValueError::new_err(format!(
                "negatives has {} predictions, expected 1 to {most}",
                weights.len()
            )));
        }
        for (i, &weight) in weights.iter().enumerate() {
            finite(&format!("weights[{i}]"), weight)?;
        }
        checked(Rule::PerpNeg { weights }, scales, 0.0)
    }

    #[staticmethod]
    fn project() -> PyResult<Self> {
        checked(Rule::Project, vec![1.0], 0.0)
    }

    /// Computes the outputs; see `_core.pyi`.
    fn run(
        &self,
        py: Python<'_>,
        inputs: Vec<Bound<'_, PyAny>>,
        outputs: Vec<Bound<'_, PyAny>>,
        dims: Option<Vec<i64>>,
        threads: usize,
    ) -> PyResult<()> {
        for (list, expected, role) in [
            (inputs.len(), self.0.inputs(), "inputs"),
            (outputs.len(), self.0.outputs(), "outputs"),
        ] {
            if list != expected {
                let message = format!("came with {list} {role}, expected {expected}");
                return Err(PyValueError::new_err(message));
            }
        }
        let mut tensors = Tensors::default();
        let mut views: SmallVec<[View; 4]> = SmallVec::new();
        for (i, tensor) in inputs.iter().enumerate() {
            let writes = i == 2 && self.0.momentum().is_some();
            views.push(tensors.view(tensor, views.first(), writes, || self.input(i))?);
        }
        for (i, tensor) in outputs.iter().enumerate() {
            views.push(tensors.view(tensor, views.first(), true, || self.output(i))?);
        }
        let [cond, ..] = views.as_slice() else {
            unreachable!()
        };
        if cond.shape.is_empty() {
            return Err(PyValueError::new_err(format!(
                "{} has no dimension, expected one for the batch at least",
                self.input(0)
            )));
        }
        let (order, kept) = order(cond, dims.as_deref())?;
        let first = order[..kept].iter().position(|&dim| dim == 0);
        self.check_scales(cond, first)?;
        self.check_overlaps(&views)?;
        if cond.len == 0 {
            return Ok(());
        }
        let product = |dims: &[usize]| dims.iter().map(|&dim| cond.shape[dim] as usize).product();
        let groups = product(&order[..kept]);
        let per_sample = first.map_or(groups, |first| product(&order[first + 1..kept]));
        let (dtype, len) = (cond.dtype, cond.len / groups);
        let mut pointers = tensors.stage(&views, &order, self.0.inputs(), self.0.momentum().is_some());
        let outputs = pointers.split_off(self.0.inputs());
        let memory = Memory {
            dtype,
            groups,
            len,
            per_sample,
            inputs: pointers,
            outputs,
        };
        let staged = &mut tensors.staged;
        // SAFETY: the views are valid while the caller's lists hold the tensors and `tensors` the reader, all have as
        // many elements, and `check_overlaps` saw to it that what is written is shared with nothing but, element by
        // element, an input.
        py.detach(|| unsafe {
            staged.iter_mut().for_each(|copy| copy.load(threads));
            guidance::run(&self.0, &memory, threads);
            staged.iter_mut().for_each(|copy| copy.store(threads));
        });
        Ok(())
    }
}

impl Guidance {
    /// What Python calls the input.
    fn input(&self, i: usize) -> String {
        match (&self.0.rule, i) {
            (Rule::Project, 0) => "onto".into(),
            (Rule::Project, _) => "vector".into(),
            (_, 0) => "cond".into(),
            (_, 1) => "uncond".into(),
            (Rule::PerpNeg { .. }, i) => format!("negatives[{}]", i - 2),
            _ => "momentum_buffer".into(),
        }
    }

    fn output(&self, i: usize) -> String {
        match (&self.0.rule, i) {
            (Rule::Project, 0) => "parallel".into(),
            (Rule::Project, _) => "orthogonal".into(),
            _ => "out".into(),
        }
    }

    /// Refuses scales that are not one for each sample, and samples of which `dims` make one.
    fn check_scales(&self, cond: &View, first_kept: Option<usize>) -> PyResult<()> {
        let (given, expected) = (self.0.scales.len(), cond.shape[0]);
        if given == 1 {
            return Ok(());
        }
        if given as i64 != expected {
            let message = format!("scale has {given} numbers, expected {expected}: one for each sample");
            return Err(PyValueError::new_err(message));
        }
        match first_kept {
            Some(_) => Ok(()),
            None => Err(PyValueError::new_err(
                "Invalid dims: 0 is the dimension of the samples, each of which has its own scale",
            )),
        }
    }

    /// Refuses tensors of which one is written and that share memory, but for an output that is c, u or a negative.
    fn check_overlaps(&self, views: &[View]) -> PyResult<()> {
        let (inputs, outputs) = views.split_at(self.0.inputs());
        let (mut writes, mut reads) = (SmallVec::<[_; 2]>::new(), SmallVec::<[_; 4]>::new());
        for (i, view) in outputs.iter().enumerate() {
            writes.push(Claim::new(view, inputs.len() + i));
        }
        for (i, view) in inputs.iter().enumerate() {
            let is = |other: &View| view.data == other.data && view.strides == other.strides;
            if i == 2 && self.0.momentum().is_some() {
                writes.push(Claim::new(view, i));
            } else if !outputs.iter().any(is) {
                reads.push(Claim::new(view, i));
            }
        }
        let name = |i| {
            if i < inputs.len() {
                self.input(i)
            } else {
                self.output(i - inputs.len())
            }
        };
        match overlap::find(&mut writes, &reads) {
            None => Ok(()),
            Some((one, other)) => Err(refuse(
                name(one),
                Problem::Overlaps {
                    other: Place::named(name(other)),
                },
            )),
        }
    }
}

/// The dimensions that are not reduced, then the others, each from the largest stride to the smallest; and how many are
/// not reduced.
fn order(view: &View, dims: Option<&[i64]>) -> PyResult<(SmallVec<[usize; 4]>, usize)> {
    let rank = view.shape.len();
    let mut reduced: SmallVec<[bool; 8]> = (0..rank).map(|dim| dims.is_none() && dim > 0).collect();
    for &dim in dims.unwrap_or_default() {
        let at = if dim < 0 { dim + rank as i64 } else { dim };
        if at < 0 || at >= rank as i64 || reduced[at as usize] {
            return Err(PyValueError::new_err(format!(
                "Invalid dims: {dim}; expected each of {rank} dimensions at most once"
            )));
        }
        reduced[at as usize] = true;
    }
    let mut order = view.order();
    order.sort_by_key(|&dim| reduced[dim]); // stable
    Ok((order, reduced.iter().filter(|&&is| !is).count()))
}

#[derive(Default)]
struct Tensors {
    reader: Reader,
    staged: Vec<Staged>,
}

impl Tensors {
    /// A tensor of the shape and dtype of the first.
    fn view(
        &mut self,
        tensor: &Bound<'_, PyAny>,
        first: Option<&View>,
        writes: bool,
        name: impl Fn() -> String,
    ) -> PyResult<View> {
        let view = match self.reader.view(tensor, writes, false)? {
            Ok(view) => view,
            Err(problem) => return Err(refuse(name(), *problem)),
        };
        if let Some(problem) = first.and_then(|first| view.unlike(first)) {
            return Err(refuse(name(), problem));
        }
        if writes && view.overlaps_itself() {
            return Err(refuse(name(), Problem::OverlapsItself));
        }
        Ok(view)
    }

    /// The memory of tensors that lie in `order`, or of copies that do. The first `inputs` are read, the others written.
    fn stage(&mut self, views: &[View], order: &[usize], inputs: usize, momentum: bool) -> Vec<*mut u8> {
        let mut pointers = Vec::with_capacity(views.len());
        for (i, view) in views.iter().enumerate() {
            if view.is_dense_in(order) {
                pointers.push(view.data);
                continue;
            }
            let mut copy = Staged::new(view.strided(order), i >= inputs || (momentum && i == 2));
            pointers.push(copy.data());
            self.staged.push(copy);
        }
        pointers
    }
}
