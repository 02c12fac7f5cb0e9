"""Accelerate with our optimizers: prepared, with accumulated gradients, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ferrostep import optim

from .pages import OURS, THEIRS, assert_same_weights, run

pytest.importorskip("accelerate")
from accelerate import Accelerator

pytestmark = pytest.mark.frameworks


def test_the_page_trains_as_with_torch() -> None:
    ours, theirs = run("accelerate"), run("accelerate", OURS, THEIRS)
    optimizer = ours["optimizer"].optimizer
    assert type(optimizer) is optim.AdamW
    assert {int(state["step"]) for state in optimizer.state.values()} == {40}  # of 80 batches
    assert_same_weights(ours["model"], theirs["model"])


def test_state_comes_back_exactly(tmp_path: Path) -> None:
    def prepared() -> tuple[Accelerator, nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        accelerator, model = Accelerator(), nn.Linear(6, 3)
        return accelerator, *accelerator.prepare(model, optim.AdamW(model.parameters(), lr=1e-2))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()

    accelerator, model, optimizer = prepared()
    step(model, optimizer)
    accelerator.save_state(str(tmp_path))
    step(model, optimizer)
    other_accelerator, other, other_optimizer = prepared()
    other_accelerator.load_state(str(tmp_path))
    step(other, other_optimizer)
    assert torch.equal(other.weight, model.weight)
