"""What is no problem, or no start, is refused by its name, in both twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ferrostep.gradients
import ferrostep.numpy
from tests.contract.solvers.registry import MIN_NORM, UPGRAD, Entry, every_solver

GOOD = np.array([[2.0, -0.5], [-0.5, 1.0]])
HALVES = [0.5, 0.5]

CASES: dict[str, tuple[type[Exception], str, Any, dict[str, Any]]] = {
    "not square": (ValueError, r"^gram has shape \[2, 3\], expected a square matrix", np.ones((2, 3)), {}),
    "a vector": (ValueError, r"^gram has shape \[3\], expected a square matrix", np.ones(3), {}),
    "empty": (ValueError, r"^gram has shape \[0, 0\], expected a square matrix", np.ones((0, 0)), {}),
    "NaN": (ValueError, "^gram has NaN or infinity", np.full((2, 2), np.nan), {}),
    "infinity": (ValueError, "^gram has NaN or infinity", np.diag([np.inf, 1.0]), {}),
    "complex": (TypeError, "^gram has dtype .*complex128, expected real numbers", GOOD.astype(complex), {}),
    "a string": (TypeError, "^gram has a str in it, expected a square matrix of numbers", "gram", {}),
    "None": (TypeError, "^gram is a NoneType, expected a square matrix of numbers", None, {}),
    "ragged rows": (ValueError, "^gram is no square matrix of floats", [[1.0], [1.0, 2.0]], {}),
    "beyond all floats": (ValueError, "^gram is no square matrix of floats", [[10**400]], {}),
    "short initial": (
        ValueError,
        r"^initial(\[0\])? has 1 numbers, expected 2: one for each of gram's rows",
        GOOD,
        {"initial": [1.0]},
    ),
    "initial of two dimensions": (ValueError, r"^initial(\[0\])? has shape \[2, 2\]", GOOD, {"initial": GOOD}),
    "initial with NaN": (ValueError, "^initial has NaN or infinity", GOOD, {"initial": [np.nan, 1.0]}),
    "initial of strings": (TypeError, r"^initial\[0\](\[0\])? is a str", GOOD, {"initial": ["a", "b"]}),
    "initial is a number": (TypeError, r"^initial(\[0\])? is a float", GOOD, {"initial": 0.5}),
    "complex initial": (
        TypeError,
        r"^initial\[0\](\[0\])? is a .*, expected a number",
        GOOD,
        {"initial": np.ones(2) + 0j},
    ),
    "initial without memory": (
        TypeError,
        r"^initial\[0\](\[0\])? is a Tensor, expected a number",
        GOOD,
        {"initial": torch.ones(2, device="meta")},
    ),
    "initial beyond all floats": (
        ValueError,
        r"^Invalid initial\[0\](\[0\])?: int beyond all floats; expected a finite number",
        GOOD,
        {"initial": [10**400, 0.0]},
    ),
    "no callable": (TypeError, "^callback is a int, expected a callable", GOOD, {"callback": 3}),
}


@every_solver
@pytest.mark.parametrize(("error", "message", "gram", "changes"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("twin", ["numpy", "torch"])
def test_bad_input(
    entry: Entry, twin: str, error: type[Exception], message: str, gram: Any, changes: dict[str, Any]
) -> None:
    if entry.has_rows and "initial" in changes:
        changes = {"initial": [changes["initial"]] * 2}
    if twin == "torch":
        gram, changes = as_tensor(gram), {name: as_tensor(value) for name, value in changes.items()}
    with pytest.raises(error, match=message):
        getattr(entry, twin)(gram, **changes)


@pytest.mark.parametrize("twin", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ([HALVES], "^initial has 1 rows, expected 2: one for each of gram's rows"),
        (np.eye(3), r"^initial\[0\] has 3 numbers, expected 2: one for each of gram's rows"),
        (np.ones((2, 2, 2)), r"^initial\[0\]\[0\] is a list, expected a number"),
        (np.ones(2), r"^initial\[0\] is a float, expected numbers"),
        (np.float64(0.5), "^initial is a float(64)?, expected a list"),
    ],
)
def test_a_start_has_a_row_for_each_task(twin: str, initial: Any, message: str) -> None:
    changes = {"gram": GOOD, "initial": initial}
    if twin == "torch":
        changes = {name: as_tensor(value) for name, value in changes.items()}
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(UPGRAD, twin)(**changes)


def as_tensor(given: Any) -> Any:
    return torch.from_numpy(given) if isinstance(given, np.ndarray) else given


@pytest.mark.parametrize("initial", [[-0.5, 1.5], [0.2, 0.2], [0.0, 0.0], [1.0, 1.0]])
@pytest.mark.parametrize("twin", ["numpy", "torch"])
def test_least_norms_start_is_on_the_simplex(twin: str, initial: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^initial has numbers from .* that sum up to .*, expected at least 0 and 1"):
        getattr(MIN_NORM, twin)(as_tensor(GOOD) if twin == "torch" else GOOD, initial=initial)


@every_solver
def test_bad_tensors(entry: Entry) -> None:
    with pytest.raises(RuntimeError, match=r"^gram has layout torch\.sparse_coo"):
        entry.torch(torch.eye(2).to_sparse())
    with pytest.raises(RuntimeError, match=r"^gram is on device meta"):
        entry.torch(torch.eye(2, device="meta"))


@pytest.mark.parametrize(
    "c", ["a", None, 1j, -1, np.nan, np.inf, np.ones(2), np.ones(1), torch.ones(2), [1.0], 10**400]
)
def test_cagrads_share_is_a_number(c: Any) -> None:
    for twin in (ferrostep.numpy.cagrad_weights, ferrostep.gradients.cagrad_weights):
        with pytest.raises((TypeError, ValueError), match=r"^(c is a|Invalid c:)"):
            twin(GOOD, c=c)


def test_cagrads_start_may_be_of_any_size() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((6, 4))
    gram = points @ points.T
    expected = ferrostep.numpy.cagrad_weights(gram)
    for initial in ([1e308] * 6, [1e308, -1e308] * 3, [-1.0] * 6, [5e-324] * 6):
        np.testing.assert_allclose(ferrostep.numpy.cagrad_weights(gram, initial=initial), expected, atol=1e-12)
