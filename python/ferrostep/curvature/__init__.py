"""Estimates of a loss's curvature: the diagonal of its Hessian, its trace, its largest eigenvalue.

A loss is given as a scalar tensor whose graph is still there, or as a function that returns one. Nothing here wants
``backward(create_graph=True)``: second derivatives are taken by ``torch.autograd.grad``, ``p.grad`` is neither read
nor written, and no graph outlives the call.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy  # noqa: F401  (before its parts: threads may meet there)
from ferrostep.curvature.diagonal import HutchinsonDiagonal, hutchinson_diagonal
from ferrostep.curvature.products import HessianProduct, double_backward
from ferrostep.curvature.sampling import gauss_newton_bartlett, sampled_cross_entropy, sampled_squared_error
from ferrostep.curvature.spectrum import Eigenvalue, Trace, hutchinson_trace, lanczos, top_eigenvalue

__all__ = [
    "Eigenvalue",
    "HessianProduct",
    "HutchinsonDiagonal",
    "Trace",
    "double_backward",
    "gauss_newton_bartlett",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "lanczos",
    "sampled_cross_entropy",
    "sampled_squared_error",
    "top_eigenvalue",
]
