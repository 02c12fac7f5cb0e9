//! How numbers lie in memory: element types, the tensors of a parameter, rounding, and copies between layouts.

mod buffers;
mod codes;
mod rounding;
mod scalar;
mod scratch;
mod state;
mod strided;

pub use buffers::Buffers;
pub use codes::{CODE_BLOCK, Codebook};
pub use rounding::Rounding;
pub use scalar::Scalar;
pub use scratch::Scratch;
pub use state::{Codes, State, Storage};
pub use strided::{Access, Dims, Staged, Strided};

/// Elements a task works on. Part of the definition of stochastic rounding, whose random numbers are keyed by block.
pub const BLOCK: usize = 32_768;

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    Float(Float),
    Integer(Integer),
    Bool,
}

impl DType {
    pub const F64: DType = DType::Float(Float::F64);
    pub const F32: DType = DType::Float(Float::F32);
    pub const F16: DType = DType::Float(Float::F16);
    pub const BF16: DType = DType::Float(Float::Bf16);
    const ALL: [DType; 10] = [
        DType::F64,
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Integer(Integer::I64),
        DType::Integer(Integer::I32),
        DType::Integer(Integer::I16),
        DType::Integer(Integer::I8),
        DType::Integer(Integer::U8),
        DType::Bool,
    ];

    /// The one of this [`DType::name`].
    pub fn named(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    pub fn size(self) -> usize {
        match self {
            DType::Float(float) => float.size(),
            DType::Integer(integer) => integer.size(),
            DType::Bool => 1,
        }
    }

    /// The name that torch and NumPy give it.
    pub fn name(self) -> &'static str {
        match self {
            DType::Float(float) => float.name(),
            DType::Integer(integer) => integer.name(),
            DType::Bool => "bool",
        }
    }
}

/// How floating-point numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    F64,
    F32,
    F16,
    Bf16,
}

impl Float {
    pub fn size(self) -> usize {
        match self {
            Float::F64 => 8,
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }

    /// The type of the arithmetic on such numbers.
    pub fn arithmetic(self) -> Float {
        match self {
            Float::F64 => Float::F64,
            Float::F32 | Float::F16 | Float::Bf16 => Float::F32,
        }
    }

    /// The name that torch and NumPy give it.
    pub fn name(self) -> &'static str {
        match self {
            Float::F64 => "float64",
            Float::F32 => "float32",
            Float::F16 => "float16",
            Float::Bf16 => "bfloat16",
        }
    }
}

/// How whole numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Integer {
    I64,
    I32,
    I16,
    I8,
    U8,
}

impl Integer {
    pub fn size(self) -> usize {
        match self {
            Integer::I64 => 8,
            Integer::I32 => 4,
            Integer::I16 => 2,
            Integer::I8 | Integer::U8 => 1,
        }
    }

    /// The name that torch and NumPy give it.
    pub fn name(self) -> &'static str {
        match self {
            Integer::I64 => "int64",
            Integer::I32 => "int32",
            Integer::I16 => "int16",
            Integer::I8 => "int8",
            Integer::U8 => "uint8",
        }
    }
}

/// Calls a function with the element type that a [`Float`] names.
macro_rules! with_type {
    ($dtype:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $dtype {
            $crate::kernels::storage::Float::F64 => $function::<f64>($($argument),*),
            $crate::kernels::storage::Float::F32 => $function::<f32>($($argument),*),
            $crate::kernels::storage::Float::F16 => $function::<half::f16>($($argument),*),
            $crate::kernels::storage::Float::Bf16 => $function::<half::bf16>($($argument),*),
        }
    };
}
pub(crate) use with_type;
