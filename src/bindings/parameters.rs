//! The tensors of an optimizer's parameters, group by group, as a step takes them in.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use smallvec::SmallVec;

use super::call::{Call, Names, Owner, Role};
use super::errors::{Place, Problem};
use super::scalar::Scalar;
use super::view::{Elements, View};
use crate::kernels::elementwise::{Disturbance, Unsupported, Values};
use crate::kernels::storage::{
    Access, Buffers, CODE_BLOCK, Codebook, Codes, DType, Float, Integer, Rounding, State, Storage,
};
use crate::kernels::vector::Noise;

/// What a step has taken in so far.
pub struct Ledger {
    pub call: Call<Groups>,
    /// What the numbers beside the states become.
    pub scalars: Vec<Scalar>,
    /// The gradients in which to look for NaN and infinity.
    pub searched: Vec<Values>,
    /// The gradients of which the norm is asked for.
    pub measured: Vec<Values>,
}

/// What error messages need to know of the groups.
#[derive(Default)]
pub struct Groups(Vec<Group>);

struct Group {
    number: Option<usize>,
    /// What the columns are called.
    arguments: Vec<String>,
    positions: Option<Vec<usize>>,
}

impl Group {
    fn position(&self, i: usize) -> usize {
        self.positions.as_ref().map_or(i, |all| all[i])
    }
}

impl Names for Groups {
    fn place(&self, owner: Owner) -> Place {
        let group = &self.0[owner.group as usize];
        Place {
            group: group.number,
            index: group.position(owner.index as usize),
            argument: group.arguments[owner.argument as usize].clone(),
        }
    }
}

/// Tensors of one name, one for each parameter of a group.
pub struct Column<'py> {
    argument: u32,
    list: Bound<'py, PyList>,
}

/// A parameter group as it came: columns of one length.
pub struct Inputs<'py> {
    group: u32,
    pub params: Column<'py>,
    grads: Column<'py>,
    pub states: SmallVec<[Column<'py>; 4]>,
    /// For each of the states, the scales of those that are codes.
    scales: SmallVec<[Option<Column<'py>>; 4]>,
    compensation: Option<Column<'py>>,
    steps: Option<Column<'py>>,
    product: Option<Column<'py>>,
    /// The number of this step where it is not counted, from 1.
    step: u64,
    /// A stochastic one with the optimizer's seed.
    pub rounding: Rounding,
    pub disturbed: Disturbed,
    searched: bool,
    measured: bool,
}

/// How a group came besides its columns; see `Batch.add` in `_core.pyi`.
pub struct Options {
    pub number: Option<usize>,
    pub positions: Option<Vec<usize>>,
    pub step: u64,
    pub rounding: Rounding,
    pub disturbed: Disturbed,
    pub skip_nonfinite: bool,
    pub measure: bool,
}

/// The noise after a rule: none where the deviation is 0.
#[derive(Clone, Copy)]
pub struct Disturbed {
    pub deviation: f64,
    pub seed: u64,
}

/// The lists of a group's tensors.
pub struct Lists<'a, 'py> {
    pub params: &'a Bound<'py, PyList>,
    pub grads: &'a Bound<'py, PyList>,
    pub states: &'a Bound<'py, PyDict>,
    pub scales: Option<Bound<'py, PyDict>>,
    pub compensation: Option<Bound<'py, PyList>>,
    pub steps: Option<Bound<'py, PyList>>,
    pub product: Option<(String, Bound<'py, PyList>)>,
}

/// What a rule writes.
#[derive(Clone, Copy)]
pub struct Writes {
    pub param: bool,
    /// How many of the states, from the first on.
    pub states: usize,
}

impl Writes {
    fn of_param(self) -> Access {
        access(self.param)
    }

    fn of_state(self, k: usize) -> Access {
        access(k < self.states)
    }
}

fn access(written: bool) -> Access {
    match written {
        true => Access::Updates,
        false => Access::Reads,
    }
}

/// The tensors of one parameter.
pub struct Tensors<const N: usize> {
    pub param: View,
    grad: View,
    states: [StateView; N],
    compensation: Option<View>,
    /// The number of this step, from 1.
    pub step: u64,
    /// That of a rule which has one, as it is before this step.
    pub product: Option<Scalar>,
}

/// A state as it came: numbers, or codes with the book and the scales that say what they stand for.
struct StateView {
    view: View,
    codes: Option<(&'static Codebook, View)>,
}

impl<const N: usize> Tensors<N> {
    /// The dimensions in the order in which the elements are updated: as they lie in memory or, where a state is codes,
    /// as the indices have it, so that blocks of codes mean the same in every layout.
    pub fn order(&self) -> SmallVec<[usize; 4]> {
        match self.states.iter().any(|state| state.codes.is_some()) {
            true => (0..self.param.shape.len()).collect(),
            false => self.param.order(),
        }
    }
}

impl Ledger {
    pub fn new() -> Ledger {
        Ledger {
            call: Call::new(Groups::default()),
            scalars: Vec::new(),
            searched: Vec::new(),
            measured: Vec::new(),
        }
    }

    /// Takes in the columns of a group, which are to be of one length.
    pub fn open<'py>(&mut self, lists: Lists<'_, 'py>, options: Options) -> PyResult<Inputs<'py>> {
        let count = lists.params.len();
        let rounding = options.rounding;
        let group = self.call.names.0.len() as u32;
        self.call.names.0.push(Group {
            number: options.number,
            arguments: Vec::with_capacity(2 * lists.states.len() + 4),
            positions: options.positions,
        });
        let mut column = |name: String, list: &Bound<'py, PyList>| {
            let arguments = &mut self.call.names.0[group as usize].arguments;
            let argument = arguments.len() as u32;
            arguments.push(name);
            if list.len() != count {
                let count = Problem::Count {
                    count: list.len(),
                    expected: count,
                };
                let owner = Owner {
                    argument,
                    group,
                    index: 0,
                };
                return Err(self.call.refuse(owner, count));
            }
            let list = list.clone();
            Ok(Column { argument, list })
        };
        let (mut states, mut scales) = (SmallVec::new(), SmallVec::new());
        let (params, grads) = (
            column("param".into(), lists.params)?,
            column("grad".into(), lists.grads)?,
        );
        for (name, list) in lists.states {
            let name: String = name.extract()?;
            states.push(column(name.clone(), &list.cast_into::<PyList>()?)?);
            let scale = match &lists.scales {
                Some(all) => all.get_item(&name)?,
                None => None,
            };
            let scale = scale.map(|list| column(format!("{name}_scale"), &list.cast_into::<PyList>()?));
            scales.push(scale.transpose()?);
        }
        let name = match rounding {
            Rounding::Split => "master_low",
            Rounding::Master => "master_param",
            _ => "kahan_comp",
        };
        let compensation = lists.compensation.map(|list| column(name.into(), &list));
        let compensation = compensation.transpose()?;
        let steps = lists.steps.map(|list| column("step".into(), &list)).transpose()?;
        let product = lists
            .product
            .map(|(name, list)| column(name, &list))
            .transpose()?;
        let needs_it = matches!(rounding, Rounding::Kahan | Rounding::Split | Rounding::Master);
        if compensation.is_none() && needs_it {
            let message = format!("rounding='{}' needs compensation buffers", rounding.name());
            return Err(PyValueError::new_err(message));
        }
        let positions = &self.call.names.0[group as usize].positions;
        if let Some(positions) = positions
            && positions.len() != count
        {
            let message = format!("positions has {} numbers, expected {count}", positions.len());
            return Err(PyValueError::new_err(message));
        }
        self.call.reserve(
            count,
            count * (states.len() + scales.iter().flatten().count() + 3),
        );
        Ok(Inputs {
            group,
            params,
            grads,
            states,
            scales,
            compensation,
            steps,
            product,
            step: options.step,
            rounding,
            disturbed: options.disturbed,
            searched: options.skip_nonfinite,
            measured: options.measure,
        })
    }

    /// The checked tensors of parameter `i`, with the first `N` states, which have its shape; those with a book may be
    /// codes.
    pub fn tensors<const N: usize>(
        &mut self,
        inputs: &Inputs<'_>,
        i: usize,
        writes: Writes,
        books: &[&'static Codebook],
    ) -> PyResult<Tensors<N>> {
        let param = self.take(inputs, &inputs.params, i, &Role::new(writes.of_param()))?;
        let grad = self.gradient(inputs, i, &param)?;
        let mut states = SmallVec::<[StateView; N]>::new();
        for k in 0..N {
            states.push(self.state(inputs, k, i, &param, writes.of_state(k), books.get(k))?);
        }
        let Ok(states) = states.into_inner() else {
            unreachable!("`Inputs::expect` counted the states")
        };
        let compensation = match (&inputs.compensation, inputs.rounding.to(param.float())) {
            (Some(column), rounding) => self.compensation(inputs, column, i, rounding, &param)?,
            _ => None,
        };
        let step = match &inputs.steps {
            Some(column) => {
                let count = self.scalar(inputs, column, i, Scalar::count)?.plus_one();
                self.scalars.push(count);
                count.value() as u64
            }
            None => inputs.step,
        };
        let product = inputs.product.as_ref();
        let product = product.map(|column| self.scalar(inputs, column, i, Scalar::product));
        Ok(Tensors {
            param,
            grad,
            states,
            compensation,
            step,
            product: product.transpose()?,
        })
    }

    /// Tensor `i` of a column.
    #[inline]
    pub fn take(
        &mut self,
        inputs: &Inputs<'_>,
        column: &Column<'_>,
        i: usize,
        role: &Role<'_>,
    ) -> PyResult<View> {
        self.call
            .take(inputs.owner(column, i), &column.list.get_item(i)?, role)
    }

    /// State `k`: numbers or, where there are scales for it, codes.
    fn state(
        &mut self,
        inputs: &Inputs<'_>,
        k: usize,
        i: usize,
        param: &View,
        access: Access,
        book: Option<&&'static Codebook>,
    ) -> PyResult<StateView> {
        let role = Role::new(access).shape(&param.shape).state();
        let scales = inputs.scales[k].as_ref();
        let scales = scales.filter(|scales| !scales.list.get_item(i).is_ok_and(|scale| scale.is_none()));
        let (Some(&book), Some(scales)) = (book, scales) else {
            let view = self.take(inputs, &inputs.states[k], i, &role)?;
            return Ok(StateView { view, codes: None });
        };
        const CODES: Elements = Elements::Only(DType::Integer(Integer::U8));
        let view = self.take(inputs, &inputs.states[k], i, &role.elements(CODES))?;
        let blocks = [param.len.div_ceil(CODE_BLOCK) as i64];
        let role = Role::new(access)
            .elements(Elements::Only(DType::F32))
            .shape(&blocks)
            .state();
        let codes = Some((book, self.take(inputs, scales, i, &role)?));
        Ok(StateView { view, codes })
    }

    /// The gradient: in any type that is computed with as the parameter's.
    fn gradient(&mut self, inputs: &Inputs<'_>, i: usize, param: &View) -> PyResult<View> {
        let role = Role::new(Access::Reads).shape(&param.shape);
        let grad = self.take(inputs, &inputs.grads, i, &role)?;
        if grad.float().arithmetic() == param.float().arithmetic() {
            return Ok(grad);
        }
        let problem = Problem::DType {
            dtype: grad.dtype.name().into(),
            expected: param.dtype.name().into(),
        };
        Err(self.call.refuse(inputs.owner(&inputs.grads, i), problem))
    }

    /// What makes up for the rounding, where anything does.
    fn compensation(
        &mut self,
        inputs: &Inputs<'_>,
        column: &Column<'_>,
        i: usize,
        rounding: Rounding,
        param: &View,
    ) -> PyResult<Option<View>> {
        const LOWER_HALVES: Elements = Elements::Only(DType::Integer(Integer::I16));
        let role = Role::new(Access::Updates).shape(&param.shape).state();
        let role = match rounding {
            Rounding::Kahan => role.dtype(param.dtype),
            Rounding::Master => role.dtype(param.work_dtype()),
            Rounding::Split if param.dtype == DType::BF16 => role.elements(LOWER_HALVES),
            // Other halves have no kernel, which the engine says.
            Rounding::Split | Rounding::Nearest | Rounding::Stochastic { .. } => return Ok(None),
        };
        self.take(inputs, column, i, &role).map(Some)
    }

    /// A number beside the states, as `read` finds it.
    fn scalar(
        &mut self,
        inputs: &Inputs<'_>,
        column: &Column<'_>,
        i: usize,
        read: fn(&View) -> Result<Scalar, Problem>,
    ) -> PyResult<Scalar> {
        let view = self.take(inputs, column, i, &Role::new(Access::Updates).state())?;
        read(&view).map_err(|problem| self.call.refuse(inputs.owner(column, i), problem))
    }

    /// The memory of a parameter's tensors with their elements in the order of dimensions `order`.
    pub fn buffers<const N: usize>(
        &mut self,
        inputs: &Inputs<'_>,
        i: usize,
        tensors: &Tensors<N>,
        order: &[usize],
        writes: Writes,
    ) -> Buffers<N> {
        let Tensors { param, grad, .. } = tensors;
        let mut stage = |view: &View, order: &[usize], access| self.call.stage(view, order, access);
        let buffers = Buffers {
            dtype: param.float(),
            len: param.len,
            param: stage(param, order, writes.of_param()),
            grad_dtype: grad.float(),
            grad: stage(grad, order, Access::Reads),
            state: std::array::from_fn(|k| {
                let (StateView { view, codes }, access) = (&tensors.states[k], writes.of_state(k));
                let data = stage(view, order, access);
                match codes {
                    None => State::float(data, view.float()),
                    Some((book, scales)) => {
                        let scales = stage(scales, &[0], access).cast();
                        let storage = Storage::Codes(Codes { book, scales });
                        State { data, storage }
                    }
                }
            }),
            rounding: inputs
                .rounding
                .to(param.float())
                .at(self.number(inputs, i), tensors.step),
            compensation: match &tensors.compensation {
                Some(view) => self.call.stage(view, order, Access::Updates),
                None => std::ptr::null_mut(),
            },
        };
        let gradient = Values {
            dtype: buffers.grad_dtype,
            len: buffers.len,
            data: buffers.grad,
        };
        self.searched.extend(inputs.searched.then_some(gradient));
        self.measured.extend(inputs.measured.then_some(gradient));
        buffers
    }

    /// What is done to parameter `i` after its rule, if anything.
    pub fn disturbance(
        &self,
        inputs: &Inputs<'_>,
        i: usize,
        step: u64,
        param: Float,
    ) -> Option<Result<Disturbance, Unsupported>> {
        let Disturbed { deviation, seed } = inputs.disturbed;
        let stream = Noise::key(Noise::key(seed, self.number(inputs, i)), step);
        // A stream of its own beside that of stochastic rounding, whose blocks are fewer.
        let stream = Noise::key(stream, u64::MAX);
        (deviation != 0.0).then(|| Disturbance::new(deviation, stream, param, inputs.rounding.to(param)))
    }

    /// The number of parameter `i` in the stream of random numbers.
    fn number(&self, inputs: &Inputs<'_>, i: usize) -> u64 {
        let group = &self.call.names.0[inputs.group as usize];
        group.position(i) as u64 | (group.number.unwrap_or(0) as u64) << 32
    }

    /// The error for a parameter of which the shape, or the types of its tensors together, have no kernel.
    pub fn refuse(&self, inputs: &Inputs<'_>, i: usize, problem: Problem) -> PyErr {
        self.call.refuse(inputs.owner(&inputs.params, i), problem)
    }
}

impl Inputs<'_> {
    pub fn len(&self) -> usize {
        self.params.list.len()
    }

    /// Refuses other numbers of states than a rule has, and what has no product for a rule of one.
    pub fn expect(&self, states: usize, product: Option<&str>) -> PyResult<()> {
        if self.states.len() != states {
            let message = format!("the rule has {states} states, got {}", self.states.len());
            return Err(PyValueError::new_err(message));
        }
        if self.product.is_some() != product.is_some() {
            let message = match product {
                Some(name) => format!("the rule has the product {name}, got none"),
                None => "the rule has no product, got one".to_owned(),
            };
            return Err(PyValueError::new_err(message));
        }
        Ok(())
    }

    pub fn owner(&self, column: &Column<'_>, i: usize) -> Owner {
        Owner {
            argument: column.argument,
            group: self.group,
            index: i as u32,
        }
    }
}
