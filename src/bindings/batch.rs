//! One optimizer step: the tensors of all parameter groups are checked as they are added, and only when all have
//! passed does anything change.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallvec::SmallVec;

use super::errors::{Place, Problem, Refusal};
use super::finish;
use super::overlap::{self, Claim};
use super::rules;
use super::tensor::{Counter, Elements, Known, Reader, View};
use crate::kernels::elementwise::{self, Hyperparameters, Rule as _, Values, Work};
use crate::kernels::storage::{Buffers, Float, Rounding, Staged, State};
use crate::kernels::whole::{Whole, Workspace};

/// A step in the making: `add` the groups, then `run` once.
#[pyclass(unsendable, module = "ferrostep._core")]
#[derive(Default)]
pub struct Batch {
    works: Vec<Box<dyn Work>>,
    pub whole: Vec<Box<dyn Whole>>,
    reader: Reader,
    groups: Vec<Group>,
    writes: Vec<Claim<Owner>>,
    reads: Vec<Claim<Owner>>,
    /// The gradients in which to look for NaN and infinity.
    grads: Vec<Values>,
    pub counters: Vec<Counter>,
    staged: Vec<Staged>,
    /// What the views point into.
    tensors: Vec<Py<PyAny>>,
    known: Option<Py<Known>>,
    started: bool,
    finished: bool,
    counted: u64,
}

/// What error messages need to know of a group.
struct Group {
    number: Option<usize>,
    /// The names of the tensors of a parameter, in the order param, grad, states, compensation, step.
    arguments: Vec<String>,
    positions: Option<Vec<usize>>,
    skip_nonfinite: bool,
}

/// Whose memory it is: group, tensor and argument by their numbers in [`Batch::groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    argument: u32,
    group: u32,
    tensor: u32,
}

/// The arguments of [`Batch::add`] besides the rule.
pub struct Inputs<'a, 'py> {
    pub params: &'a Bound<'py, PyList>,
    pub grads: &'a Bound<'py, PyList>,
    pub states: Vec<Bound<'py, PyList>>,
    pub compensation: Option<Bound<'py, PyList>>,
    pub steps: Option<Bound<'py, PyList>>,
    pub step: u64,
    pub rounding: Rounding,
}

#[pymethods]
impl Batch {
    #[new]
    #[pyo3(signature = (known=None))]
    fn new(py: Python<'_>, known: Option<Py<Known>>) -> Batch {
        let reader = known
            .as_ref()
            .map_or_else(Reader::default, |known| Reader::resume(&mut known.borrow_mut(py)));
        Batch {
            reader,
            known,
            ..Batch::default()
        }
    }

    /// Adds a parameter group; the argument names are those of the error messages. See `_core.pyi`.
    #[pyo3(signature = (rule, params, grads, states, *, steps=None, step=0, rounding="nearest", seed=0,
                        compensation=None, group=None, positions=None, skip_nonfinite=false))]
    #[allow(clippy::too_many_arguments)] // the Python signature
    fn add<'py>(
        &mut self,
        rule: &Bound<'py, PyAny>,
        params: &Bound<'py, PyList>,
        grads: &Bound<'py, PyList>,
        states: &Bound<'py, PyDict>,
        steps: Option<Bound<'py, PyList>>,
        step: u64,
        rounding: &str,
        seed: u64,
        compensation: Option<Bound<'py, PyList>>,
        group: Option<usize>,
        positions: Option<Vec<usize>>,
        skip_nonfinite: bool,
    ) -> PyResult<()> {
        let rounding = match rounding {
            "nearest" => Rounding::Nearest,
            "stochastic" => Rounding::Stochastic { stream: seed },
            "kahan" => Rounding::Kahan,
            "split" => Rounding::Split,
            other => {
                let message =
                    format!("rounding is {other:?}, expected 'nearest', 'stochastic', 'kahan' or 'split'");
                return Err(PyValueError::new_err(message));
            }
        };
        let mut arguments = vec!["param".to_string(), "grad".to_string()];
        let mut lists = Vec::with_capacity(states.len());
        for (name, list) in states {
            arguments.push(name.extract()?);
            lists.push(list.cast_into::<PyList>()?);
        }
        let compensation_name = match rounding {
            Rounding::Split => "master_low",
            _ => "kahan_comp",
        };
        arguments.extend([compensation_name.to_string(), "step".to_string()]);
        self.groups.push(Group {
            number: group,
            arguments,
            positions,
            skip_nonfinite,
        });
        rules::add(
            self,
            rule,
            Inputs {
                params,
                grads,
                states: lists,
                compensation,
                steps,
                step,
                rounding,
            },
        )
    }

    /// Runs the step, on up to `threads` threads and without the GIL, then copies what was computed elsewhere and tells
    /// autograd of all that has `changed`. See `_core.pyi`.
    #[pyo3(signature = (threads, *, copies=Vec::new(), changed=None))]
    fn run(
        &mut self,
        py: Python<'_>,
        threads: usize,
        copies: Vec<finish::Copy<'_>>,
        changed: Option<Bound<'_, PyList>>,
    ) -> PyResult<bool> {
        if std::mem::replace(&mut self.started, true) {
            return Err(PyRuntimeError::new_err("this batch has run already"));
        }
        if let Some(known) = &self.known {
            self.reader.leave(&mut known.borrow_mut(py));
        }
        if let Some((one, other)) = overlap::find(&mut self.writes, &self.reads) {
            let problem = Problem::Overlaps {
                other: self.place(other),
            };
            return Err(Refusal {
                place: self.place(one),
                problem,
            }
            .into());
        }
        let mut workspace = self.known.as_ref().map_or_else(Workspace::default, |known| {
            std::mem::take(&mut known.borrow_mut(py).workspace)
        });
        let (works, grads, counters) = (&self.works, &self.grads, &self.counters);
        let (whole, staged) = (&mut self.whole, &mut self.staged);
        // Only what the views point into is used without the GIL, and `self.tensors` keeps that alive.
        let counted = py.detach(|| {
            // SAFETY: the views of all tensors are valid (see `Reader::view`), and `overlap::find` saw to it that
            // nothing that is written is shared.
            unsafe {
                staged.iter_mut().for_each(|copy| copy.load(threads));
                if !elementwise::all_finite(grads, threads) {
                    return None;
                }
                counters.iter().for_each(|counter| counter.advance());
                let counted = elementwise::run(works, threads);
                whole
                    .iter_mut()
                    .for_each(|update| update.run(threads, &mut workspace));
                staged.iter_mut().for_each(|copy| copy.store(threads));
                Some(counted)
            }
        });
        if let Some(known) = &self.known {
            known.borrow_mut(py).workspace = workspace;
        }
        let Some(counted) = counted else {
            return Ok(false);
        };
        (self.counted, self.finished) = (counted, true);
        finish::copy(&copies)
            .and(finish::tell(py, changed.as_ref()))
            .map(|()| true)
    }

    /// Whether `run` has updated everything: also after an interrupt that came meanwhile.
    #[getter]
    fn finished(&self) -> bool {
        self.finished
    }

    /// After `run`: how many elements the rules counted, and how many there are.
    fn counted(&self) -> (u64, usize) {
        let elements = self.works.iter().map(|work| work.elements()).sum();
        (self.counted, elements)
    }
}

impl Batch {
    /// Checks the tensors of a group and hands them to the engine.
    pub fn add_rule<H: Hyperparameters<N>, const N: usize>(
        &mut self,
        hyperparameters: H,
        inputs: Inputs<'_, '_>,
    ) -> PyResult<()> {
        let count = inputs.params.len();
        self.check_lengths(N, &inputs)?;
        let mut batch = elementwise::Batch::with_capacity(count);
        let writes = Writes {
            param: H::Rule::WRITES_PARAM,
            states: H::Rule::WRITES_STATES,
        };
        let mut latest = None; // most tensors are at the same step, and its rule takes a power or two
        for i in 0..count {
            let tensors = self.views::<N>(i, &inputs, writes)?;
            let step = tensors.step(&inputs);
            let rounding = inputs.rounding.to(tensors.param.dtype).at(self.number(i), step);
            let buffers = self.buffers(&tensors, &tensors.param.order(), rounding, writes);
            let rule = match latest {
                Some((known, rule)) if known == step => rule,
                _ => hyperparameters.at_step(step as f64),
            };
            latest = Some((step, rule));
            // SAFETY: the views are valid while `self` lives, and `run` checks that what is written is not shared.
            let added = unsafe { batch.push(rule, buffers) };
            if added.is_err() {
                return Err(self.refuse_combination(i, &buffers, &inputs));
            }
            self.counters.extend(tensors.counter);
        }
        self.works.push(Box::new(batch));
        Ok(())
    }

    /// Checks that the rule's `states` came, and that all lists are as long as that of the parameters. Makes room.
    pub fn check_lengths(&mut self, states: usize, inputs: &Inputs<'_, '_>) -> PyResult<()> {
        if inputs.states.len() != states {
            let message = format!("the rule has {states} states, got {}", inputs.states.len());
            return Err(PyValueError::new_err(message));
        }
        let count = inputs.params.len();
        let lists = std::iter::once(Some(inputs.grads))
            .chain(inputs.states.iter().map(Some))
            .chain([inputs.compensation.as_ref(), inputs.steps.as_ref()]);
        for (argument, list) in lists.enumerate() {
            if let Some(list) = list
                && list.len() != count
            {
                let problem = Problem::Count {
                    count: list.len(),
                    expected: count,
                };
                return Err(self.refuse(0, argument + 1, problem));
            }
        }
        let positions = self.groups.last().and_then(|group| group.positions.as_ref());
        if let Some(positions) = positions
            && positions.len() != count
        {
            let message = format!("positions has {} numbers, expected {count}", positions.len());
            return Err(PyValueError::new_err(message));
        }
        if inputs.compensation.is_none() && matches!(inputs.rounding, Rounding::Kahan | Rounding::Split) {
            let message = format!("rounding='{}' needs compensation buffers", inputs.rounding.name());
            return Err(PyValueError::new_err(message));
        }
        self.writes.reserve(count * (states + 2));
        self.tensors.reserve(count * (states + 3));
        Ok(())
    }

    /// The checked tensors of parameter `i`, with the first `N` states, which have its shape.
    pub fn views<const N: usize>(
        &mut self,
        i: usize,
        inputs: &Inputs<'_, '_>,
        writes: Writes,
    ) -> PyResult<Tensors<N>> {
        let param = self.view(i, 0, inputs.params, writes.param)?;
        let grad = self.view(i, 1, inputs.grads, false)?;
        self.check_twin(i, 1, &grad, &param, param.dtype)?;
        let mut states = SmallVec::<[View; N]>::new();
        for (k, list) in inputs.states.iter().take(N).enumerate() {
            let state = self.view(i, 2 + k, list, k < writes.states)?;
            let dtype = states.first().map_or(state.dtype, |first| first.dtype);
            self.check_twin(i, 2 + k, &state, &param, dtype)?;
            states.push(state);
        }
        let all = inputs.states.len();
        let elements = match inputs.rounding.to(param.dtype) {
            Rounding::Kahan => Some(Elements::Floats),
            Rounding::Split if param.dtype == Float::Bf16 => Some(Elements::Int16),
            // Other halves have no kernel, which the engine says.
            Rounding::Split | Rounding::Nearest | Rounding::Stochastic { .. } => None,
        };
        let compensation = match (elements, &inputs.compensation) {
            (Some(elements), Some(list)) => {
                let view = self.view_of(elements, i, 2 + all, list, true)?;
                self.check_twin(i, 2 + all, &view, &param, param.dtype)?;
                Some(view)
            }
            _ => None,
        };
        let counter = match &inputs.steps {
            Some(list) => Some(self.counter(i, 3 + all, list)?),
            None => None,
        };
        let Ok(states) = states.into_inner() else {
            unreachable!("check_lengths counted the states")
        };
        Ok(Tensors {
            param,
            grad,
            states,
            compensation,
            counter,
        })
    }

    /// Argument number `argument` (see [`Group::arguments`]) of parameter `i`.
    pub fn view(
        &mut self,
        i: usize,
        argument: usize,
        list: &Bound<'_, PyList>,
        writable: bool,
    ) -> PyResult<View> {
        self.view_of(Elements::Floats, i, argument, list, writable)
    }

    fn view_of(
        &mut self,
        elements: Elements,
        i: usize,
        argument: usize,
        list: &Bound<'_, PyList>,
        writable: bool,
    ) -> PyResult<View> {
        let tensor = list.get_item(i)?;
        let lasting = argument >= 2;
        let view = match self.reader.view_of(elements, &tensor, writable, lasting)? {
            Ok(view) => view,
            Err(problem) => return Err(self.refuse(i, argument, *problem)),
        };
        if writable && view.overlaps_itself() {
            return Err(self.refuse(i, argument, Problem::OverlapsItself));
        }
        if view.len > 0 {
            let owner = Owner {
                group: self.groups.len() as u32 - 1,
                tensor: i as u32,
                argument: argument as u32,
            };
            let claims = if writable {
                &mut self.writes
            } else {
                &mut self.reads
            };
            claims.push(Claim::new(&view, owner));
        }
        self.tensors.push(tensor.unbind());
        Ok(view)
    }

    /// Checks that a tensor that goes with the parameter has its shape and the expected type.
    fn check_twin(
        &self,
        i: usize,
        argument: usize,
        view: &View,
        param: &View,
        expected: Float,
    ) -> PyResult<()> {
        let problem = if view.shape != param.shape {
            Problem::Shape {
                shape: view.shape.clone(),
                expected: param.shape.clone(),
            }
        } else if view.dtype != expected {
            Problem::DType {
                dtype: view.dtype.name().into(),
                expected: expected.name().into(),
            }
        } else {
            return Ok(());
        };
        Err(self.refuse(i, argument, problem))
    }

    fn counter(&mut self, i: usize, argument: usize, list: &Bound<'_, PyList>) -> PyResult<Counter> {
        let view = self.view(i, argument, list, true)?;
        let Some(counter) = Counter::read(&view) else {
            let problem = Problem::DType {
                dtype: format!("{} and {} elements", view.dtype.name(), view.len),
                expected: "one float32 or float64 number".into(),
            };
            return Err(self.refuse(i, argument, problem));
        };
        match counter.value() {
            value if value >= 0.0 && value.fract() == 0.0 => Ok(counter),
            value => Err(self.refuse(i, argument, Problem::Step { value })),
        }
    }

    /// Memory with the tensor's elements in the order of dimensions `order`: its own where they lie so, else a copy's.
    pub fn stage(&mut self, view: &View, order: &[usize], write_back: bool) -> *mut u8 {
        if view.is_dense_in(order) {
            return view.data;
        }
        let mut staged = Staged::new(view.strided(order), write_back);
        let data = staged.data();
        self.staged.push(staged);
        data
    }

    /// The memory of a parameter's tensors with their elements in the order of dimensions `order`.
    pub fn buffers<const N: usize>(
        &mut self,
        tensors: &Tensors<N>,
        order: &[usize],
        rounding: Rounding,
        writes: Writes,
    ) -> Buffers<N> {
        let buffers = Buffers {
            dtype: tensors.param.dtype,
            len: tensors.param.len,
            param: self.stage(&tensors.param, order, writes.param),
            grad: self.stage(&tensors.grad, order, false),
            state: std::array::from_fn(|k| {
                let state = &tensors.states[k];
                State::float(self.stage(state, order, k < writes.states), state.dtype)
            }),
            rounding,
            compensation: tensors
                .compensation
                .as_ref()
                .map_or(std::ptr::null_mut(), |view| self.stage(view, order, true)),
        };
        if self.groups.last().is_some_and(|group| group.skip_nonfinite) {
            let (dtype, len, data) = (buffers.dtype, buffers.len, buffers.grad);
            self.grads.push(Values { dtype, len, data });
        }
        buffers
    }

    /// The number of parameter `i` in the stream of random numbers.
    pub fn number(&self, i: usize) -> u64 {
        let group = self.groups.last().and_then(|group| group.number).unwrap_or(0);
        self.position(i) as u64 | (group as u64) << 32
    }

    fn position(&self, i: usize) -> usize {
        self.groups
            .last()
            .and_then(|group| group.positions.as_ref())
            .map_or(i, |positions| positions[i])
    }

    /// The error for types that no kernel takes together.
    pub fn refuse_combination<const N: usize>(
        &self,
        i: usize,
        buffers: &Buffers<N>,
        inputs: &Inputs<'_, '_>,
    ) -> PyErr {
        let problem = Problem::Combination {
            param: buffers.dtype.name(),
            state: buffers.state_dtype().map_or("mixed", Float::name),
            rounding: inputs.rounding.name(),
        };
        self.refuse(i, 0, problem)
    }

    pub fn refuse(&self, i: usize, argument: usize, problem: Problem) -> PyErr {
        let owner = Owner {
            group: self.groups.len() as u32 - 1,
            tensor: i as u32,
            argument: argument as u32,
        };
        Refusal {
            place: self.place(owner),
            problem,
        }
        .into()
    }

    fn place(&self, owner: Owner) -> Place {
        let group = &self.groups[owner.group as usize];
        let tensor = owner.tensor as usize;
        Place {
            group: group.number,
            index: group
                .positions
                .as_ref()
                .and_then(|all| all.get(tensor).copied())
                .unwrap_or(tensor),
            argument: group.arguments[owner.argument as usize].clone(),
        }
    }
}

/// What a rule writes.
#[derive(Clone, Copy)]
pub struct Writes {
    pub param: bool,
    /// How many of the states, from the first on.
    pub states: usize,
}

/// The tensors of one parameter.
pub struct Tensors<const N: usize> {
    pub param: View,
    pub grad: View,
    pub states: [View; N],
    pub compensation: Option<View>,
    pub counter: Option<Counter>,
}

impl<const N: usize> Tensors<N> {
    /// The number of this step, from 1.
    pub fn step(&self, inputs: &Inputs<'_, '_>) -> u64 {
        self.counter
            .map_or(inputs.step, |counter| counter.value() as u64 + 1)
    }
}
