"""What parameters are to their model, as far as modules, names and shapes say: the reasons why AdamW takes some."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = re.compile(r"Norm(\dd)?$")
"""What torch's and transformers' classes of norms end in."""
LAYERS = re.compile(r"Linear|Conv(Transpose)?\dd|Conv1D")
"""What classes of layers that are one matrix have in their names; the last is GPT-2's in transformers."""

INPUTS = ("*embed*", "conv_in")
"""What embeddings are called: the parameter, its layer, or what holds this layer."""
NAMED_EMBEDDINGS = ("*_emb", "emb", "wte", "wpe", "shared", "*attention_bias")
"""The same for a parameter or its layer where no module says what they are; the last two are T5's."""
TABLES = ("*bias*", "*position*", "*pos_*", "*_token", "*_tokens", "*_table", "*_log")
"""Names that parameters have which are no factor of a matrix product, whatever their shape; the last is Mamba's."""
OUTPUTS = (
    "*head",
    "*classifier",
    "*logits",
    "*predictor",
    "*predictions",
    "score",
    "qa_outputs",
    "conv_out",
    "head_dist",
)
"""What output layers are called, or what holds one as its last."""
OUTPUTS_AT_THE_TOP = ("fc", "out", "output", "output_layer", "final_layer", "proj_out*")
"""Names that hidden layers have as well, but not those that the model holds itself."""
OUTPUTS_OF_MODELS = ("text_projection", "visual_projection", "action_net", "value_net")
"""The same of CLIP and of Stable-Baselines3's policies."""
WRAPPERS = ("module", "model", "net", "base_model", "_orig_mod", "_forward_module", "_fsdp_wrapped_module")
"""What models are called by what holds them."""
ADAPTERS = re.compile(r"^(lora|hada|lokr|vera|ia3)_|_lora$")
"""How names of parts of adapters begin or end in PEFT and diffusers."""
ROUTERS = ("*router*", "*gating*")
GATES = ("gate", "*_gate")
"""Routers, too, but only beside experts: gates of gated layers have these names as well."""

PARAMETRIZATION = re.compile(r"parametrizations\.([^.]+)\.original\d*$")
"""What torch's parametrizations make of the end of a parameter's name."""
WEIGHT_NORM = (("original0", "original1"), ("_g", "_v"))
"""Ends of the names of magnitudes and directions in torch's weight_norm, the parametrization and the older hook."""

ADAPTER = "adapter of low rank"
SINGLE_CHANNELS = "convolution of single channels"
ONE_ROW = "one row or column"
EXCLUDED = "excluded by"
EMBEDDING = "embedding"
SAID_TO_BE_INPUT = "said by get_input_embeddings()"
NO_ROLE = (SINGLE_CHANNELS, ONE_ROW, EXCLUDED)
"""Reasons that a layer may have wherever it is in its model."""
VOCABULARY = 30_000
"""From so many rows on a matrix without a name is taken for an embedding or an output layer."""
THIN = 32
"""From this ratio of its sides on a matrix without a name is taken for a factor of low rank or a small output layer."""


class Named(NamedTuple):
    """A parameter under one of its names."""

    name: str
    p: Tensor
    module: nn.Module | None = None
    """The layer that has it, where it is known."""

    @property
    def parts(self) -> list[str]:
        """The parts of the name that it had before torch parametrized it."""
        return PARAMETRIZATION.sub(r"\1", self.name).split(".")


def named_of(model: nn.Module) -> Iterator[Named]:
    """A module's parameters with all their names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for prefix, module in modules.items():
        for own, p in module.named_parameters(recurse=False, remove_duplicate=False):
            each = Named(f"{prefix}.{own}" if prefix else own, p)
            yield each._replace(module=modules[".".join(each.parts[:-1])])


def model_of(params: object) -> nn.Module | None:
    """The module whose ``parameters()`` or ``named_parameters()`` a generator is, from the beginning."""
    made_by = (nn.Module.parameters.__code__, nn.Module.named_parameters.__code__)
    if not inspect.isgenerator(params) or params.gi_code not in made_by:
        return None
    if inspect.getgeneratorstate(params) != inspect.GEN_CREATED:
        return None
    arguments = inspect.getgeneratorlocals(params)
    return arguments["self"] if arguments["recurse"] and not arguments.get("prefix") else None


def owners_of(named: Iterable[Named]) -> dict[Tensor, list[Named]]:
    """Each parameter once, with all its names."""
    owners: dict[Tensor, list[Named]] = {}
    for each in named:
        owners.setdefault(each.p, []).append(each)
    return owners


def reasons_by_name(
    named: Sequence[Named], models: Iterable[nn.Module], exclude: Sequence[str], include: Sequence[str]
) -> dict[Tensor, str]:
    """For each named parameter why AdamW takes it; empty if Muon does."""
    owners = owners_of(named)
    beside = Beside(named)
    reasons = {p: _reason_by_itself(owned, beside, exclude) for p, owned in owners.items()}
    hidden = [owned[0] for p, owned in owners.items() if not reasons[p]]
    if len(hidden) > 1:  # one layer by itself is neither the first nor the last
        reasons.update(_first_convolution(owners, reasons))
    inputs, outputs = _declared(models)
    outputs = {**outputs, **_outputs_by_name(each for each in named if not reasons[each.p].startswith(ADAPTER))}
    for p, reason in {**outputs, **inputs}.items():
        if not reasons.get(p, reason):
            reasons[p] = reason
    if not outputs and len(hidden) > 1:
        reasons.update(_last_layer(owners, reasons))
    for p, owned in owners.items():
        if p.ndim > 1 and not p.is_complex() and any(_matches(each.parts, include) for each in owned):
            reasons[p] = ""
    return reasons


def reasons_by_shape(params: Sequence[Tensor]) -> list[str]:
    """The same for parameters of which nothing is known but their shapes and their order."""
    reasons = [_reason_by_shape(p) for p in params]
    matrices = [i for i, p in enumerate(params) if p.ndim in (2, 4, 5)]
    if len(matrices) > 1:
        reasons[matrices[-1]] = reasons[matrices[-1]] or "last of the unnamed matrices"
    if len(matrices) > 2:
        reasons[matrices[0]] = reasons[matrices[0]] or "first of the unnamed matrices"
    return reasons


def layout_of(each: Named, policy: str | None = None) -> str | None:
    """How Muon is to see a parameter as matrices, as its ``ndim_policy`` says it; None if nothing tells."""
    if each.p.ndim == 2:
        return "error"  # no policy is needed
    if isinstance(each.module, CONVOLUTIONS):
        return "flatten"
    if policy is not None:
        return policy
    if any("expert" in part for part in each.parts):
        return "batch"
    is_convolution = each.p.ndim in (4, 5) or any("conv" in part for part in each.parts[-2:])
    return "flatten" if each.module is None and is_convolution else None


def is_embedding(name: str, p: Tensor) -> bool:
    """Whether a parameter is an embedding, as far as its name tells."""
    return is_of_embedding(_reason_by_name(Named(name, p), Beside(()), ()))


def is_of_embedding(reason: str) -> bool:
    """Whether it is the reason for an embedding."""
    return reason.startswith((EMBEDDING, SAID_TO_BE_INPUT))


class Beside:
    """What lies beside a parameter, by its name."""

    def __init__(self, named: Iterable[Named]) -> None:
        self.params = {each.name: each.p for each in named}
        self.with_experts = set()
        for name in self.params:
            parts = name.split(".")
            for i, part in enumerate(parts):
                if "experts" in part:
                    self.with_experts.add(tuple(parts[:i]))

    def has_experts(self, parts: Sequence[str]) -> bool:
        """Whether experts lie beside a layer."""
        return tuple(parts[:-2]) in self.with_experts

    def has_direction(self, name: str, p: Tensor) -> bool:
        """Whether it is weight_norm's: a number for each slice of the direction, which lies beside it."""
        for end, of_direction in WEIGHT_NORM:
            direction = self.params.get(name.removesuffix(end) + of_direction) if name.endswith(end) else None
            if direction is not None and direction.ndim == p.ndim:
                fits = all(size in (1, whole) for size, whole in zip(p.shape, direction.shape, strict=True))
                return fits and sum(size != 1 for size in p.shape) <= 1
        return False


def _reason_by_itself(owned: Sequence[Named], beside: Beside, exclude: Sequence[str]) -> str:
    """Why AdamW takes a parameter, under any of its names."""
    p = owned[0].p
    if beside.has_direction(owned[0].name, p):
        return "magnitude of weight_norm"
    for each in owned:
        reason = _reason_by_name(each, beside, exclude)
        if reason:
            return reason if each is owned[0] else f"{reason} (tied to {each.name})"
    if p.ndim < 2:
        return f"{p.ndim} dimension{'s' * (p.ndim != 1)}"
    if p.is_complex():
        return "complex"
    may_be_convolution = owned[0].module is None or isinstance(owned[0].module, CONVOLUTIONS)
    return _reason_by_sides(p) if p.ndim == 2 or may_be_convolution else ""


def _reason_by_name(each: Named, beside: Beside, exclude: Sequence[str]) -> str:
    parts = each.parts
    if isinstance(each.module, EMBEDDINGS):
        return EMBEDDING
    if each.module is None and _matches(parts[-2:], NAMED_EMBEDDINGS):
        return "embedding by its name"
    if NORMS.search(type(each.module).__name__):
        return "norm"
    if _matches(parts[-1:], TABLES):
        return "bias, position or token"
    pattern = _matches(parts, exclude)
    if pattern:
        return f"{EXCLUDED} {pattern!r}"
    if _matches(parts[-3:], INPUTS):
        return "embedding by its name"
    if any(ADAPTERS.search(part) for part in parts):
        return ADAPTER
    if _matches(parts[-3:-1], ROUTERS) or (_matches(parts[-2:-1], GATES) and beside.has_experts(parts)):
        return "router of experts"
    return ""


def _matches(parts: Iterable[str], patterns: Iterable[str]) -> str:
    """The first pattern that one of the parts matches; empty if none."""
    parts = list(parts)
    return next((pattern for pattern in patterns if any(fnmatchcase(part, pattern) for part in parts)), "")


def _declared(models: Iterable[nn.Module]) -> tuple[dict[Tensor, str], dict[Tensor, str]]:
    """The input and output layers that models of transformers and timm, or parts of a model, say they have."""
    found: tuple[dict[Tensor, str], dict[Tensor, str]] = {}, {}
    methods = (("get_input_embeddings", found[0]), ("get_output_embeddings", found[1]), ("get_classifier", found[1]))
    for model in models:
        for module in model.modules():
            for method, layers in methods:
                layers.update((p, f"said by {method}()") for p in _matrices_said_by(module, method))
    return found


def _matrices_said_by(module: nn.Module, method: str) -> Iterator[Tensor]:
    try:
        said = getattr(module, method)()
    except Exception:  # it needs arguments, or is not for this model: others' code, which only gives a hint
        return
    for layer in said if isinstance(said, (tuple, list)) else [said]:
        matrices = [p for p in layer.parameters() if p.ndim > 1] if isinstance(layer, nn.Module) else []
        yield from matrices if method == "get_input_embeddings" else matrices[-1:]


def _outputs_by_name(named: Iterable[Named]) -> dict[Tensor, str]:
    """The last matrix of each module that is called what output layers are called."""
    last: dict[tuple[str, ...], tuple[Tensor, str]] = {}
    for each in named:
        parts = each.parts
        top = next((i for i, part in enumerate(parts) if part not in WRAPPERS), 0)
        for i, part in enumerate(parts):
            patterns = (*OUTPUTS, *OUTPUTS_AT_THE_TOP, *OUTPUTS_OF_MODELS) if i == top else OUTPUTS
            if each.p.ndim > 1 and _matches([part], patterns):
                last[tuple(parts[: i + 1])] = each.p, f"output layer by its name {part!r}"
    return dict(last.values())


def _first_convolution(owners: Mapping[Tensor, Sequence[Named]], reasons: Mapping[Tensor, str]) -> dict[Tensor, str]:
    """The layer that a model begins with, if it is a convolution."""
    for p, (each, *_) in owners.items():
        if p.ndim > 1 and reasons[p].startswith(("embedding", SINGLE_CHANNELS)):
            return {}
        if p.ndim == 2 and not reasons[p] and _is_layer(each):
            return {}
        if p.ndim > 2 and not reasons[p] and layout_of(each) == "flatten":
            return {p: "first convolution"}
    return {}


def _last_layer(owners: Mapping[Tensor, Sequence[Named]], reasons: Mapping[Tensor, str]) -> dict[Tensor, str]:
    """The layer that a model ends with, unless it is one of several blocks that are alike."""
    may_end = [
        owned[0]
        for p, owned in owners.items()
        if p.ndim > 1 and _is_layer(owned[0]) and (not reasons[p] or reasons[p].startswith(NO_ROLE))
    ]
    if not may_end or reasons[may_end[-1].p]:
        return {}
    last = may_end[-1]
    block = _without_numbers(last.parts)
    twins = [each for each in may_end if _without_numbers(each.parts) == block and each.p.shape == last.p.shape]
    return {last.p: "last layer"} if len(twins) == 1 else {}


def _is_layer(each: Named) -> bool:
    return each.module is None or LAYERS.search(type(each.module).__name__) is not None


def _without_numbers(parts: Sequence[str]) -> tuple[str, ...]:
    """A name without the numbers of blocks; that of a layer by itself, as in ``nn.Sequential``, stays."""
    return (*("#" if part.isdigit() else part for part in parts[:-2]), *parts[-2:])


def _reason_by_shape(p: Tensor) -> str:
    if p.ndim < 2 or p.ndim == 3 or p.ndim > 5:
        return f"{p.ndim} dimension{'s' * (p.ndim != 1)}"
    if p.is_complex():
        return "complex"
    if _reason_by_sides(p):
        return _reason_by_sides(p)
    rows, columns = p.shape[0], p.shape[1:].numel()
    if rows >= VOCABULARY > columns:
        return f"{rows} rows, as many as a vocabulary"
    return "thin" if max(rows, columns) >= THIN * min(rows, columns) else ""


def _reason_by_sides(p: Tensor) -> str:
    if p.ndim > 2 and p.shape[1] == 1:
        return SINGLE_CHANNELS
    return ONE_ROW if 1 in (p.shape[0], p.shape[1:].numel()) else ""
