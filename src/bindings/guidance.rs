//! Guidance of diffusion models for Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use smallvec::SmallVec;

use super::arguments::{at_least_zero, finite, invalid, share, unknown};
use super::call::{Call, Owner, Role};
use super::view::View;
use crate::kernels::guidance::{self, Apg, MAX_INPUTS, Memory, Method};
use crate::kernels::storage::Access;

/// A method with its numbers.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Guidance(guidance::Guidance);

fn checked(method: Method, scales: Vec<f64>, rescale: f64) -> PyResult<Guidance> {
    for &scale in &scales {
        finite("scale", scale)?;
    }
    let rescale = share("rescale", rescale)?;
    Ok(Guidance(guidance::Guidance {
        method,
        scales,
        rescale,
    }))
}

#[pymethods]
impl Guidance {
    #[staticmethod]
    fn cfg(scales: Vec<f64>, rescale: f64) -> PyResult<Self> {
        checked(Method::Cfg, scales, rescale)
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
        checked(Method::Apg(apg), scales, rescale)
    }

    #[staticmethod]
    fn cfg_zero_star(scales: Vec<f64>, rescale: f64) -> PyResult<Self> {
        checked(Method::ZeroStar, scales, rescale)
    }

    #[staticmethod]
    fn tangential(scales: Vec<f64>, rescale: f64) -> PyResult<Self> {
        checked(Method::Tangential, scales, rescale)
    }

    #[staticmethod]
    fn magnitude_aware(scales: Vec<f64>, alpha: f64, rescale: f64) -> PyResult<Self> {
        let alpha = at_least_zero("alpha", alpha)?;
        checked(Method::MagnitudeAware { alpha }, scales, rescale)
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
        checked(Method::PerpNeg { weights }, scales, 0.0)
    }

    #[staticmethod]
    fn project() -> PyResult<Self> {
        checked(Method::Project, vec![1.0], 0.0)
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
        let count = self.0.inputs();
        let mut call = Call::new(|owner: Owner| self.name(owner.argument as usize));
        let mut views: SmallVec<[View; 4]> = SmallVec::new();
        let accesses: SmallVec<[Access; 8]> = (0..count + outputs.len()).map(|i| self.access(i)).collect();
        for (i, tensor) in inputs.iter().chain(&outputs).enumerate() {
            let role = Role::new(accesses[i]).like(views.first());
            let role = match accesses[i] {
                Access::Updates => role,
                Access::Reads | Access::Writes => role.in_place(),
            };
            let view = call.take(Owner::new(i, 0), tensor, &role)?;
            views.push(view);
        }
        let cond = &views[0];
        if cond.shape.is_empty() {
            return Err(PyValueError::new_err(format!(
                "{} has no dimension, expected one for the batch at least",
                self.name(0)
            )));
        }
        let (order, kept) = order(cond, dims.as_deref())?;
        let first = order[..kept].iter().position(|&dim| dim == 0);
        self.check_scales(cond, first)?;
        let product = |dims: &[usize]| dims.iter().map(|&dim| cond.shape[dim] as usize).product();
        let groups: usize = product(&order[..kept]);
        let stage = |(view, &access): (&View, &Access)| call.stage(view, &order, access);
        let mut pointers: Vec<*mut u8> = views.iter().zip(&accesses).map(stage).collect();
        let memory = Memory {
            dtype: cond.float(),
            groups,
            len: cond.len / groups.max(1),
            per_sample: first.map_or(groups, |first| product(&order[first + 1..kept])),
            outputs: pointers.split_off(count),
            inputs: pointers,
        };
        let empty = cond.len == 0;
        call.run(py, threads, || {
            if !empty {
                // SAFETY: the views are valid, all have as many elements, and what is written is shared with nothing
                // but, element by element, an input: `Call::run` saw to it.
                unsafe { guidance::run(&self.0, &memory, threads) };
            }
            Some(())
        })?;
        Ok(())
    }
}

impl Guidance {
    /// What Python calls the tensor, inputs first.
    fn name(&self, i: usize) -> String {
        let inputs = self.0.inputs();
        match (&self.0.method, i) {
            (Method::Project, i) => ["onto", "vector", "parallel", "orthogonal"][i].into(),
            (_, 0) => "cond".into(),
            (_, 1) => "uncond".into(),
            (_, i) if i >= inputs => "out".into(),
            (Method::PerpNeg { .. }, i) => format!("negatives[{}]", i - 2),
            _ => "momentum_buffer".into(),
        }
    }

    fn access(&self, i: usize) -> Access {
        match i {
            i if i >= self.0.inputs() => Access::Writes,
            2 if self.0.momentum().is_some() => Access::Updates,
            _ => Access::Reads,
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
