"""Our guiders in the place of diffusers' own: the same configurations and the same samples of a small model."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")  # which the blocks of Stable Diffusion XL import
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.guiders.adaptive_projected_guidance import AdaptiveProjectedGuidance
from diffusers.guiders.adaptive_projected_guidance_mix import AdaptiveProjectedMixGuidance
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.frequency_decoupled_guidance import FrequencyDecoupledGuidance
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.guiders.magnitude_aware_guidance import MagnitudeAwareGuidance
from diffusers.guiders.tangential_classifier_free_guidance import TangentialClassifierFreeGuidance
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep

from ferrostep.guidance import MomentumBuffer
from ferrostep.guidance import diffusers as ours

pytestmark = pytest.mark.frameworks

STEPS = 6
CASES: list[tuple[type[BaseGuidance], dict[str, Any]]] = [
    (ClassifierFreeGuidance, {}),
    (ClassifierFreeGuidance, {"guidance_scale": 3.0, "guidance_rescale": 0.7, "start": 0.2, "stop": 0.8}),
    (ClassifierFreeGuidance, {"guidance_scale": 3.0, "use_original_formulation": True}),
    (ClassifierFreeGuidance, {"guidance_scale": 1.0}),
    (ClassifierFreeGuidance, {"enabled": False}),
    (AdaptiveProjectedGuidance, {}),
    (
        AdaptiveProjectedGuidance,
        {
            "eta": 0.0,
            "adaptive_projected_guidance_momentum": -0.75,
            "adaptive_projected_guidance_rescale": 2.5,
            "adaptive_projected_guidance_norm_dim": (-1, -2),
            "guidance_rescale": 0.3,
        },
    ),
    (AdaptiveProjectedGuidance, {"eta": 0.0, "use_original_formulation": True, "stop": 0.5}),
    (ClassifierFreeZeroStarGuidance, {}),
    (ClassifierFreeZeroStarGuidance, {"zero_init_steps": 0, "guidance_rescale": 0.5, "use_original_formulation": True}),
    (TangentialClassifierFreeGuidance, {"guidance_scale": 4.0}),
    (AdaptiveProjectedMixGuidance, {"adaptive_projected_guidance_start_step": 1}),
    (AdaptiveProjectedMixGuidance, {"guidance_rescale": 0.3, "adaptive_projected_guidance_momentum": None}),
    (
        AdaptiveProjectedMixGuidance,
        {"use_original_formulation": True, "adaptive_projected_guidance_start_step": 2, "stop": 0.9, "eta": 0.5},
    ),
    (MagnitudeAwareGuidance, {}),
    (MagnitudeAwareGuidance, {"alpha": 0.5, "guidance_rescale": 0.7, "use_original_formulation": True}),
    (FrequencyDecoupledGuidance, {}),
    (
        FrequencyDecoupledGuidance,
        {"guidance_scales": [4.0, 3.0], "parallel_weights": [0.2, 0.5], "guidance_rescale": [0.3, 0.6]},
    ),
    (
        FrequencyDecoupledGuidance,
        {
            "guidance_scales": [4.0, 3.0],
            "guidance_rescale": 0.5,
            "guidance_rescale_space": "freq",
            "use_original_formulation": True,
        },
    ),
]
WITHOUT_KORNIA = pytest.mark.skipif(importlib.util.find_spec("kornia") is None, reason="kornia is not installed")
every_case = pytest.mark.parametrize(
    ("theirs", "arguments"),
    [pytest.param(*case, marks=WITHOUT_KORNIA if case[0] is FrequencyDecoupledGuidance else ()) for case in CASES],
    ids=[f"{cls.__name__} {', '.join(a) or 'by default'}" for cls, a in CASES],
)


def settings_of(guidance: BaseGuidance) -> dict[str, Any]:
    return {name: value for name, value in guidance.config.items() if not name.startswith("_")}


def guider(theirs: type[BaseGuidance], arguments: dict[str, Any]) -> BaseGuidance:
    return getattr(ours, theirs.__name__)(**arguments)


@pytest.fixture(autouse=True)
def norms_of_three_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """For diffusers' MagnitudeAwareGuidance, which asks torch.norm for them and gets a RuntimeError."""
    monkeypatch.setattr(torch, "norm", torch.linalg.vector_norm)


@pytest.fixture(scope="module")
def model() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        num_class_embeds=11,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    ).eval()


@torch.no_grad()
def sample(model: UNet2DModel, guidance: BaseGuidance, *, by_name: bool) -> Tensor:
    """The denoising loop of a modular pipeline: the guider says what to predict, and combines it."""
    scheduler = DDIMScheduler(num_train_timesteps=50)
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels, no_label = torch.tensor([3, 7]), torch.tensor([10, 10])
    for step, timestep in enumerate(scheduler.timesteps):
        guidance.set_state(step=step, num_inference_steps=STEPS, timestep=timestep)
        if by_name:
            state = SimpleNamespace(labels=labels, no_label=no_label)
            batches = guidance.prepare_inputs_from_block_state(state, {"labels": ("labels", "no_label")})
        else:
            batches = guidance.prepare_inputs({"labels": (labels, no_label)})
        for batch in batches:
            guidance.prepare_models(model)
            batch.noise_pred = model(latents, timestep, class_labels=batch.labels).sample
            guidance.cleanup_models(model)
        latents = scheduler.step(guidance(batches).pred, timestep, latents).prev_sample
    return latents


@every_case
@pytest.mark.parametrize("by_name", [False, True], ids=["inputs", "block state"])
def test_samples_are_those_of_diffusers(
    model: UNet2DModel, theirs: type[BaseGuidance], arguments: dict[str, Any], by_name: bool
) -> None:
    own = guider(theirs, arguments)
    for _ in range(2):  # the second time begins anew, momentum too
        actual, expected = (sample(model, g, by_name=by_name) for g in (own, theirs(**arguments)))
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)


@every_case
def test_configurations_are_those_of_diffusers(
    theirs: type[BaseGuidance], arguments: dict[str, Any], tmp_path: Any
) -> None:
    own, other = guider(theirs, arguments), theirs(**arguments)
    assert isinstance(own, BaseGuidance) and isinstance(own, theirs)
    assert dict(own.config) == dict(other.config)
    own.save_pretrained(tmp_path)
    loaded, expected = (
        {name: tuple(x) if isinstance(x, list) else x for name, x in settings_of(each).items()}
        for each in (theirs.from_pretrained(tmp_path), other)
    )
    assert loaded == expected
    assert isinstance(own.new(start=0.1), type(own)) and own.new(start=0.1).config.start == 0.1
    assert own.num_conditions == other.num_conditions
    assert own.get_state().keys() == other.get_state().keys()


def test_momentum_is_ours_and_begins_anew(model: UNet2DModel) -> None:
    own = ours.AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5)
    sample(model, own, by_name=False)
    first = own.momentum_buffer
    assert isinstance(first, MomentumBuffer) and first.running_average is not None
    sample(model, own, by_name=False)
    assert own.momentum_buffer is not first


def test_defects_of_diffusers_are_not_ours() -> None:
    own = ours.ClassifierFreeZeroStarGuidance(guidance_rescale=0.5)
    own.set_state(step=0, num_inference_steps=STEPS, timestep=torch.tensor(0))
    assert torch.equal(own.forward(torch.ones(1, 4), torch.ones(1, 4)).pred, torch.zeros(1, 4))
    tangential = ours.TangentialClassifierFreeGuidance()
    tangential.prepare_models(torch.nn.Identity())
    assert tangential.is_conditional and not tangential.is_unconditional
    if importlib.util.find_spec("kornia") is not None:
        cond, uncond = (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
        decoupled = ours.FrequencyDecoupledGuidance([3.0, 3.0], start=[0.0, 0.5])
        decoupled.set_state(step=0, num_inference_steps=STEPS, timestep=torch.tensor(0))
        alone = ours.FrequencyDecoupledGuidance([3.0, 1.0])
        torch.testing.assert_close(decoupled.forward(cond, uncond).pred, alone.forward(cond, uncond).pred)
    with pytest.raises(ValueError, match="rescale"):
        ours.ClassifierFreeGuidance(guidance_rescale=1.5).forward(torch.ones(1, 4), torch.zeros(1, 4))


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_predictions_of_16_bits(theirs: type[BaseGuidance], arguments: dict[str, Any], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = guider(theirs, arguments), theirs(**arguments)
    for step in range(3):
        cond = torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
        uncond = cond + 0.3 * torch.randn(2, 4, 8, 8, generator=generator).to(dtype)
        for each in (own, other):
            each.set_state(step=step, num_inference_steps=3, timestep=torch.tensor(0))
            each.prepare_inputs({"x": (cond, uncond)})
        actual = own.forward(cond, uncond).pred
        expected = other.forward(cond.double(), uncond.double()).pred  # in 16 bits theirs rounds after each operation
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=float(4 * torch.finfo(dtype).eps * 5))


@every_case
def test_in_the_place_of_diffusers_own_in_a_modular_pipeline(
    theirs: type[BaseGuidance], arguments: dict[str, Any]
) -> None:
    """The denoising blocks of Stable Diffusion XL, with a small random U-Net."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
        use_linear_projection=True,
    ).eval()
    latents = torch.randn(2, 4, 8, 8)
    texts = {name: torch.randn(2, 3, 8) for name in ("prompt_embeds", "negative_prompt_embeds")}
    texts |= {name: torch.randn(2, 8) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
    texts |= {name: torch.ones(2, 6) for name in ("add_time_ids", "negative_add_time_ids")}
    images = []
    for each in (guider(theirs, arguments), theirs(**arguments)):
        scheduler = EulerDiscreteScheduler()
        scheduler.set_timesteps(4)
        pipeline = StableDiffusionXLDenoiseStep().init_pipeline()
        pipeline.update_components(unet=unet, scheduler=scheduler, guider=each)
        assert pipeline.guider is each
        images.append(
            pipeline(
                latents=latents.clone(),
                timesteps=scheduler.timesteps,
                num_inference_steps=4,
                denoiser_input_fields=texts,
                output="latents",
            )
        )
    torch.testing.assert_close(*images, rtol=2e-4, atol=2e-4)


def test_without_diffusers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['diffusers'] = None; import ferrostep.guidance.diffusers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert 'pip install "ferrostep[diffusers]"' in done.stderr.splitlines()[-1]
