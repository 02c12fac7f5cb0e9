"""The stub of the Rust module says what the module has."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import ferrostep
from ferrostep import _core

STUB = ast.parse((Path(ferrostep.__file__).parent / "_core.pyi").read_text())
# A parameter by its name, how it is given, and whether it may be left out.
Parameters = list[tuple[str, str, bool]]


def declared(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The public names of a module or class, with what declares them."""
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    variables = {str(node.target.id): node for node in body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    return {**functions, **variables}


def is_property(node: ast.stmt) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "property" for each in getattr(node, "decorator_list", ()))


CLASSES = {name: declared(node.body) for name, node in declared(STUB.body).items() if isinstance(node, ast.ClassDef)}
CALLABLES = {
    **{name: node for name, node in declared(STUB.body).items() if isinstance(node, ast.FunctionDef)},
    **{
        f"{cls}.{name}": node
        for cls, methods in CLASSES.items()
        for name, node in methods.items()
        if isinstance(node, ast.FunctionDef) and not is_property(node)
    },
}


def in_stub(function: ast.FunctionDef) -> Parameters:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    found = [(each.arg, "by position", place >= required) for place, each in enumerate(positional)]
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append((each.arg, "by name", default is not None))
    return [each for each in found if each[0] != "self"]


def in_module(path: str) -> Parameters:
    cls, _, method = path.rpartition(".")
    owner = getattr(_core, cls) if cls else _core
    found = inspect.signature(owner if method == "__init__" else getattr(owner, method))
    return [
        (each.name, "by name" if each.kind is each.KEYWORD_ONLY else "by position", each.default is not each.empty)
        for each in found.parameters.values()
        if each.name != "self"
    ]


def public(owner: object) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}  # type: ignore[call-overload]


def test_every_name_is_in_both() -> None:
    assert public(_core) == declared(STUB.body).keys() - {"T", "__version__"}


@pytest.mark.parametrize("cls", CLASSES)
def test_every_method_is_in_both(cls: str) -> None:
    assert public(getattr(_core, cls)) == CLASSES[cls].keys() - {"__init__"}


@pytest.mark.parametrize("path", CALLABLES)
def test_parameters_are_the_same(path: str) -> None:
    assert in_stub(CALLABLES[path]) == in_module(path)
