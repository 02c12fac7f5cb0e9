"""Hugging Face's Trainer with our optimizers by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ferrostep import optim
from ferrostep.integrations.transformers import TrainerMixin

from .pages import assert_same_weights, run

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import transformers

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]  # about pinned memory and the like

BY_STRING = 'optim_args="ferrostep=AdamW"'


def test_the_page_trains_as_with_torch() -> None:
    ours, theirs = run("transformers"), run("transformers", BY_STRING, 'optim="adamw_torch"')
    groups = [each["trainer"].optimizer.optimizer for each in (ours, theirs)]
    assert [type(each) for each in groups] == [optim.AdamW, torch.optim.AdamW]
    assert [g["weight_decay"] for g in groups[0].param_groups] == [0.1, 0.0]
    assert_same_weights(ours["model"], theirs["model"])


def test_a_run_of_torch_resumes_with_ours(tmp_path: Path) -> None:
    """Half of the run each way is the whole run."""
    data = [{"input_ids": torch.arange(i, i + 8) % 11, "labels": torch.arange(i, i + 8) % 11} for i in range(16)]

    class OurTrainer(TrainerMixin, transformers.Trainer):
        pass

    def train(optim_args: str | None, folder: str, resume: bool = False) -> Any:
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=11, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
        arguments = transformers.TrainingArguments(
            str(tmp_path / folder), max_steps=4, save_steps=2, learning_rate=1e-2, optim_args=optim_args
        )
        trainer = OurTrainer(transformers.GPT2LMHeadModel(config), arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=str(tmp_path / "torch" / "checkpoint-2") if resume else None)
        return trainer

    torchs = train(None, "torch")
    resumed = train("ferrostep=AdamW", "ours", resume=True)
    assert isinstance(torchs.optimizer.optimizer, torch.optim.AdamW)
    assert type(resumed.optimizer.optimizer) is optim.AdamW
    assert int(next(iter(resumed.optimizer.state.values()))["step"]) == 4
    assert_same_weights(resumed.model, torchs.model)


def test_muon_by_string_knows_the_modules_and_spares_biases(tmp_path: Path) -> None:
    class OurTrainer(TrainerMixin, transformers.Trainer):
        pass

    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    given = {"learning_rate": 1e-2, "weight_decay": 0.3, "optim_args": "ferrostep=MuonAdamW, normalize=normuon"}
    optimizer = OurTrainer(model, transformers.TrainingArguments(str(tmp_path), **given)).create_optimizer()
    assert type(optimizer) is optim.MuonAdamW and optimizer.defaults["normalize"] == "normuon"
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (1e-2, 0.3, 6),
        (1e-2, 0.0, 10),
    ]
    muons = [route.name for route in optimizer.routes if route.optimizer == "Muon"]
    assert muons == [
        f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]


def arguments(optim_args: str | None) -> Any:
    return SimpleNamespace(
        learning_rate=1e-3, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6, optim="sgd", optim_args=optim_args
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ferrostep=AdamW", (optim.AdamW, {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6})),
        ("ferrostep=AdamW,eps=0.1", (optim.AdamW, {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 0.1})),
        ("ferrostep=MuonAdamW", (optim.MuonAdamW, {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6})),
        ("ferrostep=MuonAdamW, betas=(0.9, 0.95)", (optim.MuonAdamW, {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-6})),
        ("ferrostep=Muon", (optim.Muon, {"lr": 1e-3})),
        (
            "rounding=stochastic, ferrostep=Lion, betas=(0.95, 0.98), seed=3, maximize=True",
            (optim.Lion, {"lr": 1e-3, "rounding": "stochastic", "betas": (0.95, 0.98), "seed": 3, "maximize": True}),
        ),
        (None, (torch.optim.SGD, {"lr": 1e-3})),
        ("momentum=0.5", (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.5})),
    ],
)
def test_optim_args_select_class_and_arguments(text: str | None, expected: tuple[type, dict[str, Any]]) -> None:
    class OurTrainer(TrainerMixin, transformers.Trainer):
        pass

    assert OurTrainer.get_optimizer_cls_and_kwargs(arguments(text)) == expected


def test_what_is_named_after_adam_counts_where_it_was_changed(tmp_path: Path) -> None:
    def kwargs(optim_args: str, **given: Any) -> dict[str, Any]:
        args = transformers.TrainingArguments(str(tmp_path), optim_args=optim_args, **given)
        return TrainerMixin.get_optimizer_cls_and_kwargs(args)[1]

    for name in ("AdamW", "MuonAdamW", "Lion"):
        assert kwargs(f"ferrostep={name}") == {"lr": 5e-5}  # hence the class's own
    assert kwargs("ferrostep=MuonAdamW", adam_beta2=0.98)["betas"] == (0.95, 0.98)
    assert kwargs("ferrostep=Lion", adam_beta1=0.95, adam_epsilon=0.1) == {"lr": 5e-5, "betas": (0.95, 0.99)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ferrostep=AdamWW", "ferrostep.optim has no optimizer 'AdamWW' to make by name; did you mean 'AdamW'"),
        ("ferrostep=RuleOptimizer", "no optimizer 'RuleOptimizer'"),
        ("ferrostep=3", "no optimizer '3'"),
        ("ferostep=AdamW", "Invalid optim_args: 'ferostep=AdamW'; expected 'ferrostep' for 'ferostep'"),
        ("ferrostep.AdamW", "Invalid optim_args: 'ferrostep.AdamW'; expected entries such as"),
        (
            "ferrostep=AdamW, betas=(0.9",
            "Invalid optim_args: 'ferrostep=AdamW, betas=[(]0.9'; expected entries such as",
        ),
        ("ferrostep=AdamW, lr=f()", "Invalid optim_args"),
        ("ferrostep=AdamW, **{}", "Invalid optim_args"),
        ("ferrostep=AdamW) + f(x=1", "Invalid optim_args"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerMixin.get_optimizer_cls_and_kwargs(arguments(text))
