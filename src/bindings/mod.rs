//! Everything that knows Python: tensors in, errors out. The module `ferrostep._core`.

mod arguments;
mod batch;
mod call;
mod dlpack;
mod errors;
mod finish;
mod gather;
mod ghost;
mod gradients;
mod guidance;
mod krylov;
mod maps;
mod matmul;
mod matrix;
mod orthogonal;
mod overlap;
mod parameters;
mod reader;
mod rules;
mod scalar;
mod selected;
mod singular;
mod solve;
mod view;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::batch::Batch;
    #[pymodule_export]
    use super::finish::complete;
    #[pymodule_export]
    use super::gather::{columns, layouts, shards, with_gradient};
    #[pymodule_export]
    use super::ghost::{ghost_follow, ghost_norm, ghost_norm_backward};
    #[pymodule_export]
    use super::gradients::{
        advance, combine, descend, ema, follow, gram, normalized_step, norms, orthogonal, orthogonal_combine,
    };
    #[pymodule_export]
    use super::guidance::Guidance;
    #[pymodule_export]
    use super::krylov::{krylov_fill, krylov_orthogonalize, krylov_recur, krylov_scale, krylov_subtract};
    #[pymodule_export]
    use super::maps::Map;
    #[pymodule_export]
    use super::matmul::multiply;
    #[pymodule_export]
    use super::matrix::{MatrixRule, Stage, Transform};
    #[pymodule_export]
    use super::orthogonal::{Schedule, orthogonalize};
    #[pymodule_export]
    use super::reader::{Known, lie_in_memory, use_exchange_api};
    #[pymodule_export]
    use super::rules::{CarriedRule, PyRule, SelectedRule, SimplexRule, hyperparameters, rules};
    #[pymodule_export]
    use super::runtime::{InterruptHandler, adopt_openmp, available_cpus, isa, supported_isas, use_isa};
    #[pymodule_export]
    use super::selected::sample;
    #[pymodule_export]
    use super::singular::top_singular_value;
    #[pymodule_export]
    use super::solve::{Report, cagrad, min_norm, nash_mtl, pcgrad, upgrad};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::runtime::start(module)
    }
}

/// The choices of [`crate::runtime`], shown to Python.
mod runtime {
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;

    use crate::runtime::interrupts::Handler;
    use crate::runtime::{Isa, cpus, openmp};

    pub fn start(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        // Whoever imported the module first has installed the logger already: that is no error.
        let _ = pyo3_log::try_init();
        let isa = Isa::from_environment().map_err(PyValueError::new_err)?;
        isa.select();
        log::debug!("instruction set {}, of {:?}", isa.name(), supported_isas());
        Ok(())
    }

    /// How many CPUs the process may use: its affinity and its cgroup's quota count.
    #[pyfunction]
    pub fn available_cpus() -> usize {
        cpus::available()
    }

    /// The instruction set in use.
    #[pyfunction]
    pub fn isa() -> &'static str {
        Isa::current().name()
    }

    /// The instruction sets that this CPU runs, lowest first.
    #[pyfunction]
    pub fn supported_isas() -> Vec<&'static str> {
        Isa::supported().into_iter().map(Isa::name).collect()
    }

    /// Runs parallel work on the threads of GNU OpenMP, if the process has loaded it; returns whether it has.
    #[pyfunction]
    pub fn adopt_openmp() -> bool {
        let adopted = openmp::adopt();
        log::debug!(
            "parallel work runs on {}",
            if adopted {
                "torch's OpenMP threads"
            } else {
                "threads of our own"
            }
        );
        adopted
    }

    /// What the process does at SIGINT; see `_core.pyi`.
    #[pyclass(frozen)]
    pub struct InterruptHandler(Handler);

    #[pymethods]
    impl InterruptHandler {
        #[staticmethod]
        fn current() -> Self {
            Self(Handler::current())
        }

        fn install(&self) {
            self.0.install();
        }
    }

    /// Switches to another instruction set, as `FERROSTEP_ISA` does at import.
    #[pyfunction]
    pub fn use_isa(name: &str) -> PyResult<()> {
        Isa::parse(name).map(Isa::select).map_err(PyValueError::new_err)
    }
}
