"""What the kernels check of their arguments, for plain torch: the same errors, before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ferrostep.errors import NAMED_FLOATS, Problem, wrong_kind

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def wide(x: Tensor) -> Tensor:
    """In the precision that sums are taken in: float64, or float32 on devices that lack it."""
    return x.float() if x.device.type == "mps" else x.double()


def tensor(name: str, x: Any, expected: str = "a torch.Tensor") -> None:
    """Refuse what is no tensor."""
    if not isinstance(x, Tensor):
        raise wrong_kind(name, x, expected)


def finite(**numbers: float) -> None:
    """Refuse NaN and infinity, and what is no number."""
    for name, x in numbers.items():
        if not hasattr(x, "__float__"):
            raise wrong_kind(name, x, "a number")
        if not math.isfinite(x):
            raise Problem.NUMBER.of(name, x, "a finite number")


def alike(tensors: Iterable[tuple[str, Any]], *, pairs: bool = False) -> None:
    """Refuse what is no tensor of the first one's shape, dtype and device; or complex, without `pairs`."""
    first: Tensor | None = None
    for name, x in tensors:
        tensor(name, x)
        if x.layout != torch.strided:
            raise Problem.LAYOUT.of(name, x.layout, torch.strided)
        if x.dtype not in FLOATS and not (pairs and x.is_complex()):
            raise Problem.DTYPE.of(name, x.dtype, NAMED_FLOATS)
        if first is None:
            first = x
        if x.shape != first.shape:
            raise Problem.SHAPE.of(name, list(x.shape), list(first.shape))
        if x.dtype != first.dtype:
            raise Problem.DTYPE.of(name, *(str(each.dtype).removeprefix("torch.") for each in (x, first)))
        if x.device != first.device:
            raise Problem.DEVICE.of(name, x.device, first.device)


def lists(named: Iterable[tuple[str, Sequence[Any]]]) -> None:
    """Refuse lists of tensors (or None) of which lengths, devices, or shapes and dtypes at one place, differ."""
    given = list(named)
    first, like = given[0] if given else ("", [])
    for name, tensors in given:
        if len(tensors) != len(like):
            raise Problem.COUNT.of(name, f"{len(tensors)} tensors", f"{len(like)}, as {first} has")
    present = [
        [(f"{name}[{place}]", tensors[place]) for name, tensors in given if tensors[place] is not None]
        for place in range(len(like))
    ]
    for tensors in present:
        alike(tensors, pairs=True)
    devices = [(name, x.device) for tensors in present for name, x in tensors]
    for name, device in devices:
        if device != devices[0][1]:
            raise Problem.DEVICE.of(name, device, f"{devices[0][1]}, as {devices[0][0]}")


def dimensions(name: str, x: Tensor, dims: int | Sequence[int] | None, *, scaled: bool = False) -> None:
    """Refuse a tensor without a batch, and dimensions that it has not, that come twice, or the batch's if `scaled`."""
    if x.ndim == 0:
        raise ValueError(f"{name} has no dimension, expected one for the batch at least")
    seen = set()
    for dim in [] if dims is None else [dims] if isinstance(dims, int) else dims:
        if not -x.ndim <= dim < x.ndim or dim % x.ndim in seen:
            raise Problem.NUMBER.of("dims", dim, f"each of {x.ndim} dimensions at most once")
        seen.add(dim % x.ndim)
    if scaled and 0 in seen:
        raise ValueError("Invalid dims: 0 is the dimension of the samples, each of which has its own scale")


def rows(name: str, x: Any, dim: int) -> int:
    """The dimension, counted from the last; refuse a tensor that has it not, or with no element along it."""
    alike([(name, x)])
    if not hasattr(dim, "__index__"):
        raise wrong_kind("dim", dim, "an integer")
    shape = list(x.shape)
    if not shape:
        raise Problem.SHAPE.of(name, shape, "1 or more dimensions")
    if not -len(shape) <= dim < len(shape):
        expected = f"{-len(shape)} to {len(shape) - 1} for {name} of shape {shape}"
        raise IndexError(f"Invalid dim: {dim}; expected {expected}")
    if shape[dim] == 0:
        raise Problem.SHAPE.of(name, shape, f"an element along dim {dim} at least")
    return dim if dim < 0 else dim - len(shape)
