"""What every rule shares in plain torch: the arithmetic's type, complex numbers, and how results are rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ferrostep.reference.codes import Codes, encode
from ferrostep.reference.sums import Sum, scaled
from ferrostep.reference.terms import multiplied

BLOCK = 32_768
"""Elements that share a key of the random numbers; the Rust engine's blocks."""

_MASK32 = 0xFFFF_FFFF
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF


ReferenceRule = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""An update rule: ``rule(p, g, state, step, **hyperparameters)`` returns the new parameter and the new state.

A rule that is to know a sum takes it after ``step``, and one with a product that product.
"""

ReferenceFactor = Callable[..., Sum]
"""What a step multiplies a rule's product by: ``factor(step, **hyperparameters)``, from 0 to 1."""


def apply(
    rule: ReferenceRule,
    param: Tensor,
    grad: Tensor,
    states: Sequence[Tensor | Codes],
    step: float,
    hyperparameters: Mapping[str, Any],
    **rounding: Any,
) -> None:
    """Update ``param`` and ``states`` in place by ``rule``.

    Args:
        rule, param, grad, states, step, hyperparameters: as of :func:`updates`; shapes and dtypes, too.
        **rounding: ``rounding``, ``compensation``, ``seed``, ``number``, ``total``, ``product``, ``factor`` and
            ``noise`` of :func:`updates`.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> def descent(p, g, state, step, *, lr):
        ...     return p - lr * g, state
        >>> p = torch.ones(2)
        >>> apply(descent, p, torch.ones(2), [], 1, {"lr": 0.5})
        >>> p
        tensor([0.5000, 0.5000])
    """
    for tensor, new in updates(rule, param, grad, states, step, hyperparameters, **rounding):
        tensor.copy_(new)


def updates(
    rule: ReferenceRule,
    param: Tensor,
    grad: Tensor,
    states: Sequence[Tensor | Codes],
    step: float,
    hyperparameters: Mapping[str, Any],
    *,
    rounding: str = "nearest",
    compensation: Tensor | None = None,
    seed: int = 0,
    number: int = 0,
    total: Sum | None = None,
    product: Sum | None = None,
    factor: Sum = 1.0,
    noise: float = 0.0,
) -> list[tuple[Tensor, Tensor]]:
    """The tensors that ``rule`` updates, each with its new values; nothing is changed.

    Args:
        rule: called in float64 for float64 and complex128 parameters, else in float32; recorded by autograd if that is
            enabled.
        param, grad: of one shape, and of one dtype or with one arithmetic; complex ones are pairs of real numbers to
            the rule.
        states: of the parameter's shape, or what the rule takes; as numbers or as codes.
        step: counted from 1.
        hyperparameters: for the rule, by keyword.
        rounding: ``"nearest"`` (default), ``"stochastic"``, ``"kahan"`` or ``"split"``, as the optimizers', or
            ``"master"`` for their ``master_weights="float32"``.
        compensation: what makes up for rounding, for the last three. Default None.
        seed: of stochastic rounding and noise. Default 0.
        number: the tensor's number in the stream of random numbers. Default 0.
        total: the sum that the rule is to know, if it asks for one.
        product: that of a rule which has one, this step's factor among the others.
        factor: multiplies the gradient. Default 1.
        noise: each parameter is multiplied, after the rule, by the exponential of a normal number times this; default
            0.

    Returns:
        Pairs of a tensor and its new values, of its dtype: the states' (codes and scales of those that are codes), the
        parameter's, the compensation's.

    Raises:
        RuntimeError: shapes that do not broadcast, as torch.

    Example:
        >>> def descent(p, g, state, step, *, lr):
        ...     return p - lr * g, state
        >>> updates(descent, torch.ones(1), torch.ones(1), [], 1, {"lr": 0.5})
        [(tensor([1.]), tensor([0.5000]))]
    """
    if param.is_complex():
        param, grad = torch.view_as_real(param), torch.view_as_real(grad)
        states = [torch.view_as_real(s) if isinstance(s, Tensor) and s.is_complex() else s for s in states]
        compensation = torch.view_as_real(compensation) if compensation is not None else None
    work = torch.float64 if param.dtype == torch.float64 else torch.float32
    # What autograd keeps of the old values must not be the memory that is about to change.
    copy = torch.is_grad_enabled()
    p = param.to(work, copy=copy)
    if rounding == "kahan" and compensation is not None:
        p = p + compensation.to(work)
    elif rounding == "split" and compensation is not None:
        p = _joined(param, compensation)
    elif rounding == "master" and compensation is not None:
        p = _unless_changed(compensation, param)
    numbers = tuple(_as_numbers(s, work, copy=copy) for s in states)
    g, known = scaled(grad.to(work), factor), [x for x in (total, product) if x is not None]
    # A parameter without dimensions would take those and the dtype of a number that is a tensor.
    told = {name: x.squeeze().to(work) if isinstance(x, Tensor) else x for name, x in hyperparameters.items()}
    p, new_states = rule(p, g, numbers, step, *known, **told)
    in_memory = not any(isinstance(state, Codes) for state in states)
    order = _order_in_memory(param) if in_memory else list(range(param.dim()))
    stream = key_of(key_of(seed, number), int(step))
    if noise != 0:
        p = multiplied(p, _normals(param, order, stream).to(p) * noise)
    changed = [
        pair
        for state, old, new in zip(states, numbers, new_states, strict=True)
        for pair in stored(state, new)
        if new is not old or (isinstance(state, Tensor) and state.is_floating_point())  # what is only read stays
    ]
    if rounding == "stochastic":
        return [*changed, (param, _round_stochastically(p, param.dtype, order, stream))]
    if compensation is None:
        return [*changed, (param, p.to(param.dtype))]
    if rounding == "master":
        return [*changed, (param, p.to(param.dtype)), (compensation, p)]
    rounded, rest = _split(p) if rounding == "split" else _rounded_with_loss(p, param.dtype)
    return [*changed, (param, rounded), (compensation, rest)]


def _as_numbers(state: Tensor | Codes, work: torch.dtype, *, copy: bool) -> Tensor:
    """A state as a rule takes it: in the arithmetic's type, unless it is of whole numbers."""
    if isinstance(state, Codes):
        return state.decode()
    return state.to(work, copy=copy) if state.is_floating_point() else state


def stored(state: Tensor | Codes, new: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The tensors of a state, each with what stands for the new numbers.

    Args:
        state: numbers of any dtype, or codes.
        new: of the same shape.

    Raises:
        RuntimeError: never, of tensors that have memory.

    Example:
        >>> stored(torch.zeros(2, dtype=torch.bfloat16), torch.ones(2))
        [(tensor([0., 0.], dtype=torch.bfloat16), tensor([1., 1.], dtype=torch.bfloat16))]
    """
    if isinstance(state, Codes):
        return list(zip((state.codes, state.scale), encode(new, signed=state.signed), strict=True))
    return [(state, new.to(state.dtype))]


def _rounded_with_loss(p: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest number of the dtype, and what rounding lost, in the dtype, too."""
    rounded = p.to(dtype)
    return rounded, (p - rounded.to(p.dtype)).to(dtype)


def _unless_changed(master: Tensor, param: Tensor) -> Tensor:
    """The masters, but for parameters that are not what their master rounds to: someone has written them."""
    same = master.to(param.dtype).view(torch.int16) == param.view(torch.int16)
    return torch.where(same, master, param.to(master.dtype))


def _joined(param: Tensor, low: Tensor) -> Tensor:
    """The float32 number of which a bfloat16 is the upper half, and an int16 what that is too high or too low by.

    Where they make a NaN, someone has written an infinity over an upper half: it stands.
    """
    joined = ((param.view(torch.int16).to(torch.int32) << 16) + low).view(torch.float32)
    return torch.where(joined.isnan(), param.to(torch.float32), joined)


def _split(p: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`_joined`, with the nearest bfloat16, of two the greater; NaN has no lower half."""
    bits = p.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    low = torch.where(p.isnan(), 0, bits - (upper << 16)).to(torch.int16)
    return torch.where(p.isnan(), 0x7FC0, upper).to(torch.int16).view(torch.bfloat16), low


def _order_in_memory(x: Tensor) -> list[int]:
    """The dimensions from the largest stride to the smallest."""
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda d: (-strides[d], -x.shape[d]))


def _round_stochastically(exact: Tensor, dtype: torch.dtype, order: Sequence[int], stream: int) -> Tensor:
    """Round float32 to 16 bits, up or down at random; the random numbers follow the order of the dimensions.

    With the very bits of the Rust engine, but for Muon, which takes matrix by matrix and row by row, as Lion does
    with ``kappa="row"``.
    """
    x = exact.permute(tuple(order)).reshape(-1)
    noise = _noise(x.numel(), stream).to(x.device)
    rounded = _dithered_bf16(x, noise) if dtype == torch.bfloat16 else _dithered_f16(x, noise)
    return _unordered(rounded, exact.shape, order)


def _unordered(values: Tensor, shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Values in an order of dimensions as a tensor of the shape."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return values.reshape([shape[d] for d in order]).permute(inverse)


def _dithered_bf16(x: Tensor, noise: Tensor) -> Tensor:
    bits = x.view(torch.int32).to(torch.int64) & _MASK32
    dithered = ((bits + noise) & _MASK32 & ~0xFFFF).to(torch.int32).view(torch.float32)
    return torch.where(x.isfinite(), dithered, x).to(torch.bfloat16)


def _dithered_f16(x: Tensor, noise: Tensor) -> Tensor:
    magnitude = x.abs()
    # Below 2^-14 the spacing of float16 no longer shrinks; adding it makes the digits to drop 13 there, too.
    shift = torch.where(magnitude < 2.0**-14, 2.0**-14, 0.0)
    bits = (magnitude + shift).view(torch.int32).to(torch.int64)
    dithered = ((bits + (noise & 0x1FFF)) & ~0x1FFF).to(torch.int32).view(torch.float32) - shift
    return torch.where(x.isfinite(), dithered.copysign(x), x).to(torch.float16)


def _normals(param: Tensor, order: Sequence[int], stream: int) -> Tensor:
    """A standard normal number for each element, in float64: the distribution's inverse of 23 random bits."""
    stream = key_of(stream, _MASK64)  # its own, beside that of stochastic rounding
    bits = random_bits(param.numel(), stream) >> 9
    x = (2.0 * bits + 1) * 2.0**-23 - 1  # odd multiples between -1 and 1
    return _unordered(2.0**0.5 * x.double().erfinv(), param.shape, order)


def _noise(count: int, stream: int) -> Tensor:
    """16 random bits for each of ``count`` elements, as int64: the halves of 32 for two."""
    blocks = []
    for block, start in enumerate(range(0, count, BLOCK)):
        size = min(BLOCK, count - start)
        both = _draw((size + 1) // 2, key_of(stream, block))
        blocks.append(torch.stack((both & 0xFFFF, both >> 16), -1).flatten()[:size])
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.int64)


def random_bits(count: int, stream: int) -> Tensor:
    """32 random bits for each of ``count`` elements, as int64."""
    sizes = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    drawn = [_draw(size, key_of(stream, block)) for block, size in enumerate(sizes)]
    return torch.cat(drawn) if drawn else torch.zeros(0, dtype=torch.int64)


def _draw(count: int, key: int) -> Tensor:
    """32 random bits for each of ``count`` numbers, as int64."""
    number = torch.arange(count, dtype=torch.int64)
    return _mix(_mix((number + (key & _MASK32)) & _MASK32) ^ (key >> 32))


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x21F0_AAAD) & _MASK32
    x = ((x ^ (x >> 15)) * 0x735A_2D97) & _MASK32
    return x ^ (x >> 15)


def fraction(seed: int, step: int) -> float:
    """A random number in [0, 1) for a step: 53 bits."""
    return (key_of(key_of(seed, _MASK64 - 1), step) >> 11) * 2.0**-53  # a stream of its own


def key_of(stream: int, index: int) -> int:
    """The key of block ``index`` of a stream: splitmix64."""
    z = (stream + (index + 1) * 0x9E37_79B9_7F4A_7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK64
    return z ^ (z >> 31)
