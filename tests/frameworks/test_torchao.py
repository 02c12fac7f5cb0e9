"""Our optimizers in the seat of torchao's CPUOffloadOptimizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ferrostep import optim

from .pages import OURS, THEIRS, assert_same_weights, run

pytest.importorskip("torchao")
from torchao.optim import CPUOffloadOptimizer, cpu_offload

pytestmark = pytest.mark.frameworks


class Event:
    def synchronize(self) -> None:
        """Nothing runs beside."""


class Stream:
    """A stream of a device whose work is done at once."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait_stream(self, _: Stream) -> None: ...

    def record_event(self) -> Event:
        return Event()

    def synchronize(self) -> None: ...


class TorchWithDevice:
    """torch with a "cuda" that is the CPU."""

    cuda = SimpleNamespace(Stream=Stream, current_stream=Stream, stream=lambda stream: stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty_like(self, like: torch.Tensor, *, device: str | None = None, pin_memory: bool = False) -> torch.Tensor:
        return torch.empty_like(like, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torchao's CPUOffloadOptimizer needs a GPU")
def test_the_page_trains_as_with_torch() -> None:
    ours, theirs = run("torchao"), run("torchao", OURS, THEIRS)
    assert {type(each) for each in ours["optimizer"].optim_dict.values()} == {optim.AdamW}
    assert_same_weights(ours["model"].cpu(), theirs["model"].cpu())


def test_the_seat_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that torchao makes of the class, on a machine without a GPU."""
    monkeypatch.setattr(cpu_offload, "torch", TorchWithDevice())
    monkeypatch.setattr(cpu_offload, "get_available_devices", lambda: ["cpu", "cuda"])
    models = []
    for cls in (optim.AdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 3))
        groups = [{"params": [p], "weight_decay": 0.1 * (p.ndim > 1)} for p in model.parameters()]
        optimizer = CPUOffloadOptimizer(groups, cls, lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(8, 64)).square().mean().backward()
            optimizer.step()
            scheduler.step()
        assert {type(each) for each in [*optimizer.optim_dict.values(), optimizer.d_opt]} == {cls}
        optimizer.load_state_dict(optimizer.state_dict())
        models.append(model)
    assert_same_weights(*models)
