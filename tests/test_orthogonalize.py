"""Newton-Schulz through Python: accuracy against the singular value decomposition, peers, properties, bad input."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
import torch
from pytorch_optimizer.optimizer.utils import zero_power_via_gram_newton_schulz, zero_power_via_newton_schulz_5
from torch import Tensor

import ferrostep.numpy
from ferrostep import _core, orthogonalize, reference

SHAPES = ((64, 64), (48, 200), (200, 48), (1, 9), (9, 1), (33, 77))
FORMS = ("standard", "gram", "auto")
ELSEWHERE = torch.empty(2, 3, device="meta")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_spectrum(rows: int, cols: int, spectrum: Tensor) -> Tensor:
    u, _ = torch.linalg.qr(gaussian(rows, rows, seed=1))
    v, _ = torch.linalg.qr(gaussian(cols, cols, seed=2))
    least = min(rows, cols)
    return u[:, :least] @ torch.diag(spectrum) @ v[:, :least].T


def exact(g: Tensor, name: str = "keller") -> Tensor:
    """The polynomials applied to the singular values."""
    u, s, vh = torch.linalg.svd(g.double(), full_matrices=False)
    s = s / s.norm()
    for a, b, c in _core.Schedule(name).triples():
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["keller", "quintic", "polar_express_1.01"])
@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize(
    ("dtype", "precision", "allowed"),
    [
        (torch.float64, "auto", 1e-12),
        (torch.float32, "float64", 1e-7),
        (torch.float32, "float32", 5e-5),
        (torch.float32, "auto", 8e-2),
        (torch.bfloat16, "float32", 3e-3),
    ],
)
def test_singular_values_follow_the_polynomials(
    isa: str, name: str, algorithm: str, dtype: torch.dtype, precision: str, allowed: float
) -> None:
    if (algorithm, precision) == ("standard", "float32") and dtype == torch.float32:
        allowed = 1e-5  # the Gram form loses more
    inputs = [gaussian(*shape) for shape in SHAPES]
    inputs += [with_spectrum(*shape, torch.logspace(0, -3, min(shape)).double()) for shape in SHAPES[:3]]
    for g in (g.to(dtype) for g in inputs):
        actual = orthogonalize(g, coefficients=name, precision=precision, algorithm=algorithm)
        assert actual.dtype == dtype and actual.shape == g.shape
        assert error(actual, exact(g, name)) < allowed, g.shape


@pytest.mark.parametrize(
    "spectrum",
    [torch.logspace(0, -6, 96), torch.cat([torch.ones(8), torch.full((88,), 1e-4)]), torch.eye(96)[0]],
    ids=["condition 1e6", "rank 8 and noise", "rank 1"],
)
@pytest.mark.parametrize("name", ["keller", "quintic", "polar_express_1.01"])
def test_hard_inputs_are_no_worse_than_torchs_bfloat16_form(isa: str, name: str, spectrum: Tensor) -> None:
    g = with_spectrum(96, 384, spectrum.double())
    expected = exact(g, name)
    schedule = _core.Schedule(name).triples()
    theirs = reference.newton_schulz(g.float(), schedule, precision="bfloat16")
    auto = orthogonalize(g.float(), coefficients=name)
    assert error(auto, expected) <= error(theirs, expected)
    assert torch.linalg.svdvals(auto.double())[0] < 1.3
    assert error(orthogonalize(g.float(), coefficients=name, precision="float32"), expected) < 2e-3


@pytest.mark.smoke
def test_the_reference_follows_the_polynomials() -> None:
    for shape in SHAPES:
        g = gaussian(*shape)
        triples = _core.Schedule("quintic").triples()
        assert error(reference.newton_schulz(g, triples), exact(g, "quintic")) < 1e-11
        assert error(reference.newton_schulz(g.float(), triples), exact(g, "quintic")) < 1e-4


@pytest.mark.parametrize("shape", [(64, 64), (96, 384), (384, 96)], ids=str)
def test_pytorch_optimizers_functions_agree(shape: tuple[int, int]) -> None:
    g = gaussian(*shape).float()
    standard = zero_power_via_newton_schulz_5(g, dtype=torch.float32)
    assert error(orthogonalize(g, precision="float32", algorithm="standard", eps=1e-7), standard.double()) < 1e-5
    gram = zero_power_via_gram_newton_schulz(g, dtype=torch.float32)
    assert error(orthogonalize(g, precision="float32", algorithm="gram", eps=1e-7), gram.double()) < 5e-5


@pytest.mark.frameworks
def test_gram_newton_schulz_agrees() -> None:
    # Its package depends on CUDA kernels: `pip install --no-deps gram-newton-schulz` is enough here.
    theirs = pytest.importorskip("gram_newton_schulz")
    g = gaussian(96, 384).float()
    coefficients = [[a, b, c] for a, b, c in _core.Schedule("keller").triples()]
    peer = theirs.GramNewtonSchulz(
        ns_use_kernels=False,
        ns_coefficients=coefficients,
        gram_newton_schulz_reset_iterations=[2],
        compile_kwargs=None,
    )
    assert error(orthogonalize(g, algorithm="gram", precision="float32"), peer(g).double()) < 1e-2


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_rotations_transposition_scale_and_sign(precision: str) -> None:
    allowed = {"float32": 1e-4, "float64": 1e-11}[precision]
    dtype = torch.float64 if precision == "float64" else torch.float32
    g = gaussian(40, 72).to(dtype)
    o = orthogonalize(g, precision=precision)
    p, _ = torch.linalg.qr(gaussian(40, 40, seed=3))
    q, _ = torch.linalg.qr(gaussian(72, 72, seed=4))
    rotated = orthogonalize((p @ g.double() @ q).to(dtype), precision=precision)
    assert error(rotated, p @ o.double() @ q) < allowed
    assert error(orthogonalize(g.T, precision=precision), o.T.double()) < allowed
    assert torch.equal(orthogonalize(-g, precision=precision), -o)
    for scale in (1e-30, 1e-12, 1e12, 1e30):
        assert error(orthogonalize(g * scale, precision=precision), o.double()) < allowed


def test_a_batch_equals_its_matrices_one_by_one(isa: str) -> None:
    g = gaussian(3, 5, 24, 40).float()
    together = orthogonalize(g)
    for i in range(3):
        for j in range(5):
            assert torch.equal(together[i, j], orthogonalize(g[i, j]))
    several = orthogonalize([g[0], g[1, 0]])
    assert torch.equal(several[0], together[0]) and torch.equal(several[1], together[1, 0])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    inputs = [gaussian(*shape).float() for shape in ((300, 500), (40, 40), (7, 2000), (64, 64), (500, 100))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        expected = orthogonalize(inputs)
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(orthogonalize(inputs), expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_out_in_any_layout_and_in_place(dtype: torch.dtype) -> None:
    g = gaussian(12, 20).to(dtype)
    expected = orthogonalize(g)
    out = torch.full((40, 24), float("nan"), dtype=dtype)
    view = out.T[::2, ::2]
    assert orthogonalize(g, out=view) is view
    assert torch.equal(view, expected)
    assert out.isnan().sum() == out.numel() - view.numel()
    same = g.clone()
    version = same._version
    assert orthogonalize(same, out=same) is same
    assert torch.equal(same, expected) and same._version > version
    column_major = g.T.contiguous().T
    assert torch.equal(orthogonalize(column_major), expected)


def test_zero_stays_zero_and_nan_spreads_over_its_matrix_only() -> None:
    g = gaussian(3, 6, 9).float()
    g[0] = 0
    g[1, 2, 3] = float("nan")
    o = orthogonalize(g)
    assert torch.equal(o[0], torch.zeros(6, 9))
    assert o[1].isnan().all()
    assert o[2].isfinite().all()
    assert orthogonalize(torch.zeros(0, 4)).shape == (0, 4)
    g[1, 2, 3] = float("inf")
    assert orthogonalize(g)[1].isnan().all()


def test_gradients_are_not_recorded() -> None:
    g = gaussian(4, 6).requires_grad_()
    assert not orthogonalize(g).requires_grad


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("make", "error_type", "message"),
    [
        (lambda: orthogonalize(torch.ones(3)), ValueError, "tensors[0] has shape [3], expected 2 or more dimensions"),
        (lambda: orthogonalize(torch.ones(2, 2).int()), ValueError, "tensors[0] has dtype torch.int32"),
        (lambda: orthogonalize([1.0]), TypeError, "tensors[0] is a float"),
        (lambda: orthogonalize(torch.ones(2, 2).to_sparse()), RuntimeError, "sparse"),
        (lambda: orthogonalize(torch.ones(2, 3), out=torch.ones(3, 2)), ValueError, "out[0] has shape [3, 2]"),
        (lambda: orthogonalize(torch.ones(2, 3), out=torch.ones(2, 3).double()), ValueError, "out[0] has dtype"),
        (lambda: orthogonalize([torch.ones(2, 3)], out=[]), ValueError, "out has 0 tensors, expected 1"),
        (lambda: orthogonalize(torch.ones(2, 3), out=torch.ones(3).expand(2, 3)), ValueError, "share memory"),
        (lambda: orthogonalize(torch.ones(2, 3), precision="float8"), ValueError, "Invalid precision"),
        (lambda: orthogonalize(torch.ones(2, 3), algorithm="fast"), ValueError, "Invalid algorithm"),
        (lambda: orthogonalize(torch.ones(2, 3), coefficients="cans"), ValueError, "safety factor"),
        (lambda: orthogonalize(torch.ones(2, 3), coefficients=(1.0, -3.0, 0.0)), ValueError, "must stay positive"),
        (lambda: orthogonalize(torch.ones(2, 3), steps=0), ValueError, "ns_steps"),
        (lambda: orthogonalize(torch.ones(2, 3), eps=-1.0), ValueError, "Invalid eps"),
        (lambda: orthogonalize(torch.ones(2, 3), restarts=(-2,)), ValueError, "Invalid restarts: -2"),
        (lambda: orthogonalize(torch.ones(2, 3), coefficients="cubic5", precision="bfloat16"), ValueError, "cubic5"),
        (lambda: orthogonalize(ELSEWHERE, eps=-1.0), ValueError, "Invalid eps"),
        (lambda: orthogonalize(ELSEWHERE, precision="float8"), ValueError, "Invalid precision"),
        (lambda: orthogonalize(ELSEWHERE, algorithm="fast"), ValueError, "Invalid algorithm"),
        (lambda: orthogonalize(ELSEWHERE, restarts=(-2,)), ValueError, "Invalid restarts"),
        (lambda: orthogonalize([ELSEWHERE, 1.0], out=[ELSEWHERE, ELSEWHERE]), TypeError, "tensors[1] is a float"),
        (lambda: orthogonalize(ELSEWHERE.int()), ValueError, "tensors[0] has dtype torch.int32"),
        (lambda: orthogonalize(ELSEWHERE, out=torch.ones(2, 3)), RuntimeError, "out[0] is on device cpu"),
        (lambda: ferrostep.numpy.orthogonalize(np.ones((2, 3)), steps=100), ValueError, "expected 1 to 99"),
        (lambda: ferrostep.numpy.orthogonalize(np.ones((2, 3)), steps=-1), ValueError, "expected 1 to 99"),
        (lambda: ferrostep.numpy.orthogonalize(np.ones((2, 3)), restarts=[-1]), ValueError, "Invalid restarts"),
    ],
)
def test_bad_input(make: object, error_type: type[Exception], message: str) -> None:
    with pytest.raises(error_type, match=re.escape(message)):
        make()  # type: ignore[operator]


def test_partial_overlap_is_refused_and_nothing_changes() -> None:
    memory = gaussian(5, 6).float()
    before = memory.clone()
    with pytest.raises(ValueError, match=re.escape("tensors[0] shares memory with out[0]")):
        orthogonalize(memory[:4], out=memory[1:])
    with pytest.raises(ValueError, match="shares memory"):
        orthogonalize([memory[:2], memory[3:]], out=[memory[3:], memory[:2].clone()])
    assert torch.equal(memory, before)


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numpy(dtype: type) -> None:
    g = gaussian(4, 10, 14).numpy().astype(dtype)
    o = ferrostep.numpy.orthogonalize(g)
    assert o.dtype == dtype
    assert np.array_equal(o, orthogonalize(torch.from_numpy(g)).numpy())
    out = np.empty_like(g)
    assert ferrostep.numpy.orthogonalize([g], out=[out])[0] is out
    assert np.array_equal(out, o)
    with pytest.raises(ValueError, match="read-only"):
        out.flags.writeable = False
        ferrostep.numpy.orthogonalize(g, out=out)


def test_numpys_bfloat16_and_numbers_of_threads() -> None:
    g = gaussian(40, 56).bfloat16()
    expected = orthogonalize(g).float().numpy()
    array = g.float().numpy().astype(ml_dtypes.bfloat16)
    for threads in (None, 1, 3):
        o = ferrostep.numpy.orthogonalize(array, num_threads=threads)
        assert o.dtype == ml_dtypes.bfloat16
        assert np.array_equal(o.astype(np.float32), expected)


def test_other_devices_take_the_reference() -> None:
    assert orthogonalize(torch.empty(3, 4, device="meta")).device.type == "meta"
