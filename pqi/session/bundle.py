"""What each role holds, on disk and in memory: a frozen object per role with no field for what it must not know.

A bundle is a folder: ``bundle.json`` (role, deployment, addresses, the program or, for the client, its interface:
nothing secret), for servers and dealer
``secrets.safetensors`` (this role's tensors only; mode 0600), and ``tls/``. Loading believes nothing: format, version,
role, digests, types and sizes are checked, and no file is ever executed.

Of a keyed protocol there is one server, and both bundles hold the same program: circuit, parameters, packing. The
server's holds the weights besides, the client's holds none. Keys are in no bundle: the client makes them.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch

from pqi.net.tls import TlsFiles, parse_address
from pqi.program import Interface, Program
from pqi.program.keyed import KeyedProgram
from pqi.session.budget import MOST
from pqi.session.errors import BundleError
from pqi.session.inputs import InputSpec
from pqi.session.roles import CLIENT, DEALER, PARTIES, SERVERS
from protocols import KEYED
from protocols.rounds import PartyId

FORMAT, VERSION = "pqi bundle", 1
BUNDLE_FILE, SECRETS_FILE = "bundle.json", "secrets.safetensors"
_MAX_JSON, _MAX_SECRETS = 256 << 20, 64 << 30
_INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
Address = tuple[str, int]
P = TypeVar("P", Program, Interface, KeyedProgram)


@dataclass(frozen=True)
class Bundle:
    """What every role holds.

    deployment: random id drawn at the split. addresses: of the servers.
    """

    role: str
    deployment: str
    addresses: Mapping[str, Address]
    directory: Path

    @property
    def tls(self) -> TlsFiles:
        """This role's TLS files."""
        return TlsFiles.in_directory(self.directory / "tls")


@dataclass(frozen=True)
class ServerBundle(Bundle):
    """A compute server's: its part of the weights, by their visibility (``protocols.additive2.linear.HELD``).

    Of shared weights, its shares: never the mask of the dealer, never the other server's share. Owned weights server A
    holds in the clear, and server B masked, which tells it nothing; public ones both hold.

    program: what is computed, without any secret. answers_per_client: what one client may have in all (None: any
    number).
    """

    program: Program
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    answers_per_client: int | None = None

    @property
    def party(self) -> PartyId:
        """P0 for server_a, P1 for server_b."""
        return PARTIES[self.role]


@dataclass(frozen=True)
class DealerBundle(Bundle):
    """The dealer's: the mask of the weights. Never a weight, never an input."""

    program: Program
    tensors: Mapping[str, torch.Tensor] = field(repr=False)


@dataclass(frozen=True)
class ClientBundle(Bundle):
    """The client's: how to quantize an input and read an answer. No weight, no share, no layer.

    program: question and answer of the program, and the digest of the rest.
    """

    program: Interface
    input: InputSpec
    output_scale: float


@dataclass(frozen=True)
class KeyedServerBundle(Bundle):
    """The one server's under a keyed protocol: its own weights. No field for a key: the client makes them.

    program: what is computed, without any weight; the client holds the same. answers_per_client: see ServerBundle.
    """

    program: KeyedProgram
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    answers_per_client: int | None = None


@dataclass(frozen=True)
class KeyedClientBundle(Bundle):
    """The client's under a keyed protocol: circuit and parameters, how to quantize and to read an answer. No weight."""

    program: KeyedProgram
    input: InputSpec
    output_scale: float


def load_server(directory: Path) -> ServerBundle | KeyedServerBundle:
    """The bundle of a compute server. Raises BundleError that names the file, the field and what to do."""
    document = _load(directory, *SERVERS.values())
    role, keyed = str(document["role"]), _is_keyed(document)
    program = (
        _program(document, directory, KeyedProgram.from_json)
        if keyed
        else _program(document, directory, Program.from_json)
    )
    if PARTIES[role] not in program.parties:
        raise BundleError(f"{directory}: protocol {program.protocol!r} has no {role}")
    common, tensors = _common(document, program, directory), _tensors(directory, document)
    most = _answers(document, directory)
    if isinstance(program, KeyedProgram):
        return KeyedServerBundle(*common, program=program, tensors=tensors, answers_per_client=most)
    return ServerBundle(*common, program=program, tensors=tensors, answers_per_client=most)


def load_dealer(directory: Path) -> DealerBundle:
    """The dealer's bundle. Raises BundleError."""
    document = _load(directory, DEALER)
    if _is_keyed(document):
        raise BundleError(f"{directory}: protocol {document['program']['protocol']!r} needs no dealer")
    program = _program(document, directory, Program.from_json)
    if not program.needs_dealer:
        raise BundleError(f"{directory}: protocol {program.protocol!r} needs no dealer")
    common = _common(document, program, directory)
    return DealerBundle(*common, program=program, tensors=_tensors(directory, document))


def load_client(directory: Path) -> ClientBundle | KeyedClientBundle:
    """The client's bundle. Raises BundleError."""
    document = _load(directory, CLIENT)
    program = (
        _program(document, directory, KeyedProgram.from_json)
        if _is_keyed(document)
        else _program(document, directory, Interface.from_json)
    )
    path = directory / BUNDLE_FILE
    spec = InputSpec.from_json(_field(document, "input", dict, path), program.input_shape, str(path))
    scale = _field(document, "output_scale", float, path)
    if not 0 < scale < float("inf"):
        raise BundleError(f"{path}: output_scale is {scale}; it must be a positive finite number")
    common = _common(document, program, directory)
    if isinstance(program, KeyedProgram):
        return KeyedClientBundle(*common, program=program, input=spec, output_scale=scale)
    return ClientBundle(*common, program=program, input=spec, output_scale=scale)


def _is_keyed(document: Mapping[str, Any]) -> bool:
    """Whether the program is of a keyed protocol, by its name; what it holds is judged when it is read."""
    program = document.get("program")
    return isinstance(program, dict) and str(program.get("protocol")) in KEYED


def _load(directory: Path, *roles: str) -> dict[str, Any]:
    """Read and judge what every role's bundle.json has."""
    path = directory / BUNDLE_FILE
    try:
        document = json.loads(_read(path, _MAX_JSON).decode("utf-8"))
    except (ValueError, RecursionError):
        raise BundleError(f"{path} is not valid JSON: truncated or altered. Split the model again") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"{path} is not a bundle (field 'format' is not {FORMAT!r})")
    if document.get("version") != VERSION:
        raise BundleError(
            f"{path} has bundle version {str(document.get('version'))[:20]}, this release reads {VERSION}; split again"
        )
    role = _field(document, "role", str, path)
    if role not in roles:
        alone = f". Protocol {document['program']['protocol']!r} has no {DEALER}" if _is_keyed(document) else ""
        raise BundleError(
            f"{path} is the bundle of {role[:40]!r}; here a bundle of {' or '.join(roles)} is needed"
            f"{alone if DEALER in roles else ''}"
        )
    if re.fullmatch("[0-9a-f]{32}", _field(document, "deployment", str, path)) is None:
        raise BundleError(f"{path}: field 'deployment' is not 32 hexadecimal digits")
    return document


def _program(document: Mapping[str, Any], directory: Path, read: Callable[[Mapping[str, Any]], P]) -> P:
    """The program of a bundle, or its interface; it must have the digest that the file states."""
    path = directory / BUNDLE_FILE
    stated = _field(document, "digest", str, path)
    literal = _field(document, "program", dict, path)
    try:
        program = read(literal)
    except Exception as error:
        raise BundleError(f"{path}: the program in it is refused: {type(error).__name__}: {str(error)[:300]}") from None
    if program.digest != stated:
        raise BundleError(
            f"{path} was altered: its program has digest {program.digest[:16]}..., stated {stated[:16]}..."
        )
    return program


def _common(
    document: Mapping[str, Any], program: Program | Interface | KeyedProgram, directory: Path
) -> tuple[str, str, Mapping[str, Address], Path]:
    path = directory / BUNDLE_FILE
    addresses: dict[str, Address] = {}
    for role, text in _field(document, "addresses", dict, path).items():
        if role not in PARTIES or not isinstance(text, str):
            raise BundleError(f"{path}: field 'addresses' has an entry for {str(role)[:40]!r}; servers only, as texts")
        try:
            addresses[role] = parse_address(text)
        except ValueError as error:
            raise BundleError(f"{path}: address of {role}: {error}") from None
    missing = [SERVERS[party] for party in program.parties if SERVERS[party] not in addresses]
    if missing:
        raise BundleError(f"{path}: field 'addresses' lacks {', '.join(missing)}")
    return document["role"], document["deployment"], addresses, directory


def _answers(document: Mapping[str, Any], directory: Path) -> int | None:
    most = document.get("answers_per_client")
    if most is not None and (type(most) is not int or not 1 <= most <= MOST):
        raise BundleError(f"{directory / BUNDLE_FILE}: field 'answers_per_client' must be from 1 to {MOST}, or null")
    return most


def _tensors(directory: Path, document: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    path = directory / SECRETS_FILE
    stated = _field(document, "secrets_sha256", str, directory / BUNDLE_FILE)
    data = _read(path, _MAX_SECRETS)
    if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise BundleError(
            f"{path} is open to every user of this machine; chmod 600 it, and split again if others read it"
        )
    if hashlib.sha256(data).hexdigest() != stated:
        raise BundleError(
            f"{path} is truncated, altered, or of another bundle (SHA-256 differs). Split the model again"
        )
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(data)
    except Exception as error:
        raise BundleError(f"{path} is not a safetensors file: {type(error).__name__}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _INTEGERS:
            raise BundleError(f"{path}: tensor {name[:80]!r} has dtype {tensor.dtype}; shares are integers")
    return tensors


def _read(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise BundleError(f"{path} has {size} bytes, the limit is {limit}; that is no bundle of this version")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}. `pqi split` makes the bundles") from None


def _field(document: Mapping[str, Any], name: str, kind: type, path: Path) -> Any:
    value = document.get(name)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise BundleError(f"{path}: field {name!r} is missing or not of type {kind.__name__}")
    return value
