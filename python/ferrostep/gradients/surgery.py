"""Gradients of several tasks made to agree, from the matrix of their inner products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.errors import Problem
from ferrostep.gradients.lists import Gradient, elsewhere, gram, named, settle, written
from ferrostep.numpy import weights
from ferrostep.numpy.arrays import Array, listed, nested
from ferrostep.reference import gradients as reference


def pcgrad_(gradients: Sequence[Gradient], *, generator: torch.Generator | None = None) -> None:
    """Project conflicting gradients (PCGrad, arXiv 2001.06782, Algorithm 1), in place.

    Every gradient loses, task by task in an order drawn for it, what it then has against the original gradient of that
    task. The update is their sum.

    Args:
        gradients: T gradients, lists of tensors of the same shapes and dtypes, see the module; where one has None and
            another has not, it gets a new tensor, for which it must be no tuple.
        generator: for the orders; default torch's.

    Raises:
        TypeError, ValueError, RuntimeError: lists that do not go together, or a tensor that cannot be read or written.
            Nothing has been changed then.

    Example:
        >>> gradients = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]
        >>> pcgrad_(gradients)
        >>> gradients
        [[tensor([0.5000, 0.5000])], [tensor([0., 1.])]]
    """
    given = listed("gradients", gradients)
    lists = nested("gradients", given)
    to = [written(name, own, lists, torch.zeros_like) for name, own in zip(named(given), given, strict=True)]
    in_torch = elsewhere(named(to), written=named(to))
    rows = pcgrad_weights(gram(lists), generator=generator).tolist()
    call: Callable[[], Any]
    if in_torch:
        call = partial(reference.transformed, to, rows)
        _core.complete(call, lambda results: _settle_all(given, results))
    else:
        call = partial(_core.combine, to, to, rows, torch.get_num_threads())
        _core.complete(call, lambda _: _settle_all(given, to))


def _settle_all(given: Sequence[Any], values: Sequence[Gradient]) -> None:
    for own, new in zip(given, values, strict=True):
        settle(own, new)


def pcgrad_weights(gram: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """PCGrad's projected gradients (arXiv 2001.06782, Algorithm 1) as combinations of the original ones.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T), of any real dtype.
        generator: for the orders; default torch's.

    Returns:
        Shape (T, T), float64: row i makes the projected gradient of task i. Their sum makes the update.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers.

    Example:
        >>> pcgrad_weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([[1.0000, 0.5000],
                [1.0000, 1.0000]], dtype=torch.float64)
    """
    matrix = _array(gram)
    orders = [torch.randperm(len(matrix), generator=generator).tolist() for _ in matrix]
    return torch.from_numpy(weights.pcgrad_weights(matrix, orders))


def min_norm_weights(
    gram: Tensor,
    *,
    initial: Sequence[float] | Tensor | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Tensor:
    """MGDA's weights (arXiv 1810.04650): the point of least norm in the convex hull of the gradients.

    Exact up to rounding, by an active set (Wolfe, Mathematical Programming 11, 1976).

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T), of any real dtype.
        initial: T weights to start from, such as those of the step before: where they are still the best, no work is
            left, and where the same tasks have a weight, little. Default: the task of the least norm.
        callback: called with a report about every 50 ms, and with the last one: its ``steps``, its ``status``
            (``running``, at the end ``converged``, or ``stalled`` where rounding lets no step come nearer), and its
            ``gap``: by how much half the squared norm may exceed the least one, in units of the gram's largest number.
            What it raises ends the call, as Ctrl-C does.

    Returns:
        T numbers of at least 0 that sum up to 1, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, or ``initial`` no such weights.

    Example:
        >>> min_norm_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    found = weights.min_norm_weights(_array(gram), initial=_detached(initial), callback=callback)
    return torch.from_numpy(found)


def cagrad_weights(
    gram: Tensor,
    *,
    c: float = 0.5,
    initial: Sequence[float] | Tensor | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Tensor:
    """CAGrad's weights (arXiv 2110.14048, equation 4), which maximize the worst task's gain near the mean gradient.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T), of any real dtype.
        c: how far from the mean gradient, as a share of its norm, from 0; 0 is the mean itself. Default 0.5.
        initial: T weights that were returned before, as of the last step; they save some of the work, and change the
            result by no more than rounding.
        callback: as of :func:`min_norm_weights`; the gap is the interval in which the worst combination's norm is
            still searched for, as a part of it.

    Returns:
        T numbers, float64, of which the update is ``combine(gradients, weights)``, not rescaled. Where no task can gain
        without another's loss (as of more tasks than dimensions), the update is the one nearest to the mean gradient
        in which none loses, with ``c >= 1`` none at all if need be.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, ``c`` no number of at least 0, or
            ``initial`` not T finite numbers.

    Example:
        >>> cagrad_weights(torch.eye(2))
        tensor([0.7500, 0.7500], dtype=torch.float64)
    """
    found = weights.cagrad_weights(_array(gram), c=c, initial=_detached(initial), callback=callback)
    return torch.from_numpy(found)


def upgrad_weights(
    gram: Tensor,
    *,
    initial: Sequence[Sequence[float]] | Tensor | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Tensor:
    """UPGrad's projected gradients (Quinton & Rey 2024, arXiv 2406.16232) as combinations of the original ones.

    Each is projected onto the dual cone of all: the nearest update by which no task loses, to first order. Exact up to
    rounding, by an active set, for gradients of any norms.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T), of any real dtype.
        initial: the (T, T) weights of the step before. Where they are still the best, no work is left but to see that.
        callback: as of :func:`min_norm_weights`; the gap is the most that a projected gradient has against a gradient
            (or with one that was added to it), as a product with its direction, in units of its task's norm.

    Returns:
        Shape (T, T), float64: row i makes the projected gradient of task i, and is that of the unit matrix where the
        task is in no conflict. Their mean makes the update, ``combine(gradients, weights.mean(0))``; another preference
        among the tasks is ``preference @ weights``.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, or ``initial`` no T rows of T.

    Example:
        >>> upgrad_weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([[1.0000, 0.5000],
                [1.0000, 1.0000]], dtype=torch.float64)
    """
    given: Any = _detached(initial)
    if isinstance(given, Tensor):
        given = [*given] if given.is_meta else given.tolist()  # a meta tensor is refused by its first element
    return torch.from_numpy(weights.upgrad_weights(_array(gram), initial=given, callback=callback))


def nash_mtl_weights(
    gram: Tensor,
    *,
    initial: Sequence[float] | Tensor | None = None,
    callback: Callable[[_core.Report], object] | None = None,
) -> Tensor:
    """Nash-MTL's weights (Navon et al. 2022, arXiv 2202.01017, Claim 3.1): ``alpha > 0`` with ``G alpha = n / alpha``.

    The update's direction does not change with the scale of any loss. Its length is ``sqrt(T n)``: ``n`` is the
    Frobenius norm of G, so that it grows with the gradients as those of other methods do, and a GradScaler's factor
    drops out. The paper has n = 1, with which it is ``sqrt(T)`` for any gradients; its authors' code clips it at 1
    (``max_norm``). Where the gradients can be combined to 0, the weights would be infinite: 1e-12 of its own is added
    to every gradient's squared norm.

    Solved to rounding, as the least of the convex ``alpha^T G alpha / 2 - n sum(log(alpha))``, by damped Newton steps.
    The authors' code takes up to 20 steps of a convex-concave procedure from the last weights, and keeps these for
    ``update_weights_every`` steps.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T), of any real dtype.
        initial: T weights that were returned before, as of the last step; they save steps, and change the result by no
            more than rounding. Those of 0 or less count as unknown.
        callback: as of :func:`min_norm_weights`; the gap is by how much that function may exceed its least value, with
            n = 1.

    Returns:
        T numbers, float64: above 0, or 0 for a gradient of 0.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers, or ``initial`` not T finite numbers.

    Example:
        >>> weights = nash_mtl_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        >>> weights / weights.sum()
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    found = weights.nash_mtl_weights(_array(gram), initial=_detached(initial), callback=callback)
    return torch.from_numpy(found)


def imtl_g_weights(gram: Tensor) -> Tensor:
    """IMTL-G's weights (Liu et al. 2021, "Towards Impartial Multi-task Learning", equation 5), in closed form.

    The update's inner products with the directions of all gradients are the same. They may all be below 0: the weights
    may, as the paper only asks that they sum up to 1.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T), of any real dtype.

    Returns:
        T numbers that sum up to 1, float64, 0 for a gradient of 0. Of dependent gradients, the weights of the
        directions are the least (by the pseudoinverse); where there are none at all, zeros.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers.

    Example:
        >>> imtl_g_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    return torch.from_numpy(weights.imtl_g_weights(_array(gram)))


def aligned_mtl_weights(gram: Tensor) -> Tensor:
    """Aligned-MTL's weights (CVPR 2023, Algorithm 1, all tasks alike): gradients made orthogonal and of one norm.

    The norm is that of the least singular value; directions without a share in the gradients are left out.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T), of any real dtype.

    Returns:
        T numbers, float64.

    Raises:
        TypeError, ValueError: ``gram`` is no square matrix of finite real numbers.

    Example:
        >>> aligned_mtl_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    return torch.from_numpy(weights.aligned_mtl_weights(_array(gram)))


def _array(gram: Tensor) -> Array:
    if not isinstance(gram, Tensor):
        return weights.checked(gram)
    if gram.is_complex():
        raise Problem.NOT_REAL.of("gram", gram.dtype, "real numbers")
    if gram.layout != torch.strided:
        raise Problem.LAYOUT.of("gram", gram.layout, torch.strided)
    if gram.is_meta:
        raise Problem.DEVICE.of("gram", gram.device, "one with memory")
    return weights.checked(gram.detach().double().cpu().numpy())


def _detached(given: Any) -> Any:
    return given.detach() if isinstance(given, Tensor) else given
