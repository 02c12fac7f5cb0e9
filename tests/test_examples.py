"""The examples run, from data to figure, on the least there is to train."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
GUIDED = ["--training-steps", "2", "--sampling-steps", "2", "--samples", "20", "--scales", "1", "5"]
ODICE = ["--seeds", "2", "--steps", "4", "--evaluations", "2", "--episodes", "1"]


def run(name: str, *arguments: str, output: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MPLBACKEND": "agg", "COLUMNS": "120"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 1000
    return done.stdout


@pytest.fixture
def gymnasium() -> None:
    pytest.importorskip("gymnasium.envs.mujoco")


@pytest.mark.frameworks
def test_guided_diffusion(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("sklearn")
    printed = run("guided_diffusion.py", *GUIDED, output=tmp_path / "grid.png")
    assert printed.count("CFG") == printed.count("APG") == 2 and "held-out digits" in printed


@pytest.mark.frameworks
@pytest.mark.usefixtures("gymnasium")
def test_odice_with_its_own_data(tmp_path: Path) -> None:
    printed = run("odice.py", *ODICE, output=tmp_path / "curves.png")
    for row in ("behaviour", "orthogonal", "semi", "true", "cloning", "20,000 transitions"):
        assert row in printed


def pendulum_data(**changes: Any) -> dict[str, Any]:
    """By D4RL's names, with actions as Pendulum has them: from -2 to 2."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(50, 3)),
        "actions": rng.uniform(-2, 2, (50, 1)),
        "rewards": rng.normal(size=50),
        "terminals": np.zeros(50),
        "timeouts": np.arange(50) % 25 == 24,
    }
    return {**arrays, **changes}


def write(path: Path, arrays: dict[str, Any]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["metadata/policy/weights"] = np.zeros(3)  # D4RL's files have such groups
    return path


@pytest.mark.frameworks
@pytest.mark.usefixtures("gymnasium")
@pytest.mark.parametrize("name", ["mine.npz", "mine.hdf5"])
def test_odice_with_data_of_the_users(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, pendulum_data(rewards=np.ones(50)))  # all alike: nothing to scale by
    arguments = [*ODICE, "--methods", "orthogonal", "cloning", "--data", str(path)]
    printed = run("odice.py", *arguments, output=tmp_path / "curves.png")
    assert "48 transitions" in printed and "nan" not in printed


@pytest.mark.frameworks
@pytest.mark.usefixtures("gymnasium")
def test_odice_divides_actions_by_the_environments_limits(tmp_path: Path) -> None:
    example, arrays = runpy.run_path(str(EXAMPLES / "odice.py")), pendulum_data()
    data = example["load_data"](write(tmp_path / "mine.npz", arrays), example["TASKS"]["pendulum"])
    kept = ~arrays["timeouts"]
    np.testing.assert_allclose(data.actions, arrays["actions"][kept] / 2, rtol=1e-6)


@pytest.mark.frameworks
@pytest.mark.usefixtures("gymnasium")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((50, 4))}, "observations have 4 numbers, expected 3 for Pendulum-v1"),
        ({"actions": np.zeros((50, 2))}, "actions have 2 numbers, expected 1 for Pendulum-v1"),
        ({"actions": np.full((50, 1), 2.5)}, "actions go beyond the limits of Pendulum-v1"),
        ({"rewards": np.full(50, np.nan)}, "rewards has NaN"),
    ],
)
def test_odice_refuses_data_of_another_task(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "odice.py"))
    with pytest.raises(ValueError, match=message):
        example["load_data"](write(tmp_path / "mine.npz", pendulum_data(**changes)), example["TASKS"]["pendulum"])


@pytest.mark.frameworks
@pytest.mark.usefixtures("gymnasium")
def test_odice_on_hopper(tmp_path: Path) -> None:
    printed = run("odice.py", *ODICE, "--task", "hopper", "--methods", "orthogonal", output=tmp_path / "curves.png")
    assert "orthogonal" in printed


def test_width(tmp_path: Path) -> None:
    printed = run("width.py", "--quick", output=tmp_path / "width.png")
    for rule in ("sqrt", "linear", "none"):
        assert printed.count(f" {rule} ") == 3  # at two widths, and at the tuned learning rate


def test_gridworld(tmp_path: Path) -> None:
    printed = run("odice_gridworld.py", "--steps", "3", "--seeds", "1", output=tmp_path / "maps.png")
    assert "best policy" in printed and "orthogonal" in printed


def test_schedules(tmp_path: Path) -> None:
    arguments = ["--steps", "5", "--seeds", "2", "--rates", "2e-3"]
    printed = run("schedules.py", *arguments, output=tmp_path / "schedules.png")
    for row in ("linear", "cosine", "constant", "refined"):
        assert row in printed


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("hyperparameters", ("one decay", "exact systems")),
        ("hyper_cleaning", ("true labels", "running z", "not normalized")),
        ("robust_svm", ("penalties frozen", "true labels")),
        ("optimization_layer", ("implicit", "unrolled", "fixed dictionary")),
    ],
)
def test_bilevel_and_implicit(name: str, rows: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    printed = run(f"{name}.py", "--quick", output=tmp_path / "figure.png")
    assert all(row in printed for row in rows) and "nan" not in printed


def test_adaptive_batch(tmp_path: Path) -> None:
    """In this process, with one training of each kind."""
    own = runpy.run_path(str(EXAMPLES / "adaptive_batch.py"))
    data, runs = own["load"](2048), {}
    for plan in (own["Plan"](32, 32, 0.1), own["Plan"](32, 256, 0.1)):
        for name in own["OPTIMIZERS"]:
            runs[name, plan] = [own["train"](data, name, plan, lr=0.04, seed=0)]
            (run,) = runs[name, plan]
            assert run.samples[-1] == 2048 and run.losses[-1] < run.losses[0]
            assert (max(run.sizes) > 32 and run.updates < 64) == (plan.largest > 32)
    own["draw"](tmp_path / "figure.png", runs)
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_curvature(tmp_path: Path) -> None:
    arguments = ["--steps", "3", "--every", "2", "--lanczos-steps", "2"]
    printed = run("curvature.py", *arguments, output=tmp_path / "curvature.png")
    assert "SGD, lr 0.5: eigenvalues" in printed and "AdamW, lr 0.004: eigenvalues" in printed


def test_surgery() -> None:
    example = runpy.run_path(str(EXAMPLES / "surgery.py"))
    for method, keeps in (("upgrad", "rises"), ("nash_mtl", "turns"), ("imtl_g", "parts"), ("mean", None)):
        run = example["train"](method, seed=0, steps=10, units=example["UNITS"])
        assert (run.rising == 0) or keeps != "rises"
        assert run.turned > 1 - 1e-6 or keeps != "turns"
        assert run.unequal < 1e-4 or keeps != "parts"
        assert run.losses.isfinite().all()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux limits and tells a process's memory")
def test_pretraining_in_memory(tmp_path: Path) -> None:
    """In this process: what the example does in several, each of which loads torch."""
    own = runpy.run_path(str(EXAMPLES / "pretrain_in_memory.py"))
    shape = own["Shape"](context=16, width=32, heads=2, layers=1)
    found = {name: own["train"](way, shape, 2, seed=0, limit=0) for name, way in own["WAYS"].items()}
    assert len(found) == 9 and all(len(each["losses"]) == 2 and each["plan"] > 0 for each in found.values())
    same = ["AdamW, float32 states", "the same, attached"]
    assert found[same[0]]["losses"] == found[same[1]]["losses"]
    own["draw"]({name: each["losses"] for name, each in found.items()}, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 1000
