"""STORM and HARPG: the papers' numbers, the two points of their gradients, and what may not be asked of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ferrostep.optim import NIGT, STORM
from tests.contract.rules.test_interrupts import Interrupts, places
from tests.contract.rules.test_nigt import B, H, every_backend
from tests.contract.training import assert_close, assert_same_bits, bits, copies, parameters, train

every_correction = pytest.mark.parametrize("correction", ["difference", "hessian"])


def quadratic(x: Tensor) -> Tensor:
    return x @ H @ x / 2 - B @ x


def quartic(x: Tensor) -> Tensor:
    return quadratic(x) + (x**4).sum() / 4


def gradient_of(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(loss(x), x)
    return found


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def descend(
    steps: int, loss: Callable[[Tensor], Tensor] = quadratic, fractions: tuple[float, ...] = (), **arguments: Any
) -> tuple[Tensor, list[Tensor], STORM]:
    """So many steps from (1, 2): the end, of each step the momentum less the gradient at x, and the optimizer."""
    x = Parameter(vector(1.0, 2.0))
    optimizer = STORM([x], **arguments)
    errors = []
    for step in range(steps):
        if fractions:
            optimizer._fraction = lambda step=step: fractions[step]  # type: ignore[method-assign]
        gradient = gradient_of(loss, x)
        optimizer.step(lambda: loss(x))
        errors.append(optimizer.state[x]["momentum_buffer"] - gradient)
    return x.detach(), errors, optimizer


@every_backend
@every_correction
def test_with_the_schedule_of_n_harpg(correction: Any, backend: str) -> None:
    """Gradients of a quadratic are exact, and so x is N-PG-IGT's."""
    x, errors, _ = descend(5, lr=0.1, schedule="n-harpg", correction=correction, backend=backend)
    torch.testing.assert_close(x, vector(0.861229762502, 1.74540586045), rtol=1e-10, atol=0)
    assert max(error.abs().max() for error in errors) < 1e-14


@every_backend
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@every_correction
def test_goes_nigts_way_on_a_quadratic(correction: Any, weight_decay: float, backend: str) -> None:
    x, errors, _ = descend(3, lr=0.1, weight_decay=weight_decay, correction=correction, backend=backend)
    expected = vector(0.725854075767, 1.46179266581) if weight_decay else vector(0.855895524169, 1.73691438475)
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=0)
    assert max(error.abs().max() for error in errors) < 1e-14


@every_backend
@pytest.mark.parametrize(
    ("correction", "x", "errors"),
    [
        ("hessian", (0.922765629698, 1.72049606887), (0, 0.0073526628, 0.0056401637, 0.0026508368, 0.0017766677)),
        ("difference", (0.922758058022, 1.72049815881), (0, 0, 0, 0, 0)),
    ],
)
def test_a_quartic(correction: Any, x: Any, errors: Any, backend: str) -> None:
    fractions = (0.0, 0.7, 0.1, 0.9, 0.5)
    arguments = {"lr": 0.1, "schedule": "n-harpg", "correction": correction, "backend": backend}
    found, differences, _ = descend(5, quartic, fractions, **arguments)
    torch.testing.assert_close(found, vector(*x), rtol=1e-10, atol=0)
    norms = torch.stack([error.norm() for error in differences])
    torch.testing.assert_close(norms, vector(*errors), rtol=1e-6, atol=1e-14)


@every_backend
def test_the_papers_schedule(backend: str) -> None:
    arguments = {"lr": 0.1, "normalize": False, "schedule": "storm", "w": 0.1, "c": 10.0, "backend": backend}
    rates, shares = (0.0393998057809, 0.0319937487930, 0.0284818428732), (0.0155234469557, 0.0102359996183)
    for steps in (1, 2, 3):
        x, errors, optimizer = descend(steps, **arguments)
        (group,) = optimizer.param_groups
        assert 0.1 / (0.1 + group["squares"]) ** (1 / 3) == pytest.approx(rates[steps - 1], rel=1e-10)
        if steps < 3:
            assert optimizer.rule(group).hyperparameters["eta"] == pytest.approx(shares[steps - 1], rel=1e-10)
        assert max(error.abs().max() for error in errors) < 1e-14
    torch.testing.assert_close(x, vector(0.818695855848, 1.66499418012), rtol=1e-10, atol=0)


def test_harpg_is_not_normalized() -> None:
    x, _, _ = descend(1, lr=0.1, normalize=False, schedule="harpg", correction="hessian")
    torch.testing.assert_close(x, vector(0.8, 1.65), rtol=1e-12, atol=0)
    x, _, _ = descend(2, lr=0.1, normalize=False, schedule="harpg", correction="hessian")
    second = vector(0.8, 1.65) - 0.1 * (2 / 3) ** 0.5 * (H @ vector(0.8, 1.65) - B)
    torch.testing.assert_close(x, second, rtol=1e-12, atol=0)


VARIANTS: dict[str, dict[str, Any]] = {
    "normalized": {"max_grad_norm": float("inf")},  # which only measures
    "per tensor": {"scope": "tensor", "correction": "hessian"},
    "plain": {"normalize": False, "momentum": 0.5, "maximize": True},
    "adaptive": {"normalize": False, "schedule": "storm"},
}
every_variant = pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)


def storm(params: Any, **arguments: Any) -> STORM:
    return STORM(params, **{"lr": 0.03, "weight_decay": 0.1, **arguments})


def closure_of(params: list[Parameter]) -> Callable[[], Tensor]:
    """A quartic, of which gradients differ from point to point."""
    return lambda: sum((p**4 / 4 + p**2 * (i + 1)).sum() for i, p in enumerate(params))


def steps(optimizer: STORM, params: list[Parameter], count: int) -> None:
    for _ in range(count):
        optimizer.step(closure_of(params))


def in_two_phases(optimizer: STORM, params: list[Parameter], count: int) -> None:
    closure = closure_of(params)
    for _ in range(count):
        with optimizer.other_point():
            optimizer.transport(closure())
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()


SHAPES = ((300,), (5, 7), ())


@every_variant
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=["f32", "f64"])
def test_both_forms_agree(arguments: Any, dtype: torch.dtype, relative: float, isa: str) -> None:
    ours, theirs = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    optimizer, other = storm(ours, **arguments), storm(theirs, **arguments, backend="reference")
    for each, params in ((optimizer, ours), (other, theirs)):
        steps(each, params, 3)
    assert_close(optimizer, other, relative, least_size=1.0)


@every_variant
def test_both_interfaces_are_one(arguments: Any) -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    optimizer, other = storm(ours, **arguments), storm(theirs, **arguments)
    steps(optimizer, ours, 3)
    in_two_phases(other, theirs, 3)
    assert_same_bits(optimizer, other)
    assert [bits(p.grad) for p in ours] == [bits(p.grad) for p in theirs]


@every_variant
@pytest.mark.parametrize("between", [False, True], ids=["after a step", "after a transport"])
def test_a_checkpoint_goes_on_bit_for_bit(arguments: Any, between: bool) -> None:
    params, others = parameters(SHAPES), parameters(SHAPES)
    optimizer, other = storm(params, **arguments), storm(others, **arguments)
    steps(optimizer, params, 2)
    if between:
        transport(optimizer, closure_of(params))
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    saved = copy.deepcopy(optimizer.state_dict())
    assert all(("transport" in state) == between for state in saved["state"].values())
    other.load_state_dict(saved)
    for each, own in ((optimizer, params), (other, others)):
        if between:
            each.zero_grad()
            closure_of(own)().backward()
            each.step()
        else:
            steps(each, own, 1)
        steps(each, own, 1)
    assert_same_bits(optimizer, other)
    assert other.param_groups[0]["steps"] == 4


@every_correction
def test_the_point_before_is_recovered_and_x_is_back_with_every_bit(correction: Any, isa: str) -> None:
    params = parameters(SHAPES)
    params[1].data = params[1].data.t().contiguous().t()
    optimizer = storm(params, correction=correction)
    optimizer._fraction = lambda: 0.0  # type: ignore[method-assign]
    steps(optimizer, params, 1)
    before = [p.detach().clone() for p in params]
    steps(optimizer, params, 1)
    at_x = [bits(p) for p in params]
    with optimizer.other_point():
        for p, old in zip(params, before, strict=True):
            torch.testing.assert_close(p.detach(), old, rtol=1e-6, atol=1e-6)
        assert at_x != [bits(p) for p in params]
    assert at_x == [bits(p) for p in params]


def test_the_random_point_is_of_seed_and_step() -> None:
    def points(seed: int) -> list[float]:
        params = parameters(SHAPES)
        optimizer = storm(params, correction="hessian", seed=seed)
        found = []
        for _ in range(4):
            steps(optimizer, params, 1)
            found.append(optimizer._fraction())
        return found

    numbers = torch.get_rng_state()
    first = points(0)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert first == points(0) and set(first).isdisjoint(points(1)) and len(set(first)) == 4
    assert all(0 <= q < 1 for q in first)


@every_correction
def test_dropout_repeats(correction: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    masks: list[Tensor] = []
    model[1].register_forward_hook(lambda _module, _inputs, output: masks.append(output == 0))
    optimizer = storm(model.parameters(), correction=correction)
    x = torch.randn(4, 6)
    for _ in range(3):
        optimizer.step(lambda: model(x).square().mean())
    assert [len(masks), torch.equal(masks[1], masks[2]), torch.equal(masks[3], masks[4])] == [5, True, True]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[2], masks[3])


def test_the_momentum_is_the_gradient_whatever_joins_and_leaves() -> None:
    """Of a sum of quadratics, each of one parameter, whether its batch is there or not."""
    params = [Parameter(vector(1.0, 2.0 + i)) for i in range(3)]
    optimizer = storm([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}], lr=0.1)
    for step in range(9):
        stepped = [p for i, p in enumerate(params) if step >= i and (i != 1 or step % 3)]
        expected = [gradient_of(quadratic, p) for p in stepped]
        others = [bits(p) for p in params if p not in set(stepped)]
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        optimizer.step(lambda stepped=stepped: sum(map(quadratic, stepped)))
        assert others == [bits(p) for p in params if p not in set(stepped)]
        for p, gradient in zip(stepped, expected, strict=True):
            torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], gradient, rtol=1e-12, atol=1e-12)
            assert torch.equal(p.grad, gradient)


def test_the_noise_is_that_of_an_average() -> None:
    """Of gradients x + n the momentum is x but for an average of n, whatever way x has gone: here in 2000 chains."""
    x = Parameter(torch.zeros(2000, dtype=torch.float64))
    optimizer = STORM([x], lr=0.05, normalize=False)
    noise = torch.Generator().manual_seed(0)
    for _ in range(100):
        n, at = torch.randn(2000, dtype=torch.float64, generator=noise), x.detach().clone()
        optimizer.step(lambda n=n: (x**2 / 2 + n * x).sum())
    error = (optimizer.state[x]["momentum_buffer"] - at).square().mean().sqrt().item()
    assert error == pytest.approx((0.1 / (2 - 0.1)) ** 0.5, rel=0.05)


@every_correction
def test_micro_batches_add_up(correction: Any) -> None:
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer, other = storm(ours, correction=correction), storm(theirs, correction=correction)
    for _ in range(3):
        with optimizer.other_point():
            for part in (0.25, 0.75):
                optimizer.transport(closure_of(ours)() * part)
        optimizer.zero_grad()
        closure_of(ours)().backward()
        optimizer.step()
        steps(other, theirs, 1)
    assert_close(optimizer, other, 1e-12)


def test_parameters_whose_gradients_are_one_tensor() -> None:
    """As the sum of two views has them: their transports are two."""
    both = [parameters([(6,), (2, 3)]) for _ in range(2)]
    optimizers = [storm(params) for params in both]
    for optimizer, (a, b), apart in zip(optimizers, both, (False, True), strict=True):

        def loss(a: Tensor = a, b: Tensor = b, apart: bool = apart) -> Tensor:
            flat = b.view(-1)
            return ((a.view(-1) + (flat * 1 if apart else flat)) ** 4).sum()

        optimizer.step(loss)
        with optimizer.other_point():
            for _ in range(2):
                optimizer.transport(loss())
        optimizer.step()
    assert_same_bits(*optimizers)


@every_correction
@pytest.mark.parametrize("masters", ["split", "float32"])
def test_16_bit_parameters_with_masters_are_float32_ones_rounded(correction: Any, masters: Any) -> None:
    params = parameters(SHAPES, torch.bfloat16)
    whole = [Parameter(p.detach().float()) for p in params]
    optimizer = storm(params, correction=correction, master_weights=masters)
    other = storm(whole, correction=correction)
    for _ in range(3):
        steps(optimizer, params, 1)
        before = copies(optimizer)
        with optimizer.other_point():
            pass
        assert_same_bits(optimizer, before)
        steps(other, whole, 1)
    for p, q in zip(params, whole, strict=True):
        torch.testing.assert_close(p.detach().float(), q.detach(), rtol=2**-6, atol=2**-6)


@every_correction
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_transport_becomes_the_momentum_where_both_are_of_one_dtype(
    correction: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit what a momentum is that has memory of its own."""
    masters: Any = "float32" if dtype == torch.bfloat16 else None
    ours, theirs = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    optimizer, other = (storm(own, correction=correction, master_weights=masters) for own in (ours, theirs))
    steps(optimizer, ours, 1)
    transport(optimizer, closure_of(ours))
    transports = [optimizer.state[p]["transport"] for p in ours]
    closure_of(ours)().backward()
    optimizer.step()
    is_one = [optimizer.state[p]["momentum_buffer"] is x for p, x in zip(ours, transports, strict=True)]
    assert is_one == [dtype == torch.float32] * len(ours)

    monkeypatch.setattr("ferrostep.optim.storm.with_carried_momentum", lambda gathered: gathered)
    steps(other, theirs, 1)
    transport(other, closure_of(theirs))
    closure_of(theirs)().backward()
    other.step()
    assert_same_bits(optimizer, other)


def test_a_momentum_of_codes() -> None:
    """The point before is that of the numbers that codes stand for."""
    params = parameters([(64, 80)])
    optimizer = storm(params, lr=1.0, weight_decay=0.0, state_dtype="int8")
    steps(optimizer, params, 2)
    assert optimizer.state[params[0]]["momentum_buffer"].dtype == torch.uint8
    before = params[0].detach().clone()
    with optimizer.other_point():
        moved = (params[0].detach() - before).norm().item()
    assert moved == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize(
    ("correction", "supervised", "dtype"), [("difference", False, torch.float32), ("hessian", True, torch.bfloat16)]
)
def test_an_interrupt_leaves_the_parameters_with_every_bit_or_a_whole_step(
    correction: Any, supervised: bool, dtype: torch.dtype
) -> None:
    def build() -> tuple[STORM, list[Parameter]]:
        params = parameters([(5,), (2, 3)], dtype)
        groups = [{"params": params[:1]}, {"params": params[1:], "backend": "reference"}]
        masters: Any = "split" if dtype == torch.bfloat16 else None
        optimizer = storm(groups, correction=correction, master_weights=masters)
        steps(optimizer, params, 2)
        return optimizer, params

    run = steps if supervised else in_two_phases
    counting = Interrupts()
    counted = build()
    counting.run(lambda: run(*counted, 1))
    expected = counted[0]
    seen = set()
    for at in places(counting.passed)[::2]:
        optimizer, params = build()
        before = copies(optimizer)
        with suppress(KeyboardInterrupt):
            Interrupts(at).run(lambda: run(optimizer, params, 1))  # noqa: B023
        now = {name: x for name, x in copies(optimizer).items() if not name.endswith("transport")}
        seen.add(optimizer.param_groups[0]["steps"])
        has_stepped = not torch.equal(now["0.0.momentum_buffer"], before["0.0.momentum_buffer"])
        assert_same_bits(now, expected if has_stepped else before)
        if not has_stepped:
            run(optimizer, params, 1)
            assert_same_bits(optimizer, expected)
    assert seen == {2, 3}


@every_correction
def test_an_error_in_the_closure_leaves_all_as_it_was(correction: Any) -> None:
    params = parameters(SHAPES)
    optimizer = storm(params, correction=correction)
    steps(optimizer, params, 2)
    before, gradients = copies(optimizer), [bits(p.grad) for p in params]
    for wrong in (1, 2):
        calls: list[None] = []

        def closure(calls: list[None] = calls, wrong: int = wrong) -> Tensor:
            calls.append(None)
            if len(calls) == wrong:
                raise KeyError("mine")
            return closure_of(params)()

        with pytest.raises(KeyError, match="mine"):
            optimizer.step(closure)
        assert_same_bits(optimizer, before)
        assert [bits(p.grad) for p in params] == gradients


def backward(params: list[Parameter]) -> Tensor:
    loss = closure_of(params)()
    loss.backward()
    return loss


def within(optimizer: STORM, call: Callable[[], Any]) -> None:
    with optimizer.other_point():
        call()


def transport(optimizer: STORM, loss: Any) -> None:
    within(optimizer, lambda: optimizer.transport(loss))


MISUSES: dict[str, tuple[Callable[[STORM, list[Parameter]], Any], type[Exception], str]] = {
    "forgotten": (lambda optimizer, _: optimizer.step(), RuntimeError, "parameter 0 in group 0 has no transport"),
    "outside": (lambda optimizer, params: optimizer.transport(closure_of(params)()), RuntimeError, "outside of other_"),
    "twice": (
        lambda optimizer, _: within(optimizer, lambda: within(optimizer, list)),
        RuntimeError,
        "entered within other_point",
    ),
    "step within": (
        lambda optimizer, _: within(optimizer, optimizer.step),
        RuntimeError,
        "step was called within other_point",
    ),
    "no scalar": (lambda optimizer, params: transport(optimizer, params[0] * 2), ValueError, r"shape \[300\], expec"),
    "no graph": (lambda optimizer, _: transport(optimizer, torch.ones(())), RuntimeError, "the loss has no graph"),
    "no loss": (lambda optimizer, _: optimizer.step(lambda: 1.0), ValueError, "the loss is a float"),
    "backward": (lambda optimizer, params: optimizer.step(lambda: backward(params)), RuntimeError, "called backward"),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_misuses_change_nothing(misuse: Any) -> None:
    use, error, message = misuse
    params = parameters(SHAPES)
    optimizer = storm(params)
    steps(optimizer, params, 2)
    before = copies(optimizer)
    with pytest.raises(error, match=message):
        use(optimizer, params)
    assert_same_bits(optimizer, before)
    steps(optimizer, params, 1)


def test_a_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = storm(embedding.parameters())
    embedding.weight.grad = torch.ones(5, 3)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"a gradient at the other point has layout torch\.sparse_coo"):
        optimizer.step(lambda: embedding(torch.tensor([1, 2])).sum())


def test_a_transport_that_is_not_finite_skips_the_step() -> None:
    for arguments in VARIANTS.values():
        params = parameters(SHAPES)
        optimizer = storm(params, skip_nonfinite=True, **arguments)
        steps(optimizer, params, 1)
        before = copies(optimizer)
        with optimizer.other_point():
            optimizer.transport(closure_of(params)() * float("nan"))
        optimizer.zero_grad()
        closure_of(params)().backward()
        optimizer.step()
        assert_same_bits(optimizer, before)
        with pytest.raises(RuntimeError, match="has no transport"):
            optimizer.step()


IMPOSSIBLE: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"momentum": 1.0}, ValueError, "Invalid momentum value: 1.0"),
    ({"correction": "hvp"}, ValueError, "Invalid correction: 'hvp'; expected 'difference' or 'hessian'"),
    ({"scope": "all"}, ValueError, "Invalid scope: 'all'"),
    ({"schedule": "igt"}, ValueError, "Invalid schedule: 'igt'"),
    ({"schedule": "harpg"}, ValueError, "Invalid normalize: True; expected False"),
    ({"schedule": "n-harpg", "normalize": False}, ValueError, "Invalid normalize: False; expected True"),
    ({"schedule": "storm", "normalize": False, "scope": "tensor"}, ValueError, "Invalid scope: 'tensor'"),
    ({"w": 0.0}, ValueError, "Invalid w value: 0.0"),
    ({"c": -1.0}, ValueError, "Invalid c value: -1.0"),
    ({"max_grad_norm": 1.0}, ValueError, "Invalid max_grad_norm value: 1.0; expected None, or correction='hessian'"),
    ({"lr": 2.0, "weight_decay": 0.5}, ValueError, r"Invalid lr \* weight_decay: 1.0"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), IMPOSSIBLE, ids=str)
def test_impossible_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        STORM(parameters([(3,)]), **{"lr": 0.1, **arguments})


def test_impossible_parameters_and_groups() -> None:
    with pytest.raises(ValueError, match=r"parameter 0 has dtype torch\.bfloat16, expected float32 or float64, or"):
        storm(parameters([(3,)], torch.bfloat16))
    with pytest.raises(RuntimeError, match="correction='hessian' does not support complex parameters"):
        storm(parameters([(3,)], torch.complex64), correction="hessian")
    with pytest.raises(ValueError, match="normalize is one for all groups: got False, expected True"):
        STORM([{"params": parameters([(3,)])}, {"params": parameters([(2,)]), "normalize": False}], lr=0.1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda params: NIGT(params, lr=0.1), "state of parameter 0 has eta: it is another rule's"),
        (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), "state of parameter 0 has no of_param, of_mom"),
        (lambda params: torch.optim.AdamW(params), "has step, exp_avg, exp_avg_sq, but no momentum_buffer"),
    ],
    ids=["NIGT", "SGD", "AdamW"],
)
def test_a_checkpoint_of_another_rule_is_refused(other: Any, message: str) -> None:
    params = parameters([(3,)])
    theirs = other(params)
    train(theirs, params, 1)
    optimizer = storm(params)
    with pytest.raises(KeyError, match=message):
        optimizer.load_state_dict(theirs.state_dict())
    assert not optimizer.state


@pytest.mark.parametrize("power", [-40, 50])
def test_the_path_does_not_depend_on_the_losss_scale(power: int, isa: str) -> None:
    paths = []
    for scale in (1.0, 2.0**power):
        params = parameters(SHAPES)
        optimizer = storm(params, weight_decay=0.0)
        for _ in range(4):
            optimizer.step(lambda params=params, scale=scale: closure_of(params)() * scale)
        paths.append([bits(p) for p in params])
    assert paths[0] == paths[1]
