"""Guiders for diffusers' modular pipelines: its own classes, with the arithmetic of :mod:`ferrostep.guidance`.

They have diffusers' names, constructor arguments, configurations and scales: a pipeline takes them in place of its own.
Two defects of diffusers 0.42 are not theirs: CFG-Zero* with ``guidance_rescale`` is zero, not NaN, in the steps that
predict zero, and tangential guidance knows whether it is conditional. What a guider returns as ``pred_uncond`` is the
model's prediction, never a changed one. And a ``guidance_rescale`` above 1 or below 0 is a ValueError, where diffusers
extrapolates or ignores it.

``start`` and ``stop`` make the interval guidance of arXiv 2404.07724. diffusers' other guiders, such as
``AdaptiveProjectedMixGuidance``, have no counterpart here.

Needs the extra ``diffusers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

from ferrostep import guidance

try:
    from diffusers.guiders import adaptive_projected_guidance as apg
    from diffusers.guiders import classifier_free_guidance as cfg
    from diffusers.guiders import classifier_free_zero_star_guidance as zero_star
    from diffusers.guiders import tangential_classifier_free_guidance as tcfg
    from diffusers.guiders.guider_utils import GuiderOutput
except ImportError as error:
    raise ImportError(
        'ferrostep.guidance.diffusers needs diffusers 0.42 or later: pip install "ferrostep[diffusers]"'
    ) from error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AdaptiveProjectedGuidance",
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "TangentialClassifierFreeGuidance",
]


Guider: TypeAlias = (
    cfg.ClassifierFreeGuidance
    | apg.AdaptiveProjectedGuidance
    | zero_star.ClassifierFreeZeroStarGuidance
    | tcfg.TangentialClassifierFreeGuidance
)


class ClassifierFreeGuidance(cfg.ClassifierFreeGuidance):
    """:func:`ferrostep.guidance.cfg` as diffusers' guider of this name."""

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; the conditional one where guidance is off."""
        if pred_uncond is None or not self._is_cfg_enabled():
            return _output(pred_cond, pred_cond, pred_uncond)
        guided = guidance.cfg(pred_cond, pred_uncond, _scale(self), rescale=self.guidance_rescale)
        return _output(guided, pred_cond, pred_uncond)


class AdaptiveProjectedGuidance(apg.AdaptiveProjectedGuidance):
    """:func:`ferrostep.guidance.apg` as diffusers' guider of this name.

    Note diffusers' default of ``eta=1``, which projects nothing: the paper's is 0. And without
    ``use_original_formulation`` the scale is that of ``base="uncond"``, which the paper has not.
    """

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; the conditional one where guidance is off."""
        if pred_uncond is None or not self._is_apg_enabled():
            return _output(pred_cond, pred_cond, pred_uncond)
        if isinstance(self.momentum_buffer, apg.MomentumBuffer):  # made anew when a denoising begins
            self.momentum_buffer = guidance.MomentumBuffer(self.momentum_buffer.momentum)
        dims = self.adaptive_projected_guidance_norm_dim
        guided = guidance.apg(
            pred_cond,
            pred_uncond,
            _scale(self),
            eta=self.eta,
            norm_threshold=self.adaptive_projected_guidance_rescale,
            momentum_buffer=self.momentum_buffer,
            dims=dims,
            base="cond" if self.use_original_formulation else "uncond",
            rescale=self.guidance_rescale if dims is None else 0.0,
        )
        if dims is not None and self.guidance_rescale:  # over the whole sample, whatever the norm's dimensions
            guided = guidance.cfg(pred_cond, guided, 0.0, rescale=self.guidance_rescale)
        return _output(guided, pred_cond, pred_uncond)


class ClassifierFreeZeroStarGuidance(zero_star.ClassifierFreeZeroStarGuidance):
    """:func:`ferrostep.guidance.cfg_zero_star` as diffusers' guider of this name."""

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; zero in the first steps; the conditional one where guidance is off."""
        if self._enabled and self._step is not None and self._step < self.zero_init_steps:
            return _output(torch.zeros_like(pred_cond), pred_cond, pred_uncond)
        if pred_uncond is None or not self._is_cfg_enabled():
            return _output(pred_cond, pred_cond, pred_uncond)
        guided = guidance.cfg_zero_star(pred_cond, pred_uncond, _scale(self), rescale=self.guidance_rescale)
        return _output(guided, pred_cond, pred_uncond)


class TangentialClassifierFreeGuidance(tcfg.TangentialClassifierFreeGuidance):
    """:func:`ferrostep.guidance.tangential` as diffusers' guider of this name."""

    @property
    def is_conditional(self) -> bool:
        """Whether the inputs that were prepared last are the conditional ones."""
        return bool(self._count_prepared == 1)

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; the conditional one where guidance is off."""
        if pred_uncond is None or not self._is_tcfg_enabled():
            return _output(pred_cond, pred_cond, pred_uncond)
        guided = guidance.tangential(pred_cond, pred_uncond, _scale(self), rescale=self.guidance_rescale)
        return _output(guided, pred_cond, pred_uncond)


def _scale(guider: Guider) -> float:
    """The scale at which 1, not the paper's 0, gives the conditional prediction."""
    return float(guider.guidance_scale) + (1.0 if guider.use_original_formulation else 0.0)


def _output(guided: Tensor, pred_cond: Tensor, pred_uncond: Tensor | None) -> GuiderOutput:
    return GuiderOutput(pred=guided, pred_cond=pred_cond, pred_uncond=pred_uncond)
