"""Our optimizers in timm's registry, for ``create_optimizer_v2`` and timm's training script.

Needs timm, which no extra brings.
"""

from __future__ import annotations

import inspect

from ferrostep.integrations.classes import by_name

try:
    from timm.optim._optim_factory import OptimInfo, default_registry
except ImportError as error:
    raise ImportError("ferrostep.integrations.timm needs timm 1.0.12 or later: pip install timm") from error

__all__ = ["register"]


def register() -> list[str]:
    """Put the optimizers into timm's registry as ``"ferroadamw"``, ``"ferrolion"`` and so on.

    The names have no underscore: timm takes what stands before one for a wrapper (``"lookahead_ferroadamw"``), hence
    ``"ferro_adamw"`` for ``"adamw"``, which is torch's. A second call changes nothing.

    Returns:
        The names.

    Example:
        >>> from timm.optim import create_optimizer_v2
        >>> "ferroadamw" in register()
        True
        >>> import torch
        >>> optimizer = create_optimizer_v2(torch.nn.Linear(3, 2), "ferroadamw", lr=1e-3, weight_decay=0.05)
        >>> [group["weight_decay"] for group in optimizer.param_groups]  # none for the bias
        [0.0, 0.05]
    """
    infos = []
    for name, each in by_name().items():
        arguments = inspect.signature(each).parameters
        infos.append(
            OptimInfo(
                name=f"ferro{name.lower()}",
                opt_class=each,
                description=(inspect.getdoc(each) or "").partition("\n")[0],
                has_eps="eps" in arguments,
                has_momentum="momentum" in arguments,
                has_betas="betas" in arguments,
            )
        )
    names = default_registry.list_optimizers()
    for info in infos:
        if info.name not in names:
            default_registry.register(info)
    return [info.name for info in infos]
