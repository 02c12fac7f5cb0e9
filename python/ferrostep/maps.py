"""Functions of rows for torch: one table of maps, and what autograd, vmap and torch.compile are to know of each.

A map takes every row of a tensor, along one dimension, to a row of its image. The Rust kernels compute it for tensors
on the CPU, plain torch elsewhere. Its Jacobian is symmetric and follows from the image, so the same product serves
backward and forward mode, and is its own derivative: no order of differentiation needs more than it.

torch sees two operators, which it can trace, batch and differentiate backwards. In forward mode and within torch.func,
for which that is not enough, functions around them stand in, which torch.compile could not trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ferrostep import _core
from ferrostep.reference import checks
from ferrostep.reference import projections as reference

_core.adopt_openmp()


class Map(NamedTuple):
    """The kernel of a map by its parameters; its image and its Jacobian's product in plain torch, with these last."""

    kernel: Callable[..., _core.Map]
    forward: Callable[..., Tensor]
    vjp: Callable[..., Tensor]


MAPS = {"simplex": Map(_core.Map.simplex, reference.simplex, reference.simplex_vjp)}


def apply(name: str, x: Tensor, parameters: list[float], dim: int) -> Tensor:
    """The image of every row of ``x`` along ``dim``, as autograd has it."""
    return _image(x, name, parameters, checks.rows("x", x, dim))


@torch.no_grad()
def apply_(name: str, x: Tensor, parameters: list[float], dim: int) -> Tensor:
    """The same in place, which autograd does not record."""
    dim = checks.rows("x", x, dim)
    if torch.compiler.is_compiling() or _by_function() or not x.is_cpu:
        return x.copy_(_image(x, name, parameters, dim))
    MAPS[name].kernel(*parameters).forward(x, x, dim, torch.get_num_threads())
    return x


def _image(x: Tensor, *of: Any) -> Tensor:
    result: Tensor = (_Forward.apply if _by_function() else _forward)(x, *of)
    return result


def _product(y: Tensor, v: Tensor, *of: Any) -> Tensor:
    result: Tensor = (_Vjp.apply if _by_function() else _vjp)(y, v, *of)
    return result


def _by_function() -> bool:
    """Whether a tensor may have a tangent, or torch.func be at work: for its nested levels, operators are no match."""
    if forward_ad._current_level >= 0:
        return True
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


@torch.library.custom_op("ferrostep::map_forward", mutates_args=())
def _forward(x: Tensor, name: str, parameters: list[float], dim: int) -> Tensor:
    if not x.is_cpu:
        return MAPS[name].forward(x, *parameters, dim)
    image = torch.empty_like(x)
    MAPS[name].kernel(*parameters).forward(x, image, dim, torch.get_num_threads())
    return image


@torch.library.custom_op("ferrostep::map_vjp", mutates_args=())
def _vjp(y: Tensor, v: Tensor, name: str, parameters: list[float], dim: int) -> Tensor:
    """Linear in ``v``; as a function of the image ``y``, constant as long as the same derivatives apply."""
    if not y.is_cpu:
        return MAPS[name].vjp(y, v, *parameters, dim)
    product = torch.empty_like(y)
    MAPS[name].kernel(*parameters).vjp(y, v, product, dim, torch.get_num_threads())
    return product


def _keep_image(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.of = inputs
    ctx.save_for_backward(output)
    ctx.save_for_forward(output)


def _keep_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, _, *ctx.of = inputs
    ctx.save_for_backward(y)
    ctx.save_for_forward(y)


def _forward_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    return _product(*ctx.saved_tensors, v, *ctx.of), None, None, None


def _vjp_backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
    return None, _product(*ctx.saved_tensors, w, *ctx.of), None, None, None


def _forward_vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *of: Any) -> tuple[Tensor, int]:
    return _image(*_batched(info, in_dims, x), *of), 0


def _vjp_vmap(info: Any, in_dims: tuple[int | None, ...], y: Tensor, v: Tensor, *of: Any) -> tuple[Tensor, int]:
    return _product(*_batched(info, in_dims, y, v), *of), 0


def _batched(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """With the batch as their first dimension: the rows' is counted from the last, and does not move."""
    return [
        x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0)
        for x, at in zip(tensors, in_dims, strict=False)
    ]


_forward.register_fake(lambda x, *_: torch.empty_like(x))
_forward.register_autograd(_forward_backward, setup_context=_keep_image)
_forward.register_vmap(_forward_vmap)
_vjp.register_fake(lambda y, *_: torch.empty_like(y))
_vjp.register_autograd(_vjp_backward, setup_context=_keep_input)
_vjp.register_vmap(_vjp_vmap)


class _Forward(torch.autograd.Function):
    forward = staticmethod(_forward)
    setup_context = staticmethod(_keep_image)
    backward = staticmethod(_forward_backward)
    vmap = staticmethod(_forward_vmap)

    @staticmethod
    def jvp(ctx: Any, t: Tensor, *_: None) -> Tensor:
        return _product(*ctx.saved_tensors, t, *ctx.of)


class _Vjp(torch.autograd.Function):
    forward = staticmethod(_vjp)
    setup_context = staticmethod(_keep_input)
    backward = staticmethod(_vjp_backward)
    vmap = staticmethod(_vjp_vmap)

    @staticmethod
    def jvp(ctx: Any, _: Tensor | None, t: Tensor, *__: None) -> Tensor:
        return _product(*ctx.saved_tensors, t, *ctx.of)
