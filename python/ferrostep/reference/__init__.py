"""The update rules in plain torch: readable, differentiable, for any device.

They are what the Rust kernels are tested against, what runs on devices other than the CPU, and what
``backend="reference"`` selects. Each rule is a pure function of parameter, gradient and state.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)
from ferrostep.reference.adagrad import adagrad
from ferrostep.reference.adagrad_norm import adagrad_norm, adagrad_norm_sum
from ferrostep.reference.adamax import adamax
from ferrostep.reference.adamw import adamw
from ferrostep.reference.ascent import ascent, ascent_sum
from ferrostep.reference.auon import auon
from ferrostep.reference.blend import blend
from ferrostep.reference.codes import Codes
from ferrostep.reference.diffgrad import diffgrad
from ferrostep.reference.egd import egd
from ferrostep.reference.engine import ReferenceFactor, ReferenceRule, apply, updates
from ferrostep.reference.frugal import averaged_descent, descent, frugal, only_decay, sign_descent
from ferrostep.reference.lion import lion, lion_k, lion_k_sum
from ferrostep.reference.muon import matrices, muon
from ferrostep.reference.nadam import nadam, nadam_factor
from ferrostep.reference.newton_schulz import newton_schulz
from ferrostep.reference.nigt import nigt, nigt_sum
from ferrostep.reference.optimistic import (
    optimistic_adam,
    optimistic_md,
    optimistic_md_adaptive,
    optimistic_md_change,
)
from ferrostep.reference.radam import radam
from ferrostep.reference.rmsprop import rmsprop
from ferrostep.reference.sgd import sgd
from ferrostep.reference.simplex import on_simplex
from ferrostep.reference.singular import mixed_start, top_singular_value
from ferrostep.reference.sophia import hessian_estimate, hessian_product, hessian_square, sophia, unclipped
from ferrostep.reference.storm import storm, storm_adaptive, storm_adaptive_sum, storm_plain, storm_sum
from ferrostep.reference.sums import ReferenceSum, sum_of

__all__ = [
    "Codes",
    "ReferenceFactor",
    "ReferenceRule",
    "ReferenceSum",
    "adagrad",
    "adagrad_norm",
    "adagrad_norm_sum",
    "adamax",
    "adamw",
    "apply",
    "ascent",
    "ascent_sum",
    "auon",
    "averaged_descent",
    "blend",
    "descent",
    "diffgrad",
    "egd",
    "frugal",
    "hessian_estimate",
    "hessian_product",
    "hessian_square",
    "lion",
    "lion_k",
    "lion_k_sum",
    "matrices",
    "mixed_start",
    "muon",
    "nadam",
    "nadam_factor",
    "newton_schulz",
    "nigt",
    "nigt_sum",
    "on_simplex",
    "only_decay",
    "optimistic_adam",
    "optimistic_md",
    "optimistic_md_adaptive",
    "optimistic_md_change",
    "radam",
    "rmsprop",
    "sgd",
    "sign_descent",
    "sophia",
    "storm",
    "storm_adaptive",
    "storm_adaptive_sum",
    "storm_plain",
    "storm_sum",
    "sum_of",
    "top_singular_value",
    "unclipped",
    "updates",
]
