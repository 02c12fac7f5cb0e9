"""What is measured of functions of rows: ours beside the peers and plain torch, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ferrostep.projections import simplex
from projections import Contest

SHAPES = ((4096, 64), (4096, 512), (1024, 1024), (64, 32_000))


def by_sorting(x: Tensor) -> Tensor:
    """The projection onto the simplex as it is written in torch."""
    ordered = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    taus = (ordered.cumsum(-1) - 1) / counts
    support = (ordered > taus).sum(-1, keepdim=True)
    return (x - taus.gather(-1, support - 1)).clamp(min=0)


def implementations() -> dict[str, Callable[[Tensor], Tensor]]:
    """Of the projection onto the simplex; peers where they are installed."""
    found: dict[str, Callable[[Tensor], Tensor]] = {"torch, by sorting": by_sorting}
    try:
        from entmax import sparsemax
    except ImportError:
        pass
    else:
        found["entmax.sparsemax"] = lambda x: sparsemax(x, dim=-1)
    return {**found, "ferrostep": simplex, "torch.softmax": lambda x: x.softmax(-1)}


def projections() -> list[Contest]:
    """Onto the simplex, of rows of several lengths."""
    return [contest for shape in SHAPES for contest in of(shape)]


def of(shape: tuple[int, int]) -> list[Contest]:
    """The image, and the gradient of it."""
    x, v = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(2))
    leaf = x.clone().requires_grad_()
    forward, backward = {}, {}
    for name, f in implementations().items():
        y = f(leaf)
        forward[name] = partial(f, x)
        backward[name] = partial(torch.autograd.grad, y, leaf, v, retain_graph=True)
    title = f"simplex {shape}"
    return [Contest(title, forward), Contest(f"{title}, backward", backward)]
