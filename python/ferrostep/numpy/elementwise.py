"""Element-wise update rules for NumPy arrays, in place."""

from __future__ import annotations

import numpy as np

from ferrostep import _core
from ferrostep.numpy.arrays import Array, check, threads, whole


def adamw_(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    step: int,
    max_exp_avg_sq: Array | None = None,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    decoupled_weight_decay: bool = True,
    maximize: bool = False,
    rounding: str = "nearest",
    kahan_comp: Array | None = None,
    master_low: Array | None = None,
    seed: int = 0,
    num_threads: int | None = None,
) -> None:
    """AdamW (arXiv 1711.05101, Algorithm 2) as :class:`ferrostep.optim.AdamW`, on arrays.

    Args:
        param: updated in place.
        grad: the gradient; only read.
        exp_avg, exp_avg_sq: the moments, zeros before the first step; updated in place.
        step: the number of this step, from 1.
        max_exp_avg_sq: makes it AMSGrad: the greatest second moment, zeros at first; updated in place.
        lr, betas, eps, weight_decay, decoupled_weight_decay, maximize: as of the class.
        rounding: to a 16-bit parameter: "nearest", "stochastic" (from ``seed`` and ``step``) or "kahan" (with
            ``kahan_comp``, an array like ``param``, zeros at first; updated in place).
        master_low: makes a bfloat16 ``param`` the upper half of float32 master weights: the lower half, int16, zeros at
            first; updated in place. Goes with rounding to the nearest.
        num_threads: at most; default the CPUs that the process may use.
    """
    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        states["max_exp_avg_sq"] = max_exp_avg_sq
    beta1, beta2 = _pair(betas)
    whole("step", step, 1, 2**63)
    for name, value, high in (
        ("lr", lr, np.inf),
        ("betas[0]", beta1, 1.0),
        ("betas[1]", beta2, 1.0),
        ("eps", eps, np.inf),
        ("weight_decay", weight_decay, np.inf),
    ):
        check(name, value, 0.0, high)
    hyperparameters = {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled_weight_decay,
        "maximize": maximize,
    }
    kernel = _core.Rule("AdamW" if max_exp_avg_sq is None else "AmsGrad", hyperparameters)
    _update(kernel, param, grad, states, step, rounding, kahan_comp, master_low, seed, num_threads)


def lion_(
    param: Array,
    grad: Array,
    exp_avg: Array,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    rounding: str = "nearest",
    kahan_comp: Array | None = None,
    master_low: Array | None = None,
    seed: int = 0,
    step: int = 0,
    num_threads: int | None = None,
) -> None:
    """Lion (arXiv 2302.06675, Algorithm 2) as :class:`ferrostep.optim.Lion`, on arrays.

    Args:
        param: updated in place.
        grad: the gradient; only read.
        exp_avg: the momentum, zeros before the first step; updated in place.
        lr, betas, weight_decay, maximize: as of the class.
        rounding: to a 16-bit parameter: "nearest", "stochastic" (from ``seed`` and ``step``) or "kahan" (with
            ``kahan_comp``, an array like ``param``, zeros at first; updated in place).
        master_low: makes a bfloat16 ``param`` the upper half of float32 master weights: the lower half, int16, zeros at
            first; updated in place. Goes with rounding to the nearest.
        step: used by stochastic rounding only: another number for every call.
        num_threads: at most; default the CPUs that the process may use.
    """
    beta1, beta2 = _pair(betas)
    for name, value, high in (
        ("lr", lr, np.inf),
        ("betas[0]", beta1, 1.0),
        ("betas[1]", beta2, 1.0),
        ("weight_decay", weight_decay, np.inf),
    ):
        check(name, value, 0.0, high)
    hyperparameters = {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "weight_decay": weight_decay,
        "maximize": maximize,
    }
    kernel = _core.Rule("Lion", hyperparameters)
    _update(kernel, param, grad, {"exp_avg": exp_avg}, step, rounding, kahan_comp, master_low, seed, num_threads)


def _pair(betas: tuple[float, float]) -> tuple[float, float]:
    try:
        first, second = betas
    except (TypeError, ValueError):
        raise TypeError(f"betas is {betas!r}, expected two numbers") from None
    return first, second


def _update(
    kernel: _core.Rule,
    param: Array,
    grad: Array,
    states: dict[str, Array],
    step: int,
    rounding: str,
    kahan_comp: Array | None,
    master_low: Array | None,
    seed: int,
    num_threads: int | None,
) -> None:
    compensation = kahan_comp
    if master_low is not None:
        if rounding != "nearest":
            raise ValueError(f"master_low rounds to the nearest and excludes rounding={rounding!r}")
        rounding, compensation = "split", master_low
    batch = _core.Batch()
    batch.add(
        kernel,
        [param],
        [grad],
        {name: [state] for name, state in states.items()},
        step=whole("step", step, 0, 2**63),
        rounding=rounding,
        seed=whole("seed", seed, 0, 2**64),
        compensation=None if compensation is None else [compensation],
    )
    batch.run(threads(num_threads))
