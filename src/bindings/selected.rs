//! Rules for selected elements of matrices, and the choice of these.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::call::Role;
use super::errors::Problem;
use super::parameters::{Inputs, Ledger, Tensors, Writes};
use super::view::{Elements, View};
use crate::kernels::elementwise::{
    self, AnyRule, Bits, Columns, Hyperparameters, Piece, SelectedUpdates, Selection, Unsupported, Visitor,
    Work,
};
use crate::kernels::storage::{Access, Buffers, DType, Integer, State};
use crate::kernels::vector::Noise;

/// Two rules, for selected elements and for the others.
#[derive(Clone, Copy)]
pub struct Selected {
    pub inner: AnyRule,
    pub rest: Option<AnyRule>,
    pub of: Of,
}

/// What is selected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Of {
    Rows,
    Columns,
    Entries,
}

pub const KINDS: &[(&str, Of)] = &[
    ("rows", Of::Rows),
    ("columns", Of::Columns),
    ("entries", Of::Entries),
];

/// `count` of the numbers below `of`: see `_core.pyi`.
#[pyfunction]
pub fn sample<'py>(
    py: Python<'py>,
    of: u32,
    count: u32,
    seed: u64,
    number: u64,
    as_bits: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    if count > of || of > i32::MAX as u32 {
        let message = format!("Invalid count: {count}; expected a number up to {of}, which is below 2**31");
        return Err(PyValueError::new_err(message));
    }
    let chosen = elementwise::sample(of.into(), count.into(), Noise::key(seed, number));
    let bytes = match as_bits {
        true => {
            let mut bits = vec![0_u8; (of as usize).div_ceil(8)];
            chosen.for_each(|i| bits[i as usize / 8] |= 1 << (i % 8));
            bits
        }
        false => chosen.flat_map(|i| (i as i32).to_ne_bytes()).collect(),
    };
    Ok(PyBytes::new(py, &bytes))
}

/// Checks the tensors of a group and hands them to the engine.
pub fn add(ledger: &mut Ledger, rule: &Selected, inputs: &Inputs<'_>) -> PyResult<Box<dyn Work>> {
    let mut batch = SelectedUpdates::default();
    for i in 0..inputs.len() {
        let writes = Writes {
            param: true,
            states: 0,
        };
        let tensors = ledger.tensors::<0>(inputs, i, writes, &[])?;
        let param = &tensors.param;
        if param.shape.len() < 2 {
            let (shape, expected) = (param.shape.clone(), "2 or more dimensions".into());
            return Err(ledger.refuse(inputs, i, Problem::Matrices { shape, expected }));
        }
        let rows = param.shape[0] as usize;
        let columns = param.shape[1..].iter().map(|&size| size as usize).product();
        let (selection, shape) = read_selection(ledger, inputs, i, rule.of, [rows, columns])?;
        let states = states(ledger, inputs, i, &shape)?;
        let order: Vec<_> = (0..param.shape.len()).collect();
        let buffers = ledger.buffers(inputs, i, &tensors, &order, writes);
        let pieces = pieces(rule, &tensors, &buffers, &states);
        let Ok((inner, rest)) = pieces else {
            return Err(ledger.refuse(inputs, i, Problem::combination(&buffers, inputs.rounding)));
        };
        // SAFETY: the views are valid while the ledger lives, and its call checks that what is written is not shared;
        // selection and states have been found to fit.
        unsafe { batch.push(inner, rest, selection, buffers, states, columns) };
    }
    Ok(Box::new(batch))
}

type Pieces = (Box<dyn Piece>, Option<Box<dyn Piece>>);

fn pieces(
    rule: &Selected,
    tensors: &Tensors<0>,
    buffers: &Buffers<0>,
    states: &[State],
) -> Result<Pieces, Unsupported> {
    let step = tensors.step as f64;
    let fit = |rule: AnyRule, states| {
        rule.visit(Fit {
            step,
            buffers,
            states,
        })
    };
    let rest = rule.rest.map(|rest| fit(rest, &[]));
    Ok((fit(rule.inner, states)?, rest.transpose()?))
}

struct Fit<'a> {
    step: f64,
    buffers: &'a Buffers<0>,
    states: &'a [State],
}

impl Visitor for Fit<'_> {
    type Output = Result<Box<dyn Piece>, Unsupported>;

    fn visit<H: Hyperparameters<N>, const N: usize>(self, hyperparameters: H) -> Self::Output {
        elementwise::piece(hyperparameters.at_step(self.step), self.buffers, self.states)
    }
}

/// The last column of a group: which elements of parameter `i` are selected, and the shape that its states are to have.
fn read_selection(
    ledger: &mut Ledger,
    inputs: &Inputs<'_>,
    i: usize,
    of: Of,
    [rows, columns]: [usize; 2],
) -> PyResult<(Selection, Vec<i64>)> {
    let Some(column) = inputs.states.last() else {
        return Err(PyValueError::new_err(
            "the rule has a selection as its last state",
        ));
    };
    let integer = if of == Of::Entries {
        Integer::U8
    } else {
        Integer::I32
    };
    let role = Role::new(Access::Reads).elements(Elements::Only(DType::Integer(integer)));
    let view = ledger.take(inputs, column, i, &role.state())?;
    let below = if of == Of::Rows { rows } else { columns };
    let read = match of {
        Of::Rows => numbers(&view, rows).map(|chosen| (vec![chosen.len(), columns], Selection::Rows(chosen))),
        Of::Columns => {
            let of = |chosen: Vec<_>| Selection::Columns(Columns::new(&chosen, columns));
            numbers(&view, columns).map(|chosen| (vec![rows, chosen.len()], of(chosen)))
        }
        Of::Entries => {
            bits(&view, rows * columns).map(|(bits, count)| (vec![count], Selection::Entries(bits)))
        }
    };
    match read {
        Some((shape, selection)) => Ok((selection, shape.into_iter().map(|n| n as i64).collect())),
        None => {
            let problem = Problem::Selection {
                found: format!("of shape {:?} with other numbers", view.shape),
                expected: match of {
                    Of::Entries => format!("a bit for each of {} elements", rows * columns),
                    _ => format!("rising numbers below {below}"),
                },
            };
            Err(ledger.call.refuse(inputs.owner(column, i), problem))
        }
    }
}

/// Rising numbers below a bound.
fn numbers(view: &View, below: usize) -> Option<Vec<u32>> {
    if view.shape.len() != 1 {
        return None;
    }
    // SAFETY: the view is valid for its elements while the ledger lives, of the type that was asked for.
    let of = |i: usize| unsafe {
        *view
            .data
            .cast::<i32>()
            .offset(i as isize * view.strides[0] as isize)
    };
    let all: Option<Vec<_>> = (0..view.len).map(|i| u32::try_from(of(i)).ok()).collect();
    all.filter(|all| {
        all.last().is_none_or(|&last| (last as usize) < below) && all.is_sorted_by(|one, next| one < next)
    })
}

/// A bit for each of `len` elements.
fn bits(view: &View, len: usize) -> Option<(Bits, usize)> {
    if view.shape.len() != 1 || view.len != len.div_ceil(8) || !view.is_contiguous {
        return None;
    }
    // SAFETY: the view is valid for its elements while the ledger lives, and nobody writes them.
    unsafe { Bits::new(view.data, len) }
}

/// The states before the selection, of a shape.
fn states(ledger: &mut Ledger, inputs: &Inputs<'_>, i: usize, shape: &[i64]) -> PyResult<Vec<State>> {
    let order: Vec<_> = (0..shape.len()).collect();
    let columns = inputs.states.split_last().map_or(&[][..], |(_, before)| before);
    let of = |column| {
        let role = Role::new(Access::Updates).shape(shape).state();
        let view = ledger.take(inputs, column, i, &role)?;
        let data = ledger.call.stage(&view, &order, Access::Updates);
        Ok(State::float(data, view.float()))
    };
    columns.iter().map(of).collect()
}
