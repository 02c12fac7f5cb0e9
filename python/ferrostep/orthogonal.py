"""Orthogonalization of matrices by Newton-Schulz, for torch tensors."""

from __future__ import annotations

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import numpy  # noqa: F401  (before its parts: threads may meet there)

# isort: split

from collections.abc import Sequence
from functools import partial
from typing import overload

import torch
from torch import Tensor

from ferrostep import _core, reference
from ferrostep.choices import Algorithm, Precision
from ferrostep.coefficients import Coefficients, schedule_of
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import integers, listed
from ferrostep.reference import checks

_core.adopt_openmp()


@overload
def orthogonalize(
    tensors: Tensor,
    *,
    steps: int | None = ...,
    coefficients: Coefficients = ...,
    precision: Precision = ...,
    algorithm: Algorithm = ...,
    restarts: Sequence[int] = ...,
    eps: float = ...,
    out: Tensor | None = ...,
) -> Tensor: ...


@overload
def orthogonalize(
    tensors: Sequence[Tensor],
    *,
    steps: int | None = ...,
    coefficients: Coefficients = ...,
    precision: Precision = ...,
    algorithm: Algorithm = ...,
    restarts: Sequence[int] = ...,
    eps: float = ...,
    out: Sequence[Tensor] | None = ...,
) -> list[Tensor]: ...


@torch.no_grad()
def orthogonalize(
    tensors: Tensor | Sequence[Tensor],
    *,
    steps: int | None = None,
    coefficients: Coefficients = "keller",
    precision: Precision = "auto",
    algorithm: Algorithm = "auto",
    restarts: Sequence[int] = (2,),
    eps: float = 0.0,
    out: Tensor | Sequence[Tensor] | None = None,
) -> Tensor | list[Tensor]:
    """Orthogonalize matrices: of ``G = U S V^T`` about ``U V^T`` by Newton-Schulz, as Muon (Jordan et al. 2024) does.

    Args:
        tensors: a tensor of shape (..., rows, columns), or several, of dtype float32, float64, bfloat16 or float16.
            All matrices of a call are spread over the threads together.
        steps: number of steps; None (default) for as many as were published, 5 where any number will do.
        coefficients, precision, algorithm, restarts: see ``ns_coefficients``, ``ns_precision``, ``ns_algorithm`` and
            ``ns_restarts`` of :class:`ferrostep.optim.Muon`.
        eps: least norm to divide by. Default 0: the result does not depend on the scale of the input.
        out: where the results go, of the shapes and dtypes of ``tensors``, which may be ``tensors`` themselves.

    Returns:
        The results, in ``out`` or new tensors. A zero matrix stays zero; one with a NaN or infinity becomes NaN.
        Autograd does not see the operation; tensors on other devices than the CPU are computed in plain torch.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible argument, or a tensor that cannot be taken. Nothing has
            been changed then.

    Example:
        >>> orthogonal = orthogonalize(torch.tensor([[3.0, 0.0], [4.0, 5.0]]), steps=15, coefficients="classic")
        >>> (orthogonal @ orthogonal.T).abs().round(decimals=3)
        tensor([[1., 0.],
                [0., 1.]])
    """
    single = isinstance(tensors, Tensor)
    inputs = [tensors] if isinstance(tensors, Tensor) else listed("tensors", tensors)
    given = [out] if single and isinstance(out, Tensor) else out
    if given is None:
        outputs = [torch.empty_like(x, requires_grad=False) if isinstance(x, Tensor) else x for x in inputs]
    else:
        outputs = listed("out", given)
    schedule = schedule_of(coefficients, steps)
    elsewhere = any(isinstance(x, Tensor) and not x.is_cpu for x in inputs)
    if elsewhere:
        _check_for_reference(inputs, outputs)
    call = partial(
        _core.orthogonalize,
        [] if elsewhere else inputs,
        [] if elsewhere else outputs,
        schedule=schedule,
        eps=eps,
        algorithm=algorithm,
        precision=precision,
        restarts=integers("restarts", restarts),
        threads=torch.get_num_threads(),
    )
    call()  # elsewhere, it checks the arguments
    if not elsewhere:
        return outputs[0] if single else outputs
    triples = schedule.triples()
    results = [reference.newton_schulz(x, triples, eps=eps, precision=precision) for x in inputs]
    _core.complete(lambda: results, lambda _: [to.copy_(x) for to, x in zip(outputs, results, strict=True)])
    return outputs[0] if single else outputs


def _check_for_reference(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    if len(inputs) != len(outputs):
        raise Problem.COUNT.of("out", f"{len(outputs)} tensors", len(inputs))
    for i, (x, to) in enumerate(zip(inputs, outputs, strict=True)):
        checks.alike([(f"tensors[{i}]", x), (f"out[{i}]", to)])
        checks.writable(f"out[{i}]", to)
        if x.ndim < 2:
            raise Problem.SHAPE.of(f"tensors[{i}]", list(x.shape), "2 or more dimensions")
