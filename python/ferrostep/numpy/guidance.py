"""Guidance of diffusion models, as :mod:`ferrostep.guidance`, for NumPy arrays.

The arrays of a call have one shape and dtype; the first dimension is the batch, ``dims`` are the dimensions that sums
go over (default: all but the first), ``out`` takes the result and may be an input, ``num_threads`` are used at most
(default: as many as the process may use CPUs).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ferrostep import _core
from ferrostep.numpy.arrays import Array, threads

Dims = int | Sequence[int] | None


def cfg(
    cond: Array,
    uncond: Array,
    scale: float,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Classifier-free guidance (arXiv 2207.12598), as :func:`ferrostep.guidance.cfg`."""
    return _guide(_core.Guidance.cfg(scale, rescale), [cond, uncond], dims, out, num_threads)


def apg(
    cond: Array,
    uncond: Array,
    scale: float,
    *,
    eta: float = 0.0,
    norm_threshold: float | None = 0.0,
    momentum: float | None = None,
    momentum_buffer: Array | None = None,
    dims: Dims = None,
    base: str = "cond",
    rescale: float = 0.0,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Adaptive projected guidance (arXiv 2410.02416, Algorithm 1), as :func:`ferrostep.guidance.apg`.

    Args:
        cond, uncond, scale, eta, norm_threshold, dims, base, rescale: as of that function.
        momentum: the share of the last direction; needs ``momentum_buffer``.
        momentum_buffer: the direction, an array like ``cond``, zeros before the first step; updated in place.
        out, num_threads: see the module.
    """
    if (momentum is None) != (momentum_buffer is None):
        given, missing = ("momentum", "momentum_buffer") if momentum_buffer is None else ("momentum_buffer", "momentum")
        raise ValueError(f"{given} came without {missing}, expected both or neither")
    rule = _core.Guidance.apg(scale, eta, norm_threshold or 0.0, momentum, base, rescale)
    inputs = [cond, uncond] if momentum_buffer is None else [cond, uncond, momentum_buffer]
    return _guide(rule, inputs, dims, out, num_threads)


def cfg_zero_star(
    cond: Array,
    uncond: Array,
    scale: float,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """CFG-Zero* (arXiv 2503.18886), as :func:`ferrostep.guidance.cfg_zero_star`."""
    return _guide(_core.Guidance.cfg_zero_star(scale, rescale), [cond, uncond], dims, out, num_threads)


def tangential(
    cond: Array,
    uncond: Array,
    scale: float,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Tangential CFG (arXiv 2503.18137), as :func:`ferrostep.guidance.tangential`."""
    return _guide(_core.Guidance.tangential(scale, rescale), [cond, uncond], dims, out, num_threads)


def perp_neg(
    cond: Array,
    uncond: Array,
    negatives: Sequence[Array],
    scale: float,
    weights: Sequence[float],
    *,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Perp-Neg (arXiv 2304.04968), as :func:`ferrostep.guidance.perp_neg`."""
    negatives, weights = list(negatives), list(weights)
    if len(weights) != len(negatives):
        raise ValueError(f"weights has {len(weights)} numbers, expected {len(negatives)}: one for each of negatives")
    return _guide(_core.Guidance.perp_neg(scale, weights), [cond, uncond, *negatives], dims, out, num_threads)


def project(vector: Array, onto: Array, *, dims: Dims = None, num_threads: int | None = None) -> tuple[Array, Array]:
    """The components of ``vector`` along ``onto`` and orthogonal to it, as :func:`ferrostep.guidance.project`."""
    _check_real([onto, vector])
    outputs = [np.empty_like(vector) for _ in range(2)]
    _core.Guidance.project().run([onto, vector], outputs, _dims(dims), threads(num_threads))
    return outputs[0], outputs[1]


def _guide(rule: _core.Guidance, inputs: list[Array], dims: Dims, out: Array | None, num_threads: int | None) -> Array:
    _check_real(inputs)
    to = np.empty_like(inputs[0]) if out is None else out
    rule.run(inputs, [to], _dims(dims), threads(num_threads))
    return to


def _check_real(inputs: list[Array]) -> None:
    if any(np.iscomplexobj(x) for x in inputs):
        raise TypeError("the predictions are complex, expected real numbers")


def _dims(dims: Dims) -> list[int] | None:
    return dims if dims is None else [dims] if isinstance(dims, int) else list(dims)
