"""muon_param_groups: who goes to Muon and who to AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from ferrostep.optim import MuonWithAuxAdamW, muon_param_groups


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
        self.out = nn.Linear(8, 10, bias=False)
        if tied:
            self.out.weight = self.wte.weight


def routes(groups: object) -> dict[str, str]:
    return {route.name: route.optimizer for route in groups.routes}  # type: ignore[attr-defined]


def test_a_model_of_everything() -> None:
    model = Model(tied=False)
    groups = muon_param_groups(model)
    assert {name for name, optimizer in routes(groups).items() if optimizer == "Muon"} == {
        "conv.weight",
        "mlp.weight",
        "out.weight",
    }
    assert "frozen.weight" not in routes(groups)
    by_kind = {(g["use_muon"], g.get("ndim_policy")): [name for name, _ in g["params"]] for g in groups}
    assert by_kind[True, "flatten"] == ["conv.weight"]
    assert by_kind[True, None] == ["mlp.weight", "out.weight"]
    optimizer = MuonWithAuxAdamW(groups)
    assert optimizer.param_groups[0]["param_names"] == ["mlp.weight", "out.weight"]
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def test_tied_weights_stay_with_adamw_once() -> None:
    model = Model(tied=True)
    groups = muon_param_groups(model)
    assert routes(groups)["wte.weight"] == "AdamW"
    assert "out.weight" not in routes(groups)
    # The first name decides nothing: the head comes first here.
    reverse = nn.ModuleDict({"first": nn.Linear(8, 10, bias=False), "tokens": nn.Embedding(10, 8)})
    reverse["first"].weight = reverse["tokens"].weight
    (route,) = muon_param_groups(reverse).routes
    assert route.optimizer == "AdamW"
    assert route.reason == "embedding (tied to tokens.weight)"


def test_exclusion_and_arguments() -> None:
    groups = muon_param_groups(
        Model(tied=False),
        exclude=("out", "*embed*", "*head"),
        muon={"lr": 0.1, "normalize": "normuon"},
        adamw={"lr": 1e-3},
    )
    assert routes(groups)["out.weight"] == "AdamW"
    assert [g["lr"] for g in groups] == [0.1, 0.1, 1e-3]
    assert groups[0]["normalize"] == "normuon"


def test_the_table() -> None:
    text = str(muon_param_groups(Model(tied=False)))
    lines = text.splitlines()
    assert lines[0].split() == ["parameter", "shape", "optimizer", "because"]
    assert any(line.split() == ["conv.weight", "8x3x3x3", "Muon", "convolution"] for line in lines)
    assert any("excluded by '*head'" in line for line in lines)


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
    assert by_policy == {"batch": ["experts", "mlp.weight", "out.weight"], "flatten": ["conv.weight"]}
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


def test_nothing_to_route() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        muon_param_groups([])


def test_conv1d_flattens_without_a_word() -> None:
    (group,) = muon_param_groups(nn.Conv1d(3, 4, 3, bias=False))
    assert group["ndim_policy"] == "flatten"
