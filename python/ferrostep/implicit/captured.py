"""What a function holds besides its arguments: tensors of its closure, of modules, of what it calls."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

CONTAINERS = (list, tuple, dict)


def captured(function: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors by their names, as far as they can be found: functions of torch are not looked into."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", function)]
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield name, value
        else:
            before = f"{name}." if name and isinstance(value, (nn.Module, *CONTAINERS)) else ""
            waiting += ((f"{before}{part}", each) for part, each in _parts(value))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        yield from value.named_parameters()
        yield from value.named_buffers()
    elif isinstance(value, CONTAINERS):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        yield from ((str(key), each) for key, each in pairs)
    elif isinstance(value, types.MethodType):
        yield from (("self", value.__self__), ("", value.__func__))
    elif isinstance(value, functools.partial):
        yield from (("", value.func), ("", value.args), ("", value.keywords))
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif not isinstance(value, (type, types.ModuleType)):
        yield from getattr(value, "__dict__", {}).items()


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if (function.__module__ or "").partition(".")[0] == "torch":
        return
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    yield from (("", function.__defaults__ or ()), ("", function.__kwdefaults__ or {}))
    for name in code.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]


def names_of(function: Callable[..., Any], tensors: Sequence[Tensor]) -> str:
    """The tensors as an error tells them: by name where one is found, else by shape."""
    names = {id(tensor): name for name, tensor in captured(function)}
    return ", ".join(
        f"{names[id(x)]} of shape {list(x.shape)}" if names.get(id(x)) else f"one of shape {list(x.shape)}"
        for x in tensors
    )
