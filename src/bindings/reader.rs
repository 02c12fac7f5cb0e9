//! Reading: torch tensors and NumPy arrays become views of memory, or the reason why not is told.

use std::sync::atomic::{AtomicBool, Ordering};

use numpy::npyffi::{NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType, PyWeakrefMethods, PyWeakrefReference};

use super::dlpack::{self, FromPyObject};
use super::errors::Problem;
use super::view::{Elements, View, Viewed, refuse};
use crate::kernels::matrix::Workspace;
use crate::kernels::storage::DType;

/// Reads tensors of whatever kind, remembering what it learned about their types.
#[derive(Default)]
pub struct Reader {
    kinds: Vec<(Py<PyType>, Kind)>,
    /// DLPack capsules own what the views of their tensors point to.
    capsules: Vec<Py<PyAny>>,
    /// The tensors that the last step had to ask about, in the order of their reading, and how many have been met again.
    known: Vec<Seen>,
    met: usize,
    /// Whether there is a next step, which can begin with what this one knows.
    is_resumed: bool,
}

/// A tensor that is not kept alive, so that whoever drops a state gets its memory, and where its data was.
type Seen = (Py<PyWeakrefReference>, usize);

/// What one step leaves to the next: memory to work in, and the tensors that count their versions, with where their data
/// was; states are free of lazy operations, too. Only new tensors or new data can differ, so the next step need not ask
/// again.
#[pyclass(module = "ferrostep._core")]
#[derive(Default)]
pub struct Known {
    tensors: Vec<Seen>,
    pub workspace: Workspace,
}

#[pymethods]
impl Known {
    #[new]
    fn new() -> Known {
        Known::default()
    }
}

/// How long a tensor lives beside the call that it is read for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Made for this very call.
    Fresh,
    Passing,
    /// A state: it comes again in the next step.
    Lasting,
}

type Own = PyOnceLock<(Py<PyType>, FromPyObject)>;

/// torch's own types, once each has been met: of nearly all tensors, what they are need not be asked again.
static OWN: [(&str, Own); 2] = [
    ("torch.Tensor", PyOnceLock::new()),
    ("torch.nn.parameter.Parameter", PyOnceLock::new()),
];

#[derive(Clone, Copy)]
enum Kind {
    Exchange(FromPyObject),
    Capsule,
    Numpy,
    Unknown,
}

static USE_EXCHANGE: AtomicBool = AtomicBool::new(true);

/// Whether torch tensors cross by the C exchange API where torch has it (default) or always as DLPack capsules, as
/// they do with torch before 2.10: for tests.
#[pyfunction]
pub fn use_exchange_api(yes: bool) {
    USE_EXCHANGE.store(yes, Ordering::Relaxed);
}

/// Whether all tensors are as they lie in memory; see `_core.pyi`.
#[pyfunction]
pub fn lie_in_memory(tensors: &Bound<'_, PyTuple>) -> PyResult<bool> {
    let mut reader = Reader::default();
    for tensor in tensors {
        let viewed = reader.view(Elements::Floats, &tensor, false, Lifetime::Passing)?;
        if viewed.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Reader {
    /// A reader that begins with what the last one knew.
    pub fn resume(known: &mut Known) -> Reader {
        Reader {
            known: std::mem::take(&mut known.tensors),
            is_resumed: true,
            ..Reader::default()
        }
    }

    /// Leaves what this reader knows to the next.
    pub fn leave(&mut self, known: &mut Known) {
        self.known.truncate(self.met);
        known.tensors = std::mem::take(&mut self.known);
    }

    /// The memory of a tensor or array, to be written or only read. Lasting tensors are remembered from one step to the
    /// next; of parameters, which may change their `.data`, only that they count their versions, and of gradients, which
    /// come and go, nothing. Of fresh ones nothing is asked, as they are no views.
    ///
    /// The view is valid while the object lives, keeps its memory, and the reader lives. (Another thread that
    /// meanwhile replaces the memory, by `param.data = ...`, is the caller's mistake.)
    #[inline]
    pub fn view(
        &mut self,
        elements: Elements,
        object: &Bound<'_, PyAny>,
        writable: bool,
        lifetime: Lifetime,
    ) -> PyResult<Viewed> {
        let viewed = match self.kind(&object.get_type())? {
            Kind::Numpy => return numpy_view(elements, object.cast::<PyUntypedArray>()?, writable),
            Kind::Unknown => {
                let kind = object.get_type().name()?.to_string();
                return refuse(Problem::NotATensor { kind });
            }
            Kind::Exchange(from_object) => dlpack::exchanged_view(elements, object, from_object)?,
            Kind::Capsule => {
                let (view, capsule) = dlpack::capsule_view(elements, object)?;
                self.capsules.extend(capsule);
                view
            }
        };
        let view = match viewed {
            Ok(view) if lifetime != Lifetime::Fresh => view,
            _ => return Ok(viewed),
        };
        let lasting = lifetime == Lifetime::Lasting;
        let is_known = (lasting || writable) && self.remembers(object, &view);
        if is_known && lasting {
            return Ok(Ok(view));
        }
        if object.call_method0(intern!(object.py(), "is_neg"))?.is_truthy()? {
            return refuse(Problem::NegativeBit);
        }
        if (lasting || writable) && !is_known {
            if counts_versions(object) {
                self.remember(object, &view)?;
            } else if writable && !is_inference_mode(object.py())? {
                return refuse(Problem::Inference);
            }
        }
        Ok(Ok(view))
    }

    /// Whether the tensor and the place of its data are those of the last step.
    #[inline]
    fn remembers(&mut self, object: &Bound<'_, PyAny>, view: &View) -> bool {
        let same = |(tensor, data): &Seen| {
            let tensor = tensor.bind(object.py());
            *data == view.data as usize && tensor.upgrade().is_some_and(|tensor| tensor.is(object))
        };
        let found = self.known.get(self.met).is_some_and(same);
        self.met += usize::from(found);
        found
    }

    fn remember(&mut self, object: &Bound<'_, PyAny>, view: &View) -> PyResult<()> {
        if !self.is_resumed {
            return Ok(());
        }
        self.known.truncate(self.met);
        let tensor = PyWeakrefReference::new(object)?;
        self.known.push((tensor.unbind(), view.data as usize));
        self.met += 1;
        Ok(())
    }

    #[inline]
    fn kind(&mut self, ty: &Bound<'_, PyType>) -> PyResult<Kind> {
        if USE_EXCHANGE.load(Ordering::Relaxed) {
            let known = OWN.iter().filter_map(|(_, known)| known.get(ty.py()));
            for (own, from_object) in known {
                if own.is(ty) {
                    return Ok(Kind::Exchange(*from_object));
                }
            }
        }
        match self.kinds.iter().find(|(known, _)| known.is(ty)) {
            Some((_, kind)) => Ok(*kind),
            None => self.learn(ty),
        }
    }

    #[cold]
    fn learn(&mut self, ty: &Bound<'_, PyType>) -> PyResult<Kind> {
        let py = ty.py();
        let is_torch = ty.hasattr(intern!(py, "is_neg"))? && ty.hasattr(intern!(py, "__dlpack__"))?;
        let kind = if is_torch {
            match ty.getattr(intern!(py, "__dlpack_c_exchange_api__")) {
                Ok(capsule) if USE_EXCHANGE.load(Ordering::Relaxed) => {
                    dlpack::exchange_function(&capsule)?.map_or(Kind::Capsule, Kind::Exchange)
                }
                _ => Kind::Capsule,
            }
        // A mask would be lost.
        } else if ty.is_subclass_of::<PyUntypedArray>()? && !ty.hasattr(intern!(py, "mask"))? {
            Kind::Numpy
        } else {
            Kind::Unknown
        };
        if let Kind::Exchange(from_object) = kind {
            let name = ty.fully_qualified_name()?;
            if let Some((_, known)) = OWN.iter().find(|(own, _)| name == *own) {
                let _ = known.set(py, (ty.clone().unbind(), from_object));
            }
        }
        self.kinds.push((ty.clone().unbind(), kind));
        Ok(kind)
    }
}

/// Whether the tensor has a version to be raised by a write; those that were made in inference mode may have none, even
/// where other data has taken the place of theirs.
fn counts_versions(tensor: &Bound<'_, PyAny>) -> bool {
    tensor.getattr(intern!(tensor.py(), "_version")).is_ok()
}

#[cold]
fn is_inference_mode(py: Python<'_>) -> PyResult<bool> {
    py.import("torch")?
        .call_method0("is_inference_mode_enabled")?
        .extract()
}

fn numpy_view(elements: Elements, array: &Bound<'_, PyUntypedArray>, writable: bool) -> PyResult<Viewed> {
    let descriptor = array.dtype();
    let name: String = descriptor.getattr(intern!(array.py(), "name"))?.extract()?;
    let stored = stored(&name).filter(|&(dtype, _)| elements.admit(dtype));
    let Some((dtype, complex)) = stored else {
        return refuse(Problem::DType {
            dtype: name,
            expected: elements.name().into(),
        });
    };
    if descriptor.is_native_byteorder() == Some(false) {
        return refuse(Problem::ByteOrder);
    }
    // SAFETY: the object is an array, so the pointer is to a PyArrayObject.
    let (data, flags) = unsafe {
        (
            (*array.as_array_ptr()).fields.data.cast::<u8>(),
            (*array.as_array_ptr()).fields.flags,
        )
    };
    let itemsize = descriptor.itemsize() as isize;
    let strides_fit = array.strides().iter().all(|stride| stride % itemsize == 0);
    if writable && flags & NPY_ARRAY_WRITEABLE == 0 {
        return refuse(Problem::ReadOnly);
    }
    if flags & NPY_ARRAY_ALIGNED == 0 || !strides_fit {
        return refuse(Problem::Misaligned);
    }
    let shape = array.shape().iter().map(|&size| size as i64).collect();
    let strides = array
        .strides()
        .iter()
        .map(|&stride| (stride / itemsize) as i64)
        .collect();
    Ok(Ok(View::new(data, dtype, complex, shape, strides)))
}

/// The elements' type by NumPy's name, and whether two of them make a complex number.
fn stored(name: &str) -> Option<(DType, bool)> {
    match name {
        "complex64" => Some((DType::F32, true)),
        "complex128" => Some((DType::F64, true)),
        real => DType::named(real).map(|dtype| (dtype, false)),
    }
}
