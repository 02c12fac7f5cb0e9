"""Operators, Lanczos iteration, traces and densities, against dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.data import DataLoader, TensorDataset

from ferrostep import _core
from ferrostep.curvature import (
    LinearOperator,
    batch_sharpness,
    check_symmetry,
    frobenius,
    hvp_operator,
    krylov,
    lanczos,
    spectral_density,
    top_eigenvalues,
    trace,
    vectors,
)
from ferrostep.curvature.krylov import Basis
from ferrostep.reference import krylov as reference

F64 = torch.float64


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def symmetric(n: int, dtype: torch.dtype = F64) -> Tensor:
    a = gaussian(n, n)
    return (a + a.T).to(dtype)


def of(matrix: Tensor) -> LinearOperator:
    return LinearOperator(lambda v: matrix @ v, len(matrix), dtype=matrix.dtype)


def dense(op: LinearOperator) -> Tensor:
    return torch.stack([op(row) for row in torch.eye(op.size, dtype=op.dtype)])


def density(values: Tensor, weights: Tensor, degree: int) -> float:
    return float((weights * values**degree).sum())


class Net(nn.Module):
    """Two layers with dropout between them, and a parameter that is not used."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.drop, self.two = nn.Linear(4, 6), nn.Dropout(dropout), nn.Linear(6, 3)
        self.unused = Parameter(torch.ones(2))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.drop(self.one(x).tanh()))  # type: ignore[no-any-return]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def pair(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = self(batch[0])
        return F.cross_entropy(outputs, batch[1]), outputs

    def exact(self, batch: tuple[Tensor, Tensor], kind: str) -> Tensor:
        """By torch.func, of the parameters that are used."""
        named = dict(self.named_parameters())
        used = [name for name in named if name != "unused"]
        sizes = [named[name].numel() for name in used]

        def outputs(flat: Tensor) -> Tensor:
            pieces = [piece.view(named[name].shape) for name, piece in zip(used, flat.split(sizes), strict=True)]
            found: Tensor = torch.func.functional_call(self, dict(zip(used, pieces, strict=True)), (batch[0],))
            return found

        at = torch.cat([named[name].detach().flatten() for name in used])
        if kind == "hessian":
            return torch.func.hessian(lambda flat: F.cross_entropy(outputs(flat), batch[1]))(at)  # type: ignore[no-any-return]
        jacobian = torch.func.jacrev(outputs)(at)
        inner = torch.func.hessian(lambda y: F.cross_entropy(y, batch[1]))(outputs(at))
        return torch.einsum("abp,abcd,cdq->pq", jacobian, inner, jacobian)


def data(samples: int = 7) -> tuple[Tensor, Tensor]:
    return gaussian(samples, 4, seed=1), torch.arange(samples) % 3


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_the_operator_is_the_matrix_that_torch_func_gives(kind: Any) -> None:
    net, batch = Net(), data()
    exact = net.exact(batch, kind)
    loss_fn: Any = net.loss if kind == "hessian" else net.pair
    unused = next(i for i, (name, _) in enumerate(net.named_parameters()) if name == "unused")
    assert unused == 0
    batches = [tuple(x[:5] for x in batch), tuple(x[5:] for x in batch)]  # of unequal sizes
    for op in (
        hvp_operator(lambda: loss_fn(batch), net.parameters(), kind=kind),
        hvp_operator(loss_fn, net.named_parameters(), batches, kind=kind),
    ):
        found = dense(op)
        assert found[:2].count_nonzero() == 0 == found[:, :2].count_nonzero()
        torch.testing.assert_close(found[2:, 2:], exact, rtol=1e-9, atol=1e-12)
        (top,) = top_eigenvalues(op, tol=1e-10)
        assert top.value == pytest.approx(float(np.linalg.eigvalsh(exact.numpy())[-1]), rel=1e-9)
        assert op.products == op.size + top.steps


def test_a_preconditioner_scales_both_sides() -> None:
    p, h = Parameter(gaussian(2, 3)), symmetric(6)
    d = gaussian(2, 3, seed=2).exp()
    op = hvp_operator(lambda: 0.5 * p.flatten() @ h @ p.flatten(), [p], precond=[d])
    root = d.flatten().rsqrt()
    torch.testing.assert_close(dense(op), root[:, None] * h * root)


@pytest.mark.parametrize("with_data", [False, True])
def test_dropout_is_one_draw_and_nothing_of_the_user_is_touched(with_data: bool) -> None:
    net, batch = Net(dropout=0.5), data()
    torch.manual_seed(3)
    state, modes = torch.get_rng_state(), [module.training for module in net.modules()]
    loader = DataLoader(TensorDataset(*batch), batch_size=4, shuffle=True)
    op = hvp_operator(
        net.loss if with_data else lambda: net.loss(batch), net.parameters(), loader if with_data else None
    )
    batch_sharpness(net.loss, net.parameters(), loader)
    assert check_symmetry(op) < 1e-12
    lanczos(op, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in net.modules()] and all(modes)
    assert all(p.grad is None for p in net.parameters())


class TestLanczos:
    """The iteration."""

    @pytest.mark.smoke
    def test_known_numbers(self) -> None:
        op, ones = of(torch.diag(torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=F64))), torch.ones(4, dtype=F64)
        found = lanczos(op, 9, q1=ones)
        assert found.alphas.tolist() == pytest.approx([4, 7.6, 2.31404958677686, 2.0859504132231406], rel=1e-12)
        betas = [3.5355339059327378, 1.5556349186104044, 0.5890608557322643]
        assert found.betas[:3].tolist() == pytest.approx(betas, rel=1e-12)
        assert found.weights.tolist() == pytest.approx([0.25] * 4, rel=1e-10)
        assert found.values.tolist() == pytest.approx([1, 2, 3, 10], rel=1e-12)
        assert found.steps == 4 == op.products and found.T.shape == (4, 4)
        half = lanczos(op, 2, q1=ones)
        assert half.values.tolist() == pytest.approx([1.8326331150, 9.7673668850], rel=1e-9)
        assert half.weights.tolist() == pytest.approx([0.7268507113, 0.2731492887], rel=1e-9)
        assert [density(half.values, half.weights, i) for i in range(4)] == pytest.approx([1, 4, 28.5, 259])
        for value, bound in zip(half.values.tolist(), half.error_bounds.tolist(), strict=True):
            assert min(abs(value - exact) for exact in (1, 2, 3, 10)) <= bound

    @pytest.mark.parametrize(("dtype", "error"), [(F64, 1e-8), (torch.float32, 1e-5)], ids=str)
    def test_outermost_eigenvalues(self, dtype: torch.dtype, error: float) -> None:
        h = symmetric(200, dtype)
        exact = np.linalg.eigvalsh(h.double().numpy())
        found = lanczos(of(h), 60)
        assert found.values[-1].item() == pytest.approx(exact[-1], rel=error)
        expected = {"LA": exact[:-4:-1], "SA": exact[:3], "LM": exact[np.argsort(-abs(exact))][:3]}
        which: Any
        for which, values in expected.items():
            tops = top_eigenvalues(of(h), 3, which, tol=error)
            assert [top.value for top in tops] == pytest.approx(values, rel=10 * error)
            assert all(top.residual <= error * abs(top.value) for top in tops)

    def test_the_vectors_are_orthogonal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where eigenvalues have long converged, to what float32 has."""
        rows = []
        monkeypatch.setattr(krylov, "Basis", lambda own: rows.append(own) or Basis(own))
        values = torch.cat([torch.linspace(0.0, 1.0, 950), torch.logspace(0, 3, 50)])
        lanczos(LinearOperator(lambda v: values * v, 1000), 80)
        (basis,) = rows
        assert float((basis[:80].double() @ basis[:80].double().T - torch.eye(80)).abs().max()) < 3e-5

    def test_ghosts_do_not_change_the_density(self) -> None:
        values = torch.cat([torch.linspace(0.0, 1.0, 150, dtype=F64), torch.tensor([20.0, 50.0, 100.0], dtype=F64)])
        op, start = of(torch.diag(values)), gaussian(153)
        found = lanczos(op, 90, q1=start, reorth="none")
        assert sum(abs(found.values - 100) < 1e-6) > 1  # a ghost
        measure = start.square() / start.square().sum()
        for degree in range(6):
            exact = density(values, measure, degree)
            assert density(found.values, found.weights, degree) == pytest.approx(exact, rel=1e-6)

    def test_a_seed_is_one_start(self) -> None:
        one, same, other = (lanczos(of(symmetric(30)), 4, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.alphas, same.alphas) and not torch.equal(one.alphas, other.alphas)


def test_an_operator_multiplies_as_a_matrix_does() -> None:
    h = symmetric(5)
    op, columns = of(h), gaussian(5, 3, seed=1)
    torch.testing.assert_close(op @ columns[:, 0], h @ columns[:, 0])
    torch.testing.assert_close(op @ columns, h @ columns)
    assert op.products == 4 and (op @ columns[:, :0]).shape == (5, 0)
    room = torch.empty(5, dtype=h.dtype)
    again = LinearOperator(lambda v: torch.mv(h, v, out=room), 5, dtype=h.dtype)
    torch.testing.assert_close(again @ columns, h @ columns)
    with torch.inference_mode():  # where tensors do not count what is written to them
        assert lanczos(op, 2).steps == 2


def test_traces() -> None:
    h = symmetric(40)
    found, norm = trace(of(h), 400), frobenius(of(h), 400)
    assert abs(found.value - float(h.trace())) < 4 * found.standard_error
    assert abs(norm.value - float(h.norm())) < 4 * norm.standard_error < 0.1 * norm.value
    exact = trace(of(torch.diag(h.diagonal())), 1)
    assert exact.value == pytest.approx(float(h.trace()), rel=1e-12)


def together(module: Any, dtype: torch.dtype) -> list[Any]:
    """Everything that the vector work of an iteration makes of random vectors."""
    basis, w = torch.empty(6, 9001, dtype=dtype), torch.empty(9001, dtype=dtype)
    for number, row in enumerate(basis):
        module.fill(row, signs=number % 2 == 0, seed=2**63 + 5, number=number)
    alpha = module.recur(basis[0], basis[1], 0.3, basis[2], w)
    first = w.clone()
    norm = module.subtract(w, basis[3], 0.7)
    orthonormal = torch.linalg.qr(basis.T.double())[0].T.to(dtype).contiguous()
    block = torch.stack([w / w.norm(), first / first.norm(), basis[0], basis[1] + basis[4]])
    factors, norms = module.orthogonalize(orthonormal, block[:2])
    more, others = module.orthogonalize(orthonormal[:4], block[1:])
    factors, norms = factors + more, norms + others
    module.scale(w, 1.25)
    return [basis, alpha, first, norm, *factors, norms, block, w]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_the_kernels_do_what_plain_torch_does(dtype: torch.dtype) -> None:
    ours, plain = together(vectors, dtype), together(reference, dtype)
    error = 1e-4 if dtype == torch.float32 else 1e-11  # of sums of 9,001 products
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(*(torch.as_tensor(x, dtype=F64) for x in (one, other)), rtol=error, atol=error)
    assert torch.equal(ours[0], plain[0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(together(vectors, dtype)[-1], ours[-1])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"^basis has shape \[2, 4\], expected \[-1, 3\]", {"basis": torch.ones(2, 4)}),
        (ValueError, "^basis has dtype float64, expected float32", {"basis": torch.ones(2, 3, dtype=F64)}),
        (ValueError, "^block has dtype bfloat16", {"block": torch.ones(1, 3).bfloat16()}),
        (ValueError, r"^block has shape \[3\]", {"block": torch.ones(3)}),
        (TypeError, "^block is a list", {"block": [1.0]}),
    ],
)
def test_the_kernels_check_what_they_get(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"basis": torch.ones(2, 3), "block": torch.ones(1, 3), **change}
    with pytest.raises(error, match=message):
        _core.krylov_orthogonalize(**given, threads=1)
    rows = torch.ones(2, 3)
    with pytest.raises((ValueError, RuntimeError), match=r"overlap|share"):
        vectors.orthogonalize(rows, rows[1:])


W = torch.tensor([1.0, 2.0], requires_grad=True)
ONES = torch.ones(3)
IDENTITY = LinearOperator(lambda v: v, 3)


class Once(torch.autograd.Function):
    """A square with a backward pass, but none of that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def cubic(*_batch: Any) -> Tensor:
    return (W**3).sum()


BAD: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "no steps": (ValueError, "^Invalid k: 0", lambda: lanczos(IDENTITY, 0)),
    "steps": (TypeError, "^k is a float", lambda: lanczos(IDENTITY, 1.5)),  # type: ignore[arg-type]
    "reorth": (ValueError, "^Invalid reorth: 'some'", lambda: lanczos(IDENTITY, 2, reorth="some")),  # type: ignore[arg-type]
    "seed": (ValueError, "^Invalid seed: -1", lambda: lanczos(IDENTITY, 2, seed=-1)),
    "size of q1": (ValueError, r"^q1 has shape \[2\], expected \[3\]", lambda: lanczos(IDENTITY, 2, q1=torch.ones(2))),
    "dtype of q1": (ValueError, "^q1 has dtype float64", lambda: lanczos(IDENTITY, 2, q1=ONES.double())),
    "zero": (ValueError, r"first vector is 0\.0", lambda: lanczos(IDENTITY, 2, q1=torch.zeros(3))),
    "NaN": (ValueError, "first vector is nan", lambda: lanczos(IDENTITY, 2, q1=ONES * float("nan"))),
    "matrix": (ValueError, r"^q1 has shape \[2, 2\]", lambda: lanczos(lambda x: x, 2, q1=torch.ones(2, 2))),
    "integers": (ValueError, "dtype torch.int64", lambda: lanczos(lambda x: x, 2, q1=torch.ones(2).long())),
    "16 bits": (ValueError, "dtype torch.bfloat16", lambda: lanczos(lambda x: x, 2, q1=ONES.bfloat16())),
    "no q1": (TypeError, "^op is a function, expected a LinearOperator", lambda: lanczos(lambda x: x, 2)),
    "product": (ValueError, r"product .* shape \[1\]", lambda: lanczos(lambda x: x[:1], 2, q1=ONES)),
    "no product": (TypeError, "product .* NoneType", lambda: lanczos(lambda x: None, 2, q1=ONES)),  # type: ignore[arg-type,return-value]
    "infinite": (ValueError, "not finite", lambda: lanczos(lambda x: x * float("inf"), 2, q1=ONES)),
    "asymmetric": (ValueError, "not symmetric", lambda: lanczos(of(torch.triu(symmetric(9))), 9)),
    "too many": (ValueError, "^Invalid n: 4", lambda: top_eigenvalues(IDENTITY, 4)),
    "which": (ValueError, "^Invalid which: 'BE'", lambda: top_eigenvalues(IDENTITY, which="BE")),  # type: ignore[arg-type]
    "tol": (TypeError, "^tol is a str", lambda: top_eigenvalues(IDENTITY, tol="a")),  # type: ignore[arg-type]
    "probes": (TypeError, "^probes is a NoneType", lambda: trace(IDENTITY, None)),  # type: ignore[arg-type]
    "written to": (RuntimeError, "^multiply has written to", lambda: trace(LinearOperator(lambda v: v.mul_(2), 3))),
    "written to a part": (RuntimeError, "^multiply has", lambda: lanczos(lambda v: v[:1].zero_() + v, 2, q1=ONES)),
    "no function": (TypeError, "^multiply is a NoneType", lambda: LinearOperator(None, 3)),  # type: ignore[arg-type]
    "kind": (ValueError, "^Invalid kind: 'fisher'", lambda: hvp_operator(cubic, [W], kind="fisher")),  # type: ignore[arg-type]
    "16-bit parameters": (ValueError, "^parameter 0 has dtype", lambda: hvp_operator(cubic, [W.bfloat16()])),
    **{
        f"no operator for {call.__name__}": (TypeError, "^op is a function, expected a Lin", partial(call, lambda x: x))  # type: ignore[operator]
        for call in (check_symmetry, frobenius, spectral_density, trace)
    },
    "no batches": (ValueError, "^data is empty", lambda: hvp_operator(cubic, [W], [])),
    "no batches to be sharp along": (ValueError, "^data is empty", lambda: batch_sharpness(cubic, [W], [])),
    "a pair for batches": (TypeError, r"^data is a tuple, .*\[\(x, y\)\]", lambda: hvp_operator(cubic, [W], (W, W))),
    "a tensor for batches": (TypeError, "^data is a Tensor", lambda: hvp_operator(cubic, [W], W)),
    "a batch": (TypeError, r"^data\[0\] is a int", lambda: hvp_operator(cubic, [W], [3])),
    "no samples": (ValueError, r"^data\[0\] has shape \[\]", lambda: hvp_operator(cubic, [W], [torch.tensor(1)])),
    "a loss for data": (TypeError, "^loss_fn is a Tensor", lambda: hvp_operator(cubic(), [W], [ONES])),
    "no outputs": (TypeError, "^the loss is a Tensor, expected a pair", lambda: hvp_operator(cubic, [W], kind="ggn")),
    "other outputs": (RuntimeError, "not computed from the outputs", lambda: ggn(lambda: (cubic(), W * 1))),
    "detached": (RuntimeError, "outputs have no graph", lambda: ggn(lambda: (cubic(), W.detach()))),
    "preconditioners": (ValueError, "^precond has 2 tensors", lambda: hvp_operator(cubic, [W], precond=[ONES, ONES])),
    "precond's shape": (ValueError, r"^precond\[0\] has shape", lambda: hvp_operator(cubic, [W], precond=[ONES])),
    "precond's sign": (ValueError, "not positive", lambda: hvp_operator(cubic, [W], precond=[-torch.ones(2)])),
    "once": (
        RuntimeError,
        "OnceBackward, which is marked once",
        lambda: hvp_operator(lambda: Once.apply(W).sum(), [W]),
    ),
    "vector": (ValueError, "^the vector has shape", lambda: hvp_operator(cubic, [W])(ONES)),
}


def ggn(loss: Callable[[], tuple[Tensor, Tensor]]) -> LinearOperator:
    return hvp_operator(loss, [W], kind="ggn")


@pytest.mark.parametrize(("error", "message", "call"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        call()
    assert W.grad is None
