"""The Hessian's diagonal by Hutchinson's estimator (Bekas et al. 2007; arXiv 2305.14342, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from ferrostep.choices import Distribution
from ferrostep.curvature.products import HessianProduct, Loss, draw_probes, listed_parameters, work_dtype
from ferrostep.numpy.arrays import whole
from ferrostep.suggestions import suggesting

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@suggesting
class HutchinsonDiagonal:
    """The mean of estimates ``u * (H u)`` of the Hessian's diagonal, added one by one (Bekas et al. 2007).

    Args:
        params: the parameters, of any shape, of dtype float32, float64, bfloat16 or float16; fixed from here on.
        num_samples: probes per loss, at least 1. Default 1.
        distribution: of the probes ``u``: ``"rademacher"`` (default; exact where the Hessian is diagonal, and always
            of the smaller variance) or ``"gaussian"``.
        generator: for the probes; default torch's global one.

    Estimates are kept in float32 for bfloat16 and float16 parameters, else in the parameter's dtype; a single one is
    kept as its two factors.

    Raises:
        TypeError, ValueError: ``params`` has something else than parameters, or none, or ``num_samples`` is no integer
            of at least 1.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> diagonal = HutchinsonDiagonal([w])
        >>> for x in (1.0, 3.0):
        ...     diagonal.add((x * w**3).sum())
        >>> diagonal.mean()
        [tensor([12., 24.])]
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        num_samples: int = 1,
        distribution: Distribution = "rademacher",
        generator: torch.Generator | None = None,
    ) -> None:
        self.params = listed_parameters(params)
        self.num_samples = whole("num_samples", num_samples, 1)
        self.distribution = distribution
        self.generator = generator
        self.count = 0
        """Estimates so far: losses times samples."""
        self.factors: tuple[list[Tensor], list[Tensor]] | None = None
        """Probes and products, while there is one estimate only."""
        self._sums: list[Tensor] = []

    def add(self, loss: Loss, *, retain_graph: bool = False, grad_scale: float = 1.0) -> None:
        """Take in the Hessian of one more loss, such as the mean loss of one more micro-batch.

        Args:
            loss: of shape () with its graph, or a function that returns one, as of :class:`HessianProduct`.
            retain_graph: keep the loss's graph for its own ``backward``. Default False.
            grad_scale: what the loss has been multiplied by. Default 1.

        Raises:
            TypeError, ValueError, RuntimeError: as of :class:`HessianProduct`, or an unknown distribution.
        """
        product = HessianProduct(loss, self.params, grad_scale=grad_scale)
        for sample in range(self.num_samples):
            probes = draw_probes(self.params, self.distribution, self.generator)
            last = sample == self.num_samples - 1
            self._add(probes, product(probes, retain_graph=retain_graph or not last))

    def mean(self) -> list[Tensor]:
        """The estimate, one tensor like each parameter; zeros before the first loss."""
        if self.factors is not None:
            return [_product(u, product) for u, product in zip(*self.factors, strict=True)]
        if not self._sums:
            return [torch.zeros_like(p, dtype=work_dtype(p), requires_grad=False) for p in self.params]
        return [total / self.count for total in self._sums]

    @torch.no_grad()
    def _add(self, probes: list[Tensor], products: list[Tensor]) -> None:
        self.count += 1
        if self.count == 1:
            self.factors = (probes, products)
            return
        if self.factors is not None:
            self._sums, self.factors = self.mean(), None
        for total, u, product in zip(self._sums, probes, products, strict=True):
            total += _product(u, product)


@suggesting
def hutchinson_diagonal(
    loss: Loss | Iterable[Loss],
    params: Iterable[Tensor],
    *,
    num_samples: int = 1,
    distribution: Distribution = "rademacher",
    generator: torch.Generator | None = None,
    retain_graph: bool = False,
    grad_scale: float = 1.0,
    all_reduce: bool | ProcessGroup = True,
) -> list[Tensor]:
    """An unbiased estimate of the diagonal of the Hessian of ``loss`` (arXiv 2305.14342, Algorithm 1).

    Args:
        loss: a scalar tensor with its graph, a function that returns one (called once, with attention in a form that
            can be differentiated twice), or an iterable of either, such as the mean losses of micro-batches, of which
            the mean is estimated; a generator keeps only one graph alive at a time.
        params: the parameters, each once, or (name, parameter) pairs. Those that the loss does not use have zeros.
        num_samples: probes to average, each costing about two backward passes. Default 1.
        distribution: ``"rademacher"`` (default; variance ``sum_{j != i} H_ij^2``) or ``"gaussian"`` (``2 H_ii^2``
            more).
        generator: for the probes; default torch's global one.
        retain_graph: keep the graph for the loss's own ``backward``. Default False.
        grad_scale: what the loss has been multiplied by, such as ``GradScaler.get_scale()``. Default 1.
        all_reduce: average over the ranks of this process group, or of the default one (True) where
            ``torch.distributed`` is initialized; all ranks have to call then. Give the loss of the module that is
            inside DistributedDataParallel. Default True.

    Returns:
        One tensor of each parameter's shape, float32 for bfloat16 and float16 ones, else of its dtype; entries may be
        negative.

    Raises:
        TypeError, ValueError: an impossible argument, or a loss that is not a scalar.
        RuntimeError: as of :class:`HessianProduct`.

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> hutchinson_diagonal((w**3).sum(), [w])
        [tensor([ 6., 12.])]
    """
    diagonal = HutchinsonDiagonal(params, num_samples=num_samples, distribution=distribution, generator=generator)
    losses = loss if isinstance(loss, Iterable) and not isinstance(loss, Tensor) else [loss]
    for one in losses:
        diagonal.add(one, retain_graph=retain_graph, grad_scale=grad_scale)
    return mean_over_ranks(diagonal.mean(), all_reduce)


def mean_over_ranks(tensors: list[Tensor], all_reduce: bool | ProcessGroup) -> list[Tensor]:
    """The tensors, in place averaged over a process group (True: the default one, if there is one)."""
    ranks = count_ranks(all_reduce)
    if ranks > 1:
        group = None if isinstance(all_reduce, bool) else all_reduce
        handles = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
        for handle, tensor in zip(handles, tensors, strict=True):
            handle.wait()
            tensor /= ranks
    return tensors


def count_ranks(all_reduce: bool | ProcessGroup) -> int:
    """The number of processes that average: 1 where there is no one to average with."""
    if all_reduce is False or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(None if isinstance(all_reduce, bool) else all_reduce)


def _product(u: Tensor, product: Tensor) -> Tensor:
    return u.to(work_dtype(u)) * product
