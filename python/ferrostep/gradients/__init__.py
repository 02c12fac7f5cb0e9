"""Gradients of several losses over the same parameters: projections, surgery, target networks.

A gradient is a list of tensors, one for each parameter; None stands for zeros, as ``torch.autograd.grad`` with
``allow_unused=True`` gives it. Lists of one call are of one length and on one device, and their tensors at one place of
one shape and dtype (float32, float64, bfloat16, float16, complex as pairs of real numbers).

Inner products go over whole lists, as over one long vector, in float64 in a fixed order: the number of threads does not
change a bit. Other devices are computed in plain torch (:mod:`ferrostep.reference.gradients`).

Whatever cannot be computed raises TypeError, ValueError or RuntimeError that names list and place; nothing is changed.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import curvature, numpy  # noqa: F401  (before their parts: threads may meet there)
from ferrostep.gradients.accumulation import backward
from ferrostep.gradients.lists import combine, ema_, gram
from ferrostep.gradients.orthogonal import OrthogonalGradient, orthogonal_, orthogonal_combine_
from ferrostep.gradients.surgery import (
    aligned_mtl_weights,
    cagrad_weights,
    imtl_g_weights,
    min_norm_weights,
    nash_mtl_weights,
    pcgrad_,
    pcgrad_weights,
    upgrad_weights,
)

__all__ = [
    "OrthogonalGradient",
    "aligned_mtl_weights",
    "backward",
    "cagrad_weights",
    "combine",
    "ema_",
    "gram",
    "imtl_g_weights",
    "min_norm_weights",
    "nash_mtl_weights",
    "orthogonal_",
    "orthogonal_combine_",
    "pcgrad_",
    "pcgrad_weights",
    "upgrad_weights",
]
