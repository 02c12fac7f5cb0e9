"""Guidance of diffusion models: how a conditional and an unconditional prediction become one.

All predictions of a call are tensors of one shape, dtype (float32, float64, bfloat16, float16) and device, whose first
dimension is the batch. ``dims`` are the dimensions that inner products, norms and deviations go over: by default all
but the first, so that each sample has its own. These sums are float64 in a fixed order; float64 predictions are
combined in float64, others in float32, and rounded once.

``out`` receives the result; it may be an input. Without it the result is a new tensor, laid out like ``cond``.
Tensors on other devices, and those that need gradients while autograd records, are computed in plain torch
(:mod:`ferrostep.reference.guidance`), which autograd sees through.

Whatever cannot be computed raises TypeError, ValueError or RuntimeError that names the argument, with nothing changed.

The predictions may be of the noise, the velocity or the denoised sample. For CFG that makes no difference. For the
others it does: the APG paper guides the denoised one, see :func:`to_denoised`.
"""

from __future__ import annotations

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy  # noqa: F401  (before its parts: threads may meet there)

# isort: split

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.choices import Base
from ferrostep.errors import Problem, wrong_kind
from ferrostep.guidance.momentum import MomentumBuffer
from ferrostep.guidance.parameterization import from_denoised, to_denoised
from ferrostep.numpy.arrays import integers, listed, numbers, scales
from ferrostep.reference import checks
from ferrostep.reference import guidance as reference

_core.adopt_openmp()

__all__ = [
    "MomentumBuffer",
    "apg",
    "cfg",
    "cfg_zero_star",
    "from_denoised",
    "magnitude_aware",
    "perp_neg",
    "project",
    "tangential",
    "to_denoised",
]

Dims = int | Sequence[int] | None


def cfg(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Tensor | None = None,
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): ``uncond + scale * (cond - uncond)``.

    ``scale=1`` gives ``cond``. (The paper's own scale is less by 1.)

    Args:
        cond, uncond: the predictions, of one shape (B, ...), dtype (float32, float64, bfloat16, float16) and device.
        scale: the guidance scale, a number or a tensor of one for each sample, of shape (B,) or (B, 1, ...); then
            ``dims`` may not have the batch's.
        rescale: how much of the result's standard deviation over ``dims`` becomes that of ``cond``, from 0 (default)
            to 1: phi of arXiv 2305.08891, section 3.4.
        dims, out: see the module.

    Returns:
        The guided prediction: ``out``, or a new tensor.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> cfg(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), scale=3.0)
        tensor([[3., 4.]])
    """
    inputs, dims = {"cond": cond, "uncond": uncond}, _dims(dims)
    rule = _core.Guidance.cfg(_scales(scale, inputs), rescale)
    if _elsewhere(inputs, dims, out, scale):
        return _into(out, reference.cfg(cond, uncond, scale, rescale=rescale, dims=dims))
    return _run(rule, inputs, dims, out)


def apg(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    eta: float = 0.0,
    norm_threshold: float | None = 0.0,
    momentum_buffer: MomentumBuffer | None = None,
    dims: Dims = None,
    base: Base = "cond",
    rescale: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Adaptive projected guidance (arXiv 2410.02416, Algorithm 1): guidance without what lies along ``cond``.

    With ``d = cond - uncond`` (or its momentum), shrunk to the norm ``norm_threshold`` where it is longer, and ``p``
    the component of ``d`` along ``cond``, the result is ``cond + (scale - 1) * (d - (1 - eta) * p)``.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype as of :func:`cfg`; in the paper, of the denoised
            sample.
        scale: the guidance scale, as of :func:`cfg`; 1 gives ``cond``.
        eta: the share of ``p`` that is kept. 0 (default): none; 1: plain guidance.
        norm_threshold: the greatest norm of ``d``; 0 (default), less, or None for no limit.
        momentum_buffer: carries ``d`` from step to step of one image's denoising; the paper's momenta are negative.
        dims, out: see the module.
        base: ``"cond"`` (default): as above and in the paper. ``"uncond"``: ``uncond + scale * (d - (1 - eta) * p)``,
            as diffusers has it; the two agree where ``d`` is unchanged and ``eta=1``.
        rescale: as of :func:`cfg`.

    Returns:
        The guided prediction: ``out``, or a new tensor.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that cannot be used; nothing has been changed then, the buffer
            included.

    Example:
        >>> apg(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), scale=3.0)
        tensor([[1.8000, 1.6000]])
    """
    inputs, dims = {"cond": cond, "uncond": uncond}, _dims(dims)
    each = _scales(scale, inputs)
    momentum = None
    if momentum_buffer is not None:
        if not isinstance(momentum_buffer, MomentumBuffer):
            raise wrong_kind("momentum_buffer", momentum_buffer, "a ferrostep.guidance.MomentumBuffer")
        momentum, inputs["momentum_buffer"] = momentum_buffer.momentum, momentum_buffer.of(cond)
        checks.finite(momentum=momentum)
    rule = _core.Guidance.apg(each, eta, norm_threshold or 0.0, momentum, base, rescale)
    if _elsewhere(inputs, dims, out, scale):
        call = partial(
            reference.apg_with_direction,
            cond,
            uncond,
            scale,
            eta=eta,
            norm_threshold=norm_threshold,
            momentum_buffer=momentum_buffer,
            dims=dims,
            base=base,
            rescale=rescale,
        )

        def settle(guided_and_direction: tuple[Tensor, Tensor]) -> None:
            guided, direction = guided_and_direction
            if momentum_buffer is not None:
                reference.keep(momentum_buffer, direction)
            if out is not None:
                out.copy_(guided)

        guided, _ = _core.complete(call, settle)
        return guided if out is None else out
    return _run(rule, inputs, dims, out, momentum_buffer)


def cfg_zero_star(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Tensor | None = None,
) -> Tensor:
    """CFG-Zero* (arXiv 2503.18886): :func:`cfg` with ``s * uncond``, ``s = <cond, uncond> / (|uncond|² + 1e-8)``.

    The paper also lets the first steps of a flow predict zero: skip these steps.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype as of :func:`cfg`.
        scale, rescale: as of :func:`cfg`.
        dims, out: see the module.

    Returns:
        The guided prediction: ``out``, or a new tensor.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> cfg_zero_star(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]]), scale=3.0)
        tensor([[3., 2.]])
    """
    inputs, dims = {"cond": cond, "uncond": uncond}, _dims(dims)
    rule = _core.Guidance.cfg_zero_star(_scales(scale, inputs), rescale)
    if _elsewhere(inputs, dims, out, scale):
        return _into(out, reference.cfg_zero_star(cond, uncond, scale, rescale=rescale, dims=dims))
    return _run(rule, inputs, dims, out)


def tangential(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Tensor | None = None,
) -> Tensor:
    """Tangential CFG (arXiv 2503.18137): :func:`cfg` with the component of ``uncond`` along the larger singular vector.

    The vector is the first right singular vector of the two rows ``cond`` and ``uncond``.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype as of :func:`cfg`.
        scale, rescale: as of :func:`cfg`.
        dims, out: see the module.

    Returns:
        The guided prediction: ``out``, or a new tensor.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> tangential(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), scale=3.0)
        tensor([[6., 0.]])
    """
    inputs, dims = {"cond": cond, "uncond": uncond}, _dims(dims)
    rule = _core.Guidance.tangential(_scales(scale, inputs), rescale)
    if _elsewhere(inputs, dims, out, scale):
        return _into(out, reference.tangential(cond, uncond, scale, rescale=rescale, dims=dims))
    return _run(rule, inputs, dims, out)


def magnitude_aware(
    cond: Tensor,
    uncond: Tensor,
    scale: float | Tensor,
    *,
    alpha: float = 8.0,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Tensor | None = None,
) -> Tensor:
    """Magnitude-aware guidance (MAMBO-G, arXiv 2508.03442): :func:`cfg` at a scale that a large difference lowers.

    With ``d = cond - uncond``, the result is ``cond + (scale - 1) * exp(-alpha * |d| / |uncond|) * d``.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype as of :func:`cfg`.
        scale: the scale where there is next to no difference, as of :func:`cfg`.
        alpha: how much a difference of the prediction's own size lowers it, at least 0. Default 8; 0 is plain
            guidance.
        rescale: as of :func:`cfg`.
        dims, out: see the module.

    Returns:
        The guided prediction: ``out``, or a new tensor.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> magnitude_aware(torch.tensor([[9.0, 12.0]]), torch.tensor([[6.0, 8.0]]), scale=5.0, alpha=2.0)
        tensor([[13.4146, 17.8861]])
    """
    inputs, dims = {"cond": cond, "uncond": uncond}, _dims(dims)
    rule = _core.Guidance.magnitude_aware(_scales(scale, inputs), alpha, rescale)
    if _elsewhere(inputs, dims, out, scale):
        return _into(out, reference.magnitude_aware(cond, uncond, scale, alpha=alpha, rescale=rescale, dims=dims))
    return _run(rule, inputs, dims, out)


def perp_neg(
    cond: Tensor,
    uncond: Tensor,
    negatives: Sequence[Tensor],
    scale: float | Tensor,
    weights: Sequence[float],
    *,
    dims: Dims = None,
    out: Tensor | None = None,
) -> Tensor:
    """Perp-Neg (arXiv 2304.04968): guidance away from negative prompts, but never against the prompt.

    With ``d = cond - uncond``, the result is ``uncond + scale * (d - sum_i weights[i] * q_i)``, where ``q_i`` is the
    component of ``negatives[i] - uncond`` orthogonal to ``d``.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype as of :func:`cfg`.
        negatives: 1 to 4 predictions for what is not wanted.
        scale: as of :func:`cfg`.
        weights: one for each of ``negatives``, usually positive.
        dims, out: see the module.

    Returns:
        The guided prediction: ``out``, or a new tensor.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> cond, uncond, unwanted = (torch.tensor([x]) for x in ([1.0, 2.0], [0.0, 1.0], [1.0, 0.0]))
        >>> perp_neg(cond, uncond, [unwanted], 3.0, [0.5])
        tensor([[1.5000, 5.5000]])
    """
    negatives = listed("negatives", negatives)
    weights = numbers("weights", weights, ("negatives", negatives))
    inputs = {"cond": cond, "uncond": uncond, **{f"negatives[{i}]": x for i, x in enumerate(negatives)}}
    rule, dims = _core.Guidance.perp_neg(_scales(scale, inputs), weights), _dims(dims)
    if _elsewhere(inputs, dims, out, scale):
        return _into(out, reference.perp_neg(cond, uncond, negatives, scale, weights, dims=dims))
    return _run(rule, inputs, dims, out)


def project(vector: Tensor, onto: Tensor, *, dims: Dims = None) -> tuple[Tensor, Tensor]:
    """The components of ``vector`` along ``onto`` and orthogonal to it; nothing lies along zero.

    Args:
        vector, onto: tensors of one shape (B, ...) and dtype: float32, float64, bfloat16 or float16.
        dims: see the module.

    Returns:
        The parallel component and the orthogonal one, which sum up to ``vector``.

    Raises:
        TypeError, ValueError, RuntimeError: an argument that cannot be used.

    Example:
        >>> project(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
        (tensor([[1., 0.]]), tensor([[0., 1.]]))
    """
    inputs, dims = {"onto": onto, "vector": vector}, _dims(dims)
    _check(inputs)
    if _elsewhere(inputs, dims):
        return reference.project(vector, onto, dims=dims)
    outputs = [torch.empty_like(vector, requires_grad=False) for _ in range(2)]
    _core.Guidance.project().run([onto, vector], outputs, dims, torch.get_num_threads())
    return outputs[0], outputs[1]


def _run(
    rule: _core.Guidance,
    inputs: dict[str, Tensor],
    dims: list[int] | None,
    out: Tensor | None,
    momentum_buffer: MomentumBuffer | None = None,
) -> Tensor:
    to = torch.empty_like(inputs["cond"], requires_grad=False) if out is None else out
    call = partial(rule.run, list(inputs.values()), [to], dims, torch.get_num_threads())
    if momentum_buffer is None:
        call()
        return to

    def settle(_: None) -> None:
        momentum_buffer.running_average = inputs["momentum_buffer"]

    _core.complete(call, settle)
    return to


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def _check(inputs: dict[str, Any]) -> None:
    for name, x in inputs.items():
        checks.tensor(name, x)
        if x.is_complex():
            raise Problem.NOT_REAL.of(name, x.dtype, "real numbers")


def _scales(scale: float | Tensor, inputs: dict[str, Tensor]) -> list[float]:
    """The scale as the kernels take it, once the predictions are known to be tensors."""
    _check(inputs)
    return scales(scale, inputs["cond"])


def _elsewhere(inputs: dict[str, Tensor], dims: Dims, out: Tensor | None = None, scale: float | Tensor = 1.0) -> bool:
    """Whether plain torch is to compute: on another device, or where autograd records. Then they are checked here."""
    tensors = inputs if out is None else {**inputs, "out": out}
    recording = torch.is_grad_enabled()
    here = not (recording and isinstance(scale, Tensor) and scale.requires_grad)
    for x in tensors.values():
        if isinstance(x, Tensor):  # the kernel tells of others, or the checks
            here = here and x.is_cpu and not (recording and x.requires_grad)
    if here:
        return False
    checks.alike(tensors.items())
    checks.writable("out", out)
    checks.dimensions(*next(iter(tensors.items())), dims, scaled=prod(getattr(scale, "shape", ())) > 1)
    return True


def _dims(dims: Dims) -> list[int] | None:
    return None if dims is None else integers("dims", [dims] if isinstance(dims, int) else dims)
