"""What is measured of largest singular values: ours beside torch's, each with the least work that leaves 1e-3."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ferrostep.optim import top_singular_values
from projections import Contest

SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
"""GPT-2's, as torch's linear layers have them."""
ERROR = 1e-3
SPREAD = 0.02
COLUMNS = 6
"""That ``torch.svd_lowrank`` takes for one singular value, as it does by default."""


def contests() -> Iterator[Contest]:
    """Of matrices as they are drawn, and of such with 16 larger singular values, as training makes them."""
    for shape in SHAPES:
        torch.manual_seed(0)
        drawn = SPREAD * torch.randn(shape)
        left, right = (torch.linalg.qr(torch.randn(side, 16))[0] for side in shape)
        spikes = SPREAD * sum(side**0.5 for side in shape) * torch.logspace(0.6, 0.0, 16)
        for kind, matrix in (("drawn", drawn), ("with spikes", drawn + left * spikes @ right.T)):
            yield of(f"{shape[0]} x {shape[1]}, {kind}", matrix)


def of(title: str, matrix: Tensor) -> Contest:
    """Of one matrix, in float32."""
    exact = torch.linalg.svdvals(matrix.double())[0].item()
    niter = first((1, 2, 4, 8, 16, 32, 64), lambda n: in_torch(matrix, n), exact)
    tol = first((1e-1, 5e-2, 2e-2, 1e-2, 1e-3), lambda t: ours(matrix, t), exact)
    return Contest(
        title,
        {
            f"torch.svd_lowrank, niter={niter}": lambda: in_torch(matrix, int(niter)),
            f"ferrostep, tol={tol:g}": lambda: ours(matrix, tol),
        },
    )


def first(settings: tuple[float, ...], find: Callable[[float], float], exact: float) -> float:
    """The first setting that is good enough."""
    return next(each for each in settings if abs(find(each) / exact - 1) < ERROR)


def in_torch(matrix: Tensor, niter: float) -> float:
    """From random columns."""
    return torch.svd_lowrank(matrix, q=COLUMNS, niter=int(niter))[1][0].item()


def ours(matrix: Tensor, tol: float) -> float:
    """From a random vector."""
    return top_singular_values([("matrix", matrix)], iters=200, tol=tol)["matrix"].value
