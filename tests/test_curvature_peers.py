"""Curvature and ghost batch normalization beside other packages, where these are installed: none is a dependency.

pip install hessian-eigenthings curvlinops-for-pytorch pytorch-tabnet
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferrostep.curvature import LinearOperator, hvp_operator, lanczos, top_eigenvalues
from ferrostep.nn import GhostBatchNorm1d

F64 = torch.float64


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator, dtype=F64), torch.arange(n) % 3) for n in sizes]


def ours(net: nn.Module, batches: list[Any], kind: Any) -> LinearOperator:
    def loss(batch: tuple[Tensor, Tensor]) -> Any:
        outputs = net(batch[0])
        found = F.cross_entropy(outputs, batch[1])
        return found if kind == "hessian" else (found, outputs)

    return hvp_operator(loss, net.parameters(), batches, kind)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_products_and_eigenvalues_are_those_of_hessian_eigenthings(kind: str) -> None:
    peer = pytest.importorskip("hessian_eigenthings", exc_type=ImportError)
    net, batches = model(), data(6, 6)  # it takes the mean over batches
    if kind == "hessian":
        theirs = peer.HessianOperator(net, batches, peer.supervised_loss(F.cross_entropy))
    else:
        outer = peer.supervised_loss_of_output(F.cross_entropy)
        theirs = peer.GGNOperator(net, batches, peer.supervised_forward, outer)
    op = ours(net, batches, kind)
    vectors = torch.randn(op.size, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    expected = torch.stack([theirs.matvec(v) for v in vectors.T], 1)
    torch.testing.assert_close(op @ vectors, expected, rtol=1e-9, atol=1e-12)
    tridiagonal = peer.lanczos_tridiagonal(theirs, vectors[:, 0], 10)
    found = lanczos(op, 10, q1=vectors[:, 0].contiguous())
    for one, other in ((found.alphas, tridiagonal.alphas), (found.betas[:9], tridiagonal.betas[:9])):
        torch.testing.assert_close(one, torch.as_tensor(other, dtype=F64), rtol=1e-8, atol=1e-10)
    (top,) = top_eigenvalues(op, tol=1e-9)
    highest = peer.lanczos(theirs, k=1, max_iter=40, which="LA", seed=0)
    assert top.value == pytest.approx(float(highest.eigenvalues[0]), rel=1e-8)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_products_are_those_of_curvlinops(kind: str) -> None:
    peer = pytest.importorskip("curvlinops", exc_type=ImportError)
    net, batches = model(), data(5, 7)  # it weighs batches by their samples, as ours does
    name = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}[kind]
    theirs = getattr(peer, name)(net, nn.CrossEntropyLoss(), list(net.parameters()), batches)
    op = ours(net, batches, kind)
    vectors = torch.randn(op.size, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    torch.testing.assert_close(op @ vectors, theirs @ vectors, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [32, 12])
def test_ghosts_are_those_of_pytorch_tabnet(count: int) -> None:
    """Of batches that are whole ghosts; of others it makes chunks of other sizes."""
    network = pytest.importorskip("pytorch_tabnet.tab_network", exc_type=ImportError)
    theirs, layer = network.GBN(5, virtual_batch_size=4, momentum=0.02), GhostBatchNorm1d(5, 4, momentum=0.02)
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), theirs(x))
    torch.testing.assert_close(dict(layer.state_dict()), dict(theirs.bn.state_dict()))
    torch.testing.assert_close(layer.eval()(x), theirs.eval()(x))
