"""States in 8 bits as checkpoints have them, ours and others', and as an optimizer keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ferrostep.errors import Problem
from ferrostep.optim import shards
from ferrostep.optim.base import is_in_codes, scale_of
from ferrostep.reference.codes import BLOCK_SIZE, Codes, blocks_of, book, decode, encode

if TYPE_CHECKING:
    from ferrostep.optim.rules import Rule

WRAPPED = "__bnb_optimizer_quant_state__"
"""Under which bitsandbytes keeps, in checkpoints, what FSDP is not to gather."""
SIZES = tuple(2**i for i in range(6, 13))
"""Of the blocks of bitsandbytes."""


def own_form(saved: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """A parameter's state under our names. Others' codes become ours or, where they mean something else, numbers.

    bitsandbytes has ``state1``, ``qmap1``, ``absmax1``, ``state2``, ...; torchao a tensor with ``codes``, ``scale`` and
    ``qmap``.
    """
    state = dict(saved)
    state.update(state.pop(WRAPPED, {}))
    for number, name in enumerate(rule.states, 1):
        theirs = [f"{part}{number}" for part in ("state", "absmax", "qmap")]
        value: Any = state.get(name)
        if state.keys() >= set(theirs):
            codes, scale, values = map(state.pop, theirs)
            size = next((size for size in SIZES if blocks_of(codes.numel(), size) == len(scale)), BLOCK_SIZE)
            state.update(_own_codes(name, rule, codes, scale, values, size))
        elif isinstance(state.get(theirs[0]), Tensor) and state[theirs[0]].is_floating_point():
            state[name] = state.pop(theirs[0])
        elif all(hasattr(value, part) for part in ("codes", "scale", "qmap", "block_size")):
            state.update(_own_codes(name, rule, value.codes, value.scale, value.qmap, value.block_size))
    return state


def _own_codes(name: str, rule: Rule, codes: Tensor, scale: Tensor, values: Tensor, size: int) -> dict[str, Tensor]:
    _check_scale(name, codes, scale, size)
    ours = book(signed=rule.signed.get(name, True))
    # Theirs are worked out in float32, some of them an ulp beside ours.
    if size == BLOCK_SIZE and values.shape == ours.shape and torch.allclose(values.cpu(), ours, rtol=1e-6, atol=0.0):
        return {name: codes, scale_of(name): scale}
    return {name: decode(codes, scale, values, size)}


def as_kept(saved: Mapping[str, Any], rule: Rule, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state with codes for numbers, or numbers for codes, where an optimizer keeps these."""
    state = dict(saved)
    for name, signed in rule.signed.items():
        value, scale = state.get(name), state.get(scale_of(name))
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
            continue  # the step will name it in its error
        if scale is None and value.dtype == torch.uint8:
            raise KeyError(f"a state has codes in {name}, but no {scale_of(name)} to tell what they stand for")
        if isinstance(scale, Tensor) and value.dtype != torch.uint8:
            raise Problem.DTYPE.of(name, value.dtype, f"torch.uint8: codes, as there is {scale_of(name)}")
        if is_in_codes(name, p, group):
            if scale is None and shards.is_distributed(value) == shards.is_distributed(p):
                state[name], state[scale_of(name)] = _encoded(value, signed)
        elif isinstance(scale, Tensor):
            _check_scale(name, value, scale, BLOCK_SIZE)
            state[name] = Codes(value, state.pop(scale_of(name)), signed).decode()
    return state


def _encoded(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes for numbers, and their scales; of a DTensor those of this rank's shard."""
    if not shards.is_distributed(x):
        return encode(x, signed=signed)
    codes, scale = encode(shards.local(x), signed=signed)
    return shards.of_local(codes, x), scale


def for_other_ranks(state: Mapping[str, Any], rule: Rule) -> dict[str, Any]:
    """The state of a DTensor with numbers for codes, which mean something only to the rank that has their scales."""
    state = dict(state)
    for name, signed in rule.signed.items():
        codes = state.get(name)
        if scale_of(name) in state and shards.is_distributed(codes):
            numbers = Codes(shards.local(codes), state.pop(scale_of(name)), signed).decode()
            state[name] = shards.of_local(numbers, codes)
    return state


def _check_scale(name: str, codes: Tensor, scale: Tensor, size: int) -> None:
    blocks = [blocks_of(codes.numel(), size)]
    if list(scale.shape) != blocks:
        raise Problem.SHAPE.of(scale_of(name), list(scale.shape), f"{blocks}: one for each {size} codes")
