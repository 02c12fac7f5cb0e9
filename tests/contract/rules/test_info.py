"""What the package says about its choices: info(), FERROSTEP_ISA, log records, imports."""

from __future__ import annotations

import json
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import ferrostep
from ferrostep import _core
from tests.contract.subprocesses import run_python, start_python


@pytest.mark.smoke
def test_info() -> None:
    torch.set_num_threads(1)
    found = ferrostep.info()
    assert found["ferrostep"] == ferrostep.__version__ == _core.__version__
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["instruction_set"] == _core.isa()
    assert found["supported"] == _core.supported_isas()
    assert found["threads"] == 1
    assert found["numpy_threads"] == _core.available_cpus() <= found["cpus"]
    json.dumps(found)


def test_the_best_instruction_set_is_the_default() -> None:
    assert run_python("from ferrostep import _core; print(_core.isa())", FERROSTEP_ISA="").split() == [
        _core.supported_isas()[-1]
    ]


@pytest.mark.usefixtures("isa")
def test_the_environment_forces_an_instruction_set() -> None:
    name = _core.isa()
    assert run_python("import ferrostep; print(ferrostep.info()['instruction_set'])", FERROSTEP_ISA=name).split() == [
        name
    ]


def test_an_unknown_instruction_set_is_an_error_at_import() -> None:
    result = start_python("import ferrostep", FERROSTEP_ISA="sse9")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert all(word in last for word in ("FERROSTEP_ISA", "sse9", *_core.supported_isas())), last


def test_an_unknown_instruction_set_is_an_error_at_a_switch() -> None:
    before = _core.isa()
    with pytest.raises(ValueError, match=r"no instruction set .sse9.; it runs portable"):
        _core.use_isa("sse9")
    assert _core.isa() == before


LOGGING = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s %(message)s")
import torch
from ferrostep.optim import AdamW
torch.set_num_threads(2)
p = torch.nn.Parameter(torch.ones(200_000))
p.grad = torch.ones_like(p)
AdamW([p]).step()
"""


def test_choices_arrive_at_python_logging() -> None:
    result = start_python(LOGGING)
    assert result.returncode == 0, result.stderr
    records = [line for line in result.stderr.splitlines() if line.startswith("DEBUG ferrostep")]
    assert any("instruction set" in record and _core.supported_isas()[-1] in record for record in records), records
    assert any("thread" in record for record in records), records


def test_without_a_logger_nothing_is_printed() -> None:
    result = start_python("import ferrostep.optim")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_importing_the_package_does_not_import_torch() -> None:
    run_python("import ferrostep, ferrostep.numpy, sys; assert 'torch' not in sys.modules")


def test_importing_the_package_alone_imports_little() -> None:
    run_python("import ferrostep, sys; assert not {'numpy', 'importlib.metadata'} & sys.modules.keys()")


def public_packages() -> list[str]:
    """Those with public names, of an extra's package or not."""
    found = [each.name for each in pkgutil.iter_modules(ferrostep.__path__) if each.ispkg]
    return [name for name in found if "__all__ = [" in Path(ferrostep.__path__[0], name, "__init__.py").read_text()]


def test_public_packages_are_attributes() -> None:
    assert sorted(ferrostep.PACKAGES) == public_packages()
    assert set(ferrostep.PACKAGES) < set(dir(ferrostep))
    imports = re.search(r"from ferrostep import \(  # noqa: F401\n(.+?)\)", Path(ferrostep.__file__).read_text(), re.S)
    assert imports is not None and tuple(re.findall(r"\w+", imports[1])) == ferrostep.PACKAGES  # what editors see


def test_packages_are_imported_when_asked_for() -> None:
    asked = "".join(f"assert ferrostep.{name}.__name__ == 'ferrostep.{name}';" for name in ferrostep.PACKAGES)
    run_python(f"import ferrostep; {asked}")
    with pytest.raises(AttributeError, match="module 'ferrostep' has no attribute 'optimizers'"):
        _ = ferrostep.optimizers


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import importlib, ferrostep
for name in [*ferrostep.PACKAGES, "orthogonal"]:
    try:
        importlib.import_module(f"ferrostep.{name}")
    except ModuleNotFoundError as error:
        assert error.name == "torch" and 'pip install "ferrostep[torch]"' in str(error), error
    else:
        print(name)
"""


def test_without_torch_the_error_names_the_extra() -> None:
    assert run_python(WITHOUT_TORCH).split() == ["numpy"]
