"""Newton-Schulz orthogonalization in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Triple = tuple[float, float, float]

PRECISIONS = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def newton_schulz(x: Tensor, triples: Sequence[Triple], *, eps: float = 0.0, precision: str = "auto") -> Tensor:
    """Orthogonalize the last two dimensions: with ``x = U S V^T``, about ``U V^T``, in the dtype of ``x``.

    ``X <- X / max(norm, eps)``, then ``X <- a X + (b A + c A A) X`` with ``A = X X^T`` for each ``(a, b, c)``. The norm
    is never less precise than float32, and neither overflows nor underflows. A zero matrix stays zero.

    Args:
        x: shape (..., rows, columns), of a floating-point dtype.
        triples: the coefficients of every step.
        eps: least norm to divide by. Default 0.
        precision: of the arithmetic: ``"bfloat16"``, ``"float32"``, ``"float64"``, or ``"auto"`` (default): float64 for
            float64 and float32 for all else.

    Returns:
        A new tensor of the shape and dtype of ``x``.

    Raises:
        RuntimeError: integers or complex numbers, as torch.

    Example:
        >>> newton_schulz(torch.diag(torch.tensor([3.0, 4.0])), [(1.5, -0.5, 0.0)] * 15)
        tensor([[1., 0.],
                [0., 1.]])
    """
    work = PRECISIONS.get(precision, torch.float64 if x.dtype == torch.float64 else torch.float32)
    y = x if x.dtype == torch.float64 else x.to(torch.promote_types(work, torch.float32))
    tall = y.shape[-2] > y.shape[-1]
    if tall:
        y = y.mT
    if y.numel() == 0:
        return x.clone()
    largest = y.abs().amax((-2, -1), keepdim=True)
    y = y / torch.where(largest > 0, largest, 1)
    norm = torch.linalg.matrix_norm(y, keepdim=True)
    y = y / torch.where(largest > 0, torch.maximum(norm, eps / largest), 1)
    y = y.to(work)
    for a, b, c in triples:
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return (y.mT if tall else y).to(x.dtype)
