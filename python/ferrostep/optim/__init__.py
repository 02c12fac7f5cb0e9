"""Optimizers: ``torch.optim.Optimizer`` classes on Rust kernels."""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import curvature, numpy, projections, reference  # noqa: F401  (before their parts: threads may meet there)
from ferrostep.optim.adagrad import Adagrad
from ferrostep.optim.adagrad_norm import AdaGradNorm
from ferrostep.optim.adam import Adam
from ferrostep.optim.adamax import Adamax
from ferrostep.optim.adamw import AdamW
from ferrostep.optim.auon import AuON
from ferrostep.optim.diffgrad import DiffGrad
from ferrostep.optim.egd import EGD
from ferrostep.optim.frugal import FRUGAL
from ferrostep.optim.frugal_routing import FrugalParamGroups, frugal_param_groups
from ferrostep.optim.grad_norm_smooth import GradNormSmooth
from ferrostep.optim.hybrid_auon import HybridAuON
from ferrostep.optim.lion import Lion
from ferrostep.optim.memory import MemoryPart, MemoryPlan, memory_plan
from ferrostep.optim.muon import Muon
from ferrostep.optim.muon_adamw import MuonAdamW
from ferrostep.optim.muon_with_adamw import MuonWithAuxAdamW
from ferrostep.optim.nadam import NAdam
from ferrostep.optim.nigt import NIGT
from ferrostep.optim.optimistic import OptimisticAdam, OptimisticMD
from ferrostep.optim.radam import RAdam
from ferrostep.optim.rmsprop import RMSprop
from ferrostep.optim.routing import MuonParamGroups, muon_param_groups
from ferrostep.optim.rules import Rule, RuleOptimizer
from ferrostep.optim.sam import SAM
from ferrostep.optim.sgd import SGD
from ferrostep.optim.singular import (
    GainInvariance,
    GainRatio,
    SingularValue,
    SingularValues,
    gain_invariance,
    top_singular_values,
)
from ferrostep.optim.sophia_g import SophiaG
from ferrostep.optim.sophia_h import SophiaH
from ferrostep.optim.storm import STORM
from ferrostep.optim.width import WidthScaledParamGroups, width_scaled_param_groups

__all__ = [
    "EGD",
    "FRUGAL",
    "NIGT",
    "SAM",
    "SGD",
    "STORM",
    "AdaGradNorm",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AuON",
    "DiffGrad",
    "FrugalParamGroups",
    "GainInvariance",
    "GainRatio",
    "GradNormSmooth",
    "HybridAuON",
    "Lion",
    "MemoryPart",
    "MemoryPlan",
    "Muon",
    "MuonAdamW",
    "MuonParamGroups",
    "MuonWithAuxAdamW",
    "NAdam",
    "OptimisticAdam",
    "OptimisticMD",
    "RAdam",
    "RMSprop",
    "Rule",
    "RuleOptimizer",
    "SingularValue",
    "SingularValues",
    "SophiaG",
    "SophiaH",
    "WidthScaledParamGroups",
    "frugal_param_groups",
    "gain_invariance",
    "memory_plan",
    "muon_param_groups",
    "top_singular_values",
    "width_scaled_param_groups",
]
