"""Learning rates and averages under another batch size."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from ferrostep.errors import Problem, wrong_choice
from ferrostep.numpy.arrays import real, whole
from ferrostep.suggestions import suggesting

BatchRule: TypeAlias = Literal["sqrt", "linear", "surge"]


@suggesting
def scale_lr_for_batch(
    lr: float,
    old_batch: int,
    new_batch: int,
    rule: BatchRule = "sqrt",
    critical_batch: float | None = None,
) -> float:
    """The learning rate for another batch size.

    ===========  ======================================  ===================================================
    rule         factor for ratio ``r = new / old``      for
    ===========  ======================================  ===================================================
    ``sqrt``     ``sqrt(r)``                             Adam, Lion and other rules near the sign (default)
    ``linear``   ``r``                                   SGD and momentum (Goyal et al. 2017, arXiv 1706.02677)
    ``surge``    ``f(new) / f(old)`` with                Adam; rises as sqrt and falls beyond ``critical_batch``
                 ``f(B) = 2 / (sqrt(c/B) + sqrt(B/c))``  (Li et al. 2024, arXiv 2405.14578)
    ===========  ======================================  ===================================================

    Averages of gradients keep their length in samples with ``beta ** r`` for ``beta``.

    Args:
        lr: tuned for ``old_batch``.
        old_batch, new_batch: samples a step, over all ranks and accumulated.
        rule: as above.
        critical_batch: the noise scale, in samples: ``sqrt`` and ``linear`` then take the ratio of ``B / (1 + B / c)``,
            which saturates (McCandlish et al. 2018, arXiv 1812.06162); ``surge`` needs it. Default None.

    Returns:
        The scaled learning rate.

    Raises:
        TypeError, ValueError: no numbers, batches below 1, an unknown rule, or ``surge`` without ``critical_batch``.

    Example:
        >>> scale_lr_for_batch(0.1, 256, 1024, "linear"), scale_lr_for_batch(1e-3, 256, 1024)
        (0.4, 0.002)
    """
    lr = real("lr", lr, 0.0)
    old, new = whole("old_batch", old_batch, 1), whole("new_batch", new_batch, 1)
    if critical_batch is not None and not real("critical_batch", critical_batch, 0.0) > 0:
        raise Problem.NUMBER.of("critical_batch", critical_batch, "more than 0")
    if rule == "surge":
        if critical_batch is None:
            raise Problem.NUMBER.of("critical_batch", None, "a number, as rule='surge' needs it")
        return lr * _surge(new, critical_batch) / _surge(old, critical_batch)
    if rule not in ("sqrt", "linear"):
        raise wrong_choice("rule", rule, "sqrt", "linear", "surge")
    ratio = new / old
    if critical_batch is not None:
        ratio *= (critical_batch + old) / (critical_batch + new)
    return lr * (ratio if rule == "linear" else math.sqrt(ratio))


def _surge(batch: int, critical: float) -> float:
    return 2 / (math.sqrt(critical / batch) + math.sqrt(batch / critical))
