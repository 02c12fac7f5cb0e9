"""Arguments that no map takes, each with the error it deserves: tensors, arrays, and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from .numpy_cases import every_third_byte, misaligned, read_only, swapped
from .torch_cases import conjugate

SHAPE = (4, 6)
FLOATS = "expected float32, float64, bfloat16 or float16"


class Case(NamedTuple):
    """A bad argument in the place of a good one."""

    name: str
    error: type[Exception]
    message: str
    """A pattern that the message contains."""
    spoil: Callable[[], dict[str, Any]]
    """The arguments that are other ones."""


NUMBER_CASES: tuple[Case, ...] = (
    Case(
        "no dimension so high",
        IndexError,
        r"^Invalid dim: 2; expected -2 to 1 for x of shape \[4, 6\]",
        lambda: {"dim": 2},
    ),
    Case("no dimension so low", IndexError, "^Invalid dim: -3; expected -2 to 1", lambda: {"dim": -3}),
    Case("dimension that is no integer", TypeError, "^dim is a float, expected an integer", lambda: {"dim": 1.0}),
    Case("dimension that is a name", TypeError, "^dim is a str, expected an integer", lambda: {"dim": "last"}),
    Case("no tensor", TypeError, "^x is a list, expected", lambda: {"x": [1.0, 2.0]}),
    Case("number", TypeError, "^x is a float, expected", lambda: {"x": 1.0}),
    Case("None", TypeError, "^x is a NoneType, expected", lambda: {"x": None}),
)

# Of the sum of a simplex, the radius of a ball, and the like.
SIZE_CASES: tuple[Case, ...] = (
    Case("negative", ValueError, "^Invalid s: -0.5; expected a finite number of at least 0", lambda: {"s": -0.5}),
    Case("NaN", ValueError, "^Invalid s: nan; expected", lambda: {"s": float("nan")}),
    Case("infinite", ValueError, "^Invalid s: inf; expected", lambda: {"s": float("inf")}),
    Case("name", TypeError, "^s is a str, expected a number", lambda: {"s": "1"}),
    Case("None as a number", TypeError, "^s is a NoneType, expected a number", lambda: {"s": None}),
    Case("beyond all floats", ValueError, "^Invalid s: int beyond all floats; expected", lambda: {"s": 10**400}),
    Case("array", TypeError, "^s is a ndarray, expected a number", lambda: {"s": np.ones(4)}),
)

TORCH_CASES: tuple[Case, ...] = (
    Case("negative number in a tensor", ValueError, "^s has a number below 0", lambda: {"s": -torch.ones(())}),
    Case(
        "tensor of integers", ValueError, "^s has dtype torch.int64", lambda: {"s": torch.ones((), dtype=torch.int64)}
    ),
    Case("a number for each element", ValueError, r"^s has shape \[4, 6\]", lambda: {"s": torch.ones(SHAPE)}),
    Case("parameters of other rows", ValueError, r"^s has shape \[3, 1\]", lambda: {"s": torch.ones(3, 1)}),
    Case("parameter elsewhere", RuntimeError, "^s is on device meta", lambda: {"s": torch.ones((), device="meta")}),
    Case("array", TypeError, "^x is a ndarray, expected a torch.Tensor", lambda: {"x": np.ones(SHAPE)}),
    Case("integers", ValueError, f"^x has dtype torch.int64, {FLOATS}", lambda: {"x": torch.ones(SHAPE).long()}),
    Case("booleans", ValueError, f"^x has dtype torch.bool, {FLOATS}", lambda: {"x": torch.ones(SHAPE) > 0}),
    Case("complex", ValueError, f"^x has dtype torch.complex64, {FLOATS}", lambda: {"x": conjugate(SHAPE)}),
    Case(
        "8 bits",
        ValueError,
        f"^x has dtype torch.float8_e4m3fn, {FLOATS}",
        lambda: {"x": torch.ones(SHAPE).to(torch.float8_e4m3fn)},
    ),
    Case("sparse", RuntimeError, "^x has layout torch.sparse_coo", lambda: {"x": torch.ones(SHAPE).to_sparse()}),
    Case(
        "no dimension", ValueError, r"^x has shape \[\], expected 1 or more dimensions", lambda: {"x": torch.ones(())}
    ),
    Case(
        "empty rows",
        ValueError,
        r"^x has shape \[4, 0\], expected an element along dim -1",
        lambda: {"x": torch.ones(4, 0)},
    ),
    Case(
        "no rows of no elements",
        ValueError,
        r"^x has shape \[0, 0\], expected an element along dim -1",
        lambda: {"x": torch.ones(0, 0)},
    ),
    Case(
        "empty rows elsewhere",
        ValueError,
        r"^x has shape \[4, 0\], expected an element along dim -1",
        lambda: {"x": torch.ones(4, 0, device="meta")},
    ),
)

EXPANDED = Case("expanded", ValueError, "^x has elements that share memory", lambda: {"x": torch.ones(6).expand(SHAPE)})

NUMPY_CASES: tuple[Case, ...] = (
    Case("number in a tensor", TypeError, "^s is a Tensor, expected", lambda: {"s": torch.ones(())}),
    Case("tensor", TypeError, "^x is a Tensor, expected a numpy.ndarray", lambda: {"x": torch.ones(SHAPE)}),
    Case("complex list", TypeError, "^x is a list, expected a numpy.ndarray", lambda: {"x": [1j]}),
    Case("mask", TypeError, "^x is a MaskedArray, expected", lambda: {"x": np.ma.masked_less(np.ones(SHAPE), 2)}),
    Case("integers", ValueError, f"^x has dtype int64, {FLOATS}", lambda: {"x": np.ones(SHAPE, np.int64)}),
    Case("objects", ValueError, f"^x has dtype object, {FLOATS}", lambda: {"x": np.ones(SHAPE, object)}),
    Case("complex", ValueError, f"^x has dtype complex64, {FLOATS}", lambda: {"x": np.ones(SHAPE, np.complex64)}),
    Case(
        "other byte order", ValueError, "^x is not in the machine's byte order", lambda: {"x": swapped(np.ones(SHAPE))}
    ),
    Case("misaligned", ValueError, "^x is not aligned", lambda: {"x": misaligned(np.ones(SHAPE))}),
    Case("strides within elements", ValueError, "^x is not aligned", lambda: {"x": every_third_byte(np.ones(SHAPE))}),
    Case("no dimension", ValueError, r"^x has shape \[\], expected 1 or more", lambda: {"x": np.ones(())}),
    Case("empty rows", ValueError, r"^x has shape \[4, 0\], expected an element", lambda: {"x": np.ones((4, 0))}),
    Case("read-only output", ValueError, "^out is read-only", lambda: {"out": read_only(np.ones(SHAPE))}),
    Case(
        "output of another shape", ValueError, r"^out has shape \[6\], expected \[4, 6\]", lambda: {"out": np.ones(6)}
    ),
    Case(
        "output of another dtype",
        ValueError,
        "^out has dtype float32, expected float64",
        lambda: {"out": np.ones(SHAPE, np.float32)},
    ),
    Case("output that is a list", TypeError, "^out is a list", lambda: {"out": [1.0]}),
    Case(
        "output whose rows share memory",
        ValueError,
        "^out has elements that share memory",
        lambda: {"out": np.lib.stride_tricks.as_strided(np.ones(6), SHAPE, (0, 8))},
    ),
    Case("half of the input", ValueError, "^x shares memory with out", lambda: _overlapping()),
    Case("turned input", ValueError, "^x shares memory with out", lambda: _turned()),
    Case("threads", ValueError, "^Invalid num_threads: 0", lambda: {"num_threads": 0}),
)


class Refused(NamedTuple):
    """Arguments of one map that it refuses, for rows of 6 elements."""

    map: str
    arguments: dict[str, Any]
    message: str
    error: type[Exception] = ValueError


ONES = np.ones(6)
PARAMETER_CASES: tuple[Refused, ...] = (
    Refused("box", {"lo": 1.0, "hi": 0.0}, "^Invalid hi: 0.0; expected lo"),
    Refused("box", {"lo": float("nan"), "hi": 0.0}, "^Invalid lo: nan"),
    Refused("l1_ball", {"r": -1.0}, "^Invalid r: -1.0; expected a finite number of at least 0"),
    Refused("linf_ball", {"r": float("inf")}, "^Invalid r: inf; expected"),
    Refused("hyperplane", {"a": 0 * ONES, "b": 1.0}, "^a has "),
    Refused("hyperplane", {"a": ONES, "b": float("inf")}, "^Invalid b: inf"),
    Refused("halfspace", {"a": ONES * float("nan"), "b": 1.0}, "^a has a number"),
    Refused("halfspace", {"a": np.ones(5), "b": 1.0}, "^a has "),
    Refused("box_section", {"lo": 0.0, "hi": 1.0, "w": 1.0, "c": 6.5}, "^Invalid c: 6.5; expected what w.p is"),
    Refused("box_section", {"lo": 1.0, "hi": 0.0, "w": 1.0, "c": 0.5}, "^lo is above hi"),
    Refused("isotonic", {"weight": 0 * ONES}, "^weight has "),
    Refused("isotonic", {"weight": [1.0]}, "^weight is a list", TypeError),
    Refused("permutahedron", {"w": np.ones(7)}, "^w has "),
    Refused("sorted_l1", {"w": -ONES}, "^w has "),
    Refused("soft_threshold", {"lambd": -0.1}, "^Invalid lambd: -0.1"),
    Refused("elastic_net", {"lambd": 0.1, "gamma": -1.0}, "^Invalid gamma: -1.0"),
    Refused("group_lasso", {"lambd": "1"}, "^lambd is a str", TypeError),
)


def _overlapping() -> dict[str, Any]:
    base = np.ones(36)
    return {"x": base[:24].reshape(SHAPE), "out": base[12:].reshape(SHAPE)}


def _turned() -> dict[str, Any]:
    base = np.ones((5, 5))
    return {"x": base, "out": base.T}
