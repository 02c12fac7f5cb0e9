"""Guidance: the spec's oracles, its properties, diffusers' functions, layouts, and bad input, in torch and NumPy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ferrostep.numpy
from ferrostep import guidance
from ferrostep.guidance import MomentumBuffer
from ferrostep.reference import guidance as reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 4, 8, 8), (3, 5), (2, 3, 2, 5, 7), (1, 1), (2, 4, 64, 65), (4,), (1, 20_000))
RULES: dict[str, Callable[..., Any]] = {
    "cfg": lambda m, c, u, n, **k: m.cfg(c, u, 5.0, **k),
    "cfg rescaled": lambda m, c, u, n, **k: m.cfg(c, u, 5.0, rescale=0.7, **k),
    "apg": lambda m, c, u, n, **k: m.apg(c, u, 5.0, **k),
    "apg, all options": lambda m, c, u, n, **k: m.apg(c, u, 5.0, eta=0.3, norm_threshold=1.5, rescale=0.4, **k),
    "apg from uncond": lambda m, c, u, n, **k: m.apg(c, u, 5.0, norm_threshold=2.5, base="uncond", **k),
    "cfg_zero_star": lambda m, c, u, n, **k: m.cfg_zero_star(c, u, 5.0, rescale=0.2, **k),
    "tangential": lambda m, c, u, n, **k: m.tangential(c, u, 5.0, **k),
    "magnitude_aware": lambda m, c, u, n, **k: m.magnitude_aware(c, u, 5.0, alpha=2.0, rescale=0.2, **k),
    "perp_neg": lambda m, c, u, n, **k: m.perp_neg(c, u, n, 5.0, [0.5, 1.5], **k),
}
X = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
META = torch.empty(2, 6, device="meta", dtype=torch.float64)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def gaussian(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def predictions(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Conditional, unconditional and two negative ones, which resemble each other."""
    c = gaussian(*shape, seed=seed)
    others = [c + 0.3 * gaussian(*shape, seed=seed + i) for i in range(1, 4)]
    u, *negatives = (x.to(dtype) for x in others)
    return c.to(dtype), u, negatives


def close(actual: Tensor, expected: Tensor, double: float = 1e-12) -> None:
    """To one rounding of the dtype, of the largest number that took part."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    tolerance = {torch.float64: double, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[actual.dtype]
    limit = tolerance * max(1.0, float(expected.double().abs().max()) if expected.numel() else 1.0)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=double, atol=limit)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.smoke
@pytest.mark.parametrize("m", [guidance, reference], ids=["rust", "reference"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (2.36, 4.48)),
        ({"eta": 1.0}, (11, 16)),
        ({"eta": 0.5}, (6.68, 10.24)),
        ({"norm_threshold": 1.0}, (2.8225, 4.1331)),
        ({"norm_threshold": None}, (2.36, 4.48)),
        ({"norm_threshold": -1.0}, (2.36, 4.48)),
        # By hand: d = (2, 3), k = 18/25, d - k c = (-.16, .12).
        ({"base": "uncond"}, (1 - 5 * 0.16, 1 + 5 * 0.12)),
    ],
)
def test_apg_oracles(m: Any, arguments: dict[str, Any], expected: tuple[float, float]) -> None:
    actual = m.apg(row(3, 4), row(1, 1), 5.0, **arguments)
    torch.testing.assert_close(actual, row(*expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize("m", [guidance, reference], ids=["rust", "reference"])
def test_momentum_oracle(m: Any) -> None:
    buffer = MomentumBuffer(-0.5)
    torch.testing.assert_close(m.apg(row(3, 4), row(1, 1), 5.0, momentum_buffer=buffer), row(2.36, 4.48))
    torch.testing.assert_close(buffer.running_average, row(2, 3))
    torch.testing.assert_close(m.apg(row(3, 3), row(1, 1), 5.0, momentum_buffer=buffer), row(4, 2))
    torch.testing.assert_close(buffer.running_average, row(1, 0.5))


@pytest.mark.smoke
@pytest.mark.parametrize("m", [guidance, reference], ids=["rust", "reference"])
def test_oracles_of_the_other_rules(m: Any) -> None:
    c, u = row(1, 2, 3, 5), row(0.5, 1, 1.5, 2)
    torch.testing.assert_close(m.cfg(c, u, 5.0), row(3, 6, 9, 17))
    near = {"rtol": 0, "atol": 5e-5}
    torch.testing.assert_close(m.cfg(c, u, 5.0, rescale=0.7), row(1.4957, 2.9913, 4.4870, 8.4755), **near)
    torch.testing.assert_close(m.cfg_zero_star(c, u, 5.0), row(0.46667, 0.93333, 1.4, 6.86667), **near)
    # |d| / |u| = 5 / 10
    damped = 4 * float(np.exp(-1))
    aware = m.magnitude_aware(row(9, 12), row(6, 8), 5.0, alpha=2.0)
    torch.testing.assert_close(aware, row(9 + 3 * damped, 12 + 4 * damped))
    parallel, orthogonal = m.project(row(2, 3), row(3, 4))
    torch.testing.assert_close(parallel, row(2.16, 2.88))
    torch.testing.assert_close(orthogonal, row(-0.16, 0.12))
    # d = (2, 3); n - u = (3, 1) has 9/13 d along d.
    expected = 1 + 5 * (row(2, 3) - 0.5 * (row(3, 1) - 9 / 13 * row(2, 3)))
    torch.testing.assert_close(m.perp_neg(row(3, 4), row(1, 1), [row(4, 2)], 5.0, [0.5]), expected)


SCALED: dict[str, Callable[..., Any]] = {
    "cfg": lambda m, c, u, n, s, **k: m.cfg(c, u, s, **k),
    "cfg rescaled": lambda m, c, u, n, s, **k: m.cfg(c, u, s, rescale=0.7, **k),
    "apg": lambda m, c, u, n, s, **k: m.apg(c, u, s, eta=0.3, norm_threshold=1.5, **k),
    "apg from uncond": lambda m, c, u, n, s, **k: m.apg(c, u, s, base="uncond", **k),
    "cfg_zero_star": lambda m, c, u, n, s, **k: m.cfg_zero_star(c, u, s, **k),
    "tangential": lambda m, c, u, n, s, **k: m.tangential(c, u, s, **k),
    "magnitude_aware": lambda m, c, u, n, s, **k: m.magnitude_aware(c, u, s, alpha=0.5, **k),
    "perp_neg": lambda m, c, u, n, s, **k: m.perp_neg(c, u, n, s, [0.5, 1.5], **k),
}
every_scaled_rule = pytest.mark.parametrize("rule", SCALED.values(), ids=SCALED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_scaled_rule
def test_each_sample_may_have_its_own_scale(isa: str, rule: Callable[..., Any], dtype: torch.dtype) -> None:
    values = (2.0, 7.5, -1.0)
    for shape in ((3, 2, 5, 7), (3, 20_000), (3,)):
        c, u, negatives = predictions(*shape, dtype=dtype)
        swapped_ = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (c, u, *negatives)]
        for form in ([3], [3, *[1] * (len(shape) - 1)]):
            scale = torch.tensor(values).reshape(form)
            together = rule(guidance, c, u, negatives, scale)
            for i, value in enumerate(values):
                alone = rule(guidance, c[i : i + 1], u[i : i + 1], [n[i : i + 1] for n in negatives], value)
                assert torch.equal(together[i : i + 1], alone)
            close(together, rule(reference, c, u, negatives, scale))
            close(rule(guidance, swapped_[0], swapped_[1], swapped_[2:], scale), together)
            if dtype != torch.bfloat16:
                arrays = rule(ferrostep.numpy, c.numpy(), u.numpy(), [n.numpy() for n in negatives], scale.numpy())
                assert np.array_equal(arrays, together.numpy())
        for dims in ([-1], [1], []) if len(shape) > 2 and rule is not SCALED["cfg rescaled"] else ():
            inputs = c.double(), u.double(), [n.double() for n in negatives]
            expected = rule(reference, *inputs, torch.tensor(values), dims=dims)
            close(rule(guidance, *inputs, torch.tensor(values), dims=dims), expected, double=1e-9)
            backwards = swapped_[0].double(), swapped_[1].double(), [n.double() for n in swapped_[2:]]
            close(rule(guidance, *backwards, torch.tensor(values), dims=dims), expected, double=1e-9)
        for one in (torch.tensor(2.0), torch.tensor([2.0]), np.float32(2), 2):
            assert torch.equal(rule(guidance, c, u, negatives, one), rule(guidance, c, u, negatives, 2.0))


@every_scaled_rule
def test_gradients_flow_to_the_scale(rule: Callable[..., Any]) -> None:
    c, u, negatives = predictions(3, 4)
    scale = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: rule(guidance, c, u, negatives, s), [scale])


@every_scaled_rule
def test_what_is_no_scale_or_prediction_is_refused_by_name(rule: Callable[..., Any]) -> None:
    grad = X.clone().requires_grad_()
    for m, x in ((guidance, X), (guidance, grad), (guidance, META), (ferrostep.numpy, X.numpy())):
        array = torch.tensor if m is guidance else np.array
        for scale, error, message in (
            (None, TypeError, "^scale is a NoneType, expected a number"),
            ("5", TypeError, "^scale is a str"),
            ([5.0, 5.0], TypeError, "^scale is a list"),
            (1j, TypeError, "^scale is a complex"),
            (array([1.0, 2.0, 3.0]), ValueError, r"^scale has shape \[3\], expected \[2\]"),
            (array([[1.0, 2.0]]), ValueError, r"^scale has shape \[1, 2\], expected \[2\]"),
            (array([1.0, np.nan]), ValueError, "^Invalid scale: (nan|NaN)"),
        ):
            with pytest.raises(error, match=message):
                rule(m, x, x, [x, x], scale)
        with pytest.raises(ValueError, match="Invalid dims: 0 is the dimension of the samples"):
            rule(m, x, x, [x, x], array([1.0, 2.0]), dims=0)
        for name, inputs in {
            "cond": (None, x, [x, x]),
            "uncond": (x, None, [x, x]),
            "negatives[1]": (x, x, [x, None]),
            "negatives": (x, x, x),
        }.items():
            if rule is SCALED["perp_neg"] or "uncond" in name or name == "cond":
                with pytest.raises(TypeError, match=rf"^{re.escape(name)} is a (NoneType|Tensor|ndarray), expected"):
                    rule(m, *inputs, 5.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_rule
def test_kernel_agrees_with_the_reference(isa: str, rule: Callable[..., Tensor], dtype: torch.dtype) -> None:
    for shape in SHAPES:
        given_ = predictions(*shape, dtype=dtype)
        for dims in [None, 0, -1, list(range(len(shape))), []][: 4 if rule is RULES["perp_neg"] else 5]:
            expected = rule(reference, *given_, dims=dims)
            # Deviations come from sums of squares: they lose digits over a few elements that are nearly equal.
            close(rule(guidance, *given_, dims=dims), expected, double=1e-12 if dims is None else 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_momentum_agrees_with_the_reference(isa: str, dtype: torch.dtype) -> None:
    buffers = MomentumBuffer(-0.75), MomentumBuffer(-0.75)
    for step in range(4):
        c, u, _ = predictions(2, 3, 9, 11, dtype=dtype, seed=10 * step)
        actual, expected = (
            m.apg(c, u, 7.0, norm_threshold=2.5, momentum_buffer=buffer)  # type: ignore[attr-defined]
            for m, buffer in zip((guidance, reference), buffers, strict=True)
        )
        close(actual, expected)
        assert buffers[0].running_average is not None and buffers[1].running_average is not None
        close(buffers[0].running_average, buffers[1].running_average)


def of_diffusers(module: str, name: str) -> Any:
    return getattr(pytest.importorskip(f"diffusers.guiders.{module}"), name)


@pytest.mark.frameworks
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("momentum", [None, -0.75])
def test_apg_is_that_of_diffusers(dtype: torch.dtype, allowed: float, momentum: float | None) -> None:
    ours = None if momentum is None else MomentumBuffer(momentum)
    theirs = None if momentum is None else of_diffusers("adaptive_projected_guidance", "MomentumBuffer")(momentum)
    normalized_guidance = of_diffusers("adaptive_projected_guidance", "normalized_guidance")
    for step in range(3):
        c, u, _ = predictions(2, 4, 16, 17, dtype=dtype, seed=10 * step)
        actual = guidance.apg(c, u, 7.5, eta=0.2, norm_threshold=2.5, momentum_buffer=ours, base="uncond")
        in_double = normalized_guidance(c.double(), u.double(), 7.5, None, 0.2, 2.5)
        expected = normalized_guidance(c, u, 7.5, theirs, 0.2, 2.5)
        size = float(expected.double().abs().max())
        # theirs rounds after each operation: in bfloat16 four times what ours may be off
        assert float((actual.double() - expected.double()).abs().max()) <= (4 if dtype == torch.bfloat16 else 1) * (
            allowed * size
        )
        if momentum is None:
            assert float((actual.double() - in_double).abs().max()) <= allowed * size
    original = normalized_guidance(c, u, 6.5, None, 0.2, 0.0, True)
    paper = guidance.apg(c, u, 7.5, eta=0.2)
    assert float((paper.double() - original.double()).abs().max()) <= 4 * allowed * float(paper.double().abs().max())


def test_dims_may_be_an_iterator() -> None:
    c, u, _ = predictions(2, 3, 4)
    for x in (c, c.clone().requires_grad_()):
        found = guidance.cfg(x, u, 5.0, rescale=0.5, dims=(dim for dim in (1,)))  # type: ignore[arg-type]
        close(found.detach(), guidance.cfg(c, u, 5.0, rescale=0.5, dims=1))


@pytest.mark.frameworks
def test_norm_dims_are_those_of_diffusers() -> None:
    normalized_guidance = of_diffusers("adaptive_projected_guidance", "normalized_guidance")
    c, u, _ = predictions(2, 4, 3, 16, 17)
    for dims in (2, (-1, -2), (1, 3, 4)):
        expected = normalized_guidance(c, u, 5.0, None, 0.0, 1.5, norm_dim=dims)
        close(guidance.apg(c, u, 5.0, norm_threshold=1.5, base="uncond", dims=dims), expected)


@pytest.mark.frameworks
def test_the_other_rules_are_those_of_diffusers() -> None:
    rescale_noise_cfg = of_diffusers("guider_utils", "rescale_noise_cfg")
    cfg_zero_star_scale = of_diffusers("classifier_free_zero_star_guidance", "cfg_zero_star_scale")
    tangential_guidance = of_diffusers("tangential_classifier_free_guidance", "normalized_guidance")
    c, u, _ = predictions(3, 4, 16, 17)
    guided = u + 5 * (c - u)
    close(guidance.cfg(c, u, 5.0), guided)
    close(guidance.cfg(c, u, 5.0, rescale=0.7), rescale_noise_cfg(guided, c, 0.7))
    s = cfg_zero_star_scale(c.flatten(1), u.flatten(1)).view(3, 1, 1, 1) * u
    torch.testing.assert_close(guidance.cfg_zero_star(c, u, 5.0), s + 5 * (c - s), rtol=1e-5, atol=1e-5)
    mambo_guidance = of_diffusers("magnitude_aware_guidance", "mambo_guidance")
    flat = c.flatten(1), u.flatten(1)  # diffusers' asks torch.norm for more dimensions than it takes at once
    close(guidance.magnitude_aware(*flat, 5.0), mambo_guidance(*flat, 5.0))
    close(guidance.magnitude_aware(*flat, 6.0), mambo_guidance(*flat, 5.0, use_original_formulation=True))
    torch.testing.assert_close(guidance.tangential(c, u, 5.0), tangential_guidance(c, u, 5.0), rtol=1e-4, atol=1e-4)


def test_tangential_keeps_the_component_along_the_first_singular_vector() -> None:
    c, u, _ = predictions(3, 4, 6, 7)
    for i in range(3):
        _, _, vh = torch.linalg.svd(torch.stack([c[i].flatten(), u[i].flatten()]), full_matrices=False)
        kept = (u[i].flatten() @ vh[0] * vh[0]).view_as(u[i])
        close(guidance.tangential(c[i : i + 1], u[i : i + 1], 3.0)[0], kept + 3 * (c[i] - kept))


SAMPLES = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(0, 1000))


@settings(max_examples=60, deadline=None)
@given(SAMPLES, st.floats(-4, 16), st.floats(0, 1))
def test_apg_adds_nothing_along_the_prediction(sample: tuple[int, int, int], scale: float, eta: float) -> None:
    batch, size, seed = sample
    c, u, _ = predictions(batch, size, seed=seed)
    d = c - u
    k = (d * c).sum(1, keepdim=True) / (c * c).sum(1, keepdim=True)
    added = guidance.apg(c, u, scale, eta=eta) - (c + (scale - 1) * eta * k * c)
    torch.testing.assert_close((added * c).sum(1), torch.zeros(batch).double(), rtol=0, atol=1e-10)
    close(guidance.apg(c, u, scale, eta=1.0), guidance.cfg(c, u, scale))
    close(guidance.apg(3 * c, 3 * u, scale, eta=eta), 3 * guidance.apg(c, u, scale, eta=eta))


@settings(max_examples=30, deadline=None)
@given(SAMPLES, st.sampled_from(sorted(RULES)))
def test_samples_are_independent_and_pixels_have_no_order(sample: tuple[int, int, int], name: str) -> None:
    batch, size, seed = sample
    rule = RULES[name]
    c, u, negatives = predictions(batch, max(size, 2), seed=seed)
    together = rule(guidance, c, u, negatives)
    for i in range(batch):
        alone = rule(guidance, c[i : i + 1], u[i : i + 1], [n[i : i + 1] for n in negatives])
        assert torch.equal(together[i], alone[0])
    order = torch.randperm(c.shape[1], generator=torch.Generator().manual_seed(seed))
    close(rule(guidance, c[:, order], u[:, order], [n[:, order] for n in negatives]), together[:, order])


@every_rule
def test_layouts_and_outputs(rule: Callable[..., Tensor]) -> None:
    c, u, negatives = predictions(3, 4, 9, 10, dtype=torch.float32)
    expected = rule(guidance, c, u, negatives)
    for lay in (
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.flip(0).contiguous().flip(0),
        lambda x: torch.stack([x, x], -1)[..., 0],
    ):
        inputs = lay(c), lay(u), [lay(n) for n in negatives]
        close(rule(guidance, *inputs), expected)
        close(rule(guidance, inputs[0], u, negatives), expected)
        out = lay(torch.zeros_like(c))
        assert rule(guidance, *inputs, out=out) is out
        close(out, expected)
    for i in range(2):
        given_ = [c.clone(), u.clone(), negatives]
        version = given_[i]._version
        assert rule(guidance, *given_, out=given_[i]) is given_[i]
        assert torch.equal(given_[i], expected) and given_[i]._version > version
        assert torch.equal(given_[1 - i], (c, u)[1 - i])
    channels_last = rule(guidance, c.to(memory_format=torch.channels_last), u, negatives)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_projections(isa: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        onto, vector, _ = predictions(*shape, dtype=dtype)
        for dims in (None, 0, list(range(len(shape))), []):
            both = (m.project(vector, onto, dims=dims) for m in (guidance, reference))  # type: ignore[attr-defined]
            for actual, expected in zip(*both, strict=True):
                close(actual, expected, double=1e-12 if dims is None else 1e-6)


def test_projections_in_any_layout_by_any_number_of_threads() -> None:
    onto, vector, _ = predictions(3, 4, 90, 100, dtype=torch.float32)
    expected = torch.stack(guidance.project(vector, onto))
    for lay in (
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], -1)[..., 0],
    ):
        close(torch.stack(guidance.project(lay(vector), lay(onto))), expected)
        close(torch.stack(guidance.project(lay(vector), onto)), expected)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert torch.equal(torch.stack(guidance.project(vector, onto)), expected)
    finally:
        torch.set_num_threads(before)


@every_rule
def test_video_in_channels_last(rule: Callable[..., Tensor]) -> None:
    c, u, negatives = predictions(2, 3, 4, 5, 6, dtype=torch.float32)
    lay = {"memory_format": torch.channels_last_3d}
    guided = rule(guidance, c.to(**lay), u.to(**lay), [n.to(**lay) for n in negatives])
    assert guided.is_contiguous(memory_format=torch.channels_last_3d)
    close(guided, rule(guidance, c, u, negatives))


def test_a_negative_may_take_the_result() -> None:
    c, u, (one, other) = predictions(2, 7, dtype=torch.float32)
    expected = guidance.perp_neg(c, u, [one, other], 5.0, [0.5, 1.5])
    assert guidance.perp_neg(c, u, [one, other], 5.0, [0.5, 1.5], out=other) is other
    assert torch.equal(other, expected)


@every_rule
def test_threads_do_not_change_a_bit(rule: Callable[..., Tensor]) -> None:
    inputs = predictions(2, 100_003, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(rule(guidance, *inputs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_huge_values_keep_their_guidance(dtype: torch.dtype) -> None:
    zero, some = torch.zeros(1, 6, dtype=dtype), gaussian(1, 6, dtype=dtype)
    assert torch.equal(guidance.apg(zero, zero, 5.0, norm_threshold=1.0), zero)
    close(guidance.apg(zero, some, 5.0), (-4 * some.double()).to(dtype))  # nothing lies along zero
    assert torch.equal(guidance.tangential(zero, zero, 5.0), zero)
    assert torch.equal(guidance.cfg(zero, zero, 5.0, rescale=1.0), zero)
    close(guidance.cfg_zero_star(some, zero, 5.0), (5 * some.double()).to(dtype))
    assert torch.equal(guidance.cfg_zero_star(zero, some, 5.0), zero)
    assert torch.equal(guidance.project(some, zero)[1], some)
    for m in (guidance, reference):
        assert torch.equal(m.magnitude_aware(zero, zero, 5.0), zero)
        assert torch.equal(m.magnitude_aware(some, zero, 5.0), some)  # the difference is infinitely long beside zero
        close(m.magnitude_aware(some, zero, 5.0, alpha=0.0), (5 * some.double()).to(dtype))
    # the squares of these overflow float16
    c, u, _ = predictions(1, 1000, dtype=dtype)
    close(
        guidance.apg(300 * c, 300 * u, 1.5, norm_threshold=1000.0),
        reference.apg(300 * c, 300 * u, 1.5, norm_threshold=1000.0),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [guidance, reference], ids=["rust", "reference"])
@pytest.mark.parametrize("size", [1, 3, 5000, 300_000])
def test_constant_results_are_not_rescaled(m: Any, dtype: torch.dtype, size: int) -> None:
    c, u = torch.full((2, size), 3.7, dtype=dtype), torch.full((2, size), 1.1, dtype=dtype)
    close(m.cfg(c, u, 5.3, rescale=0.7), m.cfg(c, u, 5.3))
    buffers = MomentumBuffer(-0.3), MomentumBuffer(-0.3)
    for _ in range(2):
        options = {"eta": 0.3, "norm_threshold": 2.5, "base": "uncond"}
        rescaled = m.apg(c, u, 5.3, momentum_buffer=buffers[0], rescale=0.7, **options)
        close(rescaled, m.apg(c, u, 5.3, momentum_buffer=buffers[1], **options))
    c, u, _ = predictions(2, max(size, 2), dtype=dtype)
    flat = torch.full_like(c, 3.7)  # a constant goal takes the result's deviation to none
    assert torch.equal(m.cfg(flat, u, 5.0, rescale=1.0), torch.zeros_like(u))


def test_nan_stays_in_its_sample() -> None:
    c, u, _ = predictions(3, 50)
    c[1, 7] = torch.nan
    guided = guidance.apg(c, u, 5.0, norm_threshold=1.0)
    assert guided[1].isnan().all() and not guided[0].isnan().any() and not guided[2].isnan().any()


@every_rule
def test_empty_batches(rule: Callable[..., Tensor]) -> None:
    for shape in ((0, 4), (2, 0), (0,)):
        empty = torch.empty(shape)
        assert rule(guidance, empty, empty.clone(), [empty.clone(), empty.clone()]).shape == shape


@every_rule
def test_gradients_flow_where_they_are_asked_for(rule: Callable[..., Tensor]) -> None:
    c, u, negatives = predictions(2, 6)
    c.requires_grad_()
    u.requires_grad_()
    guided = rule(guidance, c, u, negatives)
    assert guided.requires_grad
    assert torch.autograd.gradcheck(lambda c, u: rule(guidance, c, u, negatives), [c, u])
    with torch.no_grad():
        assert not rule(guidance, c, u, negatives).requires_grad
        close(rule(guidance, c, u, negatives), guided.detach())


@pytest.mark.parametrize("value", [0.0, 2.0])
@every_rule
def test_gradients_are_finite_where_there_is_no_slope(rule: Callable[..., Tensor], value: float) -> None:
    """Where both predictions are equal, constant, or zero."""
    c, u = (torch.full((2, 6), value, requires_grad=True) for _ in range(2))
    rule(guidance, c, u, [c, u]).sum().backward()
    assert c.grad is not None and u.grad is not None and c.grad.isfinite().all() and u.grad.isfinite().all()


def test_gradients_flow_through_projections_and_momentum() -> None:
    c, u, _ = predictions(2, 6)
    assert torch.autograd.gradcheck(guidance.project, [c.requires_grad_(), u.requires_grad_()])
    buffer = MomentumBuffer(-0.5)
    guidance.apg(c, u, 5.0, momentum_buffer=buffer)
    kept = buffer.running_average
    assert kept is not None and not kept.requires_grad
    with pytest.raises(ValueError, match="dims"):
        guidance.apg(c, u, 5.0, momentum_buffer=buffer, dims=2)
    torch.testing.assert_close(kept, (c - u).detach(), rtol=0, atol=0)


def test_other_devices_use_torch() -> None:
    meta = torch.empty(2, 3, device="meta")
    assert guidance.apg(meta, meta.clone(), 5.0).device.type == "meta"
    assert guidance.project(meta, meta.clone())[0].device.type == "meta"


def test_the_buffer_is_saved_and_loaded() -> None:
    c, u, _ = predictions(2, 6)
    buffer, other = MomentumBuffer(-0.5), MomentumBuffer(0.1)
    guidance.apg(c, u, 5.0, momentum_buffer=buffer)
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(guidance.apg(u, c, 5.0, momentum_buffer=buffer), guidance.apg(u, c, 5.0, momentum_buffer=other))
    buffer.reset()
    assert buffer.running_average is None and other.running_average is not None
    assert "[2, 6]" in repr(other)


@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: x.float()], ids=["shape", "dtype"])
def test_a_buffer_of_other_predictions_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    c, u, _ = predictions(2, 6)
    buffer = MomentumBuffer(-0.5)
    guidance.apg(c, u, 5.0, momentum_buffer=buffer)
    with pytest.raises(ValueError, match=r"momentum_buffer has .*reset"):
        guidance.apg(change(c), change(u), 5.0, momentum_buffer=buffer)


CASES: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "shape": (ValueError, "uncond has shape", lambda: guidance.cfg(X, X[:1].clone(), 5.0)),
    "dtype": (ValueError, "uncond has dtype", lambda: guidance.cfg(X, X.float(), 5.0)),
    "integers": (ValueError, "cond", lambda: guidance.cfg(X.long(), X.long(), 5.0)),
    "complex": (TypeError, "complex", lambda: guidance.cfg(X.to(torch.complex64), X.to(torch.complex64), 5.0)),
    "no tensor": (TypeError, "uncond", lambda: guidance.cfg(X, 3.0, 5.0)),  # type: ignore[arg-type]
    "no batch": (ValueError, "no dimension", lambda: guidance.cfg(torch.ones(()), torch.ones(()), 5.0)),
    "scale": (ValueError, "scale", lambda: guidance.apg(X, X, float("nan"))),
    "eta": (ValueError, "eta", lambda: guidance.apg(X, X, 5.0, eta=float("inf"))),
    "threshold": (ValueError, "norm_threshold", lambda: guidance.apg(X, X, 5.0, norm_threshold=float("nan"))),
    "base": (ValueError, "base", lambda: guidance.apg(X, X, 5.0, base="both")),
    "rescale": (ValueError, "rescale", lambda: guidance.cfg(X, X, 5.0, rescale=1.5)),
    "momentum": (
        ValueError,
        "momentum",
        lambda: guidance.apg(X, X, 5.0, momentum_buffer=MomentumBuffer(float("nan"))),
    ),
    "dims": (ValueError, "dims", lambda: guidance.apg(X, X, 5.0, dims=2)),
    "dims that are none": (TypeError, "^dims is a float", lambda: guidance.cfg(X, X, 5.0, dims=1.0)),  # type: ignore[arg-type]
    "dims that are no integers": (TypeError, r"^dims\[0\] is a", lambda: guidance.cfg(X, X, 5.0, dims=[None])),  # type: ignore[list-item]
    "complex scales": (TypeError, "^scale has dtype", lambda: guidance.cfg(X, X, torch.ones(2, dtype=torch.complex64))),
    "no momentum": (
        TypeError,
        "^momentum is a NoneType",
        lambda: guidance.apg(X, X, 5.0, momentum_buffer=MomentumBuffer(None)),  # type: ignore[arg-type]
    ),
    "eta None": (TypeError, "eta", lambda: guidance.apg(X, X, 5.0, eta=None)),  # type: ignore[arg-type]
    "rescale None": (TypeError, "rescale", lambda: guidance.cfg(X, X, 5.0, rescale=None)),  # type: ignore[arg-type]
    "weights None": (TypeError, "^weights is a", lambda: guidance.perp_neg(X, X, [X], 5.0, None)),  # type: ignore[arg-type]
    "out no tensor": (TypeError, "^out is a float", lambda: guidance.cfg(X, X, 5.0, out=1.0)),  # type: ignore[arg-type]
    "out a list": (TypeError, "^out is a list", lambda: guidance.cfg(X, X, 5.0, out=[X])),  # type: ignore[arg-type]
    "no buffer": (
        TypeError,
        "^momentum_buffer is a float, expected a ferrostep.guidance.MomentumBuffer",
        lambda: guidance.apg(X, X, 5.0, momentum_buffer=-0.5),  # type: ignore[arg-type]
    ),
    "no vector": (TypeError, "^vector is a NoneType", lambda: guidance.project(None, X)),  # type: ignore[arg-type]
    "sparse": (RuntimeError, "uncond has layout", lambda: guidance.cfg(X, X.to_sparse(), 5.0)),
    "dims twice": (ValueError, "dims", lambda: guidance.apg(X, X, 5.0, dims=(1, -1))),
    "weights": (ValueError, "weights has 2", lambda: guidance.perp_neg(X, X, [X], 5.0, [1.0, 2.0])),
    "no negatives": (ValueError, "negatives has 0", lambda: guidance.perp_neg(X, X, [], 5.0, [])),
    "negatives": (ValueError, r"negatives\[0\] has shape", lambda: guidance.perp_neg(X, X, [X[:1]], 5.0, [1.0])),
    "out shape": (ValueError, "out has shape", lambda: guidance.cfg(X, X, 5.0, out=torch.zeros(2, 5).double())),
    "out overlaps itself": (
        (RuntimeError, ValueError),  # type: ignore[dict-item]
        "out",
        lambda: guidance.cfg(X, X, 5.0, out=torch.zeros(1, 1).double().expand(2, 6)),
    ),
    "out overlaps": ((RuntimeError, ValueError), "out", lambda: shifted()),  # type: ignore[dict-item]
}


G = gaussian(2, 6).requires_grad_()
CASES |= {
    "shape with gradients": (
        ValueError,
        r"uncond has shape \[2, 1\], expected \[2, 6\]",
        lambda: guidance.cfg(G, X[:, :1], 5.0),
    ),
    "dtype with gradients": (ValueError, "uncond has dtype float32", lambda: guidance.cfg(G, X.float(), 5.0)),
    "integers elsewhere": (ValueError, "cond has dtype", lambda: guidance.cfg(META.long(), META.long(), 5.0)),
    "out shape with gradients": (ValueError, "out has shape", lambda: guidance.cfg(G, X, 5.0, out=X.repeat(2, 1))),
    "out dtype elsewhere": (ValueError, "out has dtype", lambda: guidance.cfg(META, META, 5.0, out=META.float())),
    "devices": (RuntimeError, "uncond is on device cpu", lambda: guidance.cfg(META, X, 5.0)),
    "out device": (RuntimeError, "out is on device cpu", lambda: guidance.cfg(META, META, 5.0, out=X)),
    "negatives elsewhere": (RuntimeError, r"negatives\[0\]", lambda: guidance.perp_neg(META, META, [X], 5.0, [1.0])),
    "no tensor with gradients": (TypeError, "uncond is a float", lambda: guidance.cfg(G, 3.0, 5.0)),  # type: ignore[arg-type]
    "projection with gradients": (ValueError, "vector has shape", lambda: guidance.project(X[:1], G)),
    "dims with gradients": (ValueError, "dims", lambda: guidance.cfg(G, X, 5.0, dims=-3)),
    "dims twice with gradients": (ValueError, "dims", lambda: guidance.cfg(G, X, 5.0, dims=(1, -1))),
    "no batch with gradients": (ValueError, "cond has no dimension", lambda: guidance.cfg(G.sum(), X.sum(), 5.0)),
    "out is the momentum": ((RuntimeError, ValueError), "momentum_buffer", lambda: into_the_momentum("out")),  # type: ignore[dict-item]
    "cond is the momentum": ((RuntimeError, ValueError), "momentum_buffer", lambda: into_the_momentum("cond")),  # type: ignore[dict-item]
}


def into_the_momentum(role: str) -> object:
    buffer = MomentumBuffer(-0.5)
    guidance.apg(X, 2 * X, 5.0, momentum_buffer=buffer)
    assert buffer.running_average is not None
    if role == "out":
        return guidance.apg(X, 2 * X, 5.0, momentum_buffer=buffer, out=buffer.running_average)
    return guidance.apg(buffer.running_average, X, 5.0, momentum_buffer=buffer)


def shifted() -> object:
    memory = torch.zeros(13, dtype=torch.float64)
    return guidance.cfg(memory[:12].view(2, 6), X, 5.0, out=memory[1:].view(2, 6))


@pytest.mark.parametrize(("error", "message", "call"), CASES.values(), ids=CASES)
def test_bad_input(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    before = X.clone()
    with pytest.raises(error, match=message):
        call()
    assert torch.equal(X, before)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction", "sample"])
def test_denoised_predictions(prediction_type: str) -> None:
    x0, noise = gaussian(2, 3, 4), gaussian(2, 3, 4, seed=1)
    flow = prediction_type == "flow_prediction"
    sigma = 0.6
    alpha = 1 - sigma if flow else (1 - sigma**2) ** 0.5
    sample = alpha * x0 + sigma * noise
    prediction = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * x0,
        "flow_prediction": noise - x0,
        "sample": x0,
    }[prediction_type]
    how: dict[str, Any] = {"prediction_type": prediction_type, "alpha": alpha, "sigma": sigma}
    torch.testing.assert_close(guidance.to_denoised(prediction, sample, **how), x0)
    torch.testing.assert_close(guidance.from_denoised(x0, sample, **how), prediction)
    for change, message in (
        ({"sigma": None}, "^sigma is a NoneType"),
        ({"prediction": None}, "^prediction is a NoneType"),
        ({"sample": sample[:1]}, "^sample has shape"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            guidance.to_denoised(**{"prediction": prediction, "sample": sample, **how, **change})
    with pytest.raises(ValueError, match="prediction_type"):
        guidance.to_denoised(prediction, sample, prediction_type="x", sigma=1.0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@every_rule
def test_arrays(rule: Callable[..., Any], dtype: Any) -> None:
    c, u, negatives = predictions(2, 5, 7, dtype=torch.from_numpy(np.zeros(1, dtype)).dtype)
    arrays = c.numpy(), u.numpy(), [n.numpy() for n in negatives]
    expected = rule(guidance, c, u, negatives, dims=(1,)).numpy()
    actual = rule(ferrostep.numpy, *arrays, dims=(1,), num_threads=1)
    assert actual.dtype == dtype and np.array_equal(actual, expected)
    out = np.empty_like(expected)
    assert rule(ferrostep.numpy, *arrays, dims=(1,), out=out) is out and np.array_equal(out, expected)


def test_arrays_with_momentum_and_projection() -> None:
    c, u, _ = predictions(2, 5, 7)
    buffer, array = MomentumBuffer(-0.5), np.zeros((2, 5, 7))
    for _ in range(3):
        expected = guidance.apg(c, u, 5.0, momentum_buffer=buffer)
        actual = ferrostep.numpy.apg(c.numpy(), u.numpy(), 5.0, momentum=-0.5, momentum_buffer=array)
        assert np.array_equal(actual, expected.numpy())
    assert buffer.running_average is not None and np.array_equal(array, buffer.running_average.numpy())
    for one, other in zip(ferrostep.numpy.project(c.numpy(), u.numpy()), guidance.project(c, u), strict=True):
        assert np.array_equal(one, other.numpy())
    with pytest.raises(ValueError, match="momentum came without momentum_buffer"):
        ferrostep.numpy.apg(c.numpy(), u.numpy(), 5.0, momentum=-0.5)
    with pytest.raises(ValueError, match="uncond"):
        ferrostep.numpy.cfg(c.numpy(), u.numpy()[:1], 5.0)
    with pytest.raises(TypeError, match="complex"):
        ferrostep.numpy.cfg(c.numpy() + 0j, u.numpy() + 0j, 5.0)
    with pytest.raises(TypeError, match="complex"):
        ferrostep.numpy.project(c.numpy() + 0j, u.numpy() + 0j)
