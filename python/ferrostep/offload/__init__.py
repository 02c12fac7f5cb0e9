"""Optimizer state and steps in host memory, for parameters on any device.

Example:
    >>> import torch
    >>> from ferrostep.offload import HostOptimizer
    >>> from ferrostep.optim import AdamW
    >>> model = torch.nn.Linear(4, 2).bfloat16()
    >>> optimizer = HostOptimizer(model.parameters(), AdamW, lr=3e-4, weight_decay=0.1)
    >>> model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    >>> loss = optimizer.step()
    >>> {name: str(x.dtype) for name, x in optimizer.state[model.weight].items() if name != "step"}
    {'exp_avg': 'torch.float32', 'exp_avg_sq': 'torch.float32', 'master_param': 'torch.float32'}
"""

from ferrostep import needs_torch  # noqa: F401  (first, for its error)

# isort: split
from ferrostep import optim  # noqa: F401  (before its parts: threads may meet there)
from ferrostep.offload.host import HostOptimizer

__all__ = ["HostOptimizer"]
