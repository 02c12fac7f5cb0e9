"""The matrix optimizers as chains of transforms: a direction, what is made of it, and the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferrostep import _core
from ferrostep.errors import wrong_choice


def muon(
    *,
    schedule: _core.Schedule,
    eps: float,
    algorithm: str,
    precision: str,
    restarts: Sequence[int],
    beta2: float | None,
    cosh: tuple[float, float, bool] | None = None,
    **others: Any,
) -> _core.MatrixRule:
    """Muon, NorMuon with ``beta2``, or HybridAuON with ``cosh``; see :func:`ferrostep.reference.muon`."""
    transforms = [
        _core.Transform.orthogonalize(
            schedule=schedule, eps=eps, algorithm=algorithm, precision=precision, restarts=restarts
        )
    ]
    if beta2 is not None:
        transforms.append(_core.Transform.normalize_rows(beta2=beta2))
    if cosh is not None:
        gamma, rms_eps, of_normalized = cosh
        transforms.append(
            _core.Transform.divide_by_cosh(gamma=gamma, rms_eps=rms_eps, of_normalized=of_normalized, eps=eps)
        )
    return _core.MatrixRule(transforms=transforms, **others)


def auon(
    *, gamma: float, eps: float, rms_eps: float, variant: str, adjust_lr: str | None, **others: Any
) -> _core.MatrixRule:
    """AuON: the paper's update, or the package's, which is not normalized; see :func:`ferrostep.reference.auon`."""
    if variant not in ("paper", "package"):
        raise wrong_choice("variant", variant, "paper", "package")
    if adjust_lr not in (None, "original", "match_rms_adamw"):
        raise wrong_choice("adjust_lr_fn", adjust_lr, None, "original", "match_rms_adamw")
    is_paper = variant == "paper"
    divide = _core.Transform.divide_by_cosh(gamma=gamma, rms_eps=rms_eps, of_normalized=not is_paper, eps=eps)
    transforms = [_core.Transform.normalize(eps=eps), divide] if is_paper else [divide]
    return _core.MatrixRule(transforms=transforms, adjust_lr=adjust_lr or "none", ndim_policy="whole", **others)
