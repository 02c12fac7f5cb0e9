"""What is measured of derivatives of solutions: the vectors of conjugate gradients, a backward pass that solves by
them, and a step of BO-REP along a hypergradient, each beside what one would write in torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from ferrostep.bilevel import BOREP
from ferrostep.implicit import linear, optimality, root, vectors
from projections import Contest

SHAPES = 20 * [(50_000,)]
UNKNOWNS = 1000


def contests() -> list[Contest]:
    """All of them, in float32."""
    return [iteration(), backward(), step()]


def lists(count: int) -> list[list[Tensor]]:
    """Vectors of a million elements in 20 tensors."""
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(count)]


def iteration() -> Contest:
    """x += a p; r -= a q; r.r; p = r + b p."""
    x, r, p, q = lists(4)
    a, b = 1e-4, 0.5

    def in_torch() -> float:
        torch._foreach_add_(x, p, alpha=a)
        torch._foreach_add_(r, q, alpha=-a)
        squares = torch.stack(torch._foreach_norm(r)).square().sum().item()
        torch._foreach_mul_(p, b)
        torch._foreach_add_(p, r)
        return squares

    def ours() -> float:
        squares = vectors.descend_(r, a, q)
        vectors.advance_(x, a, p, b, r)
        return squares

    return Contest("vectors of a CG iteration, 20 tensors, 1M", {"torch foreach": in_torch, "ferrostep": ours})


def backward() -> Contest:
    """The backward pass of a ridge regression, beside the same conjugate gradients by hand: with products of matrices,
    which know what the loss is, and with those of autograd, which is as little as there can be for any loss."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2 * UNKNOWNS, UNKNOWNS, generator=generator)
    target, v = torch.randn(2 * UNKNOWNS, generator=generator), torch.randn(UNKNOWNS, generator=generator)
    decay = torch.full((UNKNOWNS,), 10.0, requires_grad=True)

    def loss(w: Tensor, decay: Tensor) -> Tensor:
        return 0.5 * (features @ w - target).square().sum() + 0.5 * (decay * w.square()).sum()

    @root(optimality.stationary(loss), solve=linear.cg(rtol=1e-5))
    def fit(_initial: None, decay: Tensor) -> Tensor:
        return torch.linalg.solve(features.mT @ features + decay.diag(), features.mT @ target)

    w = fit(None, decay)
    at, diagonal = w.detach().requires_grad_(), decay.detach()

    def by_matrix(p: Tensor) -> Tensor:
        return features.mT @ (features @ p) + diagonal * p

    def by_autograd() -> Tensor:
        gradient = torch.autograd.grad(loss(at, diagonal), at, create_graph=True)[0]
        return by_hand(lambda p: torch.autograd.grad(gradient, at, p, retain_graph=True)[0])

    def by_hand(product: Callable[[Tensor], Tensor] = by_matrix) -> Tensor:
        u, r, p = torch.zeros_like(v), v.clone(), v.clone()
        squares, tolerance = torch.dot(r, r).item(), 1e-10 * torch.dot(v, v).item()
        while squares > tolerance:
            q = product(p)
            a = squares / torch.dot(p, q).item()
            u.add_(p, alpha=a)
            r.sub_(q, alpha=a)
            before, squares = squares, torch.dot(r, r).item()
            p.mul_(squares / before).add_(r)
        return -u * at.detach()

    def ours() -> Tensor:
        return torch.autograd.grad(w, decay, v, retain_graph=True)[0]

    return Contest(
        f"backward of a ridge of {UNKNOWNS}",
        {"CG by hand": by_hand, "by hand, by autograd": by_autograd, "ferrostep": ours},
    )


def step() -> Contest:
    """m and x of BO-REP."""
    params, direction, buffers = lists(3)
    lr, momentum = 1e-4, 0.9

    def in_torch() -> None:
        torch._foreach_lerp_(buffers, direction, 1 - momentum)
        norm = torch.stack(torch._foreach_norm(buffers)).square().sum().sqrt().item()
        torch._foreach_add_(params, buffers, alpha=-lr / norm)

    upper = [p.clone().requires_grad_() for p in params]
    optimizer = BOREP(upper, [torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum)
    turns = cycle(lists(2))  # the states keep what a step was given

    def in_rust() -> None:
        direction = next(turns)
        optimizer._move(direction, partial(optimizer._keep, direction, None, 0))

    return Contest(
        "BO-REP's step, 20 tensors, 1M",
        {"torch foreach": in_torch, "ferrostep": in_rust},
    )
