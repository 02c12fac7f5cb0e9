"""NIGT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import reference
from ferrostep.errors import Problem
from ferrostep.numpy.arrays import whole
from ferrostep.optim.arguments import AtLeastZero, LearningRate, arguments_of, within
from ferrostep.optim.options import Options
from ferrostep.optim.points import POINT, Factors, TwoPointOptimizer, number
from ferrostep.optim.rules import ElementwiseRule, Rule
from ferrostep.reference.nigt import inverse, point_of, scale_of, shares


class NIGT(TwoPointOptimizer):
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
    _start = (1.0, 1.0, 0.0)
    _rounds = "z"
    _counted = MappingProxyType({"steps": 0, "train_mode": True})
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

    def rule(self, group: dict[str, Any]) -> Rule:
        """NIGT with the group's hyperparameters, at its first step."""
        factor, next_eta = shares(group["schedule"], group["momentum"], whole("steps", group["steps"], 0))
        lr = number("lr", group["lr"]) * factor if group["schedule"] else group["lr"]
        own = {**dict(zip(self._numbers, self._start, strict=True)), **group, "lr": lr, "next_eta": next_eta}
        decay = number("lr", lr) * number("weight_decay", group["weight_decay"])
        if decay >= next_eta:
            raise Problem.NUMBER.of("lr * weight_decay", decay, f"less than {next_eta}, the next gradient's share")
        return self._rule.of(own)._replace(scope="all" if group["scope"] == "global" else "tensor")

    def _parts(
        self, _number: int, group: dict[str, Any], positions: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
        """Parameters of which x follows from z by the same numbers."""
        yield from self._by_point(group, positions)

    def _numbers_after(self, rule: Rule, total: float) -> tuple[float, ...]:
        own = rule.hyperparameters
        lr, decay, eta = float(own["lr"]), own["weight_decay"], own["next_eta"]
        return (eta, *point_of(float(scale_of(total, lr)), lr, decay, eta))

    def _step(self, closure: Callable[[], float] | None = None) -> float | None:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("train_mode is not set in all groups: call optimizer.train() before a step")
        return super()._step(closure)

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

    def _swap(self, *, to_train: bool) -> None:
        def factors(group: dict[str, Any]) -> Factors | None:
            if group["train_mode"] == to_train:
                return None
            of_x = group["of_param"], group["of_momentum"]
            return inverse(*of_x) if to_train else of_x

        self._move(factors, train_mode=to_train)
