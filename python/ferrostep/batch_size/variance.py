"""The variance of gradients from the micro-batches that gradient accumulation goes through anyway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ferrostep.batch_size import statistics
from ferrostep.batch_size.statistics import GradStatistics
from ferrostep.curvature.products import listed_parameters
from ferrostep.gradients import combine, gram
from ferrostep.gradients.lists import Gradient, follow, power_sum
from ferrostep.numpy.arrays import truth, whole
from ferrostep.suggestions import suggesting

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@suggesting
class GradVarianceAccumulator:
    r"""The statistics of a step's gradient, from its micro-batches.

    ``p.grad`` is their running sum, so that each is what it has grown by since the last look:

    .. code-block:: text

        variance = (sum_j b_j * norm(g_j - g)^2) / (M - 1)      g_j of micro-batch j of M, with b_j samples; unbiased

    Weigh each loss, a mean, by ``b_j / B``, its share of the samples, which is ``1 / M`` where all are as large. A
    common factor, such as a GradScaler's, changes no test. The estimate has M - 1 degrees of freedom: it is rough from
    a few micro-batches, which :class:`AdaptiveBatchSize` averages over steps.

    Args:
        params: the parameters, of any shape and dtype, or (name, parameter) pairs, such as ``model.parameters()``.
        inner_products: also estimate the variance along the gradient, which the inner product tests need. That keeps a
            copy of the gradient for each micro-batch. Default False.

    Memory: one copy of the gradient, in its dtype, from the first :meth:`add` on.

    Raises:
        TypeError, ValueError: no parameters, or one that comes twice.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(3))
        >>> accumulator = GradVarianceAccumulator([w])
        >>> for batch in torch.tensor([[[1.0, 0, 2], [3, 1, 0]], [[2, -1, 1], [0, 0, 1]]]):
        ...     ((batch @ w).mean() / 2).backward()
        ...     accumulator.add(batch_size=2)
        >>> accumulator.result().squared_norm, accumulator.result().variance
        (3.25, 2.0)
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[tuple[str, Tensor]], *, inner_products: bool = False
    ) -> None:
        self._params = listed_parameters(params)
        self._before: list[Tensor | None] = [None] * len(self._params)
        self._inner_products = truth("inner_products", inner_products)
        self._clear()

    def _clear(self) -> None:
        self._sizes: list[int] = []
        self._squares: list[float] = []
        self._sums: list[Gradient] = []
        self._squared_norm = 0.0

    @torch.no_grad()
    def add(self, batch_size: int) -> None:
        """Take in what ``backward()`` has just added to the gradients, in one pass over them.

        Args:
            batch_size: samples of the micro-batch, on this rank.

        Raises:
            TypeError, ValueError: ``batch_size`` is no whole number of at least 1, or a gradient is sparse or has
                changed its shape or dtype since the last reset.
            RuntimeError: there are no gradients, or one has gone since the last call. Nothing is taken in then.
        """
        size = whole("batch_size", batch_size, 1)
        gradient = [p.grad for p in self._params]
        if all(x is None for x in gradient):
            raise RuntimeError("no parameter has a gradient: call add() after backward(), and before zero_grad()")
        before = list(self._before)
        for i, (now, there) in enumerate(zip(gradient, before, strict=True)):
            if now is not None and (there is None or (not self._sizes and not _is_like(now, there))):
                before[i] = torch.zeros_like(now)
            elif now is None and there is not None:
                if self._sizes:
                    raise RuntimeError(f"params[{i}].grad has gone: call reset() with zero_grad()")
                before[i] = None
        square, moved = follow(gradient, before)
        self._before = before
        self._squared_norm = square
        self._squares.append(moved)
        self._sizes.append(size)
        if self._inner_products:
            self._sums.append(combine([gradient], [1.0]))

    def result(self, group: ProcessGroup | None = None) -> GradStatistics:
        """The statistics of all that was added since the last reset.

        Args:
            group: also of the other ranks of this process group, whose micro-batches count as this rank's do. Their
                gradients have to be their means over all ranks by now, but must not have been while :meth:`add` was
                called, as with ``no_sync()`` of DistributedDataParallel and a reduction after it. Default None: of this
                rank alone.

        Returns:
            The statistics. The variance is NaN for less than two micro-batches, and ``inner_variance`` without
            ``inner_products``.

        Raises:
            RuntimeError: nothing has been added, or not as many samples on all ranks: on each rank then.
        """
        gradient: Gradient = [p.grad for p in self._params] if group is not None else self._before
        square = self._squared_norm if group is None else power_sum(gradient, 2)
        spread = statistics.scaled_squares(self._sizes, self._squares)
        along = statistics.squares_along(self._sizes, self._along(gradient), square) if self._sums else torch.nan
        batch, parts = sum(self._sizes), len(self._sizes)
        if group is not None:
            device = self._params[0].device if self._params[0].device.type == "cuda" else "cpu"
            # Also of a rank to which nothing has been added: the others would wait for it.
            sums = torch.tensor([batch, parts, spread, along, batch**2, 1], dtype=torch.float64, device=device)
            torch.distributed.all_reduce(sums, group=group)
            batch, parts, spread, along, squares, ranks = sums.tolist()
            if ranks * squares != batch**2:
                raise RuntimeError("ranks have had batches of different sizes, whose mean is not that of all samples")
        if not parts:
            raise RuntimeError("nothing has been added: call add() after each backward()")
        return statistics.of_sums(int(batch), int(parts), square, spread, along)

    def _along(self, gradient: Gradient) -> list[float]:
        """The inner product of each micro-batch's part with the gradient."""
        products = gram([*self._sums, gradient])[-1, :-1]
        return products.diff(prepend=products.new_zeros(1)).tolist()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew, for the next step: call it with ``zero_grad()``."""
        self._clear()
        for there in self._before:
            if there is not None:
                there.zero_()


def _is_like(x: Tensor, other: Tensor) -> bool:
    return (x.shape, x.dtype, x.device) == (other.shape, other.dtype, other.device)
