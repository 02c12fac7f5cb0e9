"""Gradient surgery in place of ``loss.backward()``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.curvature.products import check_reached, listed_parameters
from ferrostep.errors import Problem, wrong_choice
from ferrostep.gradients.lists import Gradient, combination, gram, settle
from ferrostep.gradients.surgery import (
    aligned_mtl_weights,
    cagrad_weights,
    imtl_g_weights,
    min_norm_weights,
    nash_mtl_weights,
    pcgrad_weights,
    upgrad_weights,
)
from ferrostep.numpy.arrays import listed
from ferrostep.reference import checks
from ferrostep.suggestions import unexpected

Method: TypeAlias = Literal["upgrad", "mgda", "cagrad", "pcgrad", "aligned_mtl", "nash_mtl", "imtl_g", "mean", "sum"]
Kept: TypeAlias = list[Tensor | None]


class Surgery(NamedTuple):
    """How a method finds the weights of the losses."""

    weights: Callable[..., Tensor]
    """Of the gram and the method's options."""
    merge: Callable[[Tensor], Tensor] | None = None
    """Makes one row of weights of several, a row for each loss."""


def _mean(gram: Tensor) -> Tensor:
    return torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)


def _sum(gram: Tensor) -> Tensor:
    return torch.ones(len(gram), dtype=torch.float64)


METHODS: Mapping[Method, Surgery] = {
    "upgrad": Surgery(upgrad_weights, lambda rows: rows.mean(0)),
    "mgda": Surgery(min_norm_weights),
    "cagrad": Surgery(cagrad_weights),
    "pcgrad": Surgery(pcgrad_weights, lambda rows: rows.sum(0)),
    "aligned_mtl": Surgery(aligned_mtl_weights),
    "nash_mtl": Surgery(nash_mtl_weights),
    "imtl_g": Surgery(imtl_g_weights),
    "mean": Surgery(_mean),
    "sum": Surgery(_sum),
}


def backward(
    losses: Iterable[Tensor],
    params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    method: Method = "upgrad",
    *,
    retain_graph: bool = False,
    **options: Any,
) -> Tensor:
    """Add to every ``p.grad`` what a method of gradient surgery makes of several losses' gradients.

    In place of ``loss.backward()``: any optimizer, accumulation over micro-batches, closures and a GradScaler (losses
    as ``scaler.scale(loss)``) go on as after that. A parameter that two or more losses reach gets their gradients'
    combination, by weights from the inner products over all such parameters. One that a single loss reaches, as of a
    task's head, gets that loss's gradient as it is, with every method; one that none reaches is left alone.

    Args:
        losses: T tensors of one element, each with its graph, which says what it reaches: the elements of one stacked
            tensor all reach what one of them does, if only with zeros.
        params: the parameters, of any shape and of the dtypes of the module, on one device, or (name, parameter)
            pairs; such as ``model.parameters()``. Those that require no gradients are left alone.
        method: ``"upgrad"``, the default (the mean of what :func:`upgrad_weights` projects), ``"mgda"``
            (:func:`min_norm_weights`), ``"cagrad"``, ``"pcgrad"`` (the sum, as in the paper), ``"aligned_mtl"``,
            ``"nash_mtl"``, ``"imtl_g"``; ``"mean"`` and ``"sum"`` are without surgery.
        retain_graph: keep the graph for another backward pass. Default False: the graph of the last loss is freed, with
            what the others share with it; the rest goes with the losses.
        options: the method's own, such as ``c`` of :func:`cagrad_weights` or ``generator`` of :func:`pcgrad_weights`.

    The T gradients are computed one after the other, by ``torch.autograd.grad``, and held together. So hooks of tensors
    are called for each loss, those of ``register_post_accumulate_grad_hook`` once, and no graph of the result is made.

    Returns:
        The losses' weights in the combination: T numbers, float64, on the CPU. All are NaN where a gradient of a shared
        parameter has NaN or infinity, and so is every ``p.grad`` then, as a GradScaler has to see.

    Raises:
        TypeError: a loss or a parameter is no tensor, a loss is complex, or the method has no such option.
        ValueError: there are no losses or no parameters, one comes twice, a loss has several elements or is NaN, a
            parameter is no leaf, ``p.grad`` is of another dtype, or the method is unknown.
        RuntimeError: a loss has no graph, reaches none of the parameters or went through ``torch.utils.checkpoint``
            with ``use_reentrant=True``; no parameter requires gradients, or they are on several devices; or a gradient
            is sparse.

        Every ``p.grad`` is as it was then, and after an interrupt.

    Example:
        >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> backward([w[0], w[1] - w[0]], [w], method="upgrad")
        tensor([1.0000, 0.7500], dtype=torch.float64)
        >>> w.grad
        tensor([0.2500, 0.7500])
    """
    surgery = _surgery(method, options)
    tensors, parameters = _losses(losses), _parameters(params)
    found = _gradients(tensors, parameters, retain_graph)
    shared, own = _parted(found)
    products = gram(shared)
    if products.isfinite().all():
        weights = surgery.weights(products, **options)
        weights = surgery.merge(weights) if surgery.merge else weights
    else:
        weights = torch.full((len(found),), torch.nan, dtype=torch.float64)
    _accumulate(parameters, [*shared, own], [*weights.tolist(), 1.0])
    return weights


def _surgery(method: Method, options: Mapping[str, Any]) -> Surgery:
    """The method; refuse one that there is not, and options that it has not."""
    if not isinstance(method, str) or method not in METHODS:
        raise wrong_choice("method", method, *METHODS)
    surgery = METHODS[method]
    known = [name for name, p in inspect.signature(surgery.weights).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            there_are = f"{method!r} has {', '.join(known) or 'no options'}"
            raise unexpected("backward", name, [*known, "retain_graph"], otherwise=there_are)
    return surgery


def _losses(given: Iterable[Tensor]) -> list[Tensor]:
    losses = listed("losses", given)
    if not losses:
        raise Problem.EMPTY.of("losses", "nothing", "one loss at least")
    for i, loss in enumerate(losses):
        name = f"losses[{i}]"
        checks.tensor(name, loss)
        if loss.numel() != 1:
            raise Problem.SHAPE.of(name, list(loss.shape), "one element")
        if loss.is_complex():
            raise Problem.NOT_REAL.of(name, loss.dtype, "a real number")
        if not loss.requires_grad:
            raise RuntimeError(
                f"{name} has no graph: compute it with gradients enabled, from parameters that require gradients, and "
                "do not detach it"
            )
        if any(loss is other for other in losses[:i]):
            raise ValueError(f"{name} has come before, expected each loss once")
        if loss.isnan():
            raise ValueError(f"{name} is NaN, expected a number")
    return losses


def _parameters(given: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[Tensor]:
    params = listed_parameters(given)
    for i, p in enumerate(params):
        if p.requires_grad and not p.is_leaf:
            raise ValueError(f"params[{i}] is no leaf, expected a parameter: what was computed keeps no grad")
        if p.device != params[0].device:
            raise Problem.DEVICE.of(f"params[{i}]", p.device, f"{params[0].device}, as params[0]")
    if not any(p.requires_grad for p in params):
        raise RuntimeError("none of params requires gradients")
    return params


def _gradients(losses: Sequence[Tensor], params: Sequence[Tensor], retain_graph: bool) -> list[Kept]:
    """Each loss's, one after the other, with None for what it does not reach."""
    trainable = {i: p for i, p in enumerate(params) if p.requires_grad}
    found: list[Kept] = []
    for i, loss in enumerate(losses):
        kept = retain_graph or i + 1 < len(losses)
        gradients = torch.autograd.grad(loss, list(trainable.values()), retain_graph=kept, allow_unused=True)
        check_reached(f"losses[{i}]", loss, gradients)
        found.append([None] * len(params))
        for place, gradient in zip(trainable, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                name = f"the gradient of losses[{i}] in params[{place}]"
                raise Problem.LAYOUT.of(name, gradient.layout, "torch.strided, such as of nn.Embedding(sparse=False)")
            found[i][place] = gradient
    return found


def _parted(found: Sequence[Gradient]) -> tuple[list[Kept], Kept]:
    """The gradients where several losses have one, and what is the only one at its place."""
    places = [[gradient for gradient in each if gradient is not None] for each in zip(*found, strict=True)]
    shared = [[g if len(there) > 1 else None for g, there in zip(each, places, strict=True)] for each in found]
    return shared, [there[0] if len(there) == 1 else None for there in places]


def _accumulate(params: Sequence[Tensor], lists: list[Kept], row: list[float]) -> None:
    """Add to the parameters' gradients the sum of lists, each times its factor; all or nothing."""
    before: Kept = []
    to: Kept = []
    for place, (p, *gradients) in enumerate(zip(params, *lists, strict=True)):
        first = next((gradient for gradient in gradients if gradient is not None), None)
        there = None if first is None or p.grad is None else p.grad.detach()
        if there is not None:
            checks.alike([(f"the gradient in params[{place}]", first), (f"params[{place}].grad", there)], pairs=True)
            checks.writable(f"params[{place}].grad", p.grad)
        before.append(there)
        to.append(there if first is None or there is not None else torch.empty_like(p, dtype=first.dtype))
    call, values = combination([*lists, before], [*row, 1.0], to)
    try:
        _core.complete(call, lambda _: _hand_over(params, to, values))
    except ValueError as error:
        # The lists are ours: what can be wrong in them is what there was in the parameters' gradients.
        theirs = rf"(gradients\[{len(lists)}\]|out)\[(\d+)\]"
        raise ValueError(re.sub(theirs, r"params[\2].grad", str(error))) from None
    for p, gradient in zip(params, to, strict=True):
        if gradient is not None and p._post_accumulate_grad_hooks:
            for hook in list(p._post_accumulate_grad_hooks.values()):
                hook(p)


def _hand_over(params: Sequence[Tensor], to: Kept, values: Gradient) -> None:
    settle(to, values)
    for p, gradient in zip(params, to, strict=True):
        if p.grad is None:
            p.grad = gradient
