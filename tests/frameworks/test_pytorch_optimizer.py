"""pytorch_optimizer's wrappers around our optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import pytorch_optimizer as po
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ferrostep import optim

from .pages import OURS, THEIRS, assert_same_weights, run

pytestmark = pytest.mark.frameworks

AnyClass: TypeAlias = Any
WRAPPERS: dict[str, Callable[[AnyClass, nn.Module], Any]] = {
    "Lookahead": lambda cls, model: po.Lookahead(cls(model.parameters(), lr=1e-2)),
    "OrthoGrad": lambda cls, model: po.OrthoGrad(cls(model.parameters(), lr=1e-2)),
    "TRAC": lambda cls, model: po.TRAC(cls(model.parameters(), lr=1e-2)),
    "ScheduleFreeWrapper": lambda cls, model: po.ScheduleFreeWrapper(cls(model.parameters(), lr=1e-2)),
    "PCGrad": lambda cls, model: po.PCGrad(cls(model.parameters(), lr=1e-2)),
    "SAM": lambda cls, model: po.SAM(model.parameters(), cls, lr=1e-2),
    "WSAM": lambda cls, model: po.WSAM(model, model.parameters(), cls, lr=1e-2),
    "LookSAM": lambda cls, model: po.LookSAM(model.parameters(), cls, lr=1e-2),
    "FriendlySAM": lambda cls, model: po.FriendlySAM(model.parameters(), cls, lr=1e-2),
}


def train(wrapper: str, cls: AnyClass) -> nn.Module:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = (x @ torch.randn(6, 3)).argmax(-1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = WRAPPERS[wrapper](cls, model)
    if wrapper == "ScheduleFreeWrapper":
        optimizer.train()

    def closure() -> torch.Tensor:
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(12):
        optimizer.zero_grad()
        if wrapper == "PCGrad":
            optimizer.pc_backward([cross_entropy(model(x), y), model(x).square().mean()])
        else:
            closure()
        optimizer.step(*([closure] if "SAM" in wrapper else []))
    return model


def test_the_page_trains_as_with_torch() -> None:
    ours, theirs = run("pytorch_optimizer"), run("pytorch_optimizer", OURS, THEIRS)
    assert type(ours["optimizer"].optimizer) is optim.AdamW
    assert_same_weights(ours["model"], theirs["model"])


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_trains_as_with_torch(wrapper: str) -> None:
    assert_same_weights(train(wrapper, optim.AdamW), train(wrapper, torch.optim.AdamW))
