"""ComfyUI nodes for guidance: each takes a model and gives one whose samplers guide by a rule of ferrostep.guidance.

The rule takes the seat of classifier-free guidance itself (``set_model_sampler_cfg_function``), with the scale of the
sampler's ``cfg``. So a model has one of them: the last that was put on. What runs before and after it, as other nodes'
``pre_cfg`` and ``post_cfg`` functions, stays.

ComfyUI hands over what the model takes for noise, as ``input - denoised``, and takes the same back. Up to a factor
these are the noise or a flow's velocity. APG guides the denoised predictions, as its paper does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from ferrostep import guidance

Inputs = dict[str, tuple[Any, ...]]
Rule = Callable[[dict[str, Any]], torch.Tensor]
"""From what ComfyUI's ``cfg_function`` passes on to the guided prediction of the noise."""


def number(default: float, least: float, greatest: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    """An input of a node that takes a number."""
    return "FLOAT", {"default": default, "min": least, "max": greatest, "step": 0.01, "tooltip": tooltip}


RESCALE = number(0.0, 0.0, 1.0, "How much of the conditional prediction's deviation the result gets (arXiv 2305.08891)")


def begins(args: dict[str, Any], sigma: float) -> bool:
    """Whether this is a sample's first step, as far as ComfyUI says: the last sample may have been stopped at its."""
    sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    return sigmas is not None and sigma == float(sigmas[0])


class GuidanceNode:
    """A node that puts a rule of guidance on a model."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "ferrostep/guidance"
    NUMBERS: ClassVar[Inputs] = {"rescale": RESCALE}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Inputs]:
        """The model and the rule's numbers, as ComfyUI asks for them."""
        return {"required": {"model": ("MODEL",), **cls.NUMBERS}}

    def patch(self, model: Any, **numbers: float) -> tuple[Any]:
        """A copy of the model with the rule in the place of its guidance."""
        patched = model.clone()
        rule = self.rule(**numbers)

        def guided(args: dict[str, Any]) -> torch.Tensor:
            # At a scale of 1 ComfyUI has not asked the model for the unconditional prediction.
            return args["cond"] if math.isclose(args["cond_scale"], 1.0) else rule(args)

        patched.set_model_sampler_cfg_function(guided)
        return (patched,)

    def rule(self, **numbers: float) -> Rule:
        """The rule with its numbers."""
        raise NotImplementedError


class ClassifierFreeGuidance(GuidanceNode):
    """ComfyUI's own guidance, with the result's deviation brought to that of the conditional prediction."""

    def rule(self, rescale: float) -> Rule:
        """Classifier-free guidance (arXiv 2207.12598)."""
        return lambda args: guidance.cfg(args["cond"], args["uncond"], args["cond_scale"], rescale=rescale)


class CFGZeroStar(GuidanceNode):
    """CFG-Zero*: the unconditional prediction is brought near to the conditional one by a factor, first."""

    def rule(self, rescale: float) -> Rule:
        """CFG-Zero* (arXiv 2503.18886), without the zeros of its first steps."""
        return lambda args: guidance.cfg_zero_star(args["cond"], args["uncond"], args["cond_scale"], rescale=rescale)


class TangentialGuidance(GuidanceNode):
    """Tangential CFG: of the unconditional prediction only what lies along the common direction."""

    def rule(self, rescale: float) -> Rule:
        """Tangential CFG (arXiv 2503.18137)."""
        return lambda args: guidance.tangential(args["cond"], args["uncond"], args["cond_scale"], rescale=rescale)


class AdaptiveProjectedGuidance(GuidanceNode):
    """APG: high scales without saturation, as what lies along the prediction is left out of the guidance."""

    NUMBERS: ClassVar[Inputs] = {
        "eta": number(
            0.0, 0.0, 1.0, "The share of the guidance along the prediction that is kept; 1: all, as with CFG"
        ),
        "norm_threshold": number(15.0, 0.0, 1000.0, "The greatest norm of the guidance; 0: no limit"),
        "momentum": number(-0.5, -1.0, 1.0, "The share of the last steps' guidance; the paper's are negative; 0: none"),
        "rescale": RESCALE,
    }

    def rule(self, eta: float, norm_threshold: float, momentum: float, rescale: float) -> Rule:
        """APG (arXiv 2410.02416, Algorithm 1), whose momentum begins anew with a sample or where noise has grown."""
        buffer = guidance.MomentumBuffer(momentum) if momentum else None
        last_sigma = 0.0

        def guided(args: dict[str, Any]) -> torch.Tensor:
            nonlocal last_sigma
            sigma = float(args["sigma"][0])
            if buffer is not None and (sigma > last_sigma or begins(args, sigma)):
                buffer.reset()
            last_sigma = sigma
            denoised = guidance.apg(
                args["cond_denoised"],
                args["uncond_denoised"],
                args["cond_scale"],
                eta=eta,
                norm_threshold=norm_threshold,
                momentum_buffer=buffer,
                rescale=rescale,
            )
            return torch.sub(args["input"], denoised, out=denoised)

        return guided


NODE_CLASS_MAPPINGS = {
    "FerrostepCFG": ClassifierFreeGuidance,
    "FerrostepAPG": AdaptiveProjectedGuidance,
    "FerrostepCFGZeroStar": CFGZeroStar,
    "FerrostepTangentialCFG": TangentialGuidance,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FerrostepCFG": "CFG with rescale (ferrostep)",
    "FerrostepAPG": "Adaptive projected guidance (ferrostep)",
    "FerrostepCFGZeroStar": "CFG-Zero* (ferrostep)",
    "FerrostepTangentialCFG": "Tangential CFG (ferrostep)",
}
