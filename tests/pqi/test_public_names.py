from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

import pqi
from pqi import _WHERE

PROMISED = {
    "quantize", "load", "local", "Client", "split", "make_keys", "IntegerModel", "Quantizer", "Answer", "compile",
}  # fmt: skip


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    heavy = {"torch", "numpy", "cryptography", "rich", "typer"}
    assert fresh(f"import sys, pqi; print({heavy} & set(sys.modules))").stdout == "set()\n"


@pytest.mark.parametrize("name", pqi.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(pqi, name) is not None


def test_the_promised_names_are_public() -> None:
    assert set(pqi.__all__) >= PROMISED


def test_the_list_of_names_and_the_table_of_places_agree() -> None:
    assert set(pqi.__all__) == {*_WHERE, "__version__"}
    assert set(dir(pqi)) >= set(pqi.__all__)


@pytest.mark.parametrize("name", sorted(_WHERE))
def test_a_name_is_the_object_that_its_own_module_defines(name: str) -> None:
    value = getattr(pqi, name)
    assert value is getattr(sys.modules[_WHERE[name]], name)
    assert value.__doc__, f"{name} has no documentation"


def test_errors_are_exceptions_and_warnings_are_warnings() -> None:
    for name in pqi.__all__:
        if name.endswith(("Error", "Failed")):
            assert issubclass(getattr(pqi, name), Exception)
        if name.endswith("Warning"):
            assert issubclass(getattr(pqi, name), UserWarning)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'quantise'.*quantize"):
        pqi.quantise  # noqa: B018


def test_a_star_import_brings_the_public_names() -> None:
    scope: dict[str, object] = {}
    with warnings.catch_warnings():
        exec("from pqi import *", scope)  # noqa: S102
    assert set(scope) >= set(pqi.__all__)


def test_the_version_is_the_distribution_s_or_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    assert pqi.__version__[0].isdigit()

    def missing(_name: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert pqi.__version__ == "0+source"
