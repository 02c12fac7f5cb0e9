"""Other libraries have the same values and derivatives of projections and proximal operators; each where installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ferrostep import projections
from ferrostep.projections import prox

from .registry import between, sample

A, LO, HI, W = (torch.from_numpy(between(*ends)(9)) for ends in ((-1, 2), (-2, -1), (0.5, 1), (0.2, 1)))
Ours = Callable[[Tensor], Tensor]


def rows() -> tuple[Tensor, Tensor]:
    """Rows, and vectors for the products with their Jacobians."""
    return sample((6, 9)).requires_grad_(), sample((6, 9), seed=1)


def product(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, v)[0]


def test_entmax() -> None:
    entmax = pytest.importorskip("entmax")  # `pip install --no-deps entmax` is enough
    x, v = sample((50, 300)).requires_grad_(), sample((50, 300), seed=1)
    ours, theirs = projections.simplex(x), entmax.sparsemax(x, dim=-1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(product(ours, x, v), product(theirs, x, v))


JAXOPT: dict[str, tuple[Ours, tuple[Any, ...]]] = {
    "projection_non_negative": (projections.nonnegative, ()),
    "projection_box": (lambda x: projections.box(x, -0.5, 1.25), ((-0.5, 1.25),)),
    "projection_simplex": (lambda x: projections.simplex(x, 1.5), (1.5,)),
    "projection_l1_ball": (lambda x: projections.l1_ball(x, 2.5), (2.5,)),
    "projection_l2_ball": (lambda x: projections.l2_ball(x, 2.0), (2.0,)),
    "projection_linf_ball": (lambda x: projections.linf_ball(x, 0.7), (0.7,)),
    "projection_hyperplane": (lambda x: projections.hyperplane(x, A, 0.5), ((A.numpy(), 0.5),)),
    "projection_halfspace": (lambda x: projections.halfspace(x, A, 0.5), ((A.numpy(), 0.5),)),
    "projection_box_section": (
        lambda x: projections.box_section(x, LO, HI, W, 0.25),
        ((LO.numpy(), HI.numpy(), W.numpy(), 0.25),),
    ),
    "prox_lasso": (lambda x: prox.soft_threshold(x, 0.4), (0.4,)),
    "prox_elastic_net": (lambda x: prox.elastic_net(x, 0.4, 0.5), ((0.4, 0.5),)),
    "prox_group_lasso": (lambda x: prox.group_lasso(x, 2.0), (2.0,)),
    "prox_ridge": (lambda x: prox.ridge(x, 0.4), (0.4,)),
    "prox_non_negative_lasso": (lambda x: prox.nonnegative_lasso(x, 0.4), (0.4,)),
    "prox_non_negative_ridge": (lambda x: prox.nonnegative_ridge(x, 0.4), (0.4,)),
}


@pytest.mark.parametrize("name", JAXOPT)
def test_jaxopt(name: str) -> None:
    jax, jaxopt = (pytest.importorskip(module) for module in ("jax", "jaxopt"))
    ours, arguments = JAXOPT[name]
    theirs = getattr(jaxopt.projection if name.startswith("projection") else jaxopt.prox, name)
    x, v = rows()
    y = ours(x)
    with jax.enable_x64(True):
        image, pull_back = jax.vjp(jax.vmap(lambda row: theirs(row, *arguments)), x.detach().numpy())
        (gradient,) = pull_back(v.numpy())
    tolerance = 1e-4 if name == "projection_box_section" else 1e-7  # of 30 steps of bisection
    for one, other in ((y, image), (product(y, x, v), gradient)):
        torch.testing.assert_close(one.detach(), torch.from_numpy(np.array(other)), rtol=tolerance, atol=tolerance)


CVXPY: dict[str, tuple[Ours, Callable[[Any], list[Any]]]] = {
    "simplex": (projections.simplex, lambda p: [p >= 0, sum(p) == 1]),
    "box_section": (
        lambda x: projections.box_section(x, LO, HI, W, 0.25),
        lambda p: [p >= LO.numpy(), p <= HI.numpy(), W.numpy() @ p == 0.25],
    ),
    "halfspace": (lambda x: projections.halfspace(x, A, 0.5), lambda p: [A.numpy() @ p <= 0.5]),
}


@pytest.mark.parametrize("name", CVXPY)
def test_cvxpylayers(name: str) -> None:
    cvxpy, layers = (pytest.importorskip(module) for module in ("cvxpy", "cvxpylayers.torch"))
    ours, constraints = CVXPY[name]
    x, v = rows()
    p, point = cvxpy.Variable(9), cvxpy.Parameter(9)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(p - point)), constraints(p))
    (theirs,) = layers.CvxpyLayer(problem, parameters=[point], variables=[p])(
        x, solver_args={"eps": 1e-10, "max_iters": 100_000}
    )
    y = ours(x)
    torch.testing.assert_close(y, theirs, rtol=1e-5, atol=1e-5)  # as near as theirs comes
    torch.testing.assert_close(product(y, x, v), product(theirs, x, v), rtol=1e-3, atol=1e-3)
