"""The Gauss-Newton-Bartlett estimator: the curvature of a likelihood from labels that the model itself draws.

For a loss that is the negative log-likelihood of the model's own distribution, gradients at sampled labels have the
Gauss-Newton matrix as their covariance. So with ``g`` the gradient of the mean loss over ``B`` sampled labels,
``B * g^2`` is an unbiased estimate of the diagonal of the Gauss-Newton matrix of the mean loss, and never negative
(arXiv 2305.14342, Algorithm 2). At the true labels it would be the empirical Fisher, which is something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ferrostep.curvature.diagonal import count_ranks, mean_over_ranks
from ferrostep.curvature.products import Loss, evaluated, filled, first_derivatives, listed_parameters, work_dtype
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import whole
from ferrostep.reference import checks
from ferrostep.suggestions import suggesting

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@suggesting
def sampled_cross_entropy(
    logits: Tensor,
    targets: Tensor | None = None,
    *,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, int]:
    """Mean cross-entropy at labels drawn from the model's own distribution, and the number of labels.

    Args:
        logits: shape (..., classes), of a floating-point dtype, with their graph.
        targets: shape (...), the true labels: only looked at for positions with ``ignore_index``, which draw no label
            (masked or padded positions would else enter the curvature). Default None: every position counts.
        ignore_index: as of ``torch.nn.functional.cross_entropy``. Default -100.
        generator: for the labels; default torch's global one.

    Returns:
        The mean loss over the labels, to call ``backward`` on, and ``B``, the ``bs`` of :class:`SophiaG`. Without any
        label they are 0 and 0, and ``update_hessian(bs=0)`` does nothing. Logits that are not finite make the loss NaN,
        and :class:`SophiaG` skips the estimate.

    Raises:
        TypeError: something else than tensors.
        ValueError: ``logits`` of integers or without classes, or ``targets`` not of their shape without the last
            dimension.

    Example:
        >>> logits = torch.zeros(2, 3, 5, requires_grad=True)
        >>> targets = torch.tensor([[0, 1, -100], [2, -100, -100]])
        >>> loss, labels = sampled_cross_entropy(logits, targets)
        >>> f"{loss.item():.4f}", labels
        ('1.6094', 3)
    """
    _check_predictions("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise Problem.SHAPE.of("logits", list(logits.shape), "classes in the last dimension")
    rows = logits.reshape(-1, logits.shape[-1])
    if targets is not None:
        checks.tensor("targets", targets)
        if targets.shape != logits.shape[:-1]:
            raise Problem.SHAPE.of("targets", list(targets.shape), f"{list(logits.shape[:-1])} for these logits")
        rows = rows[targets.reshape(-1) != ignore_index]
    if len(rows) == 0:
        return rows.sum(), 0
    with torch.no_grad():
        # Where logits are not finite the loss is NaN at any label; multinomial would raise.
        probabilities = rows.detach().float().softmax(-1).nan_to_num_(1.0)
        labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    return F.cross_entropy(rows, labels), len(labels)


@suggesting
def sampled_squared_error(outputs: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, int]:
    """Half the mean squared error at labels drawn around the outputs, and the number of labels.

    The regression form: the likelihood is normal with variance 1, so a label is the output plus standard normal noise.
    The curvature is that of ``0.5 * mse_loss`` (mean over all elements); ``mse_loss`` itself has twice of it.

    Args:
        outputs: of any shape and floating-point dtype, with their graph.
        generator: for the noise; default torch's global one.

    Returns:
        The mean loss and the number of labels, one per element; 0 and 0 without any.

    Raises:
        TypeError, ValueError: ``outputs`` is no tensor, or one of integers.

    Example:
        >>> loss, labels = sampled_squared_error(torch.zeros(2, 3, requires_grad=True))
        >>> loss.shape, labels
        (torch.Size([]), 6)
    """
    _check_predictions("outputs", outputs)
    if outputs.numel() == 0:
        return outputs.sum(), 0
    noise = torch.empty_like(outputs, requires_grad=False).normal_(generator=generator)
    return 0.5 * F.mse_loss(outputs, outputs.detach() + noise), outputs.numel()


@suggesting
def gauss_newton_bartlett(
    loss: Loss,
    labels: int,
    params: Iterable[Tensor],
    *,
    retain_graph: bool = False,
    grad_scale: float = 1.0,
    all_reduce: bool | ProcessGroup = True,
) -> list[Tensor]:
    """An estimate of the Gauss-Newton diagonal from a loss at sampled labels (arXiv 2305.14342, Algorithm 2).

    ``p.grad`` is not touched.

    Args:
        loss: the mean over sampled labels, from :func:`sampled_cross_entropy` or :func:`sampled_squared_error`.
        labels: their number ``B``.
        params: the parameters, or (name, parameter) pairs. Those that the loss does not use, or that require no
            gradients, have zeros.
        retain_graph: keep the graph of the loss. Default False.
        grad_scale: what the loss has been multiplied by. Default 1.
        all_reduce: average the gradient over the ranks of this process group, or of the default one (True) where
            ``torch.distributed`` is initialized, and count the labels of all; every rank has to have as many. Default
            True.

    Returns:
        ``B * g^2``, one tensor of each parameter's shape, float32 for bfloat16 and float16 ones, else of its dtype.

    Raises:
        TypeError, ValueError, RuntimeError: as of :class:`HessianProduct`.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> gauss_newton_bartlett(*sampled_cross_entropy(w.expand(1, 2)), [w])
        [tensor([0.2500, 0.2500])]
    """
    params, labels = listed_parameters(params), whole("labels", labels, 0)
    gradients = first_derivatives(evaluated(loss), params, retain_graph=retain_graph)
    scaled = [g.to(work_dtype(g)) / grad_scale for g in filled(gradients, params)]
    mean = mean_over_ranks(scaled, all_reduce)
    return [labels * count_ranks(all_reduce) * g * g for g in mean]


def _check_predictions(name: str, x: Tensor) -> None:
    checks.tensor(name, x)
    if not x.is_floating_point():
        raise Problem.DTYPE.of(name, x.dtype, "a floating-point one")
