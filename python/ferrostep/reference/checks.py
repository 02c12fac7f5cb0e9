"""What the kernels check of their arguments, for plain torch: the same errors, before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ferrostep.errors import NAMED_FLOATS, Problem, wrong_kind
from ferrostep.reference.codes import Codes, blocks_of

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def wide(x: Tensor) -> Tensor:
    """In the precision that sums are taken in: float64, or float32 on devices that lack it."""
    return x.float() if x.device.type == "mps" else x.double()


def tensor(name: str, x: Any, expected: str = "a torch.Tensor") -> None:
    """Refuse what is no tensor."""
    if not isinstance(x, Tensor):
        raise wrong_kind(name, x, expected)


def finite(**numbers: float | Tensor) -> None:
    """Refuse NaN and infinity, and what is no number."""
    _where(numbers, math.isfinite, "a finite number")


def at_least_zero(**numbers: float | Tensor) -> None:
    """Refuse NaN, infinity and negative numbers, and what is no number."""
    _where(numbers, lambda x: 0 <= x < math.inf, "a finite number of at least 0")


def share(**numbers: float | Tensor) -> None:
    """Refuse what does not lie from 0 to 1, and what is no number."""
    _where(numbers, lambda x: 0 <= x <= 1, "a number from 0 to 1")


def _where(numbers: dict[str, float | Tensor], holds: Callable[[Any], Any], expected: str) -> None:
    for name, x in numbers.items():
        if not hasattr(x, "__float__") or (isinstance(x, Tensor) and x.numel() != 1):
            raise wrong_kind(name, x, "a number")
        if not holds(x):
            raise Problem.NUMBER.of(name, x, expected)


def readable(name: str, x: Any, *, pairs: bool = False) -> None:
    """Refuse what is no dense tensor of floats, or complex, without `pairs`."""
    tensor(name, x)
    if x.layout != torch.strided:
        raise Problem.LAYOUT.of(name, x.layout, torch.strided)
    if x.dtype not in FLOATS and not (pairs and x.is_complex()):
        raise Problem.DTYPE.of(name, x.dtype, NAMED_FLOATS)


def writable(name: str, x: Any) -> None:
    """Refuse a tensor that torch would not write: see :func:`is_writable`."""
    if isinstance(x, Tensor) and not is_writable(x):
        raise Problem.INFERENCE.of(name)


def is_writable(x: Tensor) -> bool:
    """Whether it has a version that a write could raise; in inference mode that does not matter."""
    return _has_version(x) or torch.is_inference_mode_enabled()


def _has_version(x: Tensor) -> bool:
    try:
        return x._version >= 0
    except RuntimeError:
        return False


def is_plain(x: Tensor) -> bool:
    """Whether it is a dense tensor of real numbers in this machine's memory, and of no other class."""
    return type(x) is Tensor and x.is_cpu and x.layout == torch.strided and x.dtype in FLOATS


def is_transformed() -> bool:
    """Whether a tensor may have a tangent, or torch.func be at work."""
    if forward_ad._current_level >= 0:
        return True
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_functionalized() -> bool:
    """Whether ``torch.func.functionalize`` is at work, which has no rule for functions of one's own."""
    if not is_transformed():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Functionalize for level in levels)


def version(x: Tensor) -> int:
    """How often a tensor has been written to; inference tensors do not count."""
    return 0 if x.is_inference() else x._version


def like(name: str, x: Tensor, other: Tensor, *, shape: Sequence[int], dtype: torch.dtype | None = None) -> None:
    """Refuse a tensor of another shape, dtype (if one is expected), or device than that of `other`."""
    if x.shape != tuple(shape):
        raise Problem.SHAPE.of(name, list(x.shape), list(shape))
    if dtype is not None and x.dtype != dtype:
        raise Problem.DTYPE.of(name, plain_name(x.dtype), plain_name(dtype))
    if x.device != other.device:
        raise Problem.DEVICE.of(name, x.device, other.device)


def codes(name: str, x: Codes, other: Tensor, *, scale: str) -> None:
    """Refuse codes of another shape than `other`, and scales (named `scale`) other than one for each block."""
    for place, part, shape, dtype in (
        (name, x.codes, other.shape, torch.uint8),
        (scale, x.scale, (blocks_of(other.numel()),), torch.float32),
    ):
        tensor(place, part)
        if part.layout != torch.strided:
            raise Problem.LAYOUT.of(place, part.layout, torch.strided)
        like(place, part, other, shape=shape, dtype=dtype)


def alike(tensors: Iterable[tuple[str, Any]], *, pairs: bool = False) -> None:
    """Refuse what is no tensor of the first one's shape, dtype and device; or complex, without `pairs`."""
    first: Tensor | None = None
    for name, x in tensors:
        readable(name, x, pairs=pairs)
        first = x if first is None else first
        like(name, x, first, shape=first.shape, dtype=first.dtype)


def counter(name: str, x: Any) -> None:
    """Refuse what does not count steps: one whole number of at least 0."""
    _scalar(name, x, lambda value: value % 1 == 0 <= value, "a whole number of at least 0")


def product(name: str, x: Any) -> None:
    """Refuse what is no product of factors from 0 to 1."""
    _scalar(name, x, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _scalar(name: str, x: Any, holds: Callable[[float], bool], expected: str) -> None:
    readable(name, x)
    if x.dtype not in (torch.float32, torch.float64) or x.numel() != 1:
        kind = f"{plain_name(x.dtype)} and {x.numel()} elements"
        raise Problem.DTYPE.of(name, kind, "one float32 or float64 number")
    if type(x) is Tensor and not holds(x.item()):
        raise Problem.VALUE.of(name, x.item(), expected)


def plain_name(dtype: torch.dtype) -> str:
    """The dtype as the kernels call it."""
    return str(dtype).removeprefix("torch.")


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
    readable(name, x)
    if not hasattr(dim, "__index__"):
        raise wrong_kind("dim", dim, "an integer")
    shape, rank = x.shape, x.ndim
    if not rank:
        raise Problem.SHAPE.of(name, [], "1 or more dimensions")
    if not -rank <= dim < rank:
        expected = f"{-rank} to {rank - 1} for {name} of shape {list(shape)}"
        raise IndexError(f"Invalid dim: {dim}; expected {expected}")
    if shape[dim] == 0:
        raise Problem.SHAPE.of(name, list(shape), f"an element along dim {dim} at least")
    return dim if dim < 0 else dim - rank
