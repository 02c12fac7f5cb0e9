"""NumPy arrays that cannot be updated, each with the error it deserves.

A case spoils one or several of the arrays of a call, given by the names of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SHAPE = (4, 6)
Arrays = dict[str, Any]


class Case(NamedTuple):
    """A bad input."""

    name: str
    error: type[Exception]
    message: str
    spoil: Callable[[Arrays], object]


def set_to(argument: str, make: Callable[[Any], Any]) -> Callable[[Arrays], object]:
    """Replace an argument by what ``make`` makes of it."""
    return lambda arrays: arrays.__setitem__(argument, make(arrays[argument]))


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array: Any) -> Any:
    raw = np.zeros(array.nbytes + 1, dtype=np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def every_third_byte(array: Any) -> Any:
    """Strides that are no multiple of the element size."""
    record = np.zeros(array.size, dtype=[("byte", "u1"), ("value", array.dtype)])
    return record["value"].reshape(array.shape)


def swapped(array: Any) -> Any:
    return array.astype(array.dtype.newbyteorder())


def share(one: str, other: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.__setitem__(one, arrays[other])


def overlapping(arrays: Arrays) -> None:
    base = np.ones(36, dtype=arrays["param"].dtype)
    arrays["param"] = base[:24].reshape(SHAPE)
    arrays["grad"] = base[12:].reshape(SHAPE)


CASES: tuple[Case, ...] = (
    Case(
        "read-only parameter", ValueError, "^param is read-only, expected a writable array", set_to("param", read_only)
    ),
    Case("read-only state", ValueError, "^exp_avg is read-only", set_to("exp_avg", read_only)),
    Case(
        "broadcast parameter",
        ValueError,
        "^param is read-only",
        set_to("param", lambda a: np.broadcast_to(a[:1], SHAPE)),
    ),
    Case(
        "parameter whose rows share memory",
        ValueError,
        "^param has elements that share memory",
        set_to("param", lambda a: np.lib.stride_tricks.as_strided(a, SHAPE, (0, a.itemsize))),
    ),
    Case(
        "gradient of another shape",
        ValueError,
        r"^grad has shape \[6, 4\], expected \[4, 6\]",
        set_to("grad", lambda a: a.reshape(6, 4)),
    ),
    Case(
        "gradient that would broadcast",
        ValueError,
        r"^grad has shape \[6\], expected \[4, 6\]",
        set_to("grad", lambda a: a[0]),
    ),
    Case(
        "gradient of another dtype",
        ValueError,
        "^grad has dtype float64, expected float32",
        set_to("grad", lambda a: a.astype(np.float64)),
    ),
    Case("state of another shape", ValueError, r"^exp_avg has shape \[2, 6\]", set_to("exp_avg", lambda a: a[:2])),
    Case(
        "integer parameter",
        ValueError,
        "^param has dtype int64, expected float32, float64, bfloat16 or float16",
        set_to("param", lambda a: a.astype(np.int64)),
    ),
    Case("boolean gradient", ValueError, "^grad has dtype bool", set_to("grad", lambda a: a > 0)),
    Case("object parameter", ValueError, "^param has dtype object", set_to("param", lambda a: a.astype(object))),
    Case("swapped bytes", ValueError, "^param is not in the machine's byte order", set_to("param", swapped)),
    Case(
        "swapped bytes in the gradient", ValueError, "^grad is not in the machine's byte order", set_to("grad", swapped)
    ),
    Case("misaligned parameter", ValueError, "^param is not aligned", set_to("param", misaligned)),
    Case("misaligned gradient", ValueError, "^grad is not aligned", set_to("grad", misaligned)),
    Case("strides within elements", ValueError, "^exp_avg is not aligned", set_to("exp_avg", every_third_byte)),
    Case("gradient that is the parameter", ValueError, "^grad shares memory with param", share("grad", "param")),
    Case("state that is the parameter", ValueError, "shares memory with", share("exp_avg", "param")),
    Case("state that is the gradient", ValueError, "^grad shares memory with exp_avg", share("exp_avg", "grad")),
    Case("gradient half in the parameter", ValueError, "^grad shares memory with param", overlapping),
    Case("list", TypeError, "^param is a list, expected a torch.Tensor or a numpy.ndarray", set_to("param", list)),
    Case("number", TypeError, "^grad is a float", set_to("grad", lambda a: 1.0)),
    Case("NumPy number", TypeError, "^grad is a float32", set_to("grad", lambda a: np.float32(1))),
    Case("None", TypeError, "^exp_avg is a NoneType", set_to("exp_avg", lambda a: None)),
)
