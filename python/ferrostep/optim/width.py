"""Learning rates and weight decays of a wide model from those of a narrow one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from torch import Tensor, nn

from ferrostep.errors import Problem, wrong_choice, wrong_kind
from ferrostep.numpy.arrays import integers, real, whole
from ferrostep.optim.roles import CONVOLUTIONS, Named, named_of
from ferrostep.optim.routing import Route, RoutedGroups, kind_for_muon, owners_and_reasons
from ferrostep.reference.width import muon_width_factors, relaxation_steps, width_factors
from ferrostep.suggestions import suggesting

WidthRule: TypeAlias = Literal["sqrt", "linear", "none"]
VECTOR_LIKE = "vector-like"
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class WidthScaledParamGroups(RoutedGroups):
    """Parameter groups with learning rates and weight decays for a model's width; printed, a table of who gets what.

    Args:
        groups: the parameter groups.
        routes: for each parameter its name, shape, kind, and what it gets and why.

    Raises:
        TypeError: one of both is nothing to go through.

    Example:
        >>> print(width_scaled_param_groups(nn.Linear(4, 4), base_width=2, lr=0.1, weight_decay=0.5))
        parameter  shape  optimizer    because
        weight     4x4    matrix x2    hidden matrix: lr 0.05, weight decay 0.707107
        bias       4      vector-like  bias, position or token: lr 0.1, weight decay 0
        matrices reach their steady state in about 28 steps
    """

    @property
    def relaxation_steps(self) -> float:
        """How many steps the matrices take to their steady state, ``1 / (lr * weight_decay)``; infinite without decay.

        The rule is about that state: in a run that is much shorter, it makes little difference.
        """
        matrices = [group for group in self if group["name"] != VECTOR_LIKE]
        of_groups = [relaxation_steps(group["lr"], group["weight_decay"]) for group in matrices]
        return max(of_groups, default=math.inf)

    def __str__(self) -> str:
        return f"{self.routes}\nmatrices reach their steady state in about {self.relaxation_steps:.0f} steps"


@suggesting
def width_scaled_param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    base_width: int | None = None,
    base_shapes: nn.Module | Mapping[str, Sequence[int]] | None = None,
    *,
    lr: float,
    weight_decay: float,
    rule: WidthRule = "sqrt",
    vector_weight_decay: float = 0.0,
    width: int | None = None,
    muon: Mapping[str, Any] | None = None,
) -> WidthScaledParamGroups:
    r"""Parameter groups for a model that is ``k`` times as wide as the one for which ``lr`` and ``weight_decay`` serve.

    Under AdamW the largest singular value of a matrix settles at a number that is proportional to
    ``sqrt(lr / weight_decay) * width ** 0.75``; this keeps it as it is (Fan et al. 2025, arXiv 2510.15262).

    =====================================  ==========  ==================================================
    parameter                              lr          weight decay
    =====================================  ==========  ==================================================
    matrix, both sides of which grow       ``lr / k``  ``weight_decay * sqrt(k)`` with ``rule="sqrt"``,
                                                       ``* k`` with ``"linear"``, ``* 1`` with ``"none"``
    embeddings, output layers, norms,      ``lr``      ``vector_weight_decay``
    biases: one side grows
    =====================================  ==========  ==================================================

    The groups are for :class:`AdamW` and other optimizers near the sign, as :class:`Lion`. One scheduler serves all: it
    scales each group's own learning rate.

    Args:
        model: a module, or ``(name, parameter)`` pairs as from ``named_parameters(remove_duplicate=False)``.
        base_width: the width of the narrow model. ``k`` is the model's width by that for all matrices; which are
            matrices tell modules and names, as in :func:`muon_param_groups`. A layer with fewer inputs than the width
            counts as an input layer, which is vector-like.
        base_shapes: in its place, the narrow model or its parameters' shapes by name: then a matrix has two sides that
            differ, and ``k`` is the ratio of its fan-in by itself.
        lr, weight_decay: tuned for the narrow model.
        rule: how the weight decay of matrices grows. Default ``"sqrt"``.
        vector_weight_decay: of all else. Default 0.
        width: the model's own width, with ``base_width``. Default: the length that most sides of its matrices have.
        muon: arguments of groups for :class:`Muon`, as of :func:`muon_param_groups`: the groups then are for
            :class:`MuonWithAuxAdamW`, and hidden matrices go to Muon. ``lr`` and ``weight_decay`` among them are those
            of the narrow model. Muon's steps have singular values that do not grow with the width: they stay as they
            are, but for ``adjust_lr_fn="match_rms_adamw"``, with ``lr / sqrt(k)`` and ``weight_decay * sqrt(k)``
            (derived here, not in the paper).

    The parameters may have any shape and dtype; tied ones come once, under their first name.

    Returns:
        Groups with ``name``, ``lr``, ``weight_decay`` and their parameters' names; ``print`` shows who gets what, and
        how many steps the matrices take to the steady state that the rule is about (``relaxation_steps``). Parameters
        that do not require a gradient are left out.

    Raises:
        ValueError: no parameters, an impossible number or rule, not one of ``base_width`` and ``base_shapes``, a width
            that the matrices do not tell, or a parameter without a shape of its rank among the ``base_shapes``.
        TypeError: an argument of the wrong kind.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10))
        >>> groups = width_scaled_param_groups(model, base_width=256, lr=1e-2, weight_decay=0.1)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('vector-like', 0.01, 0.0), ('matrix x4', 0.0025, 0.2)]
    """
    if rule not in get_args(WidthRule):
        raise wrong_choice("rule", rule, *get_args(WidthRule))
    if muon is not None and not isinstance(muon, Mapping):
        raise wrong_kind("muon", muon, "a dict of arguments, such as {'lr': 0.02}")
    vectors = {"lr": real("lr", lr, 0.0), "weight_decay": real("vector_weight_decay", vector_weight_decay, 0.0)}
    matrices = {**vectors, "weight_decay": real("weight_decay", weight_decay, 0.0)}
    scaled = Scaled(vectors, matrices, rule, None if muon is None else {**matrices, **muon})
    owners, reasons = owners_and_reasons(model)
    owners = {p: owned for p, owned in owners.items() if p.requires_grad}
    if not owners:
        raise ValueError("width_scaled_param_groups got no parameters that require a gradient")
    widths = widths_of(owners, reasons, base_width, base_shapes, width)
    groups: dict[str, dict[str, Any]] = {}
    routes = []
    for p, (each, *_) in owners.items():
        ratio, why = widths(each, reasons[p])
        group = scaled.group(each, ratio, is_hidden=not reasons[p])
        groups.setdefault(repr(group), {"params": [], **group})["params"].append((each.name, p))
        what = f"{why}: lr {group['lr']:g}, weight decay {group['weight_decay']:g}"
        routes.append(Route(each.name, tuple(p.shape), group["name"], what))
    return WidthScaledParamGroups(groups.values(), routes)


class Scaled(NamedTuple):
    """What groups have at the base width, and the rule."""

    vectors: dict[str, Any]
    matrices: dict[str, Any]
    rule: WidthRule
    muon: dict[str, Any] | None

    def group(self, each: Named, ratio: float | None, *, is_hidden: bool) -> dict[str, Any]:
        """The entries of the group of a parameter so many times as wide, or of a vector-like one."""
        name = VECTOR_LIKE if ratio is None else f"matrix x{ratio:g}"
        if self.muon is not None and is_hidden:
            # Muon takes input layers, too, which do not grow in a way that it would notice.
            lr, decay = muon_width_factors(self.muon.get("adjust_lr_fn"), 1.0 if ratio is None else ratio)
            group = {"name": name, "use_muon": True, **self.muon}
            if kind_for_muon(each, "ndim_policy" in group) == "convolutions":
                group["ndim_policy"] = "flatten"
        else:
            lr, decay = (1.0, 1.0) if ratio is None else width_factors(self.rule, ratio)
            group = {"name": name, **(self.vectors if ratio is None else self.matrices)}
            if self.muon is not None:
                group["use_muon"] = False
        return {**group, "lr": group["lr"] * lr, "weight_decay": group["weight_decay"] * decay}


Widths: TypeAlias = Callable[[Named, str], "tuple[float | None, str]"]
"""From a parameter and the reason why it is no hidden matrix: how many times as wide it is, if it is one, and why."""


def widths_of(
    owners: Mapping[Tensor, Sequence[Named]],
    reasons: Mapping[Tensor, str],
    base_width: int | None,
    base_shapes: nn.Module | Mapping[str, Sequence[int]] | None,
    width: int | None,
) -> Widths:
    """How wide parameters are, by one width for all or by their shapes in a narrow model."""
    if (base_width is None) == (base_shapes is None):
        given = "neither" if base_width is None else "both"
        raise Problem.NUMBER.of("base_width and base_shapes", given, "one of them")
    if base_shapes is not None:
        if width is not None:
            raise Problem.NUMBER.of("width", width, "None with base_shapes, which say how wide each parameter is")
        return partial(_by_shape, shapes_of(base_shapes), owners)
    base = whole("base_width", base_width, 1)  # type: ignore[arg-type]
    if width is None:
        width = width_of([owned[0] for p, owned in owners.items() if not reasons[p]])
    return partial(_by_width, whole("width", width, 1), base)


def width_of(hidden: Sequence[Named]) -> int:
    """The length that most sides of hidden matrices have; ValueError where they do not tell."""
    sides = Counter(side for each in hidden for side in (fan_in(each, each.p.shape), fan_out(each, each.p.shape)))
    most = sides.most_common(2)
    if not most or (len(most) == 2 and most[0][1] == most[1][1]):
        there = " and ".join(str(side) for side, _ in most) or "none"
        raise Problem.NUMBER.of(
            "width", None, f"the model's width: the most frequent sides of its matrices are {there}"
        )
    return most[0][0]


def shapes_of(base: nn.Module | Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The shapes by name; TypeError for what has none."""
    if isinstance(base, nn.Module):
        return {each.name: tuple(each.p.shape) for each in named_of(base)}
    if not isinstance(base, Mapping):
        raise wrong_kind("base_shapes", base, "a module, or a dict of shapes by name")
    return {name: tuple(integers(f"base_shapes[{name!r}]", shape)) for name, shape in base.items()}


def _by_width(width: int, base_width: int, each: Named, reason: str) -> tuple[float | None, str]:
    if reason:
        return None, reason
    inputs = fan_in(each, each.p.shape)
    if inputs < width:
        return None, f"{inputs} inputs, less than the width {width}"
    return width / base_width, "hidden matrix"


def _by_shape(
    shapes: Mapping[str, tuple[int, ...]], owners: Mapping[Tensor, Sequence[Named]], each: Named, reason: str
) -> tuple[float | None, str]:
    base = next((shapes[one.name] for one in owners[each.p] if one.name in shapes), None)
    if base is None:
        raise ValueError(f"base_shapes has no {each.name!r}, which the model has")
    if len(base) != each.p.ndim:
        raise Problem.SHAPE.of(f"base_shapes[{each.name!r}]", list(base), f"{each.p.ndim} dimensions")
    growing = [dim for dim, (one, other) in enumerate(zip(base, each.p.shape, strict=True)) if one != other]
    if reason or len(growing) == 1:
        return None, reason or f"only dimension {growing[0]} grows"
    if 0 in base:
        raise Problem.SHAPE.of(f"base_shapes[{each.name!r}]", list(base), "no side of length 0")
    return fan_in(each, each.p.shape) / fan_in(each, base), "hidden matrix"


def fan_in(each: Named, shape: Sequence[int]) -> int:
    """The inputs of a parameter of this shape, by how its layer lays it out."""
    if _is_transposed(each):
        return shape[0]
    return shape[1] if isinstance(each.module, CONVOLUTIONS) else shape[-1]


def fan_out(each: Named, shape: Sequence[int]) -> int:
    """Its outputs."""
    if _is_transposed(each):
        return shape[1]
    return shape[0] if isinstance(each.module, CONVOLUTIONS) else shape[-2]


def _is_transposed(each: Named) -> bool:
    return isinstance(each.module, TRANSPOSED) or type(each.module).__name__ == "Conv1D"
