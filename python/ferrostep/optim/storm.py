"""STORM."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep import _core, reference
from ferrostep.curvature.diagonal import mean_over_ranks
from ferrostep.curvature.products import HessianProduct, Loss, evaluated, gradients_aside
from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import whole
from ferrostep.optim import shards
from ferrostep.optim.arguments import AtLeastZero, LearningRate, arguments_of, positive, within
from ferrostep.optim.base import NewState, arithmetic_dtype, is_fake, scale_of
from ferrostep.optim.gathered import COMPENSATIONS, Found, Gathered
from ferrostep.optim.options import Options
from ferrostep.optim.points import Factors, TwoPointOptimizer, number
from ferrostep.optim.rules import MASTER_ROUNDINGS, ElementwiseRule, Rule
from ferrostep.optim.sums import Scope
from ferrostep.optim.taken import Taken
from ferrostep.reference.engine import fraction
from ferrostep.reference.nigt import scale_of as scale_of_norm
from ferrostep.reference.storm import adaptive_share, point_before, point_between, rate_of, shares, way
from ferrostep.reference.sums import Sum

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NORMALIZED = ElementwiseRule("Storm", reference.storm, summed=reference.storm_sum)
PLAIN = ElementwiseRule("StormPlain", reference.storm_plain)
ADAPTIVE = ElementwiseRule("StormAdaptive", reference.storm_adaptive, summed=reference.storm_adaptive_sum)
RULES = (NORMALIZED, PLAIN, ADAPTIVE)
SCHEDULES: dict[str | None, tuple[bool, ...]] = {
    None: (True, False),
    "n-harpg": (True,),
    "harpg": (False,),
    "storm": (False,),
}
"""What ``normalize`` may be with each."""
SHARED = ("normalize", "correction", "schedule")
"""Arguments that are one for all groups."""
TRANSPORT = ("transport", scale_of("transport"))


class STORM(TwoPointOptimizer):
    r"""STORM: momentum without lag and of less variance (Cutkosky and Orabona 2019, arXiv 1905.10018, Algorithm 1).

    .. code-block:: text

        d <- (1 - eta) * (d - g') + g                   g at x, g' at the point before, of the same batch; first d <- g
        d <- (1 - eta) * (d + H * (x - x')) + eta * g   with correction="hessian", H at a random point between x' and x
        x' <- x;    x <- x - lr * weight_decay * x - lr * d / norm(d)            without normalize  - lr * d

    A step takes two gradients. For supervised training :meth:`step` asks a closure for the loss of one batch, twice:

    .. code-block:: python

        optimizer.step(lambda: loss_fn(model(x), y))        # no zero_grad and no backward

    Where data depend on the parameters (reinforcement learning), each point has its own:

    .. code-block:: python

        with optimizer.other_point():           # the parameters are x', or a point between x' and x
            optimizer.transport(loss())
        optimizer.zero_grad()
        loss().backward()                       # at x
        optimizer.step()

    It did not pay where it was measured: with interpolating models noise vanishes by itself, and :class:`NIGT` has the
    same transport for one gradient. ``"hessian"`` is for batches that two points cannot share; else
    ``"difference"`` has its mean, no variance from the random point, and costs half as much.

    Args:
        params: parameters of any shape, or parameter groups, of dtype float32, float64 or complex (but for
            ``"hessian"``); bfloat16 and float16 ones with ``master_weights``: the point before follows from x, which
            is rounded by as much as a step.
        lr: length of a step, or without ``normalize`` what multiplies d; a float or a 1-element tensor.
        momentum: ``1 - eta``, in [0, 1). Default 0.9.
        normalize: steps of length ``lr``. Default True.
        correction: ``"difference"`` (default): STORM, two gradients of a batch; ``"hessian"``: (N-)HARPG (arXiv
            2302.01734), a gradient and a product with the Hessian.
        scope: what the norm is over: ``"global"`` (default), all groups that say so, or ``"tensor"``, each by itself.
        weight_decay: decoupled, times ``lr``. Default 0.
        schedule: None (default); in step t, from 0, ``"n-harpg"`` (normalized) and ``"harpg"`` (not) have eta ``2 / (t
            + 2)`` and multiply ``lr`` by ``2 / (t + 2)`` and its square root; ``"storm"`` (not normalized) is the
            paper's: d is multiplied by ``a = lr / cbrt(w + s)``, s the sum of all gradients' squared norms up to
            this step, and the next eta is ``min(1, c * a^2)``. ``momentum`` does not count with any.
        w, c: of ``"storm"``. Default 0.1 and 10.
        maximize: ascend instead of descend. Default False.
        **options: see :class:`ferrostep.optim.options.Options`; ``max_grad_norm`` goes with ``"hessian"`` only: of two
            gradients it would clip one. ``seed`` decides the random points, too.

    ``normalize``, ``correction`` and ``schedule`` are one for all groups.

    State per parameter: ``momentum_buffer`` (4 bytes per element in float32), and the float64 numbers ``of_param`` and
    ``of_momentum``: x' is ``of_param * x + of_momentum * momentum_buffer``. Besides, from the transport to the step,
    ``transport`` (as much again), and within ``other_point`` a copy of x. With ``normalize`` the step makes the
    transport the new ``momentum_buffer``, another tensor than before, if both have the dtype of the arithmetic: clone
    what a hook is to keep of a gradient at the other point. Groups keep ``steps`` and ``squares``, how many steps there
    were and the sum s. A parameter without a gradient is left out of the norm and of the step.

    Raises:
        ValueError, TypeError: an impossible or unknown argument, or a parameter of 16 bits without ``master_weights``.
        RuntimeError: a complex parameter with ``"hessian"``.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = STORM([p], lr=0.5)
        >>> [optimizer.step(lambda: p.square().sum() / 2).item() for _ in range(2)]
        [12.5, 10.125]
        >>> p.detach(), optimizer.state[p]["momentum_buffer"]
        (tensor([2.4000, 3.2000]), tensor([2.7000, 3.6000]))
    """

    _rule = NORMALIZED
    _counted = MappingProxyType({"steps": 0, "squares": 0.0})
    _rounds = "x, from which the point before follows,"
    _kept: dict[Tensor, list[tuple[Tensor, Tensor]]] | None = None
    """Within `other_point`: by parameter, what is moved and copies of it."""
    _squares = 0.0
    """With the paper's schedule, the squared norm of the step that is being taken."""

    def __init__(
        self,
        params: ParamsT,
        lr: LearningRate,
        momentum: Annotated[float, within(0.0, 1.0)] = 0.9,
        *,
        normalize: bool = True,
        correction: Literal["difference", "hessian"] = "difference",
        scope: Literal["global", "tensor"] = "global",
        weight_decay: AtLeastZero = 0.0,
        schedule: Literal["n-harpg", "harpg", "storm"] | None = None,
        w: Annotated[float, positive()] = 0.1,
        c: AtLeastZero = 10.0,
        maximize: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, locals(), options)

    _arguments = arguments_of(__init__)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; ValueError if an argument that is one for all groups differs."""
        super().add_param_group(param_group)
        first, new = self.param_groups[0], self.param_groups[-1]
        for name in SHARED:
            if new[name] != first[name]:
                self.param_groups.pop()
                raise ValueError(f"{name} is one for all groups: got {new[name]!r}, expected {first[name]!r}")

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["correction"] == "hessian" and any(p.is_complex() for p in group["params"]):
            raise RuntimeError("STORM with correction='hessian' does not support complex parameters")
        super()._check_group(group)

    def rule(self, group: dict[str, Any]) -> Rule:
        """STORM with the group's hyperparameters, at the present step."""
        check_choices(group)
        lr, is_adaptive = number("lr", group["lr"]), group["schedule"] == "storm"
        accumulated = number("w", group["w"]) + number("squares", group["squares"])
        factor, eta = shares(group["schedule"], group["momentum"], whole("steps", group["steps"], 0))
        if is_adaptive:
            eta = adaptive_share(lr, number("c", group["c"]), accumulated)
        rate = float(rate_of(0.0, lr, accumulated)) if is_adaptive else lr * factor
        if (decay := rate * number("weight_decay", group["weight_decay"])) >= 1:
            raise Problem.NUMBER.of("lr * weight_decay", decay, "less than 1")
        own = {
            "lr": group["lr"] if factor == 1 else lr * factor,
            "eta": eta,
            "difference": group["correction"] == "difference",
            "accumulated": accumulated,
        }
        scope: Scope = "all" if group["scope"] == "global" else "tensor"
        return self._kernel(group).of({**group, **own})._replace(scope=scope)

    @staticmethod
    def _kernel(group: dict[str, Any]) -> ElementwiseRule:
        if group["normalize"]:
            return NORMALIZED
        return ADAPTIVE if group["schedule"] == "storm" else PLAIN

    def _numbers_after(self, rule: Rule, total: float) -> tuple[float, ...]:
        own = rule.hyperparameters
        rate = float(own["lr"])
        if rule.summed is ADAPTIVE.summed:
            rate = float(rate_of(total, rate, own["accumulated"]))
        scale = float(scale_of_norm(total, rate)) if rule.summed is NORMALIZED.summed else rate
        return point_before(scale, rate * own["weight_decay"])

    def _check_state(self, number: int, position: int, rule: Rule, state: Mapping[str, Any]) -> None:
        # Checkpoints are of between steps, when there is no transport.
        super()._check_state(number, position, rule._replace(states=rule.states[:1]), state)

    def _take(self, new_state: NewState) -> Taken:
        self._check_transported()
        self._squares = 0.0
        taken = super()._take(new_state)
        for group in self.param_groups:
            rule = self.rule(group)
            numbers = None if rule.summed else self._as_kept(self._numbers_after(rule, 0.0))
            for p in group["params"]:
                if p.grad is not None and numbers is not None:
                    self._keep_numbers(p, numbers, new_state)
                own = self.state.get(p, {})
                if p.grad is not None and group["skip_nonfinite"] and "transport" in own:
                    taken.skips = taken.skips or not shards.local(own["transport"]).isfinite().all()
        for gathered in taken.added:
            for position in gathered.positions if gathered.rule.kernel is _carried else ():
                p = self.param_groups[gathered.number]["params"][position]
                # Written before the step is sure to change anything, it does not come back if that fails.
                new_state.set(p, "momentum_buffer", self.state[p].pop("transport", None))
        for p in self._params():
            for name in TRANSPORT:
                new_state.remove(p, name)
        return taken

    def _gather_part(self, number: int, group: dict[str, Any], found: Found, new_state: NewState) -> list[Gathered]:
        parts = super()._gather_part(number, group, found, new_state)
        return [with_carried_momentum(part) for part in parts] if group["normalize"] else parts

    def _bytes_besides(self) -> int:
        # Within `step(closure)`: a copy of x and the transport, beside the last step's gradients.
        weights: int = sum(p.nbytes for group in self.param_groups for p in group["params"] if p.grad is not None)
        return 2 * weights

    def _check_transported(self) -> None:
        if self._kept is not None:
            raise RuntimeError("step was called within other_point, expected after it")
        for place, group in enumerate(self.param_groups):
            for position, p in enumerate(group["params"]):
                if p.grad is not None and self._has_begun(p) and "transport" not in self.state[p]:
                    raise RuntimeError(
                        f"parameter {position} in group {place} has no transport: call step with a closure, or before "
                        "it, `with optimizer.other_point(): optimizer.transport(loss)`"
                    )

    def _take_sums(self, sums: list[tuple[Gathered, list[Sum]]], new_state: NewState) -> bool:
        if self.param_groups[0]["schedule"] == "storm" and not is_fake(sums[0][0].params[0]):
            self._squares = float(sums[0][1][0])
            if not math.isfinite(self._squares):  # the sum would be so for ever
                return False
        return super()._take_sums(sums, new_state)

    def _is_to_run(self, taken: Taken, new_state: NewState) -> bool:
        runs = super()._is_to_run(taken, new_state)
        for group in self.param_groups if runs else ():
            new_state.write(group, "squares", group["squares"] + self._squares)
        return runs

    def _update(self) -> None:
        super()._update()
        self._forget_transport()  # of a step that was skipped, and of parameters without a gradient

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one optimization step.

        Args:
            closure: returns the loss of a batch, with its graph, without ``backward``. It is called for the same batch
                at the point before (but for the first step), or at one between, and at x, with the same state of
                torch's random numbers, so that dropout repeats; statistics of batch normalization see both. Its
                gradient at x is in ``grad`` afterwards, in the place of what was there. Without a closure, ``grad`` is
                the gradient at x, and what :meth:`transport` has found is used up.

        Returns:
            The loss at x.

        Raises:
            TypeError, ValueError, RuntimeError: a tensor that cannot be updated (sparse, wrong shape or dtype,
                overlapping another, ...), or without a transport, named by group and index.
            Exception: what the closure raises. Whatever is raised, no parameter has been changed by a bit then.
        """
        return super().step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # the base's step runs the hooks

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            return super()._step()
        try:
            if self._begun():
                with self._random_numbers_kept(), self.other_point():
                    self.transport(closure)
            loss, gradients = self._differentiate(closure)
            for p in self._params():
                p.grad = gradients.get(p)
            self._update()
        except BaseException:
            self._forget_transport()
            raise
        return loss

    @contextmanager
    def other_point(self) -> Iterator[None]:
        """Within this, the parameters are those of the point before, or of a random point between that and x.

        They are x again afterwards, whatever was raised, with every bit. Before the first step they stay.

        Raises:
            RuntimeError: this is within another one.
            TypeError, ValueError: parameters or states that have become impossible.
        """
        if self._kept is not None:
            raise RuntimeError("other_point was entered within other_point")
        self._forget_transport()
        kept = {p: [(x, x.clone()) for x in self._written(p)] for p in self._begun()}
        try:
            self._kept = kept
            self._move(self._at_other_point)
            yield
            self._restore(kept)  # not in `finally`, before which Python lets an interrupt through
        except BaseException:
            self._forget_transport()
            try:
                self._restore(kept)
            except BaseException:  # an interrupt, of which there may be two
                self._restore(kept)
                raise
            raise

    def transport(self, loss: Loss, *, all_reduce: bool | ProcessGroup = True) -> None:
        """Within :meth:`other_point`, find what carries the momentum to x. Calls add up, as those of ``backward`` do.

        Args:
            loss: of shape () with its graph, or a function that returns one, which ``"hessian"`` needs for models with
                fused attention. ``grad`` is not changed, but by hooks.
            all_reduce: with ``"hessian"``, average over the ranks of this process group, or of the default one (True)
                where ``torch.distributed`` is initialized; all ranks have to call then, with the loss of the module
                inside DistributedDataParallel. Default True.

        Raises:
            RuntimeError: this is not within ``other_point``; the loss has no graph, or one without a second derivative;
                a sparse gradient.
            ValueError: the loss is no scalar.
            NotImplementedError: a parameter is a DTensor, with ``"hessian"``.
        """
        if self._kept is None:
            raise RuntimeError("transport was called outside of other_point, expected within it")
        begun = self._begun()
        if not begun:
            return
        if self.param_groups[0]["correction"] == "hessian":
            found = self._hessian_product(loss, begun, all_reduce)
        else:
            _, found = self._differentiate(loss)
        taken: set[int] = set()
        with torch.no_grad():
            for p in begun:
                before, new = self.state[p].get("transport"), found.get(p)
                if before is None:
                    self.state[p]["transport"] = torch.zeros_like(p) if new is None else _like(new, p, taken)
                elif new is not None:
                    before += new

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _begun(self) -> list[Tensor]:
        """The parameters that have a point before."""
        return [p for p in self._params() if self._has_begun(p)]

    def _forget_transport(self) -> None:
        for p in self._begun():
            for name in TRANSPORT:
                self.state[p].pop(name, None)

    def _written(self, p: Tensor) -> list[Tensor]:
        """The memory of a parameter that has begun, and of what its master keeps."""
        tensors = [p.detach(), *(self.state[p].get(COMPENSATIONS[name]) for name in MASTER_ROUNDINGS.values())]
        return [shards.local(x) for x in tensors if x is not None]

    @torch.no_grad()
    def _restore(self, kept: dict[Tensor, list[tuple[Tensor, Tensor]]]) -> None:
        written = [x for pairs in kept.values() for x, _ in pairs]
        copies = [copy for pairs in kept.values() for _, copy in pairs]
        if written:
            torch._foreach_copy_(written, copies)  # one call, which no interrupt divides
        self._kept = None

    def _at_other_point(self, group: dict[str, Any]) -> Factors:
        before: Factors = group["of_param"], group["of_momentum"]
        return before if group["correction"] == "difference" else point_between(*before, self._fraction())

    def _fraction(self) -> float:
        """How much of the way from the point before to x the random point has."""
        first = self.param_groups[0]
        return fraction(first["seed"], first["steps"])

    def _hessian_product(
        self, loss: Loss, begun: list[Tensor], all_reduce: bool | ProcessGroup
    ) -> dict[Tensor, Tensor]:
        """The loss's Hessian times the way from the point before to x."""
        if shards.are_among(begun):
            raise NotImplementedError(
                "correction='hessian' does not support DTensors, whose backward pass cannot be differentiated"
            )
        assert self._kept is not None
        ways = {p: self._kept[p][0][1].clone() for p in begun}
        self._move(lambda group: way(group["of_param"], group["of_momentum"]), ways)
        product = HessianProduct(loss, begun)([ways[p] for p in begun], retain_graph=False)
        return dict(zip(begun, mean_over_ranks(product, all_reduce), strict=True))

    def _differentiate(self, loss: Loss) -> tuple[Tensor, dict[Tensor, Tensor]]:
        """The loss and its gradients; those in ``grad`` are as before."""
        params = self._params()
        with gradients_aside(params):
            if not isinstance(loss, Tensor) and callable(loss):
                with torch.enable_grad():
                    loss = loss()
                if any(p.grad is not None for p in params):
                    raise RuntimeError("the closure has called backward, expected only the loss")
            value = evaluated(loss)
            value.backward()  # type: ignore[no-untyped-call]  # which other ranks may have a part in
            return value, {p: p.grad for p in params if p.grad is not None}

    @contextmanager
    def _random_numbers_kept(self) -> Iterator[None]:
        """Put torch's random numbers back to where they were."""
        devices = sorted({p.device for p in self._params() if p.device.type not in ("cpu", "meta")}, key=str)
        kind = devices[0].type if devices else "cuda"
        with torch.random.fork_rng(devices, device_type=kind):
            yield


def check_choices(group: dict[str, Any]) -> None:
    """Raise ValueError for arguments that exclude each other."""
    schedule, normalize, limit = group["schedule"], group["normalize"], group["max_grad_norm"]
    if not isinstance(normalize, bool):
        raise wrong_kind("normalize", normalize, "a bool")
    if normalize not in SCHEDULES[schedule]:
        raise Problem.NUMBER.of("normalize", normalize, f"{not normalize} (schedule={schedule!r})")
    if schedule == "storm" and group["scope"] != "global":
        raise Problem.NUMBER.of("scope", repr(group["scope"]), "'global' (schedule='storm')")
    if group["correction"] == "difference" and limit is not None and limit != math.inf:
        expected = "None, or correction='hessian': of two gradients, it would clip one"
        raise Problem.NUMBER.of("max_grad_norm value", limit, expected)


def with_carried_momentum(gathered: Gathered) -> Gathered:
    """The same with a rule that makes the transport the new momentum, if that is of the same numbers."""

    def is_carried(p: Tensor, *states: Tensor) -> bool:
        dtype = p.dtype if p.is_complex() else arithmetic_dtype(p)
        return all(getattr(state, "dtype", None) == dtype for state in states)

    columns = (gathered.columns[name] for name in gathered.rule.states)
    if not all(map(is_carried, gathered.params, *columns)):
        return gathered
    return gathered._replace(rule=gathered.rule._replace(kernel=_carried))


def _carried(**hyperparameters: Any) -> _core.CarriedRule:
    """The Rust rule."""
    return _core.CarriedRule(_core.Rule(NORMALIZED.name, hyperparameters))


def _like(new: Tensor, p: Tensor, taken: set[int]) -> Tensor:
    """What goes with a parameter, in its layout and in memory of its own.

    That DDP's buckets are not, nor the gradient that two parameters have in common, whose memory is ``taken`` then.
    """
    if new.layout != torch.strided:
        raise Problem.LAYOUT.of("a gradient at the other point", new.layout, torch.strided)
    storage = shards.local(new).untyped_storage()
    is_own = storage.nbytes() == shards.local(new).nbytes and storage.data_ptr() not in taken
    taken.add(storage.data_ptr())
    if new.stride() == p.stride() and is_own:
        return new
    return torch.empty_like(p, dtype=new.dtype, requires_grad=False).copy_(new)
