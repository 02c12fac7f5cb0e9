"""The programs of docs/frameworks, run as they are printed, or with torch's optimizer in the place of ours."""

from __future__ import annotations

import os
import re
import runpy
import tempfile
from pathlib import Path
from typing import Any

import torch

PAGES = Path(__file__).parents[2] / "docs" / "frameworks"
OURS, THEIRS = "from ferrostep.optim import AdamW", "from torch.optim import AdamW"


def block(page: str, language: str) -> str:
    """The one block in this language that a page has."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", (PAGES / f"{page}.md").read_text(), re.M | re.S)
    return str(found)


def run(page: str, old: str = "", new: str = "", *, files: dict[str, str] | None = None) -> dict[str, Any]:
    """The names of a page's program, run in an empty folder with ``files`` and with ``new`` in the place of ``old``."""
    texts = {**(files or {}), "main.py": block(page, "python")}
    assert not old or any(old in text for text in texts.values())
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            Path(folder, name).write_text(text.replace(old, new) if old else text)
        os.chdir(folder)
        try:
            return runpy.run_path("main.py", run_name="__main__")
        finally:
            os.chdir(before)


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """To rounding, as a whole: where a gradient is zero but for rounding, AdamW's steps are of any size."""
    weights = torch.cat([p.detach().flatten() for p in ours.parameters()])
    expected = torch.cat([p.detach().flatten() for p in theirs.parameters()])
    assert (weights - expected).norm() <= 1e-4 * expected.norm()
