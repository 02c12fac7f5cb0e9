//! torch tensors and NumPy arrays as typed views of memory: the only place that takes raw pointers from Python.
//!
//! torch tensors cross by the DLPack C exchange API, some 50 ns each; torch before 2.10 lacks it, there they cross as
//! DLPack capsules. What both would let through unnoticed is checked here: lazily negated or conjugated views, and
//! tensors without memory.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use numpy::npyffi::{NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyType, PyWeakrefMethods, PyWeakrefReference};
use smallvec::SmallVec;

use super::errors::Problem;
use crate::kernels::matrix::Workspace;
use crate::kernels::storage::{Float, Strided};

/// Sizes or strides, without an allocation up to the dimensions of a convolution.
pub type Dims = SmallVec<[i64; 4]>;

/// A tensor's memory. Complex numbers appear as a last dimension of two.
#[derive(Clone, Debug)]
pub struct View {
    pub data: *mut u8,
    pub dtype: Float,
    pub shape: Dims,
    /// In elements.
    pub strides: Dims,
    pub len: usize,
}

impl View {
    fn new(data: *mut u8, dtype: Float, complex: bool, mut shape: Dims, mut strides: Dims) -> View {
        if complex {
            strides.iter_mut().for_each(|stride| *stride *= 2);
            shape.push(2);
            strides.push(1);
        }
        let len = shape.iter().product::<i64>() as usize;
        View {
            data,
            dtype,
            shape,
            strides,
            len,
        }
    }
}

impl View {
    /// The dimensions from the largest stride to the smallest.
    pub fn order(&self) -> SmallVec<[usize; 4]> {
        let mut order: SmallVec<[usize; 4]> = (0..self.shape.len()).collect();
        if !self.is_contiguous() {
            order.sort_by_key(|&dim| std::cmp::Reverse((self.strides[dim].abs(), self.shape[dim])));
        }
        order
    }

    /// Whether the elements lie without gaps in the order of dimensions `order`.
    pub fn is_dense_in(&self, order: &[usize]) -> bool {
        let mut expected = 1;
        order.iter().rev().all(|&dim| {
            let fits = self.shape[dim] == 1 || self.strides[dim] == expected;
            expected *= self.shape[dim];
            fits
        }) || self.len == 0
    }

    /// Whether the elements lie without gaps in the order of the dimensions.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(&size, &stride)| {
                let fits = size == 1 || stride == expected;
                expected *= size;
                fits
            })
    }

    /// Whether several elements may have the same place: a dimension that does not step over the smaller ones.
    pub fn overlaps_itself(&self) -> bool {
        let mut reach = 0;
        self.len > 1
            && !self.is_contiguous()
            && self
                .order()
                .iter()
                .rev()
                .filter(|&&dim| self.shape[dim] > 1)
                .any(|&dim| {
                    let stride = self.strides[dim].abs();
                    let overlaps = stride <= reach;
                    reach += stride * (self.shape[dim] - 1);
                    overlaps
                })
    }

    /// Why it does not fit to a tensor that is to have its shape and type.
    pub fn unlike(&self, other: &View) -> Option<Problem> {
        if self.shape != other.shape {
            return Some(Problem::Shape {
                shape: self.shape.clone(),
                expected: other.shape.clone(),
            });
        }
        (self.dtype != other.dtype).then(|| Problem::DType {
            dtype: self.dtype.name().into(),
            expected: other.dtype.name().into(),
        })
    }

    /// The memory with its dimensions in the order `order`.
    pub fn strided(&self, order: &[usize]) -> Strided {
        Strided {
            data: self.data,
            item: self.dtype.size(),
            shape: order.iter().map(|&dim| self.shape[dim]).collect(),
            strides: order.iter().map(|&dim| self.strides[dim]).collect(),
        }
    }

    /// The address of every element.
    pub fn addresses(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len).map(|mut index| {
            let mut offset = 0;
            for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
                offset += (index as i64 % size) * stride;
                index /= size as usize;
            }
            (self.data as usize).wrapping_add_signed(offset as isize * self.dtype.size() as isize)
        })
    }
}

/// A number kept in a tensor: the step count.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    data: *mut u8,
    is_f64: bool,
    value: f64,
}

// SAFETY: written by the one thread that runs the step; whoever made the view keeps the memory valid.
unsafe impl Sync for Counter {}

impl Counter {
    /// The counter in a one-element view of f32 or f64.
    pub fn read(view: &View) -> Option<Counter> {
        let value = match (view.len, view.dtype) {
            // SAFETY: the view is valid and has one element of the type.
            (1, Float::F32) => unsafe { view.data.cast::<f32>().read() as f64 },
            // SAFETY: as above.
            (1, Float::F64) => unsafe { view.data.cast::<f64>().read() },
            _ => return None,
        };
        Some(Counter {
            data: view.data,
            is_f64: view.dtype == Float::F64,
            value,
        })
    }

    pub fn value(&self) -> f64 {
        self.value
    }

    /// Writes the next value.
    ///
    /// # Safety
    /// The tensor that the counter was read from is still alive.
    pub unsafe fn advance(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.is_f64 {
                true => self.data.cast::<f64>().write(self.value + 1.0),
                false => self.data.cast::<f32>().write((self.value + 1.0) as f32),
            }
        }
    }
}

/// A tensor's memory, or why it cannot be had.
pub type Viewed = Result<View, Box<Problem>>;

fn refuse(problem: Problem) -> PyResult<Viewed> {
    Ok(Err(Box::new(problem)))
}

/// Reads tensors of whatever kind, remembering what it learned about their types.
#[derive(Default)]
pub struct Reader {
    kinds: Vec<(Py<PyType>, Kind)>,
    /// DLPack capsules own what the views of their tensors point to.
    capsules: Vec<Py<PyAny>>,
    /// The lasting tensors of the last step in the order of their reading, and how many of them have been met again.
    known: Vec<Seen>,
    met: usize,
}

/// A tensor that is not kept alive, so that whoever drops a state gets its memory, and where its data was.
type Seen = (Py<PyWeakrefReference>, usize);

/// What one step leaves to the next: memory to work in, and the states found to be free of lazy operations, and where
/// their data was. Only a new tensor or new data can have one, so the next step need not ask again.
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

/// What a tensor's elements are to be.
#[derive(Clone, Copy)]
pub enum Elements {
    Floats,
    /// The lower halves of float32 numbers.
    Int16,
}

impl Elements {
    /// How elements of a type of this name are stored, and whether in pairs. Lower halves are moved, but not looked at,
    /// outside the kernel that joins them to the upper ones: any type of 16 bits serves.
    fn stored(self, name: &str) -> Option<(Float, bool)> {
        match (self, name) {
            (Elements::Int16, "int16") => Some((Float::Bf16, false)),
            (Elements::Int16, _) => None,
            (Elements::Floats, "float32") => Some((Float::F32, false)),
            (Elements::Floats, "float64") => Some((Float::F64, false)),
            (Elements::Floats, "float16") => Some((Float::F16, false)),
            (Elements::Floats, "bfloat16") => Some((Float::Bf16, false)),
            (Elements::Floats, "complex64") => Some((Float::F32, true)),
            (Elements::Floats, "complex128") => Some((Float::F64, true)),
            _ => None,
        }
    }

    fn names(self) -> &'static str {
        match self {
            Elements::Floats => "float32, float64, bfloat16 or float16",
            Elements::Int16 => "int16",
        }
    }
}

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

impl Reader {
    /// A reader that begins with what the last one knew.
    pub fn resume(known: &mut Known) -> Reader {
        Reader {
            known: std::mem::take(&mut known.tensors),
            ..Reader::default()
        }
    }

    /// Leaves what this reader knows to the next.
    pub fn leave(&mut self, known: &mut Known) {
        self.known.truncate(self.met);
        known.tensors = std::mem::take(&mut self.known);
    }

    /// The memory of a tensor or array, to be written or only read. `lasting` tensors (states) are remembered from one
    /// step to the next; of others (gradients come and go, parameters change their `.data`) all is asked each time.
    ///
    /// The view is valid while the object lives, keeps its memory, and the reader lives. (Another thread that
    /// meanwhile replaces the memory, by `param.data = ...`, is the caller's mistake.)
    pub fn view(&mut self, object: &Bound<'_, PyAny>, writable: bool, lasting: bool) -> PyResult<Viewed> {
        self.view_of(Elements::Floats, object, writable, lasting)
    }

    /// As `view`, of elements that may be other ones.
    pub fn view_of(
        &mut self,
        elements: Elements,
        object: &Bound<'_, PyAny>,
        writable: bool,
        lasting: bool,
    ) -> PyResult<Viewed> {
        let viewed = match self.kind(&object.get_type())? {
            Kind::Numpy => return numpy_view(elements, object.cast::<PyUntypedArray>()?, writable),
            Kind::Unknown => {
                let kind = object.get_type().name()?.to_string();
                return refuse(Problem::NotATensor { kind });
            }
            Kind::Exchange(from_object) => exchanged_view(elements, object, from_object)?,
            Kind::Capsule => self.capsule_view(elements, object)?,
        };
        Ok(match viewed {
            Ok(view) if lasting && self.remembers(object, &view) => Ok(view),
            Ok(_) if object.call_method0(intern!(object.py(), "is_neg"))?.is_truthy()? => {
                Err(Box::new(Problem::NegativeBit))
            }
            Ok(view) => {
                if lasting {
                    self.remember(object, &view)?;
                }
                Ok(view)
            }
            problem => problem,
        })
    }

    /// Whether the tensor and the place of its data are those of the last step.
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
        self.known.truncate(self.met);
        let tensor = PyWeakrefReference::new(object)?;
        self.known.push((tensor.unbind(), view.data as usize));
        self.met += 1;
        Ok(())
    }

    fn kind(&mut self, ty: &Bound<'_, PyType>) -> PyResult<Kind> {
        if let Some((_, kind)) = self.kinds.iter().find(|(known, _)| known.is(ty)) {
            return Ok(*kind);
        }
        let py = ty.py();
        let is_torch = ty.hasattr(intern!(py, "is_neg"))? && ty.hasattr(intern!(py, "__dlpack__"))?;
        let kind = if is_torch {
            match ty.getattr(intern!(py, "__dlpack_c_exchange_api__")) {
                Ok(capsule) if USE_EXCHANGE.load(Ordering::Relaxed) => exchange_function(&capsule)?,
                _ => Kind::Capsule,
            }
        } else if ty.is_subclass_of::<PyUntypedArray>()? {
            Kind::Numpy
        } else {
            Kind::Unknown
        };
        self.kinds.push((ty.clone().unbind(), kind));
        Ok(kind)
    }

    fn capsule_view(&mut self, elements: Elements, object: &Bound<'_, PyAny>) -> PyResult<Viewed> {
        let py = object.py();
        let exported = object
            .call_method0(intern!(py, "detach"))
            .and_then(|detached| detached.call_method0(intern!(py, "__dlpack__")));
        let Ok(capsule) = exported.and_then(|capsule| Ok(capsule.cast_into::<PyCapsule>()?)) else {
            return refused_by_dlpack(object);
        };
        let managed = capsule.pointer_checked(Some(c"dltensor"))?.cast::<DlTensor>();
        // SAFETY: a capsule of this name holds a DLManagedTensor, whose first field is the DLTensor; the capsule, kept
        // below, keeps it alive.
        let view = unsafe { dlpack_view(elements, managed.as_ref(), object) };
        self.capsules.push(capsule.into_any().unbind());
        view
    }
}

fn exchanged_view(
    elements: Elements,
    object: &Bound<'_, PyAny>,
    from_object: FromPyObject,
) -> PyResult<Viewed> {
    let mut tensor = DlTensor::EMPTY;
    // SAFETY: the function comes from the type of this very object; `tensor` is a place for its result.
    if unsafe { from_object(object.as_ptr().cast(), &mut tensor) } != 0 {
        drop(PyErr::take(object.py()));
        return refused_by_dlpack(object);
    }
    // SAFETY: the exchange succeeded, so the shape and strides point into the living tensor.
    unsafe { dlpack_view(elements, &tensor, object) }
}

/// Why torch would not export a tensor.
fn refused_by_dlpack(object: &Bound<'_, PyAny>) -> PyResult<Viewed> {
    let text = |name: &str| -> PyResult<String> { Ok(object.getattr(name)?.str()?.to_string()) };
    let (layout, device, dtype) = (text("layout")?, text("device")?, text("dtype")?);
    let is_float = object.call_method0("is_floating_point")?.is_truthy()? && !dtype.contains("float8");
    refuse(if layout != "torch.strided" {
        Problem::Sparse { layout }
    } else if device != "cpu" {
        Problem::Device { device }
    } else if object.call_method0("is_conj")?.is_truthy()? {
        Problem::ConjugateBit
    } else if is_float || object.call_method0("is_complex")?.is_truthy()? {
        Problem::NoMemory {
            kind: object.get_type().name()?.to_string(),
        }
    } else {
        Problem::DType {
            dtype,
            expected: Elements::Floats.names().into(),
        }
    })
}

/// # Safety
/// The shape and strides of `tensor` are valid for its number of dimensions.
unsafe fn dlpack_view(elements: Elements, tensor: &DlTensor, object: &Bound<'_, PyAny>) -> PyResult<Viewed> {
    let attribute = |name: &str| -> PyResult<String> { Ok(object.getattr(name)?.str()?.to_string()) };
    if tensor.device.kind != CPU && tensor.device.kind != PINNED_HOST {
        return refuse(Problem::Device {
            device: attribute("device")?,
        });
    }
    let name = match (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) {
        (FLOAT, 32, 1) => "float32",
        (FLOAT, 64, 1) => "float64",
        (FLOAT, 16, 1) => "float16",
        (BFLOAT, 16, 1) => "bfloat16",
        (COMPLEX, 64, 1) => "complex64",
        (COMPLEX, 128, 1) => "complex128",
        (INT, 16, 1) => "int16",
        _ => "",
    };
    let Some((dtype, complex)) = elements.stored(name) else {
        return refuse(Problem::DType {
            dtype: attribute("dtype")?,
            expected: elements.names().into(),
        });
    };
    if complex
        && object
            .call_method0(intern!(object.py(), "is_conj"))?
            .is_truthy()?
    {
        return refuse(Problem::ConjugateBit);
    }
    let dims = tensor.ndim as usize;
    // SAFETY: the caller's promise; a pointer without dimensions may be null and is not used.
    let (shape, strides): (Dims, Dims) = unsafe {
        let shape = if dims == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(tensor.shape, dims)
        };
        let strides = if dims == 0 {
            Dims::new()
        } else if tensor.strides.is_null() {
            contiguous_strides(shape)
        } else {
            Dims::from_slice(std::slice::from_raw_parts(tensor.strides, dims))
        };
        (Dims::from_slice(shape), strides)
    };
    let data = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    let view = View::new(data, dtype, complex, shape, strides);
    if view.len > 0 && tensor.data.is_null() {
        return refuse(Problem::NoMemory {
            kind: object.get_type().name()?.to_string(),
        });
    }
    if !(data as usize).is_multiple_of(dtype.size()) {
        return refuse(Problem::Misaligned);
    }
    Ok(Ok(view))
}

fn contiguous_strides(shape: &[i64]) -> Dims {
    let mut strides: Dims = shape.iter().map(|_| 1).collect();
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

fn numpy_view(elements: Elements, array: &Bound<'_, PyUntypedArray>, writable: bool) -> PyResult<Viewed> {
    let descriptor = array.dtype();
    let name: String = descriptor.getattr(intern!(array.py(), "name"))?.extract()?;
    let Some((dtype, complex)) = elements.stored(&name) else {
        return refuse(Problem::DType {
            dtype: name,
            expected: elements.names().into(),
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

/// The function of an exchange capsule that fills a non-owning view.
fn exchange_function(capsule: &Bound<'_, PyAny>) -> PyResult<Kind> {
    const NAME: &CStr = c"dlpack_exchange_api";
    let api = capsule
        .cast::<PyCapsule>()?
        .pointer_checked(Some(NAME))?
        .cast::<ExchangeApi>();
    // SAFETY: a capsule of this name holds a pointer to this struct, valid as long as the process; its head with the
    // version is the same in all versions, and what follows is read only in the one that is known here.
    unsafe {
        let mut current = api.as_ptr().cast_const();
        while !current.is_null() {
            if (*current).major == 1 {
                return Ok((*current).from_object.map_or(Kind::Capsule, Kind::Exchange));
            }
            current = (*current).previous;
        }
    }
    Err(PyRuntimeError::new_err(
        "this torch speaks a DLPack version that this ferrostep does not know",
    ))
}

/// Fills a non-owning view of a tensor; 0 on success, else -1 with a Python exception set.
type FromPyObject = unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int;

// What follows is the memory layout of DLPack 1.x (dlpack.h).

const CPU: i32 = 1;
const PINNED_HOST: i32 = 3;
const INT: u8 = 0;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const COMPLEX: u8 = 5;

#[repr(C)]
struct DlDevice {
    kind: i32,
    id: i32,
}

#[repr(C)]
struct DlDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    ndim: i32,
    dtype: DlDataType,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

impl DlTensor {
    const EMPTY: DlTensor = DlTensor {
        data: std::ptr::null_mut(),
        device: DlDevice { kind: 0, id: 0 },
        ndim: 0,
        dtype: DlDataType {
            code: 0,
            bits: 0,
            lanes: 0,
        },
        shape: std::ptr::null(),
        strides: std::ptr::null(),
        byte_offset: 0,
    };
}

#[repr(C)]
struct ExchangeApi {
    major: u32,
    minor: u32,
    previous: *const ExchangeApi,
    allocator: *const c_void,
    managed_from_object: *const c_void,
    managed_to_object: *const c_void,
    from_object: Option<FromPyObject>,
    current_work_stream: *const c_void,
}
