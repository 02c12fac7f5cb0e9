"""NIGT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import _core, reference
from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import whole
from ferrostep.optim.arguments import AtLeastZero, LearningRate, arguments_of, within
from ferrostep.optim.base import NewState, has_16_bits, is_fake, without_dynamo
from ferrostep.optim.gathered import COMPENSATIONS, Gathered, is_for_plain_torch
from ferrostep.optim.options import Options
from ferrostep.optim.rules import MASTER_ROUNDINGS, ElementwiseRule, Rule, RuleOptimizer
from ferrostep.optim.taken import Taken
from ferrostep.reference.nigt import inverse, point_of, scale_of, shares
from ferrostep.reference.sums import Sum

BLEND = ElementwiseRule("Blend", reference.blend)
POINT = ("eta", "of_param", "of_momentum")
"""What a parameter's state has besides the momentum, and a rule for its hyperparameters."""
START = (1.0, 1.0, 0.0)
"""Their values before the first step."""


class NIGT(RuleOptimizer):
    r"""NIGT: normalized momentum with implicit gradient transport (Cutkosky and Mehta 2020, arXiv 2002.03305).

    .. code-block:: text

        d <- (1 - eta) * d + eta * g                    g at z; eta = 1 - momentum, in the first step 1
        x' <- x - lr * weight_decay * x - lr * d / norm(d)
        z <- x' + (1 - eta) / eta * (x' - x)            where the next gradient is to be taken
        x <- x'

    Where gradients are affine functions, d is the gradient at x but for the noise, of which momentum averages: it does
    not lag behind. Every step is as long as ``lr`` says, whatever the gradient's scale.

    The parameters are z. :meth:`eval` puts x, which is to be evaluated and saved, in their place, and :meth:`train`
    puts z back: call both as of schedule-free optimizers. A step in evaluation mode is an error. Statistics of batch
    normalization are those at z: run some batches through the model after :meth:`eval`, if there are any.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64 or complex; bfloat16 and float16
            ones with ``master_weights``: what z is rounded by would be as large as the step.
        lr: length of a step, a float or a 1-element tensor.
        momentum: in [0, 1); a change counts from the step after the next. Default 0.9.
        weight_decay: decoupled, times ``lr``, which is to be less than ``1 - momentum`` together. Default 0.
        scope: what the norm is over: ``"global"`` (default), all groups that say so, or ``"tensor"``, each by itself.
        schedule: None (default), or ``"n-pg-igt"``, that of arXiv 2302.01734: eta is ``(2 / (t + 2))^(4/5)`` and ``lr``
            is multiplied by ``2 / (t + 2)`` in step t, from 0; ``momentum`` does not count.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: ``momentum_buffer`` (4 bytes per element in float32), and the float64 numbers ``eta``,
    ``of_param`` and ``of_momentum``: x is ``of_param * z + of_momentum * momentum_buffer``. Groups keep ``steps``, how
    many there were, and ``train_mode``. A parameter without a gradient is left out of the norm and of the step.

    Raises:
        ValueError, TypeError: an impossible or unknown argument, or a parameter of 16 bits without ``master_weights``.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = NIGT([p], lr=0.5)
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> optimizer.eval()
        >>> p.detach()
        tensor([0.7000, 1.6000])
        >>> optimizer.train()
        >>> p.detach()
        tensor([-2., -2.])
    """

    _numbers = POINT
    _rule = ElementwiseRule("Nigt", reference.nigt, summed=reference.nigt_sum)

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate,
        momentum: Annotated[float, within(0.0, 1.0)] = 0.9,
        *,
        weight_decay: AtLeastZero = 0.0,
        scope: Literal["global", "tensor"] = "global",
        schedule: Literal["n-pg-igt"] | None = None,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def _check_group(self, group: dict[str, Any]) -> None:
        group.setdefault("steps", 0)
        group.setdefault("train_mode", True)
        self._check_precision(group)
        self.rule(group)

    def _needs_all_gradients(self, _group: dict[str, Any]) -> str | None:
        return "its groups count the steps, of which each is to move all parameters"

    def _check_precision(self, group: dict[str, Any]) -> None:
        for i, p in enumerate(group["params"]):
            if has_16_bits(p) and group["master_weights"] is None:
                expected = "float32 or float64, or master_weights, as z is rounded by as much as a step"
                raise Problem.DTYPE.of(f"parameter {i}", p.dtype, expected)

    def rule(self, group: dict[str, Any]) -> Rule:
        """NIGT with the group's hyperparameters, at its first step."""
        factor, next_eta = shares(group["schedule"], group["momentum"], whole("steps", group["steps"], 0))
        lr = number("lr", group["lr"]) * factor if group["schedule"] else group["lr"]
        own = {**dict(zip(POINT, START, strict=True)), **group, "lr": lr, "next_eta": next_eta}
        decay = number("lr", lr) * number("weight_decay", group["weight_decay"])
        if decay >= next_eta:
            raise Problem.NUMBER.of("lr * weight_decay", decay, f"less than {next_eta}, the next gradient's share")
        return self._rule.of(own)._replace(scope="all" if group["scope"] == "global" else "tensor")

    def _parts(
        self, _number: int, group: dict[str, Any], positions: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
        """Parameters of which x follows from z by the same numbers."""
        by_point: dict[tuple[float, ...], list[int]] = {}
        for i in positions:
            by_point.setdefault(self._point(group["params"][i]), []).append(i)
        for point, those in by_point.items():
            yield {**group, **dict(zip(POINT, point, strict=True))}, positions if len(by_point) == 1 else those

    def _point(self, p: Tensor) -> tuple[float, ...]:
        own = self.state.get(p, {})
        return tuple(float(own.get(name, start)) for name, start in zip(POINT, START, strict=True))

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        adopted = super()._adopted(state_dict)
        for key, state in adopted["state"].items():
            missing = [name for name in POINT if name not in state]
            if "momentum_buffer" in state and missing:
                raise KeyError(f"state of parameter {key} has no {', '.join(missing)}: it is another rule's")
        return adopted

    def _take_sums(self, sums: list[tuple[Gathered, list[Sum]]], new_state: NewState) -> bool:
        for gathered, totals in sums:
            if is_fake(gathered.params[0]):
                continue
            own = gathered.rule.hyperparameters
            lr, decay, eta = float(own["lr"]), own["weight_decay"], own["next_eta"]
            points: dict[float, tuple[Tensor, ...]] = {}  # one for all where they know one sum
            for position, total in zip(gathered.positions, map(float, totals), strict=True):
                if total not in points:
                    point = (eta, *point_of(float(scale_of(total, lr)), lr, decay, eta))
                    points[total] = torch.tensor(point, dtype=torch.float64).unbind()
                p = self.param_groups[gathered.number]["params"][position]
                for name, value in zip(POINT, points[total], strict=True):
                    new_state.set(p, name, value)
        return True

    def _step(self, closure: Callable[[], float] | None = None) -> float | None:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("train_mode is not set in all groups: call optimizer.train() before a step")
        return super()._step(closure)

    def _after_update(self, batch: _core.Batch, elsewhere: list[Gathered]) -> None:
        for group in self.param_groups:
            group["steps"] += 1

    def eval(self) -> None:
        """Put x, the point to evaluate and to save, in the place of z.

        Raises:
            TypeError, ValueError, RuntimeError: parameters or states that have become impossible; nothing has changed.
        """
        self._swap(to_train=False)

    def train(self) -> None:
        """Put z, the point to train at, back in the place of x: what it was but for one rounding.

        Raises:
            TypeError, ValueError, RuntimeError: as of :meth:`eval`.
        """
        self._swap(to_train=True)

    @without_dynamo
    def _swap(self, *, to_train: bool) -> None:
        taken = Taken(self._known, self._scratch)
        for number, group in enumerate(self.param_groups):
            begun = [i for i, p in enumerate(group["params"]) if "eta" in self.state.get(p, ())]
            if group["train_mode"] == to_train or not begun:
                continue
            for part, positions in self._parts(number, group, begun):
                add = taken.add_elsewhere if is_elsewhere(part, positions) else taken.add
                add(self._moved(number, part, positions, to_train), needs_matrices=False)
        taken.run(torch.get_num_threads())
        for group in self.param_groups:
            group["train_mode"] = to_train

    def _moved(self, number: int, group: dict[str, Any], positions: Sequence[int], to_train: bool) -> Gathered:
        """The way from z to x or back, along the momentum."""
        factors = group["of_param"], group["of_momentum"]
        of_param, of_grad = inverse(*factors) if to_train else factors
        params = [group["params"][i] for i in positions]
        rounding = MASTER_ROUNDINGS.get(group["master_weights"], "nearest")
        name = COMPENSATIONS.get(rounding)
        return Gathered(
            number,
            {**group, "max_grad_norm": None, "skip_nonfinite": False, "differentiable": False},
            BLEND.of({"of_param": of_param, "of_grad": of_grad}),
            rounding,
            list(positions),
            params,
            [self.state[p]["momentum_buffer"] for p in params],
            {} if name is None else {name: [self.state[p].get(name) for p in params]},
        )


def number(name: str, value: Any) -> float:
    """A group's number, which someone may have written since it was checked.

    Raises:
        TypeError, ValueError: it is none, or beyond all floats.
    """
    try:
        return float(value)
    except TypeError as error:
        raise wrong_kind(name, value, "a number") from error
    except OverflowError as error:
        raise Problem.NUMBER.of(name, "int too large", "a number that a float can be") from error


def is_elsewhere(group: dict[str, Any], positions: Sequence[int]) -> bool:
    """Whether plain torch is to move the parameters."""
    return is_for_plain_torch(group) or not all(group["params"][i].is_cpu for i in positions)
