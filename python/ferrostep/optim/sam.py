"""Sharpness-aware minimization around any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from ferrostep import _core, reference
from ferrostep.errors import wrong_kind
from ferrostep.numpy.arrays import truth
from ferrostep.optim import shards
from ferrostep.optim.agreement import agreed, interrupts_held
from ferrostep.optim.base import between_hooks, without_dynamo
from ferrostep.optim.gathered import Found, Gathered, check_place
from ferrostep.optim.release import frees_gradients, refusal
from ferrostep.optim.rules import ElementwiseRule
from ferrostep.optim.scratch import Scratch
from ferrostep.optim.taken import Taken
from ferrostep.reference import checks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ASCENT = ElementwiseRule("Ascent", reference.ascent, summed=reference.ascent_sum)
OPTIONS = {"max_grad_norm": None, "skip_nonfinite": False, "differentiable": False, "fused": None, "seed": 0}
"""What a step asks of a group, for one of any optimizer."""


class SAM(Optimizer):
    r"""Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412), and ASAM (arXiv 2102.11600).

    .. code-block:: text

        w' <- w + rho * g / (norm(g) + 1e-12)                       g at w, the norm over all parameters
        w' <- w + rho * w^2 * g / (norm(w * g) + 1e-12)             with adaptive
        w  <- the base optimizer's step from w, with the gradient at w'

    A step takes two gradients: :meth:`step` asks a closure for both; or, as other implementations have it,

    .. code-block:: python

        loss_fn(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        loss_fn(model(x), y).backward()
        optimizer.second_step(zero_grad=True)

    The weights come back with every bit. What layers keep of batches (the statistics of batch normalization) sees both
    passes, and dropout drops other elements in each.

    Args:
        base_optimizer: an optimizer of this package, of ``torch.optim`` or of another one, whose ``step`` needs no
            closure. ``param_groups``, ``state``, ``defaults`` and state dicts are its own, so schedulers and
            checkpoints see it.
        rho: the distance of w' from w. Default 0.05; with ``adaptive`` ten times as much is usual.
        adaptive: ASAM: the way scales with the weights. Default False.

    ``rho`` and ``adaptive`` are attributes that may be changed between steps. Hooks of steps and of state dicts may be
    registered here or with the base optimizer. Between the first and the second step a
    copy of the weights is kept; nothing else.

    Raises:
        TypeError: ``base_optimizer`` is no optimizer, or ``rho`` no number.
        ValueError: ``rho`` is negative, infinite or NaN.

    Example:
        >>> import torch
        >>> from ferrostep.optim import AdamW
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SAM(AdamW([w], lr=0.1, weight_decay=0.0), rho=0.5)
        >>> def closure():
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), w.grad, w.detach()
        (12.5, tensor([3.3000, 4.4000]), tensor([2.9000, 3.9000]))
    """

    def __init__(self, base_optimizer: Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        if not isinstance(base_optimizer, Optimizer):
            raise wrong_kind("base_optimizer", base_optimizer, "a torch.optim.Optimizer")
        self.rho = rho
        self.adaptive = truth("adaptive", adaptive)
        self._weights: dict[Tensor, Tensor] | None = None  # between both steps the weights to go back to
        self._base: Optimizer | None = None
        super().__init__([dict(group) for group in base_optimizer.param_groups], base_optimizer.defaults)
        self._base = base_optimizer

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.base_optimizer, self.rho, self.adaptive), {"_weights": self._weights}

    @property
    def rho(self) -> float:
        """The distance of w' from w."""
        return self._rho

    @rho.setter
    def rho(self, rho: float) -> None:
        checks.at_least_zero(rho=rho)
        self._rho = rho

    @property
    def base_optimizer(self) -> Optimizer:
        """The optimizer that takes the steps."""
        assert self._base is not None
        return self._base

    # Those of the base optimizer; torch's constructor assigns some before there is one.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's."""
        groups: list[dict[str, Any]] = self.__dict__["_groups"] if self._base is None else self._base.param_groups
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self._base is None:
            self.__dict__["_groups"] = groups
        else:
            self._base.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's."""
        return {} if self._base is None else self._base.state

    @state.setter
    def state(self, state: Any) -> None:
        if self._base is not None:
            self._base.state = state

    @property
    def last_grad_norm(self) -> Tensor | None:
        """The base optimizer's, of the gradients near the weights; None where it keeps none."""
        return getattr(self.base_optimizer, "last_grad_norm", None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the base optimizer.

        Args:
            param_group: as the base optimizer takes it.

        Raises:
            ValueError, TypeError, RuntimeError: as the base optimizer does.
        """
        if self._base is None:
            super().add_param_group(param_group)
        else:
            self._base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's."""
        return between_hooks(self, self.base_optimizer.state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of the base optimizer's class.

        Args:
            state_dict: as the base optimizer takes it.

        Raises:
            ValueError, KeyError: as the base optimizer does.
        """
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        self.base_optimizer.load_state_dict(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that ``closure`` finds at the weights and near them.

        Args:
            closure: evaluates the model, calls ``backward`` and returns the loss. Gradients are zeroed before each of
                its two calls.

        Returns:
            The loss at the weights.

        Raises:
            TypeError: there is no closure.
            RuntimeError: the second step of before is missing.
            Exception: what the closure or the base optimizer raises; the weights are as they were before then, unless
                the latter has changed them.
        """
        if closure is None:
            raise TypeError("SAM.step needs a closure, as it takes two gradients; or call first_step and second_step")
        self._check_not_attached()
        self._check_is_at_the_weights()
        evaluate = torch.enable_grad()(closure)
        self.zero_grad()
        loss = evaluate()
        error = _core.complete(partial(self._look_around, evaluate), self._restore)
        if error is not None:
            raise error
        self.base_optimizer.step()
        return loss

    def _look_around(self, evaluate: Callable[[], Any]) -> BaseException | None:
        """Take the gradient near the weights. What comes in between is returned: the weights are to come back first."""
        try:
            self.first_step(zero_grad=True)
            evaluate()
            return None
        except BaseException as error:
            return error

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Go from the weights to the point near them where the loss is about the greatest.

        Args:
            zero_grad: zero the gradients afterwards. Default False.

        Raises:
            RuntimeError: the second step of before is missing, or a tensor that cannot be updated. Nothing has been
                changed then.
            ValueError, TypeError: also such a tensor.
        """
        self._check_not_attached()
        self._check_is_at_the_weights()
        self._ascend()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Go back to the weights, and take the base optimizer's step with the gradients that there are.

        Args:
            zero_grad: zero the gradients afterwards. Default False.

        Raises:
            RuntimeError: the first step is missing.
            Exception: what the base optimizer raises; the weights are back then.
        """
        if self._weights is None:
            raise RuntimeError("second_step was called without first_step")
        self._restore()
        self.base_optimizer.step()
        self._opt_called = True  # without `step`, schedulers would warn that there was none
        if zero_grad:
            self.zero_grad()

    def attach(self) -> NoReturn:
        """Not for SAM.

        Raises:
            RuntimeError: always, and says why.
        """
        raise refusal("SAM", "a step takes the gradients of two backward passes, and the first is to know their norm")

    def _check_not_attached(self) -> None:
        """Raise RuntimeError where the base optimizer would take the first gradients for its own."""
        if getattr(self.base_optimizer, "_release", None) is not None:
            self.attach()
        if frees_gradients(self.base_optimizer):
            raise RuntimeError(
                "SAM does not support offload_gradients=True: a step takes the gradients of two backward passes, and "
                "on the host they would be added up"
            )

    def _check_is_at_the_weights(self) -> None:
        if self._weights is not None:
            raise RuntimeError("first_step was called twice without second_step")

    @without_dynamo
    def _ascend(self) -> None:
        groups = shards.who_share(self.param_groups)
        with interrupts_held(groups):
            self._ascend_with(groups)

    def _ascend_with(self, groups: list[ProcessGroup]) -> None:
        """The same with the ranks of process groups."""
        weights: dict[Tensor, Tensor] = {}
        taken = agreed(groups, partial(self._take, weights))
        threads = torch.get_num_threads()
        taken.know(threads)
        self._weights = weights
        try:
            taken.run(threads)
        finally:
            if not taken.batch.finished:
                self._weights = None

    def _take(self, weights: dict[Tensor, Tensor]) -> Taken:
        """What the way up has to do; copies of the weights that it changes go to ``weights``."""
        taken = Taken(_core.Known(), Scratch())
        for number, group in enumerate(self.param_groups):
            backend = group.get("backend", "auto")
            asked = {**OPTIONS, "backend": backend, "params": group["params"]}
            on_cpu, others = _core.with_gradient(group["params"], backend == "reference")
            for found, add in ((on_cpu, taken.add), (others, taken.add_elsewhere)):
                if not found[0]:
                    continue
                if found is others:
                    check_place(number, asked, Found(*others))
                gathered = self._gather(number, asked, Found(*found))
                add(gathered, needs_matrices=False)
                weights.update(zip(gathered.params, gathered.columns["old_p"], strict=True))
        return taken

    def _gather(self, number: int, group: dict[str, Any], found: Found) -> Gathered:
        hyperparameters = {"rho": self.rho, "adaptive": self.adaptive}
        rule = ASCENT.of(hyperparameters)._replace(scope="all")
        weights = [p.detach().clone(memory_format=torch.preserve_format) for p in found.params]
        return Gathered(number, group, rule, "nearest", *found, {"old_p": weights})

    @torch.no_grad()
    def _restore(self, _error: object = None) -> None:
        for p, weights in (self._weights or {}).items():
            p.copy_(weights)
        self._weights = None
