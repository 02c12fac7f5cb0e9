"""Whether a learning rate is stable on a loss, as far as its curvature tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor
from torch.optim.optimizer import Optimizer

from ferrostep.curvature import vectors
from ferrostep.curvature.dynamics import Dynamics, of_momentum, of_optimizer
from ferrostep.curvature.krylov import LanczosResult, lanczos, outermost
from ferrostep.curvature.operators import FlatParameters, RandomNumbers, finite
from ferrostep.curvature.products import HessianProduct, graph_of
from ferrostep.curvature.traces import Estimate, mean, probed, root
from ferrostep.errors import wrong_kind
from ferrostep.figures import axes
from ferrostep.numpy.arrays import real, whole
from ferrostep.suggestions import suggesting

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class BatchSharpness(NamedTuple):
    """The curvature of batches along their own gradients, of :func:`batch_sharpness`; both alike for one batch.

    Example:
        >>> BatchSharpness(mean_of_ratios=7 / 3, ratio_of_means=3.24).ratio_of_means
        3.24
    """

    mean_of_ratios: float
    """The mean of ``<g_b, H_b g_b> / norm(g_b)^2`` over the batches b."""
    ratio_of_means: float
    """The sum of ``<g_b, H_b g_b>`` over the sum of ``norm(g_b)^2``."""


@suggesting
def batch_sharpness(
    loss_fn: Callable[..., Tensor] | Tensor, params: Iterable[Tensor], data: Iterable[Any] | None = None
) -> BatchSharpness:
    r"""The curvature of the loss of a batch along its own gradient: what settles at ``2 / lr`` under plain SGD.

    That is the edge of stochastic stability (arXiv 2412.20553). Which of both means over batches it is that settles is
    not said here: both are given. It costs one product with the Hessian for each batch.

    Args:
        loss_fn: a function that returns the mean loss, of shape (), of the batch that it is called with, or, with
            ``data`` None, of the batch at hand, without arguments (or that loss with its graph).
        params: the parameters, of any shape, of dtype float32 or float64, on one device, or (name, parameter) pairs.
        data: batches of the size that training has. Default None.

    Returns:
        Both means; NaN where a batch has no gradient to look along.

    Raises:
        TypeError, ValueError, RuntimeError: as of :func:`hvp_operator`, or a loss that is not finite.

    Example:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> samples = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        >>> found = batch_sharpness(lambda x: (x @ w) ** 2 / 2, [w], samples)
        >>> round(found.mean_of_ratios, 4), round(found.ratio_of_means, 4)
        (2.3333, 3.24)
    """
    flat = FlatParameters(params)
    numbers = RandomNumbers(flat.device)
    if data is None:
        losses: list[Any] = [loss_fn]
    elif callable(loss_fn) and not isinstance(loss_fn, Tensor):
        batches = numbers.batches(list(data) if isinstance(data, Tensor) else data)
        losses = [partial(loss_fn, batch) for batch in batches]
    else:
        raise wrong_kind("loss_fn", loss_fn, "a function of a batch")
    pairs = []
    for loss in losses:
        with numbers.again():
            product = HessianProduct(loss, flat.params)
        pairs.append(along_gradient(product, flat))
    ratios = [_ratio(curvature, square) for curvature, square in pairs]
    curvatures, squares = map(sum, zip(*pairs, strict=True))
    return BatchSharpness(sum(ratios) / len(ratios), _ratio(curvatures, squares))


def along_gradient(product: HessianProduct, flat: FlatParameters) -> tuple[float, float]:
    """``<g, H g>`` and ``norm(g)^2``, by the product with a unit vector: that with g may be too large for float32."""
    unit = flat.joined(product.gradient)
    square = finite(vectors.dot(unit, unit))
    if square:
        vectors.scale(unit, 1 / math.sqrt(square))
    along = flat.joined(product(flat.pieces(unit)))
    return finite(vectors.dot(unit, along)) * square, square


def _ratio(curvature: float, square: float) -> float:
    return curvature / square if square else math.nan


class Diagnostic(NamedTuple):
    """One line of a :class:`StabilityReport`.

    Example:
        >>> Diagnostic(30.0, 20.0, "bound", "").ratio
        1.5
    """

    value: float
    """What has been measured."""
    threshold: float
    """Where it becomes critical at this learning rate; NaN where that is not known."""
    standing: Literal["bound", "comparison", "value"]
    """``"bound"``: beyond the threshold a minimum of this curvature is not stable. ``"comparison"``: the threshold is
    where training has been seen to settle, or proven up to a constant that is not known. ``"value"``: it has none."""
    reads: str
    """What to make of it."""

    @property
    def ratio(self) -> float:
        """The value in parts of the threshold."""
        return self.value / self.threshold


@dataclass(frozen=True, eq=False)
class StabilityReport:
    """What the curvature of a loss says of a learning rate, of :func:`stability_report`.

    Attributes:
        rows: the diagnostics by name: ``sharpness``, ``batch_sharpness``, ``trace``, ``frobenius``.
        warnings: what keeps the numbers from saying what they seem to.
        products: how many products with the Hessian it took.
        lr: the learning rate.
        dynamics: name, limit of ``lr`` times curvature, and momentum of the optimizer.
        spectrum: what Lanczos iteration found, of the preconditioned Hessian if the optimizer has a preconditioner.
        trace: of the Hessian, with its standard error.
        frobenius: the Hessian's Frobenius norm, with its standard error.

    Example:
        >>> import torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> report = stability_report(lambda: (w**3).sum() / 3, [w], lr=0.25)
        >>> round(report.rows["sharpness"].ratio, 4)  # the largest eigenvalue 4, of 2 / lr = 8
        0.5
    """

    rows: dict[str, Diagnostic]
    warnings: list[str]
    products: int
    lr: float
    dynamics: Dynamics
    spectrum: LanczosResult
    trace: Estimate
    frobenius: Estimate

    def __str__(self) -> str:
        head = f"{self.dynamics.name} at lr {self.lr:g}, momentum {self.dynamics.momentum:g}; {self.products} products"
        lines = [f"{'':16}{'value':>12}{'threshold':>12}{'ratio':>8}  standing"]
        for name, row in self.rows.items():
            numbers = f"{row.value:12.4g}{row.threshold:12.4g}{row.ratio:8.3f}"
            lines.append(f"{name:16}{numbers}  {row.standing}: {row.reads}")
        return "\n".join([head, *lines, *(f"warning: {text}" for text in self.warnings)])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the ratios that there are, bounds filled and comparisons hollow (needs matplotlib: the extra ``demo``).

        Args:
            ax: axes of matplotlib to draw on; by default those of a new figure.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        ax = axes(ax)
        rows = {name: row for name, row in self.rows.items() if row.standing != "value"}
        names = list(rows)[::-1]
        bars = ax.barh(names, [rows[name].ratio for name in names], edgecolor="tab:blue")
        for name, bar in zip(names, bars, strict=True):
            bar.set_fill(rows[name].standing == "bound")
        ax.axvline(1.0, color="black", linewidth=1)
        ax.set(xlabel="part of the threshold; filled: a bound, hollow: a comparison", title=f"lr {self.lr:g}")
        return ax


@suggesting
def stability_report(
    loss_fn: Callable[[], Tensor],
    params: Iterable[Tensor],
    lr: float | None = None,
    *,
    batch_size: int | None = None,
    momentum: float = 0.0,
    optimizer: Optimizer | None = None,
    probes: int = 10,
    lanczos_steps: int = 20,
    seed: int = 0,
) -> StabilityReport:
    r"""How near a learning rate is to the curvature that it can bear: the Hessian measured, and set against thresholds.

    .. code-block:: text

        sharpness         lambda_max / (limit / lr)                 a bound around a minimum, for any batch size
                          limit 2 (1 + momentum): 2 for descent; (2 + 2 b) / (1 + 2 b) with Nesterov's momentum
        the same with Adam's D = sqrt(vhat) + eps                   a comparison: D is taken as frozen
                          of D^-1/2 H D^-1/2; limit (2 + 2 b) / (1 - b): 38 for b = 0.9
        batch_sharpness   <g, H g> / norm(g)^2 / (2 / lr)           a comparison: settles near 1 under plain SGD,
                          with momentum b near 1 - b (small batches) or 1 + b (large ones)
        trace             tr(H) / (2 B / lr)                        a bound for B = 1; seen to hold for others
        frobenius         norm_F(H) / (sqrt(B) / lr)                a comparison: a bound up to an unknown constant

    They are of an interpolating minimum (arXiv 2305.17490) or of where training settles (arXiv 2412.20553, 2604.14108
    with momentum). The spectrum of one batch reaches further than that of all data; the loss of as much data as can be
    afforded is nearer to the sharpness that counts, the batch of training to the batch sharpness.

    Costs at most ``1 + probes + lanczos_steps`` products with the Hessian, of one graph, each about two backward
    passes; and memory for ``lanczos_steps + 1`` vectors of all parameters.

    Args:
        loss_fn: a function without arguments that returns the mean loss, of shape (), of a batch; called once.
        params: the parameters, of any shape, of dtype float32 or float64, on one device, or (name, parameter) pairs.
        lr: the learning rate in question; with an optimizer whose groups differ, that of its first group. Default None:
            the optimizer's. With another one than that the report is for what is given here, and warns.
        batch_size: B, the samples of a step. Default None: all, so that trace and norm have no threshold.
        momentum: of SGD, from 0 to below 1. Default 0.
        optimizer: where momentum and preconditioner are taken from: SGD, Adam, AdamW, NAdam, RMSprop, Adagrad, of torch
            or ferrostep, or AdaGradNorm, after a step at least. Weight decay does not count. Default None: SGD.
        probes: products for trace and norm, at least 1. Default 10.
        lanczos_steps: products for the sharpness, at most, at least 1. Default 20.
        seed: of the random vectors. Default 0.

    Returns:
        The report, which prints as a table.

    Raises:
        TypeError: an optimizer of another kind, whose limits are not known, neither a learning rate nor an optimizer,
            or an argument of another kind.
        ValueError: an impossible number, a momentum beside an optimizer, parameters that are not the optimizer's, a
            state that is not there yet, or a product that is not finite.
        RuntimeError: as of :func:`hvp_operator`.

    Example:
        >>> import torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> report = stability_report(lambda: (w**3).sum() / 3, [w], lr=0.5, momentum=0.9)
        >>> round(report.rows["sharpness"].threshold, 4), report.products
        (7.6, 13)
    """
    size = None if batch_size is None else whole("batch_size", batch_size, 1)
    probes, lanczos_steps = whole("probes", probes, 1), whole("lanczos_steps", lanczos_steps, 1)
    if optimizer is not None and momentum != 0.0:
        raise ValueError(f"momentum is {momentum} beside an optimizer, which has its own: expected one of both")
    flat = FlatParameters(params)
    dynamics = of_momentum(momentum) if optimizer is None else of_optimizer(optimizer, flat.params)
    lr, others = _rates(lr, optimizer)
    with RandomNumbers(flat.device).again():
        product = HessianProduct(loss_fn, flat.params)
    curvature, square = along_gradient(product, flat)
    plain = flat.operator(flat.multiplied_by(product))
    samples = probed(plain, probes, seed)
    matrix = flat.operator(flat.multiplied_by(product), dynamics.precond)
    spectrum = lanczos(matrix, lanczos_steps, seed=seed)
    trace, frobenius = mean([one for one, _ in samples]), root(mean([other for _, other in samples]))
    rows = {
        "sharpness": _sharpness(spectrum, dynamics, lr),
        "batch_sharpness": _batch_sharpness(_ratio(curvature, square), dynamics, lr),
        "trace": _trace(trace.value, dynamics, lr, size),
        "frobenius": _frobenius(frobenius.value, dynamics, lr, size),
    }
    products = 1 + plain.products + matrix.products
    warnings = [*others, *_of_the_loss(product.loss, square), *_of_the_numbers(spectrum, trace)]
    return StabilityReport(rows, warnings, products, lr, dynamics, spectrum, trace, frobenius)


def _rates(lr: float | None, optimizer: Optimizer | None) -> tuple[float, list[str]]:
    """The learning rate of the report, and what to say where the optimizer has another one."""
    own = None if optimizer is None else float(optimizer.param_groups[0]["lr"])
    given = own if lr is None else lr
    if given is None:
        raise wrong_kind("lr", None, "a number, as there is no optimizer")
    rate = real("lr", given, math.ulp(0.0))
    if own is None or math.isclose(rate, own, rel_tol=1e-6):
        return rate, []
    return rate, [f"the optimizer's first group has lr {own:g} now: this is about {rate:g}"]


def _sharpness(spectrum: LanczosResult, dynamics: Dynamics, lr: float) -> Diagnostic:
    value, threshold = float(spectrum.values[-1]), dynamics.limit / lr
    if dynamics.is_adaptive:
        return Diagnostic(value, threshold, "comparison", "near 1 at the edge, if the preconditioner stood still")
    return Diagnostic(
        value, threshold, "bound", "above 1 not stable; settles near 1 with all data, below it with small batches"
    )


def _batch_sharpness(value: float, dynamics: Dynamics, lr: float) -> Diagnostic:
    if dynamics.precond is not None:
        return Diagnostic(value, math.nan, "value", "its threshold is for SGD with one learning rate")
    b = dynamics.momentum
    reads = f"{1 - b:.3g} at small batches to {1 + b:.3g} at large ones" if b else "settles near 1"
    return Diagnostic(value, 2 / lr, "comparison", reads)


def _trace(value: float, dynamics: Dynamics, lr: float, size: int | None) -> Diagnostic:
    if size is None or dynamics.precond is not None or dynamics.momentum:
        return Diagnostic(value, math.nan, "value", "its threshold is for plain SGD with a batch size")
    if size == 1:
        return Diagnostic(value, 2 / lr, "bound", "above 1: not stable")
    return Diagnostic(value, 2 * size / lr, "comparison", "seen to hold, not proven; a bound for batch size 1")


def _frobenius(value: float, dynamics: Dynamics, lr: float, size: int | None) -> Diagnostic:
    if size is None or dynamics.precond is not None or dynamics.momentum:
        return Diagnostic(value, math.nan, "value", "its threshold is for plain SGD with a batch size")
    return Diagnostic(value, math.sqrt(size) / lr, "comparison", "a bound up to a constant that is not known")


def _of_the_loss(loss: Tensor, square: float) -> list[str]:
    found = []
    norms = [node for node in graph_of(loss) if "BatchNorm" in node.name()]
    if any(getattr(node, "_saved_training", True) is False for node in norms):
        found.append("batch norm is in eval mode: this is not the loss that training descends; call model.train()")
    if not square:
        found.append("the gradient is zero: there is nothing to measure batch_sharpness along")
    return found


def _of_the_numbers(spectrum: LanczosResult, trace: Estimate) -> list[str]:
    found = []
    (top,), (bottom,) = outermost(spectrum, 1, "LA"), outermost(spectrum, 1, "SA")
    if top.residual > 0.05 * abs(top.value):
        found.append(f"the sharpness is known to {top.residual:.2g} only: take more lanczos_steps")
    if bottom.value < -0.1 * abs(top.value):
        found.append(f"an eigenvalue is {bottom.value:.3g}: not near a minimum, around which the thresholds hold")
    if trace.standard_error > 0.2 * abs(trace.value):
        found.append(f"the trace is known to {trace.standard_error:.2g} only: take more probes")
    return found
