"""How much the gradients of single samples vary about their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

from torch import Tensor

from ferrostep.errors import Problem, wrong_kind
from ferrostep.gradients import gram
from ferrostep.numpy.arrays import listed, real, whole
from ferrostep.reference import checks
from ferrostep.suggestions import suggesting


class GradStatistics(NamedTuple):
    """What the tests know of a batch of B samples with gradients g_i and their mean g.

    All numbers are floats; those that could not be estimated are NaN, and tests then keep the batch as it is.

    Attributes:
        batch_size: B, over all ranks and micro-batches.
        squared_norm: of g.
        variance: of one sample's gradient, with divisor B - 1, summed over all elements.
        inner_variance: of ``<g_i, g>``. Default NaN.

    Example:
        >>> statistics = GradStatistics(batch_size=4, squared_norm=3.25, variance=3.0)
        >>> statistics.unbiased_squared_norm
        2.5
    """

    batch_size: int
    squared_norm: float
    variance: float
    inner_variance: float = math.nan

    @property
    def unbiased_squared_norm(self) -> float:
        """The squared norm of the gradient over all data: that of g is ``variance / batch_size`` too large."""
        return self.squared_norm - self.variance / self.batch_size

    @property
    def orthogonal_variance(self) -> float:
        """The part of the variance that is orthogonal to g."""
        along = self.inner_variance / self.squared_norm if self.squared_norm else math.nan
        return at_least_zero(self.variance - along)


def check_statistics(statistics: GradStatistics) -> None:
    """Raise TypeError or ValueError for what is no statistics of at least one sample, in floats."""
    if not isinstance(statistics, GradStatistics):
        raise wrong_kind("statistics", statistics, "a GradStatistics")
    whole("statistics.batch_size", statistics.batch_size, 1)
    for name, value in zip(statistics._fields[1:], statistics[1:], strict=True):
        if not isinstance(value, Real):  # a tensor would keep its graph in the averages
            raise wrong_kind(f"statistics.{name}", value, "a float")
        if value < 0:
            raise Problem.NUMBER.of(f"statistics.{name}", value, "a number of at least 0, or NaN")


def noise_scale(statistics: GradStatistics) -> float:
    """The simple noise scale (McCandlish et al. 2018, arXiv 1812.06162): the variance per squared norm, in samples.

    Batches far below it average noise; far above it they add little. One step's estimate is noisy:
    :attr:`AdaptiveBatchSize.noise_scale` averages both parts over steps.

    Args:
        statistics: of a batch.

    Returns:
        The scale: infinite where the noise hides the gradient, NaN where nothing is known.

    Raises:
        TypeError, ValueError: no statistics, or of no sample.

    Example:
        >>> noise_scale(GradStatistics(batch_size=4, squared_norm=3.25, variance=3.0))
        1.2
    """
    check_statistics(statistics)
    return quotient(statistics.variance, statistics.unbiased_squared_norm)


def quotient(variance: float, square: float) -> float:
    """The noise scale of a variance and an unbiased squared norm, which may have come out below 0."""
    if variance == square == 0 or math.isnan(square):
        return math.nan
    return variance / square if square > 0 else math.inf


def sample_statistics(gradients: Sequence[Tensor] | Mapping[str, Tensor]) -> GradStatistics:
    """The statistics of per-sample gradients: exact, for tests and small models.

    Args:
        gradients: one tensor of shape ``(B, ...)`` for each parameter, float32, float64, bfloat16 or float16, as
            ``torch.func.vmap(torch.func.grad(...))`` gives them; or a dict of them.

    Returns:
        The statistics, from the inner products of all pairs of samples, in float64.

    Raises:
        TypeError, ValueError: no tensors, or tensors of other lengths.
        RuntimeError: a sparse tensor.

    Example:
        >>> import torch
        >>> statistics = sample_statistics([torch.tensor([[1.0, 0, 2], [3, 1, 0], [2, -1, 1], [0, 0, 1]])])
        >>> statistics.batch_size, statistics.squared_norm, statistics.variance
        (4, 3.25, 3.0)
    """
    tensors = listed("gradients", gradients.values() if isinstance(gradients, Mapping) else gradients)
    if not tensors:
        raise Problem.EMPTY.of("gradients", "nothing", "one tensor at least")
    for i, x in enumerate(tensors):
        checks.readable(f"gradients[{i}]", x)
        if x.ndim == 0 or len(x) != len(tensors[0]):
            expected = "a dimension of the samples" if x.ndim == 0 else f"{len(tensors[0])} samples, as gradients[0]"
            raise Problem.SHAPE.of(f"gradients[{i}]", list(x.shape), expected)
    count = len(tensors[0])
    products = gram([[x[i] for x in tensors] for i in range(count)]) / count**2 if count else None
    if products is None:
        raise Problem.EMPTY.of("gradients[0]", "nothing", "one sample at least")
    return of_parts([1] * count, products.diagonal().tolist(), float(products.sum()), along=products.sum(1).tolist())


@suggesting
def two_batch_statistics(
    small_batch: int, small_squared_norm: float, batch: int, squared_norm: float
) -> GradStatistics:
    """The statistics that the gradients of two batch sizes tell: such as of one rank, and of all after the reduction.

    Args:
        small_batch: samples of the smaller batch.
        small_squared_norm: of its gradient; average over batches or ranks, and over steps, before the call.
        batch, squared_norm: the same of the larger batch, which may contain the smaller one.

    Returns:
        The statistics of the larger batch (arXiv 1812.06162, appendix A.1); a variance below 0 is given as 0.

    Raises:
        TypeError, ValueError: no numbers, or the larger batch is not larger.

    Example:
        >>> two_batch_statistics(4, 2.5, 16, 1.5).variance
        5.333333333333333
    """
    small, large = whole("small_batch", small_batch, 1), whole("batch", batch, 1)
    if large <= small:
        raise Problem.NUMBER.of("batch", batch, f"more than small_batch={small_batch}")
    noisy, square = real("small_squared_norm", small_squared_norm, 0.0), real("squared_norm", squared_norm, 0.0)
    return GradStatistics(large, square, at_least_zero((noisy - square) / (1 / small - 1 / large)))


def of_parts(
    sizes: Sequence[int], squares: Sequence[float], squared_norm: float, along: Sequence[float] | None = None
) -> GradStatistics:
    """The statistics of a sum of parts: of ``sizes`` samples, ``squares`` the parts' squared norms, ``along`` their
    inner products with the sum. A part is its samples' gradients' sum, divided by the number of all samples.
    """
    total = sum(sizes)
    spread = scaled_squares(sizes, squares)
    spread_along = math.nan if along is None else squares_along(sizes, along, squared_norm)
    return of_sums(total, len(sizes), squared_norm, spread, spread_along)


def scaled_squares(sizes: Sequence[int], squares: Sequence[float]) -> float:
    """The parts' means, squared and weighted by their samples."""
    return sum(sizes) ** 2 * sum(square / size for size, square in zip(sizes, squares, strict=True))


def squares_along(sizes: Sequence[int], along: Sequence[float], squared_norm: float) -> float:
    """The squared differences of the parts' means from the mean, along it, weighted by their samples."""
    total = sum(sizes)
    differences = (product * total / size - squared_norm for size, product in zip(sizes, along, strict=True))
    return sum(size * x * x for size, x in zip(sizes, differences, strict=True))


def of_sums(batch: int, parts: int, squared_norm: float, spread: float, spread_along: float) -> GradStatistics:
    """The statistics of weighted sums over parts: unbiased, with one degree of freedom less than there are parts."""
    if parts < 2:
        return GradStatistics(batch, squared_norm, math.nan)
    variance = at_least_zero((spread - batch * squared_norm) / (parts - 1))
    return GradStatistics(batch, squared_norm, variance, spread_along / (parts - 1))


def at_least_zero(x: float) -> float:
    """What rounding has made negative, as 0; NaN stays."""
    return 0.0 if x < 0 else x
