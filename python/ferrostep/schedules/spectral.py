"""Learning rates and momenta from the spectrum of the loss's Hessian (Granziol et al. 2020, arXiv 2006.09092)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ferrostep.curvature.krylov import lanczos
from ferrostep.curvature.operators import FlatParameters, hvp_operator
from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import real, truth, whole
from ferrostep.suggestions import suggesting

NOISE_FLOOR = 1e-4
"""Positive eigenvalues below this part of the largest count as noise."""
NEW_SHARE = 0.5
"""What a measurement counts in the moving average of the logarithm of the largest eigenvalue."""
LARGEST_CHANGE = 2.0
"""By this factor a refresh may change a learning rate, up or down."""


class HeavyBall(NamedTuple):
    """A learning rate and a momentum, of :func:`heavy_ball`.

    Example:
        >>> heavy_ball(4.0, 1.0).momentum == 1 / 9
        True
    """

    lr: float
    momentum: float


@suggesting
def heavy_ball(largest: float, smallest: float, max_momentum: float = 1.0) -> HeavyBall:
    r"""What is best for gradient descent with momentum on a quadratic (Polyak 1964).

    .. code-block:: text

        momentum = ((sqrt(L) - sqrt(m)) / (sqrt(L) + sqrt(m)))^2,   at most max_momentum
        lr       = (1 + sqrt(momentum))^2 / L                       which is 4 / (sqrt(L) + sqrt(m))^2

    Errors then shrink by ``sqrt(momentum)`` a step, along both ends of the spectrum.

    Args:
        largest, smallest: eigenvalues of the Hessian, L and m: positive, the first not less than the second.
        max_momentum: the most that the momentum may be. Default 1: no bound.

    Returns:
        Both numbers.

    Raises:
        TypeError, ValueError: eigenvalues that are not positive and finite, or in the wrong order.

    Example:
        >>> [round(x, 6) for x in heavy_ball(10.0, 0.1)]
        [0.330579, 0.669421]
    """
    for name, value in {"smallest": smallest, "largest": largest}.items():
        if not real(name, value, 0.0) > 0:
            raise Problem.NUMBER.of(name, value, "more than 0")
    if smallest > largest:
        raise Problem.NUMBER.of("smallest", smallest, f"at most largest={largest}")
    ends = math.sqrt(largest), math.sqrt(smallest)
    max_momentum = real("max_momentum", max_momentum, 0.0)
    momentum = min(((ends[0] - ends[1]) / (ends[0] + ends[1])) ** 2, max_momentum)
    return HeavyBall(_rate(largest, momentum), momentum)


class BatchSpectrum(NamedTuple):
    r"""What batches make of the Hessian's largest eigenvalue, of :func:`batch_spectrum`.

    The Hessian of a batch is the full one and the samples' noise, a random matrix (arXiv 2006.09092):

    .. code-block:: text

        top_at(B) = top + noise / (B * top)      where top > sqrt(noise / B), else 2 * sqrt(noise / B)

    Example:
        >>> [BatchSpectrum(10.0, 2000.0).top_at(batch) for batch in (32, 128, 512)]
        [16.25, 11.5625, 10.390625]
    """

    top: float
    """The largest eigenvalue of the Hessian of all data."""
    noise: float
    """The variance of a sample's Hessian's elements times the number of parameters."""

    def top_at(self, batch: int) -> float:
        """The largest eigenvalue that a batch's Hessian has; the learning rate of SGD is below 2 by that.

        Args:
            batch: samples.

        Returns:
            The eigenvalue.

        Raises:
            TypeError, ValueError: a batch that is no number of at least 1.
        """
        noise = self.noise / whole("batch", batch, 1)
        return self.top + noise / self.top if self.top > math.sqrt(noise) else 2 * math.sqrt(noise)


@suggesting
def batch_spectrum(first: tuple[int, float], second: tuple[int, float]) -> BatchSpectrum:
    """The full Hessian's largest eigenvalue and the samples' noise, from those of batches of two sizes.

    Largest eigenvalues of single batches are noisy: give means over several of each size. It holds where the largest
    eigenvalue stands out of the noise in both, ``top > sqrt(noise / B)``.

    Args:
        first, second: batch size, and the mean largest eigenvalue of batches of that size.

    Returns:
        Both; a noise below 0, which eigenvalues that do not fall with the batch size would mean, counts as 0.

    Raises:
        TypeError, ValueError: no such pairs, equal sizes, eigenvalues that are not positive, or such that no full
            Hessian with a positive one fits.

    Example:
        >>> batch_spectrum((32, 16.25), (128, 11.5625))
        BatchSpectrum(top=10.0, noise=2000.0)
    """
    sizes, tops = [], []
    for name, given in {"first": first, "second": second}.items():
        if not isinstance(given, tuple) or len(given) != 2:
            raise wrong_kind(name, given, "a pair of batch size and eigenvalue")
        sizes.append(whole(f"{name}[0]", given[0], 1))
        tops.append(real(f"{name}[1]", given[1], 0.0))
    if sizes[0] == sizes[1]:
        raise Problem.NUMBER.of("second[0]", sizes[1], "another batch size than first[0]")
    top = (sizes[1] * tops[1] - sizes[0] * tops[0]) / (sizes[1] - sizes[0])
    if not top > 0:
        raise ValueError(f"the eigenvalues {tops} of batches of {sizes} fit no positive one of all data: {top}")
    return BatchSpectrum(top, max(0.0, sizes[0] * top * (tops[0] - top)))


@suggesting
class SpectralLR(LRScheduler):
    r"""Learning rate and momentum of SGD from the spectrum of the loss's Hessian, measured anew every so many steps.

    A measurement takes ``steps`` products of the Hessian of one batch, by Lanczos iteration. From the largest
    eigenvalue L and the smallest positive one m above ``L / 10000`` follow the learning rate, ``safety`` times
    :func:`heavy_ball`'s, and the momentum. This is a reconstruction of the learner in arXiv 2006.09092; which m the
    authors take is not known here. Guards: L is averaged over measurements, in its logarithm; a refresh changes a
    learning rate by a factor of 2 at most; a spectrum without a positive eigenvalue changes nothing.

    All parameter groups get the one learning rate. Before the first refresh they keep their own.

    Args:
        optimizer: SGD, of ``torch.optim`` or of this package: with ``momentum``, without dampening, Nesterov's form or
            ``maximize``. The parameters may have any shape, of dtype float32 or float64.
        loss_fn: returns the loss, of shape (), of a batch of the size that training has, without calling ``backward``;
            called once for each measurement.
        interval: steps from one refresh to the next; the first is after so many. Default 500.
        steps: products of a measurement, each about two backward passes. Default 20.
        safety: part of the best learning rate that is taken, up to 1. Default 0.9.
        set_momentum: set the momentum, too (default); else the learning rate is the one that goes with the group's own.
        max_momentum: the most that the momentum is set to. Default 0.99.
        warmup_steps: no refresh in the first so many steps, in which another scheduler may warm up. Default 0.
        last_epoch: the step last taken; default -1, a fresh start.

    Attributes:
        measured: the last measurement's largest eigenvalue and the smallest positive one; None before.

    Raises:
        TypeError, ValueError: an impossible argument, another optimizer, or parameters of another dtype or none that
            require a gradient.
        KeyError: as of torch's schedulers.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = torch.optim.SGD([w], lr=0.2, momentum=0.5)
        >>> loss_fn = lambda: (10 * w[0] ** 2 + 0.1 * w[1] ** 2) / 2
        >>> scheduler = SpectralLR(optimizer, loss_fn, interval=1, safety=1.0)
        >>> optimizer.step()
        >>> scheduler.step()
        >>> round(optimizer.param_groups[0]["lr"], 4), round(optimizer.param_groups[0]["momentum"], 4)
        (0.3306, 0.6694)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        loss_fn: Callable[[], Tensor],
        *,
        interval: int = 500,
        steps: int = 20,
        safety: float = 0.9,
        set_momentum: bool = True,
        max_momentum: float = 0.99,
        warmup_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        if not callable(loss_fn):
            raise wrong_kind("loss_fn", loss_fn, "a function that returns the loss")
        self.loss_fn = loss_fn
        self.interval = whole("interval", interval, 1)
        self.steps = whole("steps", steps, 1)
        self.safety = real("safety", safety, 0.0)
        self.set_momentum = truth("set_momentum", set_momentum)
        self.max_momentum = real("max_momentum", max_momentum, 0.0)
        self.warmup_steps = whole("warmup_steps", warmup_steps, 0)
        if not 0 < self.safety <= 1:
            raise Problem.NUMBER.of("safety", safety, "more than 0, and at most 1")
        if not self.max_momentum < 1:
            raise Problem.NUMBER.of("max_momentum", max_momentum, "less than 1")
        if isinstance(optimizer, Optimizer):  # else torch's constructor says so
            check_groups(optimizer)
            FlatParameters(trainable(optimizer))
        self.measured: tuple[float, float] | None = None
        self._log_top: float | None = None
        super().__init__(optimizer, last_epoch)

    def step(self, epoch: int | None = None) -> None:
        """Count a step and, where one is due, measure and set learning rates and momenta.

        Args:
            epoch: as of torch's schedulers, deprecated there.

        Raises:
            ValueError, RuntimeError: the loss or its derivatives are not finite, or it cannot be differentiated twice.
                Nothing has been changed then, the count neither.
        """
        before = self.last_epoch, getattr(self, "_step_count", 0)
        try:
            super().step(epoch)
        except BaseException:
            self.last_epoch, self._step_count = before
            raise

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of the groups at ``last_epoch``."""
        groups = self.optimizer.param_groups
        own: list[float | Tensor] = [group["lr"] for group in groups]
        is_due = self.last_epoch > 0 and self.last_epoch % self.interval == 0 and self.last_epoch >= self.warmup_steps
        if not is_due:
            return own
        ends = self._measure()
        if ends is None:
            return own
        best = heavy_ball(*ends, self.max_momentum)
        found: list[float | Tensor] = []
        for group, lr in zip(groups, own, strict=True):
            if self.set_momentum:
                group["momentum"] = best.momentum
            rate = self.safety * _rate(ends[0], float(group.get("momentum", 0.0)))
            found.append(min(max(rate, float(lr) / LARGEST_CHANGE), float(lr) * LARGEST_CHANGE))
        return found

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state, as numbers: the counter, the arguments, and what has been measured."""
        return {name: value for name, value in super().state_dict().items() if name != "loss_fn"}

    def _measure(self) -> tuple[float, float] | None:
        """The averaged largest eigenvalue and the smallest positive one; None where none is positive."""
        operator = hvp_operator(self.loss_fn, trainable(self.optimizer))
        values = lanczos(operator, self.steps, seed=self.last_epoch).values.tolist()
        largest = values[-1]
        if not largest > 0:
            return None
        smallest = min(value for value in values if value > NOISE_FLOOR * largest)
        self.measured = largest, smallest
        log_top = math.log(largest)
        self._log_top = log_top if self._log_top is None else _averaged(self._log_top, log_top)
        top = math.exp(self._log_top)
        return top, min(smallest, top)


def check_groups(optimizer: Optimizer) -> None:
    """Raise ValueError for an optimizer that is no gradient descent with a heavy ball's momentum."""
    for number, group in enumerate(optimizer.param_groups):
        if not {"momentum", "dampening"} <= group.keys():
            name = type(optimizer).__name__
            raise Problem.NUMBER.of("optimizer", name, "SGD with momentum: the spectrum is that of the loss by itself")
        for entry in ("dampening", "nesterov", "maximize"):
            if group.get(entry):
                raise Problem.NUMBER.of(f"{entry} of param group {number}", group[entry], "none, for a heavy ball")


def trainable(optimizer: Optimizer) -> list[Tensor]:
    """The parameters in which the loss is differentiated."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _rate(largest: float, momentum: float) -> float:
    """The greatest learning rate with which the largest eigenvalue's error shrinks by ``sqrt(momentum)`` a step."""
    return (1 + math.sqrt(momentum)) ** 2 / largest


def _averaged(before: float, new: float) -> float:
    return (1 - NEW_SHARE) * before + NEW_SHARE * new
