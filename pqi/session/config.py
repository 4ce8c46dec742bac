"""The client's configuration file: where the servers are, where its bundle and its TLS files lie.

::

    bundle = "."                       # paths are relative to this file
    timeout = 8.0                      # seconds without a sign of life before a query is given up
    [addresses]
    server_a = "10.0.0.1:7401"
    server_b = "10.0.0.2:7402"
    [tls]
    ca = "tls/ca.pem"
    certificate = "tls/cert.pem"
    key = "tls/key.pem"
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqi.net.link import NONE, Link
from pqi.net.tls import TlsFiles, parse_address
from pqi.session.bundle import Address
from pqi.session.errors import BundleError
from pqi.session.roles import PARTIES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_TIMEOUT = 8.0
_MAX_BYTES = 1 << 20
_FIELDS = {"bundle", "timeout", "addresses", "tls"}


@dataclass(frozen=True)
class ClientConfig:
    """A checked configuration; paths are absolute or relative to the working directory.

    link: what to emulate of a network, for measurements; no file sets it.
    """

    bundle: Path
    timeout: float
    addresses: Mapping[str, Address]
    tls: TlsFiles
    link: Link = NONE


def load_config(path: str | Path) -> ClientConfig:
    """Read and check a client's configuration. Raises BundleError that names the file, the field and its value."""
    path = Path(path)
    document = _read(path)
    unknown = sorted(set(document) - _FIELDS)
    if unknown:
        raise BundleError(f"{path}: unknown field {unknown[0][:40]!r}; known are {', '.join(sorted(_FIELDS))}")
    timeout = document.get("timeout", DEFAULT_TIMEOUT)
    if type(timeout) not in (int, float) or not (math.isfinite(timeout) and 0 < timeout <= 3600):
        raise BundleError(f"{path}: field 'timeout' is {str(timeout)[:40]}; it must lie between 0 and 3600 seconds")
    addresses: dict[str, Address] = {}
    for role, text in _texts(document, "addresses", path).items():
        if role not in PARTIES:
            raise BundleError(f"{path}: field 'addresses.{role[:40]}' is no compute server ({', '.join(PARTIES)})")
        try:
            addresses[role] = parse_address(text)
        except ValueError as error:
            raise BundleError(f"{path}: field 'addresses.{role}': {error}") from None
    tls = {"ca": "tls/ca.pem", "certificate": "tls/cert.pem", "key": "tls/key.pem", **_texts(document, "tls", path)}
    if set(tls) != {"ca", "certificate", "key"}:
        raise BundleError(f"{path}: field 'tls' may hold ca, certificate and key only")
    home = path.parent
    bundle = document.get("bundle", ".")
    if not isinstance(bundle, str):
        raise BundleError(f"{path}: field 'bundle' must be a path in quotes")
    files = TlsFiles(home / tls["ca"], home / tls["certificate"], home / tls["key"])
    return ClientConfig(home / bundle, float(timeout), addresses, files)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BundleError(f"configuration {path} cannot be read: {error.strerror}. `pqi split` makes one") from None
    if len(data) > _MAX_BYTES:
        raise BundleError(f"configuration {path} is over {_MAX_BYTES} bytes")
    try:
        document: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"configuration {path} is not valid TOML: {error}") from None
    return document


def _texts(document: Mapping[str, Any], field: str, path: Path) -> dict[str, str]:
    table = document.get(field, {})
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise BundleError(f"{path}: field {field!r} must be a table of texts")
    return table
