"""MuonAdamW where a framework takes an optimizer's class and its arguments: each trains, and moves all parameters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ferrostep.optim import MuonAdamW

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

ARGUMENTS: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.01, "skip_nonfinite": True}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(-1) > 0).long()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_all_moved(before: dict[str, Tensor], model: nn.Module) -> None:
    after = weights(model)
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert all(p.isfinite().all() for p in after.values())


def to_muon(optimizer: Any) -> list[int]:
    """Which of the parameters, in the optimizer's order, Muon has stepped."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [i for i, p in enumerate(params) if "momentum_buffer" in optimizer.state[p]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frameworks leave files where they run."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("by_model", [False, True], ids=["parameters", "model"])
def test_transformers_trainer(by_model: bool) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    before = weights(model)
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            "out", max_steps=3, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no"
        ),
        train_dataset=[{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 12,
        optimizer_cls_and_kwargs=(MuonAdamW, {**ARGUMENTS, **({"model": model} if by_model else {})}),
    )
    trainer.train()
    assert_all_moved(before, model)
    optimizer = trainer.optimizer.optimizer
    assert len(optimizer.param_groups) == (1 if by_model else 2)
    named = {p: name for name, p in model.named_parameters()}
    stepped = {named[p] for p, state in optimizer.state.items() if "momentum_buffer" in state}
    hidden = {f"transformer.h.{i}.{each}.weight" for i in range(2) for each in ("attn.c_attn", "attn.c_proj")}
    hidden |= {f"transformer.h.{i}.mlp.{each}.weight" for i in range(2) for each in ("c_fc", "c_proj")}
    # Without names the last matrix is taken for an output layer, and wpe for a hidden matrix.
    assert (
        stepped == hidden
        if by_model
        else stepped == hidden - {"transformer.h.1.mlp.c_proj.weight"} | {"transformer.wpe.weight"}
    )


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = mlp()
    before = weights(model)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, MuonAdamW(model, **ARGUMENTS))
    x, y = data()
    for _ in range(2):
        accelerator.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    assert_all_moved(before, model)
    assert to_muon(optimizer.optimizer) == [0, 2]


def test_lightning() -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch: Any, _number: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = MuonAdamW(self.parameters(), **ARGUMENTS)
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=4)]

    model = Classifier()
    before = weights(model)
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, DataLoader(TensorDataset(*data()), batch_size=8))
    assert_all_moved(before, model)
    assert to_muon(trainer.optimizers[0]) == [0, 2]


def test_lightnings_command_line() -> None:
    pytest.importorskip("jsonargparse")
    cli = pytest.importorskip("lightning.pytorch.cli")
    demos = pytest.importorskip("lightning.pytorch.demos.boring_classes")

    class Model(demos.BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.hidden(x))

        configure_optimizers = cli.LightningModule.configure_optimizers

    flags = ["accelerator=cpu", "max_steps=2", "logger=false", "enable_checkpointing=false", "limit_val_batches=0"]
    arguments = [f"--trainer.{flag}" for flag in flags]
    arguments += ["--optimizer=ferrostep.optim.MuonAdamW", "--optimizer.lr=0.01", "--optimizer.normalize=normuon"]
    found = cli.LightningCLI(Model, demos.BoringDataModule, args=["fit", *arguments])
    optimizer = found.trainer.optimizers[0]
    assert isinstance(optimizer, MuonAdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["normalize"]) == (0.01, "normuon")
    assert optimizer.state


def test_skorch() -> None:
    skorch = pytest.importorskip("skorch")
    arguments = {f"optimizer__{name}": value for name, value in ARGUMENTS.items() if name != "lr"}
    net = skorch.NeuralNetClassifier(
        mlp(), criterion=nn.CrossEntropyLoss, optimizer=MuonAdamW, lr=3e-3, max_epochs=2, verbose=0, **arguments
    )
    x, y = data()
    net.initialize()
    before = weights(net.module_)
    net.partial_fit(x.numpy(), y.numpy())
    assert_all_moved(before, net.module_)
    assert to_muon(net.optimizer_) == [2]


def test_stable_baselines3() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    sb3 = pytest.importorskip("stable_baselines3")

    class Line(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.np_random.uniform(-1, 1, 3).astype(np.float32), float(action), False, True, {}

    policy = {"optimizer_class": MuonAdamW, "optimizer_kwargs": {"weight_decay": 0.01}, "net_arch": [8, 8]}
    agent = sb3.PPO("MlpPolicy", Line(), n_steps=16, batch_size=8, n_epochs=1, policy_kwargs=policy, device="cpu")
    before = weights(agent.policy)
    agent.learn(32)
    assert_all_moved(before, agent.policy)
    # SB3 hands over `self.parameters()`, so that the policy's modules say which are its output layers.
    routes = {route.name: route.optimizer for route in agent.policy.optimizer.routes}
    assert {name for name, optimizer in routes.items() if optimizer == "AdamW" and name.endswith("weight")} == {
        "action_net.weight",
        "value_net.weight",
    }


def test_fastai() -> None:
    learner = pytest.importorskip("fastai.learner")
    fastai = pytest.importorskip("fastai.optimizer")
    pytest.importorskip("fastai.callback.schedule")  # gives learners fit_one_cycle
    dataset = TensorDataset(*data())
    loaders = pytest.importorskip("fastai.data.core").DataLoaders(DataLoader(dataset, 8), DataLoader(dataset, 8))
    model = mlp()
    learn = learner.Learner(
        loaders,
        model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(fastai.OptimWrapper, opt=MuonAdamW),
        splitter=lambda m: [list(m[:3].parameters()), list(m[3:].parameters())],
    )
    before = weights(model)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, lr_max=slice(1e-3, 1e-2))
    assert_all_moved(before, model)
    assert len(learn.opt.opt.param_groups) == 2
    assert to_muon(learn.opt.opt) == [2]


@pytest.mark.parametrize("by_layer", [None, 0.7], ids=["one rate", "a rate for each layer"])
def test_timm(by_layer: float | None) -> None:
    timm = pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
    )
    optim = pytest.importorskip("timm.optim")
    groups = (
        optim.param_groups_layer_decay(model, 0.05, layer_decay=by_layer)
        if by_layer
        else optim.param_groups_weight_decay(model, 0.05)
    )
    optimizer = MuonAdamW(groups, lr=1e-2)
    scheduler = pytest.importorskip("timm.scheduler").CosineLRScheduler(optimizer, t_initial=4, warmup_t=2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [group["weight_decay"] for group in groups]
    before = weights(model)
    for number in range(3):
        model(torch.randn(2, 3, 16, 16)).square().mean().backward()
        scheduler.step(number + 1)
        optimizer.step()
    assert_all_moved(before, model)
    assert to_muon(optimizer)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_zero() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = mlp()
    named = dict(model.named_parameters())
    hidden = [named.pop(name) for name in ("0.weight", "2.weight")]
    groups = [{"params": hidden, "use_muon": True}, {"params": list(named.values()), "use_muon": False, "lr": 1e-3}]
    optimizer = ZeroRedundancyOptimizer(groups, MuonAdamW, **ARGUMENTS)
    before = weights(model)
    for _ in range(2):
        x, y = data()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert_all_moved(before, model)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-3, 1e-3]
    assert to_muon(optimizer.optim) == [0, 1]
    optimizer.consolidate_state_dict()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
