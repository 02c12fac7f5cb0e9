"""A batch that grows as its gradients ask for it."""

from __future__ import annotations

import math
from typing import Any

from ferrostep.batch_size.decisions import TESTS, BatchSizeDecision, Test, check_bound, quantities, required
from ferrostep.batch_size.statistics import GradStatistics, check_statistics, quotient
from ferrostep.errors import Problem, wrong_choice
from ferrostep.numpy.arrays import check, real, whole
from ferrostep.suggestions import suggesting


@suggesting
class AdaptiveBatchSize:
    r"""The batch size of a run, which grows where a test asks for it and never shrinks.

    With AdaGrad or AdaGrad-Norm this is AdAdaGrad (Lau, Liu and Kolar 2024, arXiv 2402.11215); any optimizer does. The
    learning rate is not changed, and schedules are to count samples.

    .. code-block:: text

        wanted = ceil(stat), at most growth_cap * size, up to a multiple, at most max_size, at least size

    The two parts of each fraction are averaged over steps, and then divided: one noisy test does not blow the batch up.

    Args:
        size: to begin with, in samples: over all micro-batches and ranks.
        max_size: it grows no further.
        test: ``"norm"`` (default), ``"inner_product"`` or ``"augmented"``.
        eta: of the norm test: the batch grows to about ``1 / eta^2 - 1`` noise scales, see :func:`norm_test`. Default
            0.5.
        theta: of the inner product test. Default 0.9.
        nu: of the augmented test, for what is orthogonal. Default 5.84.
        interval: test in each so many-th step. Default 10.
        growth_cap: grow by at most this factor at once. Default 2.
        ema: how much of the averages a step's statistics leave, from 0 to below 1. Default 0.9.
        multiple_of: sizes are rounded up to multiples of it. Default 1.
        micro_batch: samples of one pass: then sizes are multiples of it, too, and only :attr:`accumulation_steps`
            grows, not what the loader gives. Default None: the batch is one pass. Statistics from accumulation need two
            passes at least.

    Attributes:
        size: the batch of the next step.
        steps: how many steps there were.
        decision: of the last test; None before.
        skipped: how many statistics said nothing, and so changed nothing: NaN, infinite, or all zero.

    Raises:
        TypeError, ValueError: an impossible argument, or ``size`` or ``max_size`` is no multiple of ``micro_batch``.

    Example:
        >>> batch = AdaptiveBatchSize(8, max_size=64, eta=0.1, interval=1, micro_batch=4)
        >>> batch.update(GradStatistics(8, squared_norm=3.25, variance=3.0)), batch.accumulation_steps
        (16, 4)
    """

    def __init__(
        self,
        size: int,
        max_size: int,
        *,
        test: Test = "norm",
        eta: float = 0.5,
        theta: float = 0.9,
        nu: float = 5.84,
        interval: int = 10,
        growth_cap: float = 2.0,
        ema: float = 0.9,
        multiple_of: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self.size = whole("size", size, 1)
        self.max_size = whole("max_size", max_size, self.size)
        if test not in tuple(TESTS):
            raise wrong_choice("test", test, *TESTS)
        self.test = test
        bounds = {"eta": eta, "theta": theta, "nu": nu}
        self.bounds = {name: check_bound(name, bound) for name, bound in bounds.items()}
        self.interval = whole("interval", interval, 1)
        self.growth_cap = real("growth_cap", growth_cap, 1.0)
        check("ema", ema, 0.0, 1.0)
        self.ema = float(ema)
        self.micro_batch = None if micro_batch is None else whole("micro_batch", micro_batch, 1)
        for name, each in (("size", self.size), ("max_size", self.max_size)):
            if micro_batch is not None and each % micro_batch:
                raise Problem.NUMBER.of(name, each, f"a multiple of micro_batch={micro_batch}")
        self.multiple_of = math.lcm(whole("multiple_of", multiple_of, 1), self.micro_batch or 1)
        self.steps = 0
        self.skipped = 0
        self.decision: BatchSizeDecision | None = None
        self._averages: dict[str, float] = {}

    @property
    def accumulation_steps(self) -> int:
        """How many passes of ``micro_batch`` make a batch; 1 without."""
        return 1 if self.micro_batch is None else self.size // self.micro_batch

    @property
    def is_due(self) -> bool:
        """Whether the next :meth:`update` is to test, so that this step's statistics are worth their pass."""
        return self.size < self.max_size and (self.steps + 1) % self.interval == 0

    @property
    def noise_scale(self) -> float:
        """The noise scale of the averages, see :func:`noise_scale`; NaN before the first statistics."""
        nothing = math.nan
        known = self._averages
        return quotient(known.get("variance", nothing), known.get("unbiased_squared_norm", nothing))

    def update(self, statistics: GradStatistics | None = None) -> int:
        """Count a step, which the batch of the present size has been for, and test where it is due.

        Args:
            statistics: of the step's gradient. Default None: there are none. Those of steps without a test go into the
                averages.

        Returns:
            The size of the next step's batch.

        Raises:
            TypeError: no statistics.
            ValueError: statistics of no sample, or the test needs ``inner_variance``, and it is missing. Nothing is
                changed then.
        """
        if statistics is not None:
            check_statistics(statistics)
            self._check_parts(statistics)
        is_due = self.is_due
        self.steps += 1
        if statistics is None:
            return self.size
        if math.isnan(required(self.test, quantities(statistics), self.bounds)):
            self.skipped += 1
            return self.size
        self._average(quantities(statistics))
        if is_due:
            self.decision = self._decide()
            self.size = self.decision.size
        return self.size

    def _check_parts(self, statistics: GradStatistics) -> None:
        is_needed = any(fraction.variance == "inner_variance" for fraction in TESTS[self.test])
        is_known = math.isfinite(statistics.variance) and math.isfinite(statistics.squared_norm)
        if is_needed and is_known and math.isnan(statistics.inner_variance):
            expected = f"a number, as test={self.test!r} needs it: GradVarianceAccumulator(inner_products=True)"
            raise Problem.VALUE.of("statistics.inner_variance", "NaN", expected)

    def _average(self, known: dict[str, float]) -> None:
        before = {name: x for name, x in self._averages.items() if not math.isnan(x)}
        self._averages = {
            name: self.ema * before[name] + (1 - self.ema) * x if name in before else x for name, x in known.items()
        }

    def _decide(self) -> BatchSizeDecision:
        stat = required(self.test, self._averages, self.bounds)
        if math.isnan(stat):
            return BatchSizeDecision(self.size, False, stat)
        wanted = min(math.ceil(stat), math.ceil(self.growth_cap * self.size))
        wanted = min(math.ceil(wanted / self.multiple_of) * self.multiple_of, self.max_size)
        return BatchSizeDecision(max(wanted, self.size), stat <= self.size, stat)

    def state_dict(self) -> dict[str, Any]:
        """The size, the counters and the averages, as plain numbers; arguments are the constructor's."""
        return {"size": self.size, "steps": self.steps, "skipped": self.skipped, "averages": dict(self._averages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state_dict: what :meth:`state_dict` gave.

        Raises:
            KeyError: something is missing.
            TypeError, ValueError: the numbers are none, or the size is no multiple of ``micro_batch``. Nothing has been
                changed then.
        """
        size = whole("state_dict['size']", state_dict["size"], 1)
        if self.micro_batch is not None and size % self.micro_batch:
            raise Problem.NUMBER.of("state_dict['size']", size, f"a multiple of micro_batch={self.micro_batch}")
        steps, skipped = (whole(f"state_dict[{name!r}]", state_dict[name], 0) for name in ("steps", "skipped"))
        given = state_dict["averages"]
        averages = {name: float(given[name]) for name in quantities(GradStatistics(1, 0.0, 0.0))} if given else {}
        self.size, self.steps, self.skipped, self._averages = size, steps, skipped, averages
