"""What `python -m ferrostep plan` shows: models by name or by their config.json, and what optimizers take with them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .demo import DemoError
from .suggestions import meant

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .optim import MemoryPlan

Shapes = dict[str, tuple[int, ...]]
Config = Mapping[str, Any]

GPT2: Config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
LLAMA: Config = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
OF_3B = {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128}
OF_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
MODELS: dict[str, Config] = {
    "gpt2": GPT2,
    "gpt2-medium": {**GPT2, "n_embd": 1024, "n_layer": 24},
    "gpt2-large": {**GPT2, "n_embd": 1280, "n_layer": 36},
    "gpt2-xl": {**GPT2, "n_embd": 1600, "n_layer": 48},
    "llama-1b": LLAMA,
    "llama-3b": {**LLAMA, **OF_3B},
    "llama-8b": {**LLAMA, **OF_8B, "tie_word_embeddings": False},
}
"""OpenAI's GPT-2 and Meta's Llama 3.1 and 3.2, in transformers' terms."""

DEFAULT = (
    "adamw",
    "adamw:state_dtype=int8",
    "lion",
    "lion:state_dtype=int8",
    "muonadamw",
    "sgd:momentum=0.9",
    "adagradnorm",
    "torch.adamw",
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
BETWEEN_OPTIONS = re.compile(r",(?![^([{]*[)\]}])")
"""The commas that are not within a tuple, a list or a mapping."""
UNITS = {"GiB": 2**30, "MiB": 2**20}
"""Of tables."""


def gpt2(config: Config) -> Shapes:
    """The parameters of GPT-2 with its tied head."""
    width = config["n_embd"]
    inner = config.get("n_inner") or 4 * width
    shapes: Shapes = {
        "transformer.wte.weight": (config["vocab_size"], width),
        "transformer.wpe.weight": (config["n_positions"], width),
    }
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner),
            ("mlp.c_proj", inner, width),
        ):
            shapes |= {f"{at}{name}.weight": (rows, columns), f"{at}{name}.bias": (columns,)}
        shapes |= norm(f"{at}ln_1", width) | norm(f"{at}ln_2", width)
    return shapes | norm("transformer.ln_f", width)


def norm(name: str, width: int) -> Shapes:
    """The parameters of a layer normalization."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def llama(config: Config) -> Shapes:
    """The parameters of Llama, and of models that differ in their numbers."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    keys = head * (config.get("num_key_value_heads") or heads)
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, rows, columns, is_biased in (
            ("self_attn.q_proj", head * heads, width, config.get("attention_bias")),
            ("self_attn.k_proj", keys, width, config.get("attention_bias")),
            ("self_attn.v_proj", keys, width, config.get("attention_bias")),
            ("self_attn.o_proj", width, head * heads, config.get("attention_bias")),
            ("mlp.gate_proj", inner, width, config.get("mlp_bias")),
            ("mlp.up_proj", inner, width, config.get("mlp_bias")),
            ("mlp.down_proj", width, inner, config.get("mlp_bias")),
        ):
            shapes[f"{at}{name}.weight"] = (rows, columns)
            if is_biased:
                shapes[f"{at}{name}.bias"] = (rows,)
        shapes |= {f"{at}{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes["model.norm.weight"] = (width,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes


KNOWN = {"gpt2": gpt2, "llama": llama}


def model_of(name: str | None, config: Path | None) -> tuple[str, nn.Module | Shapes]:
    """What the model is called, and the model or its shapes; `DemoError` for one that cannot be had."""
    if config is None:
        assert name is not None
        if name not in MODELS:
            raise DemoError(f"unknown model {name!r}{hint(name, MODELS)}; known: {', '.join(MODELS)}; or --config FILE")
        return name, KNOWN[MODELS[name]["model_type"]](MODELS[name])
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DemoError(f"cannot read the config {str(config)!r}: {error}") from error
    if not isinstance(content, dict) or "model_type" not in content:
        raise DemoError(f"{str(config)!r} is no config.json of transformers: it has no model_type")
    return content["model_type"], of_config(content)


def of_config(config: dict[str, Any]) -> nn.Module | Shapes:
    """The model of a config; by transformers, without memory, where this package does not know its kind."""
    kind = config["model_type"]
    try:
        if kind in KNOWN:
            return KNOWN[kind](config)
        return of_transformers(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DemoError(f"the config of a {kind!r} model cannot be used: {type(error).__name__}: {error}") from error


def of_transformers(config: dict[str, Any]) -> nn.Module:
    """The model that transformers makes of a config, on no device."""
    if importlib.util.find_spec("transformers") is None:
        raise DemoError(f"{config['model_type']!r} models need transformers; without it: {', '.join(KNOWN)}")
    import torch
    import transformers  # type: ignore[import-untyped,unused-ignore]

    settings = {name: value for name, value in config.items() if name != "model_type"}
    architecture = (config.get("architectures") or ["AutoModel"])[0]
    made = transformers.AutoConfig.for_model(config["model_type"], **settings)
    cls = getattr(transformers, architecture)
    with torch.device("meta"):
        model: nn.Module = cls.from_config(made) if architecture.startswith("Auto") else cls(made)
    return model


def plan_of(text: str, model: nn.Module | Shapes, dtype: torch.dtype) -> MemoryPlan:
    """The plan for an optimizer such as `adamw` or `adamw:state_dtype=int8,rounding=kahan`.

    `DemoError` for one that is not there or does not take the model or the options.
    """
    import torch

    from . import optim

    name, _, given = text.partition(":")
    package, known = (torch.optim, name[6:]) if name.startswith("torch.") else (optim, name)
    classes = {
        key.lower(): value
        for key, value in vars(package).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    if known.lower() not in classes:
        raise DemoError(f"unknown optimizer {name!r}{hint(known.lower(), classes)}")
    options = dict(option_of(text, each) for each in BETWEEN_OPTIONS.split(given) if each)
    cls = classes[known.lower()]
    rate = inspect.signature(cls).parameters.get("lr")
    if rate is not None and rate.default is rate.empty:
        options.setdefault("lr", 1e-3)  # which plays no part
    if cls is optim.SAM:
        raise DemoError(f"{text}: it goes around another optimizer; ferrostep.optim.memory_plan takes both")
    try:
        return optim.memory_plan(model, cls, dtype=dtype, **options)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise DemoError(f"{text}: {error}") from error


def option_of(optimizer: str, text: str) -> tuple[str, Any]:
    """An option and its value, a Python literal, the name of a dtype or a word."""
    name, found, value = text.partition("=")
    if not found:
        raise DemoError(f"{optimizer}: expected option=value, got {text!r}")
    try:
        return name, meaning(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return name, meaning(value)


def meaning(value: Any) -> Any:
    """The value with dtypes for their names, also in a mapping."""
    import torch

    if isinstance(value, dict):
        return {key: meaning(each) for key, each in value.items()}
    return getattr(torch, value) if value in DTYPES else value


def hint(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as part of an error."""
    near = meant(name, known)
    return f" (did you mean {near!r}?)" if near else ""


def unit_of(plans: Mapping[str, MemoryPlan]) -> str:
    """The unit that a table of them is in."""
    most = max(plan.total for plan in plans.values())
    return "GiB" if most >= UNITS["GiB"] else "MiB"


def table(plans: Mapping[str, MemoryPlan], unit: str) -> str:
    """One row for each plan."""
    rows = [("optimizer", "weights", "gradients", "state", "scratch", "total", "attached")]
    for name, plan in plans.items():
        sizes: Sequence[int | None] = (
            plan.parameters,
            plan.gradients,
            sum(plan.state.values()),
            plan.scratch,
            plan.total,
            plan.attached_total,
        )
        rows.append((name, *("-" if size is None else f"{size / UNITS[unit]:.2f}" for size in sizes)))  # type: ignore[arg-type]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    first, *others = widths
    return "\n".join(
        "  ".join([row[0].ljust(first), *(x.rjust(width) for x, width in zip(row[1:], others, strict=True))])
        for row in rows
    )
