"""How learning rates and weight decays follow a model's width, and what they should keep: numbers, no tensors."""

from __future__ import annotations

import math


def width_factors(rule: str, ratio: float) -> tuple[float, float]:
    """What multiplies a matrix's learning rate and weight decay, as :func:`ferrostep.optim.width_scaled_param_groups`.

    Args:
        rule: ``"sqrt"`` (Fan et al. 2025, arXiv 2510.15262), ``"linear"`` or ``"none"``: how the weight decay grows.
        ratio: the width by that for which both were tuned.

    Returns:
        Both factors. The learning rate's is ``1 / ratio``, that of the maximal-update parametrization.

    Raises:
        KeyError: another rule.

    Example:
        >>> width_factors("sqrt", 4.0)
        (0.25, 2.0)
    """
    return 1 / ratio, {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[rule]


def muon_width_factors(adjust_lr_fn: str | None, ratio: float) -> tuple[float, float]:
    """The same for a matrix that Muon steps, whose step has all singular values alike.

    The spectral norm of the step is ``lr * s``, with the ``s`` of ``adjust_lr_fn``, and that of the matrix, after many
    steps in all directions, about ``s * sqrt(2 * lr / weight_decay)``. Where ``s`` depends on ratios of sides only,
    both stay as they are at any width; with ``"match_rms_adamw"`` ``s`` grows as the root of the width.

    Args:
        adjust_lr_fn: as of :class:`ferrostep.optim.Muon`.
        ratio: the width by that for which both were tuned.

    Returns:
        Both factors.

    Raises:
        ValueError: a negative ratio.

    Example:
        >>> muon_width_factors(None, 4.0), muon_width_factors("match_rms_adamw", 4.0)
        ((1.0, 1.0), (0.5, 2.0))
    """
    return (1 / math.sqrt(ratio), math.sqrt(ratio)) if adjust_lr_fn == "match_rms_adamw" else (1.0, 1.0)


def relaxation_steps(lr: float, weight_decay: float) -> float:
    """How many steps a matrix takes to its steady state; before, its weight decay does not tell yet.

    Args:
        lr, weight_decay: of the group.

    Returns:
        ``1 / (lr * weight_decay)``; infinity without a weight decay.

    Raises:
        TypeError: no numbers.

    Example:
        >>> relaxation_steps(1e-3, 0.1)
        10000.0
    """
    return 1 / (lr * weight_decay) if lr * weight_decay > 0 else math.inf


def relative_gain(value: float, lr: float, weight_decay: float) -> float:
    """A singular value by ``sqrt(lr / weight_decay)``, to which those of a matrix are proportional under AdamW.

    Args:
        value: the singular value.
        lr, weight_decay: of the matrix's group.

    Returns:
        The quotient; NaN where one of both is 0.

    Raises:
        TypeError: no numbers.

    Example:
        >>> relative_gain(6.0, 0.4, 0.1)
        3.0
    """
    return value / math.sqrt(lr / weight_decay) if lr > 0 and weight_decay > 0 else math.nan


def stable_rank(value: float, squared_norm: float) -> float:
    """The squares of all singular values by that of the largest; 0 of a matrix of zeros.

    Args:
        value: the largest singular value.
        squared_norm: the sum of the squares of the matrix's elements, which is that of the singular values.

    Returns:
        The quotient.

    Raises:
        TypeError: no numbers.

    Example:
        >>> stable_rank(2.0, 6.0)
        1.5
    """
    return squared_norm / value**2 if value > 0 else 0.0
