"""Lightning's command line with our optimizers by their path."""

from __future__ import annotations

import pytest
import torch

from ferrostep import optim

from .pages import assert_same_weights, block, run

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]  # about workers and the like


@pytest.fixture
def files() -> dict[str, str]:
    return {"settings.yaml": block("lightning", "yaml")}


def test_the_page_trains_as_with_torch(files: dict[str, str]) -> None:
    ours = run("lightning", files=files)["cli"]
    theirs = run("lightning", "ferrostep.optim.AdamW", "torch.optim.AdamW", files=files)["cli"]
    (optimizer,) = ours.trainer.optimizers
    assert type(optimizer) is optim.AdamW and optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert_same_weights(ours.model, theirs.model)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.9**5)  # the schedule


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("rounding: kahan\n    skip_nonfinite: true", {"rounding": "kahan", "skip_nonfinite": True}),
        ("weight_decay: 0", {"weight_decay": 0}),
        ("amsgrad: true\n    maximize: true", {"amsgrad": True, "maximize": True}),
    ],
)
def test_arguments_and_options_come_from_the_file(
    files: dict[str, str], arguments: str, expected: dict[str, object]
) -> None:
    cli = run("lightning", "betas: [0.9, 0.95]", arguments, files=files)["cli"]
    group = cli.trainer.optimizers[0].param_groups[0]
    assert {name: group[name] for name in expected} == expected


def test_a_misspelt_argument_is_refused(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("lightning", "betas: [0.9, 0.95]", "beta: [0.9, 0.95]", files=files)
    assert "beta" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Lion", "SophiaG", "AuON"])
def test_other_classes(files: dict[str, str], name: str) -> None:
    files["settings.yaml"] = files["settings.yaml"].replace("    betas: [0.9, 0.95]\n", "")
    cli = run("lightning", "ferrostep.optim.AdamW", f"ferrostep.optim.{name}", files=files)["cli"]
    assert type(cli.trainer.optimizers[0]) is getattr(optim, name)
    assert all(torch.isfinite(p).all() for p in cli.model.parameters())
