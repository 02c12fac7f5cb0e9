"""Bilevel optimization: upper parameters x with a loss ``f(x, y)``, where y minimizes a lower loss ``g(x, y)``.

:func:`hypergradient` is the gradient in x of ``f(x, y*(x))``, for any optimizer. :class:`BOREP` (arXiv 2401.09587)
steps along it by normalized momentum, :class:`LVHBA` (arXiv 2401.16164) needs no second derivatives and takes
constraints that couple x and y. Losses are given as closures that return a scalar tensor; nothing here reads ``p.grad``
or leaves anything in it.
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import curvature, gradients, implicit, numpy, optim  # noqa: F401  (before their parts: threads may meet there)
from ferrostep.bilevel.borep import BOREP
from ferrostep.bilevel.hypergradient import Hypergradient, hypergradient
from ferrostep.bilevel.lvhba import LVHBA

__all__ = ["BOREP", "LVHBA", "Hypergradient", "hypergradient"]
