"""The loops of the guides run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

DOCS = Path(__file__).parents[1] / "docs"
GUIDE = DOCS / "sophia.md"
LOOPS = re.findall(
    r"^## (.+?)\n.*?^```python\n(.*?)^```(?:.*?^```python continued\n(.*?)^```)?", GUIDE.read_text(), re.M | re.S
)


def test_the_guide_has_its_three_loops() -> None:
    assert [title for title, *_ in LOOPS] == ["The plain loop", "With gradient accumulation", "With GradScaler"]


@pytest.mark.parametrize(("title", "first", "second"), LOOPS, ids=[title for title, *_ in LOOPS])
def test_a_loop_trains(title: str, first: str, second: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = (x @ torch.randn(6, 3)).argmax(-1)
    for code in filter(None, (first, "import torch.nn.functional as F\n" + second if second else "")):
        model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))
        before = nn.functional.cross_entropy(model(x), y).item()
        names: dict[str, Any] = {"model": model, "batches": [(x, y)] * 400, "device": "cpu"}
        exec(compile(code, title, "exec"), names)
        assert nn.functional.cross_entropy(model(x), y).item() < 0.8 * before
        assert names["optimizer"].unclipped_fraction() >= 0


def tasks() -> dict[str, Any]:
    """What the guides take for granted."""
    torch.manual_seed(0)
    cond, uncond, sample = (torch.randn(2, 3, 4) for _ in range(3))
    model = nn.Linear(3, 2)
    losses = [model(torch.randn(5, 3)).square().mean() for _ in range(3)]
    forward_loss, backward_loss, extra_loss = (model(torch.randn(5, 3)).square().mean() for _ in range(3))
    arrays = {name: torch.rand(20, 1).numpy() for name in ("observations", "actions", "rewards")}
    arrays["terminals"] = torch.zeros(20).numpy()
    params, alpha, sigma = list(model.parameters()), 0.8, 0.6
    return dict(locals())


@pytest.mark.parametrize("guide", ["guidance.md", "gradients.md", "muon.md"])
def test_snippets_run(guide: str) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / guide).read_text(), re.M | re.S)
    assert len(snippets) == 3
    for code in snippets:
        exec(compile(code, guide, "exec"), tasks())
