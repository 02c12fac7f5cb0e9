"""Guiders for diffusers' modular pipelines: its own classes, with the arithmetic of :mod:`ferrostep.guidance`.

They have diffusers' names, constructor arguments, configurations and scales: a pipeline takes them in place of its own.
Some defects of diffusers 0.42 are not theirs: CFG-Zero* with ``guidance_rescale`` is zero, not NaN, in the steps that
predict zero; tangential guidance knows whether it is conditional; magnitude-aware guidance takes predictions of more
than three dimensions; and a level that frequency-decoupled guidance leaves alone keeps its own conditional prediction,
not that of the level before. What a guider returns as ``pred_uncond`` is
the model's prediction, never a changed one. And a ``guidance_rescale`` above 1 or below 0 is a ValueError, where
diffusers extrapolates or ignores it.

``start`` and ``stop`` make the interval guidance of arXiv 2404.07724. diffusers' guiders that run the model more often
or change its attention (``AutoGuidance``, ``SkipLayerGuidance``, ...) have no counterpart here.

Needs the extra ``diffusers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch

from ferrostep import guidance

try:
    from diffusers.guiders import adaptive_projected_guidance as apg
    from diffusers.guiders import adaptive_projected_guidance_mix as apg_mix
    from diffusers.guiders import classifier_free_guidance as cfg
    from diffusers.guiders import classifier_free_zero_star_guidance as zero_star
    from diffusers.guiders import frequency_decoupled_guidance as fdg
    from diffusers.guiders import magnitude_aware_guidance as mambo
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
    "AdaptiveProjectedMixGuidance",
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "FrequencyDecoupledGuidance",
    "MagnitudeAwareGuidance",
    "TangentialClassifierFreeGuidance",
]


Guider: TypeAlias = (
    cfg.ClassifierFreeGuidance
    | apg.AdaptiveProjectedGuidance
    | apg_mix.AdaptiveProjectedMixGuidance
    | zero_star.ClassifierFreeZeroStarGuidance
    | mambo.MagnitudeAwareGuidance
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
        _keep_momentum(self)
        dims = self.adaptive_projected_guidance_norm_dim
        guided = guidance.apg(
            pred_cond,
            pred_uncond,
            _scale(self),
            eta=self.eta,
            norm_threshold=self.adaptive_projected_guidance_rescale,
            momentum_buffer=self.momentum_buffer,
            dims=dims,
            base=_base(self),
            rescale=self.guidance_rescale if dims is None else 0.0,
        )
        if dims is not None:  # over the whole sample, whatever the norm's dimensions
            guided = _rescaled(guided, pred_cond, self.guidance_rescale)
        return _output(guided, pred_cond, pred_uncond)


class AdaptiveProjectedMixGuidance(apg_mix.AdaptiveProjectedMixGuidance):
    """:func:`ferrostep.guidance.cfg` in the first steps, then :func:`ferrostep.guidance.apg`: HunyuanImage's guider.

    The first steps leave their differences in the momentum.
    """

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; the conditional one where guidance is off."""
        if pred_uncond is None or not self._is_cfg_enabled():
            return _output(pred_cond, pred_cond, pred_uncond)
        _keep_momentum(self)
        if not self._is_apg_enabled():
            if self.momentum_buffer is not None:
                guidance.apg(pred_cond, pred_uncond, 1.0, momentum_buffer=self.momentum_buffer)  # for the momentum only
            guided = guidance.cfg(pred_cond, pred_uncond, _scale(self), rescale=self.guidance_rescale)
            return _output(guided, pred_cond, pred_uncond)
        guided = guidance.apg(
            pred_cond,
            pred_uncond,
            _from_cond(self, self.adaptive_projected_guidance_scale),
            eta=self.eta,
            norm_threshold=self.adaptive_projected_guidance_rescale,
            momentum_buffer=self.momentum_buffer,
            base=_base(self),
            rescale=self.guidance_rescale,
        )
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


class FrequencyDecoupledGuidance(fdg.FrequencyDecoupledGuidance):
    """:func:`ferrostep.guidance.apg` of each level of a Laplacian pyramid, as diffusers' guider of this name.

    The pyramid is kornia's, without which diffusers' constructor raises ImportError.
    """

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; the conditional one where guidance is off."""
        if pred_uncond is None or not self._is_fdg_enabled():
            return _output(pred_cond, pred_cond, pred_uncond)
        to_pyramid = fdg.build_laplacian_pyramid_func  # type: ignore[attr-defined]
        pyramids = [to_pyramid(x, self.levels) for x in (pred_cond, pred_uncond)]
        of_levels = self.guidance_rescale_space == "freq"
        levels = []
        for level, (cond, uncond) in enumerate(zip(*pyramids, strict=True)):
            if self._is_fdg_enabled_for_level(level):
                cond = guidance.apg(
                    cond,
                    uncond,
                    _from_cond(self, self.guidance_scales[level]),
                    eta=self.parallel_weights[level],
                    base=_base(self),
                    rescale=self.guidance_rescale[level] if of_levels else 0.0,
                )
            levels.append(cond)
        guided = fdg.build_image_from_pyramid(levels)
        if not of_levels:
            guided = _rescaled(guided, pred_cond, self.guidance_rescale[0])
        return _output(guided, pred_cond, pred_uncond)


class MagnitudeAwareGuidance(mambo.MagnitudeAwareGuidance):
    """:func:`ferrostep.guidance.magnitude_aware` as diffusers' guider of this name."""

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction; the conditional one where guidance is off."""
        if pred_uncond is None or not self._is_mambo_g_enabled():
            return _output(pred_cond, pred_cond, pred_uncond)
        guided = guidance.magnitude_aware(
            pred_cond, pred_uncond, _scale(self), alpha=self.alpha, rescale=self.guidance_rescale
        )
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


def _keep_momentum(guider: apg.AdaptiveProjectedGuidance | apg_mix.AdaptiveProjectedMixGuidance) -> None:
    """Take ours for the momentum that diffusers makes anew when a denoising begins."""
    if isinstance(guider.momentum_buffer, apg.MomentumBuffer | apg_mix.MomentumBuffer):
        guider.momentum_buffer = guidance.MomentumBuffer(guider.momentum_buffer.momentum)


def _scale(guider: Guider) -> float:
    """The scale at which 1, not the paper's 0, gives the conditional prediction."""
    return _from_cond(guider, guider.guidance_scale)


def _from_cond(guider: Guider | fdg.FrequencyDecoupledGuidance, scale: float) -> float:
    """A scale of the guider, as :func:`_scale` has it."""
    return float(scale) + (1.0 if guider.use_original_formulation else 0.0)


def _base(guider: Guider | fdg.FrequencyDecoupledGuidance) -> str:
    """What APG adds its update to."""
    return "cond" if guider.use_original_formulation else "uncond"


def _rescaled(guided: Tensor, pred_cond: Tensor, rescale: float) -> Tensor:
    """With the conditional prediction's deviation, as far as the number says."""
    return guidance.cfg(pred_cond, guided, 0.0, rescale=rescale) if rescale else guided


def _output(guided: Tensor, pred_cond: Tensor, pred_uncond: Tensor | None) -> GuiderOutput:
    return GuiderOutput(pred=guided, pred_cond=pred_cond, pred_uncond=pred_uncond)
