//! One call over the boundary. What it reads, updates and writes is taken by name: read, compared and claimed before
//! anything changes. Then the kernel runs without the GIL on that memory or on copies of it, and autograd is told.

use numpy::PyUntypedArray;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::errors::{Place, Problem, Refusal};
use super::finish;
pub use super::overlap::Owner;
use super::overlap::{self, Claim};
use super::reader::{Lifetime, Reader};
use super::view::{Elements, View};
use crate::kernels::storage::{Access, DType, Staged};

/// What errors call the tensors of a call.
pub trait Names {
    fn place(&self, owner: Owner) -> Place;
}

impl<F: Fn(Owner) -> String> Names for F {
    fn place(&self, owner: Owner) -> Place {
        Place::named(self(owner))
    }
}

/// What a call does to a tensor, and what the tensor is to be like.
#[derive(Clone, Copy)]
pub struct Role<'a> {
    pub access: Access,
    elements: Elements,
    shape: Option<&'a [i64]>,
    dtype: Option<DType>,
    lifetime: Lifetime,
    in_place: bool,
}

impl<'a> Role<'a> {
    pub fn new(access: Access) -> Role<'a> {
        Role {
            access,
            elements: Elements::Floats,
            shape: None,
            dtype: None,
            lifetime: Lifetime::Passing,
            in_place: false,
        }
    }

    /// Of the shape and type of another, if there is one.
    pub fn like(self, other: Option<&'a View>) -> Self {
        Role {
            shape: other.map(|view| &view.shape[..]),
            dtype: other.map(|view| view.dtype),
            ..self
        }
    }

    pub fn shape(self, shape: &'a [i64]) -> Self {
        let shape = Some(shape);
        Role { shape, ..self }
    }

    pub fn dtype(self, dtype: DType) -> Self {
        let dtype = Some(dtype);
        Role { dtype, ..self }
    }

    /// Elements other than floating-point numbers.
    pub fn elements(self, elements: Elements) -> Self {
        Role { elements, ..self }
    }

    /// A state: it comes again in the next step, and no graph of autograd has it.
    pub fn state(self) -> Self {
        let lifetime = Lifetime::Lasting;
        Role { lifetime, ..self }
    }

    /// Made for this call, so that no graph of autograd has it.
    pub fn fresh(self) -> Self {
        let lifetime = Lifetime::Fresh;
        Role { lifetime, ..self }
    }

    /// One that is read and one that is written may be in the same place, element by element, if both have one number
    /// and this is said of both.
    pub fn in_place(self) -> Self {
        let in_place = true;
        Role { in_place, ..self }
    }

    /// Why a tensor does not fit.
    #[inline]
    fn misfit(&self, view: &View) -> Option<Problem> {
        if let Some(expected) = self.shape
            && view.shape[..] != *expected
        {
            return Some(Problem::Shape {
                shape: view.shape.clone(),
                expected: expected.into(),
            });
        }
        match self.dtype {
            Some(expected) if view.dtype != expected => Some(Problem::DType {
                dtype: view.dtype.name().into(),
                expected: expected.name().into(),
            }),
            _ if self.access.writes() && view.overlaps_itself() => Some(Problem::OverlapsItself),
            _ => None,
        }
    }
}

/// A call in the making: `take` what it needs, `stage` it, then `run` once.
pub struct Call<N> {
    pub names: N,
    pub reader: Reader,
    writes: Vec<Claim>,
    reads: Vec<Claim>,
    staged: Vec<Staged>,
    /// Whether the copies have been made.
    is_loaded: bool,
    /// What the views point into.
    taken: Vec<Py<PyAny>>,
    /// Tensors of which autograd is to know that they have changed.
    changed: Vec<Py<PyAny>>,
    has_run: bool,
}

impl<N: Names> Call<N> {
    pub fn new(names: N) -> Self {
        Call {
            names,
            reader: Reader::default(),
            writes: Vec::new(),
            reads: Vec::new(),
            staged: Vec::new(),
            is_loaded: false,
            taken: Vec::new(),
            changed: Vec::new(),
            has_run: false,
        }
    }

    /// Makes room for so many tensors.
    pub fn reserve(&mut self, reads: usize, writes: usize) {
        self.reads.reserve(reads);
        self.writes.reserve(writes);
        self.taken.reserve(reads + writes);
    }

    /// The memory of a tensor that fits its role. It is valid while the call lives.
    pub fn take(&mut self, owner: Owner, tensor: &Bound<'_, PyAny>, role: &Role<'_>) -> PyResult<View> {
        let writes = role.access.writes();
        let viewed = self.reader.view(role.elements, tensor, writes, role.lifetime)?;
        let view = viewed.map_err(|problem| self.refuse(owner, *problem))?;
        if let Some(problem) = role.misfit(&view) {
            return Err(self.refuse(owner, problem));
        }
        if view.len > 0 {
            let claim = Claim::new(&view, owner, role.in_place);
            match writes {
                true => self.writes.push(claim),
                false => self.reads.push(claim),
            }
        }
        if writes && role.lifetime == Lifetime::Passing && !tensor.is_instance_of::<PyUntypedArray>() {
            self.changed.push(tensor.clone().unbind());
        }
        self.taken.push(tensor.clone().unbind());
        Ok(view)
    }

    /// Memory with the tensor's elements in the order of dimensions `order`: its own where they lie so, else a copy's.
    pub fn stage(&mut self, view: &View, order: &[usize], access: Access) -> *mut u8 {
        if view.is_dense_in(order) {
            return view.data;
        }
        let mut staged = Staged::new(view.strided(order), access);
        let data = staged.data();
        self.staged.push(staged);
        data
    }

    /// Raises if tensors share memory of which some is written.
    pub fn check_overlaps(&mut self) -> PyResult<()> {
        match overlap::find(&mut self.writes, &self.reads) {
            Some((one, other)) => {
                let other = self.names.place(other);
                Err(self.refuse(one, Problem::Overlaps { other }))
            }
            None => Ok(()),
        }
    }

    /// Runs a kernel that only reads, without the GIL, on up to `threads` threads where copies are made.
    pub fn read<R: Send>(&mut self, py: Python<'_>, threads: usize, kernel: impl FnOnce() -> R + Send) -> R {
        let is_loaded = std::mem::replace(&mut self.is_loaded, true);
        let staged = &mut self.staged;
        py.detach(|| {
            if !is_loaded {
                // SAFETY: as in `run`; the copies are this call's own.
                staged.iter_mut().for_each(|copy| unsafe { copy.load(threads) });
            }
            kernel()
        })
    }

    /// Runs the kernel without the GIL, on up to `threads` threads where copies are made, and tells autograd of what
    /// has changed. A kernel that returns None has changed nothing.
    ///
    /// Raises, with nothing changed, if tensors share memory of which some is written.
    pub fn run<R: Send>(
        &mut self,
        py: Python<'_>,
        threads: usize,
        kernel: impl FnOnce() -> Option<R> + Send,
    ) -> PyResult<Option<R>> {
        self.check_overlaps()?;
        let (staged, is_loaded) = (&mut self.staged, self.is_loaded);
        // Only what the views point into is used without the GIL, and `self.taken` keeps that alive.
        let result = py.detach(|| {
            if !is_loaded {
                // SAFETY: the views are valid while `self` lives (see `Reader::view`), and nothing else has what is
                // written.
                staged.iter_mut().for_each(|copy| unsafe { copy.load(threads) });
            }
            let result = kernel()?;
            // SAFETY: as above.
            staged.iter_mut().for_each(|copy| unsafe { copy.store(threads) });
            Some(result)
        });
        self.has_run = result.is_some();
        if self.has_run && !self.changed.is_empty() {
            finish::tell(py, &PyList::new(py, &self.changed)?)?;
        }
        Ok(result)
    }

    /// Whether a kernel has run and changed what it writes.
    pub fn has_run(&self) -> bool {
        self.has_run
    }

    #[cold]
    pub fn refuse(&self, owner: Owner, problem: Problem) -> PyErr {
        let place = self.names.place(owner);
        Refusal { place, problem }.into()
    }
}
