from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from netkit import ROLES, Pair, connect, files

from pqi.net.authority import write_keys
from pqi.net.channel import Channel


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    write_keys(directory, ROLES)
    return directory


@pytest.fixture(scope="session")
def foreign_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("foreign")
    write_keys(directory, ROLES)
    return directory


@pytest.fixture
def pair(keys: Path) -> Iterator[Pair]:
    """Server A's channel to B and B's channel to A."""
    a, b = connect(files(keys, "server_a"), files(keys, "server_b"), "server_b")
    assert isinstance(a, Channel)
    assert isinstance(b, Channel)
    with a, b:
        yield a, b
