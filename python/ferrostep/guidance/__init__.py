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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.guidance.momentum import MomentumBuffer
from ferrostep.guidance.parameterization import from_denoised, to_denoised
from ferrostep.reference import checks
from ferrostep.reference import guidance as reference

__all__ = [
    "MomentumBuffer",
    "apg",
    "cfg",
    "cfg_zero_star",
    "from_denoised",
    "perp_neg",
    "project",
    "tangential",
    "to_denoised",
]

Dims = int | Sequence[int] | None


def cfg(
    cond: Tensor, uncond: Tensor, scale: float, *, rescale: float = 0.0, dims: Dims = None, out: Tensor | None = None
) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): ``uncond + scale * (cond - uncond)``.

    ``scale=1`` gives ``cond``. (The paper's own scale is less by 1.)

    Args:
        cond, uncond: the predictions.
        scale: the guidance scale.
        rescale: how much of the result's standard deviation over ``dims`` becomes that of ``cond``, from 0 (default)
            to 1: phi of arXiv 2305.08891, section 3.4.
        dims, out: see the module.
    """
    rule, inputs = _core.Guidance.cfg(scale, rescale), {"cond": cond, "uncond": uncond}
    if _elsewhere(inputs, dims, out):
        return _into(out, reference.cfg(cond, uncond, scale, rescale=rescale, dims=dims))
    return _run(rule, inputs, dims, out)


def apg(
    cond: Tensor,
    uncond: Tensor,
    scale: float,
    *,
    eta: float = 0.0,
    norm_threshold: float | None = 0.0,
    momentum_buffer: MomentumBuffer | None = None,
    dims: Dims = None,
    base: str = "cond",
    rescale: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Adaptive projected guidance (arXiv 2410.02416, Algorithm 1): guidance without what lies along ``cond``.

    With ``d = cond - uncond`` (or its momentum), shrunk to the norm ``norm_threshold`` where it is longer, and ``p``
    the component of ``d`` along ``cond``, the result is ``cond + (scale - 1) * (d - (1 - eta) * p)``.

    Args:
        cond, uncond: the predictions; in the paper, of the denoised sample.
        scale: the guidance scale; 1 gives ``cond``.
        eta: the share of ``p`` that is kept. 0 (default): none; 1: plain guidance.
        norm_threshold: the greatest norm of ``d``; 0 (default), less, or None for no limit.
        momentum_buffer: carries ``d`` from step to step of one image's denoising; the paper's momenta are negative.
        dims, out: see the module.
        base: ``"cond"`` (default): as above and in the paper. ``"uncond"``: ``uncond + scale * (d - (1 - eta) * p)``,
            as diffusers has it; the two agree where ``d`` is unchanged and ``eta=1``.
        rescale: as of :func:`cfg`.
    """
    momentum = None if momentum_buffer is None else momentum_buffer.momentum
    rule = _core.Guidance.apg(scale, eta, norm_threshold or 0.0, momentum, base, rescale)
    inputs = {"cond": cond, "uncond": uncond}
    if momentum_buffer is not None:
        inputs["momentum_buffer"] = momentum_buffer.of(cond)
    if _elsewhere(inputs, dims, out):
        guided = reference.apg(
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
        return _into(out, guided)
    guided = _run(rule, inputs, dims, out)
    if momentum_buffer is not None:
        momentum_buffer.running_average = inputs["momentum_buffer"]
        torch.autograd.graph.increment_version([inputs["momentum_buffer"]])
    return guided


def cfg_zero_star(
    cond: Tensor, uncond: Tensor, scale: float, *, rescale: float = 0.0, dims: Dims = None, out: Tensor | None = None
) -> Tensor:
    """CFG-Zero* (arXiv 2503.18886): :func:`cfg` with ``s * uncond``, ``s = <cond, uncond> / (|uncond|² + 1e-8)``.

    The paper also lets the first steps of a flow predict zero: skip these steps.

    Args:
        cond, uncond, scale, rescale: as of :func:`cfg`.
        dims, out: see the module.
    """
    rule, inputs = _core.Guidance.cfg_zero_star(scale, rescale), {"cond": cond, "uncond": uncond}
    if _elsewhere(inputs, dims, out):
        return _into(out, reference.cfg_zero_star(cond, uncond, scale, rescale=rescale, dims=dims))
    return _run(rule, inputs, dims, out)


def tangential(
    cond: Tensor, uncond: Tensor, scale: float, *, rescale: float = 0.0, dims: Dims = None, out: Tensor | None = None
) -> Tensor:
    """Tangential CFG (arXiv 2503.18137): :func:`cfg` with the component of ``uncond`` along the larger singular vector.

    The vector is the first right singular vector of the two rows ``cond`` and ``uncond``.

    Args:
        cond, uncond, scale, rescale: as of :func:`cfg`.
        dims, out: see the module.
    """
    rule, inputs = _core.Guidance.tangential(scale, rescale), {"cond": cond, "uncond": uncond}
    if _elsewhere(inputs, dims, out):
        return _into(out, reference.tangential(cond, uncond, scale, rescale=rescale, dims=dims))
    return _run(rule, inputs, dims, out)


def perp_neg(
    cond: Tensor,
    uncond: Tensor,
    negatives: Sequence[Tensor],
    scale: float,
    weights: Sequence[float],
    *,
    dims: Dims = None,
    out: Tensor | None = None,
) -> Tensor:
    """Perp-Neg (arXiv 2304.04968): guidance away from negative prompts, but never against the prompt.

    With ``d = cond - uncond``, the result is ``uncond + scale * (d - sum_i weights[i] * q_i)``, where ``q_i`` is the
    component of ``negatives[i] - uncond`` orthogonal to ``d``.

    Args:
        cond, uncond, scale: as of :func:`cfg`.
        negatives: 1 to 4 predictions for what is not wanted.
        weights: one for each, usually positive.
        dims, out: see the module.
    """
    negatives, weights = list(negatives), list(weights)
    if len(weights) != len(negatives):
        raise ValueError(f"weights has {len(weights)} numbers, expected {len(negatives)}: one for each of negatives")
    rule = _core.Guidance.perp_neg(scale, weights)
    inputs = {"cond": cond, "uncond": uncond, **{f"negatives[{i}]": x for i, x in enumerate(negatives)}}
    if _elsewhere(inputs, dims, out):
        return _into(out, reference.perp_neg(cond, uncond, negatives, scale, weights, dims=dims))
    return _run(rule, inputs, dims, out)


def project(vector: Tensor, onto: Tensor, *, dims: Dims = None) -> tuple[Tensor, Tensor]:
    """The components of ``vector`` along ``onto`` and orthogonal to it; nothing lies along zero.

    Args:
        vector, onto: tensors of one shape and dtype.
        dims: see the module.

    Returns:
        The parallel component and the orthogonal one, which sum up to ``vector``.
    """
    if _elsewhere({"onto": onto, "vector": vector}, dims):
        return reference.project(vector, onto, dims=dims)
    outputs = [torch.empty_like(vector, requires_grad=False) for _ in range(2)]
    _core.Guidance.project().run([onto, vector], outputs, _dims(dims), torch.get_num_threads())
    return outputs[0], outputs[1]


def _run(rule: _core.Guidance, inputs: dict[str, Tensor], dims: Dims, out: Tensor | None) -> Tensor:
    to = torch.empty_like(inputs["cond"], requires_grad=False) if out is None else out
    rule.run(list(inputs.values()), [to], _dims(dims), torch.get_num_threads())
    if out is not None:
        torch.autograd.graph.increment_version([out])
    return to


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def _elsewhere(inputs: dict[str, Any], dims: Dims, out: Tensor | None = None) -> bool:
    """Whether plain torch is to compute: on another device, or where autograd records. Then they are checked here."""
    tensors = inputs if out is None else {**inputs, "out": out}
    recording, here = torch.is_grad_enabled(), True
    for x in tensors.values():
        if not isinstance(x, Tensor):
            continue  # the kernel tells of it, or the checks
        if x.is_complex():
            raise TypeError("the predictions are complex, expected real numbers")
        here = here and x.is_cpu and not (recording and x.requires_grad)
    if here:
        return False
    checks.alike(tensors.items())
    checks.dimensions(*next(iter(tensors.items())), dims)
    return True


def _dims(dims: Dims) -> list[int] | None:
    return dims if dims is None else [dims] if isinstance(dims, int) else list(dims)
