"""Gradients of several losses, as :mod:`ferrostep.gradients`, for NumPy arrays.

A gradient is a list of arrays; None stands for zeros, but not in what is written. ``num_threads`` are used at most
(default: the CPUs that the process may use).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ferrostep import _core
from ferrostep.numpy.arrays import Array, listed, nested, numbers, threads, writable
from ferrostep.numpy.weights import pcgrad_weights

Gradient = Sequence[Array | None]


def orthogonal_(
    backward: Sequence[Array],
    forward: Gradient,
    *,
    scale: float = 1.0,
    eps: float = 1e-10,
    per_tensor: bool = False,
    num_threads: int | None = None,
) -> float | list[float]:
    """``backward <- scale * (backward - kappa * forward)``, as :func:`ferrostep.gradients.orthogonal_`."""
    kappas = _core.orthogonal(
        listed("forward", forward),
        writable("backward", backward),
        scale=scale,
        eps=eps,
        per_tensor=per_tensor,
        threads=threads(num_threads),
    )
    return kappas if per_tensor else sum(kappas)


def orthogonal_combine_(
    out: Sequence[Array],
    forward: Gradient,
    backward: Gradient,
    *,
    eta: float = 1.0,
    eps: float = 1e-10,
    per_tensor: bool = False,
    num_threads: int | None = None,
) -> float | list[float]:
    """``out += forward + eta * (backward - kappa * forward)``: :func:`ferrostep.gradients.orthogonal_combine_`."""
    outputs = writable("out", out)
    kappas = _core.orthogonal_combine(
        outputs,
        listed("forward", forward),
        listed("backward", backward),
        outputs,
        eta=eta,
        eps=eps,
        per_tensor=per_tensor,
        skip_nonfinite=False,
        threads=threads(num_threads),
    )
    assert kappas is not None
    return kappas if per_tensor else sum(kappas)


def gram(gradients: Sequence[Gradient], *, num_threads: int | None = None) -> Array:
    """The inner products of all pairs of T gradients, shape (T, T), as :func:`ferrostep.gradients.gram`."""
    return np.array(_core.gram(nested("gradients", gradients), threads(num_threads)))


def combine(
    gradients: Sequence[Gradient],
    weights: Sequence[float] | Array,
    out: Sequence[Array],
    *,
    num_threads: int | None = None,
) -> None:
    """Write to ``out`` the sum of gradients, each times its weight, as :func:`ferrostep.gradients.combine`."""
    lists = nested("gradients", gradients)
    row = numbers("weights", weights, ("gradients", lists))
    _core.combine(lists, [writable("out", out)], [row], threads(num_threads))


def pcgrad_(
    gradients: Sequence[Sequence[Array]],
    *,
    generator: np.random.Generator | None = None,
    num_threads: int | None = None,
) -> None:
    """Project conflicting gradients, in place, as :func:`ferrostep.gradients.pcgrad_`."""
    generator = np.random.default_rng() if generator is None else generator
    lists = [writable(f"gradients[{i}]", own) for i, own in enumerate(nested("gradients", gradients))]
    products = gram(lists, num_threads=num_threads)
    matrix = pcgrad_weights(products, [generator.permutation(len(lists)).tolist() for _ in lists])
    _core.combine(lists, lists, matrix.tolist(), threads(num_threads))


def ema_(target: Sequence[Array], source: Sequence[Array], tau: float, *, num_threads: int | None = None) -> None:
    """``target <- (1 - tau) * target + tau * source``, as :func:`ferrostep.gradients.ema_`."""
    _core.ema(listed("target", target), listed("source", source), tau, threads(num_threads))
