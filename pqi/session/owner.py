"""The model owner: cuts a model into one bundle per role, and makes the keys of a deployment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

import pqi.program
from pqi.graph.model import IntegerModel
from pqi.net.authority import make_private_directory, write_keys, write_private
from pqi.net.tls import format_address, parse_address
from pqi.program.circuits import Model
from pqi.program.errors import ProgramError
from pqi.program.keyed import KeyedProgram, compile_keyed, keyed_tensors
from pqi.session.budget import MOST
from pqi.session.bundle import BUNDLE_FILE, FORMAT, SECRETS_FILE, VERSION
from pqi.session.errors import BundleError
from pqi.session.inputs import InputSpec
from pqi.session.material import new_id
from pqi.session.roles import CLIENT, DEALER, PARTIES, SERVERS, roles_of
from protocols import KEYED
from protocols.rounds import PartyId

DEFAULT_ADDRESSES = {"server_a": "127.0.0.1:7401", "server_b": "127.0.0.1:7402"}
CONFIG_FILE = "client.toml"


def split(
    model: Model,
    directory: str | Path,
    *,
    protocol: str = "additive2",
    addresses: Mapping[str, str] | None = None,
    network: str = "lan",
    rounding: str = "exact",
    weights: str | Mapping[str, str] = "shared",
    options: Mapping[str, Any] | None = None,
    answers_per_client: int | None = None,
) -> Path:
    """Write one bundle per role below ``directory`` and return it. Each holds only what its role may know.

    addresses: "host:port" of each compute server (defaults: this machine). weights: who may know them, for all layers
    or by layer: nobody ("shared"), server A ("owned": it is the model owner's, and server B may be the client's own),
    or both servers ("public"). options: a keyed protocol's own, such as its packing. answers_per_client: how many
    inputs one client may have answered in all, which every server counts on its own (None: any number). The shares are
    drawn anew at every split, so bundles of two splits never work together.
    Raises BundleError if a bundle is there already, an address or the number is bad; ProgramError if the protocol
    cannot serve the model.
    """
    directory = Path(directory)
    if answers_per_client is not None and not 1 <= answers_per_client <= MOST:
        raise BundleError(f"answers_per_client = {answers_per_client}: a number from 1 to {MOST} is needed, or None")
    program = _compiled(model, protocol, network, rounding, weights, options)
    roles = roles_of(program.parties, program.needs_dealer)
    where = _addresses(program, addresses or DEFAULT_ADDRESSES)
    for role in roles:
        if (directory / role / BUNDLE_FILE).exists():
            raise BundleError(
                f"{directory / role} holds a bundle already; a split never replaces one. Name a new folder"
            )
    common: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "deployment": new_id(),
        "digest": program.digest,
        "program": program.to_json(),
        "addresses": where,
    }
    tensors = _secrets(model, program)
    for role in roles:
        make_private_directory(directory / role)
        if role == CLIENT:
            facts = _write_client(model, program, directory / role, where)
        else:
            party = PartyId.DEALER if role == DEALER else PARTIES[role]
            facts = _write_secrets(tensors.get(party, {}), directory / role)
            if role != DEALER:
                facts["answers_per_client"] = answers_per_client
        document = json.dumps({**common, "role": role, **facts}, indent=1, allow_nan=False)
        write_private(directory / role / BUNDLE_FILE, document.encode())
    return directory


def _compiled(
    model: Model,
    protocol: str,
    network: str,
    rounding: str,
    weights: str | Mapping[str, str],
    options: Mapping[str, Any] | None,
) -> pqi.program.Program | KeyedProgram:
    """The program, by the kind of protocol; options that mean nothing to it are refused rather than ignored."""
    if protocol in KEYED:
        if rounding != "exact":
            raise ProgramError(f"protocol {protocol!r} rounds nothing: rounding = {rounding!r} means nothing to it")
        if weights != "shared":
            raise ProgramError(
                f"under protocol {protocol!r} the one server owns all weights: weights = {weights!r} means nothing"
            )
        return compile_keyed(model, protocol, options)
    if options:
        raise ProgramError(f"protocol {protocol!r} takes no options; {', '.join(options)} are of {', '.join(KEYED)}")
    served = shareable(model, protocol)
    return pqi.program.compile(served, protocol=protocol, network=network, rounding=rounding, weights=weights)


def shareable(model: Model, protocol: str) -> IntegerModel:
    """The model, if a protocol that computes on shares can serve it. Raises ProgramError that names those that can."""
    if isinstance(model, IntegerModel):
        return model
    raise ProgramError(
        f"protocol {protocol!r} computes in rings of at most 32 bits and serves no polynomial network: use bfv "
        "or ckks, or quantize the network with pqi.quantize"
    )


def _secrets(model: Model, program: pqi.program.Program | KeyedProgram) -> Mapping[PartyId, Mapping[str, Tensor]]:
    """What each party holds besides the program: shares, masks; under a keyed protocol the server its own weights."""
    if isinstance(program, KeyedProgram):
        return {PartyId.P0: keyed_tensors(model, program)}
    return pqi.program.split_weights(shareable(model, program.protocol), program)


def _write_client(
    model: Model, program: pqi.program.Program | KeyedProgram, directory: Path, addresses: Mapping[str, str]
) -> dict[str, Any]:
    """The client's configuration file, and what its bundle says: question and answer, no layer.

    Under a keyed protocol it needs the circuit, for that decides where in a ciphertext a value stands; no weight.
    """
    write_private(directory / CONFIG_FILE, _client_toml(addresses).encode())
    return {
        "program": program.to_json() if isinstance(program, KeyedProgram) else program.interface.to_json(),
        "input": InputSpec.of_model(model).to_json(),
        "output_scale": float(model.output_scale),
    }


def _write_secrets(tensors: Mapping[str, Tensor], directory: Path) -> dict[str, Any]:
    """A server's or the dealer's tensors, and what its bundle says beyond the common part."""
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_private(directory / SECRETS_FILE, data)
    return {"secrets_sha256": hashlib.sha256(data).hexdigest()}


def make_keys(directory: str | Path) -> Path:
    """Make a certificate authority and TLS files for every role whose bundle lies below ``directory``.

    The authority's key stays in ``directory``/authority (mode 0600): keep it away from the servers.
    Raises BundleError if there is no bundle, FileExistsError rather than replace a key.
    """
    directory = Path(directory)
    known = (*SERVERS.values(), DEALER, CLIENT)
    roles = [role for role in known if (directory / role / BUNDLE_FILE).is_file()]
    if not roles:
        raise BundleError(f"{directory} holds no bundle; `pqi split` makes them, then come the keys")
    write_keys(directory, roles)
    return directory


def _addresses(program: pqi.program.Program | KeyedProgram, given: Mapping[str, str]) -> dict[str, str]:
    needed = [SERVERS[party] for party in program.parties]
    missing = [role for role in needed if role not in given]
    if missing:
        raise BundleError(f"no address for {', '.join(missing)}; give each compute server as host:port")
    try:
        return {role: format_address(parse_address(given[role])) for role in needed}
    except ValueError as error:
        raise BundleError(str(error)) from None


def _client_toml(addresses: Mapping[str, str]) -> str:
    lines = ["# Paths are relative to this file.", 'bundle = "."', "timeout = 8.0", "", "[addresses]"]
    lines += [f'{role} = "{address}"' for role, address in addresses.items()]
    lines += ["", "[tls]", 'ca = "tls/ca.pem"', 'certificate = "tls/cert.pem"', 'key = "tls/key.pem"', ""]
    return "\n".join(lines)
