"""Element-wise update rules for NumPy arrays, in place."""

from __future__ import annotations

from typing import Any

from ferrostep import _core
from ferrostep.choices import Kappa, Rounding
from ferrostep.errors import NAMED_FLOATS, Problem, wrong_kind
from ferrostep.kappas import KERNELS, LARGEST_SUMMED, OF_ELEMENTS, check_kappa, check_kappa_param, has_kernel
from ferrostep.numpy.arrays import Array, check, threads, whole

RULES = _core.rules()
"""The element-wise rules as Rust declares them."""
MASTERS = {"master_low": "split", "master_param": "master"}
"""The arguments that make masters, and how results are rounded then."""


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
    rounding: Rounding = "nearest",
    kahan_comp: Array | None = None,
    master_low: Array | None = None,
    master_param: Array | None = None,
    seed: int = 0,
    num_threads: int | None = None,
) -> None:
    """AdamW (arXiv 1711.05101, Algorithm 2) as :class:`ferrostep.optim.AdamW`, on arrays.

    Args:
        param: of any shape and dtype of the module's; updated in place.
        grad: the gradient, of the same shape and dtype, or of another of float32, float16 and bfloat16 where the
            parameter has one of them; only read.
        exp_avg, exp_avg_sq: the moments, zeros before the first step; updated in place.
        step: the number of this step, from 1.
        max_exp_avg_sq: makes it AMSGrad: the greatest second moment, zeros at first; updated in place.
        lr, betas, eps, weight_decay, decoupled_weight_decay, maximize: as of the class.
        rounding: to a 16-bit parameter: "nearest" (default), "stochastic" (from ``seed`` and ``step``) or "kahan" (with
            ``kahan_comp``).
        kahan_comp: what rounding lost, an array like ``param``, zeros at first; updated in place.
        master_low: makes a bfloat16 ``param`` the upper half of float32 master weights: the lower half, int16, zeros at
            first; updated in place. Goes with rounding to the nearest.
        master_param: makes a 16-bit ``param`` what a float32 master rounds to: the master, float32, ``param`` itself at
            first; updated in place. Goes with rounding to the nearest.
        seed: of stochastic rounding, from 0 to 2**64 - 1. Default 0.
        num_threads: at most; default the CPUs that the process may use.

    Raises:
        TypeError, ValueError: an array that does not fit, or an impossible argument; nothing has been changed then.

    Example:
        >>> import numpy as np
        >>> param, grad, exp_avg, exp_avg_sq = np.ones(2), np.array([0.5, -2.0]), np.zeros(2), np.zeros(2)
        >>> adamw_(param, grad, exp_avg, exp_avg_sq, step=1, lr=0.1)
        >>> param.round(4)
        array([0.899, 1.099])
    """
    _update("AdamW" if max_exp_avg_sq is None else "AmsGrad", locals())


def lion_(
    param: Array,
    grad: Array,
    exp_avg: Array,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    kappa: Kappa = "sign",
    kappa_param: float | None = None,
    maximize: bool = False,
    rounding: Rounding = "nearest",
    kahan_comp: Array | None = None,
    master_low: Array | None = None,
    master_param: Array | None = None,
    seed: int = 0,
    step: int = 0,
    num_threads: int | None = None,
) -> None:
    """Lion (arXiv 2302.06675, Algorithm 2) and Lion-K (arXiv 2310.05898) as :class:`ferrostep.optim.Lion`, on arrays.

    Args:
        param: of any shape and dtype of the module's; updated in place.
        grad: the gradient, of the same shape and dtype, or of another of float32, float16 and bfloat16 where the
            parameter has one of them; only read.
        exp_avg: the momentum, zeros before the first step; updated in place.
        lr, betas, weight_decay, maximize: as of the class.
        kappa, kappa_param: as of the class, but for callables and "lp" with q > 8. Default "sign" and None.
        rounding, kahan_comp, master_low, master_param, seed: as of :func:`adamw_`.
        step: used by stochastic rounding only: another number for every call. Default 0.
        num_threads: at most; default the CPUs that the process may use.

    Raises:
        TypeError, ValueError: an array that does not fit, or an impossible argument; nothing has been changed then.

    Example:
        >>> import numpy as np
        >>> param, grad, exp_avg = np.ones(2), np.array([0.5, -2.0]), np.zeros(2)
        >>> lion_(param, grad, exp_avg, lr=0.1)
        >>> param.round(4)
        array([0.9, 1.1])
        >>> lion_(param, grad, exp_avg, lr=0.1, betas=(0.0, 0.99), kappa="topk", kappa_param=1)
        >>> param.round(4)
        array([0.9, 1.2])
    """
    _update(_lion_rule(param, kappa, kappa_param), locals())


def sgd_(
    param: Array,
    grad: Array,
    momentum_buffer: Array | None = None,
    *,
    step: int,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    ema_init: bool = False,
    rounding: Rounding = "nearest",
    kahan_comp: Array | None = None,
    master_low: Array | None = None,
    master_param: Array | None = None,
    seed: int = 0,
    num_threads: int | None = None,
) -> None:
    """Gradient descent with momentum as :class:`ferrostep.optim.SGD`, on arrays.

    Args:
        param: of any shape and dtype of the module's; updated in place.
        grad: the gradient, of the same shape and dtype, or of another of float32, float16 and bfloat16 where the
            parameter has one of them; only read.
        momentum_buffer: the momentum, updated in place; in step 1 the gradient takes its place, unless ``ema_init``,
            which takes zeros. Default None, for a ``momentum`` of 0.
        step: the number of this step, from 1.
        lr, momentum, dampening, weight_decay, nesterov, maximize, ema_init: as of the class.
        rounding, kahan_comp, master_low, master_param, seed: as of :func:`adamw_`.
        num_threads: at most; default the CPUs that the process may use.

    Raises:
        TypeError, ValueError: an array that does not fit, or an impossible argument; nothing has been changed then.

    Example:
        >>> import numpy as np
        >>> param, grad, momentum_buffer = np.ones(2), np.array([0.5, -2.0]), np.zeros(2)
        >>> for step in (1, 2):
        ...     sgd_(param, grad, momentum_buffer, step=step, lr=0.1, momentum=0.9)
        >>> param.round(4)
        array([0.855, 1.58 ])
    """
    if momentum_buffer is None and momentum != 0:
        raise wrong_kind("momentum_buffer", None, f"an array, as momentum is {momentum}")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError("Nesterov momentum requires a momentum and zero dampening")
    _update("Sgd" if momentum_buffer is None else "SgdMomentum", locals())


def _lion_rule(param: Array, kappa: Kappa, kappa_param: float | None) -> str:
    """The name of Lion's rule, checked."""
    chosen = {"kappa": kappa, "kappa_param": kappa_param}
    check_kappa("kappa", kappa, chosen)
    check_kappa_param("kappa_param", kappa_param, chosen)
    if callable(kappa):
        raise wrong_kind("kappa", kappa, "a str, as a callable takes torch's tensors")
    if not has_kernel(kappa, kappa_param):
        raise Problem.NUMBER.of("kappa_param", kappa_param, f"at most {LARGEST_SUMMED} for arrays")
    if kappa not in OF_ELEMENTS and getattr(getattr(param, "dtype", None), "kind", None) == "c":
        raise Problem.NOT_REAL.of("param", param.dtype, f"{NAMED_FLOATS} for kappa={kappa!r}")
    return KERNELS[kappa]


def _update(name: str, given: dict[str, Any]) -> None:
    """One step of a rule, with the arguments of its function."""
    states, types, counts_steps, *_ = RULES[name]
    begins = "begins" in types
    step = whole("step", given["step"], 1 if counts_steps or begins else 0, 2**63)
    if begins:
        given["begins"] = step == 1
    if "betas" in given:
        given["betas"] = _checked(given["betas"])
    hyperparameters = _core.hyperparameters(name, given)
    for each, of_type in types.items():
        if of_type is float:
            check(each, hyperparameters[each], 0.0)
    rounding, compensation = given["rounding"], given["kahan_comp"]
    for argument, how in MASTERS.items():
        if given[argument] is not None:
            if rounding != "nearest":
                raise ValueError(f"{argument} rounds to the nearest and excludes rounding={rounding!r}")
            rounding, compensation = how, given[argument]
    batch = _core.Batch()
    batch.add(
        _core.Rule(name, hyperparameters),
        [given["param"]],
        [given["grad"]],
        {state: [given[state]] for state in states},
        step=step,
        rounding=rounding,
        seed=whole("seed", given["seed"], 0, 2**64),
        compensation=None if compensation is None else [compensation],
    )
    most = threads(given["num_threads"])
    batch.know(batch.sums(most))
    batch.run(most)


def _checked(betas: tuple[float, float]) -> tuple[float, float]:
    try:
        first, second = betas
    except (TypeError, ValueError):
        raise TypeError(f"betas is {betas!r}, expected two numbers") from None
    check("betas[0]", first, 0.0, 1.0)
    check("betas[1]", second, 0.0, 1.0)
    return first, second
