"""Modules import one another in one direction: those of src/, and packages of python/."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[1] / "python" / "ferrostep"
BEGINS = [*sorted(PYTHON.glob("*/__init__.py")), PYTHON / "orthogonal.py"]
PART = re.compile(r"ferrostep\.\w+\.")
SRC = Path(__file__).parents[1] / "src"
Name = tuple[str, ...]


def modules() -> dict[Name, str]:
    """The code of each module by its path within the crate, without comments."""
    found = {}
    for file in SRC.rglob("*.rs"):
        *parents, stem = file.relative_to(SRC).with_suffix("").parts
        if stem != "tests":
            code = re.sub(r"//.*", "", file.read_text().partition("#[cfg(test)]\nmod tests {")[0])
            found[(*parents, *([] if stem in ("mod", "lib") else [stem]))] = code
    return found


def paths(use: str) -> list[str]:
    """``a::{b, c::{d, e}}`` as ``a::b, a::c::d, a::c::e``."""
    head, brace, rest = use.partition("{")
    if not brace:
        return [use.strip()]
    parts, depth = [""], 0
    for char in rest[: rest.rindex("}")]:
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [path for part in parts if part.strip() for path in paths(head.strip() + part.strip())]


def imported(module: Name, code: str, known: dict[Name, str]) -> set[Name]:
    """The modules of which a module uses something by `crate::` or `super::`; its own parents do not count."""
    found = set()
    for use in re.findall(r"\buse ((?:super|crate)::[^;]*);", code):
        for path in paths(use):
            first, *rest = path.partition(" as ")[0].split("::")
            base = list(module[:-1]) if first == "super" else []
            while rest[0] == "super":
                del base[-1], rest[0]
            target = (*base, *rest)
            while target not in known:
                target = target[:-1]
            if target != module[: len(target)]:
                found.add(target)
    return found


def test_no_modules_import_one_another_in_a_circle() -> None:
    known = modules()
    edges = {module: imported(module, code, known) for module, code in known.items()}
    assert edges["bindings", "rules"] and edges["kernels", "gradients"]
    list(TopologicalSorter(edges).static_order())  # raises CycleError, which names the circle


def test_kernels_and_runtime_know_no_python() -> None:
    strangers = [module for module, code in modules().items() if module[:1] != ("bindings",) and "pyo3" in code]
    assert strangers == []


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """What a module imports when it is imported itself, as (module, name)."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, each.name) for each in node.names)


@pytest.mark.parametrize("begin", BEGINS, ids=lambda file: file.parent.name + "/" + file.stem)
def test_a_package_is_imported_before_parts_of_it(begin: Path) -> None:
    """Else threads that import it and a part of it at once wait for each other, and Python gives one of them half."""
    files = begin.parent.glob("*.py") if begin.stem == "__init__" else [begin]
    wholes = {name for module, name in imports(begin) if module == "ferrostep"}
    parts = {module.split(".")[1] for file in files for module, _ in imports(file) if PART.match(module)}
    assert parts - {begin.parent.name} <= wholes
