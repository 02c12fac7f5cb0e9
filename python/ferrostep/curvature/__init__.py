"""A loss's curvature: the diagonal of its Hessian, products with it, its trace, eigenvalues and their density.

A loss is given as a scalar tensor whose graph is still there, or as a function that returns one. Nothing here wants
``backward(create_graph=True)``: second derivatives are taken by ``torch.autograd.grad``, ``p.grad`` is neither read
nor written, and no graph outlives the call.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy, reference  # noqa: F401  (before their parts: threads may meet there)
from ferrostep.curvature.density import SpectralDensity, spectral_density
from ferrostep.curvature.diagonal import HutchinsonDiagonal, hutchinson_diagonal
from ferrostep.curvature.krylov import Eigenvalue, LanczosResult, lanczos, top_eigenvalues
from ferrostep.curvature.operators import LinearOperator, check_symmetry, hvp_operator
from ferrostep.curvature.products import GaussNewtonProduct, HessianProduct, double_backward
from ferrostep.curvature.sampling import gauss_newton_bartlett, sampled_cross_entropy, sampled_squared_error
from ferrostep.curvature.stability import (
    BatchSharpness,
    Diagnostic,
    StabilityReport,
    batch_sharpness,
    stability_report,
)
from ferrostep.curvature.traces import Estimate, frobenius, trace

__all__ = [
    "BatchSharpness",
    "Diagnostic",
    "Eigenvalue",
    "Estimate",
    "GaussNewtonProduct",
    "HessianProduct",
    "HutchinsonDiagonal",
    "LanczosResult",
    "LinearOperator",
    "SpectralDensity",
    "StabilityReport",
    "batch_sharpness",
    "check_symmetry",
    "double_backward",
    "frobenius",
    "gauss_newton_bartlett",
    "hutchinson_diagonal",
    "hvp_operator",
    "lanczos",
    "sampled_cross_entropy",
    "sampled_squared_error",
    "spectral_density",
    "stability_report",
    "top_eigenvalues",
    "trace",
]
