"""Guidance of diffusion models, as :mod:`ferrostep.guidance`, for NumPy arrays.

The arrays of a call have one shape and dtype; the first dimension is the batch, ``dims`` are the dimensions that sums
go over (default: all but the first), ``scale`` is a number or an array with one for each sample, ``out`` takes the
result and may be an input, ``num_threads`` are used at most (default: the CPUs that the process may use).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ferrostep import _core
from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import Array, integers, listed, numbers, scales, threads

Dims = int | Sequence[int] | None


def cfg(
    cond: Array,
    uncond: Array,
    scale: float | Array,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Classifier-free guidance (arXiv 2207.12598), as :func:`ferrostep.guidance.cfg`.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype.
        scale, rescale: as of that function.
        dims, out, num_threads: see the module.

    Returns:
        The guided prediction: ``out``, or a new array.

    Raises:
        TypeError, ValueError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> cfg(np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]]), scale=3.0)
        array([[3., 4.]])
    """
    inputs = _checked(cond=cond, uncond=uncond)
    return _guide(_core.Guidance.cfg(scales(scale, cond), rescale), inputs, dims, out, num_threads)


def apg(
    cond: Array,
    uncond: Array,
    scale: float | Array,
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
        cond, uncond: the predictions, of one shape (B, ...) and dtype.
        scale, eta, norm_threshold, base, rescale: as of that function.
        momentum: the share of the last direction; needs ``momentum_buffer``. Default None: no momentum.
        momentum_buffer: the direction, an array like ``cond``, zeros before the first step; updated in place.
        dims, out, num_threads: see the module.

    Returns:
        The guided prediction: ``out``, or a new array.

    Raises:
        TypeError, ValueError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> apg(np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]]), scale=3.0).round(4)
        array([[1.8, 1.6]])
    """
    if (momentum is None) != (momentum_buffer is None):
        given, missing = ("momentum", "momentum_buffer") if momentum_buffer is None else ("momentum_buffer", "momentum")
        raise ValueError(f"{given} came without {missing}, expected both or neither")
    inputs = _checked(cond=cond, uncond=uncond)
    if momentum_buffer is not None:
        inputs += _checked(momentum_buffer=momentum_buffer)
    rule = _core.Guidance.apg(scales(scale, cond), eta, norm_threshold or 0.0, momentum, base, rescale)
    return _guide(rule, inputs, dims, out, num_threads)


def cfg_zero_star(
    cond: Array,
    uncond: Array,
    scale: float | Array,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """CFG-Zero* (arXiv 2503.18886), as :func:`ferrostep.guidance.cfg_zero_star`.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype.
        scale, rescale: as of that function.
        dims, out, num_threads: see the module.

    Returns:
        The guided prediction: ``out``, or a new array.

    Raises:
        TypeError, ValueError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> cfg_zero_star(np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]]), scale=3.0).round(4)
        array([[3., 2.]])
    """
    inputs = _checked(cond=cond, uncond=uncond)
    return _guide(_core.Guidance.cfg_zero_star(scales(scale, cond), rescale), inputs, dims, out, num_threads)


def tangential(
    cond: Array,
    uncond: Array,
    scale: float | Array,
    *,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Tangential CFG (arXiv 2503.18137), as :func:`ferrostep.guidance.tangential`.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype.
        scale, rescale: as of that function.
        dims, out, num_threads: see the module.

    Returns:
        The guided prediction: ``out``, or a new array.

    Raises:
        TypeError, ValueError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> tangential(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0]]), scale=3.0).round(4)
        array([[6., 0.]])
    """
    inputs = _checked(cond=cond, uncond=uncond)
    return _guide(_core.Guidance.tangential(scales(scale, cond), rescale), inputs, dims, out, num_threads)


def magnitude_aware(
    cond: Array,
    uncond: Array,
    scale: float | Array,
    *,
    alpha: float = 8.0,
    rescale: float = 0.0,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Magnitude-aware guidance (arXiv 2508.03442), as :func:`ferrostep.guidance.magnitude_aware`.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype.
        scale, alpha, rescale: as of that function.
        dims, out, num_threads: see the module.

    Returns:
        The guided prediction: ``out``, or a new array.

    Raises:
        TypeError, ValueError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> magnitude_aware(np.array([[9.0, 12.0]]), np.array([[6.0, 8.0]]), scale=5.0, alpha=2.0).round(4)
        array([[13.4146, 17.8861]])
    """
    inputs = _checked(cond=cond, uncond=uncond)
    rule = _core.Guidance.magnitude_aware(scales(scale, cond), alpha, rescale)
    return _guide(rule, inputs, dims, out, num_threads)


def perp_neg(
    cond: Array,
    uncond: Array,
    negatives: Sequence[Array],
    scale: float | Array,
    weights: Sequence[float],
    *,
    dims: Dims = None,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Array:
    """Perp-Neg (arXiv 2304.04968), as :func:`ferrostep.guidance.perp_neg`.

    Args:
        cond, uncond: the predictions, of one shape (B, ...) and dtype.
        negatives: 1 to 4 predictions for what is not wanted.
        scale, weights: as of that function.
        dims, out, num_threads: see the module.

    Returns:
        The guided prediction: ``out``, or a new array.

    Raises:
        TypeError, ValueError: an argument that cannot be used; nothing has been changed then.

    Example:
        >>> cond, uncond, unwanted = (np.array([x]) for x in ([1.0, 2.0], [0.0, 1.0], [1.0, 0.0]))
        >>> perp_neg(cond, uncond, [unwanted], 3.0, [0.5])
        array([[1.5, 5.5]])
    """
    negatives = listed("negatives", negatives)
    weights = numbers("weights", weights, ("negatives", negatives))
    inputs = _checked(cond=cond, uncond=uncond, **{f"negatives[{i}]": x for i, x in enumerate(negatives)})
    return _guide(_core.Guidance.perp_neg(scales(scale, cond), weights), inputs, dims, out, num_threads)


def project(vector: Array, onto: Array, *, dims: Dims = None, num_threads: int | None = None) -> tuple[Array, Array]:
    """The components of ``vector`` along ``onto`` and orthogonal to it, as :func:`ferrostep.guidance.project`.

    Args:
        vector, onto: arrays of one shape (B, ...) and dtype.
        dims, num_threads: see the module.

    Returns:
        The parallel component and the orthogonal one, new arrays.

    Raises:
        TypeError, ValueError: an argument that cannot be used.

    Example:
        >>> project(np.array([[1.0, 1.0]]), np.array([[2.0, 0.0]]))
        (array([[1., 0.]]), array([[0., 1.]]))
    """
    inputs = _checked(onto=onto, vector=vector)
    outputs = [np.empty_like(vector) for _ in range(2)]
    _core.Guidance.project().run(inputs, outputs, _dims(dims), threads(num_threads))
    return outputs[0], outputs[1]


def _guide(rule: _core.Guidance, inputs: list[Array], dims: Dims, out: Array | None, num_threads: int | None) -> Array:
    to = np.empty_like(inputs[0]) if out is None else out
    rule.run(inputs, [to], _dims(dims), threads(num_threads))
    return to


def _checked(**inputs: Array) -> list[Array]:
    for name, x in inputs.items():
        if not isinstance(x, np.ndarray):
            raise wrong_kind(name, x, "a numpy.ndarray")
        if np.iscomplexobj(x):
            raise Problem.NOT_REAL.of(name, x.dtype, "real numbers")
    return list(inputs.values())


def _dims(dims: Dims) -> list[int] | None:
    return None if dims is None else integers("dims", [dims] if isinstance(dims, int) else dims)
