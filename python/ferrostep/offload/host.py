"""An optimizer that works in host memory."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from ferrostep import _core
from ferrostep.errors import Problem, wrong_kind
from ferrostep.offload.transfers import transfers_of
from ferrostep.offload.twins import Twin
from ferrostep.optim.base import InPlaceOptimizer, has_16_bits
from ferrostep.suggestions import mistaken_entry, unexpected

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

MASTER_DTYPES = (torch.float32, None)
OWN_ARGUMENTS = ("master_dtype", "offload_gradients")


class HostOptimizer(Optimizer):
    """An optimizer of another class, with its state and its steps in host memory.

    Parameters may be on any device. Those of bfloat16 and float16 get float32 masters, which the step updates from the
    low-precision gradients, and the parameters are what the masters round to; with the classes of this package, that
    is one pass over memory. On the CPU there is nothing to copy: it is the class with ``master_weights="float32"``.

    From another device a step fetches the gradients, and sends the new weights back. With CUDA, gradients and weights
    cross through pinned memory, and nothing but the step itself waits for them.

    It is a ``torch.optim.Optimizer``: schedulers, hooks, closures, ``add_param_group``, ``GradScaler``, ``copy`` and
    ``pickle`` take it. ``param_groups``, ``defaults``, ``state`` and ``state_dict`` are those of the class, with
    ``master_param`` in the state; state dicts move between both.

    Args:
        params: parameters, named ones, or parameter groups, of shapes and dtypes that the class takes; for
            :class:`ferrostep.optim.MuonAdamW` a module, too.
        optimizer_class: one of this package; or another subclass of ``torch.optim.Optimizer`` whose ``step`` needs no
            closure: it gets the masters themselves as its parameters, gradients in float32, and what it made of the
            masters is copied to the parameters.
        master_dtype: ``torch.float32`` (default) keeps masters of 16-bit parameters. None keeps none, for the class's
            own ways to round: ``rounding``, ``master_weights="split"``.
        offload_gradients: take each gradient to the host as soon as the backward pass has it, while that goes on, and
            free it on the device (``p.grad`` is None then); those of several backward passes are added up on the host.
            Default False: gradients stay where they are until the step, for whoever looks at them or changes them
            (clipping, ``GradScaler``). No effect for parameters on the CPU.
        **kwargs: the arguments of the class.

    A parameter without a gradient is skipped, as torch does. What is written to a parameter between steps stands, as
    when a checkpoint is loaded; on other devices than the CPU, only what is not written through its ``data``.

    Raises:
        TypeError: ``optimizer_class`` is no subclass of ``torch.optim.Optimizer``, or an unknown argument.
        ValueError, RuntimeError: an impossible argument or parameter, as the class raises.

    Example:
        >>> import torch
        >>> from ferrostep.optim import AdamW
        >>> p = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        >>> p.grad = torch.ones_like(p)
        >>> optimizer = HostOptimizer([p], AdamW, lr=1e-3, weight_decay=0.0)
        >>> for _ in range(3):
        ...     loss = optimizer.step()
        >>> optimizer.state[p]["master_param"]  # bfloat16 has no number between 1 and 0.9961
        tensor([0.9970, 0.9970])
        >>> p.detach()
        tensor([0.9961, 0.9961], dtype=torch.bfloat16)
    """

    def __init__(
        self,
        params: ParamsT | nn.Module,
        optimizer_class: type[Optimizer],
        *,
        master_dtype: torch.dtype | None = torch.float32,
        offload_gradients: bool = False,
        **kwargs: Any,
    ) -> None:
        check_class(optimizer_class)
        if master_dtype not in MASTER_DTYPES:
            raise Problem.NUMBER.of("master_dtype", master_dtype, "torch.float32 or None")
        if not isinstance(offload_gradients, bool):
            raise wrong_kind("offload_gradients", offload_gradients, "a bool")
        self._is_ours = issubclass(optimizer_class, InPlaceOptimizer)
        self._master_dtype = master_dtype
        if self._is_ours and master_dtype is not None:
            kwargs.setdefault("master_weights", "float32")
        self._offload_gradients = offload_gradients
        self._twins: dict[Tensor, Twin] = {}
        self._optimizer: Optimizer | None = None
        check_names(kwargs, optimizer_class)
        optimizer = self._made(optimizer_class, params, kwargs)
        groups = [self._owned(group) for group in optimizer.param_groups]
        super().__init__([dict(group) for group in groups], optimizer.defaults)
        self._optimizer = optimizer
        self.param_groups = optimizer.param_groups = groups  # without what torch's constructor added of the defaults
        self._watch(self._twins.values())

    def _made(self, optimizer_class: type[Optimizer], params: Any, kwargs: dict[str, Any]) -> Optimizer:
        """The optimizer on the host, of parameters there."""
        if not self._is_ours:
            return optimizer_class(self._hosted(params), **kwargs)
        # Ours makes its state later, so it sees the parameters first: MuonAdamW routes them by their modules.
        optimizer = optimizer_class(params, **kwargs)
        optimizer.param_groups = [
            {**group, "params": [self._twin(p).host for p in group["params"]]} for group in optimizer.param_groups
        ]
        return optimizer

    @property
    def _copies(self) -> list[Twin]:
        """The parameters that are not on the host themselves, or not of the masters' dtype."""
        return [twin for twin in self._twins.values() if twin.is_copy]

    @property
    def _is_offloading(self) -> bool:
        """Whether gradients of the backward pass are taken to the host."""
        return self._offload_gradients and bool(self._copies)

    @property
    def _inner(self) -> Optimizer:
        assert self._optimizer is not None
        return self._optimizer

    # The state is that of the optimizer on the host, by our parameters. Whoever assigns to it (torch's constructor an
    # empty one, Lightning one that it moved to the parameters' device) does not change where it is.
    @property  # type: ignore[override]
    def state(self) -> dict[Any, Any]:
        """The state of each parameter, in host memory."""
        if self._optimizer is None:
            return {}
        owners = {twin.host: twin.param for twin in self._twins.values()}
        found: dict[Any, Any] = {owners.get(key, key): state for key, state in self._optimizer.state.items()}
        if not self._is_ours:  # masters are no state to it
            for p, twin in self._twins.items():
                if twin.is_master and twin.is_stepped:
                    found[p] = {**found.get(p, {}), "master_param": twin.host.detach()}
        return found

    @state.setter
    def state(self, _state: Any) -> None:
        pass

    @property
    def last_grad_norm(self) -> Tensor | None:
        """The norm that the last step with ``max_grad_norm`` found; None where the class keeps none."""
        return getattr(self._inner, "last_grad_norm", None)

    @contextmanager
    def on_host(self) -> Iterator[Optimizer]:
        """The optimizer of the given class, on the host: its parameters, with the gradients that there are.

        What is written to its parameters goes to ours afterwards.

        For what else the class does, such as ``update_hessian`` of SophiaG, and to clip gradients that
        ``offload_gradients`` has taken to the host. Others are to be clipped as ``p.grad``, which the step fetches.

        Raises:
            RuntimeError, ValueError: a parameter that was moved to another device, or became one of another dtype or
                shape, or a sparse gradient.

        Example:
            >>> from ferrostep.optim import AdamW
            >>> p = torch.nn.Parameter(torch.ones(3))
            >>> optimizer = HostOptimizer([p], AdamW, offload_gradients=True)
            >>> p.sum().backward()
            >>> with optimizer.on_host() as host:
            ...     params = [p for group in host.param_groups for p in group["params"]]
            ...     norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
            >>> norm
            tensor(1.7321)
        """
        self._fetch()
        try:
            with self._with_twins() as inner:
                yield inner
        finally:
            for twin in self._copies:
                if twin.is_written:
                    twin.send()

    def _fetch(self) -> None:
        """Have all gradients on the host, and the weights that others have written."""
        for number, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                twin = self._twins.get(p)
                if twin is None:  # put there in the place of another, as for sharding
                    twin = self._twin(p)
                    self._watch([twin])
                twin.check(number, i)
        for twin in self._copies:
            twin.fetch()
        for device in {twin.device for twin in self._copies}:
            transfers_of(device).wait()
        for twin in self._copies:
            twin.receive()

    @contextmanager
    def _with_twins(self) -> Iterator[Optimizer]:
        """The optimizer on the host, with our groups but for their parameters; what it writes there is ours, too."""
        inner, groups = self._inner, self.param_groups
        inner.param_groups = [
            {**group, "params": [self._twins[p].host for p in group["params"]] if self._copies else group["params"]}
            for group in groups
        ]
        try:
            yield inner
        finally:
            for group, its in zip(groups, inner.param_groups, strict=False):  # it may have got one more
                for name in group.keys() - its.keys():
                    del group[name]
                group.update({**its, "params": group["params"]})

    def step(self, closure: Callable[[], float] | None = None, **kwargs: Any) -> float | None:  # type: ignore[override]
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss, which is then the result.
            **kwargs: for the ``step`` of the class.

        Raises:
            RuntimeError, ValueError: a parameter was moved to another device, or became one of another dtype or shape;
                nothing has been changed then.
            TypeError, ValueError: as the class raises.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self.on_host() as inner:
            _core.complete(partial(inner.step, **kwargs), self._settle)
        return loss

    def _settle(self, _loss: Any) -> None:
        """Send what a step has made, and forget the gradients that it took; may be done twice."""
        for twin in self._copies:
            if twin.has_gradient:
                twin.send()
                twin.forget()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, those that were taken to the host, too.

        Args:
            set_to_none: drop gradients (True, default) or fill those that parameters have with zeros.

        Raises:
            RuntimeError: a gradient that cannot be written, as torch.
        """
        super().zero_grad(set_to_none)
        for twin in self._copies:
            twin.forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group.

        Args:
            param_group: a dict with ``params``, of shapes and dtypes that the class takes, and arguments of the class.

        Raises:
            ValueError, TypeError, RuntimeError: what the class refuses; the group is not added then.
        """
        if self._optimizer is None:  # torch's constructor
            return super().add_param_group(param_group)
        before = dict(self._twins)
        try:
            with self._with_twins() as inner:
                inner.add_param_group(self._hosted_one(param_group))
        except BaseException:
            self._twins = before
            raise
        self.param_groups += map(self._owned, inner.param_groups[len(self.param_groups) :])
        self._watch(twin for p, twin in self._twins.items() if p not in before)
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class, or of the class of the optimizer on the host.

        Args:
            state_dict: masters that it lacks are made of the parameters; those that it has count where a parameter is
                what they round to, so load the model's weights, too.

        Raises:
            ValueError, KeyError: as the class raises; nothing has been changed then.
        """
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        masters = self._keep_masters(state_dict) if self._is_ours else self._take_masters(state_dict)
        with self._with_twins() as inner:
            inner.load_state_dict(state_dict)
        for twin, master in masters:
            twin.load(master)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _keep_masters(self, state_dict: dict[str, Any]) -> list[tuple[Twin, Tensor]]:
        """Leave it to the groups whether there are masters: a checkpoint of the class may be of a time without."""
        groups = state_dict["param_groups"]
        if len(groups) == len(self.param_groups):
            pairs = zip(groups, self.param_groups, strict=True)
            state_dict["param_groups"] = [{**saved, "master_weights": own["master_weights"]} for saved, own in pairs]
        return []

    def _take_masters(self, state_dict: dict[str, Any]) -> list[tuple[Twin, Tensor]]:
        """Take the masters, which to a class of others are parameters, out of a state dict, and check them."""
        states = {key: dict(state) for key, state in state_dict["state"].items()}
        state_dict["state"] = states
        masters = []
        for number, (saved, own) in enumerate(zip(state_dict["param_groups"], self.param_groups, strict=False)):
            for i, (key, p) in enumerate(zip(saved["params"], own["params"], strict=False)):
                master = states.get(key, {}).pop("master_param", None)
                if master is not None and self._twins[p].is_master:
                    if master.shape != p.shape:
                        place = f"master_param of parameter {i} in group {number}"
                        raise Problem.SHAPE.of(place, list(master.shape), list(p.shape))
                    masters.append((self._twins[p], master))
        return masters

    def _hosted(self, params: Any) -> Any:
        """The parameters or groups with what stands for the parameters on the host; what is neither as it is."""
        if isinstance(params, (Tensor, set, nn.Module)) or not isinstance(params, Iterable):
            return params
        return [self._hosted_one(entry) for entry in params]

    def _hosted_one(self, entry: Any) -> Any:
        match entry:
            case Tensor():
                return self._twin(entry).host
            case (str() as name, Tensor() as p):
                return name, self._twin(p).host
            case {"params": Tensor() as p}:
                return {**entry, "params": [self._twin(p).host]}
            case {"params": params}:
                return {**entry, "params": self._hosted(params)}
        return entry

    def _twin(self, p: Tensor) -> Twin:
        if p not in self._twins:
            is_master = has_16_bits(p) and self._master_dtype is not None and not self._is_ours
            self._twins[p] = Twin(p, torch.float32 if is_master else p.dtype, casts=not self._is_ours)
        return self._twins[p]

    def _owned(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group of the optimizer on the host with our parameters."""
        owners = {twin.host: twin.param for twin in self._twins.values()}
        for p in group["params"]:
            if p not in owners and self._twin(p).is_copy:
                raise ValueError(
                    f"the optimizer class found parameters by itself, of which one is on {p.device}; give them to "
                    "HostOptimizer by name or in groups"
                )
        return {**group, "params": [owners.get(p, p) for p in group["params"]]}

    def _watch(self, twins: Iterable[Twin]) -> None:
        """Take gradients to the host as they arrive."""
        optimizer = weakref.ref(self)

        def arrive(p: Tensor) -> None:
            owner = optimizer()
            if owner is not None and p in owner._twins:
                owner._twins[p].arrive()

        for twin in twins:
            if self._offload_gradients and twin.is_copy and twin.param.requires_grad:
                twin.param.register_post_accumulate_grad_hook(arrive)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        own = ("defaults", "param_groups", "_is_ours", "_master_dtype", "_offload_gradients", "_twins", "_optimizer")
        return {name: self.__dict__[name] for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch(self._twins.values())


def check_names(kwargs: Iterable[str], optimizer_class: type[Optimizer]) -> None:
    """Raise TypeError for what is no argument of the class, but nearly one of ours."""
    theirs = inspect.signature(optimizer_class).parameters
    for name in kwargs:
        if name not in theirs and mistaken_entry(name, OWN_ARGUMENTS):
            raise unexpected("HostOptimizer", name, OWN_ARGUMENTS)


def check_class(optimizer_class: object) -> None:
    """Raise TypeError for what is no class of optimizers, or one that steps by its closure."""
    expected = "a subclass of torch.optim.Optimizer"
    if not isinstance(optimizer_class, type):
        raise wrong_kind("optimizer_class", optimizer_class, expected)
    name = optimizer_class.__qualname__
    if not issubclass(optimizer_class, Optimizer):
        raise TypeError(f"optimizer_class is {name}, expected {expected}")
    if issubclass(optimizer_class, HostOptimizer):
        raise TypeError(f"optimizer_class is {name}, expected the class of the optimizer on the host")
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(f"optimizer_class is {name}, expected one whose step needs no closure")
