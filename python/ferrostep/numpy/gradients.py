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
    """``backward <- scale * (backward - kappa * forward)``, as :func:`ferrostep.gradients.orthogonal_`.

    Args:
        backward: arrays of any shapes and dtypes of the module's; changed in place.
        forward: arrays like them, or None; only read.
        scale, eps, per_tensor: as of that function.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        kappa; with ``per_tensor`` one for each place.

    Raises:
        TypeError, ValueError: arrays that do not fit, or an impossible argument; nothing has been changed then.

    Example:
        >>> backward = [np.array([1.0, 1.0])]
        >>> orthogonal_(backward, [np.array([2.0, 0.0])])
        0.5
        >>> backward
        [array([0., 1.])]
    """
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
    """``out += forward + eta * (backward - kappa * forward)``: :func:`ferrostep.gradients.orthogonal_combine_`.

    Args:
        out: arrays of any shapes and dtypes of the module's; changed in place.
        forward, backward: arrays like them, or None; only read.
        eta, eps, per_tensor: as of that function.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        kappa; with ``per_tensor`` one for each place.

    Raises:
        TypeError, ValueError: arrays that do not fit, or an impossible argument; nothing has been changed then.

    Example:
        >>> out = [np.zeros(2)]
        >>> orthogonal_combine_(out, [np.array([2.0, 0.0])], [np.array([1.0, 1.0])])
        0.5
        >>> out
        [array([2., 1.])]
    """
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
    """The inner products of all pairs of T gradients, as :func:`ferrostep.gradients.gram`.

    Args:
        gradients: T lists of arrays of the same shapes and dtypes, or None.
        num_threads: at most; default the CPUs that the process may use.

    Returns:
        Shape (T, T), float64.

    Raises:
        TypeError, ValueError: arrays that do not fit.

    Example:
        >>> gram([[np.array([1.0, 2.0])], [np.array([3.0, 0.0])]])
        array([[5., 3.],
               [3., 9.]])
    """
    return np.array(_core.gram(nested("gradients", gradients), threads(num_threads)))


def combine(
    gradients: Sequence[Gradient],
    weights: Sequence[float] | Array,
    out: Sequence[Array],
    *,
    num_threads: int | None = None,
) -> None:
    """Write to ``out`` the sum of gradients, each times its weight, as :func:`ferrostep.gradients.combine`.

    Args:
        gradients: T lists of arrays of the same shapes and dtypes, or None.
        weights: T numbers.
        out: arrays like them; may be one of ``gradients``.
        num_threads: at most; default the CPUs that the process may use.

    Raises:
        TypeError, ValueError: arrays that do not fit, or another number of weights; nothing has been changed then.

    Example:
        >>> out = [np.zeros(2)]
        >>> combine([[np.array([1.0, 2.0])], [np.array([3.0, 0.0])]], [1.0, 0.5], out)
        >>> out
        [array([2.5, 2. ])]
    """
    lists = nested("gradients", gradients)
    row = numbers("weights", weights, ("gradients", lists))
    _core.combine(lists, [writable("out", out)], [row], threads(num_threads))


def pcgrad_(
    gradients: Sequence[Sequence[Array]],
    *,
    generator: np.random.Generator | None = None,
    num_threads: int | None = None,
) -> None:
    """Project conflicting gradients, in place, as :func:`ferrostep.gradients.pcgrad_`.

    Args:
        gradients: T lists of arrays of the same shapes and dtypes.
        generator: for the orders; default a new one.
        num_threads: at most; default the CPUs that the process may use.

    Raises:
        TypeError, ValueError: arrays that do not fit; nothing has been changed then.

    Example:
        >>> gradients = [[np.array([1.0, 0.0])], [np.array([-1.0, 1.0])]]
        >>> pcgrad_(gradients)
        >>> gradients
        [[array([0.5, 0.5])], [array([0., 1.])]]
    """
    generator = np.random.default_rng() if generator is None else generator
    lists = [writable(f"gradients[{i}]", own) for i, own in enumerate(nested("gradients", gradients))]
    products = gram(lists, num_threads=num_threads)
    matrix = pcgrad_weights(products, [generator.permutation(len(lists)).tolist() for _ in lists])
    _core.combine(lists, lists, matrix.tolist(), threads(num_threads))


def ema_(target: Sequence[Array], source: Sequence[Array], tau: float, *, num_threads: int | None = None) -> None:
    """``target <- (1 - tau) * target + tau * source``, as :func:`ferrostep.gradients.ema_`.

    Args:
        target: arrays of any shapes and dtypes of the module's; changed in place.
        source: arrays like them; only read.
        tau: the share, from 0 to 1.
        num_threads: at most; default the CPUs that the process may use.

    Raises:
        TypeError, ValueError: arrays that do not fit, or another ``tau``; nothing has been changed then.

    Example:
        >>> target = [np.zeros(2)]
        >>> ema_(target, [np.ones(2)], tau=0.25)
        >>> target
        [array([0.25, 0.25])]
    """
    _core.ema(listed("target", target), listed("source", source), tau, threads(num_threads))
