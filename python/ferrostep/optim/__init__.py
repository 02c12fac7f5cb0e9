"""Optimizers: ``torch.optim.Optimizer`` classes on Rust kernels."""

from ferrostep.optim.adamw import AdamW
from ferrostep.optim.elementwise import ElementwiseOptimizer, Rule
from ferrostep.optim.lion import Lion

__all__ = ["AdamW", "ElementwiseOptimizer", "Lion", "Rule"]
