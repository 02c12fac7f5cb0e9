"""Every public name says what it takes, gives and raises, and shows it in an example that runs.

What a docstring must have: an entry for every argument (``Args``, or ``Attributes`` of a class), ``Returns`` for a
function that returns something, ``Raises`` where there are arguments to be wrong, the words shape and dtype where
tensors or arrays come in, and for functions and classes an ``Example``. Methods that redefine one of a base class with
the same signature may leave it to that.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

import ferrostep

MODULES = (
    "ferrostep",
    "ferrostep.batch_size",
    "ferrostep.bilevel",
    "ferrostep.curvature",
    "ferrostep.gradients",
    "ferrostep.guidance",
    "ferrostep.guidance.diffusers",
    "ferrostep.implicit",
    "ferrostep.implicit.linear",
    "ferrostep.implicit.optimality",
    "ferrostep.integrations.timm",
    "ferrostep.integrations.transformers",
    "ferrostep.nn",
    "ferrostep.numpy",
    "ferrostep.numpy.projections",
    "ferrostep.numpy.prox",
    "ferrostep.offload",
    "ferrostep.optim",
    "ferrostep.projections",
    "ferrostep.projections.prox",
    "ferrostep.reference",
    "ferrostep.rl",
    "ferrostep.schedules",
)
OF_EXTRAS = ("diffusers", "gymnasium", "h5py", "matplotlib", "rich", "sklearn", "timm")
"""Packages that only extras bring: what needs one is skipped without it."""
EXEMPT = {
    "ferrostep.curvature.StabilityReport lacks Raises": "stability_report makes it, and checks the numbers",
    "ferrostep.guidance.diffusers": "diffusers documents the arguments; an example would take a pipeline",
    "ferrostep.guidance.MomentumBuffer lacks Raises": "apg checks the momentum",
    "ferrostep.gradients.OrthogonalGradient lacks Raises": "its methods check the numbers",
}
"""What may lack something, with the reason: a module as a whole, or one thing of a name."""


class Subject(NamedTuple):
    """A public function, class or method."""

    name: str
    value: Any
    is_method: bool

    @property
    def text(self) -> str:
        return inspect.cleandoc(self.value.__doc__ or "")

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        if inspect.isclass(self.value) and issubclass(self.value, Exception):
            return {}
        found = dict(inspect.signature(self.value).parameters)
        return {name: each for name, each in found.items() if name not in ("self", "cls")}

    def section(self, *titles: str) -> str:
        """The text of a section of the docstring, or of the first of several that is there."""
        found = re.search(rf"^(?:{'|'.join(titles)}):\n((?:(?: .*)?\n?)+)", self.text, re.M)
        return found[1] if found else ""


def imported(name: str) -> Any:
    """The module; None where a package of an extra is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        if (missing.name or "").partition(".")[0] not in OF_EXTRAS:
            raise
        return None


def skipped(name: str) -> Any:
    return pytest.param(None, id=name, marks=pytest.mark.skip(reason="a package of an extra is not installed"))


def subjects() -> Iterator[Any]:
    for module in MODULES:
        if imported(module) is None:
            yield skipped(module)
            continue
        for attribute in imported(module).__all__:
            value = getattr(imported(module), attribute)
            if inspect.isfunction(value):
                yield Subject(f"{module}.{attribute}", value, False)
            elif inspect.isclass(value):
                yield Subject(f"{module}.{attribute}", value, False)
                yield from methods(f"{module}.{attribute}", value)


def methods(owner: str, cls: type) -> Iterator[Subject]:
    """Those of a class that no base class of ours has with the same signature."""
    for name, member in vars(cls).items():
        value = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(value):
            continue
        others = [vars(base)[name] for base in cls.__mro__[1:] if base.__module__ != "builtins" and name in vars(base)]
        of_ours = [other for other in others if inspect.isfunction(other) and other.__module__.startswith("ferrostep")]
        if not any(inspect.signature(other) == inspect.signature(value) for other in of_ours):
            yield Subject(f"{owner}.{name}", value, True)


def lacking(subject: Subject) -> list[str]:
    """What the docstring lacks."""
    value, parameters = subject.value, subject.parameters
    is_function = not subject.is_method and not inspect.isclass(value)
    entries = re.findall(r"^ {4}(\*{0,2}\w[\w*, ]*):", subject.section("Args", "Attributes"), re.M)
    documented = {name.strip(" *") for entry in entries for name in entry.split(",")}
    if inspect.isclass(value) and issubclass(value, tuple):
        parameters, needs = {}, []  # the fields of a named tuple are documented below them
    else:
        needs = [f"an entry for {name}" for name in parameters if name not in documented]
    if subject.section("Args"):
        needs += [f"an argument {name}, or no entry for it" for name in documented - set(parameters)]
    if is_function and inspect.signature(value).return_annotation not in ("None", "Iterator[None]"):
        needs += [] if subject.section("Returns") else ["Returns"]
    if parameters:
        needs += [] if subject.section("Raises") else ["Raises"]
    if any(re.search("Tensor|Array|Gradient|Params", str(each.annotation)) for each in parameters.values()):
        needs += [] if "shape" in subject.text else ["the shapes of its tensors"]
        needs += [] if subject.is_method or "dtype" in subject.text or "float" in subject.text else ["their dtypes"]
    if not subject.is_method and not doctest.DocTestParser().get_examples(subject.text):
        needs.append("an example")
    return needs


@pytest.mark.smoke
@pytest.mark.parametrize("subject", [pytest.param(x, id=x.name) if isinstance(x, Subject) else x for x in subjects()])
def test_a_public_name_is_documented(subject: Subject) -> None:
    assert subject.text
    complaints = [f"{subject.name} lacks {what}" for what in lacking(subject)]
    assert not [each for each in complaints if not any(each.startswith(known) for known in EXEMPT)]


def test_all_packages_with_public_names_are_looked_at() -> None:
    """A new public package joins the list."""
    names = [found.name for found in pkgutil.walk_packages(ferrostep.__path__, "ferrostep.") if found.ispkg]
    public = [name for name in names if hasattr(imported(name), "__all__")]
    assert set(public) <= set(MODULES)


def examples() -> Iterator[Any]:
    for found in [ferrostep, *pkgutil.walk_packages(ferrostep.__path__, "ferrostep.")]:
        name = getattr(found, "name", "ferrostep")
        if name.endswith("__main__"):
            continue
        if imported(name) is None:
            yield skipped(name)
            continue
        for test in doctest.DocTestFinder().find(imported(name)):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.smoke
@pytest.mark.parametrize("example", list(examples()))
def test_an_example_runs(example: doctest.DocTest) -> None:
    assert not any(doctest.SKIP in line.options for line in example.examples), (
        "an example that is skipped shows nothing"
    )
    report: list[str] = []
    torch.manual_seed(0)
    doctest.DocTestRunner(verbose=False).run(example, out=report.append, clear_globs=False)
    assert not report, "".join(report)
