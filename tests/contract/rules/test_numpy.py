"""The rules on NumPy arrays: the bits of the torch classes, in every dtype and layout, without torch."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import torch

import ferrostep.numpy
from ferrostep import _core
from ferrostep.optim import SGD, AdamW, Lion
from tests.bad_inputs.numpy_cases import CASES, SHAPE, Case
from tests.contract.subprocesses import run_python
from tests.contract.training import bits, normal

ADAMW = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
MOMENTUM = {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1}
LION = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}


class Twin(NamedTuple):
    """A function on arrays and the class of which it is the twin."""

    function: Callable[..., None]
    optimizer: Any
    states: tuple[str, ...]
    arguments: dict[str, Any]
    """Of the function."""
    options: dict[str, Any]
    """Of the class."""


TWINS = {
    "adamw": Twin(ferrostep.numpy.adamw_, AdamW, ("exp_avg", "exp_avg_sq"), ADAMW, ADAMW),
    "amsgrad": Twin(
        ferrostep.numpy.adamw_,
        AdamW,
        ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
        ADAMW,
        ADAMW | {"amsgrad": True},
    ),
    "adam": Twin(
        ferrostep.numpy.adamw_,
        AdamW,
        ("exp_avg", "exp_avg_sq"),
        ADAMW | {"decoupled_weight_decay": False, "maximize": True},
        ADAMW | {"decoupled_weight_decay": False, "maximize": True},
    ),
    "lion": Twin(ferrostep.numpy.lion_, Lion, ("exp_avg",), LION, LION),
    "sgd": Twin(ferrostep.numpy.sgd_, SGD, ("momentum_buffer",), MOMENTUM, MOMENTUM),
}
every_twin = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)


def as_numpy(tensor: torch.Tensor) -> Any:
    """A copy as an array; bfloat16 by way of ml_dtypes."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()


def data(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def call(twin: Twin, arrays: dict[str, Any], step: int, **more: Any) -> None:
    """Call the function with arrays by name."""
    positional = [arrays[name] for name in ("param", "grad", *twin.states) if name != "max_exp_avg_sq"]
    if "max_exp_avg_sq" in arrays:
        more["max_exp_avg_sq"] = arrays["max_exp_avg_sq"]
    if twin.function is not ferrostep.numpy.lion_ or "rounding" in more:
        more["step"] = step
    twin.function(*positional, **twin.arguments, **more)


def arrays_for(twin: Twin, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    param = as_numpy(normal(shape, dtype, 1))
    state = np.float32 if dtype in (torch.float16, torch.bfloat16) else param.dtype
    return {"param": param, "grad": param.copy(), **{name: np.zeros(shape, state) for name in twin.states}}


@pytest.mark.smoke
@every_twin
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(dtype, "nearest") for dtype in DTYPES]
    + [(dtype, rounding) for dtype in (torch.float16, torch.bfloat16) for rounding in ("stochastic", "kahan")],
    ids=str,
)
def test_equals_the_torch_class_to_the_bit(twin: Twin, dtype: torch.dtype, rounding: str) -> None:
    shape = (7, 19)
    arrays = arrays_for(twin, shape, dtype)
    p = torch.nn.Parameter(normal(shape, dtype, 1))
    optimizer = twin.optimizer([p], **twin.options, rounding=rounding, seed=9)
    more: dict[str, Any] = {"rounding": rounding, "seed": 9}
    if rounding == "kahan":
        more["kahan_comp"] = np.zeros(shape, arrays["param"].dtype)
    for step in range(1, 6):
        p.grad = normal(shape, dtype, 2, step)
        arrays["grad"] = as_numpy(p.grad)
        before = data(arrays["grad"])
        optimizer.step()
        call(twin, arrays, step, **more)
        assert data(arrays["grad"]) == before
        assert data(arrays["param"]) == bits(p)
        for name in twin.states:
            assert data(arrays[name]) == bits(optimizer.state[p][name]), name
    if rounding == "kahan":
        assert data(more["kahan_comp"]) == bits(optimizer.state[p]["kahan_comp"])


@every_twin
def test_split_master_weights_equal_the_torch_class_to_the_bit(twin: Twin) -> None:
    shape = (7, 19)
    arrays = arrays_for(twin, shape, torch.bfloat16)
    low = np.zeros(shape, np.int16)
    p = torch.nn.Parameter(normal(shape, torch.bfloat16, 1))
    optimizer = twin.optimizer([p], **twin.options, master_weights="split")
    for step in range(1, 6):
        p.grad = normal(shape, torch.bfloat16, 2, step)
        arrays["grad"] = as_numpy(p.grad)
        optimizer.step()
        call(twin, arrays, step, master_low=low)
    assert data(arrays["param"]) == bits(p)
    assert data(low) == bits(optimizer.state[p]["master_low"])
    before = data(arrays["param"])
    for rounding, wrong, message in (
        ("kahan", low, "excludes rounding='kahan'"),
        ("nearest", low.astype(np.int32), "master_low has dtype int32, expected int16"),
        ("nearest", low[1:], "master_low has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            call(twin, arrays, 6, master_low=wrong, rounding=rounding)
    assert data(arrays["param"]) == before


@every_twin
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_masters_and_float32_gradients_equal_the_torch_class_to_the_bit(twin: Twin, dtype: torch.dtype) -> None:
    shape = (7, 19)
    arrays = arrays_for(twin, shape, dtype)
    master = arrays["param"].astype(np.float32)
    p = torch.nn.Parameter(normal(shape, dtype, 1))
    p.grad_dtype = torch.float32
    optimizer = twin.optimizer([p], **twin.options, master_weights="float32")
    for step in range(1, 6):
        p.grad = normal(shape, torch.float32, 2, step)
        arrays["grad"] = as_numpy(p.grad)
        optimizer.step()
        call(twin, arrays, step, master_param=master)
    assert data(arrays["param"]) == bits(p)
    assert data(master) == bits(optimizer.state[p]["master_param"])
    for rounding, wrong, message in (
        ("kahan", master, "master_param rounds to the nearest and excludes rounding='kahan'"),
        ("nearest", master.astype(np.float64), "master_param has dtype float64, expected float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call(twin, arrays, 6, master_param=wrong, rounding=rounding)
    assert data(arrays["param"]) == bits(p)


def with_gaps(array: Any) -> Any:
    base = np.full([2 * size for size in array.shape], np.nan, dtype=array.dtype)
    view = base[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "gaps": with_gaps,
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "one dimension backwards": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "transposed gaps": lambda a: with_gaps(a.T).T,
}


@every_twin
@pytest.mark.parametrize("of_param", LAYOUTS)
@pytest.mark.parametrize("of_others", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_any_layout_gives_the_bits_of_the_contiguous_one(
    twin: Twin, of_param: str, of_others: str, dtype: torch.dtype
) -> None:
    expected = arrays_for(twin, (6, 5), dtype)
    arrays = {
        name: LAYOUTS[of_param if name == "param" else of_others](array.copy()) for name, array in expected.items()
    }
    for step in (1, 2):
        call(twin, expected, step)
        call(twin, arrays, step)
    for name in expected:
        assert data(arrays[name]) == data(expected[name]), name


@every_twin
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (70_000,)])
def test_any_size(twin: Twin, shape: tuple[int, ...]) -> None:
    arrays = arrays_for(twin, shape, torch.float32)
    p = torch.nn.Parameter(normal(shape, torch.float32, 1))
    p.grad = p.detach().clone()
    twin.optimizer([p], **twin.options).step()
    call(twin, arrays, 1)
    assert data(arrays["param"]) == bits(p)


@every_twin
def test_read_only_gradients_are_read(twin: Twin) -> None:
    arrays, expected = arrays_for(twin, SHAPE, torch.float32), arrays_for(twin, SHAPE, torch.float32)
    arrays["grad"].flags.writeable = False
    call(twin, arrays, 1)
    call(twin, expected, 1)
    assert data(arrays["param"]) == data(expected["param"])


@every_twin
def test_any_number_of_threads_gives_the_same_bits(twin: Twin) -> None:
    found = []
    for threads in (1, 2, 4, None):
        arrays = arrays_for(twin, (100_003,), torch.float32)
        for step in (1, 2):
            call(twin, arrays, step, num_threads=threads)
        found.append(data(arrays["param"]))
    assert found[0] == found[1] == found[2] == found[3]


f = ferrostep.numpy
THREADED: dict[str, Callable[..., object]] = {
    "adamw_": lambda a, b, c, d, **n: f.adamw_(a, b, c, d, step=1, **n),
    "apg": lambda a, b, c, d, **n: f.apg(a, b, 2.0, momentum=0.5, momentum_buffer=c, out=d, **n),
    "cfg": lambda a, b, c, d, **n: f.cfg(a, b, 2.0, out=c, **n),
    "cfg_zero_star": lambda a, b, c, d, **n: f.cfg_zero_star(a, b, 2.0, out=c, **n),
    "combine": lambda a, b, c, d, **n: f.combine([[a], [b]], [1.0, 2.0], [c], **n),
    "ema_": lambda a, b, c, d, **n: f.ema_([a], [b], 0.5, **n),
    "gram": lambda a, b, c, d, **n: f.gram([[a], [b]], **n),
    "lion_": lambda a, b, c, d, **n: f.lion_(a, b, c, **n),
    "magnitude_aware": lambda a, b, c, d, **n: f.magnitude_aware(a, b, 2.0, out=c, **n),
    "orthogonal_": lambda a, b, c, d, **n: f.orthogonal_([a], [b], **n),
    "orthogonal_combine_": lambda a, b, c, d, **n: f.orthogonal_combine_([a], [b], [c], **n),
    "orthogonalize": lambda a, b, c, d, **n: f.orthogonalize(a, out=b, **n),
    "pcgrad_": lambda a, b, c, d, **n: f.pcgrad_([[a], [b]], **n),
    "perp_neg": lambda a, b, c, d, **n: f.perp_neg(a, b, [c], 2.0, [0.5], out=d, **n),
    "project": lambda a, b, c, d, **n: f.project(a, b, **n),
    "sgd_": lambda a, b, c, d, **n: f.sgd_(a, b, c, step=1, **n),
    "tangential": lambda a, b, c, d, **n: f.tangential(a, b, 2.0, out=c, **n),
}


def test_all_functions_with_threads_are_tested() -> None:
    functions = {name: each for name in f.__all__ if callable(each := getattr(f, name))}
    with_threads = {name for name, each in functions.items() if "num_threads" in inspect.signature(each).parameters}
    assert set(THREADED) == with_threads


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (0, ValueError, "^Invalid num_threads: 0; expected 1 <= num_threads"),
        (-1, ValueError, "^Invalid num_threads: -1; expected 1 <= num_threads"),
        (1.0, TypeError, "^num_threads is a float, expected an integer$"),
        ("2", TypeError, "^num_threads is a str, expected an integer$"),
        (np.ones(2), TypeError, "^num_threads is a ndarray, expected an integer$"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", THREADED)
def test_impossible_numbers_of_threads_change_nothing(
    name: str, number: Any, error: type[Exception], message: str
) -> None:
    arrays = [as_numpy(normal(SHAPE, torch.float32, i)) for i in range(4)]
    before = [data(array) for array in arrays]
    with pytest.raises(error, match=message):
        THREADED[name](*arrays, num_threads=number)
    assert [data(array) for array in arrays] == before


@pytest.mark.parametrize("name", THREADED)
def test_possible_numbers_of_threads_give_the_same_bits(name: str) -> None:
    found = []
    for number in (None, 1, np.int64(3), 2**80):
        arrays = [np.abs(as_numpy(normal((60, 70), torch.float32, i))) for i in range(4)]
        THREADED[name](*arrays, num_threads=number)
        found.append([data(array) for array in arrays])
    assert found[1:] == 3 * found[:1]


WORKERS = """
import logging, os
os.sched_setaffinity(0, {CPUS})
messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.basicConfig(level=logging.DEBUG, handlers=[handler])
import numpy as np, ferrostep, ferrostep.numpy as f
p = np.ones(1_000_000, np.float32)
f.lion_(p, p.copy(), np.zeros_like(p))
started = [message.split()[1] for message in messages if message.startswith("starting")]
print(*started or [0], ferrostep._core.available_cpus(), ferrostep.info()["numpy_threads"])
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(ferrostep._core.available_cpus(), ferrostep.info()["numpy_threads"])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity")
@pytest.mark.parametrize("most", [1, 2])
def test_the_default_is_the_cpus_that_the_process_may_use(most: int) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:most]
    available = min(len(cpus), _core.available_cpus())
    printed = run_python(WORKERS.replace("CPUS", ", ".join(map(str, cpus)))).split()
    assert list(map(int, printed)) == [available - 1, available, available, 1, 1]


@every_twin
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_bad_input_changes_nothing(twin: Twin, case: Case) -> None:
    arrays, state = arrays_for(twin, SHAPE, torch.float32), twin.states[0]
    arrays["exp_avg"] = arrays.pop(state)  # as the cases call it
    case.spoil(arrays)
    arrays[state] = arrays.pop("exp_avg")
    message = case.message.replace("exp_avg", state)
    before = {name: data(a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
    with pytest.raises(case.error) as caught:
        call(twin, arrays, 1)
    assert {name: data(a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()} == before
    assert re.search(message, str(caught.value)), f"{caught.value!r} does not match {message!r}"


@every_twin
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("lr", -1.0, ValueError, "^Invalid lr: -1.0; expected 0.0 <= lr < inf$"),
        ("lr", float("nan"), ValueError, "^Invalid lr: nan"),
        ("lr", "1e-3", TypeError, "^lr is a str, expected a number$"),
        ("lr", None, TypeError, "^lr is a NoneType, expected a number$"),
        ("lr", np.ones(2), TypeError, "^lr is a ndarray, expected a number$"),
        ("lr", torch.ones(2), TypeError, "^lr is a Tensor, expected a number$"),
        ("betas", (0.9, 1.0), ValueError, r"^Invalid betas\[1\]: 1.0"),
        ("betas", (0.9, "x"), TypeError, r"^betas\[1\] is a str, expected a number$"),
        ("betas", 0.9, TypeError, "^betas is 0.9, expected two numbers$"),
        ("betas", (0.9, 0.9, 0.9), TypeError, r"^betas is \(0.9, 0.9, 0.9\), expected two numbers$"),
        ("weight_decay", -0.1, ValueError, "^Invalid weight_decay: -0.1"),
        ("seed", -1, ValueError, "^Invalid seed: -1; expected 0 <= seed < 18446744073709551616$"),
        ("seed", 2**64, ValueError, "^Invalid seed"),
        ("seed", 0.5, TypeError, "^seed is a float, expected an integer$"),
        ("rounding", "up", ValueError, "^rounding is .up., expected"),
    ],
)
def test_impossible_hyperparameters_change_nothing(
    twin: Twin, name: str, value: Any, error: type[Exception], message: str
) -> None:
    arrays = arrays_for(twin, SHAPE, torch.float32)
    before = {name: data(a) for name, a in arrays.items()}
    if name == "betas" and name not in twin.arguments:
        pytest.skip("the rule has no betas")
    spoiled = twin._replace(arguments=twin.arguments | {name: value})
    with pytest.raises(error, match=message):
        call(spoiled, arrays, 1)
    assert {name: data(a) for name, a in arrays.items()} == before


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (0, ValueError, "^Invalid step: 0; expected 1 <= step"),
        (-1, ValueError, "^Invalid step: -1"),
        (2**63, ValueError, "^Invalid step"),
        (1.0, TypeError, "^step is a float, expected an integer$"),
        ("1", TypeError, "^step is a str, expected an integer$"),
    ],
)
def test_steps_count_from_one(step: Any, error: type[Exception], message: str) -> None:
    arrays = arrays_for(TWINS["adamw"], SHAPE, torch.float32)
    before = data(arrays["param"])
    with pytest.raises(error, match=message):
        call(TWINS["adamw"], arrays, step)
    assert data(arrays["param"]) == before


@every_twin
def test_kahan_needs_its_buffer(twin: Twin) -> None:
    arrays = arrays_for(twin, SHAPE, torch.bfloat16)
    before = data(arrays["param"])
    with pytest.raises(ValueError, match="kahan"):
        call(twin, arrays, 1, rounding="kahan")
    assert data(arrays["param"]) == before


@every_twin
def test_tensors_are_welcome_where_torch_is(twin: Twin) -> None:
    arrays = arrays_for(twin, SHAPE, torch.float32)
    tensors = {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}
    call(twin, arrays, 1)
    call(twin, tensors, 1)
    assert data(arrays["param"]) == bits(tensors["param"])


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not installed")
sys.meta_path.insert(0, Refuse())
import ml_dtypes, numpy as np
import ferrostep, ferrostep.numpy
assert ferrostep.__version__
for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.complex64):
    p, g = np.ones(100_000, dtype), np.full(100_000, 0.5, dtype)
    m, v = np.zeros_like(p), np.zeros_like(p)
    ferrostep.numpy.adamw_(p, g, m, v, step=1, lr=0.125)
    ferrostep.numpy.lion_(p, g, m, lr=0.125)
    assert abs(p[-1].real - 0.74875) < 5e-3, (dtype, p[-1])
try:
    ferrostep.numpy.lion_(p, g[:3], m)
except ValueError as error:
    assert str(error).startswith("grad has shape [3")
else:
    raise AssertionError
assert "torch" not in sys.modules
print("fine")
"""


@pytest.mark.smoke
def test_works_where_torch_cannot_be_imported() -> None:
    assert run_python(WITHOUT_TORCH).strip() == "fine"


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_works_after_a_fork_without_torch() -> None:
    code = (
        "import os, numpy as np, ferrostep.numpy as f\n"
        "def run():\n"
        "    p = np.ones(200_000, np.float32); f.lion_(p, p.copy(), np.zeros_like(p), num_threads=2); return p[-1]\n"
        "first = run(); pid = os.fork(); second = run()\n"
        "assert first == second\n"
        "pid and os.waitpid(pid, 0)[1] == 0 or os._exit(0)\n"
        "print('fine')"
    )
    try:
        assert run_python(code).strip() == "fine"
    except subprocess.TimeoutExpired:
        pytest.fail("the child hangs")
