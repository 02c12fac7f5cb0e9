"""The trace and the largest eigenvalue of a loss's Hessian, from products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ferrostep.choices import Distribution
from ferrostep.curvature.products import HessianProduct, Loss, draw_probes, listed_parameters
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import check, whole


class Trace(NamedTuple):
    """An estimated trace, of :func:`hutchinson_trace`.

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> hutchinson_trace((w**2).sum(), [w], num_samples=1).value
        6.0
    """

    value: float
    """The mean over the probes."""
    standard_error: float
    """Of the mean over the probes; NaN for one probe."""


class Eigenvalue(NamedTuple):
    """An approximate eigenvalue, of :func:`top_eigenvalue`.

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> top_eigenvalue((w**2).sum(), [w]).steps
        1
    """

    value: float
    """The largest of the tridiagonal matrix that Lanczos iteration has made."""
    residual: float
    """A true eigenvalue lies within this distance: the norm of ``A x - value * x`` for the approximate unit ``x``."""
    steps: int
    """Products that it took."""


class Tridiagonal(NamedTuple):
    """What Lanczos iteration makes of a symmetric matrix: its tridiagonal form, in float64."""

    alphas: Tensor
    betas: Tensor
    """The last one couples to the vector that was not taken in any more."""


def hutchinson_trace(
    loss: Loss,
    params: Iterable[Tensor],
    *,
    num_samples: int = 10,
    distribution: Distribution = "rademacher",
    generator: torch.Generator | None = None,
    retain_graph: bool = False,
) -> Trace:
    """An unbiased estimate of the trace of the Hessian: the mean of ``u' H u`` over random ``u`` (Hutchinson 1990).

    Args:
        loss: a tensor of shape () with its graph, or a function that returns one, as of :class:`HessianProduct`.
        params: the parameters, of any shape, of dtype float32, float64, bfloat16 or float16.
        num_samples: probes, at least 1. Default 10.
        distribution: ``"rademacher"`` (default, of the smaller variance) or ``"gaussian"``.
        generator: for the probes; default torch's global one.
        retain_graph: keep the loss's graph. Default False.

    Returns:
        The mean over the probes, and its standard error.

    Raises:
        ValueError: ``num_samples < 1``, or a product that is not finite, as of a loss that is NaN.
        TypeError, RuntimeError: as of :class:`HessianProduct`.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hutchinson_trace((w**3).sum(), [w], num_samples=2)
        Trace(value=18.0, standard_error=0.0)
    """
    num_samples = whole("num_samples", num_samples, 1)
    product = HessianProduct(loss, params)
    samples = []
    for sample in range(num_samples):
        probes = draw_probes(product.params, distribution, generator)
        products = product(probes, retain_graph=retain_graph or sample < num_samples - 1)
        samples.append(_finite(sum(_dot(u, h) for u, h in zip(probes, products, strict=True))))
    values = torch.tensor(samples, dtype=torch.float64)
    error = values.std().item() / math.sqrt(num_samples) if num_samples > 1 else math.nan
    return Trace(values.mean().item(), error)


def lanczos(
    multiply: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    *,
    stop: Callable[[Tridiagonal], bool] | None = None,
) -> Tridiagonal:
    """Lanczos iteration with full reorthogonalization (Golub and Van Loan, Matrix Computations, chapter 10).

    Args:
        multiply: the symmetric matrix times a flat vector.
        start: the first vector, of shape (n,), not zero; its floating-point dtype is that of the ``steps`` vectors that
            are kept.
        steps: at most so many products. Fewer where the vectors span an invariant subspace.
        stop: asked after each product whether to end. Default None: never.

    Returns:
        The diagonal and the off-diagonal, in float64, as long as products were made.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: ``steps < 1``, or a first vector that is empty, zero or not finite, or a product that is not finite.

    Example:
        >>> diagonal = torch.tensor([1.0, 2.0, 3.0])
        >>> found = lanczos(lambda v: diagonal * v, torch.ones(3), steps=3)
        >>> round(found.alphas.sum().item(), 4)
        6.0
    """
    steps = whole("steps", steps, 1)
    if start.ndim != 1 or not start.is_floating_point():
        raise ValueError(
            f"the first vector has shape {list(start.shape)} and dtype {start.dtype}, expected one floating-point row"
        )
    if not 0.0 < start.norm() < math.inf:
        raise ValueError(f"the norm of the first vector is {start.norm().item()}, expected one above 0 and finite")
    alphas: list[float] = []
    betas: list[float] = []
    vector = start / start.norm()
    basis = vector.new_empty(min(steps, len(start)), len(start))
    for k in range(len(basis)):
        basis[k] = vector
        w = multiply(vector)
        if not isinstance(w, Tensor) or w.shape != start.shape:
            what = f"shape {list(w.shape)}" if isinstance(w, Tensor) else f"type {type(w).__name__}"
            raise ValueError(f"the product of the matrix has {what}, expected a tensor of shape {list(start.shape)}")
        _finite(_dot(w, w))
        alphas.append(_dot(vector, w))
        for _ in range(2):  # the second pass removes what rounding left of the first
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        betas.append(math.sqrt(_dot(w, w)))
        found = Tridiagonal(*(torch.tensor(x, dtype=torch.float64) for x in (alphas, betas)))
        size = max(map(abs, alphas + betas))
        if betas[-1] <= 10 * torch.finfo(w.dtype).eps * size * math.sqrt(len(start)) or (stop and stop(found)):
            break
        vector = w / betas[-1]
    return found


def top_eigenvalue(
    loss: Loss,
    params: Iterable[Tensor],
    *,
    steps: int = 50,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Eigenvalue:
    """The largest (not: largest in magnitude) eigenvalue of the Hessian, by Lanczos iteration from a random vector.

    Args:
        loss: a tensor of shape () with its graph, which is kept, or a function that returns one, as of
            :class:`HessianProduct`.
        params: the parameters, of any shape, of dtype float32 or float64: 16-bit products are too coarse.
        steps: at most so many products; as many vectors of all parameters are kept. Default 50.
        tolerance: end when the residual is at most this part of the eigenvalue. Default 1e-3.
        generator: for the first vector; default torch's global one.

    Returns:
        The eigenvalue, how far a true one is from it at most, and the number of products.

    Raises:
        ValueError: ``steps < 1``, parameters of 16 bits, or a product that is not finite, as of a loss that is NaN.
        TypeError, RuntimeError: as of :class:`HessianProduct`.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> round(top_eigenvalue((w**3).sum(), [w], generator=torch.Generator().manual_seed(0)).value, 4)
        12.0
    """
    params = listed_parameters(params)
    steps = whole("steps", steps, 1)
    check("tolerance", tolerance, 0.0)
    for i, p in enumerate(params):
        if p.dtype not in (torch.float32, torch.float64):
            raise Problem.DTYPE.of(f"parameter {i}", p.dtype, "float32 or float64")
    product = HessianProduct(loss, params)

    def multiply(vector: Tensor) -> Tensor:
        pieces = torch.split_with_sizes(vector, [p.numel() for p in params])
        vectors = [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, params, strict=True)]
        return _flat(product(vectors)).to(vector.dtype)

    def is_close(found: Tridiagonal) -> bool:
        value, residual = _top(found)
        return residual <= tolerance * abs(value)

    start = _flat(draw_probes(params, "gaussian", generator))
    found = lanczos(multiply, start, steps, stop=is_close)
    value, residual = _top(found)
    return Eigenvalue(value, residual, len(found.alphas))


def _top(found: Tridiagonal) -> tuple[float, float]:
    """The largest eigenvalue of the tridiagonal matrix, and how far a true one can be from it."""
    between = found.betas[:-1]
    matrix = torch.diag(found.alphas) + torch.diag(between, 1) + torch.diag(between, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values[-1].item(), (found.betas[-1] * vectors[-1, -1].abs()).item()


def _finite(value: float) -> float:
    """The number, which comes from a product of the matrix and a vector."""
    if not math.isfinite(value):
        raise ValueError(
            f"a product of the matrix is not finite ({value}): the loss or its derivatives have NaN or infinity"
        )
    return value


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _dot(x: Tensor, y: Tensor) -> float:
    return torch.dot(x.reshape(-1).double(), y.reshape(-1).double()).item()
