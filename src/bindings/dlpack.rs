//! torch tensors by DLPack: its C exchange API, some 50 ns each, or (torch before 2.10) its capsules. What both would
//! let through unnoticed, tensors without memory or of conjugated numbers, is refused here.

use std::ffi::{CStr, c_int, c_void};

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods};

use super::errors::Problem;
use super::view::{Elements, View, Viewed, refuse};
use crate::kernels::storage::{DType, Dims, Integer};

#[inline]
pub fn exchanged_view(
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

/// The view, and the capsule, which owns what it points to.
pub fn capsule_view(elements: Elements, object: &Bound<'_, PyAny>) -> PyResult<(Viewed, Option<Py<PyAny>>)> {
    let py = object.py();
    let exported = object
        .call_method0(intern!(py, "detach"))
        .and_then(|detached| detached.call_method0(intern!(py, "__dlpack__")));
    let Ok(capsule) = exported.and_then(|capsule| Ok(capsule.cast_into::<PyCapsule>()?)) else {
        return Ok((refused_by_dlpack(object)?, None));
    };
    let managed = capsule.pointer_checked(Some(c"dltensor"))?.cast::<DlTensor>();
    // SAFETY: a capsule of this name holds a DLManagedTensor, whose first field is the DLTensor; the capsule, which the
    // caller keeps, keeps it alive.
    let view = unsafe { dlpack_view(elements, managed.as_ref(), object) }?;
    Ok((view, Some(capsule.into_any().unbind())))
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
            expected: Elements::Floats.name().into(),
        }
    })
}

/// # Safety
/// The shape and strides of `tensor` are valid for its number of dimensions.
#[inline]
unsafe fn dlpack_view(elements: Elements, tensor: &DlTensor, object: &Bound<'_, PyAny>) -> PyResult<Viewed> {
    let attribute = |name: &str| -> PyResult<String> { Ok(object.getattr(name)?.str()?.to_string()) };
    if tensor.device.kind != CPU && tensor.device.kind != PINNED_HOST {
        return refuse(Problem::Device {
            device: attribute("device")?,
        });
    }
    let stored = stored(&tensor.dtype).filter(|&(dtype, _)| elements.admit(dtype));
    let Some((dtype, complex)) = stored else {
        return refuse(Problem::DType {
            dtype: attribute("dtype")?,
            expected: elements.name().into(),
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

/// The elements' type, and whether two of them make a complex number.
#[inline]
fn stored(dtype: &DlDataType) -> Option<(DType, bool)> {
    let real = match (dtype.code, dtype.bits, dtype.lanes) {
        (FLOAT, 64, 1) => DType::F64,
        (FLOAT, 32, 1) => DType::F32,
        (FLOAT, 16, 1) => DType::F16,
        (BFLOAT, 16, 1) => DType::BF16,
        (COMPLEX, 64, 1) => return Some((DType::F32, true)),
        (COMPLEX, 128, 1) => return Some((DType::F64, true)),
        (INT, 64, 1) => DType::Integer(Integer::I64),
        (INT, 32, 1) => DType::Integer(Integer::I32),
        (INT, 16, 1) => DType::Integer(Integer::I16),
        (INT, 8, 1) => DType::Integer(Integer::I8),
        (UINT, 8, 1) => DType::Integer(Integer::U8),
        (BOOL, 8, 1) => DType::Bool,
        _ => return None,
    };
    Some((real, false))
}

fn contiguous_strides(shape: &[i64]) -> Dims {
    let mut strides: Dims = shape.iter().map(|_| 1).collect();
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// The function of an exchange capsule that fills a non-owning view, if it has it.
pub fn exchange_function(capsule: &Bound<'_, PyAny>) -> PyResult<Option<FromPyObject>> {
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
                return Ok((*current).from_object);
            }
            current = (*current).previous;
        }
    }
    Err(PyRuntimeError::new_err(
        "this torch speaks a DLPack version that this ferrostep does not know",
    ))
}

/// Fills a non-owning view of a tensor; 0 on success, else -1 with a Python exception set.
pub type FromPyObject = unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int;

// What follows is the memory layout of DLPack 1.x (dlpack.h).

const CPU: i32 = 1;
const PINNED_HOST: i32 = 3;
const INT: u8 = 0;
const UINT: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const COMPLEX: u8 = 5;
const BOOL: u8 = 6;

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
pub struct DlTensor {
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
