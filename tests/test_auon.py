"""AuON and HybridAuON: oracles of the spec, gradients of any size, both variants against their equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ferrostep import _core, orthogonalize, reference
from ferrostep.optim import AuON, HybridAuON

PLAIN: dict[str, Any] = {"lr": 1.0, "momentum": 0.0, "nesterov": False}
DIAGONAL = torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))

both = pytest.mark.parametrize("backend", ["rust", "reference"])


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def update(g: Tensor, optimizer: Any = AuON, **arguments: Any) -> Tensor:
    """What one step subtracts from zero."""
    p = Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    optimizer([p], **{**PLAIN, **arguments}).step()
    assert torch.equal(p.grad, g)
    return -p.detach()


def rms_of_cosh(z: Tensor) -> Tensor:
    return z.cosh().square().mean().sqrt()


@both
def test_a_diagonal_gradient(backend: str) -> None:
    expected = torch.diag(torch.tensor([0.52653568983078, 0.7020475268363953], dtype=torch.float64))
    torch.testing.assert_close(update(DIAGONAL, backend=backend), expected, rtol=1e-6, atol=0)
    expected = torch.diag(torch.tensor([2.21581650, 2.95442194], dtype=torch.float64))
    torch.testing.assert_close(update(DIAGONAL, variant="package", backend=backend), expected, rtol=1e-6, atol=0)


@both
def test_of_a_scalar_the_sign_counts(backend: str) -> None:
    for value in (5.0, -5.0):
        moved = update(torch.tensor(value).double(), backend=backend)
        assert moved.item() == pytest.approx(math.copysign(1 / math.cosh(1), value), rel=1e-6)


@both
@pytest.mark.parametrize(("count", "excess"), [(64, 0.010732236468487644), (4096, 1.68576836523604e-4)])
def test_one_hot(count: int, excess: float, backend: str) -> None:
    g = torch.zeros(count, dtype=torch.float64)
    g[7] = 1.0
    moved = update(g, eps=0.0, rms_eps=0.0, backend=backend)
    assert 1 / moved[7].item() - 1 == pytest.approx(excess, rel=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 30.0])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (64, 64), (300, 331)], ids=str)
def test_the_mean_of_cosh(shape: tuple[int, ...], gamma: float, isa: str) -> None:
    g = gaussian(*shape)
    x = g / g.norm()
    moved = update(g, gamma=gamma, eps=0.0, rms_eps=0.0, adjust_lr_fn=None)
    torch.testing.assert_close(moved, x / rms_of_cosh(gamma * x), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (129, 257)], ids=str)
def test_gradients_of_any_size(dtype: torch.dtype, shape: tuple[int, int], isa: str) -> None:
    g = gaussian(*shape).to(dtype)
    expected = update(g.double(), eps=0.0).to(dtype)
    scales = [2.0**k for k in (-140, -126, -100, -33, 0, 33, 100, 120)] if dtype != torch.float16 else [2.0**-6, 2.0**6]
    if dtype == torch.float64:
        scales += [2.0**-1000, 2.0**1000]
    for scale in scales:
        scaled = (g.double() * scale).to(dtype)
        # Subnormal numbers have few digits left.
        exact = update(scaled.double(), eps=0.0).to(dtype) if scale < 2.0**-110 else expected
        for maximize in (False, True):
            moved = update(scaled, eps=0.0, maximize=maximize)
            torch.testing.assert_close(
                -moved if maximize else moved,
                exact,
                rtol=1.6e-2 if dtype.itemsize == 2 else 1e-5,
                atol=6e-8 if dtype == torch.float16 else 0,
            )


@both
def test_nesterov_makes_no_difference_to_the_first_step(backend: str) -> None:
    g = gaussian(6, 6)
    with_it, without = (update(g, momentum=0.95, nesterov=n, eps=0.0, backend=backend) for n in (True, False))
    torch.testing.assert_close(with_it, without, rtol=1e-12, atol=0)


@both
def test_eps_shrinks_the_steps_of_small_gradients(backend: str) -> None:
    g = gaussian(6, 6) * 1e-8
    x = g / (g.norm() + 1e-7)
    torch.testing.assert_close(update(g, rms_eps=0.0, backend=backend), x / rms_of_cosh(x), rtol=1e-12, atol=0)


@both
@pytest.mark.parametrize(("variant", "expected"), [("paper", 1.0), ("package", 1e3)])
def test_scale(variant: str, expected: float, backend: str) -> None:
    g = gaussian(20, 30)
    one, thousand = (update(g * s, variant=variant, backend=backend) for s in (1.0, 1e3))
    torch.testing.assert_close(thousand, one * expected, rtol=1e-6, atol=0)


@both
@pytest.mark.parametrize(("nesterov", "factor"), [(True, 0.0975), (False, 0.05)])
def test_the_first_step(nesterov: bool, factor: float, backend: str) -> None:
    g = gaussian(4, 7)
    moved = update(g, momentum=0.95, nesterov=nesterov, variant="package", gamma=1.0, backend=backend)
    u = factor * g
    torch.testing.assert_close(moved, u / rms_of_cosh(u / u.norm()), rtol=1e-6, atol=0)


@both
@pytest.mark.parametrize("shape", [(300, 10), (10, 300), (30, 4, 5), (300,)], ids=str)
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw", None])
def test_the_steps_length_and_direction(shape: tuple[int, ...], adjust: str | None, backend: str) -> None:
    g = gaussian(*shape)
    moved = update(g, adjust_lr_fn=adjust, eps=0.0, rms_eps=0.0, backend=backend)
    s = {
        "original": {(300, 10): 30**0.5, (30, 4, 5): 1.5**0.5}.get(shape, 1.0),
        "match_rms_adamw": 0.2 * g.numel() ** 0.5,
        None: 1.0,
    }[adjust]
    assert moved.norm().item() == pytest.approx(s / rms_of_cosh(g / g.norm()).item(), rel=1e-12)
    assert torch.nn.functional.cosine_similarity(moved.flatten(), g.flatten(), dim=0) > 1 - 1e-7


@pytest.mark.smoke
@pytest.mark.parametrize("variant", ["paper", "package"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_fifty_steps_follow_the_equations(variant: str, nesterov: bool, isa: str) -> None:
    p, expected, m = Parameter(gaussian(40, 17)), gaussian(40, 17), torch.zeros(40, 17).double()
    optimizer = AuON([p], lr=0.1, nesterov=nesterov, weight_decay=0.01, variant=variant)
    gamma, s = (1.5, 1.0) if variant == "package" else (1.0, (40 / 17) ** 0.5)
    for step in range(50):
        p.grad = gaussian(40, 17, seed=step + 1)
        m = 0.95 * m + 0.05 * p.grad
        u = 0.05 * p.grad + 0.95 * m if nesterov else m
        x = u / (u.norm() + 1e-7)
        applied = u if variant == "package" else x
        expected = expected * (1 - 0.1 * 0.01) - 0.1 * s * applied / (rms_of_cosh(gamma * x) + 1e-8)
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected, rtol=1e-11, atol=1e-12)


@both
def test_zero_gradients(backend: str) -> None:
    p = Parameter(gaussian(3, 4))
    before = p.detach().clone()
    optimizer = AuON([p], lr=0.1, weight_decay=0.5, eps=0.0, backend=backend)
    p.grad = torch.zeros(3, 4).double()
    optimizer.step()
    torch.testing.assert_close(p.detach(), before * 0.95, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_gradients_spread_over_their_tensor_only(value: float, isa: str) -> None:
    params = [Parameter(gaussian(70_001)) for _ in range(2)]
    for p in params:
        p.grad = torch.ones_like(p)
    params[0].grad[-1] = value
    AuON(params).step()
    assert params[0].isnan().all()
    assert params[1].isfinite().all()


@both
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_hybrid_of_a_diagonal_gradient(precision: str, backend: str) -> None:
    o = torch.diag(torch.tensor([1.19326944, 0.97648192], dtype=torch.float64))
    moved = update(DIAGONAL, HybridAuON, ns_precision=precision, backend=backend)
    torch.testing.assert_close(moved, o / rms_of_cosh(o), rtol=1e-6, atol=1e-6)


@pytest.mark.smoke
@both
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (6, 2, 3, 3)], ids=str)
def test_hybrid_follows_its_equations(shape: tuple[int, ...], backend: str) -> None:
    g = gaussian(*shape)
    matrix = g.flatten(1)
    s = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
    o = orthogonalize(matrix, steps=1)
    expected = s * o / rms_of_cosh(o)
    torch.testing.assert_close(update(g, HybridAuON, backend=backend), expected.view(shape), rtol=1e-6, atol=1e-7)
    o = orthogonalize(matrix)
    expected = o / rms_of_cosh(1.5 * o / o.norm())
    package = update(g, HybridAuON, variant="package", backend=backend)
    torch.testing.assert_close(package, expected.view(shape), rtol=1e-6, atol=1e-7)
    if len(shape) > 2:
        separate = orthogonalize(g, steps=1)
        moved = update(g, HybridAuON, flatten=False, backend=backend)
        torch.testing.assert_close(moved[2, 1], separate[2, 1] / rms_of_cosh(separate[2, 1]), rtol=1e-6, atol=1e-7)


@both
def test_five_steps_of_the_hybrid_are_muons(backend: str) -> None:
    for shape in ((20, 30), (30, 20)):
        g = gaussian(*shape)
        o = reference.newton_schulz(g, _core.Schedule("keller").triples())
        moved = update(g, HybridAuON, ns_steps=5, adjust_lr_fn=None, eps=0.0, rms_eps=0.0, backend=backend)
        torch.testing.assert_close(moved * rms_of_cosh(o), o, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_packages_hybrid_over_fifty_steps(dtype: torch.dtype) -> None:
    p = Parameter(gaussian(24, 17).to(dtype))
    expected, m = p.detach().double(), torch.zeros(24, 17).double()
    optimizer = HybridAuON([p], lr=0.1, weight_decay=0.01, variant="package", ns_precision="float32")
    if dtype == torch.float64:
        optimizer.param_groups[0]["ns_precision"] = "float64"
    for step in range(50):
        p.grad = gaussian(24, 17, seed=step + 1).to(dtype)
        m = 0.95 * m + 0.05 * p.grad
        u = 0.05 * p.grad + 0.95 * m
        y = u.T / (u.norm() + 1e-7)
        for _ in range(5):
            gram = y @ y.T
            y = 3.4445 * y + (-4.7750 * gram + 2.0315 * gram @ gram) @ y
        r = rms_of_cosh(1.5 * y / (y.norm() + 1e-7))
        expected = expected * (1 - 0.1 * 0.01) - 0.1 * y.T / (r + 1e-8)
        optimizer.step()
    allowed = 1e-5 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(p.detach().double(), expected, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e25, 1e30])
@pytest.mark.parametrize("variant", ["paper", "package"])
def test_the_hybrid_takes_gradients_of_any_size(variant: str, scale: float) -> None:
    g = gaussian(12, 20).float()
    arguments: dict[str, Any] = {"variant": variant, "eps": 0.0, "ns_precision": "float32"}
    expected = update(g, HybridAuON, **arguments)
    torch.testing.assert_close(update(g * scale, HybridAuON, **arguments), expected, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize(("optimizer", "variant"), [(AuON, "paper"), (AuON, "package"), (HybridAuON, "paper")])
def test_steps_of_a_zero_gradient_with_momentum_left(optimizer: Any, variant: str, backend: str) -> None:
    p = Parameter(torch.zeros(6, 6).double())
    made = optimizer([p], lr=1.0, variant=variant, backend=backend)
    sizes = []
    for step in range(4):
        p.grad = gaussian(6, 6) * (step == 0)
        before = p.detach().clone()
        made.step()
        sizes.append((p.detach() - before).norm().item())
    # The package's AuON fades with the momentum, the others do not.
    fading = 0.95 if variant == "package" else 1.0
    assert sizes[2:] == pytest.approx([sizes[1] * fading, sizes[1] * fading**2], rel=1e-5)


@both
@pytest.mark.parametrize("variant", ["paper", "package"])
def test_hybrid_of_nothing(variant: str, backend: str) -> None:
    moved = update(torch.zeros(3, 4), HybridAuON, variant=variant, eps=0.0, backend=backend)
    assert torch.equal(moved, torch.zeros(3, 4))


@pytest.mark.parametrize("optimizer", [AuON, HybridAuON])
@pytest.mark.parametrize("name", ["momentum", "gamma", "eps", "rms_eps", "weight_decay"])
def test_groups_are_checked_like_arguments(optimizer: Any, name: str) -> None:
    made = optimizer([Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="Invalid"):
        made.add_param_group({"params": [Parameter(torch.ones(2, 2))], name: -1.0})
    assert len(made.param_groups) == 1


@pytest.mark.parametrize("optimizer", [AuON, HybridAuON])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, "Invalid momentum value: 1.0"),
        ({"gamma": -1.0}, "Invalid gamma value: -1.0; expected 0 to 40"),
        ({"gamma": 41.0}, "Invalid gamma value"),
        ({"eps": -1.0}, "Invalid epsilon value"),
        ({"eps": float("inf")}, "Invalid epsilon value: inf"),
        ({"rms_eps": float("nan")}, "Invalid rms_eps value"),
        ({"variant": "v4"}, "Invalid variant: 'v4'"),
        ({"adjust_lr_fn": "spectral_unclamped"}, "Adjust learning rate function spectral_unclamped is not supported"),
    ],
    ids=str,
)
def test_impossible_arguments(optimizer: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimizer([Parameter(torch.ones(2, 2))], **arguments)


def test_hybrid_needs_matrices() -> None:
    with pytest.raises(ValueError, match="HybridAuON only supports parameters of 2 or more dimensions"):
        HybridAuON([Parameter(torch.ones(3))])
    with pytest.raises(ValueError, match="Invalid ns_steps"):
        HybridAuON([Parameter(torch.ones(3, 3))], ns_steps=0)
    with pytest.raises(ValueError, match="quintic is made for 5 steps, got 1"):
        HybridAuON([Parameter(torch.ones(3, 3))], ns_coefficients="quintic")
    for optimizer in (AuON, HybridAuON):
        with pytest.raises(RuntimeError, match=f"{optimizer.__name__} does not support complex parameters"):
            optimizer([Parameter(torch.ones(3, 3, dtype=torch.complex64))])
