"""The same parameters whole and as DTensors, stepped with the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn import Parameter
from torch.optim import Optimizer

NUMBERS = ("step", "refresh", "mu_product", "sum", "eta", "of_param", "of_momentum", "variation")
"""States that are no DTensors."""

Build = Callable[..., Optimizer]


def line() -> DeviceMesh:
    """All ranks along one dimension."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


def placed(x: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    return distribute_tensor(x.detach().clone(), mesh, placements)


def split(shape: Sequence[int], dim: int) -> Placement:
    """A shard along ``dim``, if there is one; else the last, or no shard."""
    return Shard(min(dim, len(shape) - 1)) if shape else Replicate()


class Twins:
    """Parameters whole, with an optimizer of one process, and in parts."""

    def __init__(
        self,
        build: Build,
        shapes: Iterable[tuple[int, ...]],
        placements_of: Callable[[tuple[int, ...]], Sequence[Placement]],
        mesh: DeviceMesh | None = None,
        dtype: torch.dtype = torch.float32,
        **of_parts: Any,
    ) -> None:
        self.mesh = mesh or line()
        self.whole = [Parameter(torch.randn(shape, dtype=torch.float32).to(dtype)) for shape in shapes]
        self.placements = [placements_of(tuple(p.shape)) for p in self.whole]
        self.parts = [
            Parameter(placed(p, self.mesh, where)) for p, where in zip(self.whole, self.placements, strict=True)
        ]
        self.optimizers = build(self.whole), build(self.parts, **of_parts)

    def give_gradients(self) -> None:
        for p, q, where in zip(self.whole, self.parts, self.placements, strict=True):
            p.grad = torch.randn(p.shape, dtype=torch.float32).to(p.dtype)
            q.grad = placed(p.grad, self.mesh, where)

    def step(self, times: int = 3) -> None:
        for _ in range(times):
            self.give_gradients()
            for optimizer in self.optimizers:
                optimizer.step()

    def check(self, **tolerance: float) -> None:
        """Parameters and states are equal, to the bit without tolerance, and placed alike."""
        one, other = self.optimizers
        for p, q in zip(self.whole, self.parts, strict=True):
            near(q.full_tensor(), p, **tolerance)
            for name, x in one.state[p].items():
                y = other.state[q][name]
                assert isinstance(y, DTensor) or name in NUMBERS, name
                if isinstance(y, DTensor):
                    assert y.placements == q.placements, name
                    y = (y.to(torch.int32) if y.dtype == torch.int16 else y).full_tensor().to(x.dtype)
                near(torch.as_tensor(y), torch.as_tensor(x), **tolerance)


def near(x: Tensor, y: Tensor, rtol: float = 0.0, atol: float = 0.0) -> None:
    torch.testing.assert_close(x.detach(), y.detach(), rtol=rtol, atol=atol, equal_nan=True)
