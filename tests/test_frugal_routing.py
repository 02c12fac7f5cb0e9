"""Which parameters of a model FRUGAL projects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ferrostep.optim import FRUGAL, FrugalParamGroups, frugal_param_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(8, 8)
        self.mlp = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(8, 16, bias=False)
        self.lm_head.weight = self.embed.weight


def kinds_of(groups: FrugalParamGroups) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for route in groups.routes:
        kinds.setdefault(route.optimizer, []).append(route.name)
    return kinds


LAYERS = [f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn", "mlp")]


@pytest.mark.parametrize(
    ("target", "free", "projected", "state_free"),
    [
        (None, (), LAYERS, []),
        (["attn", "mlp"], (), LAYERS, []),
        (["attn"], (), LAYERS[::2], []),
        ([r"blocks\.1\..*"], (), LAYERS[2:], []),
        (r".*mlp", (), LAYERS[1::2], []),
        (None, ["mlp"], LAYERS[::2], LAYERS[1::2]),
        (["blocks"], [r"blocks\.0\.attn"], LAYERS[1:], LAYERS[:1]),
    ],
    ids=str,
)
def test_routing(target: Any, free: Any, projected: list[str], state_free: list[str]) -> None:
    model = Decoder()
    groups = frugal_param_groups(model, target, free)
    kinds = kinds_of(groups)
    assert kinds["projected"] == projected
    assert kinds.get("state-free", []) == state_free
    assert "embed.weight" in kinds["state-full"]  # tied, and there once
    assert sum(len(names) for names in kinds.values()) == len(list(model.parameters()))
    assert str(groups).splitlines()[0].split() == ["parameter", "shape", "optimizer", "because"]
    optimizer = FRUGAL(groups)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    named = dict(model.named_parameters())
    for name in projected:
        assert optimizer.state[named[name]]["exp_avg"].shape == (8, 2)
    assert not any("exp_avg" in optimizer.state[named[name]] for name in state_free)
    assert optimizer.state[model.embed.weight]["exp_avg"].shape == (16, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": ["attention"]}, ValueError, "Invalid target: 'attention' matches no layer with a matrix"),
        ({"target": ["attn", "norm"]}, ValueError, "'norm' matches no layer"),
        ({"always_state_free": ["x"]}, ValueError, "Invalid always_state_free: 'x' matches no layer"),
        ({"always_state_free": "attn"}, TypeError, "always_state_free is the str 'attn'"),
        ({"target": ["*"]}, ValueError, r"'\*' is no regular expression"),
        ({"target": [3]}, TypeError, r"target\[0\] is a int"),
    ],
    ids=str,
)
def test_impossible_routing(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        frugal_param_groups(Decoder(), **arguments)


def test_all_linear_layers_of_pairs_and_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    assert kinds_of(frugal_param_groups(model, "all-linear"))["projected"] == [f"{i}.weight" for i in range(3)]
    pairs = [("a.attn.weight", torch.zeros(4, 4, requires_grad=True)), ("b.weight", model[0].weight)]
    assert kinds_of(frugal_param_groups(pairs, ["attn"]))["projected"] == ["a.attn.weight"]
