"""Which parameters of a model Muon takes, and which AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ferrostep.errors import wrong_kind
from ferrostep.optim.options import check_has_shape
from ferrostep.optim.roles import CONVOLUTIONS, Named, model_of, named_of, owners_of, reasons_by_name
from ferrostep.suggestions import suggesting


class Route(NamedTuple):
    """Where a parameter goes, and why."""

    name: str
    shape: tuple[int, ...]
    optimizer: str
    reason: str
    layout: str | None = None
    """What ``ndim_policy`` Muon takes for it; None with AdamW."""


class Routes(tuple[Route, ...]):
    """Where the parameters of a model go; printed, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        rows = [(r.name, "x".join(map(str, r.shape)) or "scalar", r.optimizer, r.reason) for r in self]
        return in_columns([("parameter", "shape", "optimizer", "because"), *rows])


class RoutedGroups(list[dict[str, Any]]):
    """Parameter groups with the routes that made them; printed, a table of who goes where."""

    def __init__(self, groups: Iterable[dict[str, Any]], routes: Sequence[Route]) -> None:
        super().__init__(groups)
        self.routes = Routes(routes)

    def __str__(self) -> str:
        return str(self.routes)


class MuonParamGroups(RoutedGroups):
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


@suggesting
def muon_param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    *,
    muon: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
) -> MuonParamGroups:
    """Route a model's parameters: hidden matrices to Muon; embeddings, output layers, norms and biases to AdamW.

    A parameter goes to AdamW under any of its names, where several modules share it, if

    - it has fewer than 2 dimensions, or belongs to a norm (a class whose name ends in Norm, Norm1d, ...), or its own
      name is that of a bias, a position table or a learned token, or it is the magnitude of ``weight_norm``;
    - it belongs to an ``nn.Embedding`` or ``nn.EmbeddingBag``, to what ``get_input_embeddings()`` of transformers
      gives, or itself, its layer or what holds this is called ``*embed*`` (position and patch embeddings as well) or
      ``conv_in``, or it is the convolution that the model begins with;
    - it is an output layer: what ``get_output_embeddings()`` of transformers or ``get_classifier()`` of timm gives;
      the last matrix in what is called ``head``, ``*_head``, ``*classifier``, ``score``, ``*logits``, ``*predictor``
      or the like, or held by the model itself as ``fc``, ``out``, ``output`` or ``proj_out``; and where there is no
      such layer, the last linear one or convolution in the order of modules, unless it is one of several blocks;
    - it is a part of a low-rank adapter (``lora_A``, ``lora_B``, ...): as B begins at zero, A's first gradients are
      next to nothing, which Muon would follow by steps of full size, and of the product BA, which is what the model
      sees, neither factor's orthogonal direction is the orthogonal one;
    - it is the router of experts, an output layer of few rows; a convolution of single channels, which is no product
      of matrices; or a matrix of one row or column;
    - a part of its name matches a pattern of ``exclude``.

    Convolutions are flattened to (out, in * kernel). What torch's parametrizations made of a weight (``weight_norm``'s
    direction, the original of ``spectral_norm`` or ``orthogonal``) goes where the weight would.

    Weights that are stored as (in, out), those of transposed convolutions and of transformers' ``Conv1D`` (GPT-2), are
    taken as they lie. Their update is orthogonalized all the same, but ``adjust_lr_fn`` and NorMuon take in for out:
    with ``adjust_lr_fn="match_rms_adamw"`` and without NorMuon there is no difference.

    Args:
        model: a module, or ``(name, parameter)`` pairs as from ``named_parameters(remove_duplicate=False)``. Pairs do
            not say what is an embedding: the usual names (``wte``, ``wpe``, ``...embed...``, ``..._emb``) do then.
        exclude: shell-style patterns for parts of names (``layers.0.weight`` has three parts) that AdamW takes besides.
        include: patterns for parts of names that Muon takes whatever is said above, if it can.
        muon: arguments of the Muon groups. ``ndim_policy`` says what parameters of more than 2 dimensions are that
            belong to no convolution, such as stacked experts.
        adamw: arguments of the AdamW group.

    The parameters may have any shape and dtype; complex ones go to AdamW.

    Returns:
        Up to three groups, each with its parameters' names; ``print`` shows the routing, ``routes`` holds it.
        Parameters that do not require a gradient are left out.

    Raises:
        ValueError: no parameters, or one of more than 2 dimensions that is no convolution's, without ``ndim_policy``.
        TypeError: ``exclude`` or ``include`` is a string.

    Example:
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.LayerNorm(4))
        >>> [group["use_muon"] for group in muon_param_groups(model)]
        [True, False]
    """
    check_patterns(exclude=exclude, include=include)
    muon = dict(muon or {})
    owners, reasons = owners_and_reasons(model, exclude, include)
    groups: dict[str, list[tuple[str, Tensor]]] = {"matrices": [], "convolutions": [], "adamw": []}
    routes = []
    for p, (each, *_) in owners.items():
        if p.requires_grad:
            kind = "adamw" if reasons[p] else kind_for_muon(each, "ndim_policy" in muon)
            layout = {"adamw": None, "convolutions": "flatten"}.get(kind, muon.get("ndim_policy", "error"))
            groups[kind].append((each.name, p))
            routes.append(route_to(each, layout, reasons[p]))
    if not routes:
        raise ValueError("muon_param_groups got no parameters that require a gradient")
    made = [
        {"params": groups["matrices"], "use_muon": True, **muon},
        {"params": groups["convolutions"], "use_muon": True, **muon, "ndim_policy": "flatten"},
        {"params": groups["adamw"], "use_muon": False, **(adamw or {})},
    ]
    return MuonParamGroups((group for group in made if group["params"]), routes)


def check_patterns(**patterns: Sequence[str]) -> None:
    """Raise TypeError for what is no sequence of strings, such as one string in the place of a sequence."""
    for name, given in patterns.items():
        if isinstance(given, str):
            raise TypeError(f"{name} is the str {given!r}, expected a sequence of patterns, such as [{given!r}]")
        if not isinstance(given, Iterable):
            raise wrong_kind(name, given, "a sequence of patterns")
        for i, pattern in enumerate(given):
            if not isinstance(pattern, str):
                raise wrong_kind(f"{name}[{i}]", pattern, "a str")


def owners_and_reasons(
    model: Any, exclude: Sequence[str] = (), include: Sequence[str] = ()
) -> tuple[dict[Tensor, list[Named]], dict[Tensor, str]]:
    """Each parameter with all its names, and why AdamW takes it; empty if Muon does."""
    named, models = read_model(model)
    for each in named:
        check_has_shape(f"parameter {each.name!r}", each.p)
    return owners_of(named), reasons_by_name(named, models, exclude, include)


def read_model(model: Any) -> tuple[list[Named], list[nn.Module]]:
    """Parameters under all their names, of a module or of pairs, and the module if there is one."""
    model = model_of(model) or model
    return (list(named_of(model)), [model]) if isinstance(model, nn.Module) else (read_pairs(model), [])


def read_pairs(pairs: Any) -> list[Named]:
    """Pairs of names and parameters; TypeError for what is none."""
    expected = "a module, or pairs of names and parameters"
    if not isinstance(pairs, Iterable):
        raise wrong_kind("model", pairs, expected)
    named = []
    for i, pair in enumerate(pairs):
        match pair:
            case (str() as name, Tensor() as p):
                named.append(Named(name, p))
            case _:
                raise TypeError(f"model has a {type(pair).__name__} at {i}, expected {expected}")
    return named


def route_to(each: Named, layout: str | None, reason: str) -> Route:
    """The route of a parameter: to Muon if a layout is given, which then is the reason."""
    kinds = {"error": "matrix", "flatten": "convolution" if isinstance(each.module, CONVOLUTIONS) else "flatten"}
    if layout is None:
        return Route(each.name, tuple(each.p.shape), "AdamW", reason)
    what = "matrix" if each.p.ndim == 2 else kinds.get(layout, layout)
    return Route(each.name, tuple(each.p.shape), "Muon", what, layout)


def kind_for_muon(each: Named, policy_is_given: bool) -> str:
    """Which of Muon's groups a parameter goes to; ValueError where nothing tells."""
    if each.p.ndim > 2 and isinstance(each.module, CONVOLUTIONS):
        return "convolutions"
    if each.p.ndim == 2 or policy_is_given:
        return "matrices"
    raise ValueError(
        f"parameter {each.name!r} of shape {list(each.p.shape)} belongs to no convolution: say with "
        "muon={'ndim_policy': ...} whether to 'flatten' it or to take it as a 'batch' of matrices, or exclude it"
    )


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows below each other, without spaces at their ends."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows)
