"""Derivatives of solutions beside those of torchopt, where it is right, and of jaxopt.

`pip install --no-deps torchopt optree graphviz jaxopt jax jaxlib ml_dtypes opt_einsum`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ferrostep.implicit import linear, optimality, root
from ferrostep.projections import simplex
from tests.solutions import f64

X, Y = f64([[1.0, 2.0], [0.0, 1.0], [-1.0, 1.0], [2.0, 0.0]]), f64(1.0, -1.0, 0.5, 2.0)


def loss(w: Tensor, decay: Tensor) -> Tensor:
    return 0.5 * (X @ w - Y).square().sum() + 0.5 * (decay * w.square()).sum()


def ridge(_initial: Tensor, decay: Tensor) -> Tensor:
    return torch.linalg.solve(X.mT @ X + torch.diag(decay), X.mT @ Y)


def test_first_derivatives_are_those_of_torchopt() -> None:
    torchopt = pytest.importorskip("torchopt")
    solve = torchopt.linear_solve.solve_cg(atol=1e-12)
    theirs = torchopt.diff.implicit.custom_root(torch.func.grad(loss), argnums=1, solve=solve)(ridge)
    ours = root(optimality.stationary(loss), solve=linear.cg(rtol=1e-12))(ridge)
    found = []
    for fit in (ours, theirs):
        decay = f64(0.5, 2.0).requires_grad_()
        fit(torch.zeros(2, dtype=torch.float64), decay).square().sum().backward()
        found.append(decay.grad)
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_jacobians_are_those_of_jaxopt() -> None:
    """Of a fixed point, with a solution on the boundary of the simplex: both modes."""
    jaxopt, jax = (pytest.importorskip(name) for name in ("jaxopt", "jax"))
    jax.config.update("jax_enable_x64", True)
    step, start, target = 0.3, torch.full((4,), 0.25, dtype=torch.float64), f64(0.9, 0.6, -0.5, 0.2)
    scale = f64(1.0, 3.0, 2.0, 0.5)

    def solver(initial: Any, target: Any, projection: Any) -> Any:
        w, scales = initial, scale if isinstance(initial, Tensor) else scale.numpy()
        for _ in range(200):
            w = projection(w - step * scales * (w - target))
        return w

    @jaxopt.implicit_diff.custom_fixed_point(
        lambda w, c: jaxopt.projection.projection_simplex(w - step * scale.numpy() * (w - c))
    )
    def theirs(initial: Any, c: Any) -> Any:
        return solver(initial, c, jaxopt.projection.projection_simplex)

    @root(lambda w, c: simplex(w - step * scale * (w - c)) - w)
    def ours(initial: Tensor, c: Tensor) -> Tensor:
        return solver(initial, c, simplex)

    expected = torch.tensor(jax.jacrev(theirs, argnums=1)(start.numpy(), target.numpy()).tolist(), dtype=torch.float64)
    for mode in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(mode(ours, argnums=1)(start, target), expected, rtol=1e-6, atol=1e-8)
