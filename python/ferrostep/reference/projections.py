"""Projections of rows and proximal operators in plain torch, along the last dimension.

autograd differentiates them, in their parameters, too, which are numbers or tensors that broadcast with the rows. On a
kink, the derivative is that of the side that the result shows. They are computed in float64 (float32 on devices that
lack it) and rounded once; a NaN makes its row NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ferrostep.reference import checks

Parameter = float | Tensor


def rounded_once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, computed in the wide dtype and rounded to that of its first argument."""

    @wraps(function)
    def rounded(x: Tensor, *parameters: Any, **named: Any) -> Tensor:
        parameters = tuple(checks.wide(p) if isinstance(p, Tensor) else p for p in parameters)
        named = {name: checks.wide(p) if isinstance(p, Tensor) else p for name, p in named.items()}
        return function(checks.wide(x), *parameters, **named).to(x.dtype)

    return rounded


def constant(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """What the function makes of tensors, over whose leading dimensions it is batched: a constant to autograd."""
    if checks.is_functionalized():  # without a function of our own, a graph would have what these numbers lead to
        raise NotImplementedError("torch.func.functionalize does not support this map, whose pieces are searched for")
    result: Tensor = _Constant.apply(function, *tensors)
    return result


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return function(*(x.detach() for x in tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)
        ctx.needs_nothing = (None,) * len(inputs)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        return ctx.needs_nothing

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: Callable[..., Tensor], *tensors: Tensor
    ) -> tuple[Tensor, int]:
        batched = [
            x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0)
            for x, at in zip(tensors, in_dims[1:], strict=True)
        ]
        return _Constant.apply(function, *batched), 0


@rounded_once
def simplex(x: Tensor, s: Parameter = 1.0) -> Tensor:
    """``max(x - tau, 0)`` with the sum ``s``, by sorting (Held, Wolfe and Crowder 1974).

    Infinite numbers share the sum among them.
    """
    top = x.amax(-1, keepdim=True).detach()
    below = torch.where(top.isinf(), torch.where(x == top, 0.0, -torch.inf), x - top)
    least = -2 * (s.detach() if isinstance(s, Tensor) else torch.as_tensor(s, dtype=x.dtype)) - 1
    below = torch.where(below < least, least, below)  # what falls out anyway; its sums might be infinite
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    ordered = below.sort(-1, descending=True).values
    taus = (ordered.cumsum(-1) - s) / counts
    support = (ordered > taus).sum(-1, keepdim=True)
    rest = below - taus.gather(-1, (support - 1).clamp(min=0))
    return torch.where(rest <= 0, 0.0, rest)


@rounded_once
def l1_ball(x: Tensor, r: Parameter = 1.0) -> Tensor:
    """In the ball ``x``, else the simplex' projection of the magnitudes, with the signs of ``x``."""
    inside = x.abs().sum(-1, keepdim=True) <= r
    return torch.where(inside, x, x.sign() * simplex(x.abs(), r))


@rounded_once
def l2_ball(x: Tensor, r: Parameter = 1.0) -> Tensor:
    """``x * min(1, r / norm)``; infinite numbers share the norm among them."""
    infinite = x.isinf()
    outside = torch.where(infinite.any(-1, keepdim=True), x.sign() * infinite, x)
    inside = (_norm(x) <= r) | (outside == 0).all(-1, keepdim=True)
    outside = torch.where(inside, 1.0, outside)
    unit = outside / _scale(outside)
    return torch.where(inside, x, unit * (r / unit.square().sum(-1, keepdim=True).sqrt()))


def ball_curvature(x: Tensor, v: Tensor, w: Tensor, r: float) -> Tensor:
    """The derivative along ``w`` of the product of ``v`` with the l2 ball's Jacobian, as a function of ``x``."""
    x, v, w, dtype = checks.wide(x), checks.wide(v), checks.wide(w), x.dtype
    inside = (_norm(x) <= r) | (x == 0).all(-1, keepdim=True)
    outside = torch.where(inside, 1.0, x)
    norm = _norm(outside)
    u = outside / norm

    def along(y: Tensor) -> Tensor:
        return (u * y).sum(-1, keepdim=True)

    bent = along(w) * v + along(v) * w + (v * w).sum(-1, keepdim=True) * u - 3 * along(v) * along(w) * u
    return torch.where(inside, 0.0, -r / norm / norm * bent).to(dtype)


def _norm(x: Tensor) -> Tensor:
    """Of rows whose squares may be beyond the range, too."""
    scale = _scale(x)
    norm: Tensor = scale * torch.linalg.vector_norm(x / scale, dim=-1, keepdim=True)
    return norm


def _scale(x: Tensor) -> Tensor:
    """The greatest size in each row, where that is neither 0 nor infinite."""
    top = x.abs().amax(-1, keepdim=True).detach()
    return torch.where((top > 0) & top.isfinite(), top, 1.0)


@rounded_once
def box(x: Tensor, lo: Parameter, hi: Parameter) -> Tensor:
    """``x``, but ``lo`` where it is below and ``hi`` where it is above."""
    return torch.where(x <= lo, lo, torch.where(x >= hi, hi, x))


def linf_ball(x: Tensor, r: Parameter = 1.0) -> Tensor:
    """The box from ``-r`` to ``r``."""
    return box(x, -r, r)


def nonnegative(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return box(x, 0.0, torch.inf)


@rounded_once
def hyperplane(x: Tensor, a: Tensor, b: Parameter) -> Tensor:
    """``x - a (a.x - b) / (a.a)``."""
    return x - a * (((a * x).sum(-1, keepdim=True) - b) / a.square().sum(-1, keepdim=True))


@rounded_once
def halfspace(x: Tensor, a: Tensor, b: Parameter) -> Tensor:
    """The hyperplane's projection where ``a.x > b``, else ``x``."""
    return torch.where((a * x).sum(-1, keepdim=True) <= b, x, hyperplane(x, a, b))


@rounded_once
def box_section(x: Tensor, lo: Tensor, hi: Tensor, w: Tensor, c: Parameter) -> Tensor:
    """``clip(x - t w, lo, hi)``, with a ``t`` such that ``w.p = c``.

    ``t`` is between two neighbours of the points where a number meets a bound; there, all is linear.
    """
    lo, hi, w = (each.expand(x.shape) for each in (lo, hi, w))
    total = torch.as_tensor(c, dtype=x.dtype, device=x.device).expand(x[..., :1].shape)
    middle = constant(_between_bends, x, lo, hi, w, total)
    moved = (x - middle * w).detach()
    free = (lo < moved) & (moved < hi)
    bound = torch.where(moved <= lo, lo, hi)
    square = torch.where(free, w.square(), 0.0).sum(-1, keepdim=True)
    at_zero = torch.where(free, w * x, w * bound).sum(-1, keepdim=True)
    t = (at_zero - total) / torch.where(square > 0, square, 1.0)
    image = torch.where(free, x - t * w, bound)
    return torch.where(x.isfinite().all(-1, keepdim=True), image, torch.nan)


def _between_bends(x: Tensor, lo: Tensor, hi: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """A point in the piece of ``t`` where ``w.clip(x - t w, lo, hi) = c``, by bisecting the ends of the pieces."""
    bends = torch.cat([torch.where(w == 0, 0.0, (x - bound) / w) for bound in (lo, hi)], -1).sort(-1).values
    first = torch.zeros_like(bends[..., :1], dtype=torch.long)
    last = torch.full_like(first, bends.shape[-1])
    for _ in range(bends.shape[-1].bit_length()):
        middle = (first + last) // 2
        t = bends.gather(-1, middle.clamp(max=bends.shape[-1] - 1))
        above = (w * (x - t * w).clamp(lo, hi)).sum(-1, keepdim=True) > c
        first = torch.where(above & (first < last), middle + 1, first)
        last = torch.where(above, last, middle)
    before, after = (bends.gather(-1, at.clamp(0, bends.shape[-1] - 1)) for at in (first - 1, first))
    return (before + after) / 2


@rounded_once
def isotonic(x: Tensor, weight: Tensor | None = None, increasing: bool | float = True) -> Tensor:
    """Means by weights over the blocks that pooling adjacent violators leaves."""
    weight = torch.ones_like(x) if weight is None else weight.expand(x.shape)
    if not increasing:
        return -isotonic(-x, weight)
    blocks = constant(_blocks, x, weight)
    origin = torch.where(x[..., :1].isfinite(), x[..., :1], 0.0).detach()
    means = _means(x - origin, weight, blocks) + origin
    return torch.where(x.isnan().any(-1, keepdim=True), torch.nan, means)


def _means(x: Tensor, weight: Tensor, blocks: Tensor) -> Tensor:
    """For each element the mean over its block, by the numbers of the blocks."""
    sums, weights = (torch.zeros_like(x).scatter_add(-1, blocks, each) for each in (weight * x, weight))
    return sums.gather(-1, blocks) / weights.gather(-1, blocks)


def _blocks(x: Tensor, weight: Tensor) -> Tensor:
    """The number of each element's block: neighbours that do not rise are one, until all do."""
    blocks = torch.arange(x.shape[-1], device=x.device).expand(x.shape)
    while True:
        means = _means(x, weight, blocks)
        ends = blocks[..., 1:] != blocks[..., :-1]
        rises = ends & ~(means[..., 1:] <= means[..., :-1])
        if torch.equal(rises, ends):
            return blocks
        blocks = torch.nn.functional.pad(rises.long().cumsum(-1), (1, 0))


@rounded_once
def sorted_l1(x: Tensor, w: Tensor) -> Tensor:
    """SLOPE's proximal operator: magnitudes less weights, in order, pooled where they rise and not below 0."""
    pooled = _pooled(x.abs(), w)
    return torch.where(pooled <= 0, 0.0, pooled) * x.sign()


@rounded_once
def permutahedron(x: Tensor, w: Tensor) -> Tensor:
    """``x`` less the nearest numbers to ``x - w``, both in order, that do not rise in this order."""
    return x - _pooled(x, w)


def _pooled(x: Tensor, w: Tensor) -> Tensor:
    order = x.argsort(dim=-1, descending=True, stable=True)
    weights = w.sort(-1, descending=True).values
    return isotonic(x.gather(-1, order) - weights, None, False).gather(-1, order.argsort(-1))


@rounded_once
def soft_threshold(x: Tensor, lambd: Parameter) -> Tensor:
    """``sign(x) max(abs(x) - lambd, 0)``."""
    cut = (x.abs() <= lambd) & (torch.as_tensor(lambd, dtype=x.dtype) > 0)
    return torch.where(cut, 0.0, x - lambd * x.sign().detach())


@rounded_once
def elastic_net(x: Tensor, lambd: Parameter, gamma: Parameter) -> Tensor:
    """Of ``lambd (abs(x) + gamma x^2 / 2)``: the soft threshold over ``1 + lambd gamma``."""
    return soft_threshold(x, lambd) / (1 + lambd * gamma)


@rounded_once
def ridge(x: Tensor, lambd: Parameter) -> Tensor:
    """Of ``lambd x^2 / 2``: ``x / (1 + lambd)``."""
    return x / (1 + lambd)


@rounded_once
def nonnegative_lasso(x: Tensor, lambd: Parameter) -> Tensor:
    """``max(x - lambd, 0)``."""
    return torch.where(x <= lambd, 0.0, x - lambd)


@rounded_once
def nonnegative_ridge(x: Tensor, lambd: Parameter) -> Tensor:
    """``max(x, 0) / (1 + lambd)``."""
    return torch.where(x <= 0, 0.0, x) / (1 + lambd)


@rounded_once
def group_lasso(x: Tensor, lambd: Parameter) -> Tensor:
    """``max(0, 1 - lambd / norm) x``: what the projection onto the l2 ball takes away."""
    return x - l2_ball(x, lambd)


@rounded_once
def group_lasso_of(x: Tensor, lambd: Parameter, groups: Tensor) -> Tensor:
    """The same of the norms of several groups of a row, by the number of each element's group."""
    groups = groups.long().expand(x.shape)
    count = int(groups.max()) + 1 if groups.numel() else 0
    zeros, scale = x.new_zeros(*x.shape[:-1], count), _scale(x)
    square = zeros.scatter_add(-1, groups, (x / scale).square()).gather(-1, groups)
    norm = scale * torch.where(square > 0, square, 1.0).sqrt()
    return torch.where((square > 0) & (norm > lambd), x - x * (lambd / norm), 0.0 * x)


@rounded_once
def linf(x: Tensor, lambd: Parameter) -> Tensor:
    """Of ``lambd max(abs(x))``: what the projection onto the l1 ball takes away."""
    return x - l1_ball(x, lambd)
