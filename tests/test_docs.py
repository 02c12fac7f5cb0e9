"""The loops of the guides run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

DOCS = Path(__file__).parents[1] / "docs"


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (DOCS / "sophia.md").read_text(), re.M | re.S))
LOOPS = {title: found for title, text in SECTIONS.items() if (found := blocks(text))}
LIGHTNING, TRAINER = "Under Lightning", "Under Hugging Face's Trainer"


def test_the_guide_has_its_loops() -> None:
    plain = ["The plain loop", "With gradient accumulation", "With GradScaler"]
    assert list(LOOPS) == [*plain, LIGHTNING, TRAINER]
    assert [len(LOOPS[title]) for title in plain] == [2, 2, 2]


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    return x, (x @ torch.randn(6, 3)).argmax(-1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))


@pytest.mark.parametrize("title", [title for title in LOOPS if title not in (LIGHTNING, TRAINER)])
def test_a_loop_trains(title: str) -> None:
    x, y = data()
    y[::5] = -100  # ignored, in some micro-batches more than in others
    y[:16] = -100
    names: dict[str, Any] = {"batches": [(x, y)] * 400, "device": "cpu"}
    for code in LOOPS[title]:
        model = names["model"] = mlp()
        before = nn.functional.cross_entropy(model(x), y).item()
        exec(compile(code, title, "exec"), names)
        assert nn.functional.cross_entropy(model(x), y).item() < 0.8 * before
        assert names["optimizer"].unclipped_fraction() > 0


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")  # of Lightning, about workers and the like
def test_lightning_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    x, y = data()
    model = mlp()
    before = nn.functional.cross_entropy(model(x), y).item()
    loader = DataLoader([(x, y)] * 400, batch_size=None)
    names: dict[str, Any] = {"model": model, "loader": loader, "device": "cpu"}
    exec(compile(LOOPS[LIGHTNING][0], LIGHTNING, "exec"), names)
    assert nn.functional.cross_entropy(model(x), y).item() < 0.8 * before
    assert names["trainer"].global_step == 400
    assert names["trainer"].optimizers[0].unclipped_fraction() > 0


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")  # of transformers, about pinned memory and the like
def test_transformers_trainer_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    tokens = [torch.arange(start, start + 12) % 11 for start in range(64)]
    dataset = [{"input_ids": one, "labels": one} for one in tokens]

    def loss() -> float:
        return model(torch.stack(tokens), labels=torch.stack(tokens)).loss.item()

    before = loss()
    names: dict[str, Any] = {"model": model, "dataset": dataset}
    exec(compile(LOOPS[TRAINER][0], TRAINER, "exec"), names)
    assert loss() < 0.9 * before
    optimizer = names["optimizer"]
    assert optimizer.unclipped_fraction() > 0
    assert optimizer.param_groups[0]["bs"] == 8 * 11


def test_every_framework_has_its_page_and_its_test() -> None:
    pages = {page.stem for page in (DOCS / "frameworks").glob("*.md")}
    tests = {test.stem.removeprefix("test_") for test in (Path(__file__).parent / "frameworks").glob("test_*.py")}
    assert pages == tests and "timm" in pages


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


GUIDES = (
    "batch-size.md",
    "bilevel.md",
    "curvature.md",
    "gradients.md",
    "guidance.md",
    "implicit.md",
    "muon.md",
    "projections.md",
    "schedules.md",
)
PAGES = ("index.md", "dtypes.md", "grad-norm-smooth.md", "memory.md", "threads.md", "width.md")
ELSEWHERE = {
    "distributed.md": "distributed/modules.py",
    "offload.md": "test_offload.py",
    "sophia.md": "test_docs.py",
    "lion.md": "test_lion_k.py",
}
"""Pages that another test runs, and where it is."""


def test_no_page_is_left_out() -> None:
    """Those of frameworks have one program each, which their tests run."""
    here = Path(__file__).parent
    with_code = {page.name for page in DOCS.glob("*.md") if "```python" in page.read_text()}
    assert with_code == {*GUIDES, *PAGES, *ELSEWHERE}
    for page, test in ELSEWHERE.items():
        assert f'"{page}"' in (here / test).read_text()
    for page in (DOCS / "frameworks").glob("*.md"):
        programs = len(blocks(page.read_text()))
        assert programs == (page.stem != "comfyui")  # where nodes are joined by hand
        assert not programs or f'run("{page.stem}"' in (here / "frameworks" / f"test_{page.stem}.py").read_text()
    for page in ("README.md", "CONTRIBUTING.md"):
        assert not blocks((DOCS.parent / page).read_text())


def test_the_routes_are_printed_as_the_guide_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (DOCS / "muon.md").read_text()
    (printed,) = re.findall(r"^```text\n(.*?)^```", guide, re.M | re.S)
    exec(compile(blocks(guide)[0], "muon.md", "exec"), {})
    assert capsys.readouterr().out == printed


@pytest.mark.smoke
@pytest.mark.parametrize(
    "guide", [pytest.param(each, marks=pytest.mark.frameworks if each == "guidance.md" else ()) for each in GUIDES]
)
def test_snippets_run(guide: str) -> None:
    if guide == "guidance.md":
        pytest.importorskip("diffusers")
    snippets = blocks((DOCS / guide).read_text())
    assert len(snippets) >= 3
    for code in snippets:
        exec(compile(code, guide, "exec"), tasks())


@pytest.mark.smoke
@pytest.mark.parametrize("page", PAGES)
def test_pages_of_the_site_run(page: str) -> None:
    threads = torch.get_num_threads()
    try:
        names = tasks()
        for code in blocks((DOCS / page).read_text()):
            exec(compile(code, page, "exec"), names)
        assert torch.get_num_threads() == (1 if page == "threads.md" else threads)
    finally:
        torch.set_num_threads(threads)
