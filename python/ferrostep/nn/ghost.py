"""Batch normalization over parts of a batch (Hoffer, Hubara and Soudry 2017, arXiv 1705.08741)."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ferrostep import _core
from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.maps import is_direct
from ferrostep.numpy.arrays import whole
from ferrostep.reference import checks
from ferrostep.reference import ghost as reference
from ferrostep.suggestions import suggesting

MomentumPer: TypeAlias = Literal["ghost", "batch"]
M = TypeVar("M", bound=nn.Module)


class _Normalized(torch.autograd.Function):
    """:func:`ferrostep.reference.ghost.normalized` by the kernel, which also writes the statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float, statistics: Tensor
    ) -> Tensor:
        out, threads = torch.empty_like(x), torch.get_num_threads()
        _core.ghost_norm(x, out, (weight, bias), statistics, size=size, eps=eps, threads=threads)
        ctx.save_for_backward(x, weight)  # the bias may change before the backward pass, as with torch's layer
        ctx.statistics, ctx.size, ctx.eps, ctx.bias_dtype = statistics, size, eps, None if bias is None else bias.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_direct(grad):  # the derivative is to have one, too
            return *_differentiable(x, weight, ctx, grad), None, None, None
        out = torch.empty_like(x)
        by_weight = None if weight is None else torch.empty_like(weight)
        by_bias = None if ctx.bias_dtype is None else torch.empty(x.shape[1], dtype=ctx.bias_dtype)
        of, threads = (x, grad, out, weight, ctx.statistics, (by_weight, by_bias)), torch.get_num_threads()
        _core.ghost_norm_backward(*of, size=ctx.size, threads=threads)
        return out, by_weight, by_bias, None, None, None


def _differentiable(x: Tensor, weight: Tensor | None, ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """The derivatives in plain torch, with a graph of their own.

    By aliases: what one of the tensors is to another, and their hooks, is the outer graph's. Any bias will do.
    """
    with torch.enable_grad():
        dtype = ctx.bias_dtype
        bias = None if dtype is None else x.new_zeros(x.shape[1], dtype=dtype).requires_grad_()
        weight, bias = (None if each is None else each.view_as(each) for each in (weight, bias))
        x = x.view_as(x)
        out = reference.normalized(x, weight, bias, ctx.size, ctx.eps, tracked=False)[0]
    asked = [each if needed else None for each, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False)]
    inputs = [each for each in asked if each is not None]
    found = iter(torch.autograd.grad(out, inputs, grad, create_graph=torch.is_grad_enabled()))
    return [None if each is None else next(found) for each in asked]


@suggesting
class _GhostBatchNorm(_BatchNorm):
    """What the three share."""

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        momentum_per: MomentumPer = "ghost",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:
            self.register_parameter("bias", None)
        self.ghost_size = whole("ghost_size", ghost_size, 1)
        if momentum_per not in ("ghost", "batch"):
            raise wrong_choice("momentum_per", momentum_per, "ghost", "batch")
        self.momentum_per = momentum_per
        check_momentum(momentum, momentum_per)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize: each ghost by its own statistics in training, all by the running ones in evaluation.

        Args:
            input: as of torch's layer of the same dimensions.

        Raises:
            ValueError: another number of dimensions or channels.
        """
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        is_normalized_by_itself = self.training or self.running_mean is None
        if len(input) < 2 * self.ghost_size or not is_normalized_by_itself or not input.numel():
            return super().forward(input)
        check_momentum(self.momentum, self.momentum_per)  # which may be set at any time
        if input.shape[1] != self.num_features:
            raise Problem.SHAPE.of("input", list(input.shape), f"{self.num_features} channels")
        of = input, self.weight, self.bias, self.ghost_size, self.eps
        tracked = self.training and self.track_running_stats
        if self._is_ours(input):
            found = torch.empty(3, len(input) // self.ghost_size, self.num_features, dtype=torch.float64)
            normalized: Tensor = _Normalized.apply(*of, found)
            if tracked:
                self._follow(found)
            return normalized
        normalized, *statistics = reference.normalized(*of, tracked=tracked)
        if tracked:
            self._update(*statistics)
        return normalized

    def _is_ours(self, input: Tensor) -> bool:
        """Whether the kernel takes it.

        One element alone has no variance, eps is to be positive, shapes to be right: torch knows the words for these.
        """
        if self.ghost_size * math.prod(input.shape[2:]) == 1 or not self.eps > 0:
            return False
        of_channels = (self.weight, self.bias, self.running_mean, self.running_var)
        own = [each for each in of_channels if each is not None]
        has_shapes = all(each.shape == (self.num_features,) for each in own)
        return has_shapes and checks.is_plain(input) and is_direct(input, *own)

    def _follow(self, statistics: Tensor) -> None:
        """Take the statistics of the ghosts, one after the other, into the running ones, by the kernel."""
        counted, ghosts = self.num_batches_tracked, statistics.shape[1]
        momentum, before = self._momentum_of(ghosts), 0.0
        if momentum is None:  # the mean of all ghosts so far, of which somebody has to know how many they are
            if counted is None:
                return
            before = float(counted)
        if counted is not None:
            counted.add_(ghosts)
        _core.ghost_follow((self.running_mean, self.running_var), statistics, momentum=momentum, counted=before)

    def _momentum_of(self, ghosts: int) -> float | None:
        """By how much each ghost of a batch moves the running statistics; None makes them means."""
        if self.momentum is None or self.momentum_per == "ghost":
            return self.momentum
        per_ghost: float = 1 - (1 - self.momentum) ** (1 / ghosts)
        return per_ghost

    @torch.no_grad()
    def _update(self, means: Tensor, variances: Tensor) -> None:
        """The same in plain torch, of means and variances."""
        ghosts = len(means)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += ghosts
        per_ghost = self._momentum_of(ghosts)
        if per_ghost is None:  # the mean of all ghosts so far
            if self.num_batches_tracked is None:
                return
            share = (1 / self.num_batches_tracked).to(means)
            kept: Tensor | float = 1 - ghosts * share
            shares = share.expand(ghosts)
        else:
            kept = (1 - per_ghost) ** ghosts
            shares = means.new_tensor([per_ghost * (1 - per_ghost) ** i for i in reversed(range(ghosts))])
        for running, own in ((self.running_mean, means), (self.running_var, variances)):
            if running is not None:
                running.mul_(kept).add_(shares @ own)

    def extra_repr(self) -> str:
        """What is special about the layer, for its repr."""
        of_torch = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{of_torch}, ghost_size={self.ghost_size}, momentum_per={self.momentum_per!r}"


def check_momentum(momentum: float | None, momentum_per: MomentumPer) -> None:
    """Refuse a momentum of a batch that none of its ghosts adds up to."""
    if momentum_per == "batch" and momentum is not None and not 0 <= momentum <= 1:
        raise Problem.NUMBER.of("momentum", momentum, "a number from 0 to 1 with momentum_per='batch'")


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """Ghost batch normalization (Hoffer, Hubara and Soudry 2017, arXiv 1705.08741) in place of ``nn.BatchNorm1d``.

    In training the batch is cut into ghosts of ``ghost_size`` consecutive samples, and each is normalized by its own
    mean and variance: a large batch is regularized as small ones are. What is left over goes to the last ghost. In
    evaluation the running statistics count, whatever the batch. The state dict is that of ``nn.BatchNorm1d``, which
    normalizes batches of less than two ghosts, too.

    On the CPU all ghosts are one call of a kernel in Rust; plain torch, ghost by ghost, elsewhere, under torch.func and
    torch.compile, and for derivatives of derivatives.

    Args:
        num_features: channels, the second dimension of inputs of shape ``(N, C)`` or ``(N, C, L)``, of any float dtype;
            float16 and bfloat16 take their statistics in float32.
        ghost_size: samples of a ghost. Default 32.
        eps, momentum, affine, track_running_stats: as of ``nn.BatchNorm1d``.
        momentum_per: the running statistics move by ``momentum`` for each ``"ghost"``, one after the other (default; so
            by ``1 - (1 - momentum) ** n`` in a batch of n), or so that it is that in each ``"batch"``.
        bias: whether there is one beside the weight. Default True.
        device, dtype: as of torch.

    Raises:
        TypeError, ValueError: ``ghost_size`` is no whole number of at least 1, ``momentum_per`` none of the words, or
            ``momentum`` not from 0 to 1 with ``momentum_per="batch"``.

    Example:
        >>> layer = GhostBatchNorm1d(1, ghost_size=2, affine=False)
        >>> layer(torch.tensor([[1.0], [3.0], [5.0], [11.0]])).flatten()
        tensor([-1.0000,  1.0000, -1.0000,  1.0000])
        >>> layer.running_mean
        tensor([0.9800])
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Ghost batch normalization in place of ``nn.BatchNorm2d``, as :class:`GhostBatchNorm1d`.

    Args:
        num_features: channels, the second dimension of inputs of shape ``(N, C, H, W)``, of any float dtype.
        ghost_size, eps, momentum, affine, track_running_stats, momentum_per, bias: as of
            :class:`GhostBatchNorm1d`.
        device, dtype: as of torch.

    Raises:
        TypeError, ValueError: as of :class:`GhostBatchNorm1d`.

    Example:
        >>> GhostBatchNorm2d(3, ghost_size=16)(torch.zeros(64, 3, 8, 8)).shape
        torch.Size([64, 3, 8, 8])
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch normalization in place of ``nn.BatchNorm3d``, as :class:`GhostBatchNorm1d`.

    Args:
        num_features: channels, the second dimension of inputs of shape ``(N, C, D, H, W)``, of any float dtype.
        ghost_size, eps, momentum, affine, track_running_stats, momentum_per, bias: as of
            :class:`GhostBatchNorm1d`.
        device, dtype: as of torch.

    Raises:
        TypeError, ValueError: as of :class:`GhostBatchNorm1d`.

    Example:
        >>> GhostBatchNorm3d(3, ghost_size=16)(torch.zeros(64, 3, 2, 2, 2)).shape
        torch.Size([64, 3, 2, 2, 2])
    """


GHOSTS: dict[type[_BatchNorm], type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


@suggesting
def convert_ghost_batchnorm(module: M, ghost_size: int = 32, momentum_per: MomentumPer = "ghost") -> M:
    """Turn the batch normalizations of a module into ghost ones, in place: parameters and statistics stay.

    Args:
        module: any module; its layers of the very classes ``nn.BatchNorm1d``, ``2d`` and ``3d`` are converted.
        ghost_size, momentum_per: as of :class:`GhostBatchNorm1d`; converted layers take them anew.

    Returns:
        The module.

    Raises:
        TypeError, ValueError: no module, impossible arguments, a layer whose momentum does not go with
            ``momentum_per="batch"``, or a ``SyncBatchNorm``, whose statistics are those of all ranks; nothing has been
            changed then.

    Example:
        >>> convert_ghost_batchnorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), ghost_size=8)[1].ghost_size
        8
    """
    if not isinstance(module, nn.Module):
        raise wrong_kind("module", module, "a torch.nn.Module")
    like = GhostBatchNorm1d(1, ghost_size, momentum_per=momentum_per)
    for name, each in module.named_modules():
        if isinstance(each, nn.SyncBatchNorm):
            raise TypeError(f"{name or 'module'} is a SyncBatchNorm, which is the opposite: statistics of all ranks")
        if type(each) in GHOSTS or isinstance(each, _GhostBatchNorm):
            check_momentum(each.momentum, momentum_per)
    for each in module.modules():
        if type(each) in GHOSTS:
            each.__class__ = GHOSTS[type(each)]  # type: ignore[index]
        if isinstance(each, _GhostBatchNorm):
            each.ghost_size, each.momentum_per = like.ghost_size, like.momentum_per
    return module
