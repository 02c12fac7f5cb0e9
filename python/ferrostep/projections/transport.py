"""Entropic optimal transport, in plain torch: Sinkhorn's iteration in logarithms, and its derivatives by Newton."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ferrostep import maps
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import real
from ferrostep.projections.parameters import refuse_where
from ferrostep.reference import checks
from ferrostep.reference.projections import constant

MOST_STEPS = 10_000
LOOK_EVERY = 10
CONVERGED = 1e-12
"""How little a step changes potentials, in units of ``eps``, in the end."""
TOLERANCE = 1e-6
"""How far sums may be apart that are to be equal, as a part of them."""


def transport(C: Tensor, a: Tensor, b: Tensor, eps: float = 0.1) -> Tensor:
    """The plan P with the marginals ``a`` and ``b`` of least ``<C, P> + eps sum P (log P - 1)`` (arXiv 1306.0895).

    Sinkhorn's iteration, in logarithms, finds the potentials, of which autograd sees nothing. Where a derivative is
    wanted, two steps of Newton's method, on the m + n potentials at once, follow, which leave them where they are and
    carry the derivatives up to the third order, without those of the iteration.

    Args:
        C: costs of shape (..., n, m), of any float dtype, n and m at least 1.
        a: positive numbers of shape (n,) or (..., n): the sums of P's rows.
        b: positive numbers of shape (m,) or (..., m) with the same sum: those of its columns.
        eps: a positive number: how much entropy counts, in the unit of ``C``. Default 0.1.

    Returns:
        A tensor of the shape and dtype of ``C``.

    Warns:
        UserWarning: the iteration has not converged in 10000 steps, as with an ``eps`` far below the costs.

    Raises:
        TypeError, ValueError, RuntimeError: no dense tensors of these shapes on one device, marginals that are not
            positive or of other sums, costs that are not finite, or an impossible ``eps``.

    Example:
        >>> import torch
        >>> from ferrostep.projections import transport
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> transport(cost, torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]), eps=1.0)
        tensor([[0.2065, 0.2935],
                [0.0435, 0.4565]])
    """
    eps = real("eps", eps, 0.0)
    if eps == 0.0:
        raise Problem.NUMBER.of("eps", eps, "a positive number")
    checks.readable("C", C)
    if C.ndim < 2 or 0 in C.shape[-2:]:
        raise Problem.SHAPE.of("C", list(C.shape), "2 or more dimensions, with an element along the last two at least")
    refuse_where("C", ~C.isfinite(), "a number that is not finite")
    rows, columns = (_marginal(name, x, C, at) for name, x, at in (("a", a, -2), ("b", b, -1)))
    sums = rows.sum(-1), columns.sum(-1)
    refuse_where("b", (sums[0] - sums[1]).abs() > TOLERANCE * sums[0], "another sum than a")
    scaled = checks.wide(C) / eps
    potentials = constant(_potentials, scaled, rows.log(), columns.log())
    if not maps.is_concrete(C) or (torch.is_grad_enabled() and any(x.requires_grad for x in (C, a, b))):
        for _ in range(2):
            potentials = _newton(potentials, scaled, rows, columns)
    return _plan(potentials, scaled).to(C.dtype)


def birkhoff(x: Tensor, eps: float = 0.1) -> Tensor:
    """The doubly stochastic matrix nearest to ``exp(x / eps)`` in the sense of Kullback and Leibler.

    Its rows and columns sum up to 1; with a small ``eps`` it nears the permutation of the greatest sum of ``x``. This
    is :func:`transport` with costs ``-x`` and all marginals 1, derivatives included.

    Args:
        x: shape (..., n, n), of any float dtype, n at least 1.
        eps: a positive number, in the unit of ``x``. Default 0.1.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        TypeError, ValueError, RuntimeError: no dense tensor of square matrices of finite numbers, or an impossible
            ``eps``.

    Example:
        >>> import torch
        >>> from ferrostep.projections import birkhoff
        >>> birkhoff(torch.tensor([[0.25, 0.0], [0.0, 0.0]]))
        tensor([[0.7773, 0.2227],
                [0.2227, 0.7773]])
    """
    checks.readable("x", x)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2] or x.shape[-1] == 0:
        raise Problem.SHAPE.of("x", list(x.shape), "square matrices of an element at least")
    ones = x.new_ones(x.shape[-1])
    return transport(-x, ones, ones, eps)


def _marginal(name: str, x: Tensor, cost: Tensor, at: int) -> Tensor:
    """Positive numbers of the shape of sums of costs."""
    checks.readable(name, x)
    whole = [*cost.shape[:-2], cost.shape[at]]
    if list(x.shape) not in (whole, whole[-1:]):
        raise Problem.SHAPE.of(name, list(x.shape), f"{whole[-1:]} or {whole}, as C has")
    checks.like(name, x, cost, shape=x.shape)
    refuse_where(name, ~((x > 0) & x.isfinite()), "a number that is not positive or not finite")
    return checks.wide(x).expand(whole)


def _potentials(scaled: Tensor, log_a: Tensor, log_b: Tensor) -> Tensor:
    """Those of the rows and of the columns, one after the other, in units of ``eps``."""
    g = torch.zeros_like(log_b)
    for step in range(1, MOST_STEPS + 1):
        f = log_a - (g.unsqueeze(-2) - scaled).logsumexp(-1)
        before, g = g, log_b - (f.unsqueeze(-1) - scaled).logsumexp(-2)
        if step % LOOK_EVERY == 0 and (g - before).abs().amax() <= CONVERGED * (1 + g.abs().amax()):
            break
    else:
        change = float((g - before).abs().amax())
        warnings.warn(f"transport has not converged: a step changes potentials by {change:.1e} eps", stacklevel=6)
    return torch.cat([f, g], -1)


def _plan(potentials: Tensor, scaled: Tensor) -> Tensor:
    rows = scaled.shape[-2]
    f, g = potentials[..., :rows], potentials[..., rows:]
    return (f.unsqueeze(-1) + g.unsqueeze(-2) - scaled).exp()


def _newton(potentials: Tensor, scaled: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A step on all potentials but the last, which is free to be anything."""
    plan = _plan(potentials, scaled)
    rows, columns = plan.sum(-1), plan.sum(-2)
    top = torch.cat([rows.diag_embed(), plan], -1)
    jacobian = torch.cat([top, torch.cat([plan.mT, columns.diag_embed()], -1)], -2)
    excess = torch.cat([rows - a, columns - b], -1)
    step = torch.linalg.solve(jacobian[..., :-1, :-1], excess[..., :-1])
    return potentials - torch.nn.functional.pad(step, (0, 1))
