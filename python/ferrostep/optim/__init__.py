"""Optimizers: ``torch.optim.Optimizer`` classes on Rust kernels."""

from ferrostep.optim.adamw import AdamW
from ferrostep.optim.lion import Lion
from ferrostep.optim.rules import Rule, RuleOptimizer
from ferrostep.optim.sophia_g import SophiaG
from ferrostep.optim.sophia_h import SophiaH

__all__ = ["AdamW", "Lion", "Rule", "RuleOptimizer", "SophiaG", "SophiaH"]
