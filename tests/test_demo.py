"""The parts of the demonstration, without its command line."""

import json
import math
from pathlib import Path

import pytest
import torch

from ferrostep.demo import DemoError, optimizers, report, text, training
from ferrostep.demo.model import GPT, Shape
from ferrostep.demo.task import NextByte
from ferrostep.optim import NIGT, SophiaG
from ferrostep.schedules import LinearDecay

TINY = Shape(context=16, width=16, heads=2, layers=1)


def tiny_model() -> GPT:
    torch.manual_seed(0)
    return GPT(TINY)


def tiny_task() -> NextByte:
    tokens = torch.arange(2000).remainder(7).to(torch.uint8)
    return NextByte(text.Text("sevens", tokens[:1800], tokens[1800:]), TINY.context)


def run_of(losses: list[float]) -> training.Run:
    return training.Run("x", [training.Step(loss, 0.010, 0.001) for loss in losses])


def test_the_default_model_has_about_a_million_parameters() -> None:
    assert sum(parameter.numel() for parameter in GPT(Shape()).parameters()) == pytest.approx(1e6, rel=0.1)


@pytest.mark.smoke
def test_a_position_does_not_see_those_after_it() -> None:
    model = tiny_model()
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_the_untrained_loss_is_that_of_a_guess() -> None:
    loss = tiny_model().loss(torch.randint(256, (8, 17), generator=torch.Generator().manual_seed(1)))
    assert loss.item() == pytest.approx(math.log(256), rel=0.05)


def test_training_learns_and_is_the_same_for_a_seed() -> None:
    runs = []
    for _ in range(2):
        run = training.Run("torch.adamw")
        shares: list[float] = []
        training.train(run, tiny_model(), tiny_task(), training.Budget(steps=60), 3, shares.append)
        assert shares == pytest.approx([step / 60 for step in range(1, 61)])
        runs.append(run)
    first, second = runs
    assert [step.loss for step in first.steps] == pytest.approx([step.loss for step in second.steps], rel=1e-5)
    assert first.held_out_loss is not None and first.held_out_loss < 0.7 * first.steps[0].loss
    parameters = list(tiny_model().parameters())
    elements = sum(parameter.numel() for parameter in parameters)
    assert first.state_bytes == 8 * elements + 4 * len(parameters)  # two moments, and torch's step of 4 bytes


def test_sophia_g_sees_the_gradient_of_sampled_labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    optimizer = SophiaG(model.parameters())
    monkeypatch.setattr(optimizers, "build", lambda name, model: optimizer)
    monkeypatch.setattr(NextByte, "sampled_loss", lambda task, model, batch: (0 * model(batch[:, 1:]).sum(), 1))
    training.train(training.Run("x"), model, tiny_task(), training.Budget(steps=11), 0)
    assert all(not state["hessian"].any() for state in optimizer.state.values())


def test_nigt_is_evaluated_at_its_own_point(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    optimizer = NIGT(model.parameters(), lr=0.1)
    monkeypatch.setattr(optimizers, "build", lambda name, model: optimizer)
    run = training.Run("x")
    training.train(run, model, tiny_task(), training.Budget(steps=5), 0)
    optimizer.train()
    assert tiny_task().held_out_loss(model) != run.held_out_loss
    optimizer.eval()
    assert tiny_task().held_out_loss(model) == run.held_out_loss


@pytest.mark.parametrize(("name", "bars"), [("linear", 1), ("refined", 2)])
def test_schedules_of_a_comparison(
    name: str, bars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from rich.console import Console

    from ferrostep.demo import compare

    monkeypatch.setattr(compare, "Shape", lambda: TINY)
    completed = compare.compare(
        ["torch.sgd"], None, training.Budget(steps=4), 0, tmp_path, Console(width=120), schedule=name
    )
    assert completed and json.loads((tmp_path / "compare.json").read_text())["schedule"] == name
    assert capsys.readouterr().out.count("step 4 ") == bars
    if name == "refined":
        with pytest.raises(DemoError, match=r"no schedule can be made of torch.sgd's run: norms has 1 finite"):
            compare.compare(["torch.sgd"], None, training.Budget(steps=1), 0, tmp_path, Console(), schedule=name)


def test_schedules_are_stretched_over_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "x", lambda _: optimizer)
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    run = training.Run("x")
    training.train(run, model, tiny_task(), training.Budget(steps=4), 0, schedule=LinearDecay(8), norm="l2")
    assert rates == [2.0, 1.5, 1.0, 0.5] and len(run.norms) == 4


def test_a_factor_multiplies_every_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setitem(optimizers.OPTIMIZERS, "x", lambda model: made.append(muon(model)) or made[-1])
    muon = optimizers.OPTIMIZERS["muon"]
    training.train(training.Run("x"), tiny_model(), tiny_task(), training.Budget(steps=2), 0, rate_factor=3.0)
    assert [group["initial_lr"] for group in made[0].param_groups] == pytest.approx([3 * 0.02, 3 * 3e-3])


def test_batches_depend_on_the_seed_alone() -> None:
    def first_losses(name: str, seed: int) -> list[float]:
        run = training.Run(name)
        training.train(run, tiny_model(), tiny_task(), training.Budget(steps=1), seed)
        return [step.loss for step in run.steps]

    assert first_losses("torch.adamw", 0) == first_losses("torch.sgd", 0)
    assert first_losses("torch.adamw", 0) != first_losses("torch.adamw", 1)


def test_a_budget_of_seconds_ends() -> None:
    run = training.Run("torch.sgd")
    shares: list[float] = []
    training.train(run, tiny_model(), tiny_task(), training.Budget(seconds=0.2), 0, shares.append)
    assert shares == sorted(shares) and shares[-1] >= 1 and all(share < 1 for share in shares[:-1])
    assert run.held_out_loss is not None


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    rates = [training.rate(step / 100) for step in range(101)]
    assert rates[0] > 0
    assert rates[10] == pytest.approx(1)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == training.rate(1.5) == pytest.approx(0.1)


def test_figures_of_a_run() -> None:
    run = run_of([float(step) for step in range(40)])
    assert run.train_loss == pytest.approx(38.5)  # the last two of forty
    assert run.step_ms == pytest.approx(10)
    assert run.optimizer_ms == pytest.approx(1)
    assert run.optimizer_share == pytest.approx(0.1)


def test_smoothing_is_a_centred_mean_that_keeps_the_start() -> None:
    assert report.smooth([1.0, 3.0, 5.0, 10.0], 1) == pytest.approx([1.0, 3.0, 6.0, 7.5])
    assert report.smooth([1.0, 3.0], 0) == pytest.approx([1.0, 3.0])


def test_a_diverged_run_is_reported(tmp_path) -> None:
    runs = [run_of([2.0, math.inf, math.nan]), run_of([2.0, 1.0])]
    report.write_json(tmp_path / "a.json", {}, runs)
    assert '"train_loss": null' in (tmp_path / "a.json").read_text()
    report.write_plot(tmp_path / "a.png", runs, "diverged")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert report.table(runs).row_count == 2


def test_the_standard_library_is_the_default_text() -> None:
    loaded = text.Text.load(None, 128)
    assert 1_000_000 < len(loaded.train) + len(loaded.held_out) <= text.STANDARD_LIBRARY_LIMIT
    assert b"import" in bytes(loaded.train[:100_000].tolist())
    assert torch.equal(loaded.train, text.Text.load(None, 128).train)


def test_a_text_is_cut_once(tmp_path) -> None:
    content = bytes(range(200))
    (tmp_path / "text").write_bytes(content)
    loaded = text.Text.load(tmp_path / "text", 19)
    assert bytes(loaded.train.tolist()) + bytes(loaded.held_out.tolist()) == content
    assert len(loaded.held_out) == 20
    only = text.windows(loaded.held_out, 3, 20, torch.Generator())
    assert torch.equal(only, torch.arange(180, 200).expand(3, 20))
    with pytest.raises(DemoError, match=r"too short: text has 200 bytes, at least 210 are needed"):
        text.Text.load(tmp_path / "text", 20)


@pytest.mark.smoke
def test_names_are_parsed_once_each() -> None:
    assert optimizers.parse(" lion,adamw, lion,") == ["lion", "adamw"]
    with pytest.raises(DemoError, match=r"unknown optimizer 'muonn' \(did you mean 'muon'\?\)"):
        optimizers.parse("lion,muonn")
    with pytest.raises(DemoError, match="no optimizer named"):
        optimizers.parse(",")


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_trains(name: str) -> None:
    if name == "lion-pytorch":
        pytest.importorskip("lion_pytorch")
    run = training.Run(name)
    training.train(run, tiny_model(), tiny_task(), training.Budget(steps=40), 0)
    assert run.train_loss < 0.95 * run.steps[0].loss
    assert (run.state_bytes > 0) == (name != "gd")


def test_a_missing_package_is_an_error_only_if_asked_for(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lion_pytorch", None)
    with pytest.raises(DemoError, match="'lion-pytorch' cannot be loaded"):
        optimizers.build("lion-pytorch", tiny_model())
    optimizers.build("torch.adamw", tiny_model())
