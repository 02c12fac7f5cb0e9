"""Why an argument is refused: the exception's type and its words, once for all checks in Python.

They are those of the Rust side (``src/bindings/errors.rs``), so that the same mistake reads the same whichever form of
a rule meets it. Errors that only one place can raise are worded there.
"""

from __future__ import annotations

from enum import Enum

NAMED_FLOATS = "float32, float64, bfloat16 or float16"
"""What most tensors are to be, as errors say it."""


class Problem(Enum):
    """What is wrong with an argument."""

    KIND = (TypeError, "{name} is a {got}, expected {expected}")
    NOT_REAL = (TypeError, "{name} has dtype {got}, expected {expected}")
    LAYOUT = (RuntimeError, "{name} has layout {got}; sparse tensors are not supported, expected {expected}")
    DEVICE = (RuntimeError, "{name} is on device {got}, expected {expected}")
    # With torch's words, for whoever looks for them.
    INFERENCE = (
        RuntimeError,
        "{name} is an inference tensor: Inplace update to inference tensor outside InferenceMode is not allowed; "
        "clone() it first",
    )
    DTYPE = (ValueError, "{name} has dtype {got}, expected {expected}")
    SHAPE = (ValueError, "{name} has shape {got}, expected {expected}")
    COUNT = (ValueError, "{name} has {got}, expected {expected}")
    VALUE = (ValueError, "{name} is {got}, expected {expected}")
    NUMBER = (ValueError, "Invalid {name}: {got}; expected {expected}")
    EMPTY = (ValueError, "{name} is empty, expected {expected}")

    def of(self, name: str, got: object = None, expected: object = None) -> Exception:
        """The exception to raise: ``name`` is the argument as the caller knows it, ``got`` what came of it."""
        error, template = self.value
        refusal: Exception = error(template.format(name=name, got=got, expected=expected))
        return refusal


def wrong_kind(name: str, given: object, expected: str) -> Exception:
    """The TypeError for an object that is no ``expected``."""
    return Problem.KIND.of(name, type(given).__name__, expected)


def wrong_choice(name: str, given: object, *known: str | None) -> Exception:
    """The ValueError for a word that is none of the known ones."""
    *others, last = map(repr, known)
    return Problem.NUMBER.of(name, repr(given), f"{', '.join(others)} or {last}")
