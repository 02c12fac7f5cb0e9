"""Small trainings whose every number follows from the arguments, and comparisons to the bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


def normal(shape: Sequence[int], dtype: torch.dtype, *key: int) -> Tensor:
    """Normal numbers that follow from ``key``; the same in every dtype but for its rounding."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(tuple(shape), dtype=wide, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(shapes: Iterable[Sequence[int]], dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """Parameters of these shapes."""
    return [Parameter(normal(shape, dtype, 0, i)) for i, shape in enumerate(shapes)]


def set_gradients(params: Sequence[Tensor], step: int, scale: float = 1.0) -> None:
    """Give every parameter the gradient of a step, in the parameter's layout."""
    for i, p in enumerate(params):
        p.grad = torch.empty_like(p).copy_(normal(p.shape, p.dtype, 1, step, i) * scale).detach()


def train(optimizer: Optimizer, params: Sequence[Tensor], steps: int, start: int = 0) -> None:
    """Run steps ``start`` to ``start + steps``."""
    for step in range(start, start + steps):
        set_gradients(params, step)
        optimizer.step()


def train_beside_float32(
    optimizer: Optimizer, params: Sequence[Tensor], other: Optimizer, whole: Sequence[Tensor], steps: int
) -> None:
    """Train ``params``, and with the same gradients in float32 the float32 ones of ``other``."""
    for step in range(steps):
        set_gradients(params, step)
        for p, q in zip(params, whole, strict=True):
            q.grad = p.grad.float()
        optimizer.step()
        other.step()


def contents(optimizer: Optimizer) -> dict[str, Tensor]:
    """The parameters and all tensors of the state, by their places."""
    found = {}
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            found[f"{g}.{i}.param"] = p.detach()
            for name, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    found[f"{g}.{i}.{name}"] = value.detach()
    return found


def bits(tensor: Tensor) -> bytes:
    """The elements, in the order of the indices."""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes()


def copies(optimizer: Optimizer) -> dict[str, Tensor]:
    """The contents, copied."""
    return {name: tensor.clone() for name, tensor in contents(optimizer).items()}


def assert_same_bits(actual: Optimizer | dict[str, Tensor], expected: Optimizer | dict[str, Tensor]) -> None:
    """Fail unless parameters and states are equal in name, dtype, shape and every bit."""
    a, b = (x if isinstance(x, dict) else contents(x) for x in (actual, expected))
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert bits(a[name]) == bits(b[name]), f"{name} differs: {a[name]} {b[name]}"


def assert_close(
    actual: Optimizer | dict[str, Tensor],
    expected: Optimizer | dict[str, Tensor],
    relative: float,
    only_params: bool = False,
    least_size: float = 0.0,
) -> None:
    """Fail unless parameters and states agree, relative to the size of a tensor's numbers.

    ``least_size`` is that of the numbers they were made from, where these may have cancelled.
    """
    a, b = (x if isinstance(x, dict) else contents(x) for x in (actual, expected))
    for name in b if not only_params else [name for name in b if name.endswith("param")]:
        size = b[name].abs().double().nan_to_num(0, 0, 0).max().item() if b[name].numel() else 0.0
        size = max(size, least_size)
        torch.testing.assert_close(
            a[name],
            b[name],
            rtol=relative,
            atol=relative * size,
            equal_nan=True,
            check_dtype=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
