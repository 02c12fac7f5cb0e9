"""Which parameters of a model Muon takes, and which AdamW."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn

from ferrostep.suggestions import suggesting

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = re.compile(r"Norm(\dd)?$")
"""What torch's and transformers' classes of norms end in."""
NAMED_EMBEDDINGS = ("*embed*", "*_emb", "emb", "wte", "wpe", "shared", "*attention_bias")
"""What embeddings, or their parameters, are called where no module says what they are; the last two are T5's."""
TABLES = ("*bias*", "*position*", "*pos_*", "*_token")
"""Names that parameters have which are no factor of a matrix product, whatever their shape."""
PARAMETRIZATION = re.compile(r"parametrizations\.([^.]+)\.original\d*$")
"""What torch's parametrizations make of the end of a parameter's name."""
WEIGHT_NORM = (("original0", "original1"), ("_g", "_v"))
"""Ends of the names of magnitudes and directions in torch's weight_norm, the parametrization and the older hook."""


class Route(NamedTuple):
    """Where a parameter goes, and why."""

    name: str
    shape: tuple[int, ...]
    optimizer: str
    reason: str


class MuonParamGroups(list[dict[str, Any]]):
    """Parameter groups for :class:`ferrostep.optim.MuonWithAuxAdamW`; printed, a table of who goes where.

    Args:
        groups: the parameter groups.
        routes: for each parameter its name, shape, optimizer, and why.

    Raises:
        TypeError: one of both is nothing to go through.

    Example:
        >>> print(muon_param_groups(nn.Linear(4, 2)))
        parameter  shape  optimizer  because
        weight     2x4    Muon       matrix
        bias       2      AdamW      bias, position or token
    """

    def __init__(self, groups: Iterable[dict[str, Any]], routes: Sequence[Route]) -> None:
        super().__init__(groups)
        self.routes = tuple(routes)

    def __str__(self) -> str:
        rows = [(r.name, "x".join(map(str, r.shape)) or "scalar", r.optimizer, r.reason) for r in self.routes]
        rows = [("parameter", "shape", "optimizer", "because"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join([*(x.ljust(w) for x, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


@suggesting
def muon_param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    exclude: Sequence[str] = ("*embed*", "*head"),
    *,
    muon: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
) -> MuonParamGroups:
    """Route a model's parameters: hidden matrices to Muon; embeddings, output layers, norms and biases to AdamW.

    A parameter goes to AdamW if it has fewer than 2 dimensions, if it belongs to an ``nn.Embedding``,
    ``nn.EmbeddingBag`` or norm (a class whose name ends in Norm, Norm1d, ...), if its own name is that of a bias, a
    position table or a learned token, if it is the magnitude of ``weight_norm``, or if one of the parts of its name
    matches a pattern of ``exclude``; under any of its names, where several modules share it (an output layer tied to
    the embedding). An output layer with a name of its own must be excluded by that name. Convolutions are flattened to
    (out, in * kernel). What torch's parametrizations made of a weight (``weight_norm``'s direction, the original of
    ``spectral_norm`` or ``orthogonal``) goes where the weight would.

    Weights that are stored as (in, out), those of transposed convolutions and of transformers' ``Conv1D`` (GPT-2), are
    taken as they lie. Their update is orthogonalized all the same, but ``adjust_lr_fn`` and NorMuon take in for out:
    with ``adjust_lr_fn="match_rms_adamw"`` and without NorMuon there is no difference.

    Args:
        model: a module, or ``(name, parameter)`` pairs as from ``named_parameters(remove_duplicate=False)``. Pairs do
            not say what is an embedding: the usual names (``wte``, ``wpe``, ``...embed...``, ``..._emb``) do then.
        exclude: shell-style patterns for parts of names (``layers.0.weight`` has three parts). Default: embeddings and
            heads.
        muon: arguments of the Muon groups. ``ndim_policy`` says what parameters of more than 2 dimensions are that
            belong to no convolution, such as stacked experts.
        adamw: arguments of the AdamW group.

    The parameters may have any shape and dtype; complex ones go to AdamW.

    Returns:
        Up to three groups, each with its parameters' names; ``print`` shows the routing, ``routes`` holds it.
        Parameters that do not require a gradient are left out.

    Raises:
        ValueError: no parameters, or one of more than 2 dimensions that is no convolution's, without ``ndim_policy``.
        TypeError: ``exclude`` is a string.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.LayerNorm(4))
        >>> [group["use_muon"] for group in muon_param_groups(model)]
        [True, False]
    """
    if isinstance(exclude, str):
        raise TypeError(f"exclude is the str {exclude!r}, expected a sequence of patterns, such as [{exclude!r}]")
    muon = dict(muon or {})
    owners: dict[Tensor, list[tuple[str, nn.Module | None]]] = {}
    named = list(_named(model))
    params = {name: p for name, p, _ in named}
    for name, p, module in named:
        if p.requires_grad:
            owners.setdefault(p, []).append((name, module))
    if not owners:
        raise ValueError("muon_param_groups got no parameters that require a gradient")
    groups: dict[str, list[tuple[str, Tensor]]] = {"matrices": [], "convolutions": [], "adamw": []}
    routes = []
    for p, owned in owners.items():
        name = owned[0][0]
        reason = "magnitude of weight_norm" if _is_magnitude(name, p, params) else _reason_for_adamw(p, owned, exclude)
        kind = "adamw" if reason else _kind(name, p, owned[0][1], "ndim_policy" in muon)
        groups[kind].append((name, p))
        if kind == "adamw":
            routes.append(Route(name, tuple(p.shape), "AdamW", reason))
        else:
            what = "convolution" if kind == "convolutions" else "matrix" if p.ndim == 2 else muon["ndim_policy"]
            routes.append(Route(name, tuple(p.shape), "Muon", what))
    made = [
        {"params": groups["matrices"], "use_muon": True, **muon},
        {"params": groups["convolutions"], "use_muon": True, **muon, "ndim_policy": "flatten"},
        {"params": groups["adamw"], "use_muon": False, **(adamw or {})},
    ]
    return MuonParamGroups((group for group in made if group["params"]), routes)


def _named(model: nn.Module | Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor, nn.Module | None]]:
    if not isinstance(model, nn.Module):
        for name, p in model:
            yield name, p, None
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    for prefix, module in modules.items():
        for own, p in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{own}" if prefix else own
            yield name, p, modules[_without_parametrization(name).rpartition(".")[0]]


def _without_parametrization(name: str) -> str:
    """The name that the parameter had before torch parametrized it."""
    return PARAMETRIZATION.sub(r"\1", name)


def _is_magnitude(name: str, p: Tensor, params: Mapping[str, Tensor]) -> bool:
    """Whether it is weight_norm's: a number for each slice of the direction, which lies beside it."""
    for end, of_direction in WEIGHT_NORM:
        direction = params.get(name.removesuffix(end) + of_direction) if name.endswith(end) else None
        if direction is not None and direction.ndim == p.ndim:
            fits = all(size in (1, whole) for size, whole in zip(p.shape, direction.shape, strict=True))
            return fits and sum(size != 1 for size in p.shape) <= 1
    return False


def _reason_for_adamw(p: Tensor, owned: Sequence[tuple[str, nn.Module | None]], exclude: Sequence[str]) -> str:
    """Why AdamW takes a parameter; empty if Muon does."""
    for name, module in owned:
        *_, owner, own = ["", *_without_parametrization(name).split(".")]
        tied = "" if name == owned[0][0] else f" (tied to {name})"
        if isinstance(module, EMBEDDINGS):
            return f"embedding{tied}"
        if module is None and any(fnmatchcase(part, each) for part in (owner, own) for each in NAMED_EMBEDDINGS):
            return f"embedding by its name{tied}"
        if NORMS.search(type(module).__name__):
            return f"norm{tied}"
        if any(fnmatchcase(own, pattern) for pattern in TABLES):
            return f"bias, position or token{tied}"
        for pattern in exclude:
            if any(fnmatchcase(part, pattern) for part in name.split(".")):
                return f"excluded by {pattern!r}{tied}"
    if p.ndim < 2:
        return f"{p.ndim} dimension{'s' * (p.ndim != 1)}"
    return "complex" if p.is_complex() else ""


def _kind(name: str, p: Tensor, module: nn.Module | None, policy_is_given: bool) -> str:
    if p.ndim > 2 and isinstance(module, CONVOLUTIONS):
        return "convolutions"
    if p.ndim == 2 or policy_is_given:
        return "matrices"
    raise ValueError(
        f"parameter {name!r} of shape {list(p.shape)} belongs to no convolution: say with muon={{'ndim_policy': ...}} "
        "whether to 'flatten' it or to take it as a 'batch' of matrices, or exclude it"
    )
