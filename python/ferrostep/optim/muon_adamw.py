"""Muon and AdamW in one optimizer that routes by itself and takes one learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ferrostep.choices import Algorithm, NdimPolicy, Precision
from ferrostep.coefficients import Coefficients
from ferrostep.optim.adamw import AdamW, adamw_rule
from ferrostep.optim.arguments import OF_OPTIMIZER, AtLeastZero, Betas, Epsilon, LearningRate, arguments_of, as_tuple
from ferrostep.optim.given import read_groups, route_groups
from ferrostep.optim.muon import KELLER, AdjustLr, Muon, check_muon_group, muon_rule
from ferrostep.optim.options import Options, asks_for_codes, check_real, without_codes
from ferrostep.optim.roles import is_of_embedding
from ferrostep.optim.routing import Route, Routes
from ferrostep.optim.rules import Rule, RuleOptimizer

Patterns: TypeAlias = Annotated[Sequence[str], OF_OPTIMIZER]

UNNAMED = (
    "MuonAdamW got parameters without names and routes them by shape and order, which cannot tell all embeddings and "
    "output layers from hidden matrices. Give it the model or its named_parameters(), or groups that say use_muon; "
    "optimizer.routes shows who goes where."
)


class MuonAdamW(RuleOptimizer):
    """Muon for hidden matrices and AdamW for the rest, from one learning rate, with a routing of its own.

    It takes the place of ``AdamW`` in one line, also where a framework wants a class and its arguments. Steps of
    Muon are as large as AdamW's (``adjust_lr_fn="match_rms_adamw"``, arXiv 2502.16982), so that ``lr``,
    ``weight_decay``, ``betas`` and a scheduler serve both: ``betas[0]`` is Muon's momentum and AdamW's decay rate of
    the first moment, ``betas[1]`` that of NorMuon's and AdamW's second. See :class:`Muon` and :class:`AdamW` for the
    rules.

    Parameter groups stay as they are given, in number and order, with arguments of their own; within each, every
    parameter goes its way. What decides depends on what the optimizer is given:

    - a module, ``model.parameters()`` or ``model.named_parameters()`` as they are: its modules, as
      :func:`muon_param_groups` says. Convolutions are flattened; stacked experts (more than 2 dimensions, with
      ``expert`` in the name) are a batch of matrices; other parameters of more than 2 dimensions go to AdamW, unless
      ``ndim_policy`` says what they are.
    - pairs of names and parameters, or groups of such, or with ``param_names``: the same, from names alone.
    - parameters without names, as most trainers hand over: shapes and order alone, with a warning. To AdamW go those of
      1 and 3 dimensions, the first and the last of the others (of two, the last), what has 30,000 rows or more and
      fewer columns, what is 32 times as long as wide or more, and convolutions of single channels. That misses
      embeddings in the midst, such as tables of positions, output layers that are not the last, and routers, and it
      takes the first hidden matrix for an input layer where there is none. Of a share of the parameters, such as
      ``ZeroRedundancyOptimizer`` hands to each process, it is the share's first and last: say ``use_muon`` there.
    - groups that say ``use_muon``: that.

    ``routes`` says where each parameter went, and why; printed, it is a table.

    Args:
        params: a module; parameters, or pairs of names and parameters; or parameter groups. Of any shape and of dtype
            float32, float64, bfloat16, float16 or complex.
        lr: learning rate of both, a float or a 1-element tensor. Default 1e-3.
        betas: decay rates, each in [0, 1), see above. Default (0.95, 0.95).
        eps: AdamW's, and the least norm that Muon divides by. Default 1e-8.
        weight_decay: decoupled. Default 0.1.
        nesterov: of Muon. Default True.
        ns_coefficients: of Newton-Schulz, see :class:`Muon`. Default: Keller Jordan's triple.
        ns_steps: of Newton-Schulz. Default 5.
        adjust_lr_fn: of Muon. Default ``"match_rms_adamw"``; with another one, one ``lr`` no longer serves both.
        maximize: ascend instead of descend. Default False.
        ns_algorithm: see :class:`Muon`. Default ``"auto"``.
        ns_precision: see :class:`Muon`. Default ``"auto"``.
        ns_restarts: see :class:`Muon`. Default (2,).
        normalize: None (default) or ``"normuon"``.
        cautious_weight_decay: of Muon. Default False.
        skip_zero_grad: leave matrices alone whose gradient is all zero. Default False.
        use_muon: None (default) to route; True or False, usually in a group, for all parameters one way.
        ndim_policy: what parameters of more than 2 dimensions are that belong to no convolution: ``"flatten"`` or
            ``"batch"``, see :class:`Muon`; None (default): see above.
        exclude: shell-style patterns for parts of names that AdamW takes besides; not for groups added later.
        include: the same for what Muon takes whatever the routing finds, if it can.
        **options: see :class:`ferrostep.optim.options.Options`.

    State per parameter: Muon's or AdamW's, ``momentum_buffer`` or ``step``, ``exp_avg`` and ``exp_avg_sq``.

    Raises:
        ValueError, TypeError, RuntimeError: an impossible or unknown argument; nothing for Muon to take, as for a model
            without hidden matrices; a group that says ``use_muon=True`` of a parameter that is no matrix.

    Warns:
        UserWarning: parameters came without names, and Muon takes some of them for their shape.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2, bias=False))
        >>> optimizer = MuonAdamW(model.parameters(), lr=1e-3)
        >>> print(optimizer.routes)
        parameter  shape  optimizer  because
        0.weight   8x4    Muon       matrix
        0.bias     8      AdamW      bias, position or token
        2.weight   8x8    Muon       matrix
        2.bias     8      AdamW      bias, position or token
        4.weight   2x8    AdamW      last layer
    """

    def __init__(
        self,
        params: ParamsT | nn.Module,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.95, 0.95),
        eps: Epsilon = 1e-8,
        weight_decay: AtLeastZero = 0.1,
        *,
        nesterov: bool = True,
        ns_coefficients: Coefficients = KELLER,
        ns_steps: int | None = 5,
        adjust_lr_fn: AdjustLr = "match_rms_adamw",
        maximize: bool = False,
        ns_algorithm: Algorithm = "auto",
        ns_precision: Precision = "auto",
        ns_restarts: Annotated[Sequence[int], as_tuple] = (2,),
        normalize: Literal["normuon"] | None = None,
        cautious_weight_decay: bool = False,
        skip_zero_grad: bool = False,
        use_muon: bool | None = None,
        ndim_policy: NdimPolicy | None = None,
        exclude: Patterns = (),
        include: Patterns = (),
        **options: Unpack[Options],
    ) -> None:
        given = read_groups(params)
        wishes = {"use_muon": use_muon, "ndim_policy": ndim_policy}
        routed = route_groups(given, wishes, exclude, include)
        self._routes: dict[Tensor, Route] = {}
        self._places: list[list[Tensor]] = []
        self._coming = routed.routes
        super().__init__([each.group for each in given], locals(), options)
        check_anything_for_muon(self.param_groups, self.routes)
        if routed.is_guess:
            warnings.warn(UNNAMED, UserWarning, stacklevel=2)

    _arguments = arguments_of(__init__)
    _looks_at_matrices = True

    @property
    def routes(self) -> Routes:
        """Where each parameter goes, and why, in the order of the groups."""
        numbered = enumerate(self.param_groups)
        return Routes(self._route_of(number, i) for number, group in numbered for i in range(len(group["params"])))

    def _route_of(self, number: int, i: int) -> Route:
        """The route of a parameter; of one that has come in another's place, as trainers do for sharding, that one's.

        Raises:
            ValueError: a parameter that was put there otherwise.
        """
        p = self.param_groups[number]["params"][i]
        if p not in self._routes:
            places = self._places[number] if number < len(self._places) else []
            before = places[i] if i < len(places) else None
            if before is None or before.shape != p.shape or any(before is q for q in self._params()):
                raise ValueError(
                    f"parameter {i} in group {number} has come since the optimizer routed its parameters, and is no "
                    "other one's successor; add parameters by add_param_group"
                )
            places[i] = p
            self._routes[p] = self._routes.pop(before)
        return self._routes[p]

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, whose parameters are routed by themselves. Raises as the constructor."""
        number = len(self.param_groups)
        if self._coming:
            routes = self._coming.pop(0)
        else:
            (given,) = read_groups([param_group], number)
            (routes,) = route_groups([given], self.defaults, number=number).routes
            param_group = given.group
        refuse_others_arguments(param_group, number, self.defaults)
        taken = [p for p, route in zip(param_group["params"], routes, strict=True) if route.layout]
        check_real(taken, type(self).__name__)
        before = self._routes
        self._routes = {**before, **dict(zip(param_group["params"], routes, strict=True))}
        try:
            super().add_param_group(param_group)
        except BaseException:
            self._routes = before
            raise
        self._places[number:] = [[*param_group["params"]]]

    def rule(self, group: dict[str, Any]) -> Rule:
        """AdamW with the group's hyperparameters if the group says ``use_muon=False``, else Muon."""
        return adamw_rule({**OF_ADAMW, **group}) if group["use_muon"] is False else muon_rule(as_of_muon(group))

    def _takes_matrices(self, group: dict[str, Any]) -> bool:
        return group["use_muon"] is not False

    def _rules(self, group: dict[str, Any]) -> Sequence[Rule]:
        return [self.rule({**group, "use_muon": use_muon}) for use_muon in (True, False)]

    def _parts(
        self, number: int, group: dict[str, Any], positions: Sequence[int]
    ) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
        routes = {i: self._route_of(number, i) for i in positions}
        coded = asks_for_codes(group)
        kinds = {i: (route.layout, coded and is_of_embedding(route.reason)) for i, route in routes.items()}
        for layout, is_in_full in dict.fromkeys(kinds.values()):
            use_muon = layout is not None
            if group["use_muon"] not in (None, use_muon):
                raise ValueError(
                    f"group {number} says use_muon={group['use_muon']} since the optimizer routed its parameters "
                    "otherwise; make a new optimizer"
                )
            part = {**group, "use_muon": use_muon, "ndim_policy": layout}
            if is_in_full:
                part["state_dtype"] = without_codes(group["state_dtype"])
            yield part, [i for i in positions if kinds[i] == (layout, is_in_full)]

    def _check_group(self, group: dict[str, Any]) -> None:
        check_muon_group(as_of_muon(group))

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        sizes = [len(group["params"]) for group in state_dict["param_groups"]]
        fits = sizes == [len(group["params"]) for group in self.param_groups]  # else torch refuses it
        return super()._adopted(state_dict) if fits else state_dict

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_routes": self._routes, "_places": self._places, "_coming": []}


OF_ADAMW: dict[str, Any] = {name: AdamW._defaults()[name] for name in AdamW._arguments.keys() - MuonAdamW._arguments}
"""AdamW's arguments that have no place here."""
OF_MUON: dict[str, Any] = {name: Muon._defaults()[name] for name in Muon._arguments.keys() - MuonAdamW._arguments}
"""The same of Muon's; two of them are the betas."""


def as_of_muon(group: dict[str, Any]) -> dict[str, Any]:
    """The group as Muon's rule reads it."""
    momentum, beta2 = group["betas"]
    layout = group["ndim_policy"] or "error"
    return {**OF_MUON, **group, "momentum": momentum, "beta2": beta2, "ndim_policy": layout}


def refuse_others_arguments(group: dict[str, Any], number: int, defaults: Iterable[str]) -> None:
    """Raise TypeError for arguments of Muon or AdamW that a group cannot have here, where they would have no effect."""
    for name in group:
        if name in OF_MUON or name in OF_ADAMW:
            raise TypeError(
                f"param group {number} got an unexpected argument {name!r}; there are {', '.join(defaults)}"
            )


def check_anything_for_muon(groups: Sequence[dict[str, Any]], routes: Sequence[Route]) -> None:
    """Raise ValueError if Muon gets nothing, unless all groups want that: nobody would notice that it is all AdamW."""
    if routes and not any(route.layout for route in routes) and any(g["use_muon"] is None for g in groups):
        reasons = ", ".join(sorted({route.reason for route in routes}))
        raise ValueError(
            f"MuonAdamW found nothing for Muon among {len(routes)} parameters ({reasons}): "
            "say use_muon=True in a group, or take AdamW"
        )
