"""Reinforcement learning agents on ferrostep's kernels; they need torch."""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy  # noqa: F401  (before its parts: threads may meet there)
from ferrostep.rl.data import Transitions
from ferrostep.rl.odice import ODICE

__all__ = ["ODICE", "Transitions"]
