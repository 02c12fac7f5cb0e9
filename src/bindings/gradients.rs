//! Lists of gradients for Python.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use smallvec::{SmallVec, smallvec};

use super::errors::{Place, Problem, Refusal};
use super::finish;
use super::overlap::{self, Claim};
use super::tensor::{Reader, View};
use crate::kernels::gradients::{self, Factors, Position, Products};
use crate::kernels::storage::Staged;

type List<'py> = Vec<Option<Bound<'py, PyAny>>>;

/// Subtracts from `backward` what it has along `forward`; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (forward, backward, *, scale, eps, per_tensor, threads))]
pub fn orthogonal(
    py: Python<'_>,
    forward: List<'_>,
    backward: List<'_>,
    scale: f64,
    eps: f64,
    per_tensor: bool,
    threads: usize,
) -> PyResult<Vec<f64>> {
    check("scale", scale)?;
    check_eps(eps)?;
    let mut lists = Lists::read(
        &[("forward", &forward), ("backward", &backward)],
        &[("backward", &backward)],
    )?;
    let kappas = lists.project(py, threads, per_tensor, |products| {
        let kappas = kappas(products, 2, eps, per_tensor);
        let factors = kappas.iter().map(|kappa| smallvec![-scale * kappa, scale]);
        Some((kappas.clone(), factors.collect()))
    });
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
    eta: f64,
    eps: f64,
    per_tensor: bool,
    skip_nonfinite: bool,
    threads: usize,
) -> PyResult<Option<Vec<f64>>> {
    check("eta", eta)?;
    check_eps(eps)?;
    let inputs = [("extra", &extra), ("forward", &forward), ("backward", &backward)];
    let mut lists = Lists::read(&inputs, &[("out", &outputs)])?;
    Ok(lists.project(py, threads, per_tensor, |products| {
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
    }))
}

/// The inner products of all pairs of lists.
#[pyfunction]
pub fn gram(py: Python<'_>, lists: Vec<List<'_>>, threads: usize) -> PyResult<Vec<Vec<f64>>> {
    let names: Vec<String> = (0..lists.len()).map(|i| format!("gradients[{i}]")).collect();
    let inputs: Vec<_> = names.iter().map(String::as_str).zip(&lists).collect();
    let mut read = Lists::read(&inputs, &[])?;
    let mut sums = read.products(py, threads);
    if sums.is_empty() {
        sums = smallvec![0.0; lists.len() * lists.len()];
    }
    Ok(sums.chunks(lists.len().max(1)).map(<[f64]>::to_vec).collect())
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
    let (names, out) = (named("gradients", lists.len()), named("out", outputs.len()));
    let inputs: Vec<_> = names.iter().map(String::as_str).zip(&lists).collect();
    let outputs: Vec<_> = out.iter().map(String::as_str).zip(&outputs).collect();
    let mut read = Lists::read(&inputs, &outputs)?;
    let all: Factors = factors.into_iter().flatten().collect();
    read.combine(py, threads, &all);
    Ok(())
}

/// Moves the targets the share `tau` of the way to the sources; see `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (targets, sources, tau, threads, *, changed=None))]
pub fn ema(
    py: Python<'_>,
    targets: List<'_>,
    sources: List<'_>,
    tau: f64,
    threads: usize,
    changed: Option<Bound<'_, PyList>>,
) -> PyResult<()> {
    if !(0.0..=1.0).contains(&tau) {
        return Err(PyValueError::new_err(format!(
            "Invalid tau: {tau}; expected 0 <= tau <= 1"
        )));
    }
    let inputs = [("target", &targets), ("source", &sources)];
    let mut lists = Lists::read(&inputs, &[("target", &targets)])?;
    if let Some(i) = (0..targets.len()).find(|&i| targets[i].is_none() != sources[i].is_none()) {
        return Err(PyValueError::new_err(format!(
            "one of target[{i}] and source[{i}] is None, expected both"
        )));
    }
    lists.move_towards(py, tau, threads);
    finish::tell(py, changed.as_ref())
}

fn check(name: &str, value: f64) -> PyResult<()> {
    match value.is_finite() {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!(
            "Invalid {name}: {value}; expected a finite number"
        ))),
    }
}

fn check_eps(eps: f64) -> PyResult<()> {
    match eps >= 0.0 && eps.is_finite() {
        true => Ok(()),
        false => Err(PyValueError::new_err(format!(
            "Invalid eps: {eps}; expected a number of at least 0"
        ))),
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

/// Lists of tensors that fit together, read.
struct Lists {
    positions: Vec<Position>,
    /// Which place in the lists each position is: places without a tensor are left out.
    places: Vec<usize>,
    count: usize,
    staged: Vec<Staged>,
    /// Keeps the views valid.
    _reader: Reader,
}

type Named<'a, 'py> = (&'a str, &'a List<'py>);
/// Where a tensor comes from: the list (inputs first) and the place in it.
type Owner = (usize, usize);

impl Lists {
    fn read(inputs: &[Named], outputs: &[Named]) -> PyResult<Lists> {
        let all: SmallVec<[Named; 4]> = inputs.iter().chain(outputs).copied().collect();
        let count = all.first().map_or(0, |(_, list)| list.len());
        for (name, list) in &all {
            if list.len() != count {
                let (first, given) = (all[0].0, list.len());
                let message = format!("{name} has {given} tensors, expected {count}, as {first} has");
                return Err(PyValueError::new_err(message));
            }
        }
        let mut lists = Lists {
            positions: Vec::with_capacity(count),
            places: Vec::with_capacity(count),
            count,
            staged: Vec::new(),
            _reader: Reader::default(),
        };
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        for place in 0..count {
            let views = lists.views(&all, inputs.len(), place)?;
            let written = &views[inputs.len()..];
            for (list, view) in views.iter().enumerate() {
                let Some(view) = view else { continue };
                let is = |other: &Option<View>| {
                    other
                        .as_ref()
                        .is_some_and(|other| other.data == view.data && other.strides == view.strides)
                };
                if list >= inputs.len() {
                    writes.push(Claim::new(view, (list, place)));
                } else if !outputs.is_empty() && !written.iter().any(is) {
                    reads.push(Claim::new(view, (list, place)));
                }
            }
            lists.add(&views, inputs.len(), place);
        }
        let name = |(list, place): Owner| Place::named(format!("{}[{place}]", all[list].0));
        match overlap::find(&mut writes, &reads) {
            None => Ok(lists),
            Some((one, other)) => Err(Refusal {
                place: name(one),
                problem: Problem::Overlaps { other: name(other) },
            }
            .into()),
        }
    }

    /// The tensors at a place, checked.
    fn views(&mut self, all: &[Named], inputs: usize, place: usize) -> PyResult<SmallVec<[Option<View>; 4]>> {
        let mut views: SmallVec<[Option<View>; 4]> = SmallVec::new();
        for (i, (name, list)) in all.iter().enumerate() {
            let Some(tensor) = &list[place] else {
                views.push(None);
                continue;
            };
            let refuse = |problem| Refusal {
                place: Place::named(format!("{name}[{place}]")),
                problem,
            };
            // A tensor that is read and written is asked once.
            let same = |list: &Named| list.1[place].as_ref().is_some_and(|other| other.is(tensor));
            if let Some(at) = all[..inputs.min(i)].iter().position(same) {
                views.push(views[at].clone());
                continue;
            }
            let writes = i >= inputs || all[inputs..].iter().any(same);
            let view = match self._reader.view(tensor, writes, false)? {
                Ok(view) => view,
                Err(problem) => return Err(refuse(*problem).into()),
            };
            let first = views.iter().flatten().next();
            if let Some(problem) = first.and_then(|first| view.unlike(first)) {
                return Err(refuse(problem).into());
            }
            if writes && view.overlaps_itself() {
                return Err(refuse(Problem::OverlapsItself).into());
            }
            views.push(Some(view));
        }
        let missing = (inputs..views.len()).find(|&i| views[i].is_none());
        match missing {
            Some(i) if views[..inputs].iter().any(Option::is_some) => {
                let kind = "NoneType".into();
                let place = Place::named(format!("{}[{place}]", all[i].0));
                let problem = Problem::NotATensor { kind };
                Err(Refusal { place, problem }.into())
            }
            _ => Ok(views),
        }
    }

    fn add(&mut self, views: &[Option<View>], inputs: usize, place: usize) {
        let Some(first) = views.iter().flatten().next() else {
            return;
        };
        let (order, dtype, len) = (first.order(), first.dtype, first.len);
        let mut pointers = views.iter().enumerate().map(|(i, view)| match view {
            None => std::ptr::null_mut(),
            Some(view) if view.is_dense_in(&order) => view.data,
            Some(view) => {
                self.staged.push(Staged::new(view.strided(&order), i >= inputs));
                self.staged.last_mut().map_or(std::ptr::null_mut(), Staged::data)
            }
        });
        let position = Position {
            dtype,
            len,
            inputs: pointers.by_ref().take(inputs).collect(),
            outputs: pointers.collect(),
        };
        self.positions.push(position);
        self.places.push(place);
    }

    fn products(&mut self, py: Python<'_>, threads: usize) -> Products {
        py.detach(|| {
            self.load(threads);
            // SAFETY: the views are valid while the caller's lists hold the tensors and `self` the reader.
            gradients::total(&unsafe { gradients::products(&self.positions, threads) })
        })
    }

    /// Makes of the products at each position what is returned, and the factors by which all is combined: one row for
    /// all positions, or one for each.
    fn project(
        &mut self,
        py: Python<'_>,
        threads: usize,
        per_tensor: bool,
        make: impl Fn(&[Products]) -> Option<(SmallVec<[f64; 4]>, Vec<Factors>)> + Sync,
    ) -> Option<Vec<f64>> {
        let kappas = py.detach(|| {
            self.load(threads);
            // SAFETY: as in `products`.
            let products = unsafe { gradients::products(&self.positions, threads) };
            let (kappas, mut factors) = make(&products)?;
            if let ([only], false) = (factors.as_slice(), per_tensor) {
                factors = vec![only.clone(); self.positions.len()];
            }
            // SAFETY: as above, and `read` saw to it that what is written is shared with nothing but an input at its
            // place.
            unsafe { gradients::combine(&self.positions, &factors, threads) };
            self.store(threads);
            Some(kappas)
        })?;
        if !per_tensor {
            return Some(kappas.to_vec());
        }
        let mut all = vec![0.0; self.count];
        self.places
            .iter()
            .zip(kappas)
            .for_each(|(&place, kappa)| all[place] = kappa);
        Some(all)
    }

    fn combine(&mut self, py: Python<'_>, threads: usize, factors: &Factors) {
        let factors = vec![factors.clone(); self.positions.len()];
        py.detach(|| {
            self.load(threads);
            // SAFETY: as in `project`.
            unsafe { gradients::combine(&self.positions, &factors, threads) };
            self.store(threads);
        });
    }

    fn move_towards(&mut self, py: Python<'_>, tau: f64, threads: usize) {
        for position in &mut self.positions {
            position.inputs[0] = position.outputs[0]; // copies of one tensor, if they are copies
        }
        py.detach(|| {
            self.load(threads);
            // SAFETY: as in `project`; the first input is the output.
            unsafe { gradients::move_towards(&self.positions, tau, threads) };
            self.store(threads);
        });
    }

    fn load(&mut self, threads: usize) {
        // SAFETY: the views are valid, as in `products`.
        self.staged
            .iter_mut()
            .for_each(|copy| unsafe { copy.load(threads) });
    }

    fn store(&mut self, threads: usize) {
        // SAFETY: as above, and what is written belongs to nothing else.
        self.staged
            .iter_mut()
            .for_each(|copy| unsafe { copy.store(threads) });
    }
}
