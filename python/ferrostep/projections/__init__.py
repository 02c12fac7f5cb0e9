"""Euclidean projections of rows onto sets, with exact derivatives of any order.

A row is what lies along one dimension of a tensor of any shape, dtype (float32, float64, bfloat16, float16) and layout.
Rows are computed in float64 for float64, else in float32 with sums in float64, each by itself: no row, and no number
of threads, changes another's bits. Tensors on other devices are computed in plain torch
(:mod:`ferrostep.reference.projections`).

Parameters (sums, radii, bounds, normals, weights) are numbers or tensors. Where a tensor needs a gradient, or has a
number for each row, plain torch computes the function, and differentiates it in its parameters, too.

The functions go with autograd in both modes, double backward, ``torch.func`` and ``torch.compile``, and compute in
the dtype of their input under autocast, too. On a kink, the Jacobian is that of the side that the image shows. The
forms with an underscore work in place and are not recorded, as under ``torch.no_grad()``: after a step of SGD they make
projected gradient descent.

Whatever cannot be computed raises an error that names the argument, with nothing changed: TypeError for what is no
tensor or number; ValueError for tensors of another dtype or shape, rows of no element, and parameters that are not
finite or out of range; IndexError for a dimension that is not there; RuntimeError for tensors that are sparse, on
another device, or without memory of their own. The numbers of parameters that are tensors are looked at, which on other
devices waits for them, but not within torch.func and torch.compile.
"""

from __future__ import annotations

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy, reference  # noqa: F401  (before their parts: threads may meet there)

# isort: split

from ferrostep.projections import prox
from ferrostep.projections.affine import Affine, affine
from ferrostep.projections.order import isotonic, permutahedron, permutahedron_
from ferrostep.projections.planes import (
    box_section,
    box_section_,
    halfspace,
    halfspace_,
    hyperplane,
    hyperplane_,
)
from ferrostep.projections.sets import (
    box,
    box_,
    l1_ball,
    l1_ball_,
    l2_ball,
    l2_ball_,
    linf_ball,
    linf_ball_,
    nonnegative,
    nonnegative_,
    simplex,
    simplex_,
)
from ferrostep.projections.transport import birkhoff, transport

__all__ = [
    "Affine",
    "affine",
    "birkhoff",
    "box",
    "box_",
    "box_section",
    "box_section_",
    "halfspace",
    "halfspace_",
    "hyperplane",
    "hyperplane_",
    "isotonic",
    "l1_ball",
    "l1_ball_",
    "l2_ball",
    "l2_ball_",
    "linf_ball",
    "linf_ball_",
    "nonnegative",
    "nonnegative_",
    "permutahedron",
    "permutahedron_",
    "prox",
    "simplex",
    "simplex_",
    "transport",
]
