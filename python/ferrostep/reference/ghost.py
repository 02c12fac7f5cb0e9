"""Ghost batch normalization in plain torch, part by part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def parts(count: int, size: int) -> list[int]:
    """How many samples each ghost of a batch has: ``size``, and the last what is left over, too."""
    ghosts = max(count // size, 1)
    return [size] * (ghosts - 1) + [count - size * (ghosts - 1)]


def normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, *, tracked: bool = True
) -> tuple[Tensor, ...]:
    """Each ghost normalized by its mean and variance; if `tracked`, these means, too, and variances with divisor n - 1.

    Ghost by ghost, which is faster than all at once as more channels: each stays in the cache between its passes.
    """
    ghosts = torch.split(x, parts(len(x), size))
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    # Contiguous: of a weight that is not, torch's derivative reads what lies between.
    weight, bias = (None if each is None else each.to(dtype).contiguous() for each in (weight, bias))
    statistics = torch.zeros(2, len(ghosts), x.shape[1], dtype=dtype, device=x.device) if tracked else None
    of_each = zip(*statistics, strict=True) if statistics is not None else [(None, None)] * len(ghosts)
    out = [
        F.batch_norm(ghost, mean, variance, weight, bias, training=True, momentum=1.0, eps=eps)
        for ghost, (mean, variance) in zip(ghosts, of_each, strict=True)
    ]
    return torch.cat(out), *(() if statistics is None else statistics)
