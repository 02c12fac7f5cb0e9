//! The update rules as Python objects: hyperparameters by name.

use pyo3::prelude::*;

use super::auon::{self, AuON};
use super::muon::{self, Muon};
use super::parameters::{Inputs, Ledger, Writes, combination};
use crate::kernels::elementwise::{self, Hyperparameters, Rule as _, Work, adamw, diagonal, lion, sophia};
use crate::kernels::whole::Whole;

/// AdamW, or Adam with `decoupled=False`. State: exp_avg, exp_avg_sq.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct AdamW(adamw::AdamW);

#[pymethods]
impl AdamW {
    #[new]
    #[pyo3(signature = (*, lr, beta1, beta2, eps, weight_decay, decoupled, maximize))]
    fn new(
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        decoupled: bool,
        maximize: bool,
    ) -> Self {
        AdamW(adamw::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
            maximize,
        })
    }
}

/// AdamW with the greatest second moment so far. State: exp_avg, exp_avg_sq, max_exp_avg_sq.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct AmsGrad(adamw::AmsGrad);

#[pymethods]
impl AmsGrad {
    #[new]
    #[pyo3(signature = (*, lr, beta1, beta2, eps, weight_decay, decoupled, maximize))]
    fn new(
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        decoupled: bool,
        maximize: bool,
    ) -> Self {
        let options = adamw::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
            maximize,
        };
        AmsGrad(adamw::AmsGrad(options))
    }
}

/// Lion. State: exp_avg.
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Lion(lion::Lion);

#[pymethods]
impl Lion {
    #[new]
    #[pyo3(signature = (*, lr, beta1, beta2, weight_decay, maximize))]
    fn new(lr: f64, beta1: f64, beta2: f64, weight_decay: f64, maximize: bool) -> Self {
        Lion(lion::Lion {
            lr,
            beta1,
            beta2,
            weight_decay,
            maximize,
        })
    }
}

/// Sophia. State: exp_avg, hessian (read).
#[pyclass(frozen, module = "ferrostep._core")]
pub struct Sophia(sophia::Sophia);

#[pymethods]
impl Sophia {
    #[new]
    #[pyo3(signature = (*, lr, beta1, weight_decay, scale, eps, add_eps, maximize))]
    fn new(
        lr: f64,
        beta1: f64,
        weight_decay: f64,
        scale: f64,
        eps: f64,
        add_eps: bool,
        maximize: bool,
    ) -> Self {
        Sophia(sophia::Sophia {
            lr,
            beta1,
            weight_decay,
            scale,
            eps,
            add_eps,
            maximize,
        })
    }
}

/// The averages of Hessian estimates, alike but for what the estimate is made of.
macro_rules! averages {
    ($($(#[$doc:meta])* $rule:ident = $kernel:ident;)*) => {
        $($(#[$doc])*
        #[pyclass(frozen, module = "ferrostep._core")]
        pub struct $rule(diagonal::$kernel);

        #[pymethods]
        impl $rule {
            #[new]
            #[pyo3(signature = (*, beta2, scale, skip_nonfinite))]
            fn new(beta2: f64, scale: f64, skip_nonfinite: bool) -> Self {
                $rule(diagonal::$kernel(diagonal::Average { beta2, scale, skip_nonfinite }))
            }
        })*
    };
}

averages! {
    /// Of squared gradients. State: hessian; the parameter is only looked at for its shape.
    HessianSquare = Square;
    /// Of gradients times probes. State: hessian, probe; the parameter is only looked at for its shape.
    HessianProduct = Product;
    /// Of gradients, with the average as the parameter.
    HessianEstimate = Estimate;
}

/// The updates of a parameter group, ready to be run.
pub enum Update {
    Elements(Box<dyn Work>),
    Whole(Box<dyn Whole>),
}

/// Checks the tensors of a group and hands them to the engine.
fn elements<H: Hyperparameters<N>, const N: usize>(
    ledger: &mut Ledger,
    hyperparameters: H,
    inputs: &Inputs<'_>,
) -> PyResult<Box<dyn Work>> {
    inputs.expect(N)?;
    let mut batch = elementwise::Batch::with_capacity(inputs.len());
    let writes = Writes {
        param: H::Rule::WRITES_PARAM,
        states: H::Rule::WRITES_STATES,
    };
    let mut latest = None; // most tensors are at the same step, and its rule takes a power or two
    for i in 0..inputs.len() {
        let tensors = ledger.tensors::<N>(inputs, i, writes)?;
        let buffers = ledger.buffers(inputs, i, &tensors, &tensors.param.order(), writes);
        let rule = match latest {
            Some((known, rule)) if known == tensors.step => rule,
            _ => hyperparameters.at_step(tensors.step as f64),
        };
        latest = Some((tensors.step, rule));
        // SAFETY: the views are valid while the ledger lives, and its call checks that what is written is not shared.
        if unsafe { batch.push(rule, buffers) }.is_err() {
            return Err(ledger.refuse(inputs, i, combination(&buffers, inputs.rounding)));
        }
    }
    Ok(Box::new(batch))
}

/// The table of rules with the number of their states: hands the inputs to the engine under the rule's type.
macro_rules! table {
    ($($rule:ident: $states:literal),* $(,)?) => {
        pub fn add(ledger: &mut Ledger, rule: &Bound<'_, PyAny>, inputs: &Inputs<'_>) -> PyResult<Update> {
            if let Ok(rule) = rule.cast::<AuON>() {
                return auon::add(ledger, rule.get(), inputs).map(Update::Whole);
            }
            if let Ok(rule) = rule.cast::<Muon>() {
                return muon::add(ledger, rule.get(), inputs).map(Update::Whole);
            }
            $(if let Ok(rule) = rule.cast::<$rule>() {
                return elements::<_, $states>(ledger, rule.get().0, inputs).map(Update::Elements);
            })*
            let kind = rule.get_type().name()?;
            Err(pyo3::exceptions::PyTypeError::new_err(format!("{kind} is not an update rule")))
        }
    };
}

table! {
    AdamW: 2, AmsGrad: 3, Lion: 1, Sophia: 2, HessianSquare: 1, HessianProduct: 2, HessianEstimate: 0,
}
