"""The maps that the contract is tested over. A new one joins by one entry; a test holds them to the public names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import ferrostep.numpy
from ferrostep import maps, projections
from ferrostep.projections import prox

Row = npt.NDArray[np.float64]
Argument = float | Callable[[int], Row]


@dataclass(frozen=True)
class Entry:
    """A map with its arguments."""

    function: Callable[..., Tensor]
    oracle: Callable[..., Row]
    """The image of one row of float64, found in another way than by kernel or reference, by the row and arguments."""
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    """Numbers, and functions from the length of rows to a number for each of their elements."""
    case: str = ""
    is_projection: bool = True
    """Whether it is one onto a set, so that it leaves its images as they are."""

    @property
    def name(self) -> str:
        return self.function.__name__

    def __str__(self) -> str:
        return f"{self.name}-{self.case}" if self.case else self.name

    @property
    def has_rows(self) -> bool:
        """Whether rows are mapped, along a dimension, or numbers by themselves."""
        return maps.MAPS[self.name].has_rows

    @property
    def by_numbers(self) -> bool:
        """Whether all arguments are numbers."""
        return not any(callable(value) for value in self.arguments.values())

    @property
    def in_place(self) -> Callable[..., Tensor] | None:
        found: Callable[..., Tensor] | None = getattr(projections, f"{self.name}_", None)
        return found

    @property
    def numpy(self) -> Callable[..., npt.NDArray[Any]]:
        module: ModuleType = ferrostep.numpy.prox if hasattr(prox, self.name) else ferrostep.numpy.projections
        found: Callable[..., npt.NDArray[Any]] = getattr(module, self.name)
        return found

    def given(self, size: int) -> dict[str, Any]:
        """The arguments for rows of this length, as arrays and numbers."""
        return {name: value(size) if callable(value) else value for name, value in self.arguments.items()}

    def tensors(self, size: int) -> dict[str, Any]:
        """The same, as tensors and numbers."""
        given = self.given(size).items()
        return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in given}

    def along(self, dim: int) -> dict[str, int]:
        """The dimension as an argument, where there is one."""
        return {"dim": dim} if self.has_rows else {}

    def __call__(self, x: Tensor, dim: int = -1) -> Tensor:
        """The map with its arguments."""
        return self.function(x, **self.tensors(x.shape[dim]), **self.along(dim))

    def change(self, x: Tensor, dim: int = -1) -> Tensor:
        """The map in place."""
        assert self.in_place is not None
        return self.in_place(x, **self.tensors(x.shape[dim]), **self.along(dim))

    def reference(self, x: Tensor) -> Tensor:
        """The image of rows along the last dimension in plain torch."""
        plain = maps.MAPS[self.name].plain
        return plain(x, **self.tensors(x.shape[-1]))

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """The product of ``v`` with the Jacobian transposed, as autograd has it of plain torch."""
        leaf = x.detach().clone().requires_grad_()
        product: Tensor = torch.autograd.grad(self.reference(leaf), leaf, v)[0]
        return product


def root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that does not rise falls below 0, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return low


def simplex(row: Row, s: float) -> Row:
    row = row - row.max()
    return np.maximum(row - root(lambda t: np.maximum(row - t, 0).sum() - s, -s, 0.0), 0)


def l1_ball(row: Row, r: float) -> Row:
    return row if np.abs(row).sum() <= r else np.sign(row) * simplex(np.abs(row), r)


def l2_ball(row: Row, r: float) -> Row:
    return row * min(1.0, r / max(np.linalg.norm(row), 1e-300))


def hyperplane(row: Row, a: Row, b: float) -> Row:
    length = np.linalg.norm(a)
    return row - a / length * (row @ (a / length) - b / length)


def halfspace(row: Row, a: Row, b: float) -> Row:
    return hyperplane(row, a, b) if a @ row > b else row


def box_section(row: Row, lo: Row, hi: Row, w: Row, c: Row) -> Row:
    def image(t: float) -> Row:
        return np.clip(row - t * w, lo, hi)

    return image(root(lambda t: w @ image(t) - c, -1e4, 1e4))


def isotonic(row: Row, weight: Row | None = None, increasing: bool = True) -> Row:
    """The least of the means up to later ends, the greatest over earlier beginnings."""
    if not increasing:
        return -isotonic(-row, weight)
    weight, middle = np.ones_like(row) if weight is None else weight, row.mean()
    wide = (each.astype(np.longdouble) for each in ((row - middle) * weight, weight))  # for their sums' differences
    sums, weights = (np.append(0.0, each.cumsum()) for each in wide)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (sums[None, 1:] - sums[:-1, None]) / (weights[None, 1:] - weights[:-1, None])
    means[np.tril_indices(len(row), -1)] = np.inf
    least = np.minimum.accumulate(means[:, ::-1], 1)[:, ::-1]
    least[np.tril_indices(len(row), -1)] = -np.inf
    return np.asarray(least.max(0) + middle, np.float64)


def sorted_rest(row: Row, w: Row) -> Row:
    """The isotonic regression of what a row is more than the weights, both in order."""
    order = np.argsort(-row, kind="stable")
    rest = np.empty_like(row)
    rest[order] = isotonic(row[order] - np.sort(w)[::-1], None, False)
    return rest


def shrunk(row: Row, lambd: float, gamma: float = 0.0) -> Row:
    return np.sign(row) * np.maximum(np.abs(row) - lambd, 0) / (1 + lambd * gamma)


def between(low: float, high: float) -> Callable[[int], Row]:
    """Numbers in this range, the same for every length."""
    return lambda size: low + (high - low) * np.modf(np.arange(1, size + 1) * 0.618)[0]


def entries() -> Iterator[Entry]:
    yield Entry(projections.simplex, simplex, {"s": 1.0})
    yield Entry(projections.simplex, simplex, {"s": 1e-3}, "small")
    yield Entry(projections.simplex, simplex, {"s": 60.0}, "wide")
    yield Entry(projections.l1_ball, l1_ball, {"r": 2.5})
    yield Entry(projections.l2_ball, l2_ball, {"r": 2.0})
    yield Entry(projections.linf_ball, lambda row, r: np.clip(row, -r, r), {"r": 0.7})
    yield Entry(projections.box, lambda row, lo, hi: np.clip(row, lo, hi), {"lo": -0.5, "hi": 1.25})
    yield Entry(projections.nonnegative, lambda row: np.maximum(row, 0))
    yield Entry(projections.hyperplane, hyperplane, {"a": between(-1, 2), "b": 0.5})
    yield Entry(projections.halfspace, halfspace, {"a": between(-1, 2), "b": 0.5})
    section = {"lo": between(-2, -1), "hi": between(0.5, 1), "w": between(-0.2, 1), "c": 0.25}
    yield Entry(projections.box_section, box_section, section)
    yield Entry(projections.isotonic, isotonic)
    yield Entry(projections.isotonic, isotonic, {"weight": between(0.5, 3), "increasing": False}, "weighted")
    yield Entry(projections.permutahedron, lambda row, w: row - sorted_rest(row, w), {"w": between(-1, 3)})
    yield Entry(prox.soft_threshold, shrunk, {"lambd": 0.4}, is_projection=False)
    yield Entry(prox.elastic_net, shrunk, {"lambd": 0.4, "gamma": 0.5}, is_projection=False)
    yield Entry(prox.ridge, lambda row, lambd: row / (1 + lambd), {"lambd": 0.4}, is_projection=False)
    positive = {"lambd": 0.4}
    yield Entry(prox.nonnegative_lasso, lambda row, lambd: np.maximum(row - lambd, 0), positive, is_projection=False)
    yield Entry(
        prox.nonnegative_ridge, lambda row, lambd: np.maximum(row, 0) / (1 + lambd), positive, is_projection=False
    )
    yield Entry(prox.group_lasso, lambda row, lambd: row - l2_ball(row, lambd), {"lambd": 2.0}, is_projection=False)
    yield Entry(prox.linf, lambda row, lambd: row - l1_ball(row, lambd), {"lambd": 2.5}, is_projection=False)
    yield Entry(
        prox.sorted_l1,
        lambda row, w: np.sign(row) * np.maximum(sorted_rest(np.abs(row), w), 0),
        {"w": between(0, 0.6)},
        is_projection=False,
    )


ENTRIES = tuple(entries())


def every(*chosen: Entry) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", chosen, ids=str)


every_map = every(*ENTRIES)
every_set = every(*(entry for entry in ENTRIES if entry.in_place is not None))
by_numbers = every(*{entry.name: entry for entry in ENTRIES if entry.by_numbers and entry.in_place}.values())
KINDS = ("simplex", "l2_ball", "linf_ball", "hyperplane", "isotonic-weighted")
"""One of each kind: told by the image or by the row, curved, of numbers by themselves, by vectors, not symmetric."""
every_kind = every(*(entry for entry in ENTRIES if str(entry) in KINDS))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def sample(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers, of which some rows have ties, a shift, or another scale."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if len(shape) > 1 and shape[0] > 3:
        x[1] = x[1].round()
        x[2] += 50.0
        x[3] *= 20.0
    return x.to(dtype)
