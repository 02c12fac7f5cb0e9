"""Muon for hidden matrices and AdamW for the rest, in one optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ferrostep.optim.adamw import AdamW, adamw_rule
from ferrostep.optim.arguments import check_arguments
from ferrostep.optim.muon import Muon, check_matrices, check_muon_group, muon_rule
from ferrostep.optim.options import Options, check_options
from ferrostep.optim.rules import Rule, RuleOptimizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

MUON: dict[str, Any] = {**Muon._defaults(), "lr": 0.02, "weight_decay": 0.0}
ADAMW: dict[str, Any] = {**AdamW._defaults(), "lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0}


class MuonWithAuxAdamW(RuleOptimizer):
    """Muon and AdamW (arXiv 1711.05101) in one optimizer, with one state dict, for one scheduler.

    It takes the place of Keller Jordan's ``MuonWithAuxAdam``. :class:`MuonAdamW` routes by itself, with one learning
    rate for both.

    Every parameter group says which of both it takes: ``use_muon=True`` for hidden matrices, with the arguments of
    :class:`ferrostep.optim.Muon` and the defaults lr 0.02, momentum 0.95, weight decay 0; ``use_muon=False`` for
    embeddings, output layers, norms and biases, with those of :class:`ferrostep.optim.AdamW` and the defaults lr 3e-4,
    betas (0.9, 0.95), eps 1e-10, weight decay 0. Parameters may come with their names, as from ``named_parameters()``.
    :func:`ferrostep.optim.muon_param_groups` makes such groups of a model.

    A group may hold entries of yours (``"name"``), as with torch, but none that is an argument of the other kind or
    nearly one of its own.

    Unlike the original, parameters without a gradient are skipped.

    torch's ``OneCycleLR`` and ``CyclicLR`` take one ``max_lr`` for all groups or a list with one for each, which both
    kinds are likely to want. With ``cycle_momentum`` they cycle the momentum of Muon's groups and the first beta of
    AdamW's: what they write as a group's ``"momentum"`` becomes ``betas[0]`` in the next step.

    Args:
        param_groups: dicts with ``params``, ``use_muon`` and arguments.
        **options: see :class:`ferrostep.optim.options.Options`; for all groups that do not say otherwise.

    State per parameter: Muon's or AdamW's.

    Raises:
        ValueError, TypeError: a group without ``use_muon``, an impossible or unknown argument, or a Muon group with a
            parameter that is not a matrix.
        RuntimeError: complex parameters.

    Example:
        >>> from torch import nn
        >>> from ferrostep.optim import muon_param_groups
        >>> optimizer = MuonWithAuxAdamW(muon_param_groups(nn.Linear(4, 2)))
        >>> [(group["use_muon"], group["lr"]) for group in optimizer.param_groups]
        [(True, 0.02), (False, 0.0003)]
    """

    _looks_at_matrices = True

    def __init__(self, param_groups: Iterable[dict[str, Any]], **options: Unpack[Options]) -> None:
        super().__init__(param_groups, {}, options)
        self.defaults["momentum"] = MUON["momentum"]  # where torch's schedulers look for what there is to cycle

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, which says ``use_muon``. Raises as the constructor."""
        check_kind(param_group)
        own = self._group_defaults(param_group)
        for name in param_group.keys() - own.keys():
            if name in MUON or name in ADAMW:
                kind = "Muon" if param_group["use_muon"] else "AdamW"
                there_are = f"there are {', '.join(own)}"
                raise TypeError(f"a group for {kind} got an unexpected argument {name!r}; {there_are}")
        super().add_param_group({**own, **param_group})
        if not param_group["use_muon"]:
            self.param_groups[-1].pop("momentum", None)  # of the defaults

    def rule(self, group: dict[str, Any]) -> Rule:
        """Muon or AdamW with the group's hyperparameters."""
        if group["use_muon"]:
            return muon_rule(group)
        if "momentum" in group:  # a scheduler's, see above
            group["betas"] = (group.pop("momentum"), group["betas"][1])
        return adamw_rule(group)

    def _takes_matrices(self, group: dict[str, Any]) -> bool:
        return bool(group["use_muon"])

    def _check_group(self, group: dict[str, Any]) -> None:
        check_kind(group)
        check_arguments((Muon if group["use_muon"] else AdamW)._arguments, group)
        if group["use_muon"]:
            check_muon_group(group)
            check_matrices(group, "MuonWithAuxAdamW")

    def _check_defaults(self, defaults: dict[str, Any]) -> None:
        check_options({"params": [], **defaults})  # the rest are those of each kind

    def _adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        for group in state_dict["param_groups"]:
            check_kind(group)
        return super()._adopted(state_dict)

    def _group_defaults(self, group: dict[str, Any]) -> dict[str, Any]:
        options = {name: value for name, value in self.defaults.items() if name not in MUON}
        return {**options, **(MUON if group["use_muon"] else ADAMW)}


def check_kind(group: dict[str, Any]) -> None:
    """Raise ValueError unless the group says whom it is for."""
    if not isinstance(group, dict) or not isinstance(group.get("use_muon"), bool):
        raise ValueError(
            "every parameter group must be a dict that says use_muon=True or use_muon=False; "
            "ferrostep.optim.muon_param_groups(model) makes such groups"
        )
