from __future__ import annotations

import subprocess
import sys

import pytest

import pqi.federated as federated

OWN = [name for name, module in federated._WHERE.items() if ".flower" not in module]  # those need an extra


@pytest.mark.parametrize("name", OWN)
def test_every_public_name_is_there_and_has_a_docstring(name: str) -> None:
    assert getattr(federated, name).__doc__


def test_names_are_listed_once_and_in_order() -> None:
    assert federated.__all__ == sorted(federated._WHERE)


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Codex'; public names are Accountant"):
        federated.Codex  # noqa: B018


def test_importing_the_package_loads_neither_torch_nor_flower() -> None:
    code = "import pqi.federated, sys; assert not {'torch', 'numpy', 'flwr', 'dp_accounting'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
