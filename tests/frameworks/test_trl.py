"""TRL's trainers with PEFT's adapters and our optimizers."""

from __future__ import annotations

import pytest
import torch

from ferrostep import optim

from .pages import assert_same_weights, run
from .test_transformers import BY_STRING

for package in ("transformers", "trl", "peft", "datasets"):
    pytest.importorskip(package)

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]  # about pinned memory and the like


def test_the_page_trains_as_with_torch() -> None:
    ours, theirs = run("trl"), run("trl", BY_STRING, 'optim="adamw_torch"')
    optimizer = ours["trainer"].optimizer.optimizer
    assert type(optimizer) is optim.AdamW and type(theirs["trainer"].optimizer.optimizer) is torch.optim.AdamW
    trained = {name for name, p in ours["trainer"].model.named_parameters() if p.requires_grad}
    assert len(optimizer.state) == len(trained) == 4 and all("lora_" in name for name in trained)
    assert_same_weights(ours["trainer"].model, theirs["trainer"].model)
