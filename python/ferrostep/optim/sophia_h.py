"""Sophia with Hutchinson's estimator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep.choices import Distribution
from ferrostep.curvature import HutchinsonDiagonal
from ferrostep.curvature.diagonal import count_ranks, mean_over_ranks
from ferrostep.curvature.products import Loss
from ferrostep.errors import wrong_kind
from ferrostep.optim import shards
from ferrostep.optim.arguments import (
    OF_OPTIMIZER,
    AtLeastZero,
    Betas,
    LearningRate,
    arguments_of,
    check_positive,
    one_of,
    positive,
    within,
)
from ferrostep.optim.options import Options
from ferrostep.optim.rules import Rule
from ferrostep.optim.sophia import ESTIMATE, PRODUCT, Sophia

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SHARED = ("update_period", "num_samples", "distribution")
"""Options that are one for all groups."""
IMPOSSIBLE_DISTRIBUTION = (
    f"Invalid distribution value: {{value!r}}; expected {' or '.join(map(repr, get_args(Distribution)))}"
)


class SophiaH(Sophia):
    r"""Sophia-H (Liu et al. 2023, arXiv 2305.14342, Algorithms 1 and 3).

    .. code-block:: text

        step:              m <- beta1 * m + (1 - beta1) * g
                           p <- p * (1 - lr * weight_decay) - lr * clip(m / max(gamma * h, eps), -1, 1)
        update_hessian:    h <- beta2 * h + (1 - beta2) * d         d = u * (H u), u random, H the loss's Hessian

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64, bfloat16 or float16.
        lr: learning rate and the most that an element moves, a float or a 1-element tensor. Default 6e-4.
        betas: decay rates of the momentum and of the Hessian estimate, each in [0, 1). Default (0.96, 0.99).
        gamma: scale of the curvature; the larger, the fewer elements are clipped. Default 0.01.
        weight_decay: decoupled, times ``lr``. Default 0.1.
        update_period: steps from one estimate to the next (``k``), for :meth:`should_update_hessian`. Default 10.
        eps: the denominator is at least this, greater than 0. Default 1e-12.
        num_samples: probes ``u`` per loss. Default 1.
        distribution: of the probes: ``"rademacher"`` (default, of the smaller variance) or ``"gaussian"``.
        generator: for the probes; default torch's global one. Part of a copied or pickled optimizer, not of the
            state dict.
        maximize: ascend instead of descend: gradients and estimates are negated. Default False.
        skip_nonfinite_hessian: keep an element of ``h`` as it is where the estimate would make it NaN or infinite.
            Default True.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``step``, ``exp_avg``, ``hessian`` (8 bytes per element in float32). State dicts of
    pytorch_optimizer's SophiaH load, with ``lr`` and ``p`` turned into ``lr * p`` and ``gamma = p``, which is the same
    update. A bfloat16 ``hessian`` (``state_dtype``) stalls: its spacing is wider than the increments.

    Raises:
        ValueError, TypeError: an impossible or unknown argument.
        RuntimeError: complex parameters.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = SophiaH([p], betas=(0.9, 0.75))
        >>> if optimizer.should_update_hessian():
        ...     optimizer.estimate_hessian(lambda: (p**3).sum())
        ...     optimizer.update_hessian()
        >>> optimizer.state[p]["hessian"]
        tensor([1.5000, 3.0000])
    """

    generator: torch.Generator | None = None
    _pending: HutchinsonDiagonal | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate = 6e-4,
        betas: Betas = (0.96, 0.99),
        gamma: AtLeastZero = 0.01,
        weight_decay: AtLeastZero = 0.1,
        *,
        update_period: Annotated[int, within(1)] = 10,
        eps: Annotated[float, positive(called="epsilon")] = 1e-12,
        num_samples: Annotated[int, within(1)] = 1,
        distribution: Annotated[Distribution, one_of(get_args(Distribution), IMPOSSIBLE_DISTRIBUTION)] = "rademacher",
        generator: Annotated[torch.Generator | None, OF_OPTIMIZER] = None,
        maximize: bool = False,
        skip_nonfinite_hessian: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)
        self.generator = generator

    _arguments = arguments_of(__init__)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; ValueError if an option that is one for all groups differs."""
        super().add_param_group(param_group)
        first, new = self.param_groups[0], self.param_groups[-1]
        for name in SHARED:
            if new[name] != first[name]:
                self.param_groups.pop()
                raise ValueError(f"{name} is one for all groups: got {new[name]}, expected {first[name]}")

    def rule(self, group: dict[str, Any]) -> Rule:
        """Sophia with the group's hyperparameters."""
        return super().rule({**group, "scale": group["gamma"], "add_eps": False})

    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        hessian: Iterable[Tensor | None] | None = None,
    ) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss, which is then the result.
            hessian: estimates for :meth:`update_hessian`, of the parameters' shapes, which is then called first.

        Raises:
            TypeError, ValueError, RuntimeError: as of :meth:`RuleOptimizer.step`; nothing has been changed but
                the Hessian estimate.
        """
        if hessian is not None:
            self.update_hessian(hessian)
        return super().step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # the base's step runs the hooks

    def should_update_hessian(self) -> bool:
        """Whether the coming step ``t`` (from 1) is one for a new estimate: ``t mod update_period = 1``."""
        steps = [state["step"].item() for state in self.state.values() if "step" in state]
        return int(max(steps, default=0)) % int(self.param_groups[0]["update_period"]) == 0

    def estimate_hessian(
        self,
        loss: Loss,
        retain_graph: bool = False,
        accumulate: bool = False,
        *,
        grad_scale: float | None = None,
    ) -> None:
        """Estimate the diagonal of the Hessian of ``loss``, for :meth:`update_hessian`. ``p.grad`` is not touched.

        Args:
            loss: the mean loss of a batch: a scalar tensor with its graph, or a function that returns one. The
                function is needed for models with fused attention. Under DistributedDataParallel, use the module
                inside.
            retain_graph: keep the graph of ``loss`` for its own ``backward``. Default False.
            accumulate: add to the estimate of the last calls instead of replacing it. The **mean** over the calls is
                what counts, so give the mean loss of every micro-batch, not divided by their number.
            grad_scale: what the loss has been multiplied by (``GradScaler.get_scale()``), if it has.

        Raises:
            ValueError, RuntimeError: as of :func:`ferrostep.curvature.hutchinson_diagonal`.
            NotImplementedError: a parameter is a DTensor.
        """
        if grad_scale is not None:
            check_positive("grad_scale value", grad_scale)
        if any(shards.is_distributed(p) for group in self.param_groups for p in group["params"]):
            raise NotImplementedError(
                "estimate_hessian does not support DTensors, whose backward pass cannot be differentiated; give "
                "update_hessian estimates that are placed as the parameters are"
            )
        pending = self._pending if accumulate else None
        if pending is None:
            first = self.param_groups[0]
            pending = HutchinsonDiagonal(
                (p for group in self.param_groups for p in group["params"] if p.requires_grad),
                num_samples=first["num_samples"],
                distribution=first["distribution"],
                generator=self.generator,
            )
        pending.add(loss, retain_graph=retain_graph, grad_scale=grad_scale or 1.0)
        self._pending = pending

    def update_hessian(
        self,
        estimates: Iterable[Tensor | None] | None = None,
        *,
        all_reduce: bool | ProcessGroup = True,
    ) -> None:
        """Take an estimate into ``hessian``.

        Args:
            estimates: one per parameter in the order of the groups, None for none. Default: what
                :meth:`estimate_hessian` has estimated, which is used up by this.
            all_reduce: average the default's estimates over the ranks of this process group, or of the default one
                (True) where ``torch.distributed`` is initialized; every rank has to call then. Default True.

        Raises:
            RuntimeError: there is no estimate.
            TypeError, ValueError: estimates of a wrong number, shape or dtype. Nothing has been changed then.
        """
        estimator, inputs = ESTIMATE, {}
        if estimates is not None:
            inputs = self._by_parameter(estimates)
        elif self._pending is None:
            raise RuntimeError("no estimate: call estimate_hessian(loss) before update_hessian(), or give estimates")
        else:
            pending, self._pending = self._pending, None
            factors = pending.factors
            # Probes of plus and minus 1 are exact in every dtype, so they may be read as the average's. Unscaled
            # products of 16-bit parameters are float32, which the kernel does not take.
            if (
                factors
                and pending.distribution == "rademacher"
                and count_ranks(all_reduce) == 1
                and all(h.dtype == p.dtype for p, h in zip(pending.params, factors[1], strict=True))
            ):
                estimator = PRODUCT
                inputs = {p: (h, u) for p, u, h in zip(pending.params, *factors, strict=True)}
            else:
                means = mean_over_ranks(pending.mean(), all_reduce)
                inputs = {p: (d,) for p, d in zip(pending.params, means, strict=True)}
        self._refresh(estimator, inputs, lambda group: -1.0 if group["maximize"] else 1.0)

    def _by_parameter(self, estimates: Iterable[Tensor | None]) -> dict[Tensor, tuple[Tensor, ...]]:
        estimates = list(estimates)
        places = [
            (number, position, p)
            for number, group in enumerate(self.param_groups)
            for position, p in enumerate(group["params"])
        ]
        if len(estimates) != len(places):
            raise ValueError(f"got {len(estimates)} Hessian estimates, expected {len(places)}: one per parameter")
        found: dict[Tensor, tuple[Tensor, ...]] = {}
        for d, (number, position, p) in zip(estimates, places, strict=True):
            where = f"Hessian estimate of parameter {position} in group {number}"
            if d is None:
                continue
            if not isinstance(d, Tensor):
                raise wrong_kind(where, d, "a torch.Tensor")
            if d.shape != p.shape or not d.is_floating_point():
                got = f"has shape {list(d.shape)} and dtype {d.dtype}"
                raise ValueError(f"{where} {got}, expected shape {list(p.shape)} and a floating-point dtype")
            found[p] = (d.detach(),)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes: beside torch's, the generator and a pending estimate."""
        return {**super().__getstate__(), "generator": self.generator, "_pending": self._pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of pytorch_optimizer's SophiaH.

        Raises:
            ValueError: the latter with ``weight_decouple=False``, ``fixed_decay=True`` or ``p=0``, which this class
                has no equal of.
        """
        if any("weight_decouple" in group for group in state_dict["param_groups"]):
            state_dict = _from_pytorch_optimizer(state_dict)
        super().load_state_dict(state_dict)


def _from_pytorch_optimizer(saved: dict[str, Any]) -> dict[str, Any]:
    """The state dict as this class has it: ``clip(m / max(h, eps), p)`` is ``p * clip(m / (p * max(h, eps)), 1)``."""
    groups, state = [], {}
    for number, group in enumerate(saved["param_groups"]):
        p = group["p"]
        if p == 0 or (group["weight_decay"] != 0 and (not group["weight_decouple"] or group["fixed_decay"])):
            options = {name: group[name] for name in ("p", "weight_decouple", "fixed_decay", "weight_decay")}
            raise ValueError(f"group {number} of the state dict has {options}, which SophiaH cannot express")
        theirs = ("p", "step", "foreach", "weight_decouple", "fixed_decay")
        own = {name: value for name, value in group.items() if name not in theirs}
        for rate in ("lr", "initial_lr"):
            if rate in own:
                own[rate] = own[rate] * p
        own |= {"gamma": p, "eps": group["eps"] * p, "weight_decay": group["weight_decay"] / p}
        groups.append(own)
        for key in group["params"]:
            theirs_of_p = saved["state"].get(key, {})
            if "momentum" in theirs_of_p:  # else there is at most a raw estimate: no gradient has come yet
                state[key] = {
                    "step": torch.tensor(float(group["step"])),
                    "exp_avg": theirs_of_p["momentum"],
                    "hessian": theirs_of_p["hessian_moment"],
                }
    return {**saved, "state": state, "param_groups": groups}
