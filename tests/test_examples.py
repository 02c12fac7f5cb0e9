"""The examples run, from data to figure, on the least there is to train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_guided_diffusion(tmp_path: Path) -> None:
    printed = run("guided_diffusion.py", *GUIDED, output=tmp_path / "grid.png")
    assert printed.count("CFG") == printed.count("APG") == 2 and "held-out digits" in printed


def test_odice_with_its_own_data(tmp_path: Path) -> None:
    printed = run("odice.py", *ODICE, output=tmp_path / "curves.png")
    for row in ("behaviour", "orthogonal", "semi", "true", "cloning", "20,000 transitions"):
        assert row in printed


def test_odice_with_data_of_the_users(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz",
        observations=rng.normal(size=(50, 3)),
        actions=rng.uniform(-1, 1, (50, 1)),
        rewards=rng.normal(size=50),
        terminals=np.zeros(50),
    )
    arguments = [*ODICE, "--methods", "orthogonal", "--data", str(tmp_path / "mine.npz")]
    assert "49 transitions" in run("odice.py", *arguments, output=tmp_path / "curves.png")


def test_odice_on_hopper(tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="MuJoCo is not installed (extra rl)")
    printed = run("odice.py", *ODICE, "--task", "hopper", "--methods", "orthogonal", output=tmp_path / "curves.png")
    assert "orthogonal" in printed


def test_gridworld(tmp_path: Path) -> None:
    printed = run("odice_gridworld.py", "--steps", "3", "--seeds", "1", output=tmp_path / "maps.png")
    assert "best policy" in printed and "orthogonal" in printed
