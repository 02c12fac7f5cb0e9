"""Gradients of several tasks made to agree, from the matrix of their inner products."""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.gradients.lists import elsewhere, fill, gram, named, written
from ferrostep.numpy import weights
from ferrostep.reference import gradients as reference


def pcgrad_(gradients: list[list[Tensor | None]], *, generator: torch.Generator | None = None) -> None:
    """Project conflicting gradients (PCGrad, arXiv 2001.06782, Algorithm 1), in place.

    Every gradient loses, task by task in an order drawn for it, what it then has against the original gradient of that
    task. The update is their sum.

    Args:
        gradients: T gradients, see the module; where one has None and another has not, it gets a new tensor.
        generator: for the orders; default torch's.
    """
    matrix = pcgrad_weights(gram(gradients), generator=generator)
    if elsewhere(named(gradients)):
        reference.transform_(gradients, matrix)
        return
    to = [list(gradient) for gradient in gradients]
    for gradient in to:
        fill(gradient, gradients, torch.zeros_like)
    _core.combine(to, to, matrix.tolist(), torch.get_num_threads())
    for gradient, new in zip(gradients, to, strict=True):
        gradient[:] = new
        written(gradient)


def pcgrad_weights(gram: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """PCGrad's projected gradients as combinations of the original ones.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T).
        generator: for the orders; default torch's.

    Returns:
        Shape (T, T), float64: row i makes the projected gradient of task i. Their sum makes the update.
    """
    count = len(gram)
    orders = [torch.randperm(count, generator=generator).tolist() for _ in range(count)]
    return torch.from_numpy(weights.pcgrad_weights(gram.cpu().numpy(), orders))


def min_norm_weights(gram: Tensor) -> Tensor:
    """MGDA's weights (arXiv 1810.04650): the point of least norm in the convex hull of the gradients.

    Exact up to rounding, by an active set.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T).

    Returns:
        T numbers of at least 0 that sum up to 1, float64.
    """
    return torch.from_numpy(weights.min_norm_weights(gram.cpu().numpy()))


def cagrad_weights(gram: Tensor, *, c: float = 0.5) -> Tensor:
    """CAGrad's weights (arXiv 2110.14048, equation 4), which maximize the worst task's gain near the mean gradient.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T).
        c: how far from the mean gradient, as a share of its norm, from 0; 0 is the mean itself.

    Returns:
        T numbers, float64, of which the update is ``combine(gradients, weights)``, not rescaled. Where no task can gain
        without another's loss (as of more tasks than dimensions), the update is the one nearest to the mean gradient
        in which none loses, with ``c >= 1`` none at all if need be.
    """
    return torch.from_numpy(weights.cagrad_weights(gram.cpu().numpy(), c=c))


def aligned_mtl_weights(gram: Tensor) -> Tensor:
    """Aligned-MTL's weights (CVPR 2023, Algorithm 1, all tasks alike): gradients made orthogonal and of one norm.

    The norm is that of the least singular value; directions without a share in the gradients are left out.

    Args:
        gram: of :func:`ferrostep.gradients.gram`, shape (T, T).

    Returns:
        T numbers, float64.
    """
    return torch.from_numpy(weights.aligned_mtl_weights(gram.cpu().numpy()))
