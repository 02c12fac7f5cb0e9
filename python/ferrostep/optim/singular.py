"""The largest singular values of a model's matrices, and whether another model's are the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ferrostep import _core, reference
from ferrostep.errors import Problem, wrong_kind
from ferrostep.numpy.arrays import check, listed, whole
from ferrostep.optim import shards
from ferrostep.optim.base import arithmetic_dtype
from ferrostep.optim.roles import owners_of
from ferrostep.optim.routing import in_columns, read_model
from ferrostep.reference import checks
from ferrostep.reference.width import relative_gain, stable_rank
from ferrostep.suggestions import suggesting


class SingularValue(NamedTuple):
    """The largest singular value of a matrix, of :func:`top_singular_values`.

    Example:
        >>> top_singular_values(nn.Linear(3, 2))["weight"].steps <= 3
        True
    """

    value: float
    """From below: the matrix's true one is at least that."""
    residual: float
    """A singular value lies within this distance: ``norm(W' u - value * v)`` for the unit vectors u and v."""
    stable_rank: float
    """``norm(W) ** 2 / value ** 2``: how many singular values there are, weighed by their squares."""
    gain: float
    """``value / sqrt(lr / weight_decay)`` with the matrix's group; NaN without."""
    steps: int
    """Products with the matrix and its transpose that it took."""


class SingularValues(dict[str, SingularValue]):
    """The largest singular values of matrices by their names; printed, a table.

    Args:
        found: the values by name.
        vectors: the right singular vectors by name, of shape (columns,) and dtype float32 or float64, from which a
            later call starts. Default None: none.

    Raises:
        TypeError: ``found`` is no mapping.

    Example:
        >>> print(SingularValues({"weight": SingularValue(6.708, 1e-7, 1.111, 3.354, steps=2)}))
        parameter  sigma  residual  stable rank  gain
        weight     6.708  1.0e-07   1.111        3.354
    """

    def __init__(self, found: Mapping[str, SingularValue], vectors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(found)
        self.vectors = dict(vectors or {})

    def __str__(self) -> str:
        heads = ("parameter", "sigma", "residual", "stable rank", "gain")
        rows = [
            (n, f"{x.value:.4g}", f"{x.residual:.1e}", f"{x.stable_rank:.4g}", f"{x.gain:.4g}") for n, x in self.items()
        ]
        return in_columns([heads, *rows])


class GainRatio(NamedTuple):
    """How a matrix's largest singular value compares with that of its namesake in another model.

    Example:
        >>> GainRatio("weight", 2.0, 3.0, 1.5).ratio
        1.5
    """

    name: str
    base: float
    target: float
    ratio: float


class GainInvariance(tuple[GainRatio, ...]):
    """What :func:`gain_invariance` found; printed, a table.

    Example:
        >>> print(GainInvariance([GainRatio("weight", 2.0, 3.0, 1.5)]))
        parameter  base  target  ratio
        weight     2     3       1.500
    """

    __slots__ = ()

    def outside(self, tolerance: float = 0.1) -> list[str]:
        """The names of the matrices whose ratio is further from 1 than that.

        Args:
            tolerance: as a factor: 0.1 means from 1 / 1.1 to 1.1. Default 0.1, as the paper sees invariance.

        Returns:
            The names.

        Raises:
            TypeError, ValueError: a tolerance that is no number of at least 0.

        Example:
            >>> GainInvariance([GainRatio("weight", 2.0, 3.0, 1.5)]).outside()
            ['weight']
        """
        check("tolerance", tolerance, 0.0)
        return [each.name for each in self if not 1 / (1 + tolerance) <= each.ratio <= 1 + tolerance]

    def __str__(self) -> str:
        rows = [(x.name, f"{x.base:.4g}", f"{x.target:.4g}", f"{x.ratio:.3f}") for x in self]
        return in_columns([("parameter", "base", "target", "ratio"), *rows])


@torch.no_grad()
@suggesting
def top_singular_values(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    iters: int = 8,
    tol: float = 1e-3,
    *,
    param_groups: Iterable[dict[str, Any]] | None = None,
    initial: SingularValues | None = None,
) -> SingularValues:
    """The largest singular value of each matrix of a model, by Lanczos iteration on ``W' W``.

    Each iteration reads the matrix once, where power iteration, which makes the same products, reads it twice and
    needs many times as many where the largest singular values lie close together, as in matrices that were drawn at
    random: of GPT-2's shapes, 8 iterations leave 1.5% there, and about 20 leave 1e-3.

    Args:
        model: a module, or ``(name, parameter)`` pairs. Parameters of less than two dimensions and empty ones are left
            out, also complex ones; those of a shape of more are flattened to (first, all others), as convolutions. Any
            floating-point dtype; sums are in float32, of float64 in float64.
        iters: at most so many iterations for each matrix, of which as many vectors are kept meanwhile. Default 8.
        tol: end when the residual is at most this part of the value. Default 1e-3: the value's own error is of the
            order of the residual's square, where the next singular value is not as close.
        param_groups: an optimizer's, or those of :func:`width_scaled_param_groups`: tell ``gain``. Default None.
        initial: what an earlier call found, of which the singular vectors of the same names and lengths begin, with as
            much of vectors that are drawn: of those alone (with ``iters=1``) a singular value that has become the
            largest meanwhile would never be seen. Default None: vectors that are drawn, always the same.

    Returns:
        The values by name, with residuals and stable ranks; ``print`` shows a table.

    Raises:
        ValueError: no matrices, one with NaN or infinity, or an impossible number.
        TypeError: an argument of the wrong kind.
        RuntimeError: sparse parameters.
        NotImplementedError: DTensors.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> layer.weight = nn.Parameter(torch.tensor([[3.0, 0.0], [4.0, 5.0]]))
        >>> found = top_singular_values(layer)
        >>> round(found["weight"].value, 4)
        6.7082
    """
    iters = whole("iters", iters, 1)
    check("tol", tol, 0.0)
    if initial is not None and not isinstance(initial, SingularValues):
        raise wrong_kind("initial", initial, "what top_singular_values gave")
    matrices = {owned[0].name: p for p, owned in owners_of(read_model(model)[0]).items() if is_matrix(p)}
    if not matrices:
        raise ValueError("top_singular_values got no matrices")
    rates = rates_of(param_groups)
    before = {} if initial is None else initial.vectors
    found, vectors = {}, {}
    for name, p in matrices.items():
        if shards.is_distributed(p):
            raise NotImplementedError(f"parameter {name!r} is a DTensor, which top_singular_values does not take")
        checks.readable(f"parameter {name!r}", p)
        vector = first_vector(name, p, before.get(name), alone=iters == 1)
        value, residual, square, steps = largest(p, vector, iters, tol)
        if not math.isfinite(square):
            raise Problem.VALUE.of(f"the squared norm of parameter {name!r}", square, "a finite number")
        gain = relative_gain(value, *rates.get(p, (0.0, 0.0)))
        found[name] = SingularValue(value, residual, stable_rank(value, square), gain, steps)
        vectors[name] = vector
    return SingularValues(found, vectors)


def gain_invariance(base: SingularValues, target: SingularValues) -> GainInvariance:
    """Whether the matrices of two models, such as a narrow and a wide one, have the same largest singular values.

    Args:
        base, target: what :func:`top_singular_values` found for both.

    Returns:
        The target's values by the base's, in the base's order; ``print`` shows a table. Ratios from 0.9 to 1.1 are what
        Fan et al. (2025, arXiv 2510.15262) call invariant.

    Raises:
        TypeError: something else.
        ValueError: a matrix of one that the other has not.

    Example:
        >>> found = top_singular_values(nn.Linear(3, 2))
        >>> [each.ratio for each in gain_invariance(found, found)]
        [1.0]
    """
    for name, given in {"base": base, "target": target}.items():
        if not isinstance(given, SingularValues):
            raise wrong_kind(name, given, "what top_singular_values gave")
    alone = base.keys() ^ target.keys()
    if alone:
        raise ValueError(f"base and target have different matrices: only one of both has {min(alone)!r}")
    pairs = [(name, base[name].value, target[name].value) for name in base]
    return GainInvariance(GainRatio(name, one, other, other / one if one else math.nan) for name, one, other in pairs)


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter has singular values that are looked for."""
    return p.ndim > 1 and p.is_floating_point() and p.numel() > 0


def first_vector(name: str, p: Tensor, before: Tensor | None, *, alone: bool) -> Tensor:
    """One that is drawn and, where one is known, that with it or ``alone``."""
    drawn = torch.randn(p[0].numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if before is not None:
        checks.readable(f"initial's vector of {name!r}", before)
    if before is None or before.shape != drawn.shape:
        return drawn.to(p.device, arithmetic_dtype(p))
    known = before.detach().to(drawn)
    if not 0 < known.norm() < math.inf:
        raise Problem.VALUE.of(f"initial's vector of {name!r}", "zero or not finite", "a singular vector")
    return (known if alone else reference.mixed_start(known, drawn)).to(p.device, arithmetic_dtype(p))


def largest(p: Tensor, vector: Tensor, iters: int, tol: float) -> tuple[float, float, float, int]:
    """The value, its residual, the square of the norm, and the iterations; updates the vector."""
    if p.is_cpu:
        threads = torch.get_num_threads()
        return _core.top_singular_value(p.detach(), vector, steps=iters, tolerance=tol, threads=threads)
    return reference.top_singular_value(p.detach(), vector, steps=iters, tolerance=tol)


def rates_of(param_groups: Iterable[dict[str, Any]] | None) -> dict[Tensor, tuple[float, float]]:
    """The learning rate and the weight decay of each parameter."""
    rates = {}
    for i, group in enumerate(listed("param_groups", param_groups or ())):
        if not isinstance(group, Mapping) or not {"params", "lr"} <= group.keys():
            raise wrong_kind(f"param_groups[{i}]", group, "a dict with params and lr")
        for each in group["params"]:
            p = each[1] if isinstance(each, tuple) else each
            rates[p] = (float(group["lr"]), float(group.get("weight_decay", 0.0)))
    return rates
