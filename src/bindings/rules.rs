//! The update rules as Python objects: hyperparameters by name.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyFloat, PyString, PyTuple};

use super::arguments::{choice, extract, number, wrong_kind};
use super::errors::Problem;
use super::matrix::{self, MatrixRule, Stage};
use super::parameters::{Inputs, Ledger, Tensors, Writes};
use super::selected::{self, Selected};
use crate::kernels::elementwise::storm::Storm;
use crate::kernels::elementwise::{
    self, AnyRule, HyperparameterKind, Hyperparameters, Rule as _, Source, Visitor, Work,
};
use crate::kernels::matrix::Step;

/// An element-wise update rule with its hyperparameters.
#[pyclass(frozen, name = "Rule", module = "ferrostep._core")]
pub struct PyRule(AnyRule);

#[pymethods]
impl PyRule {
    #[new]
    fn new(name: &str, hyperparameters: &Bound<'_, PyDict>) -> PyResult<Self> {
        let place = place(name)?;
        let mut given = Given {
            rule: name,
            names: &names(hyperparameters.py())[place],
            hyperparameters,
        };
        let rule = AnyRule::read(place, &mut given)?;
        given.check_all_known(place)?;
        Ok(PyRule(rule))
    }
}

/// An element-wise rule for rows that sum up to 1: see `_core.pyi`.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct SimplexRule {
    rule: AnyRule,
    dim: i64,
}

#[pymethods]
impl SimplexRule {
    #[new]
    fn new(rule: &PyRule, dim: i64) -> Self {
        SimplexRule { rule: rule.0, dim }
    }
}

/// STORM's rule for transports that the step may use up: see `_core.pyi`.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct CarriedRule(Storm);

#[pymethods]
impl CarriedRule {
    #[new]
    fn new(rule: &PyRule) -> PyResult<Self> {
        match rule.0 {
            AnyRule::Storm(rule) => Ok(CarriedRule(rule)),
            _ => Err(PyValueError::new_err("Invalid rule: expected that of Storm")),
        }
    }
}

/// Two rules, for selected elements and for the others: see `_core.pyi`.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct SelectedRule(Selected);

#[pymethods]
impl SelectedRule {
    #[new]
    #[pyo3(signature = (inner, rest, of))]
    fn new(inner: &PyRule, rest: Option<&PyRule>, of: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(SelectedRule(Selected {
            inner: inner.0,
            rest: rest.map(|rest| rest.0),
            of: choice("of", of, selected::KINDS)?,
        }))
    }
}

/// The number of a rule in the table of declarations.
fn place(name: &str) -> PyResult<usize> {
    let place = AnyRule::DECLARATIONS.iter().position(|rule| rule.name == name);
    place.ok_or_else(|| {
        let known: Vec<_> = AnyRule::DECLARATIONS.iter().map(|rule| rule.name).collect();
        PyValueError::new_err(format!(
            "Invalid name: {name:?}; expected one of {}",
            known.join(", ")
        ))
    })
}

/// The names of the hyperparameters of each rule, as Python's dicts find them fastest.
fn names(py: Python<'_>) -> &'static [Vec<Py<PyString>>] {
    static NAMES: PyOnceLock<Vec<Vec<Py<PyString>>>> = PyOnceLock::new();
    NAMES.get_or_init(py, || {
        let intern = |&(name, _): &(&str, _)| PyString::intern(py, name).unbind();
        AnyRule::DECLARATIONS
            .iter()
            .map(|rule| rule.hyperparameters.iter().map(intern).collect())
            .collect()
    })
}

/// A rule's hyperparameters in a parameter group: those of the same name, and `beta1`, `beta2`, ... from its `betas`.
#[pyfunction]
pub fn hyperparameters<'py>(name: &str, group: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyDict>> {
    let py = group.py();
    let place = place(name)?;
    let found = PyDict::new(py);
    for ((name, _), own) in AnyRule::DECLARATIONS[place]
        .hyperparameters
        .iter()
        .zip(&names(py)[place])
    {
        let value = match name
            .strip_prefix("beta")
            .and_then(|number| number.parse::<usize>().ok())
        {
            Some(number) => {
                let betas = group.as_any().get_item(intern!(py, "betas"))?;
                let beta = betas.get_item(number - 1);
                beta.map_err(|_| wrong_kind("betas", &betas, "numbers, one for each beta"))?
            }
            None => group.as_any().get_item(own)?,
        };
        found.set_item(own, value)?;
    }
    Ok(found)
}

/// By name, the rules that there are: the names of their states, their hyperparameters with their types, whether they
/// depend on the number of the step, which states are never negative, and what their product is called, if they have one.
#[pyfunction]
pub fn rules(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let all = PyDict::new(py);
    for rule in AnyRule::DECLARATIONS {
        let hyperparameters = PyDict::new(py);
        for (name, kind) in rule.hyperparameters {
            let of_python = match kind {
                HyperparameterKind::Number => py.get_type::<PyFloat>(),
                HyperparameterKind::Flag => py.get_type::<PyBool>(),
            };
            hyperparameters.set_item(name, of_python)?;
        }
        let states = PyTuple::new(py, rule.states)?;
        let never_negative = PyTuple::new(py, rule.never_negative)?;
        all.set_item(
            rule.name,
            (
                states,
                hyperparameters,
                rule.counts_steps,
                never_negative,
                rule.product,
            ),
        )?;
    }
    Ok(all)
}

/// The updates of a parameter group, ready to be run.
pub enum Update {
    Elements(Box<dyn Work>),
    Matrices(Step),
}

/// Checks the tensors of a group and hands them to the rule's engine.
pub fn add(ledger: &mut Ledger, rule: &Bound<'_, PyAny>, inputs: &Inputs<'_>) -> PyResult<Update> {
    if let Ok(rule) = rule.cast::<PyRule>() {
        return rule.get().0.visit(Add { ledger, inputs }).map(Update::Elements);
    }
    if let Ok(rule) = rule.cast::<SimplexRule>() {
        let SimplexRule { rule, dim } = *rule.get();
        return rule.visit(AddRows { ledger, inputs, dim }).map(Update::Elements);
    }
    if let Ok(rule) = rule.cast::<CarriedRule>() {
        return add_carried(ledger, rule.get().0, inputs).map(Update::Elements);
    }
    if let Ok(rule) = rule.cast::<SelectedRule>() {
        return selected::add(ledger, &rule.get().0, inputs).map(Update::Elements);
    }
    if let Ok(rule) = rule.cast::<MatrixRule>() {
        return matrix::add(ledger, rule.get(), inputs).map(Update::Matrices);
    }
    if let Ok(stage) = rule.cast::<Stage>() {
        return stage.get().visit(Add { ledger, inputs }).map(Update::Elements);
    }
    let kind = rule.get_type().name()?;
    Err(PyTypeError::new_err(format!("{kind} is not an update rule")))
}

struct Add<'a, 'py> {
    ledger: &'a mut Ledger,
    inputs: &'a Inputs<'py>,
}

impl Visitor for Add<'_, '_> {
    type Output = PyResult<Box<dyn Work>>;

    fn visit<H: Hyperparameters<N>, const N: usize>(self, hyperparameters: H) -> Self::Output {
        let Add { ledger, inputs } = self;
        inputs.expect(N, H::PRODUCT)?;
        let mut batch = elementwise::Updates::with_capacity(inputs.len());
        let (writes, books) = (writes::<H, N>(), H::books());
        let mut latest = Latest::of(hyperparameters);
        for i in 0..inputs.len() {
            let tensors = ledger.tensors(inputs, i, writes, &books)?;
            let order = match H::Rule::BY_ROW || H::Rule::TAKES_LARGEST {
                true => (0..tensors.param.shape.len()).collect(),
                false => tensors.order(),
            };
            let buffers = ledger.buffers(inputs, i, &tensors, &order, writes);
            let rule = latest.rule_of(ledger, &tensors);
            let disturbance = ledger.disturbance(inputs, i, tensors.step, buffers.dtype);
            // SAFETY: the views are valid while the ledger lives, and its call checks that what is written is not
            // shared.
            let push = |disturbance| unsafe {
                match H::Rule::BY_ROW {
                    true => batch.push_rows(rule, buffers, tensors.param.row()),
                    false => batch.push_disturbed(rule, buffers, disturbance),
                }
            };
            if disturbance.transpose().and_then(push).is_err() {
                return Err(ledger.refuse(inputs, i, Problem::combination(&buffers, inputs.rounding)));
            }
        }
        Ok(Box::new(batch))
    }
}

struct AddRows<'a, 'py> {
    ledger: &'a mut Ledger,
    inputs: &'a Inputs<'py>,
    dim: i64,
}

impl Visitor for AddRows<'_, '_> {
    type Output = PyResult<Box<dyn Work>>;

    fn visit<H: Hyperparameters<N>, const N: usize>(self, hyperparameters: H) -> Self::Output {
        let AddRows { ledger, inputs, dim } = self;
        inputs.expect(N, H::PRODUCT)?;
        let mut batch = elementwise::SimplexUpdates::with_capacity(inputs.len());
        let (writes, books) = (writes::<H, N>(), H::books());
        let mut latest = Latest::of(hyperparameters);
        for i in 0..inputs.len() {
            let tensors = ledger.tensors(inputs, i, writes, &books)?;
            let rank = tensors.param.shape.len() as i64;
            if !(-rank..rank).contains(&dim) {
                let (shape, expected) = (tensors.param.shape.clone(), format!("a dimension {dim}"));
                return Err(ledger.refuse(inputs, i, Problem::Matrices { shape, expected }));
            }
            let dim = dim.rem_euclid(rank) as usize;
            // The rows one after the other, as near as possible to how they lie.
            let mut order = tensors.param.order();
            order.sort_by_key(|&each| each == dim); // stable
            let row = tensors.param.shape[dim] as usize;
            let buffers = ledger.buffers(inputs, i, &tensors, &order, writes);
            let rule = latest.rule_of(ledger, &tensors);
            // SAFETY: as for `Add`; a tensor with elements has whole rows of them.
            if unsafe { batch.push(rule, buffers, row) }.is_err() {
                return Err(ledger.refuse(inputs, i, Problem::combination(&buffers, inputs.rounding)));
            }
        }
        Ok(Box::new(batch))
    }
}

fn add_carried(ledger: &mut Ledger, rule: Storm, inputs: &Inputs<'_>) -> PyResult<Box<dyn Work>> {
    inputs.expect(2, Storm::PRODUCT)?;
    let mut batch = elementwise::CarriedUpdates::with_capacity(inputs.len());
    let writes = Writes {
        param: true,
        states: 2,
    };
    for i in 0..inputs.len() {
        let tensors = ledger.tensors(inputs, i, writes, &Storm::books())?;
        let buffers = ledger.buffers(inputs, i, &tensors, &tensors.order(), writes);
        // SAFETY: as for `Add`; before the transport is written, `Batch::sums` checks that it is not shared.
        if unsafe { batch.push(rule, buffers) }.is_err() {
            return Err(ledger.refuse(inputs, i, Problem::combination(&buffers, inputs.rounding)));
        }
    }
    Ok(Box::new(batch))
}

fn writes<H: Hyperparameters<N>, const N: usize>() -> Writes {
    Writes {
        param: H::Rule::WRITES_PARAM,
        states: H::Rule::WRITES_STATES,
    }
}

/// The rule of a step, from the last one asked for: most tensors are at the same step, and its rule takes a power or
/// two.
struct Latest<H: Hyperparameters<N>, const N: usize> {
    hyperparameters: H,
    known: Option<((u64, f64), H::Rule)>,
}

impl<H: Hyperparameters<N>, const N: usize> Latest<H, N> {
    fn of(hyperparameters: H) -> Self {
        let known = None;
        Latest {
            hyperparameters,
            known,
        }
    }

    /// The rule for a parameter, of which the ledger then has the new product.
    fn rule_of(&mut self, ledger: &mut Ledger, tensors: &Tensors<N>) -> H::Rule {
        let step = tensors.step as f64;
        let product = tensors
            .product
            .map(|before| before.times(self.hyperparameters.factor(step)));
        ledger.scalars.extend(product);
        self.at(tensors.step, product.map_or(1.0, |product| product.value()))
    }

    fn at(&mut self, step: u64, product: f64) -> H::Rule {
        let rule = match self.known {
            Some((known, rule)) if known == (step, product) => rule,
            _ => H::with_product(self.hyperparameters.at_step(step as f64), product),
        };
        self.known = Some(((step, product), rule));
        rule
    }
}

/// Hyperparameters as they came from Python.
struct Given<'a, 'py> {
    rule: &'a str,
    /// The names of those that have not been asked for yet.
    names: &'static [Py<PyString>],
    hyperparameters: &'a Bound<'py, PyDict>,
}

impl<'py> Given<'_, 'py> {
    fn take(&mut self, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let (own, rest) = self.names.split_first().expect("as many values as names");
        self.names = rest;
        match self.hyperparameters.get_item(own)? {
            Some(value) => Ok(value),
            None => {
                let message = format!("{} is missing the hyperparameter {name:?}", self.rule);
                Err(PyTypeError::new_err(message))
            }
        }
    }

    /// Refuses what the rule does not ask for.
    fn check_all_known(&self, place: usize) -> PyResult<()> {
        let known = &AnyRule::DECLARATIONS[place].hyperparameters;
        if self.hyperparameters.len() == known.len() {
            return Ok(());
        }
        let is_unknown =
            |name: &Bound<'_, PyAny>| known.iter().all(|(own, _)| !name.eq(own).unwrap_or(false));
        match self.hyperparameters.keys().iter().find(is_unknown) {
            Some(name) => {
                let message = format!("{} has no hyperparameter '{name}'", self.rule);
                Err(PyTypeError::new_err(message))
            }
            None => Ok(()), // one that equals any, or that a conversion took away: all that count have been read
        }
    }
}

impl Source for Given<'_, '_> {
    type Error = PyErr;

    fn number(&mut self, name: &'static str) -> PyResult<f64> {
        number(name, &self.take(name)?)
    }

    fn flag(&mut self, name: &'static str) -> PyResult<bool> {
        extract(name, &self.take(name)?, "a bool")
    }
}
