//! Lists of gradients for Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use smallvec::{SmallVec, smallvec};

use super::arguments::{at_least_zero, finite, powers, share};
use super::call::{Call, Names, Owner, Role};
use super::errors::Problem;
use super::view::View;
use crate::kernels::elementwise::{self, NormSums, Values};
use crate::kernels::gradients::{self, Advance, Descend, Factors, Position, Products};
use crate::kernels::linear::Powers;
use crate::kernels::storage::Access;

type List<'py> = Vec<Option<Bound<'py, PyAny>>>;

/// Subtracts from `backward` what it has along `forward`; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (forward, backward, *, scale, eps, per_tensor, threads))]
pub fn orthogonal(
    py: Python<'_>,
    forward: List<'_>,
    backward: List<'_>,
    scale: &Bound<'_, PyAny>,
    eps: &Bound<'_, PyAny>,
    per_tensor: bool,
    threads: usize,
) -> PyResult<Vec<f64>> {
    let scale = finite("scale", scale)?;
    let eps = at_least_zero("eps", eps)?;
    let inputs = [("forward", &forward), ("backward", &backward)];
    let mut lists = take(&inputs, &inputs[1..])?;
    let kappas = lists.project(py, threads, per_tensor, |products| {
        let kappas = kappas(products, 2, eps, per_tensor);
        let factors = kappas.iter().map(|kappa| smallvec![-scale * kappa, scale]);
        Some((kappas.clone(), factors.collect()))
    })?;
    Ok(kappas.unwrap_or_default())
}

/// Writes `extra + forward + eta * (backward - kappa * forward)`; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (extra, forward, backward, outputs, *, eta, eps, per_tensor, skip_nonfinite, threads))]
#[allow(clippy::too_many_arguments)] // the Python signature
pub fn orthogonal_combine(
    py: Python<'_>,
    extra: List<'_>,
    forward: List<'_>,
    backward: List<'_>,
    outputs: List<'_>,
    eta: &Bound<'_, PyAny>,
    eps: &Bound<'_, PyAny>,
    per_tensor: bool,
    skip_nonfinite: bool,
    threads: usize,
) -> PyResult<Option<Vec<f64>>> {
    let eta = finite("eta", eta)?;
    let eps = at_least_zero("eps", eps)?;
    let is_in_place = extra.iter().zip(&outputs).all(|pair| match pair {
        (Some(one), Some(other)) => one.is(other),
        (one, other) => one.is_none() && other.is_none(),
    });
    let name = if is_in_place { "out" } else { "extra" };
    let inputs = [(name, &extra), ("forward", &forward), ("backward", &backward)];
    let outputs = [("out", &outputs)];
    take(&inputs, &outputs)?.project(py, threads, per_tensor, |products| {
        let finite = || {
            gradients::total(products)
                .iter()
                .all(|product| product.is_finite())
        };
        if skip_nonfinite && !finite() {
            return None;
        }
        let kappas = kappas(products, 3, eps, per_tensor);
        let factors = kappas.iter().map(|kappa| smallvec![1.0, 1.0 - eta * kappa, eta]);
        Some((kappas.clone(), factors.collect()))
    })
}

/// The inner products of all pairs of lists.
#[pyfunction]
pub fn gram(py: Python<'_>, lists: Vec<List<'_>>, threads: usize) -> PyResult<Vec<Vec<f64>>> {
    let names: Vec<String> = (0..lists.len()).map(|i| format!("gradients[{i}]")).collect();
    let inputs: Vec<_> = names.iter().map(String::as_str).zip(&lists).collect();
    let mut sums = take(&inputs, &[])?.products(py, threads)?;
    if sums.is_empty() {
        sums = smallvec![0.0; lists.len() * lists.len()];
    }
    Ok(sums.chunks(lists.len().max(1)).map(<[f64]>::to_vec).collect())
}

/// The l1 norm of a gradient, and the square of its l2 norm: of those that are asked for; see `_core.pyi`.
#[pyfunction]
pub fn norms(py: Python<'_>, gradient: List<'_>, orders: Vec<u32>, threads: usize) -> PyResult<NormSums> {
    let powers = powers(&orders)?;
    take(&[("gradients", &gradient)], &[])?.norms(py, powers, threads)
}

/// The squares of a gradient's norm and of its distance from another, which becomes a copy of it; see `_core.pyi`.
#[pyfunction]
pub fn follow(py: Python<'_>, gradient: List<'_>, before: List<'_>, threads: usize) -> PyResult<[f64; 2]> {
    let inputs = [("gradients", &gradient), ("before", &before)];
    let mut lists = take(&inputs, &inputs[1..])?;
    all_or_none(&inputs)?;
    lists.follow(py, threads)
}

/// Writes to each list of `outputs` the sum of all lists, each times its factor.
#[pyfunction]
pub fn combine(
    py: Python<'_>,
    lists: Vec<List<'_>>,
    outputs: Vec<List<'_>>,
    factors: Vec<Vec<f64>>,
    threads: usize,
) -> PyResult<()> {
    if factors.len() != outputs.len() || factors.iter().any(|row| row.len() != lists.len()) {
        let message = format!(
            "weights have lengths {:?}, expected {} of {}: one for each list of gradients",
            factors.iter().map(Vec::len).collect::<Vec<_>>(),
            outputs.len(),
            lists.len()
        );
        return Err(PyValueError::new_err(message));
    }
    let named = |word: &str, many: usize| (0..many).map(|i| format!("{word}[{i}]")).collect::<Vec<_>>();
    let names = named("gradients", lists.len());
    let out = match outputs.len() {
        1 => vec!["out".into()],
        many => named("out", many),
    };
    let inputs: Vec<_> = names.iter().map(String::as_str).zip(&lists).collect();
    let outputs: Vec<_> = out.iter().map(String::as_str).zip(&outputs).collect();
    let all: Factors = factors.into_iter().flatten().collect();
    take(&inputs, &outputs)?.combine(py, threads, &all)
}

/// Moves the targets the share `tau` of the way to the sources; see `_core.pyi`.
#[pyfunction]
pub fn ema(
    py: Python<'_>,
    targets: List<'_>,
    sources: List<'_>,
    tau: &Bound<'_, PyAny>,
    threads: usize,
) -> PyResult<()> {
    let tau = share("tau", tau)?;
    let inputs = [("target", &targets), ("source", &sources)];
    let mut lists = take(&inputs, &inputs[..1])?;
    all_or_none(&inputs)?;
    lists.move_towards(py, tau, threads)
}

/// Writes `r - alpha * q` to r, and gives the square of its norm; see `_core.pyi`.
#[pyfunction]
pub fn descend(py: Python<'_>, r: List<'_>, q: List<'_>, alpha: f64, threads: usize) -> PyResult<f64> {
    let inputs = [("r", &r), ("q", &q)];
    take(&inputs, &inputs[..1])?.change(
        py,
        // SAFETY: two inputs, of which the first is the output.
        |positions| unsafe { gradients::apply(positions, Descend::<true> { alpha }, threads) },
        threads,
    )
}

/// Writes `x + alpha * p` to x and `z + beta * p` to p; see `_core.pyi`.
#[pyfunction]
pub fn advance(
    py: Python<'_>,
    x: List<'_>,
    p: List<'_>,
    z: List<'_>,
    alpha: f64,
    beta: f64,
    threads: usize,
) -> PyResult<()> {
    let inputs = [("x", &x), ("p", &p), ("z", &z)];
    take(&inputs, &inputs[..2])?.change(
        py,
        // SAFETY: three inputs, of which the first two are the outputs.
        |positions| unsafe { gradients::apply(positions, Advance { alpha, beta }, threads) },
        threads,
    )?;
    Ok(())
}

/// A step along the normalized momentum; see `_core.pyi`.
#[pyfunction]
pub fn normalized_step(
    py: Python<'_>,
    buffers: List<'_>,
    direction: List<'_>,
    params: List<'_>,
    momentum: f64,
    lr: f64,
    threads: usize,
) -> PyResult<f64> {
    let inputs = [
        ("momentum_buffer", &buffers),
        ("direction", &direction),
        ("params", &params),
    ];
    take(&inputs, &inputs[1..])?.change(
        py,
        // SAFETY: three inputs, of which the last two are the outputs.
        |positions| unsafe { gradients::normalized(positions, momentum, lr, threads) },
        threads,
    )
}

/// Refuses a place at which one of two lists, of one length, has a tensor and the other has none.
fn all_or_none([(one, ones), (other, others)]: &[Named; 2]) -> PyResult<()> {
    let mut pairs = ones.iter().zip(others.iter());
    match pairs.position(|(one, other)| one.is_none() != other.is_none()) {
        Some(i) => Err(PyValueError::new_err(format!(
            "one of {one}[{i}] and {other}[{i}] is None, expected both"
        ))),
        None => Ok(()),
    }
}

/// One for all positions, or one for each. The forward and the backward gradients are the last two of the lists.
fn kappas(products: &[Products], lists: usize, eps: f64, per_tensor: bool) -> SmallVec<[f64; 4]> {
    let of = |products: &Products| gradients::kappa(products, lists, lists - 2, lists - 1, eps);
    match per_tensor {
        true => products.iter().map(of).collect(),
        false => products
            .first()
            .map(|_| of(&gradients::total(products)))
            .into_iter()
            .collect(),
    }
}

/// Lists of tensors that fit together, taken in.
struct Lists<N> {
    call: Call<N>,
    positions: Vec<Position>,
    /// Which place in the lists each position is: places without a tensor are left out.
    places: Vec<usize>,
    count: usize,
}

/// A list by its name.
type Named<'a, 'py> = (&'a str, &'a List<'py>);
/// The tensors at one place, and what is done to each.
type Found = SmallVec<[Option<(View, Access)>; 4]>;

/// Takes in what is read, and what is written with the very tensors of a list that is read or with others. All of one
/// place have one shape and type; where an input has a tensor, so have all outputs.
fn take<'a>(inputs: &'a [Named], outputs: &'a [Named]) -> PyResult<Lists<impl Names + 'a>> {
    let all: SmallVec<[Named; 4]> = inputs.iter().chain(outputs).copied().collect();
    let count = all.first().map_or(0, |(_, list)| list.len());
    for (name, list) in &all {
        if list.len() != count {
            let (first, given) = (all[0].0, list.len());
            let message = format!("{name} has {given} tensors, expected {count}, as {first} has");
            return Err(PyValueError::new_err(message));
        }
    }
    let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    let name = move |owner: Owner| format!("{}[{}]", names[owner.argument as usize], owner.index);
    let mut lists = Lists {
        call: Call::new(name),
        positions: Vec::with_capacity(count),
        places: Vec::with_capacity(count),
        count,
    };
    lists.call.reserve(inputs.len() * count, outputs.len() * count);
    for place in 0..count {
        let found = lists.find(&all, inputs.len(), place)?;
        lists.add(&found, inputs.len(), place);
    }
    Ok(lists)
}

impl<N: Names> Lists<N> {
    /// The tensors at a place.
    fn find(&mut self, all: &[Named], inputs: usize, place: usize) -> PyResult<Found> {
        let mut found = Found::new();
        for (i, (_, list)) in all.iter().enumerate() {
            let Some(tensor) = &list[place] else {
                found.push(None);
                continue;
            };
            let same = |list: &Named| list.1[place].as_ref().is_some_and(|other| other.is(tensor));
            // A tensor that is read and written is taken once.
            if let Some(at) = all[..inputs.min(i)].iter().position(same) {
                found.push(found[at].clone());
                continue;
            }
            let access = match (i < inputs, all[inputs..].iter().any(same)) {
                (true, false) => Access::Reads,
                (true, true) => Access::Updates,
                (false, _) => Access::Writes,
            };
            let first = found.iter().flatten().next();
            let role = Role::new(access).like(first.map(|(view, _)| view)).in_place();
            let view = self.call.take(Owner::new(i, place), tensor, &role)?;
            found.push(Some((view, access)));
        }
        let missing = (inputs..found.len()).find(|&i| found[i].is_none());
        match missing {
            Some(i) if found[..inputs].iter().any(Option::is_some) => {
                let kind = "NoneType".into();
                Err(self
                    .call
                    .refuse(Owner::new(i, place), Problem::NotATensor { kind }))
            }
            _ => Ok(found),
        }
    }

    fn add(&mut self, found: &Found, inputs: usize, place: usize) {
        let Some((first, _)) = found.iter().flatten().next() else {
            return;
        };
        let (order, dtype, len) = (first.order(), first.float(), first.len);
        let mut pointers: SmallVec<[*mut u8; 4]> = SmallVec::new();
        for (i, each) in found.iter().enumerate() {
            let before = found[..i].iter().position(|other| is_same(other, each));
            pointers.push(match (each, before) {
                (None, _) => std::ptr::null_mut(),
                (Some(_), Some(before)) => pointers[before],
                (Some((view, access)), None) => self.call.stage(view, &order, *access),
            });
        }
        let position = Position {
            dtype,
            len,
            inputs: pointers[..inputs].into(),
            outputs: pointers[inputs..].into(),
        };
        self.positions.push(position);
        self.places.push(place);
    }

    fn products(&mut self, py: Python<'_>, threads: usize) -> PyResult<Products> {
        let positions = &self.positions;
        let products = self.call.run(py, threads, || {
            // SAFETY: the views are valid, and nothing writes there: `Call::run` saw to it.
            Some(gradients::total(&unsafe {
                gradients::products(positions, threads)
            }))
        })?;
        Ok(products.unwrap_or_default())
    }

    fn norms(&mut self, py: Python<'_>, powers: Powers, threads: usize) -> PyResult<NormSums> {
        let values = |position: &Position| Values {
            dtype: position.dtype,
            len: position.len,
            data: position.inputs[0].cast_const(),
        };
        let tensors: Vec<Values> = self.positions.iter().map(values).collect();
        // SAFETY: as in `products`.
        let kernel = || Some(unsafe { elementwise::norms(&tensors, powers, threads) });
        let all = self.call.run(py, threads, kernel)?.unwrap_or_default();
        Ok(all
            .iter()
            .fold([0.0; 2], |sum, own| [sum[0] + own[0], sum[1] + own[1]]))
    }

    fn follow(&mut self, py: Python<'_>, threads: usize) -> PyResult<[f64; 2]> {
        let positions = &self.positions;
        // SAFETY: as in `products`; both lists have tensors at the same places, and the second is written.
        let kernel = || Some(unsafe { gradients::follow(positions, threads) });
        Ok(self.call.run(py, threads, kernel)?.unwrap_or_default())
    }

    /// Runs a kernel that changes the outputs, with what [`gradients::apply`] is promised.
    fn change(
        &mut self,
        py: Python<'_>,
        kernel: impl FnOnce(&[Position]) -> f64 + Send,
        threads: usize,
    ) -> PyResult<f64> {
        let positions = &self.positions;
        let found = self.call.run(py, threads, || Some(kernel(positions)))?;
        Ok(found.unwrap_or_default())
    }

    /// Makes of the products at each position what is returned, and the factors by which all is combined: one row for
    /// all positions, or one for each.
    fn project(
        &mut self,
        py: Python<'_>,
        threads: usize,
        per_tensor: bool,
        make: impl Fn(&[Products]) -> Option<(SmallVec<[f64; 4]>, Vec<Factors>)> + Sync,
    ) -> PyResult<Option<Vec<f64>>> {
        let positions = &self.positions;
        let kappas = self.call.run(py, threads, || {
            // SAFETY: as in `products`.
            let products = unsafe { gradients::products(positions, threads) };
            let (kappas, mut factors) = make(&products)?;
            if let ([only], false) = (factors.as_slice(), per_tensor) {
                factors = vec![only.clone(); positions.len()];
            }
            // SAFETY: as above, and what is written is shared with nothing but an input at its place.
            unsafe { gradients::combine(positions, &factors, threads) };
            Some(kappas)
        })?;
        let Some(kappas) = kappas else {
            return Ok(None);
        };
        if !per_tensor {
            return Ok(Some(kappas.to_vec()));
        }
        let mut all = vec![0.0; self.count];
        self.places
            .iter()
            .zip(kappas)
            .for_each(|(&place, kappa)| all[place] = kappa);
        Ok(Some(all))
    }

    fn combine(&mut self, py: Python<'_>, threads: usize, factors: &Factors) -> PyResult<()> {
        let positions = &self.positions;
        let factors = vec![factors.clone(); positions.len()];
        self.call.run(py, threads, || {
            // SAFETY: as in `project`.
            unsafe { gradients::combine(positions, &factors, threads) };
            Some(())
        })?;
        Ok(())
    }

    fn move_towards(&mut self, py: Python<'_>, tau: f64, threads: usize) -> PyResult<()> {
        let positions = &self.positions;
        self.call.run(py, threads, || {
            // SAFETY: as in `project`; the first input is the output.
            unsafe { gradients::move_towards(positions, tau, threads) };
            Some(())
        })?;
        Ok(())
    }
}

/// Whether both stand for one tensor that was taken once.
fn is_same(one: &Option<(View, Access)>, other: &Option<(View, Access)>) -> bool {
    match (one, other) {
        (Some((one, access)), Some((other, _))) => *access == Access::Updates && one.is(other),
        _ => false,
    }
}
