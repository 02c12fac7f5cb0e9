"""Muon: oracles, torch.optim.Muon step by step, layouts of parameters, NorMuon, and MuonWithAuxAdamW."""

from __future__ import annotations

import re
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ferrostep import _core, orthogonalize, reference
from ferrostep.optim import AdamW, Muon, MuonWithAuxAdamW

PLAIN: dict[str, Any] = {"lr": 1.0, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stepped(p: Tensor, grads: list[Tensor], optimizer: Any = Muon, **arguments: Any) -> Tensor:
    p = Parameter(p.clone())
    made = optimizer([p], **arguments)
    for grad in grads:
        p.grad = grad.clone()
        made.step()
    return p.detach()


both = pytest.mark.parametrize("backend", ["rust", "reference"])


@both
def test_multiples_of_the_identity(backend: str) -> None:
    for n, value in {
        2: 1.1081111156829304,
        3: 0.6857849207555402,
        4: 0.7654385304543396,
        16: 0.714526261333035,
    }.items():
        moved = stepped(torch.zeros(n, n).double(), [torch.eye(n).double() * 1e-9], eps=0.0, backend=backend, **PLAIN)
        torch.testing.assert_close(moved, -value * torch.eye(n).double(), rtol=1e-13, atol=1e-13)


@pytest.mark.smoke
@both
def test_rank_one(backend: str) -> None:
    tall = stepped(torch.zeros(4, 1).double(), [torch.ones(4, 1).double()], backend=backend, **PLAIN)
    wide = stepped(torch.zeros(1, 4).double(), [torch.ones(1, 4).double()], backend=backend, **PLAIN)
    torch.testing.assert_close(tall, torch.full((4, 1), -0.6964364094697522).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(wide, torch.full((1, 4), -0.3482182047348761).double(), rtol=1e-7, atol=0)


@both
def test_a_diagonal_gradient_with_weight_decay(backend: str) -> None:
    g = torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))
    moved = stepped(torch.ones(2, 2).double(), [g], lr=0.1, weight_decay=0.1, backend=backend)
    expected = torch.tensor([[0.9177123831, 0.99], [0.99, 0.8780796070]], dtype=torch.float64)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-8)


@both
@pytest.mark.parametrize(("nesterov", "factor"), [(True, 0.0975), (False, 0.05)])
def test_the_first_step(nesterov: bool, factor: float, backend: str) -> None:
    g = gaussian(6, 9)
    moved = stepped(torch.zeros(6, 9).double(), [g], lr=1.0, weight_decay=0.0, nesterov=nesterov, backend=backend)
    o = reference.newton_schulz(g * factor, _core.Schedule("keller").triples(), eps=1e-7)
    torch.testing.assert_close(moved, -o, rtol=1e-10, atol=1e-10)


@both
@pytest.mark.parametrize("shape", [(300, 10), (10, 300)])
@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw", "spectral_unclamped"])
def test_adjusted_learning_rates(shape: tuple[int, int], adjust: str | None, backend: str) -> None:
    g = gaussian(*shape)
    rows, cols = shape
    factor = {
        None: max(1, rows / cols) ** 0.5,
        "original": max(1, rows / cols) ** 0.5,
        "match_rms_adamw": 0.2 * 300**0.5,
        "spectral_unclamped": (rows / cols) ** 0.5,
    }[adjust]
    moved = stepped(torch.zeros(shape).double(), [g], adjust_lr_fn=adjust, backend=backend, **PLAIN)
    torch.testing.assert_close(moved, -factor * orthogonalize(g), rtol=1e-6, atol=1e-6)


def test_heavy_ball_is_the_same_but_for_the_buffers_scale() -> None:
    p, buffer = gaussian(5, 8), torch.zeros(5, 8).double()
    grads = [gaussian(5, 8, seed=i + 1) for i in range(6)]
    expected = p.clone()
    for g in grads:
        buffer = 0.9 * buffer + g
        expected -= 0.1 * orthogonalize(g + 0.9 * buffer)
    moved = stepped(p, grads, lr=0.1, weight_decay=0.0, momentum=0.9)
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)], ids=str)
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_agrees_with_torch_within_its_bfloat16(shape: tuple[int, int], adjust: str) -> None:
    arguments = {"lr": 0.1, "weight_decay": 0.1, "adjust_lr_fn": adjust}
    p = gaussian(*shape).float()
    grads = [gaussian(*shape, seed=i + 1).float() for i in range(20)]
    s = max(1, shape[0] / shape[1]) ** 0.5 if adjust == "original" else 0.2 * max(shape) ** 0.5
    for steps, allowed in ((1, 0.04), (20, 0.15)):
        ours = stepped(p, grads[:steps], **arguments)
        theirs = stepped(p, grads[:steps], torch.optim.Muon, **arguments)
        largest = orthogonalize(grads[0]).abs().max()
        assert (ours - theirs).abs().max() <= allowed * 0.1 * s * largest


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)], ids=str)
def test_agrees_with_pytorch_optimizers_within_its_bfloat16(shape: tuple[int, int]) -> None:
    def peer(params: list[Parameter], **arguments: Any) -> pytorch_optimizer.Muon:
        return pytorch_optimizer.Muon([{"params": params, "use_muon": True}], **arguments)

    arguments = {"lr": 0.1, "weight_decay": 0.1}
    p = gaussian(*shape).float()
    grads = [gaussian(*shape, seed=i + 1).float() for i in range(20)]
    largest = orthogonalize(grads[0]).abs().max()
    for steps, allowed in ((1, 0.04), (20, 0.15)):
        difference = stepped(p, grads[:steps], **arguments) - stepped(p, grads[:steps], peer, **arguments)
        assert difference.abs().max() <= allowed * 0.1 * max(1, shape[0] / shape[1]) ** 0.5 * largest


@pytest.mark.parametrize("from_us", [True, False], ids=["to torch", "from torch"])
def test_checkpoints_move_between_torch_and_us(from_us: bool) -> None:
    first, second = (Muon, torch.optim.Muon) if from_us else (torch.optim.Muon, Muon)
    p, q = Parameter(gaussian(8, 8).float()), Parameter(gaussian(8, 8).float())
    optimizer, other = first([p], lr=0.05), second([q], lr=0.9)
    p.grad = gaussian(8, 8, seed=1).float()
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.05
    assert torch.equal(other.state[q]["momentum_buffer"], optimizer.state[p]["momentum_buffer"])
    q.grad = p.grad
    other.step()


@both
@pytest.mark.parametrize(
    ("shape", "options", "blocks"),
    [
        ((8, 4, 3, 3), {"ndim_policy": "flatten"}, lambda x: [x.reshape(8, 36)]),
        ((8, 4, 3), {"ndim_policy": "flatten"}, lambda x: [x.reshape(8, 12)]),
        ((3, 8, 4), {"ndim_policy": "batch"}, lambda x: list(x)),
        ((2, 3, 4, 5), {"ndim_policy": "batch"}, lambda x: list(x.reshape(6, 4, 5))),
        ((12, 5), {"num_heads": 3}, lambda x: list(x.reshape(3, 4, 5))),
        ((12, 5), {"split_sizes": (6, 2, 4)}, lambda x: list(x.split([6, 2, 4]))),
    ],
    ids=str,
)
@pytest.mark.parametrize("normalize", [None, "normuon"])
def test_layouts_equal_separate_matrices(
    shape: tuple[int, ...], options: dict[str, Any], blocks: Any, normalize: str | None, backend: str
) -> None:
    p = Parameter(gaussian(*shape))
    parts = [Parameter(block.clone()) for block in blocks(p.detach())]
    one = Muon([p], lr=0.1, normalize=normalize, backend=backend, **options)
    many = Muon(parts, lr=0.1, normalize=normalize, backend=backend)
    for step in range(3):
        p.grad = gaussian(*shape, seed=step + 1)
        for part, grad in zip(parts, blocks(p.grad), strict=True):
            part.grad = grad.clone()
        one.step()
        many.step()
    for part, block in zip(parts, blocks(p.detach()), strict=True):
        torch.testing.assert_close(block, part.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_convolutions(dtype: torch.dtype) -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        p = Parameter(gaussian(8, 4, 3, 3).to(dtype).to(memory_format=layout))
        optimizer = Muon([p], lr=0.1, ndim_policy="flatten")
        for step in range(3):
            p.grad = gaussian(8, 4, 3, 3, seed=step + 1).to(dtype)
            optimizer.step()
        results.append(p.detach().contiguous())
    assert torch.equal(*results)


@pytest.mark.smoke
@both
def test_normuon_follows_its_equations(backend: str) -> None:
    p = gaussian(6, 10)
    grads = [gaussian(6, 10, seed=i + 1) for i in range(5)]
    expected, m, v = p.clone(), torch.zeros(6, 10).double(), torch.zeros(6, 1).double()
    for g in grads:
        m = 0.95 * m + 0.05 * g
        o = orthogonalize(0.05 * g + 0.95 * m)
        v = 0.9 * v + 0.1 * o.square().mean(1, keepdim=True)
        scaled = o / (v.sqrt() + 1e-10)
        expected = expected * (1 - 0.1 * 0.1) - 0.1 * scaled * o.norm() / scaled.norm()
    moved = stepped(p, grads, lr=0.1, normalize="normuon", beta2=0.9, backend=backend)
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-6)


@both
def test_normuons_state_is_one_number_per_row(backend: str) -> None:
    for shape, options, expected in (
        ((6, 10), {}, (6, 1)),
        ((6, 2, 3, 3), {"ndim_policy": "flatten"}, (6, 1, 1, 1)),
        ((2, 6, 10), {"ndim_policy": "batch"}, (2, 6, 1)),
        ((6, 10), {"num_heads": 2}, (6, 1)),
    ):
        p = Parameter(gaussian(*shape).bfloat16())
        optimizer = Muon([p], normalize="normuon", backend=backend, **options)
        p.grad = torch.ones_like(p)
        optimizer.step()
        v = optimizer.state[p]["second_momentum_buffer"]
        assert v.shape == expected and v.dtype == torch.float32
        optimizer.state[p]["second_momentum_buffer"] = torch.zeros(3, 3)
        before = p.detach().clone()
        message = f"second_momentum_buffer of parameter 0 in group 0 has shape [3, 3], expected {list(expected)}"
        with pytest.raises(ValueError, match=re.escape(message)):
            optimizer.step()
        assert torch.equal(p, before)


@both
def test_cautious_decay_spares_what_moves_away_from_zero(backend: str) -> None:
    p, g = gaussian(6, 9), gaussian(6, 9, seed=1)
    p[0] = 0
    o = orthogonalize(g)
    moved = stepped(p, [g], cautious_weight_decay=True, backend=backend, **PLAIN | {"lr": 0.1, "weight_decay": 0.5})
    decayed = torch.where(o * p >= 0, p * (1 - 0.1 * 0.5), p)
    torch.testing.assert_close(moved, decayed - 0.1 * o, rtol=1e-6, atol=1e-6)


@both
def test_a_zero_gradient_moves_on_unless_told_otherwise(backend: str) -> None:
    grads = [gaussian(3, 4, 5, seed=1), gaussian(3, 4, 5, seed=2)]
    grads[1][1] = 0
    grads[1][1, 0, 0] = -0.0
    for skip in (False, True):
        p = Parameter(gaussian(3, 4, 5))
        optimizer = Muon([p], lr=0.1, ndim_policy="batch", skip_zero_grad=skip, normalize="normuon", backend=backend)
        p.grad = grads[0].clone()
        optimizer.step()
        before = p.detach().clone()
        state = {name: value.clone() for name, value in optimizer.state[p].items()}
        p.grad = grads[1].clone()
        optimizer.step()
        moved = (p.detach() != before).flatten(1).any(1).tolist()
        assert moved == [True, not skip, True]
        for name, value in state.items():
            changed = (optimizer.state[p][name] != value).flatten(1).any(1).tolist()
            assert changed == [True, not skip, True], name


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_any_size(scale: float) -> None:
    g = gaussian(8, 12).float()
    expected = stepped(torch.zeros(8, 12), [g], eps=0.0, ns_precision="float32", **PLAIN)
    moved = stepped(torch.zeros(8, 12), [g * scale], eps=0.0, ns_precision="float32", **PLAIN)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_more_than_fits_the_scratch_memory_at_once() -> None:
    shapes = [(2048, 4096), (2048, 4096), (64, 64), (5, 7)]
    params = [Parameter(torch.zeros(shape)) for shape in shapes]
    for i, p in enumerate(params):
        p.grad = gaussian(*p.shape, seed=i).float()
    Muon(params, ns_steps=1, eps=0.0, **PLAIN).step()
    for p in params:
        expected = torch.zeros_like(p)
        stepped_alone = stepped(expected, [p.grad], ns_steps=1, eps=0.0, **PLAIN)
        assert torch.equal(p.detach(), stepped_alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ns_coefficients": "aol"}, "no coefficients called"),
        ({"ns_coefficients": (4.0098, -7.0585, 2.4635)}, "must stay positive"),
        ({"ns_steps": 0}, "Invalid ns_steps"),
        ({"ns_steps": 100}, "Invalid ns_steps"),
        ({"ns_coefficients": "deepseekv4"}, "deepseekv4 is made for 10 steps, got 5"),
        ({"ns_coefficients": "quintic", "ns_steps": 4}, "quintic is made for 5 steps, got 4"),
        ({"ns_coefficients": 6 * [(1.5, -0.5, 0.0)]}, "a sequence of 6 triples is made for 6 steps, got 5"),
        ({"ns_coefficients": "cubic5", "ns_precision": "bfloat16"}, "expected 'auto', 'float32' or 'float64'"),
        ({"ns_coefficients": "cans_1.003"}, "safety factor of 1.004 to 2"),
        ({"ns_restarts": (-1,)}, "Invalid restarts: -1; expected steps"),
        ({"eps": -1.0}, "eps should be >= 0"),
        ({"eps": float("inf")}, "Invalid eps: inf; expected a finite number"),
        ({"adjust_lr_fn": "rms"}, "Adjust learning rate function rms is not supported"),
        ({"ns_algorithm": "fast"}, "Invalid ns_algorithm"),
        ({"ns_precision": "int8"}, "Invalid ns_precision"),
        ({"ndim_policy": "guess"}, "Invalid ndim_policy"),
        ({"normalize": "adamuon"}, "Invalid normalize"),
        ({"beta2": 1.0}, "beta2 should be in"),
        ({"num_heads": 0}, "num_heads should be"),
        ({"num_heads": 3}, "not 3 equal heads"),
        ({"num_heads": 2, "split_sizes": (2, 2)}, "exclude each other"),
        ({"num_heads": 2, "ndim_policy": "batch"}, "excludes ndim_policy"),
        ({"split_sizes": (2, 3)}, "do not sum"),
        ({"split_sizes": (4, 0)}, "split_sizes should be"),
        ({"ndim_policy": "whole"}, "Invalid ndim_policy: 'whole'; expected 'error', 'flatten' or 'batch'"),
    ],
    ids=str,
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([Parameter(torch.ones(4, 6))], **arguments)


def test_sets_of_coefficients_have_their_published_length_on_demand() -> None:
    g = gaussian(6, 9)
    for name, count in (("deepseekv4", 10), ("cubic5", 5), ("polar_express_1.02", 5)):
        moved = stepped(torch.zeros(6, 9).double(), [g], ns_coefficients=name, ns_steps=None, eps=0.0, **PLAIN)
        torch.testing.assert_close(moved, -orthogonalize(g, coefficients=name), rtol=1e-12, atol=1e-12)
        assert len(_core.Schedule(name).triples()) == count


def test_live_edits_that_divide_by_nothing() -> None:
    p = Parameter(torch.ones(4, 6))
    optimizer = Muon([p], num_heads=2)
    optimizer.param_groups[0]["num_heads"] = 0
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="num_heads should be >= 1 but is: 0"):
        optimizer.step()
    assert torch.equal(p, torch.ones(4, 6))


@both
@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("options", [{}, {"num_heads": 2}, {"normalize": "normuon"}], ids=str)
def test_matrices_without_elements(shape: tuple[int, int], options: dict[str, Any], backend: str) -> None:
    p = Parameter(torch.zeros(shape))
    p.grad = torch.zeros(shape)
    optimizer = Muon([p], backend=backend, **options)
    optimizer.step()
    assert all(not value.any() for value in optimizer.state[p].values())


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (6, 1)], ids=str)
def test_normuons_state_follows_the_parameters_dtype(shape: tuple[int, int], state_dtype: torch.dtype | None) -> None:
    def made(dtype: torch.dtype) -> tuple[Muon, Parameter]:
        p = Parameter(gaussian(*shape).to(dtype))
        return Muon([p], normalize="normuon", state_dtype=state_dtype), p

    def step(optimizer: Muon, p: Parameter) -> None:
        p.grad = gaussian(*shape, seed=1).to(p.dtype)
        optimizer.step()

    name = "second_momentum_buffer"
    for first in (torch.float32, torch.float64, torch.bfloat16):
        optimizer, p = made(first)
        step(optimizer, p)
        for second in (torch.float32, torch.float64, torch.bfloat16):
            other, q = made(second)
            other.load_state_dict(optimizer.state_dict())
            moment = other.state[q][name]
            assert moment.dtype == (torch.float64 if second == torch.float64 else torch.float32)
            assert torch.equal(moment, optimizer.state[p][name].to(moment.dtype))
            step(other, q)
    elsewhere = Muon([torch.nn.Parameter(torch.empty(shape, device="meta"))], normalize="normuon")
    elsewhere.load_state_dict(optimizer.state_dict())
    assert {value.device.type for state in elsewhere.state.values() for value in state.values()} == {"meta"}


def test_parameters_of_other_shapes_are_refused_at_once() -> None:
    for shape in ((), (3,), (2, 3, 4)):
        with pytest.raises(ValueError, match="Muon only supports 2D parameters whereas we found"):
            Muon([Parameter(torch.ones(shape))])
    with pytest.raises(ValueError, match="Muon only supports parameters of 2 or more dimensions"):
        Muon([Parameter(torch.ones(3))], ndim_policy="flatten")
    with pytest.raises(RuntimeError, match="complex"):
        Muon([Parameter(torch.ones(3, 3, dtype=torch.complex64))])
    optimizer = Muon([Parameter(torch.ones(3, 3))])
    with pytest.raises(ValueError, match="2D"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(3))]})
    assert len(optimizer.param_groups) == 1


class TestMuonWithAuxAdamW:
    """Both rules in one optimizer."""

    @staticmethod
    def parameters() -> tuple[list[Parameter], list[Parameter]]:
        return [Parameter(gaussian(4, 6).float())], [Parameter(gaussian(5).float()), Parameter(gaussian(3, 2).float())]

    @staticmethod
    def set_gradients(params: list[Parameter], step: int) -> None:
        for i, p in enumerate(params):
            p.grad = gaussian(*p.shape, seed=10 * step + i).float()

    def test_equals_both_optimizers(self) -> None:
        (m, a), (n, b) = self.parameters(), self.parameters()
        groups = [{"params": m, "use_muon": True, "lr": 0.1}, {"params": a, "use_muon": False, "weight_decay": 0.1}]
        one = MuonWithAuxAdamW(groups)
        muon = Muon(n, lr=0.1, weight_decay=0.0)
        adamw = AdamW(b, lr=3e-4, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1)
        for step in range(5):
            self.set_gradients(m + a, step)
            self.set_gradients(n + b, step)
            one.step()
            muon.step()
            adamw.step()
        for p, q in zip(m + a, n + b, strict=True):
            assert torch.equal(p, q)

    def test_a_state_dict_resumes_and_a_scheduler_reaches_both(self) -> None:
        def make(params: tuple[list[Parameter], list[Parameter]]) -> MuonWithAuxAdamW:
            matrices = [(f"matrix{i}", p) for i, p in enumerate(params[0])]
            rest = [(f"rest{i}", p) for i, p in enumerate(params[1])]
            return MuonWithAuxAdamW([{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False}])

        params, others = self.parameters(), self.parameters()
        optimizer, other = make(params), make(others)
        schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (optimizer, other)]
        self.set_gradients([*params[0], *params[1]], 0)
        optimizer.step()
        schedulers[0].step()
        assert [group["lr"] for group in optimizer.param_groups] == [0.01, 1.5e-4]
        other.load_state_dict(optimizer.state_dict())
        for p, q in zip([*params[0], *params[1]], [*others[0], *others[1]], strict=True):
            q.data.copy_(p.data)
            p.grad = q.grad = gaussian(*p.shape, seed=77).float()
        optimizer.step()
        other.step()
        for p, q in zip([*params[0], *params[1]], [*others[0], *others[1]], strict=True):
            assert torch.equal(p, q)

    def test_groups_of_the_original_load(self) -> None:
        optimizer = MuonWithAuxAdamW([{"params": self.parameters()[0], "use_muon": True}])
        saved = optimizer.state_dict()
        keys = ("params", "lr", "momentum", "weight_decay", "use_muon")
        saved["param_groups"] = [{key: saved["param_groups"][0][key] for key in keys}]
        optimizer.load_state_dict(saved)
        self.set_gradients(optimizer.param_groups[0]["params"], 0)
        optimizer.step()

    def test_groups_that_do_not_say_whom_they_are_for_are_not_loaded(self) -> None:
        m, a = self.parameters()
        optimizer = MuonWithAuxAdamW([{"params": m, "use_muon": True}, {"params": a, "use_muon": False}])
        saved = optimizer.state_dict()
        del saved["param_groups"][1]["use_muon"]
        groups = [dict(group) for group in optimizer.param_groups]
        with pytest.raises(ValueError, match="use_muon=True or use_muon=False"):
            optimizer.load_state_dict(saved)
        assert optimizer.param_groups == groups
        self.set_gradients(m + a, 0)
        optimizer.step()

    def test_groups_may_hold_entries_of_ones_own(self) -> None:
        m, _ = self.parameters()
        optimizer = MuonWithAuxAdamW([{"params": m, "use_muon": True, "name": "hidden", "lr_scale": 0.5}])
        assert optimizer.param_groups[0]["name"] == "hidden"
        assert optimizer.state_dict()["param_groups"][0]["lr_scale"] == 0.5

    @pytest.mark.parametrize(
        ("group", "error", "message"),
        [
            ({"use_muon": True, "nestrov": True}, TypeError, "'nestrov'; did you mean 'nesterov'"),
            ({"use_muon": False, "wieght_decay": 0.1}, TypeError, "did you mean 'weight_decay'"),
            ({}, ValueError, "use_muon=True or use_muon=False"),
            ({"use_muon": 1}, ValueError, "use_muon=True or use_muon=False"),
            ({"use_muon": True, "betas": (0.9, 0.9)}, TypeError, "a group for Muon got an unexpected argument 'betas'"),
            ({"use_muon": False, "momentum": 0.9}, TypeError, "a group for AdamW got an unexpected argument"),
            ({"use_muon": True, "momentum": -1.0}, ValueError, "momentum should be"),
            ({"use_muon": False, "betas": (1.0, 0.9)}, ValueError, "Invalid beta parameter"),
            ({"use_muon": True, "params": [Parameter(torch.ones(3))]}, ValueError, "2D parameters"),
        ],
        ids=str,
    )
    def test_bad_groups(self, group: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            MuonWithAuxAdamW([{"params": [Parameter(torch.ones(3, 3))], **group}])

    def test_an_error_in_one_part_changes_neither(self) -> None:
        m, a = self.parameters()
        optimizer = MuonWithAuxAdamW([{"params": m, "use_muon": True}, {"params": a, "use_muon": False}])
        self.set_gradients(m + a, 0)
        optimizer.step()
        before = [p.detach().clone() for p in m + a]
        optimizer.state[a[0]]["exp_avg"] = torch.zeros(2)
        with pytest.raises(ValueError, match="exp_avg of parameter 0 in group 1"):
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(m + a, before, strict=True))

    def test_a_model_learns(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim < 2]
        optimizer = MuonWithAuxAdamW(
            [{"params": matrices, "use_muon": True}, {"params": rest, "use_muon": False, "lr": 1e-2}]
        )
        x, y = gaussian(64, 8).float(), gaussian(64, 4, seed=1).float()
        losses = []
        for _ in range(120):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def test_no_elements_are_no_matrices_however_many_they_would_be() -> None:
    no_rows, no_experts = Parameter(torch.zeros(0, 4)), Parameter(torch.zeros(10**15, 0, 4))
    for p, options in ((no_rows, {"num_heads": 10**15}), (no_experts, {"ndim_policy": "batch"})):
        p.grad = torch.zeros_like(p)
        Muon([p], **options).step()
    orthogonalize(no_experts.detach())


def test_heights_beyond_memory_are_refused() -> None:
    p = Parameter(torch.ones(4, 5))
    p.grad = torch.ones(4, 5)
    optimizer = Muon([p], split_sizes=(2, 2))
    optimizer.param_groups[0]["split_sizes"] = (2**63, 2**63, 4)
    with pytest.raises(ValueError, match="the sum of"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(4, 5))


def test_rows_of_what_has_no_dimension() -> None:
    rule = _core.MatrixRule(
        lr=0.1,
        weight_decay=0.0,
        momentum=0.9,
        nesterov=True,
        maximize=False,
        transforms=[_core.Transform.normalize_rows(beta2=0.9)],
        adjust_lr="none",
        ndim_policy="whole",
    )
    p, g, m, v = (torch.ones(()) for _ in range(4))
    batch = _core.Batch()
    batch.add(rule, [p], [g], {"momentum_buffer": [m], "second_momentum_buffer": [v]})
    assert batch.run(1) and p.isfinite()
