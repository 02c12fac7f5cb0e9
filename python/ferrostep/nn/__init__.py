"""Layers for large batches."""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy  # noqa: F401  (before its parts: threads may meet there)
from ferrostep.nn.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, convert_ghost_batchnorm

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "convert_ghost_batchnorm"]
