"""timm's registry and factory with our optimizers."""

from __future__ import annotations

import logging

import pytest
import torch

from ferrostep import optim

from .pages import assert_same_weights, run

pytest.importorskip("timm")
import timm
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2

from ferrostep.integrations.timm import register

pytestmark = pytest.mark.frameworks


def test_the_page_trains_as_with_torch() -> None:
    ours, theirs = run("timm"), run("timm", '"ferroadamw"', '"adamw"')
    assert type(ours["optimizer"]) is optim.AdamW and type(theirs["optimizer"]) is torch.optim.AdamW
    groups, expected = ours["optimizer"].param_groups, theirs["optimizer"].param_groups
    assert len(groups) > 10  # layers
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [
        (g["lr_scale"], g["weight_decay"]) for g in expected
    ]
    assert_same_weights(ours["model"], theirs["model"])


def test_names_have_no_underscore_and_are_registered_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        names = register()
        assert register() == names
    assert not caplog.records
    assert {"ferroadamw", "ferrolion", "ferrosophiag"} <= set(names)
    assert not [name for name in names if "_" in name or not name.startswith("ferro")]
    for name in names:
        info = get_optimizer_info(name)
        assert info.opt_class.__module__.startswith("ferrostep.optim") and info.description


@pytest.mark.filterwarnings("ignore:SophiaG")
@pytest.mark.parametrize("name", [name for name in register() if name not in ("ferromuon", "ferrohybridauon")])
def test_every_name_makes_an_optimizer_of_a_model(name: str) -> None:
    """With what timm's training script gives to all of them."""
    model = timm.create_model("test_vit", num_classes=4)
    optimizer = create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.05, momentum=0.8, eps=1e-7, betas=(0.8, 0.9))
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.05]
    for option, value in (("momentum", 0.8), ("eps", 1e-7), ("betas", (0.8, 0.9))):
        assert optimizer.param_groups[0].get(option, value) == value
    model(torch.randn(2, 3, 160, 160)).square().mean().backward()
    before = model.head.weight.clone()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)


def test_muon_takes_groups_of_matrices() -> None:
    register()
    model = timm.create_model("test_vit", num_classes=4)
    matrices = [p for name, p in model.named_parameters() if name.endswith("fc1.weight")]
    optimizer = create_optimizer_v2(model, "ferromuon", lr=1e-3, param_group_fn=lambda _: [{"params": matrices}])
    assert type(optimizer) is optim.Muon and optimizer.param_groups[0]["momentum"] == 0.9  # timm's, for all


def test_lookahead_and_schedules() -> None:
    register()
    model = timm.create_model("test_vit", num_classes=4)
    optimizer = create_optimizer_v2(model, "lookahead_ferroadamw", lr=1e-3, rounding="kahan")
    assert type(optimizer._base_optimizer) is optim.AdamW and optimizer.param_groups[0]["rounding"] == "kahan"
    scheduler, _ = create_scheduler_v2(optimizer, "cosine", num_epochs=10, warmup_epochs=2, warmup_lr=1e-5)
    assert optimizer.param_groups[0]["lr"] == 1e-5
    scheduler.step(2)
    assert optimizer.param_groups[0]["lr"] > 5e-4
