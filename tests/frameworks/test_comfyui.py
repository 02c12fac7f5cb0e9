"""Our nodes behind the calls that ComfyUI makes of them (comfy/model_patcher.py, comfy/samplers.py)."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ferrostep import guidance
from ferrostep.reference import guidance as reference

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


def load() -> ModuleType:
    """The package, as ComfyUI loads a folder of custom_nodes: by its path, under a name that is no identifier."""
    name = str(FOLDER).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NODES = load()


class Patcher:
    """A ModelPatcher, as far as guidance goes."""

    def __init__(self) -> None:
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Patcher:
        other = Patcher()
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def set_model_sampler_cfg_function(self, function: Any, disable_cfg1_optimization: bool = False) -> None:
        if len(inspect.signature(function).parameters) == 3:  # how it was once
            raise AssertionError("cond, uncond and scale are not all that the nodes take")
        self.model_options["sampler_cfg_function"] = function
        if disable_cfg1_optimization:
            self.model_options["disable_cfg1_optimization"] = True


def predict(x: Tensor, sigma: Tensor, conditional: bool) -> Tensor:
    """A denoised prediction of some model."""
    target = torch.linspace(-1, 1, x[0].numel()).reshape(x[0].shape) if conditional else torch.full_like(x[0], 0.2)
    return target + 0.3 * torch.tanh(x) / (1 + sigma.reshape(-1, 1, 1, 1))


def denoise(patcher: Patcher, x: Tensor, sigma: Tensor, scale: float) -> Tensor:
    """What a sampler asks for: both predictions, the guidance, and no unconditional prediction at a scale of 1."""
    options = patcher.model_options
    cond = predict(x, sigma, True)
    skipped = math.isclose(scale, 1.0) and not options.get("disable_cfg1_optimization", False)
    uncond = torch.zeros_like(x) if skipped else predict(x, sigma, False)
    if "sampler_cfg_function" not in options:
        return uncond + (cond - uncond) * scale
    args = {
        "cond": x - cond,
        "uncond": x - uncond,
        "cond_scale": scale,
        "timestep": sigma,
        "input": x,
        "sigma": sigma,
        "cond_denoised": cond,
        "uncond_denoised": uncond,
        "model": patcher,
        "model_options": options,
        "input_cond": [{}],
        "input_uncond": None if skipped else [{}],
    }
    before = {name: value.clone() for name, value in args.items() if isinstance(value, Tensor)}
    result = x - options["sampler_cfg_function"](args)
    for name, value in before.items():
        assert torch.equal(args[name], value), f"{name} has been changed"
    return result


def sample(patcher: Patcher, scale: float = 4.0, steps: int = 5, size: int = 8, stop: int | None = None) -> Tensor:
    """Euler's method, from the same noise; somebody may stop it after some steps."""
    sigmas = torch.tensor([14.6, 7.0, 3.0, 1.0, 0.3, 0.0])[-steps - 1 :]
    patcher.model_options["transformer_options"]["sample_sigmas"] = sigmas
    x = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    for sigma, following in list(pairwise(sigmas))[:stop]:
        denoised = denoise(patcher, x, sigma.expand(2), scale)
        x = x + (x - denoised) / sigma * (following - sigma)
    return x


def node(name: str, **given: float) -> Patcher:
    """A model with a node's patch, with the defaults that the node declares where nothing else is given."""
    cls = NODES.NODE_CLASS_MAPPINGS[name]
    required = cls.INPUT_TYPES()["required"]
    assert required.pop("model") == ("MODEL",)
    numbers = {each: options["default"] for each, (_, options) in required.items()} | given
    result = getattr(cls(), cls.FUNCTION)(model=Patcher(), **numbers)
    assert len(result) == len(cls.RETURN_TYPES)
    return result[0]


def with_rule(rule: Any) -> Patcher:
    patcher = Patcher()
    patcher.set_model_sampler_cfg_function(rule)
    return patcher


EVERY_NODE = pytest.mark.parametrize("name", NODES.NODE_CLASS_MAPPINGS)


@EVERY_NODE
def test_a_node_declares_itself(name: str) -> None:
    cls = NODES.NODE_CLASS_MAPPINGS[name]
    assert NODES.NODE_DISPLAY_NAME_MAPPINGS[name] and cls.CATEGORY and cls.RETURN_TYPES == ("MODEL",)
    for kind, options in list(cls.INPUT_TYPES()["required"].values())[1:]:
        assert kind == "FLOAT" and options["min"] <= options["default"] <= options["max"] and options["tooltip"]


@EVERY_NODE
def test_the_given_model_stays_as_it_is(name: str) -> None:
    cls = NODES.NODE_CLASS_MAPPINGS[name]
    model = Patcher()
    defaults = {each: entry[1]["default"] for each, entry in cls.INPUT_TYPES()["required"].items() if len(entry) > 1}
    (patched,) = cls().patch(model, **defaults)
    assert patched is not model and "sampler_cfg_function" not in model.model_options


@EVERY_NODE
def test_at_a_scale_of_1_there_is_no_guidance(name: str) -> None:
    torch.testing.assert_close(sample(node(name), 1.0), sample(Patcher(), 1.0))


def test_cfg_is_comfyuis() -> None:
    torch.testing.assert_close(sample(node("FerrostepCFG")), sample(Patcher()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("FerrostepCFG", reference.cfg),
        ("FerrostepCFGZeroStar", reference.cfg_zero_star),
        ("FerrostepTangentialCFG", reference.tangential),
    ],
)
def test_rules_of_the_predicted_noise(name: str, rule: Any, rescale: float) -> None:
    expected = with_rule(lambda args: rule(args["cond"], args["uncond"], args["cond_scale"], rescale=rescale))
    torch.testing.assert_close(sample(node(name, rescale=rescale)), sample(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "numbers",
    [
        {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0},
        {"eta": 0.0, "norm_threshold": 2.5, "momentum": -0.75},
        {"eta": 0.5, "momentum": 0.2, "rescale": 0.3},
    ],
)
def test_apg_guides_what_is_denoised_and_its_momentum_begins_anew(numbers: dict[str, float]) -> None:
    patched = node("FerrostepAPG", **numbers)
    given = {"norm_threshold": 15.0, **numbers}
    momentum = given.pop("momentum")

    def expected() -> Patcher:
        buffer = guidance.MomentumBuffer(momentum)
        return with_rule(
            lambda args: (
                args["input"]
                - reference.apg(
                    args["cond_denoised"], args["uncond_denoised"], args["cond_scale"], momentum_buffer=buffer, **given
                )
            )
        )

    for steps in (5, 5):
        torch.testing.assert_close(sample(patched, steps=steps), sample(expected(), steps=steps), rtol=1e-4, atol=1e-4)
    if given["eta"] == 1.0:
        torch.testing.assert_close(sample(patched), sample(Patcher()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [8, 6])
def test_apg_begins_anew_after_a_sample_that_was_stopped_at_its_first_step(size: int) -> None:
    """Whose noise was no less than that of the next one, which may be of another size."""
    patched = node("FerrostepAPG")
    sample(patched, size=size, stop=1)
    torch.testing.assert_close(sample(patched), sample(node("FerrostepAPG")), rtol=0.0, atol=0.0)


def test_impossible_numbers_are_refused_when_they_are_used() -> None:
    with pytest.raises(ValueError, match="rescale"):
        sample(node("FerrostepCFG", rescale=2.0))
