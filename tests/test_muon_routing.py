"""muon_param_groups: who goes to Muon and who to AdamW."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.nn.utils import parametrizations
from torch.nn.utils import weight_norm as older_weight_norm

from ferrostep.optim import MuonAdamW, MuonWithAuxAdamW, muon_param_groups
from tests.architectures import ARCHITECTURES


class Model(nn.Module):
    """A bit of everything."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.wte = nn.Embedding(10, 8)
        self.pos_embed = Parameter(torch.ones(5, 8))
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Linear(8, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.lm_head = nn.Linear(8, 10, bias=False)
        self.second = nn.Linear(8, 10, bias=False)
        if tied:
            self.second.weight = self.wte.weight


def routes(groups: object) -> dict[str, str]:
    return {route.name: route.optimizer for route in groups.routes}  # type: ignore[attr-defined]


@pytest.mark.smoke
def test_a_model_of_everything() -> None:
    model = Model(tied=False)
    groups = muon_param_groups(model)
    assert {name for name, optimizer in routes(groups).items() if optimizer == "Muon"} == {
        "conv.weight",
        "mlp.weight",
        "second.weight",
    }
    assert "frozen.weight" not in routes(groups)
    by_kind = {(g["use_muon"], g.get("ndim_policy")): [name for name, _ in g["params"]] for g in groups}
    assert by_kind[True, "flatten"] == ["conv.weight"]
    assert by_kind[True, None] == ["mlp.weight", "second.weight"]
    optimizer = MuonWithAuxAdamW(groups)
    assert optimizer.param_groups[0]["param_names"] == ["mlp.weight", "second.weight"]
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def test_tied_weights_stay_with_adamw_once() -> None:
    model = Model(tied=True)
    groups = muon_param_groups(model)
    assert routes(groups)["wte.weight"] == "AdamW"
    assert "second.weight" not in routes(groups)
    # The first name decides nothing: the head comes first here.
    reverse = nn.ModuleDict({"first": nn.Linear(8, 10, bias=False), "tokens": nn.Embedding(10, 8)})
    reverse["first"].weight = reverse["tokens"].weight
    (route,) = muon_param_groups(reverse).routes
    assert route.optimizer == "AdamW"
    assert route.reason == "embedding (tied to tokens.weight)"


def test_exclusion_and_arguments() -> None:
    groups = muon_param_groups(
        Model(tied=False),
        exclude=("second",),
        muon={"lr": 0.1, "normalize": "normuon"},
        adamw={"lr": 1e-3},
    )
    assert routes(groups)["second.weight"] == "AdamW"
    assert [g["lr"] for g in groups] == [0.1, 0.1, 1e-3]
    assert groups[0]["normalize"] == "normuon"


def test_the_table() -> None:
    text = str(muon_param_groups(Model(tied=False)))
    lines = text.splitlines()
    assert lines[0].split() == ["parameter", "shape", "optimizer", "because"]
    assert any(line.split() == ["conv.weight", "8x3x3x3", "Muon", "convolution"] for line in lines)
    assert any("output layer by its name 'lm_head'" in line for line in lines)


def test_experts_must_be_explained() -> None:
    named = [("experts", Parameter(torch.ones(2, 4, 4))), ("bias", Parameter(torch.ones(4)))]
    with pytest.raises(ValueError, match=r"parameter 'experts' of shape \[2, 4, 4\].*ndim_policy"):
        muon_param_groups(named)
    groups = muon_param_groups(named, muon={"ndim_policy": "batch"})
    assert groups[0]["ndim_policy"] == "batch"
    MuonWithAuxAdamW(groups)


def test_convolutions_and_experts_in_one_call() -> None:
    model = Model(tied=False)
    model.experts = Parameter(torch.ones(2, 4, 4))
    groups = muon_param_groups(model, muon={"ndim_policy": "batch"})
    by_policy = {g["ndim_policy"]: [name for name, _ in g["params"]] for g in groups if g["use_muon"]}
    assert by_policy == {"batch": ["experts", "mlp.weight", "second.weight"], "flatten": ["conv.weight"]}
    MuonWithAuxAdamW(groups)


class LlamaRMSNorm(nn.Module):
    """Named as transformers names its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(torch.ones(4, 4))


def test_norms_biases_and_tables_go_to_adamw_whatever_their_shape() -> None:
    model = nn.ModuleDict(
        {"a": nn.LayerNorm((4, 4)), "b": LlamaRMSNorm(), "c": nn.BatchNorm2d(4), "d": nn.Linear(4, 4)}
    )
    for name in ("r_w_bias", "relative_position_bias_table", "rel_pos_h", "cls_token"):
        model.register_parameter(name, Parameter(torch.ones(4, 4)))
    chosen = routes(muon_param_groups(model))
    assert [name for name, optimizer in chosen.items() if optimizer == "Muon"] == ["d.weight"]
    assert "rel_pos_h" in chosen
    assert routes(muon_param_groups([("x.bias", Parameter(torch.ones(4, 4)))])) == {"x.bias": "AdamW"}


PARAMETRIZED: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, str]]]] = {
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(8, 6, bias=False)),
        {"original0": ("AdamW", "magnitude of weight_norm"), "original1": ("Muon", "matrix")},
    ),
    "weight_norm over columns": (
        lambda: parametrizations.weight_norm(nn.Linear(8, 6, bias=False), dim=1),
        {"original0": ("AdamW", "magnitude of weight_norm"), "original1": ("Muon", "matrix")},
    ),
    "weight_norm over all": (
        lambda: parametrizations.weight_norm(nn.Linear(8, 6, bias=False), dim=None),
        {"original0": ("AdamW", "0 dimensions"), "original1": ("Muon", "matrix")},
    ),
    "weight_norm of a convolution": (
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 6, 3, bias=False)),
        {"original0": ("AdamW", "magnitude of weight_norm"), "original1": ("Muon", "convolution")},
    ),
    "weight_norm of an embedding": (
        lambda: parametrizations.weight_norm(nn.Embedding(8, 6)),
        {"original0": ("AdamW", "magnitude of weight_norm"), "original1": ("AdamW", "embedding")},
    ),
    "the older weight_norm": (
        lambda: older_weight_norm(nn.Linear(8, 6, bias=False)),
        {"weight_g": ("AdamW", "magnitude of weight_norm"), "weight_v": ("Muon", "matrix")},
    ),
    "the older weight_norm of a convolution": (
        lambda: older_weight_norm(nn.Conv1d(3, 6, 3, bias=False)),
        {"weight_g": ("AdamW", "magnitude of weight_norm"), "weight_v": ("Muon", "convolution")},
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(8, 6, bias=False)),
        {"original": ("Muon", "matrix")},
    ),
    "spectral_norm of a convolution": (
        lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(3, 6, 3, bias=False)),
        {"original": ("Muon", "convolution")},
    ),
    "spectral_norm of a norm": (
        lambda: parametrizations.spectral_norm(nn.LayerNorm((4, 4), bias=False)),
        {"original": ("AdamW", "norm")},
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("case", PARAMETRIZED)
def test_parametrized_weights_go_where_the_weight_would(case: str, inside: bool) -> None:
    make, expected = PARAMETRIZED[case]
    module = nn.ModuleDict({"layer": make()}) if inside else make()
    groups = muon_param_groups(module)
    assert {route.name.rpartition(".")[2]: (route.optimizer, route.reason) for route in groups.routes} == expected
    MuonWithAuxAdamW(groups)


def test_a_factor_beside_another_is_no_magnitude() -> None:
    named = [("a.original0", Parameter(torch.ones(6, 2))), ("a.original1", Parameter(torch.ones(6, 8)))]
    named += [("factor_g", Parameter(torch.ones(4, 3))), ("last", Parameter(torch.ones(2, 4)))]
    found = routes(muon_param_groups(named))
    assert found == {"a.original0": "Muon", "a.original1": "Muon", "factor_g": "Muon", "last": "AdamW"}


@pytest.mark.parametrize(
    "name",
    [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "wpe",
        "bert.embeddings.word_embeddings.weight",
        "model.embed_tokens.weight",
        "tok_embeddings.weight",
        "decoder.position_embeddings.weight",
        "pos_emb.weight",
        "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "wte.parametrizations.weight.original",
    ],
)
def test_names_of_embeddings_decide_where_no_module_does(name: str) -> None:
    named = [(name, Parameter(torch.ones(4, 4))), ("time_emb_proj.weight", Parameter(torch.ones(4, 4)))]
    groups = muon_param_groups(named, exclude=())
    assert routes(groups) == {name: "AdamW", "time_emb_proj.weight": "Muon"}
    assert routes(muon_param_groups(nn.ModuleDict({"shared": nn.Linear(4, 4)})))["shared.weight"] == "Muon"


def layers(*made: nn.Module) -> nn.Module:
    return nn.Sequential(*made)


ENDS: dict[str, tuple[nn.Module, list[str]]] = {
    "a perceptron": (layers(nn.Linear(4, 8), nn.Linear(8, 2)), ["0"]),
    "one layer": (layers(nn.Linear(4, 8)), ["0"]),
    "grey images": (layers(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 8), nn.Linear(8, 2)), ["1", "2"]),
    "a critic": (layers(nn.Conv2d(3, 8, 4), nn.Conv2d(8, 8, 4), nn.Conv2d(8, 1, 4)), ["1"]),
    "a generator": (layers(*[nn.ConvTranspose2d(m, n, 4) for m, n in ((9, 8), (8, 8), (8, 3))]), ["1"]),
    "text": (layers(nn.Embedding(9, 8), nn.Conv1d(8, 8, 3), nn.Linear(8, 9)), ["1"]),
    "blocks alike": (layers(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)]), ["0.0", "1.0"]),
    "an inner fc": (nn.ModuleDict({"a": nn.ModuleDict({"fc": nn.Linear(8, 8)}), "fc": nn.Linear(8, 2)}), ["a.fc"]),
    "a head of two": (
        nn.ModuleDict({"a": nn.Linear(8, 8), "head": layers(nn.Linear(8, 8), nn.Linear(8, 2))}),
        ["a", "head.0"],
    ),
    "a gate beside none": (nn.ModuleDict({"gate": nn.Linear(8, 8), "last": nn.Linear(8, 8)}), ["gate"]),
    "a gate beside experts": (
        nn.ModuleDict({"gate": nn.Linear(8, 4), "experts": nn.ModuleList([nn.Linear(8, 8)]), "head": nn.Linear(8, 2)}),
        ["experts.0"],
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_what_a_model_begins_and_ends_with(case: str) -> None:
    model, expected = ENDS[case]
    assert [
        r.name.removesuffix(".weight") for r in muon_param_groups(model).routes if r.optimizer == "Muon"
    ] == expected


def test_an_excluded_layer_at_the_end_is_the_last() -> None:
    model = layers(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    assert routes(muon_param_groups(model, exclude=("2",)))["1.weight"] == "Muon"
    assert routes(muon_param_groups(model, include=("2",)))["2.weight"] == "Muon"


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")  # of frameworks, about one another
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_in_use(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build(pytest.importorskip(architecture.package))
    found = {route.name: route for route in MuonAdamW(model).routes}
    assert list(found) == [each for each, _ in model.named_parameters()]
    used = set()
    for each, route in found.items():
        matching = [
            {pattern for pattern in patterns if fnmatchcase(each, pattern)} if len(route.shape) > 1 else set()
            for patterns in (architecture.muon, architecture.adamw)
        ]
        assert [bool(patterns) for patterns in matching] == [
            route.optimizer == "Muon",
            len(route.shape) > 1 and route.optimizer == "AdamW",
        ], route
        used |= matching[0] | matching[1]
    assert used == {*architecture.muon, *architecture.adamw}


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_alone_say_nearly_as_much(name: str) -> None:
    """Without modules less goes to Muon, by a matrix for each pair of tied names, and by what only modules know."""
    architecture = ARCHITECTURES[name]
    model = architecture.build(pytest.importorskip(architecture.package))
    by_module, by_name = (routes(MuonAdamW(each)) for each in (model, list(model.named_parameters())))
    assert by_module.keys() == by_name.keys()
    differing = [each for each in by_module if by_module[each] != by_name[each]]
    assert len(differing) <= 1, differing
    assert all(by_module[each] == "Muon" for each in differing), differing


def test_nothing_to_route() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        muon_param_groups([])


def test_conv1d_flattens_without_a_word() -> None:
    (group,) = muon_param_groups(nn.Conv1d(3, 4, 3, bias=False))
    assert group["ndim_policy"] == "flatten"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, TypeError, "model is a NoneType, expected a module, or pairs of names and parameters"),
        ("model", TypeError, "model has a str at 0, expected a module, or pairs"),
        ([nn.Parameter(torch.ones(3, 3))], TypeError, "model has a Parameter at 0, expected a module, or pairs"),
        (nn.LazyLinear(3), RuntimeError, "parameter 'weight' is of a lazy module and has no shape yet: run the module"),
    ],
    ids=["nothing", "a word", "parameters", "a lazy module"],
)
def test_what_is_no_model_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        muon_param_groups(given)


def test_a_model_that_cannot_say_its_output_is_routed_by_names() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.score = nn.Linear(4, 2)

        def get_output_embeddings(self) -> nn.Module:
            raise RuntimeError("not this one")

    assert [route.name for route in muon_param_groups(Model()).routes if route.layout] == ["body.weight"]


def test_one_pattern_is_no_sequence_of_them() -> None:
    with pytest.raises(
        TypeError, match=r"exclude is the str '\*head', expected a sequence of patterns, such as \['\*head'\]"
    ):
        muon_param_groups(nn.Linear(3, 2), exclude="*head")
