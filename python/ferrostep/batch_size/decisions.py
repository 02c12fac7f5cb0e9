"""Whether a batch is large enough for the noise in its gradients, and if not, how large it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from ferrostep.batch_size.statistics import GradStatistics, check_statistics
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import real
from ferrostep.suggestions import suggesting

Test: TypeAlias = Literal["norm", "inner_product", "augmented"]


class Fraction(NamedTuple):
    """The size that a test asks for: a variance, by a power of the mean's norm times a squared bound."""

    variance: str
    power: str
    bound: str


INNER = Fraction("inner_variance", "fourth_power", "theta")
TESTS: Mapping[Test, tuple[Fraction, ...]] = {
    "norm": (Fraction("variance", "squared_norm", "eta"),),
    "inner_product": (INNER,),
    "augmented": (INNER, Fraction("orthogonal_variance", "squared_norm", "nu")),
}


class BatchSizeDecision(NamedTuple):
    """What a test found.

    Attributes:
        size: the batch that it asks for, in samples, at least the present one.
        passed: whether the present one is enough; False, too, where the statistics say nothing.
        stat: the size before rounding; NaN where the statistics say nothing: gradients that are NaN, infinite or all
            zero, or less than two micro-batches.

    Example:
        >>> BatchSizeDecision(size=4, passed=True, stat=3.7).size
        4
    """

    size: int
    passed: bool
    stat: float


@suggesting
def norm_test(statistics: GradStatistics, eta: float = 0.5) -> BatchSizeDecision:
    r"""The norm test: is the mean gradient's error at most the share ``eta`` of it (Byrd et al. 2012)?

    It asks for ``variance / (eta^2 * norm(g)^2)`` samples. On average the squared norm of g is larger by
    ``variance / B`` than that over all data, so that a batch passes from ``1 / eta^2 - 1`` noise scales on: three for
    ``eta=0.5``, and for ``eta=1`` any batch at all.

    Args:
        statistics: of the batch.
        eta: above 0; below 1 to be of any use. Default 0.5.

    Returns:
        The decision.

    Raises:
        TypeError, ValueError: no statistics, or ``eta`` is no number above 0.

    Example:
        >>> norm_test(GradStatistics(batch_size=4, squared_norm=3.25, variance=2.5), eta=0.25)
        BatchSizeDecision(size=13, passed=False, stat=12.307692307692308)
    """
    return decide("norm", statistics, eta=eta)


@suggesting
def inner_product_test(statistics: GradStatistics, theta: float = 0.9) -> BatchSizeDecision:
    r"""The inner product test: do the samples' gradients agree on a descent (Bollapragada et al. 2018, 1710.11258)?

    It asks for ``inner_variance / (theta^2 * norm(g)^4)`` samples, mostly less than the norm test.

    Args:
        statistics: of the batch, with ``inner_variance``.
        theta: above 0. Default 0.9.

    Returns:
        The decision.

    Raises:
        TypeError, ValueError: no statistics, or ``theta`` is no number above 0.

    Example:
        >>> inner_product_test(GradStatistics(4, squared_norm=3.25, variance=3.0, inner_variance=2.4)).size
        4
    """
    return decide("inner_product", statistics, theta=theta)


@suggesting
def augmented_test(statistics: GradStatistics, theta: float = 0.9, nu: float = 5.84) -> BatchSizeDecision:
    r"""The inner product test with a bound of what is orthogonal to the gradient (Bollapragada et al. 2018).

    It asks for the larger of the inner product test's size and ``orthogonal_variance / (nu^2 * norm(g)^2)``.

    Args:
        statistics: of the batch, with ``inner_variance``.
        theta: above 0. Default 0.9.
        nu: above 0. Default 5.84.

    Returns:
        The decision.

    Raises:
        TypeError, ValueError: no statistics, or ``theta`` or ``nu`` is no number above 0.

    Example:
        >>> augmented_test(GradStatistics(4, 3.25, variance=3.0, inner_variance=2.4), theta=0.1).size
        23
    """
    return decide("augmented", statistics, theta=theta, nu=nu)


def decide(test: Test, statistics: GradStatistics, **bounds: float) -> BatchSizeDecision:
    """The decision of a test with its bounds."""
    check_statistics(statistics)
    for name, bound in bounds.items():
        check_bound(name, bound)
    stat = required(test, quantities(statistics), bounds)
    present = statistics.batch_size
    return BatchSizeDecision(max(math.ceil(stat), present) if stat == stat else present, stat <= present, stat)


def check_bound(name: str, bound: float) -> float:
    """A test's bound, above 0."""
    if real(name, bound, 0.0) == 0:
        raise Problem.NUMBER.of(name, bound, "more than 0")
    return float(bound)


def quantities(statistics: GradStatistics) -> dict[str, float]:
    """What tests make fractions of, by its name."""
    return {
        "variance": statistics.variance,
        "inner_variance": statistics.inner_variance,
        "orthogonal_variance": statistics.orthogonal_variance,
        "squared_norm": statistics.squared_norm,
        "fourth_power": statistics.squared_norm * statistics.squared_norm,
        "unbiased_squared_norm": statistics.unbiased_squared_norm,
    }


def required(test: Test, known: Mapping[str, float], bounds: Mapping[str, float]) -> float:
    """The size that a test asks for, a finite number; NaN where there is none."""
    sizes = []
    for variance, power, bound in TESTS[test]:
        divisor = bounds[bound] ** 2 * known[power]
        sizes.append(known[variance] / divisor if divisor else math.nan)
    return max(sizes) if all(map(math.isfinite, sizes)) else math.nan
