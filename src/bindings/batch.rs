//! One optimizer step as a Python object: groups are taken in one by one, and only when all have been does anything
//! change.

use std::ops::Range;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::arguments::powers;
use super::finish;
use super::parameters::{Disturbed, Ledger, Lists, Options};
use super::reader::{Known, Reader};
use super::rules::{self, Update};
use crate::kernels::elementwise::{self, NormSums, Values, Work};
use crate::kernels::matrix::{Step, Workspace};
use crate::kernels::storage::Rounding;

/// A step in the making: `add` the groups, then `run` once.
#[pyclass(module = "ferrostep._core")]
pub struct Batch {
    ledger: Ledger,
    works: Vec<Box<dyn Work>>,
    matrices: Vec<Step>,
    /// Of each group that was added: where it is, and how many gradients have been measured with it and before.
    added: Vec<(Place, usize)>,
    known: Option<Py<Known>>,
    started: bool,
    counted: u64,
    /// What the step has left behind: of each group, for each gradient that was to be measured.
    norms: Vec<Vec<NormSums>>,
}

/// Where the updates of a group are.
enum Place {
    Elements(usize),
    Matrices(usize),
}

// SAFETY: the pointers are used only by `run` and what comes before it, which have the batch for themselves and the memory
// of the tensors that it keeps. An exception may take a batch to another thread, which drops it.
unsafe impl Send for Batch {}
// SAFETY: as above; nothing that is shared is changed.
unsafe impl Sync for Batch {}

#[pymethods]
impl Batch {
    #[new]
    #[pyo3(signature = (known=None))]
    fn new(py: Python<'_>, known: Option<Py<Known>>) -> Batch {
        let mut ledger = Ledger::new();
        if let Some(known) = &known {
            ledger.call.reader = Reader::resume(&mut known.borrow_mut(py));
        }
        Batch {
            ledger,
            works: Vec::new(),
            matrices: Vec::new(),
            added: Vec::new(),
            known,
            started: false,
            counted: 0,
            norms: Vec::new(),
        }
    }

    /// Adds a parameter group; the argument names are those of the error messages. See `_core.pyi`.
    #[pyo3(signature = (rule, params, grads, states, *, steps=None, step=0, product=None, rounding="nearest", seed=0,
                        compensation=None, scales=None, group=None, positions=None, skip_nonfinite=false,
                        measure=false, noise=0.0))]
    #[allow(clippy::too_many_arguments)] // the Python signature
    fn add<'py>(
        &mut self,
        rule: &Bound<'py, PyAny>,
        params: &Bound<'py, PyList>,
        grads: &Bound<'py, PyList>,
        states: &Bound<'py, PyDict>,
        steps: Option<Bound<'py, PyList>>,
        step: u64,
        product: Option<(String, Bound<'py, PyList>)>,
        rounding: &str,
        seed: u64,
        compensation: Option<Bound<'py, PyList>>,
        scales: Option<Bound<'py, PyDict>>,
        group: Option<usize>,
        positions: Option<Vec<usize>>,
        skip_nonfinite: bool,
        measure: bool,
        noise: f64,
    ) -> PyResult<()> {
        let lists = Lists {
            params,
            grads,
            states,
            scales,
            compensation,
            steps,
            product,
        };
        let options = Options {
            number: group,
            positions,
            step,
            rounding: self::rounding(rounding, seed)?,
            disturbed: Disturbed {
                deviation: noise,
                seed,
            },
            skip_nonfinite,
            measure,
        };
        let inputs = self.ledger.open(lists, options)?;
        let place = match rules::add(&mut self.ledger, rule, &inputs)? {
            Update::Elements(work) => {
                self.works.push(work);
                Place::Elements(self.works.len() - 1)
            }
            Update::Matrices(step) => {
                self.matrices.push(step);
                Place::Matrices(self.matrices.len() - 1)
            }
        };
        self.added.push((place, self.ledger.measured.len()));
        Ok(())
    }

    /// The norms of the gradients that are to be measured, before the step. See `_core.pyi`.
    fn norms(&mut self, py: Python<'_>, orders: Vec<u32>, threads: usize) -> PyResult<Vec<Vec<NormSums>>> {
        let powers = powers(&orders)?;
        let Ledger { call, measured, .. } = &mut self.ledger;
        // SAFETY: the views of all tensors are valid.
        let all = call.read(py, threads, || unsafe {
            elementwise::norms(measured, powers, threads)
        });
        Ok(self.measured().map(|of_group| all[of_group].to_vec()).collect())
    }

    /// Multiplies the gradients of each group. See `_core.pyi`.
    fn scale(&mut self, factors: Vec<f64>) {
        for ((place, _), factor) in self.added.iter().zip(factors) {
            match *place {
                Place::Elements(i) => self.works[i].scale(factor),
                Place::Matrices(i) => self.matrices[i].scale(factor),
            }
        }
    }

    /// What the rules sum over each parameter. See `_core.pyi`.
    fn sums(&mut self, py: Python<'_>, threads: usize) -> PyResult<Vec<Vec<f64>>> {
        let (call, works) = (&mut self.ledger.call, &self.works);
        if works.iter().any(|work| work.writes_in_sums()) {
            call.check_overlaps()?;
        }
        let mut sums = call.read(py, threads, || elementwise::sums(works, threads));
        let own = |(place, _): &(Place, usize)| match *place {
            Place::Elements(i) => std::mem::take(&mut sums[i]),
            Place::Matrices(_) => Vec::new(),
        };
        Ok(self.added.iter().map(own).collect())
    }

    /// Tells the rules the sums. See `_core.pyi`.
    fn know(&mut self, sums: Vec<Vec<f64>>) {
        for ((place, _), sums) in self.added.iter().zip(sums) {
            if let Place::Elements(i) = *place {
                self.works[i].know(&sums);
            }
        }
    }

    /// Runs the step, on up to `threads` threads and without the GIL, tells autograd of it, copies what was computed
    /// elsewhere, and calls what follows. See `_core.pyi`.
    #[pyo3(signature = (threads, *, copies=Vec::new(), then=Vec::new(), orders=None))]
    fn run(
        &mut self,
        py: Python<'_>,
        threads: usize,
        copies: Vec<finish::Copy<'_>>,
        then: Vec<Bound<'_, PyAny>>,
        orders: Option<Vec<u32>>,
    ) -> PyResult<bool> {
        let powers = orders.map(|orders| powers(&orders)).transpose()?;
        if std::mem::replace(&mut self.started, true) {
            return Err(PyRuntimeError::new_err("this batch has run already"));
        }
        let apart = match powers {
            Some(_) => self.measured_apart(),
            None => Vec::new(),
        };
        let Ledger {
            call,
            scalars,
            searched,
            ..
        } = &mut self.ledger;
        let mut workspace = Workspace::default();
        if let Some(known) = &self.known {
            let mut known = known.borrow_mut(py);
            call.reader.leave(&mut known);
            workspace = std::mem::take(&mut known.workspace);
        }
        let (works, matrices) = (&mut self.works, &mut self.matrices);
        let (scalars, searched, memory) = (&*scalars, &*searched, &mut workspace);
        let result = call.run(py, threads, || {
            // SAFETY: the views of all tensors are valid, and nothing that is written is shared: `Call::run` saw to it.
            unsafe {
                if !elementwise::all_finite(searched, threads) {
                    return None;
                }
                scalars.iter().for_each(|scalar| scalar.write());
            }
            elementwise::prepare(works, threads);
            let found = match powers {
                None => (elementwise::run(works, threads), Vec::new(), Vec::new()),
                Some(powers) => {
                    // SAFETY: as above; gradients are only read.
                    let apart = unsafe { elementwise::norms(&apart, powers, threads) };
                    let (counted, left) = elementwise::run_measured(works, powers, threads);
                    (counted, left, apart)
                }
            };
            matrices.iter_mut().for_each(|step| step.run(threads, memory));
            Some(found)
        });
        if let Some(known) = &self.known {
            known.borrow_mut(py).workspace = workspace;
        }
        if !self.ledger.call.has_run() {
            return result.map(|_| false);
        }
        let finished = finish::copy(&copies).and(finish::follow(&then));
        let (counted, left, apart) = result?.unwrap_or_default();
        self.counted = counted;
        if powers.is_some() {
            self.norms = self.collected(left, apart);
        }
        finished.map(|()| true)
    }

    /// After `run`: the norms that it was to measure. See `_core.pyi`.
    fn measured_norms(&self) -> Vec<Vec<NormSums>> {
        self.norms.clone()
    }

    /// Whether `run` has updated everything: also after an interrupt that came meanwhile.
    #[getter]
    fn finished(&self) -> bool {
        self.ledger.call.has_run()
    }

    /// After `run`: how many elements the rules counted, and how many there are.
    fn counted(&self) -> (u64, usize) {
        let elements = self.works.iter().map(|work| work.elements()).sum();
        (self.counted, elements)
    }
}

impl Batch {
    /// Of each group that was added, where its gradients are among those that are to be measured.
    fn measured(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = [0].into_iter().chain(self.added.iter().map(|&(_, end)| end));
        let ends = self.added.iter().map(|&(_, end)| end);
        starts.zip(ends).map(|(start, end)| start..end)
    }

    /// The work of a group that leaves the norms of its gradients behind.
    fn measuring(&self, place: &Place) -> Option<usize> {
        match *place {
            Place::Elements(i) if self.works[i].measures() => Some(i),
            _ => None,
        }
    }

    /// The gradients of groups that do not, which take a pass of their own.
    fn measured_apart(&self) -> Vec<Values> {
        let groups = self.added.iter().zip(self.measured());
        groups
            .filter(|((place, _), _)| self.measuring(place).is_none())
            .flat_map(|(_, of_group)| self.ledger.measured[of_group].to_vec())
            .collect()
    }

    /// For each group, the norms that its work has left or that were measured apart.
    fn collected(&self, mut left: Vec<Vec<NormSums>>, apart: Vec<NormSums>) -> Vec<Vec<NormSums>> {
        let mut apart = apart.into_iter();
        let groups = self.added.iter().zip(self.measured());
        let own = |((place, _), of_group): (&(Place, usize), Range<usize>)| match self.measuring(place) {
            Some(i) => std::mem::take(&mut left[i]),
            None => apart.by_ref().take(of_group.len()).collect(),
        };
        groups.map(own).collect()
    }
}

fn rounding(name: &str, seed: u64) -> PyResult<Rounding> {
    match name {
        "nearest" => Ok(Rounding::Nearest),
        "stochastic" => Ok(Rounding::Stochastic { stream: seed }),
        "kahan" => Ok(Rounding::Kahan),
        "split" => Ok(Rounding::Split),
        "master" => Ok(Rounding::Master),
        other => {
            let message = format!(
                "rounding is {other:?}, expected 'nearest', 'stochastic', 'kahan', 'split' or 'master'"
            );
            Err(PyValueError::new_err(message))
        }
    }
}
