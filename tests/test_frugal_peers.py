"""FRUGAL beside its authors' code, and GaLore and BAdam, settings of it, beside theirs.

`pip install --no-deps galore-torch badam`; FRUGAL's code is no package: a clone of github.com/fzmushko/FRUGAL on
PYTHONPATH.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from ferrostep.optim import FRUGAL, selections
from tests.contract.training import parameters, set_gradients

pytestmark = pytest.mark.frameworks  # all three import transformers


@pytest.fixture
def galore(monkeypatch: pytest.MonkeyPatch) -> Any:
    """galore-torch without bitsandbytes, which only its class of 8 bits needs."""
    for name in ("bitsandbytes", "bitsandbytes.optim", "bitsandbytes.optim.optimizer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[name], "Optimizer2State", object, raising=False)
    return pytest.importorskip("galore_torch", exc_type=ImportError)


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> Any:
    """FRUGAL's own code, with the root that torch no longer has."""
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_dispatch_sqrt", math.sqrt, raising=False)
    module = pytest.importorskip("frugal", exc_type=ImportError)
    if not hasattr(module, "CoordAdamW"):
        pytest.skip("another package is called frugal")
    return module


SETTINGS = {
    "columns": ("CoordAdamW", {"coord_choice": "columns"}, {"selection": "columns"}),
    "rows": ("CoordAdamW", {"coord_choice": "rows"}, {"selection": "rows"}),
    "randk": ("CoordAdamW", {"coord_choice": "randk"}, {"selection": "randk"}),
    "lion": ("CoordLion", {"coord_choice": "columns"}, {"selection": "columns", "inner": "lion"}),
    "svd": ("GaloreAdamW", {}, {"selection": "svd"}),
    "kept": ("GaloreAdamW", {"reset_statistics": False}, {"selection": "svd", "reset_state": False}),
    "block": ("BlockAdamW", {"block_order": "descending"}, {"selection": "block", "block_order": "descending"}),
    "gradients": ("CoordAdamW", {"inactive_update_rule": "sgd"}, {"state_free": "sgd"}),
}
"""By what is tried: their class and arguments, and ours."""


@pytest.mark.parametrize("name", SETTINGS)
def test_the_authors_code(authors: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """At equal selections, over two switches, with a vector and a matrix that are not projected."""
    kind, their_own, own = SETTINGS[name]
    shapes = ((12, 8), (8, 12), (4, 4), (8, 8), (5,), (3, 4))
    ours, theirs = parameters(shapes, torch.float64), parameters(shapes, torch.float64)
    both: Any = {"lr": 0.01, "density": 0.25, "update_gap": 3, "weight_decay": 0.1}
    groups = [{"params": theirs[4:], "is_proj_params": False}, {"params": theirs[:4], "is_proj_params": True}]
    more = {"no_deprecation_warning": True} if kind.endswith("AdamW") else {}
    scales = {"proj_params_lr_scale": 0.5, "inactive_lr_scale": 0.2}
    other = getattr(authors, kind)(groups, betas=(0.9, 0.99), **both, **scales, **their_own, **more)
    twin = dict(zip(ours, theirs, strict=True))
    monkeypatch.setattr(selections, "choose", lambda p, *_: chosen(other.state[twin[p]]["projector"], p))
    groups = [{"params": ours[4:], "projectable": False}, {"params": ours[:4]}]
    scales = {"projected_lr_scale": 0.5, "state_free_lr_scale": 0.2}
    optimizer = FRUGAL(groups, betas=(0.9, 0.99), **both, **scales, **own)
    train_alike(optimizer, ours, other, theirs, rtol=1e-14, atol=1e-15)


def train_alike(optimizer: Any, ours: Any, other: Any, theirs: Any, **tolerances: float) -> None:
    """Take steps with the same gradients; theirs first, whose projections ours takes."""
    for step in range(7):
        for params in (ours, theirs):
            set_gradients(params, step)
        other.step()
        optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, **tolerances)


def chosen(projector: Any, p: Parameter) -> torch.Tensor:
    """What theirs has selected, as ours keeps it."""
    if not hasattr(projector, "indices"):
        return projector.ortho_matrix.clone()
    if isinstance(projector.indices, torch.Tensor):
        return projector.indices.sort().values.int()
    bits = torch.zeros(p.shape, dtype=torch.uint8)
    bits[projector.indices] = 1
    return (bits.view(-1, 8) << torch.arange(8)).sum(1, dtype=torch.uint8)


def test_galore(galore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At equal projections: theirs are of an exact decomposition, in float32. Its eps is not corrected for the bias."""
    shapes = ((12, 8), (8, 12), (9, 9))
    ours, theirs = parameters(shapes), parameters(shapes)
    own: Any = {"rank": 4, "update_proj_gap": 3, "scale": 0.25, "proj_type": "std"}
    other = galore.GaLoreAdamW([{"params": theirs, **own}], lr=0.01, eps=0.0, no_deprecation_warning=True)
    twin = dict(zip(ours, theirs, strict=True))
    monkeypatch.setattr(
        selections, "choose_basis", lambda p, *_: other.state[twin[p]]["projector"].ortho_matrix.clone()
    )
    setting: Any = {"selection": "svd", "state_free": "none", "reset_state": False, "projected_lr_scale": 0.25}
    optimizer = FRUGAL(ours, lr=0.01, eps=0.0, density=0.45, update_gap=3, **setting)
    train_alike(optimizer, ours, other, theirs, rtol=1e-5, atol=1e-6)


def test_badam() -> None:
    """A tensor a block. Its first block has a step less than the others, as it counts from 1 before it asks."""
    badam = pytest.importorskip("badam", exc_type=ImportError)
    shapes = ((3, 4), (5, 2), (4, 4))
    ours, theirs = parameters(shapes), parameters(shapes)
    base = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0)
    named = [(f"{i}.weight", q) for i, q in enumerate(theirs)]
    blocks = [[f"{i}."] for i in range(3)]
    with pytest.warns(UserWarning, match="fp32"):
        other = badam.BlockOptimizer(base, named, blocks, switch_block_every=3, switch_mode="descending")
    optimizer = FRUGAL(
        ours, lr=0.01, density=0.3, update_gap=3, selection="block", state_free="none", block_order="descending"
    )
    for step in range(9):
        for params in (ours, theirs):
            set_gradients(params, step)
        if step == 2:
            optimizer.refresh()
        other.step()
        optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert all((p != q).all() for p, q in zip(ours, parameters(shapes), strict=True))


def test_projections_are_theirs(galore: Any) -> None:
    """Of matrices higher than wide and of others: the basis lies as theirs, and spans nearly the same."""
    projector = galore.galore_projector.GaLoreProjector(3)
    for shape in ((20, 8), (8, 20)):
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        grad = grad * torch.logspace(0, -2, 8)[:, None] if shape[0] == 8 else grad * torch.logspace(0, -2, 8)
        p = Parameter(torch.zeros(shape))
        p.grad = grad
        optimizer = FRUGAL([p], selection="svd", density=3 / 8)
        optimizer.step()
        theirs = projector.get_orthogonal_matrix(grad, 3, "left" if shape[0] == 8 else "right")
        basis = optimizer.state[p]["basis"]
        assert basis.shape == theirs.shape
        overlap = basis @ theirs.mT if shape[0] == 20 else basis.mT @ theirs
        torch.testing.assert_close(torch.linalg.svdvals(overlap), torch.ones(3), atol=1e-3, rtol=0)
