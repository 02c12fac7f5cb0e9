"""Schedules from the gradient norms of a run (Defazio et al. 2023, arXiv 2310.07831, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import check, real, whole
from ferrostep.schedules.schedule import Schedule, ScheduleLR
from ferrostep.suggestions import suggesting

Mode: TypeAlias = Literal["adam", "sgd"]
Norms: TypeAlias = npt.NDArray[np.float64]

MOST_KNOTS = 10_000
"""Longer runs are sampled at so many points: state dicts stay small."""


@suggesting
class RefinedSchedule(Schedule):
    """A schedule that :func:`refine_schedule` made: factors at equal distances, and straight lines between.

    Args:
        factors: at least two, float64, of shape ``(n,)``, the first for the first step and the last for the last.
        total_steps: how many steps.
        floored: how many norms were so small that the floor took their place.
        dropped: how many norms were NaN or infinite and left out.

    Raises:
        TypeError, ValueError: ``total_steps`` is no whole number of at least 1, there are less than two factors, or one
            that is no finite number.

    Example:
        >>> schedule = RefinedSchedule([1.0, 0.0], total_steps=5)
        >>> [schedule(step) for step in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def __init__(self, factors: Sequence[float] | Norms, total_steps: int, floored: int = 0, dropped: int = 0) -> None:
        self.factors = _row("factors", factors).tolist()
        if len(self.factors) < 2:
            raise Problem.COUNT.of("factors", f"{len(self.factors)} numbers", "at least 2")
        for i, factor in enumerate(self.factors):
            if not math.isfinite(factor):
                raise Problem.NUMBER.of(f"factors[{i}]", factor, "a finite number")
        self.total_steps = whole("total_steps", total_steps, 1)
        self.floored = floored
        self.dropped = dropped

    def __call__(self, step: int) -> float:
        """The factor of step ``step``."""
        last = len(self.factors) - 1
        place = last * min(step / max(self.total_steps - 1, 1), 1.0)
        left = min(int(place), last - 1)
        share = place - left
        return self.factors[left] * (1 - share) + self.factors[left + 1] * share


@suggesting
def refine_schedule(
    norms: Sequence[float] | Norms,
    total_steps: int | None = None,
    mode: Mode = "adam",
    smoothing: float = 0.1,
    floor: float = 1e-3,
) -> RefinedSchedule:
    r"""The schedule of the next run, from the gradient norms of a finished one (arXiv 2310.07831, Algorithm 1).

    .. code-block:: text

        G    the norms, median-filtered over the share ``smoothing`` of the run
        w_t = 1 / G_t^2 (sgd) or 1 / G_t (adam)
        factor_t = w_t * (w_{t+1} + ... + w_{T-1}),  divided by the greatest

    Constant norms give a linear decay to 0; norms that are large at first, a warm-up. The learning rate that goes with
    it is to be tuned anew.

    Args:
        norms: of the gradient of each step, float, of shape ``(n,)``, before clipping and without weight decay: l1 for
            Adam and other rules near the sign, l2 for SGD. What is NaN or infinite is left out.
        total_steps: of the next run; default: as many as there are norms.
        mode: ``"adam"`` (default) or ``"sgd"``.
        smoothing: share of the run that the median filter spans, from 0 to below 1. Default 0.1.
        floor: norms below this share of their median count as that: where they vanish near the end, all of the learning
            rate would go there. Default 1e-3.

    Returns:
        The schedule, of at most 10,000 knots; ``floored`` and ``dropped`` say what happened to the norms.

    Raises:
        TypeError, ValueError: less than two finite norms, negative ones, or an impossible argument.

    Example:
        >>> schedule = refine_schedule([4.0, 2.0, 1.0, 1.0, 0.5], mode="sgd", smoothing=0.0)
        >>> [round(schedule(step), 3) for step in range(5)]
        [0.078, 0.3, 1.0, 0.8, 0.0]
    """
    if mode not in ("adam", "sgd"):
        raise wrong_choice("mode", mode, "adam", "sgd")
    check("smoothing", smoothing, 0.0, 1.0)
    floor = real("floor", floor, 0.0)
    given = _row("norms", norms)
    finite = given[np.isfinite(given)]
    if finite.size < 2:
        raise Problem.COUNT.of("norms", f"{finite.size} finite numbers", "at least 2")
    if finite.min() < 0:
        raise Problem.NUMBER.of("norms", f"{finite.min():g} is negative", "numbers of at least 0")
    smooth = median_filtered(resampled(finite), smoothing)
    least = floor * float(np.median(smooth) or smooth.max() or 1.0)
    if least == 0 and smooth.min() == 0:
        raise Problem.NUMBER.of("floor", floor, "more than 0, as there are norms of 0")
    if least == math.inf:
        raise Problem.NUMBER.of("floor", floor, "a share of the norms' median")
    weights = _relative(np.maximum(smooth, least)) ** {"adam": -1.0, "sgd": -2.0}[mode]
    tails = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    factors = weights * tails
    if not factors.max() > 0:
        raise Problem.NUMBER.of("floor", floor, "a larger one, as the norms differ by more than floats tell apart")
    steps = given.size if total_steps is None else whole("total_steps", total_steps, 1)
    return RefinedSchedule(factors / factors.max(), steps, int(np.sum(smooth < least)), int(given.size - finite.size))


def _row(name: str, given: Any) -> Norms:
    """One dimension of numbers in float64; TypeError or ValueError, by their name, for anything else."""
    try:
        found: Norms = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise wrong_kind(name, given, "a sequence of numbers, or an array without a graph") from error
    if found.ndim != 1:
        raise Problem.SHAPE.of(name, list(found.shape), "one dimension")
    return found


def _relative(norms: Norms) -> Norms:
    """The norms in units of their least, in which powers neither overflow nor depend on the loss's scale."""
    unit = 2.0 ** math.floor(math.log2(norms.min()))  # exact, so that scales by powers of two change no bit
    return norms / unit


def resampled(norms: Norms) -> Norms:
    """At most 10,000 of the numbers, from first to last, at equal distances.

    Args:
        norms: float64, of shape ``(n,)``.
    """
    if norms.size <= MOST_KNOTS:
        return norms
    places = np.linspace(0, norms.size - 1, MOST_KNOTS)
    sampled: Norms = np.interp(places, np.arange(norms.size), norms)
    return sampled


def median_filtered(norms: Norms, smoothing: float) -> Norms:
    """Medians over windows of a share of the run, which see the end mirrored and the start repeated.

    Args:
        norms: float64, of shape ``(n,)``.
        smoothing: the share.
    """
    half = math.floor(smoothing * norms.size) // 2
    if half == 0:
        return norms
    mirrored = np.pad(norms, (0, half), mode="reflect")
    padded = np.pad(mirrored, (half, 0), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    filtered: Norms = np.concatenate([np.median(windows[i : i + 1000], axis=1) for i in range(0, norms.size, 1000)])
    return filtered


class RefinedLR(ScheduleLR):
    """The scheduler of a refined schedule: :class:`ScheduleLR` under the name that says what it is for.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        schedule: what :func:`refine_schedule` made.
        last_epoch: the step last taken; default -1, a fresh start.

    Raises:
        TypeError, KeyError: as of :class:`ScheduleLR`.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.AdamW([torch.ones(3)], lr=1e-3)
        >>> scheduler = RefinedLR(optimizer, refine_schedule([1.0] * 5))
        >>> scheduler.get_last_lr()
        [0.001]
    """
