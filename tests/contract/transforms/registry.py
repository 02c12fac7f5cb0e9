"""The transforms and the chains that the contract is tested over. A new transform joins by an entry of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.optim.base import arithmetic_dtype
from ferrostep.optim.muon import one_per_row
from ferrostep.reference.auon import rms_of_cosh
from ferrostep.reference.muon import normalized_rows


@dataclass(frozen=True)
class Link:
    """A transform with its numbers, and what it makes of a stack of matrices."""

    make: Callable[[], _core.Transform]
    oracle: Callable[[Tensor], Tensor]
    """From float64, as in the first step."""
    state: str | None = None
    """The name of its state, a number for every row."""


def orthogonalized(x: Tensor) -> Tensor:
    return reference.newton_schulz(x, SCHEDULE.triples(), precision="float64")


def normalized(x: Tensor) -> Tensor:
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    return x / torch.where(norm == 0, 1, norm)


def with_normalized_rows(x: Tensor, beta2: float) -> Tensor:
    return normalized_rows(x, torch.zeros(*x.shape[:-1], 1, dtype=x.dtype), beta2)[0]


def divided_by_cosh(x: Tensor, gamma: float, of_normalized: bool) -> Tensor:
    return x / (rms_of_cosh(gamma * (normalized(x) if of_normalized else x), (-2, -1)) + 0.25)


SCHEDULE = _core.Schedule("keller", 3)
NEWTON_SCHULZ: dict[str, Any] = {"eps": 0.0, "algorithm": "auto", "precision": "float64", "restarts": [2]}
COSH: dict[str, Any] = {"rms_eps": 0.25, "eps": 0.0}

ORTHOGONALIZE = Link(partial(_core.Transform.orthogonalize, schedule=SCHEDULE, **NEWTON_SCHULZ), orthogonalized)
NORMALIZE = Link(partial(_core.Transform.normalize, eps=0.0), normalized)
NORMALIZE_ROWS = Link(
    partial(_core.Transform.normalize_rows, beta2=0.9),
    partial(with_normalized_rows, beta2=0.9),
    "second_momentum_buffer",
)
DIVIDE_BY_COSH = Link(
    partial(_core.Transform.divide_by_cosh, gamma=2.0, of_normalized=False, **COSH),
    partial(divided_by_cosh, gamma=2.0, of_normalized=False),
)
DIVIDE_BY_COSH_OF_NORMALIZED = Link(
    partial(_core.Transform.divide_by_cosh, gamma=1.5, of_normalized=True, **COSH),
    partial(divided_by_cosh, gamma=1.5, of_normalized=True),
)
LINKS = (ORTHOGONALIZE, NORMALIZE, NORMALIZE_ROWS, DIVIDE_BY_COSH, DIVIDE_BY_COSH_OF_NORMALIZED)


def orthogonal(rows: int, cols: int) -> float:
    return float(min(rows, cols))


def one(_rows: int, _cols: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Chain:
    """Transforms one after the other, and what may be asked of them."""

    name: str
    links: tuple[Link, ...]
    degree: int = 0
    """To which power of a direction's size what comes of it grows."""
    squared_norm: Callable[[int, int], float] = one
    """By which the learning rate is matched to AdamW's."""
    spreads: bool = True
    """Whether an element that is not finite makes the whole matrix NaN."""

    @property
    def states(self) -> list[str]:
        """The names of the transforms' states."""
        return [link.state for link in self.links if link.state is not None]

    def oracle(self, x: Tensor) -> Tensor:
        """What the chain makes of matrices in the first step, in float64."""
        x = x.double()
        for link in self.links:
            x = link.oracle(x)
        return x


CHAINS = (
    Chain("none", (), degree=1, spreads=False),
    Chain("muon", (ORTHOGONALIZE,), squared_norm=orthogonal),
    Chain("normuon", (ORTHOGONALIZE, NORMALIZE_ROWS), squared_norm=orthogonal),
    Chain("auon", (NORMALIZE, DIVIDE_BY_COSH)),
    Chain("auon-package", (DIVIDE_BY_COSH_OF_NORMALIZED,), degree=1),
    Chain("hybrid-auon", (ORTHOGONALIZE, DIVIDE_BY_COSH), squared_norm=orthogonal),
    Chain("hybrid-auon-package", (ORTHOGONALIZE, DIVIDE_BY_COSH_OF_NORMALIZED), squared_norm=orthogonal),
    Chain("rows", (NORMALIZE_ROWS,), degree=1),
    Chain("rows-orthogonalized", (NORMALIZE_ROWS, ORTHOGONALIZE), squared_norm=orthogonal),
    Chain("rows-of-norm-1-by-cosh", (NORMALIZE_ROWS, NORMALIZE, DIVIDE_BY_COSH)),
    Chain("by-cosh-of-norm-1", (DIVIDE_BY_COSH_OF_NORMALIZED, NORMALIZE)),
)

every_chain = pytest.mark.parametrize("chain", CHAINS, ids=[chain.name for chain in CHAINS])


@dataclass
class Stepped:
    """Parameters after steps, and their states by name."""

    params: list[Tensor]
    states: dict[str, list[Tensor]]

    def tensors(self) -> list[Tensor]:
        """Everything, parameter by parameter."""
        return [tensor for all_of_one in zip(self.params, *self.states.values(), strict=True) for tensor in all_of_one]


def rule(chain: Chain, layout: str = "error", **arguments: Any) -> _core.MatrixRule:
    """The chain as an update; by default its direction is the gradient, and what comes of it is added."""
    plain = {
        "lr": 1.0,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "nesterov": False,
        "maximize": True,
        "adjust_lr": "none",
    }
    transforms = [link.make() for link in chain.links]
    return _core.MatrixRule(transforms=transforms, ndim_policy=layout, **{**plain, **arguments})


def step(
    chain: Chain,
    grads: Sequence[Tensor],
    *,
    steps: int = 1,
    threads: int = 2,
    state_dtype: torch.dtype | None = None,
    layout: str = "error",
    **arguments: Any,
) -> Stepped:
    """What steps with the same gradients make of zeros."""
    params = [torch.zeros_like(g) for g in grads]
    states = {"momentum_buffer": [torch.zeros(g.shape, dtype=state_dtype or g.dtype) for g in grads]}
    for name in chain.states:
        states[name] = [torch.zeros(one_per_row(g, layout), dtype=arithmetic_dtype(g)) for g in grads]
    for _ in range(steps):
        batch = _core.Batch()
        batch.add(rule(chain, layout, **arguments), params, list(grads), states)
        batch.run(threads)
    return Stepped(params, states)
