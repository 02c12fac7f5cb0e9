"""The vector work of Lanczos iteration, for vectors of float32 or float64: on Rust kernels, elsewhere in plain torch.

Inner products and norms are float64, and the same for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ferrostep import _core
from ferrostep.reference import krylov as reference

_core.adopt_openmp()


def fill(out: Tensor, *, signs: bool, seed: int, number: int) -> None:
    """Fill with vector ``number`` of a seed: random signs, or numbers between -1 and 1."""
    if out.is_cpu:
        _core.krylov_fill(out, signs=signs, seed=seed, number=number, threads=torch.get_num_threads())
    else:
        reference.fill(out, signs=signs, seed=seed, number=number)


def recur(product: Tensor, before: Tensor, beta: float, q: Tensor, out: Tensor) -> float:
    """``out <- product - beta * before``; returns ``<out, q>``."""
    if out.is_cpu:
        return _core.krylov_recur(product, before, beta, q, out, torch.get_num_threads())
    return reference.recur(product, before, beta, q, out)


def subtract(w: Tensor, q: Tensor, alpha: float) -> float:
    """``w <- w - alpha * q``; returns the norm."""
    if w.is_cpu:
        return _core.krylov_subtract(w, q, alpha, torch.get_num_threads())
    return reference.subtract(w, q, alpha)


def orthogonalize(basis: Tensor, block: Tensor) -> tuple[list[list[float]], list[float]]:
    """``w <- w - Q c`` with ``c = Q' w``, for each row w of ``block``, and the rows of ``basis`` as the columns of Q.

    Then the same for w with the rows of ``block`` before it. The basis is to be orthonormal, the block's rows but the
    last one of norm 1. Returns c and the norm of every row. All is read twice, however many rows there are.
    """
    if block.is_cpu:
        return _core.krylov_orthogonalize(basis, block, torch.get_num_threads())
    return reference.orthogonalize(basis, block)


def scale(w: Tensor, factor: float) -> None:
    """``w <- factor * w``."""
    if w.is_cpu:
        _core.krylov_scale(w, factor, torch.get_num_threads())
    else:
        reference.scale(w, factor)


def dot(x: Tensor, y: Tensor) -> float:
    """``<x, y>``."""
    if x.is_cpu:
        return _core.gram([[x], [y]], torch.get_num_threads())[0][1]
    return reference.dot(x, y)
