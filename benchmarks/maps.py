"""What is measured of functions of rows: ours beside the peers and plain torch, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from ferrostep.projections import isotonic, l1_ball, prox, simplex
from projections import Contest

LONG = ((4096, 64), (4096, 512), (1024, 1024), (64, 50_257))


def by_sorting(x: Tensor) -> Tensor:
    """The projection onto the simplex as it is written in torch."""
    ordered = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    taus = (ordered.cumsum(-1) - 1) / counts
    support = (ordered > taus).sum(-1, keepdim=True)
    return (x - taus.gather(-1, support - 1)).clamp(min=0)


def ball_by_sorting(x: Tensor) -> Tensor:
    """The projection onto the l1 ball as it is written in torch."""
    size = x.abs()
    return torch.where(size.sum(-1, keepdim=True) <= 1, x, x.sign() * by_sorting(size))


def group_lasso(x: Tensor) -> Tensor:
    """The proximal operator of the rows' norms as it is written in torch."""
    return x * (1 - 5 / x.norm(dim=-1, keepdim=True)).clamp(min=0)


def with_entmax() -> dict[str, Callable[[Tensor], Tensor]]:
    """The peer for the simplex, where it is installed."""
    try:
        from entmax import sparsemax
    except ImportError:
        return {}
    return {"entmax.sparsemax": lambda x: sparsemax(x, dim=-1)}


def by_rows(x: Tensor) -> Tensor:
    """scikit-learn's isotonic regression, row by row; no gradient."""
    from sklearn.isotonic import isotonic_regression

    rows = x.detach().numpy()
    return torch.stack([torch.from_numpy(isotonic_regression(row)) for row in rows])


class Measured(NamedTuple):
    """A map with the shapes and the contestants that it is measured with; the first is the one to beat."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    contestants: dict[str, Callable[[Tensor], Tensor]]
    backward: bool = True


def measured() -> list[Measured]:
    """All maps that are."""
    sorting = {"torch, by sorting": by_sorting, **with_entmax()}
    return [
        Measured("simplex", LONG, sorting | {"ferrostep": simplex, "torch.softmax": lambda x: x.softmax(-1)}),
        Measured("l1_ball", LONG, {"torch, by sorting": ball_by_sorting, "ferrostep": l1_ball}),
        Measured(
            "group_lasso",
            LONG,
            {
                "torch": group_lasso,
                "ferrostep": partial(prox.group_lasso, lambd=5.0),
                "(one pass: torch softshrink)": partial(softshrink, lambd=0.5),
            },
        ),
        Measured(
            "soft_threshold",
            LONG[1:2],
            {"torch softshrink": partial(softshrink, lambd=0.5), "ferrostep": partial(prox.soft_threshold, lambd=0.5)},
        ),
        Measured("isotonic", ((1000, 100),), {"scikit-learn, by rows": by_rows, "ferrostep": isotonic}, backward=False),
    ]


def projections() -> list[Contest]:
    """Of rows of several lengths: the image, and the gradient of it."""
    return [contest for map in measured() for shape in map.shapes for contest in of(map, shape)]


def of(map: Measured, shape: tuple[int, int]) -> list[Contest]:
    """The contests of one map with one shape."""
    x, v = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(2))
    leaf = x.clone().requires_grad_()
    title = f"{map.name} {shape}"
    found = [Contest(title, {name: partial(f, x) for name, f in map.contestants.items()})]
    if map.backward:
        images = {name: f(leaf) for name, f in map.contestants.items()}
        backward = {
            name: partial(torch.autograd.grad, image, leaf, v, retain_graph=True) for name, image in images.items()
        }
        found.append(Contest(f"{title}, backward", backward))
    return found
