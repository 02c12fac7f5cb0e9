"""schedulefree's wrapper around our optimizers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferrostep import optim

from .pages import assert_same_weights, run

pytest.importorskip("schedulefree")
from schedulefree import ScheduleFreeWrapper, ScheduleFreeWrapperReference

pytestmark = pytest.mark.frameworks


def test_the_page_trains() -> None:
    names = run("schedulefree")
    assert type(names["optimizer"].base) is optim.AdamW
    model, x, y = names["model"], names["x"], names["y"]
    assert (model(x).argmax(-1) == y).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [optim.AdamW, optim.Lion, optim.AuON])
def test_the_wrapper_and_its_reference_agree(cls: type[torch.optim.Optimizer], dtype: torch.dtype) -> None:
    """The one exchanges memory with the parameter, the other copies."""
    models = []
    for wrapper in (ScheduleFreeWrapper, ScheduleFreeWrapperReference):
        torch.manual_seed(0)
        model = nn.Linear(6, 3, bias=False).to(dtype)
        optimizer = wrapper(cls(model.parameters(), lr=1e-2), momentum=0.9)
        optimizer.train()
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(4, 6, dtype=dtype)).square().sum().backward()
            optimizer.step()
        optimizer.eval()
        models.append(model.float())
    if dtype is torch.float32:
        assert_same_weights(*models)
    else:
        torch.testing.assert_close(models[0].weight, models[1].weight, rtol=0, atol=0.02)


def test_a_step_after_loading_is_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = ScheduleFreeWrapper(optim.AdamW(model.parameters(), lr=1e-2), momentum=0.9)
    other = copy.deepcopy(model)
    loaded = ScheduleFreeWrapper(optim.AdamW(other.parameters(), lr=1e-2), momentum=0.9)

    def step(each: ScheduleFreeWrapper, net: nn.Module) -> None:
        each.train()
        each.zero_grad()
        net(torch.ones(4, 6)).square().sum().backward()
        each.step()

    step(optimizer, model)
    other.load_state_dict(model.state_dict())
    loaded.load_state_dict(optimizer.state_dict())
    loaded.train_mode = True
    step(optimizer, model)
    step(loaded, other)
    assert torch.equal(other.weight, model.weight)
