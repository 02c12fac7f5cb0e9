"""Gradients of another dtype than their parameters, and 16-bit parameters that are float32 masters rounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import Parameter

from ferrostep import _core
from tests.conftest import ISAS
from tests.contract.rules.registry import Entry, every_class, every_near_the_reference, every_that_subtracts
from tests.contract.snapshot import Snapshot
from tests.contract.training import (
    assert_same_bits,
    bits,
    copies,
    normal,
    parameters,
    set_gradients,
    train,
    train_beside_float32,
)

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
STEPS = 5

over_backends = pytest.mark.parametrize("backend", ["rust", "reference"])
over_dtypes = pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=["bf16", "f16"])


@pytest.fixture(params=[*ISAS, "reference"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend: Rust's on each instruction set, and plain torch."""
    if request.param == "reference":
        yield "reference"
        return
    if request.param not in _core.supported_isas():
        pytest.skip(f"this CPU does not have {request.param}")
    before = _core.isa()
    _core.use_isa(request.param)
    yield "rust"
    _core.use_isa(before)


def set_gradients_in(dtype: torch.dtype, params: list[Parameter], step: int) -> None:
    """Gradients of a step, rounded to a dtype that need not be the parameters'."""
    for i, p in enumerate(params):
        p.grad = None
        p.grad_dtype = dtype
        p.grad = torch.empty_like(p, dtype=dtype).copy_(normal(p.shape, dtype, 1, step, i)).detach()


@every_near_the_reference
@over_dtypes
def test_a_gradient_of_another_dtype_counts_as_what_it_is(entry: Entry, dtype: torch.dtype, way: str) -> None:
    """Bit for bit: it is widened, and no copy of it shows."""
    params, others = parameters(entry.shapes), parameters(entry.shapes)
    mixed, ours = (entry.build(each, backend=way) for each in (params, others))
    for step in range(STEPS):
        set_gradients_in(dtype, params, step)
        for p, q in zip(params, others, strict=True):
            q.grad = p.grad.float()
        mixed.step()
        ours.step()
    assert_same_bits(mixed, ours)
    assert all(p.grad.dtype == dtype for p in params)


@every_class
@over_dtypes
def test_16_bit_parameters_take_float32_gradients(entry: Entry, dtype: torch.dtype, way: str) -> None:
    """Also with a state of their own dtype, whose kernels take the elements in another order."""
    params, others = parameters(entry.shapes, dtype), parameters(entry.shapes, dtype)
    options = {"state_dtype": dtype, "rounding": "kahan", "backend": way}
    mixed, ours = (entry.build(each, **options) for each in (params, others))
    for step in range(STEPS):
        set_gradients(others, step)
        for p, q in zip(params, others, strict=True):
            p.grad, p.grad_dtype = None, torch.float32
            p.grad = q.grad.float()
        mixed.step()
        ours.step()
    assert_same_bits(mixed, ours)


@every_class
@pytest.mark.parametrize(
    ("dtype", "of_gradient"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=["f32", "f64"]
)
@over_backends
def test_a_gradient_with_another_arithmetic_is_refused(
    entry: Entry, dtype: torch.dtype, of_gradient: torch.dtype, backend: str, boundary: str
) -> None:
    params = parameters(entry.shapes, dtype)
    optimizer = entry.build(params, backend=backend)
    train(optimizer, params, 1)
    set_gradients(params[:1], 1)
    set_gradients_in(of_gradient, params[1:2], 1)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"grad of parameter 1 in group 0 has dtype .*float\d\d, expected .*float\d\d"):
        optimizer.step()
    before.assert_unchanged()


@every_class
def test_a_nan_is_found_in_gradients_of_another_dtype(entry: Entry) -> None:
    params = parameters(entry.shapes)
    optimizer = entry.build(params, skip_nonfinite=True)
    set_gradients_in(torch.bfloat16, params, 0)
    params[0].grad[-1] = float("nan")
    before = Snapshot(optimizer)
    optimizer.step()
    before.assert_unchanged()
    params[0].grad[-1] = 1.0
    optimizer.step()
    assert bits(params[0]) != bits(parameters(entry.shapes)[0])


@every_near_the_reference
@over_dtypes
def test_parameters_are_their_masters_rounded(entry: Entry, dtype: torch.dtype, way: str) -> None:
    """And the masters are what float32 parameters would be, bit for bit."""
    rounded = parameters(entry.shapes, dtype)
    whole = [Parameter(p.detach().float()) for p in rounded]
    ours = entry.build(rounded, lr=1e-6, master_weights="float32", backend=way)
    other = entry.build(whole, lr=1e-6, backend=way)
    train_beside_float32(ours, rounded, other, whole, STEPS)
    for p, q in zip(rounded, whole, strict=True):
        assert bits(ours.state[p]["master_param"]) == bits(q)
        assert bits(p) == bits(q.to(dtype))


@every_that_subtracts
def test_what_is_written_over_a_parameter_stands(entry: Entry, way: str) -> None:
    """As when a checkpoint is loaded; all others keep their masters."""
    (p,) = params = parameters([(1000,)], torch.float16)
    optimizer = entry.build(params, lr=1e-6, master_weights="float32", backend=way)
    train(optimizer, params, 2)
    before = optimizer.state[p]["master_param"].clone()
    with torch.no_grad():
        p[:100], p[100:200], p[200:300], p[300:400] = 0.0, float("inf"), float("nan"), -p[300:400]
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    train(optimizer, params, 1)
    after = optimizer.state[p]["master_param"]
    assert (after[:100] == 0).all() and (p[:100] == 0).all()
    assert (after[100:200] == float("inf")).all()
    assert after[200:300].isnan().all() and p[200:300].isnan().all()
    assert torch.equal(after[300:400], -before[300:400].half().float())
    assert torch.equal(after[400:], before[400:])


@every_that_subtracts
def test_a_master_beyond_the_range_comes_back(entry: Entry, way: str) -> None:
    """The float16 parameter is infinite meanwhile; its master is not."""
    p = Parameter(torch.tensor([60000.0, -60000.0], dtype=torch.float16))
    without_memory = {"betas": (0.0, 0.0), "momentum": 0.0, "alpha": 0.0}
    own = {name: value for name, value in without_memory.items() if name in entry.arguments}
    optimizer = entry.build([p], lr=10000.0, weight_decay=0.0, **own, master_weights="float32", backend=way)
    p.grad = torch.tensor([-1.0, 1.0], dtype=torch.float16)
    optimizer.step()
    assert p.isinf().all() and optimizer.state[p]["master_param"].isfinite().all()
    p.grad.neg_()
    optimizer.step()
    assert p.isfinite().all()


@every_class
def test_masters_do_not_depend_on_the_number_of_threads(entry: Entry) -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        params = parameters([(400, 300)], torch.bfloat16)
        optimizer = entry.build(
            params, master_weights="float32", **({} if entry.exact else {"ns_precision": "float64"})
        )
        train(optimizer, params, 2)
        results.append(copies(optimizer))
    assert_same_bits(*results)


@every_class
def test_masters_and_checkpoints_without_them_go_together(entry: Entry) -> None:
    """Those that a checkpoint lacks are made of the parameters; those that it has too many stay behind."""
    params = parameters(entry.shapes, torch.bfloat16)
    bare = entry.build(params)
    train(bare, params, 2)
    with_masters = entry.build(params, master_weights="float32")
    saved = bare.state_dict()
    with_masters.load_state_dict({**saved, "param_groups": with_masters.state_dict()["param_groups"]})
    train(with_masters, params, 1)
    for p in params:
        assert bits(with_masters.state[p]["master_param"].bfloat16()) == bits(p)
    saved = with_masters.state_dict()
    bare.load_state_dict({**saved, "param_groups": bare.state_dict()["param_groups"]})
    train(bare, params, 1)


@every_class
def test_masters_have_no_effect_on_float32(entry: Entry) -> None:
    results = []
    for masters in (None, "float32"):
        params = parameters(entry.shapes)
        optimizer = entry.build(params, master_weights=masters)
        train(optimizer, params, 3)
        assert not any("master_param" in optimizer.state[p] for p in params)
        results.append([bits(p) for p in params])
    assert results[0] == results[1]


@every_class
@pytest.mark.parametrize("master", [torch.zeros(3), torch.zeros((5, 8), dtype=torch.float64)], ids=["shape", "dtype"])
@over_backends
def test_a_wrong_master_is_refused(entry: Entry, master: torch.Tensor, backend: str) -> None:
    params = parameters([(5, 8)], torch.bfloat16)
    optimizer = entry.build(params, master_weights="float32", backend=backend)
    train(optimizer, params, 1)
    optimizer.state[params[0]]["master_param"] = master
    set_gradients(params, 1)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"master_param of parameter 0 in group 0 has (shape|dtype)"):
        optimizer.step()
    before.assert_unchanged()
