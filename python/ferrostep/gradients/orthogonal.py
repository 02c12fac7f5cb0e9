"""O-DICE's orthogonal gradient (arXiv 2402.00348, section 3): the backward one without what the forward has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ferrostep import _core
from ferrostep.curvature.products import check_reached
from ferrostep.gradients.lists import Gradient, elsewhere, settle, written
from ferrostep.numpy.arrays import listed
from ferrostep.reference import checks
from ferrostep.reference import gradients as reference


def orthogonal_(
    backward: Gradient,
    forward: Gradient,
    *,
    scale: float = 1.0,
    eps: float = 1e-10,
    per_tensor: bool = False,
) -> float | list[float]:
    """Take out of a gradient what lies along another: ``backward <- scale * (backward - kappa * forward)``, in place.

    ``kappa = <forward, backward> / max(<forward, forward>, eps)``. Where ``<forward, forward> < eps`` less is taken
    out, nothing where it is 0; a NaN or infinity anywhere reaches every element (of its place, with ``per_tensor``).

    Args:
        backward: changed in place; where it has None and ``forward`` has not, the list gets a new tensor. A tuple, as
            ``torch.autograd.grad`` gives it, cannot: TypeError.
        forward: only read; of the same shapes and dtypes, see the module.
        scale: of the result. Default 1.
        eps: least divisor. Default 1e-10, as O-DICE's code.
        per_tensor: a kappa for each tensor instead of one for all. Default False.

    Returns:
        kappa; with ``per_tensor`` one for each place.

    Raises:
        TypeError, ValueError, RuntimeError: lists that do not go together, a tensor that cannot be read or written, or
            an impossible number. Nothing has been changed then.

    Example:
        >>> backward = [torch.tensor([1.0, 1.0])]
        >>> orthogonal_(backward, [torch.tensor([2.0, 0.0])])
        0.5
        >>> backward
        [tensor([0., 1.])]
    """
    forwards = listed("forward", forward)
    to = written("backward", backward, [forwards], torch.zeros_like)
    options: dict[str, Any] = {"scale": scale, "eps": eps, "per_tensor": per_tensor}
    call: Callable[[], list[float]]
    if elsewhere({"forward": forwards, "backward": to}, written=["backward"]):
        values: list[Tensor | None] = [None] * len(to)
        call = partial(reference.projected, values, forwards, to, **options)
    else:
        values = to
        call = partial(_core.orthogonal, forwards, to, **options, threads=torch.get_num_threads())
    return _kappa(_core.complete(call, lambda _: settle(backward, values)), per_tensor)


def orthogonal_combine_(
    out: Gradient,
    forward: Gradient,
    backward: Gradient,
    *,
    eta: float = 1.0,
    eps: float = 1e-10,
    per_tensor: bool = False,
) -> float | list[float]:
    """Add both gradients, the backward one projected: ``out += forward + eta * (backward - kappa * forward)``.

    Args:
        out: changed in place; where it has None and another list has not, it gets a new tensor, as of
            :func:`orthogonal_`.
        forward, backward: only read; of the same shapes and dtypes, see the module.
        eta: the weight of the projected gradient. Default 1.
        eps, per_tensor: as of :func:`orthogonal_`.

    Returns:
        kappa, as :func:`orthogonal_` does.

    Raises:
        TypeError, ValueError, RuntimeError: as of :func:`orthogonal_`; nothing has been changed then.

    Example:
        >>> out = [torch.zeros(2)]
        >>> orthogonal_combine_(out, [torch.tensor([2.0, 0.0])], [torch.tensor([1.0, 1.0])])
        0.5
        >>> out
        [tensor([2., 1.])]
    """
    forwards, backwards = listed("forward", forward), listed("backward", backward)
    to = written("out", out, [forwards, backwards], torch.zeros_like)
    call, values = _combined(to, to, forwards, backwards, eta, eps, per_tensor, False)
    kappas = _core.complete(call, lambda _: settle(out, values))
    assert kappas is not None
    return _kappa(kappas, per_tensor)


class OrthogonalGradient:
    """Steps any torch optimizer with ``extra + forward + eta * (backward - kappa * forward)``.

    The three are the gradients of three losses; kappa is taken over all parameters of the optimizer together, and the
    two gradients are evaluated apart: the difference of two sums of them loses the smaller one (O-DICE, arXiv
    2402.00348, section 3).

    With accumulation, ``backward`` for each micro-batch (its losses divided by their number), then ``combine`` and
    ``optimizer.step()``. With a GradScaler, scaled losses (which change kappa only where ``eps`` does, as
    ``<forward, forward>`` is scaled too)::

        orthogonal.backward(scaler.scale(forward_loss), scaler.scale(backward_loss))
        orthogonal.combine()
        scaler.step(optimizer)
        scaler.update()

    Args:
        optimizer: whose parameters, of any shape and floating-point or complex dtype, get the gradients.
        eta: the weight of the projected gradient. Default 1.
        eps, per_tensor: as of :func:`orthogonal_`.
        skip_nonfinite: with a NaN or infinity in any gradient, leave every ``p.grad`` unset and do not step. Default
            False. Not with a GradScaler: it skips such steps itself, and must see the gradients to lower its scale.

    Example:
        >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> orthogonal = OrthogonalGradient(torch.optim.SGD([w], lr=0.5))
        >>> orthogonal.step(forward_loss=w[0] ** 2, backward_loss=w.sum())
        0.5
        >>> w.detach()
        tensor([0.0000, 0.5000])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        eta: float = 1.0,
        eps: float = 1e-10,
        per_tensor: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.eta = eta
        self.eps = eps
        self.per_tensor = per_tensor
        self.skip_nonfinite = skip_nonfinite
        self._gradients: list[list[Tensor | None]] | None = None

    def backward(self, forward_loss: Tensor, backward_loss: Tensor, extra_loss: Tensor | None = None) -> None:
        """Evaluate the gradients and keep them, added to those that are kept already.

        Frees the graph of the last loss, with what the others share with it; the rest goes with the losses.

        Args:
            forward_loss, backward_loss, extra_loss: as of :meth:`step`; tensors of shape () with their graphs.

        Raises:
            TypeError: a loss is no tensor.
            RuntimeError: a loss reaches none of the parameters, or lacks some of them and went through
                ``torch.utils.checkpoint`` with ``use_reentrant=True``.
        """
        losses = {"forward_loss": forward_loss, "backward_loss": backward_loss}
        if extra_loss is not None:
            losses["extra_loss"] = extra_loss
        for name, loss in losses.items():
            checks.tensor(name, loss)
        params = self._params()
        if not params:
            raise RuntimeError("no parameter of the optimizer requires gradients")
        found: list[list[Tensor | None]] = []
        for i, (name, loss) in enumerate(losses.items()):
            found.append(list(torch.autograd.grad(loss, params, retain_graph=i + 1 < len(losses), allow_unused=True)))
            check_reached(name, loss, found[-1])
        if extra_loss is None:
            found.append([None] * len(params))
        if self._gradients is None:
            self._gradients = found
            return
        self._gradients = [
            [a if b is None else b if a is None else a + b for a, b in zip(kept, more, strict=True)]
            for kept, more in zip(self._gradients, found, strict=True)
        ]

    @torch.no_grad()
    def combine(self) -> float | list[float] | None:
        """Write every ``p.grad`` (over what was there) from the kept gradients, and forget them.

        Returns:
            kappa, as :func:`orthogonal_` does; None where ``skip_nonfinite`` left every ``p.grad`` unset.

        Raises:
            RuntimeError: there are no gradients: :meth:`backward` has not been called.
        """
        if self._gradients is None:
            raise RuntimeError("no gradients to combine: call backward(forward_loss, backward_loss) first")
        forward, backward, extra = self._gradients
        # Not into what autograd gave: one tensor may be the gradient of two parameters.
        out = [
            next((_place(p, gradient) for gradient in found if gradient is not None), None)
            for p, *found in zip(self._params(), forward, backward, extra, strict=True)
        ]
        call, values = _combined(
            out, extra, forward, backward, self.eta, self.eps, self.per_tensor, self.skip_nonfinite
        )
        kappas = _core.complete(call, lambda kappas: self._hand_over(out, values, skip=kappas is None))
        return None if kappas is None else _kappa(kappas, self.per_tensor)

    def _hand_over(self, out: list[Tensor | None], values: list[Tensor | None], *, skip: bool) -> None:
        settle(out, values)
        for p, g in zip(self._params(), out, strict=True):
            p.grad = None if skip else g
        self._gradients = None

    def step(
        self, forward_loss: Tensor, backward_loss: Tensor, extra_loss: Tensor | None = None
    ) -> float | list[float] | None:
        """:meth:`backward`, :meth:`combine`, and the optimizer's step unless that skips.

        Args:
            forward_loss: a tensor of shape () with its graph; its gradient keeps its direction.
            backward_loss: likewise; its gradient is projected.
            extra_loss: likewise; its gradient is added as it is. Default None.

        Returns:
            As :meth:`combine`.

        Raises:
            TypeError, ValueError, RuntimeError: as of :meth:`backward` and :meth:`combine`.
        """
        self.backward(forward_loss, backward_loss, extra_loss)
        kappa = self.combine()
        if kappa is not None:
            self.optimizer.step()
        return kappa

    def _params(self) -> list[Tensor]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]


def _place(p: Tensor, gradient: Tensor) -> Tensor:
    """Where the new gradient goes; with ``p.grad_dtype`` it may be of another dtype than the parameter."""
    if p.grad is None or p.grad.requires_grad or p.grad.dtype != gradient.dtype:
        return torch.empty_like(p, dtype=gradient.dtype)
    return p.grad


def _combined(
    out: list[Tensor | None],
    extra: list[Tensor | None],
    forward: list[Tensor | None],
    backward: list[Tensor | None],
    eta: float,
    eps: float,
    per_tensor: bool,
    skip_nonfinite: bool,
) -> tuple[Callable[[], list[float] | None], list[Tensor | None]]:
    """What computes kappa and the combination, and the list that has it then: ``out``, elsewhere a new one."""
    options: dict[str, Any] = {
        "eta": eta,
        "eps": eps,
        "per_tensor": per_tensor,
        "skip_nonfinite": skip_nonfinite,
    }
    if elsewhere({"out": out, "extra": extra, "forward": forward, "backward": backward}, written=["out"]):
        values: list[Tensor | None] = [None] * len(out)
        return partial(reference.combined, values, extra, forward, backward, **options), values
    threads = torch.get_num_threads()
    return partial(_core.orthogonal_combine, extra, forward, backward, out, **options, threads=threads), out


def _kappa(kappas: Sequence[float], per_tensor: bool) -> float | list[float]:
    if per_tensor:
        return list(kappas)
    return kappas[0] if kappas else 0.0
