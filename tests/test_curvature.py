"""Estimates of curvature: unbiased, exact where they should be, and without trouble for the loop around them."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from ferrostep.curvature import (
    HessianProduct,
    HutchinsonDiagonal,
    gauss_newton_bartlett,
    hutchinson_diagonal,
    hvp_operator,
    lanczos,
    sampled_cross_entropy,
    sampled_squared_error,
    trace,
)
from ferrostep.gradients import OrthogonalGradient
from ferrostep.guidance import MomentumBuffer, apg
from ferrostep.optim import SophiaG, SophiaH
from ferrostep.rl import ODICE, Transitions


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def symmetric(n: int) -> Tensor:
    a = gaussian(n, n)
    return a + a.T


class Probes:
    """Gives all sign vectors in turn in place of random ones."""

    def __init__(self, n: int) -> None:
        self.all = [torch.tensor(signs, dtype=torch.float64) for signs in itertools.product((1.0, -1.0), repeat=n)]


def test_the_mean_over_all_probes_is_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    from ferrostep.curvature import diagonal

    h = symmetric(5)
    p = gaussian(5, seed=1).requires_grad_()
    mean = torch.zeros(5).double()
    probes = Probes(5).all
    for u in probes:
        monkeypatch.setattr(diagonal, "draw_probes", lambda *_arguments, u=u: [u])
        (d,) = hutchinson_diagonal(0.5 * p @ h @ p, [p])
        mean += d / len(probes)
    torch.testing.assert_close(mean, h.diagonal().clone(), rtol=1e-12, atol=1e-12)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rademacher_is_exact_for_a_diagonal_hessian(dtype: torch.dtype) -> None:
    p = torch.tensor([1.0, 2.0, -1.0], dtype=dtype, requires_grad=True)
    (d,) = hutchinson_diagonal((p**3).sum(), [p])
    assert d.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.equal(d.double(), torch.tensor([6.0, 12.0, -6.0]).double())
    assert p.grad is None


def test_gaussian_probes_have_the_right_mean() -> None:
    h = symmetric(4)
    p = gaussian(4, seed=1).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    (d,) = hutchinson_diagonal(0.5 * p @ h @ p, [p], num_samples=4000, distribution="gaussian", generator=generator)
    assert (d - h.diagonal()).abs().max() < 0.3


def test_micro_batches_scaling_and_unused_parameters() -> None:
    p, unused, frozen = (gaussian(3, seed=i).requires_grad_(i < 2) for i in range(3))
    losses = [lambda k=k: 1024 * k * (p**2).sum() for k in (1, 3)]
    found = hutchinson_diagonal(losses, [p, unused, frozen], grad_scale=1024.0)
    torch.testing.assert_close(found[0], torch.full((3,), 4.0).double())
    assert found[1].count_nonzero() == 0 == found[2].count_nonzero()


def test_a_scaled_float16_loss_does_not_underflow() -> None:
    p = torch.ones(3, dtype=torch.float16, requires_grad=True)
    scale, curvature = 65536.0, 1e-8  # float16 has nothing between 0 and 6e-8
    (d,) = hutchinson_diagonal((scale * curvature / 2 * p * p).sum(), [p], grad_scale=scale)
    torch.testing.assert_close(d, torch.full((3,), curvature), rtol=1e-3, atol=0)
    optimizer = SophiaH([p])
    optimizer.estimate_hessian((scale * curvature / 2 * p * p).sum(), grad_scale=scale)
    optimizer.update_hessian()
    torch.testing.assert_close(optimizer.state[p]["hessian"], torch.full((3,), 0.01 * curvature), rtol=1e-3, atol=0)


def test_a_linear_loss_has_no_curvature() -> None:
    p = gaussian(3).requires_grad_()
    assert hutchinson_diagonal((2 * p).sum(), [p])[0].count_nonzero() == 0


def test_attention_can_be_differentiated_twice() -> None:
    q = gaussian(1, 2, 4, 8).float().requires_grad_()
    (d,) = hutchinson_diagonal(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True).square().sum(), [q])
    assert d.isfinite().all() and d.count_nonzero() > 0


def test_bad_losses() -> None:
    p = gaussian(3).requires_grad_()
    with pytest.raises(ValueError, match="expected a tensor with one element"):
        hutchinson_diagonal(p**2, [p])
    with pytest.raises(RuntimeError, match="graph"):
        hutchinson_diagonal((p.detach() ** 2).sum(), [p])
    with pytest.raises(ValueError, match="num_samples"):
        hutchinson_diagonal((p**2).sum(), [p], num_samples=0)


ESTIMATES: dict[str, Callable[[Callable[[], Tensor], list[Any]], object]] = {
    "HessianProduct": HessianProduct,
    "hutchinson_diagonal": hutchinson_diagonal,
    "HutchinsonDiagonal": lambda loss, params: HutchinsonDiagonal(params).add(loss),
    "hvp_operator": lambda loss, params: hvp_operator(loss, params),
    "trace": lambda loss, params: trace(hvp_operator(loss, params), 1),
    "lanczos": lambda loss, params: lanczos(hvp_operator(loss, params), 2),
    "gauss_newton_bartlett": lambda loss, params: gauss_newton_bartlett(loss, 4, params),
    "SophiaH": lambda loss, params: SophiaH(params).estimate_hessian(loss),
    "OrthogonalGradient": lambda loss, params: OrthogonalGradient(torch.optim.SGD(params, lr=0.1)).step(loss(), loss()),
}
every_estimate = pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)


@every_estimate
def test_a_loss_that_hides_parameters_is_refused(estimate: Callable[..., object]) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    outer, unused = Parameter(torch.ones(3)), Parameter(torch.ones(2))
    x = torch.randn(4, 3, requires_grad=True)

    def loss(reentrant: bool, scale: Any = 1.0) -> Tensor:
        return (checkpoint(block, x, use_reentrant=reentrant) * scale).square().mean()

    before = [p.clone() for p in block.parameters()]
    for scale, params in ((1.0, block.parameters()), (outer, [*block.parameters(), outer])):
        with pytest.raises(RuntimeError, match=r"went through torch\.utils\.checkpoint .*use_reentrant=False"):
            estimate(lambda scale=scale: loss(True, scale), list(params))
    with pytest.raises(RuntimeError, match=r"use_reentrant=False"):  # where the parameters are used outside as well
        estimate(lambda: (block(checkpoint(block, x, use_reentrant=True)) ** 2).mean(), list(block.parameters()))
    with pytest.raises(RuntimeError, match="reaches none of the parameters"):
        estimate(lambda: loss(False), [unused])
    assert all(torch.equal(p, q) for p, q in zip(block.parameters(), before, strict=True))
    estimate(lambda: loss(False), [*block.parameters(), unused])


@pytest.mark.parametrize("name", [name for name in ESTIMATES if name not in ("SophiaH", "OrthogonalGradient")])
def test_what_is_no_parameter_is_refused_by_name(name: str) -> None:
    """torch.optim checks those of optimizers."""
    estimate = ESTIMATES[name]
    p = gaussian(3).requires_grad_()
    loss = lambda: (p**2).sum()  # noqa: E731
    estimate(loss, [("weight", p)])
    bad: Any
    for bad in (p, None, 3.0, [p, None], [p, 1.0], [("weight", 1.0)], []):
        with pytest.raises((TypeError, ValueError), match=r"^params(\[.\])? is (a|empty)"):
            estimate(loss, bad)


@pytest.mark.parametrize("name", [name for name in ESTIMATES if name != "OrthogonalGradient"])
def test_a_sparse_gradient_is_refused_by_the_parameters_number(name: str) -> None:
    embedding, p = nn.Embedding(4, 2, sparse=True), Parameter(torch.ones(2))
    loss = lambda: (embedding(torch.tensor([1, 2])) * p).square().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=r"gradient of parameter 1 has layout torch\.sparse_coo"):
        ESTIMATES[name](loss, [p, embedding.weight])


@pytest.mark.parametrize("name", ["trace", "lanczos"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_curvature_that_is_not_finite_is_refused(name: str, value: float) -> None:
    p = gaussian(3).requires_grad_()
    with pytest.raises(ValueError, match=r"not finite .*the loss or its derivatives have NaN or infinity"):
        ESTIMATES[name](lambda: (value * p**3).sum(), [p])


W = torch.tensor([1.0, 2.0], requires_grad=True)
Z = torch.ones(2, dtype=torch.complex64, requires_grad=True)


def cubic() -> Tensor:
    return (W**3).sum()


BAD: dict[str, tuple[type[Exception], str, Callable[..., object]]] = {
    "no loss": (ValueError, "^the loss is a NoneType", lambda: hutchinson_diagonal(None, [W])),  # type: ignore[arg-type]
    "no losses": (ValueError, "^the loss is a NoneType", lambda: hutchinson_diagonal([None], [W])),  # type: ignore[list-item]
    "samples": (TypeError, "^num_samples is a float", lambda: hutchinson_diagonal(cubic, [W], num_samples=1.5)),  # type: ignore[arg-type]
    "scale": (ValueError, "^Invalid grad_scale value: 0", lambda: hutchinson_diagonal(cubic, [W], grad_scale=0)),
    "no scale": (TypeError, "^grad_scale is a", lambda: hutchinson_diagonal(cubic, [W], grad_scale=None)),  # type: ignore[arg-type]
    "twice": (ValueError, r"^params\[1\] has come before", lambda: hutchinson_diagonal(cubic, [W, W])),
    "complex": (ValueError, "^parameter 0 has dtype", lambda: hutchinson_diagonal(lambda: Z.abs().sum(), [Z])),
    "labels": (TypeError, "^labels is a", lambda: gauss_newton_bartlett(cubic, None, [W])),  # type: ignore[arg-type]
    "fewer labels": (ValueError, "^Invalid labels: -1", lambda: gauss_newton_bartlett(cubic, -1, [W])),
    "logits": (TypeError, "^logits is a", lambda: sampled_cross_entropy(None)),  # type: ignore[arg-type]
    "integer logits": (ValueError, "^logits has dtype", lambda: sampled_cross_entropy(torch.ones(2, 3).long())),
    "one logit": (ValueError, r"^logits has shape \[\]", lambda: sampled_cross_entropy(torch.ones(()))),
    "targets": (TypeError, "^targets is a list", lambda: sampled_cross_entropy(torch.ones(1, 3), [1])),  # type: ignore[arg-type]
    "outputs": (ValueError, "^outputs has dtype", lambda: sampled_squared_error(torch.ones(2).long())),
}


@pytest.mark.parametrize(("error", "message", "call"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_no_outputs_draw_no_labels() -> None:
    assert sampled_squared_error(torch.ones(0)) == (0.0, 0)


def test_vectors_of_another_number_are_refused() -> None:
    p = gaussian(3).requires_grad_()
    with pytest.raises(ValueError, match="got 2 vectors, expected 1"):
        HessianProduct((p**2).sum(), [p])([p, p])


def sophia() -> tuple[SophiaH, Callable[[Any], Tensor]]:
    p = Parameter(gaussian(5))
    optimizer = SophiaH([p], num_samples=2, generator=torch.Generator().manual_seed(3))

    def draw(optimizer: SophiaH) -> Tensor:
        (q,) = optimizer.param_groups[0]["params"]
        optimizer.estimate_hessian((q.sum() ** 4), accumulate=True)
        optimizer.update_hessian()
        hessian: Tensor = optimizer.state[q]["hessian"]
        return hessian

    optimizer.estimate_hessian(p.sum() ** 4)
    return optimizer, draw


def diagonal() -> tuple[HutchinsonDiagonal, Callable[[Any], Tensor]]:
    made = HutchinsonDiagonal([gaussian(5).requires_grad_()], generator=torch.Generator().manual_seed(3))

    def draw(diagonal: HutchinsonDiagonal) -> Tensor:
        diagonal.add(diagonal.params[0].sum() ** 4)
        return diagonal.mean()[0]

    draw(made)
    return made, draw


def projection() -> tuple[OrthogonalGradient, Callable[[Any], Tensor]]:
    p = Parameter(gaussian(5))
    made = OrthogonalGradient(torch.optim.SGD([p], lr=0.1), eta=0.5)

    def draw(orthogonal: OrthogonalGradient) -> Tensor:
        orthogonal.combine()
        grad: Tensor = orthogonal.optimizer.param_groups[0]["params"][0].grad
        return grad

    made.backward(p.square().sum(), p.sum())
    return made, draw


def momentum() -> tuple[MomentumBuffer, Callable[[Any], Tensor]]:
    made = MomentumBuffer(-0.5)

    def draw(buffer: MomentumBuffer) -> Tensor:
        return apg(gaussian(2, 3), gaussian(2, 3, seed=1), 5.0, momentum_buffer=buffer)

    draw(made)
    return made, draw


def agent() -> tuple[ODICE, Callable[[Any], Tensor]]:
    def draw(agent: ODICE) -> Tensor:
        data = Transitions(torch.ones(4, 2), torch.zeros(4, 1), torch.ones(4), torch.ones(4, 2), torch.zeros(4))
        agent.update(data)
        return agent.act(torch.ones(3, 2), deterministic=False)

    return ODICE(2, 1, value_hidden=(4,), policy_hidden=(4,)), draw


@pytest.mark.parametrize("make", [sophia, diagonal, projection, momentum, agent])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_goes_on_as_the_original(how: Callable[[Any], Any], make: Callable[[], Any]) -> None:
    original, draw = make()
    other = how(original)
    torch.manual_seed(0)
    expected = draw(original)
    torch.manual_seed(1)
    assert torch.equal(draw(other), expected)


class Saved:
    """What autograd has saved for a backward pass, counted while it lives."""

    live = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Saved.live += 1

    def __del__(self) -> None:
        Saved.live -= 1


def refresh_h_from_a_function(h: SophiaH, g: SophiaG, loss: Callable[[], Tensor]) -> None:
    h.estimate_hessian(loss)
    h.update_hessian()


def refresh_h_from_a_tensor(h: SophiaH, g: SophiaG, loss: Callable[[], Tensor]) -> None:
    one = loss()
    h.estimate_hessian(one, retain_graph=True)
    h.update_hessian()
    one.backward()
    h.zero_grad()


def refresh_h_from_micro_batches(h: SophiaH, g: SophiaG, loss: Callable[[], Tensor]) -> None:
    for i in range(3):
        h.estimate_hessian(loss, accumulate=i > 0)
        assert Saved.live == 0
    h.update_hessian()


def refresh_g(h: SophiaH, g: SophiaG, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    g.update_hessian(bs=10)
    g.zero_grad()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, whose deprecated objects the count touches
@pytest.mark.parametrize(
    "refresh", [refresh_h_from_a_function, refresh_h_from_a_tensor, refresh_h_from_micro_batches, refresh_g]
)
def test_no_graph_is_left_behind(refresh: Callable[..., None]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    h, g = SophiaH(model.parameters()), SophiaG(model.parameters())
    x, y = torch.randn(10, 6), torch.arange(10) % 3

    def loss() -> Tensor:
        assert Saved.live == 0
        found = F.cross_entropy(model(x), y)
        assert Saved.live > 0
        return found

    def live() -> int:
        gc.collect()
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        refresh(h, g, loss)
        before = live()
        for _ in range(100):
            refresh(h, g, loss)
        assert Saved.live == 0
    assert live() == before


class TestSampledLabels:
    """The Gauss-Newton-Bartlett losses."""

    def test_ignored_positions_draw_no_label(self) -> None:
        logits = gaussian(2, 3, 5).requires_grad_()
        targets = torch.tensor([[0, -100, 1], [-100, -100, 2]])
        loss, labels = sampled_cross_entropy(logits, targets)
        assert labels == 3
        loss.backward()
        used = logits.grad.abs().sum(-1) > 0
        assert torch.equal(used, targets != -100)
        empty, none = sampled_cross_entropy(logits, torch.full((2, 3), -100))
        assert (empty.item(), none) == (0.0, 0)
        empty.backward()
        p = Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        optimizer = SophiaG([p])
        optimizer.update_hessian(bs=none)
        assert not optimizer.state and optimizer.param_groups[0]["bs"] is None
        with pytest.raises(ValueError, match="targets has shape"):
            sampled_cross_entropy(logits, torch.zeros(3, 2))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_an_estimate_from_logits_that_are_not_finite_is_skipped(self, value: float) -> None:
        p = Parameter(torch.ones(4))
        optimizer = SophiaG([p])
        loss, labels = sampled_cross_entropy(p * torch.tensor([[1.0, 1, 1, 1], [value, 1, 1, 1]]))
        loss.backward()
        optimizer.update_hessian(bs=labels)
        assert labels == 2 and not optimizer.state[p]["hessian"].any()

    def test_labels_follow_the_distribution_and_the_generator(self) -> None:
        logits = torch.tensor([0.1, 0.7, 0.2]).log().expand(20_000, 3)
        one, two = (sampled_cross_entropy(logits, generator=torch.Generator().manual_seed(3))[0] for _ in range(2))
        assert one == two
        entropy = -(logits[0].exp() * logits[0]).sum()
        assert abs(one - entropy) < 0.02

    def test_regression(self) -> None:
        outputs = gaussian(400, 5).requires_grad_()
        loss, labels = sampled_squared_error(outputs)
        (g,) = torch.autograd.grad(loss, [outputs])
        assert labels == 2000
        # The exact diagonal of 0.5 mean (f - y)^2 is 1 / n for every output.
        assert (labels * g.square()).mean().item() == pytest.approx(1 / labels, rel=0.1)


RANK = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ferrostep.curvature import hutchinson_diagonal, sampled_cross_entropy
from ferrostep.gradients import OrthogonalGradient
from ferrostep.guidance import MomentumBuffer, apg
from ferrostep.optim import SophiaG, SophiaH
from ferrostep.rl import ODICE, Transitions

def probes():
    return torch.Generator().manual_seed(3)

def loss_of(model, x):
    return model(x).tanh().square().mean()

def gathered(tensor):
    found = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(found, tensor)
    return found

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(3, 2))
params = list(model.parameters())
h, g = SophiaH(params, generator=probes()), SophiaG(params)
all_x = torch.arange(12.0).view(4, 3) / 12
x = all_x[2 * rank : 2 * rank + 2]

h.estimate_hessian(lambda: loss_of(model.module, x))
h.update_hessian()
alone = hutchinson_diagonal(lambda: loss_of(model.module, all_x), params, generator=probes(), all_reduce=False)
for p, d in zip(params, alone, strict=True):
    torch.testing.assert_close(h.state[p]["hessian"], 0.01 * d, msg="not the estimate of one process")

# Labels of each rank's own, and not equally many: three on rank 0, one on rank 1.
logits = model(all_x)[:3] if rank == 0 else model(all_x)[3:]
loss, labels = sampled_cross_entropy(logits, generator=torch.Generator().manual_seed(rank))
(own,) = torch.autograd.grad(loss * labels, params[:1], retain_graph=True)
(loss * labels).backward()
g.update_hessian(bs=4, grad_scale=4 / 2)
expected = sum(gathered(own)) / 4
torch.testing.assert_close(g.state[params[0]]["hessian"], 0.01 * expected.square(), msg="not the mean over all labels")

for optimizer in (h, g):
    optimizer.step()
for p in params:
    assert torch.equal(*gathered(p.detach())), "replicas part"
dist.destroy_process_group()
os._exit(0)  # gloo's threads may release a tensor while Python shuts down, which ends in an abort
"""


def test_ranks_agree() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command: list[Any] = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)


def test_parameters_without_gradients_are_left_alone() -> None:
    p, q = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    optimizer = SophiaG([p, q], bs=1)
    p.grad = torch.ones(2)
    optimizer.update_hessian()
    optimizer.step()
    assert q not in optimizer.state
    assert torch.equal(q, torch.ones(2))
