"""Functions of rows for torch: one table of maps, and what autograd, vmap and torch.compile are to know of each.

A map takes every row of a tensor, along one dimension, to a row of its image. The Rust kernels compute it for tensors
on the CPU with parameters that are fixed; plain torch, which autograd goes through, elsewhere. The Jacobian's product
with a vector follows from the rows or from their image. It is its own derivative in the vector; where it bends with the
rows, plain torch has that, too, so that all orders of differentiation are there.

torch sees two operators, which it can trace, batch and differentiate backwards. In forward mode and within torch.func,
for which that is not enough, functions around them stand in, which torch.compile could not trace. Where nobody looks on
but plain autograd, the kernels are called without either: a small map takes less time than torch's dispatcher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import _profiler_enabled, forward_ad  # type: ignore[attr-defined]
from torch.compiler import is_compiling

from ferrostep import _core
from ferrostep.reference import checks
from ferrostep.reference import projections as reference

_core.adopt_openmp()

Parameter = float | Tensor


class Map(NamedTuple):
    """What a map is, by its parameters."""

    kernel: Callable[..., _core.Map]
    """Of the numbers among the parameters, then of the arrays with a number for each element of a row."""
    plain: Callable[..., Tensor]
    """The image of rows along the last dimension, and the parameters in their order, in plain torch."""
    by_image: bool = False
    """Whether the Jacobian follows from the image: else from the rows."""
    vectors: Sequence[int] = ()
    """The parameters, by their places, that have a number for each element of a row."""
    has_rows: bool = True
    """Whether a number's image depends on others of its row."""
    curvature: Callable[..., Tensor] | None = None
    """Of rows, two vectors and the parameters, the Jacobian's derivative along both; None where it is piecewise 0."""


def _outside_of_ball(x: Tensor, v: Tensor, w: Tensor, radius: float) -> Tensor:
    return -reference.ball_curvature(x, v, w, radius)


def _shrink(threshold: float, factor: float, *, nonnegative: bool = False) -> _core.Map:
    return _core.Map.shrink(threshold, factor, nonnegative)


MAPS = {
    "box": Map(_core.Map.clip, reference.box, has_rows=False),
    "box_section": Map(_core.Map.section, reference.box_section, vectors=(0, 1, 2)),
    "elastic_net": Map(
        lambda lambd, gamma: _shrink(lambd, 1 / (1 + lambd * gamma)),
        reference.elastic_net,
        by_image=True,
        has_rows=False,
    ),
    "group_lasso": Map(partial(_core.Map.l2_ball, rest=True), reference.group_lasso, curvature=_outside_of_ball),
    "halfspace": Map(partial(_core.Map.plane, half=True), reference.halfspace, vectors=(0,)),
    "hyperplane": Map(partial(_core.Map.plane, half=False), reference.hyperplane, vectors=(0,)),
    "isotonic": Map(lambda increasing, *w: _core.Map.isotonic(bool(increasing), *w), reference.isotonic, vectors=(0,)),
    "l1_ball": Map(partial(_core.Map.l1_ball, rest=False), reference.l1_ball),
    "l2_ball": Map(partial(_core.Map.l2_ball, rest=False), reference.l2_ball, curvature=reference.ball_curvature),
    "linf": Map(partial(_core.Map.l1_ball, rest=True), reference.linf),
    "linf_ball": Map(lambda r: _core.Map.clip(-r, r), reference.linf_ball, has_rows=False),
    "nonnegative": Map(lambda: _core.Map.clip(0.0, math.inf), reference.nonnegative, has_rows=False),
    "nonnegative_lasso": Map(
        lambda lambd: _shrink(lambd, 1.0, nonnegative=True), reference.nonnegative_lasso, by_image=True, has_rows=False
    ),
    "nonnegative_ridge": Map(
        lambda lambd: _shrink(0.0, 1 / (1 + lambd), nonnegative=True),
        reference.nonnegative_ridge,
        by_image=True,
        has_rows=False,
    ),
    "permutahedron": Map(partial(_core.Map.sorted, slope=False), reference.permutahedron, vectors=(0,)),
    "ridge": Map(lambda lambd: _shrink(0.0, 1 / (1 + lambd)), reference.ridge, by_image=True, has_rows=False),
    "simplex": Map(_core.Map.simplex, reference.simplex, by_image=True),
    "soft_threshold": Map(lambda lambd: _shrink(lambd, 1.0), reference.soft_threshold, by_image=True, has_rows=False),
    "sorted_l1": Map(partial(_core.Map.sorted, slope=True), reference.sorted_l1, vectors=(0,)),
}


def apply(name: str, x: Tensor, parameters: Sequence[Parameter | None], dim: int = -1) -> Tensor:
    """The image of every row of ``x`` along ``dim``, as autograd has it; None is a parameter that is not there."""
    if isinstance(x, Tensor) and x.ndim == 0 and not MAPS[name].has_rows:
        return apply(name, x.unsqueeze(0), parameters).squeeze(0)
    dim = checks.rows("x", x, dim)
    if not _is_for_kernel(name, x, parameters):
        return _in_torch(name, x, parameters, dim)
    return _image(x, *_split(name, parameters), dim)


@torch.no_grad()
def apply_(name: str, x: Tensor, parameters: Sequence[Parameter | None], dim: int = -1) -> Tensor:
    """The same in place, which autograd does not record."""
    if isinstance(x, Tensor) and x.ndim == 0 and not MAPS[name].has_rows:
        apply_(name, x.unsqueeze(0), parameters)
        return x
    dim = checks.rows("x", x, dim)
    if not (_is_for_kernel(name, x, parameters) and is_direct(x)):
        return x.copy_(apply(name, x, parameters, dim))
    _kernel(*_split(name, parameters)).forward(x, x, dim, torch.get_num_threads())
    return x


def is_concrete(x: Tensor) -> bool:
    """Whether the numbers of a tensor may be looked at: it is no part of a transformation or of a graph."""
    return not (x.is_meta or torch.compiler.is_compiling() or checks.is_transformed())


def _is_for_kernel(name: str, x: Tensor, parameters: Sequence[Parameter | None]) -> bool:
    """Whether nothing but ``x`` is to be differentiated or batched, in ways that have a rule for functions of ours."""
    vectors = MAPS[name].vectors
    for i, p in enumerate(parameters):
        if isinstance(p, Tensor) and (i not in vectors or p.ndim != 1 or p.requires_grad or checks.is_transformed()):
            return False
    return x.is_cpu and not (_are_functorch_transforms_active() and checks.is_functionalized())


def _split(name: str, parameters: Sequence[Parameter | None]) -> tuple[Tensor | None, str, list[float] | None]:
    """The vectors among the parameters as rows of one tensor, the map's name, and the numbers."""
    vectors = [checks.wide(p.detach()) for p in parameters if isinstance(p, Tensor)]
    numbers = [float(p) for p in parameters if p is not None and not isinstance(p, Tensor)]
    return torch.stack(vectors) if vectors else None, name, numbers or None


def _kernel(vectors: Tensor | None, name: str, numbers: list[float] | None) -> _core.Map:
    return MAPS[name].kernel(*(numbers or []), *([] if vectors is None else vectors.numpy()))


def _in_torch(name: str, x: Tensor, parameters: Sequence[Parameter | None], dim: int) -> Tensor:
    moved = [p.movedim(dim, -1) if isinstance(p, Tensor) and p.ndim == x.ndim > 1 else p for p in parameters]
    return MAPS[name].plain(x.movedim(dim, -1), *moved).movedim(-1, dim)


def _curvature(told: Tensor, v: Tensor, w: Tensor, name: str, numbers: list[float], dim: int) -> Tensor | None:
    """What the product of ``v`` changes by along ``w``; the same with both exchanged."""
    bent = MAPS[name].curvature
    return None if bent is None else bent(*(each.movedim(dim, -1) for each in (told, v, w)), *numbers).movedim(-1, dim)


def _image(x: Tensor, *of: Any) -> Tensor:
    if is_direct(x) and not _profiler_enabled():
        way = _RecordedForward.apply if torch.is_grad_enabled() and x.requires_grad else _write_image
    else:
        way = _Forward.apply if checks.is_transformed() else _forward
    result: Tensor = way(x, *of)
    return result


def _product(told: Tensor, v: Tensor, *of: Any) -> Tensor:
    if is_direct(told, v) and not _profiler_enabled():
        is_recorded = torch.is_grad_enabled() and (told.requires_grad or v.requires_grad)
        way = _RecordedProduct.apply if is_recorded else _write_product
    else:
        way = _Product.apply if checks.is_transformed() else _product_of
    result: Tensor = way(told, v, *of)
    return result


_TYPES = (Tensor, torch.nn.Parameter)


def is_direct(*tensors: Tensor) -> bool:
    """Whether these are tensors as they lie in memory, of which nobody but autograd is to learn what becomes.

    Large tensors leave neither Python nor torch in the caches, and then each function that is looked up and called here
    takes as long as a hundred that are.
    """
    if (
        is_compiling()
        or forward_ad._current_level >= 0
        or _are_functorch_transforms_active()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _get_tracing_state()
    ):
        return False
    for x in tensors:
        if type(x) not in _TYPES:
            return False
    return _core.lie_in_memory(tensors)


def _write_image(x: Tensor, vectors: Tensor | None, name: str, numbers: list[float] | None, dim: int) -> Tensor:
    image = torch.empty_like(x)
    _kernel(vectors, name, numbers).forward(x, image, dim, torch.get_num_threads())
    return image


def _write_product(
    told: Tensor,
    v: Tensor,
    vectors: Tensor | None,
    name: str,
    numbers: list[float] | None,
    dim: int,
    transposed: bool,
) -> Tensor:
    """Linear in ``v``, by the Jacobian or that transposed."""
    product = torch.empty_like(told)
    threads = torch.get_num_threads()
    _kernel(vectors, name, numbers).product(told, v, product, dim, threads, transposed=transposed)
    return product


_forward = torch.library.custom_op("ferrostep::map_forward", _write_image, mutates_args=())
_product_of = torch.library.custom_op("ferrostep::map_product", _write_product, mutates_args=())


def _keep_told(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, vectors, *ctx.of = inputs
    told = output if MAPS[ctx.of[0]].by_image else x
    ctx.save_for_backward(told, vectors)
    ctx.save_for_forward(told, vectors)


def _keep_both(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    told, v, vectors, *ctx.of, ctx.transposed = inputs
    ctx.save_for_backward(told, v, vectors)
    ctx.save_for_forward(told, v, vectors)


def _forward_backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    told, vectors = ctx.saved_tensors
    return _product(told, v, vectors, *ctx.of, True), None, None, None, None


def _product_backward(ctx: Any, w: Tensor) -> tuple[Any, ...]:
    told, v, vectors = ctx.saved_tensors
    of_v = _product(told, w, vectors, *ctx.of, not ctx.transposed)
    return _curvature(told, v, w, *ctx.of), of_v, None, None, None, None, None


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, *of: Any) -> tuple[Tensor, int]:
    return _image(*_batched(info, in_dims, x), *of), 0


def _product_vmap(info: Any, in_dims: tuple[Any, ...], told: Tensor, v: Tensor, *of: Any) -> tuple[Tensor, int]:
    return _product(*_batched(info, in_dims, told, v), *of), 0


def _batched(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor) -> list[Tensor]:
    """With the batch as their first dimension: the rows' is counted from the last, and does not move."""
    return [
        x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0)
        for x, at in zip(tensors, in_dims, strict=False)
    ]


_forward.register_fake(lambda x, *_: torch.empty_like(x))
_forward.register_autograd(_forward_backward, setup_context=_keep_told)
_forward.register_vmap(_forward_vmap)
_product_of.register_fake(lambda told, *_: torch.empty_like(told))
_product_of.register_autograd(_product_backward, setup_context=_keep_both)
_product_of.register_vmap(_product_vmap)


class _Forward(torch.autograd.Function):
    """Of maps without vectors among their parameters."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_keep_told)
    backward = staticmethod(_forward_backward)
    vmap = staticmethod(_forward_vmap)

    @staticmethod
    def jvp(ctx: Any, t: Tensor, *_: None) -> Tensor:
        told, vectors = ctx.saved_tensors
        return _product(told, t, vectors, *ctx.of, False)


class _Product(torch.autograd.Function):
    """The same of the products."""

    forward = staticmethod(_product_of)
    setup_context = staticmethod(_keep_both)
    backward = staticmethod(_product_backward)
    vmap = staticmethod(_product_vmap)

    @staticmethod
    def jvp(ctx: Any, of_told: Tensor | None, of_v: Tensor | None, *_: None) -> Tensor | None:
        told, v, vectors = ctx.saved_tensors
        along = None if of_v is None else _product(told, of_v, vectors, *ctx.of, ctx.transposed)
        bent = None if of_told is None else _curvature(told, v, of_told, *ctx.of)
        return along if bent is None else bent if along is None else along + bent


class _RecordedForward(torch.autograd.Function):
    """For backward mode alone: a context that is set up apart would take ten times as long.

    Large tensors leave no Python in the caches, so that the backward pass runs as little of it as it can.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, *of, dim = inputs
        ctx.kernel, image = _kernel(*of), torch.empty_like(x)
        ctx.kernel.forward(x, image, dim, torch.get_num_threads())
        _keep_told(ctx, inputs, image)
        return image

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() or _profiler_enabled():
            return _forward_backward(ctx, v)
        told = ctx.saved_tensors[0]
        if not is_direct(told, v):
            return _forward_backward(ctx, v)
        product = torch.empty_like(told)
        ctx.kernel.product(told, v, product, ctx.of[2], torch.get_num_threads(), transposed=True)
        return product, None, None, None, None


class _RecordedProduct(torch.autograd.Function):
    """The same of the products."""

    backward = staticmethod(_product_backward)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        product = _write_product(*inputs)
        _keep_both(ctx, inputs, product)
        return product
