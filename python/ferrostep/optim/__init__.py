"""Optimizers: ``torch.optim.Optimizer`` classes on Rust kernels."""

from ferrostep.optim.adamw import AdamW
from ferrostep.optim.elementwise import ElementwiseOptimizer, Rule
from ferrostep.optim.lion import Lion
from ferrostep.optim.sophia_g import SophiaG
from ferrostep.optim.sophia_h import SophiaH

__all__ = ["AdamW", "ElementwiseOptimizer", "Lion", "Rule", "SophiaG", "SophiaH"]
