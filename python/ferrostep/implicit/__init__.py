"""Derivatives of solutions: of what any solver finds, by the condition that it satisfies (arXiv 2105.15183).

A function that minimizes, or finds a root or a fixed point, by whatever means, becomes differentiable in its arguments
by :func:`root` or :func:`fixed_point`: backwards, forwards, of any order and under ``torch.func``. The solver's steps
are not recorded. :mod:`ferrostep.implicit.optimality` has the conditions, :mod:`ferrostep.implicit.linear` what solves
the linear systems that the derivatives take.

What is not as it must be is told: a solution that has not converged, a linear system that was not solved, a condition
that captures what needs gradients.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import curvature, gradients, numpy  # noqa: F401  (before their parts: threads may meet there)
from ferrostep.implicit import linear, optimality
from ferrostep.implicit.root import ConvergenceWarning, fixed_point, root, root_jvp, root_vjp

__all__ = ["ConvergenceWarning", "fixed_point", "linear", "optimality", "root", "root_jvp", "root_vjp"]
