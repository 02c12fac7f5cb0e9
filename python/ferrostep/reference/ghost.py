"""Ghost batch normalization in plain torch, part by part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def parts(count: int, size: int) -> list[int]:
    """How many samples each ghost of a batch has: ``size``, and the last what is left over, too."""
    ghosts = max(count // size, 1)
    return [size] * (ghosts - 1) + [count - size * (ghosts - 1)]


def normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each ghost normalized by its mean and variance; these means, and the variances with divisor n - 1.

    Ghost by ghost, which is faster than all at once as more channels: each stays in the cache between its passes.
    """
    sizes = parts(len(x), size)
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    means, variances = torch.zeros(2, len(sizes), x.shape[1], dtype=dtype, device=x.device)
    weight, bias = (None if each is None else each.to(dtype) for each in (weight, bias))
    ghosts = [
        F.batch_norm(ghost, mean, variance, weight, bias, training=True, momentum=1.0, eps=eps)
        for ghost, mean, variance in zip(torch.split(x, sizes), means, variances, strict=True)
    ]
    return torch.cat(ghosts), means, variances


def moved(running: Tensor, own: Tensor, kept: Tensor, shares: Sequence[float] | Tensor) -> Tensor:
    """A running statistic after the ghosts' own, each by its share."""
    return running * kept + shares @ own
