"""What must not change when a step is refused: all memory that the optimizer can reach, bit by bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


def memory(tensor: Tensor) -> bytes | None:
    """The whole storage under a tensor, gaps between its elements included; None where it has none."""
    if tensor.layout != torch.strided:
        return b"".join(memory(part) or b"" for part in _parts(tensor))
    try:
        storage = tensor.detach().untyped_storage()
        if storage.device.type != "cpu" or (storage.size() > 0 and storage.data_ptr() == 0):
            return None
        return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()
    except (RuntimeError, NotImplementedError):
        return None


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    return []


class Snapshot:
    """The memory of parameters, gradients and states, the states' names, and the parameters' version counters."""

    def __init__(self, optimizer: Optimizer, others: Iterable[Tensor] = ()) -> None:
        self.optimizer = optimizer
        self.others = list(others)
        self.before = self._now()

    def _now(self) -> dict[str, object]:
        now: dict[str, object] = {f"other {i}": memory(tensor) for i, tensor in enumerate(self.others)}
        for g, group in enumerate(self.optimizer.param_groups):
            for i, p in enumerate(group["params"]):
                where = f"parameter {i} in group {g}"
                now[where] = memory(p)
                if not p.is_inference():
                    now[f"version of {where}"] = p._version
                if p.grad is not None:
                    now[f"grad of {where}"] = memory(p.grad)
                for name, value in self.optimizer.state.get(p, {}).items():
                    now[f"{name} of {where}"] = memory(value) if isinstance(value, Tensor) else value
        now["states"] = len(self.optimizer.state)
        return now

    def assert_unchanged(self) -> None:
        """Fail if a bit is another now, or a state has come or gone."""
        after = self._now()
        assert after.keys() == self.before.keys()
        changed = [name for name in after if after[name] != self.before[name]]
        assert not changed, changed
