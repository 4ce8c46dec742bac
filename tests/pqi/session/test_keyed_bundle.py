"""What the two roles of a keyed protocol hold on disk, and what is refused when it is read or made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyedkit
import pytest
import safetensors.torch
import torch
from keyedkit import affine_model, deep_model, make_deployment

from pqi.program.errors import ProgramError
from pqi.session.bundle import load_client, load_dealer, load_server
from pqi.session.errors import BundleError
from pqi.session.inputs import InputSpec
from pqi.session.local import local
from pqi.session.owner import split


@pytest.fixture(scope="module", autouse=True)
def protocols_of_the_kit() -> Iterator[None]:
    with keyedkit.registered():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deployment(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundles(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "d")
    return tmp_path / "d"


def edit(path: Path, **fields: Any) -> None:
    document = json.loads(path.read_text())
    document.update(fields)
    path.write_text(json.dumps(document))


def test_there_is_one_server_a_client_and_no_dealer(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"server_a", "client", "authority"}


def test_both_hold_the_program_and_only_the_server_the_weights(made: Path) -> None:
    server, client = load_server(made / "server_a"), load_client(made / "client")
    assert (server.program.digest, server.deployment) == (client.program.digest, client.deployment)
    assert torch.equal(server.tensors["fc.weight"], affine_model().graph.by_name["fc"].op.weight)
    assert not (made / "client" / "secrets.safetensors").exists()
    common = {"role", "deployment", "addresses", "directory", "program"}
    assert set(vars(server)) == {*common, "tensors", "answers_per_client"}
    assert set(vars(client)) == {*common, "input", "output_scale"}


def test_the_client_s_folder_is_the_same_whatever_the_weights(made: Path, tmp_path: Path) -> None:
    other = make_deployment(tmp_path, affine_model(seed=2))
    mine, theirs = (json.loads((path / "client" / "bundle.json").read_text()) for path in (made, other))
    apart = {"deployment", "addresses", "program", "digest"}
    assert {k: v for k, v in mine.items() if k not in apart} == {k: v for k, v in theirs.items() if k not in apart}
    # Of the program only the proven bits of the answer may differ: they are public, and stated in SECURITY.md.
    for document in (mine, theirs):
        for stage in document["program"]["plan"]["circuit"]["stages"]:
            del stage["bits"]
    assert mine["program"] == theirs["program"]


def test_representations_show_no_tensor(made: Path) -> None:
    assert "tensor" not in repr(load_server(made / "server_a"))


def test_a_client_encodes_as_the_model_does(made: Path) -> None:
    spec = load_client(made / "client").input
    assert spec == InputSpec.of_model(affine_model())
    assert InputSpec.of_model(deep_model()).lo == -128


def test_a_dealer_s_bundle_is_asked_for_in_vain(made: Path) -> None:
    with pytest.raises(BundleError, match=r"here a bundle of dealer is needed. Protocol 'toy' has no dealer"):
        load_dealer(made / "server_a")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"digest": "0" * 64}, "was altered: its program has digest"),
        ({"program": {"protocol": "toy"}}, "the program in it is refused"),
        ({"program": {"protocol": "unheard of"}}, "the program in it is refused"),
        ({"role": "server_b"}, "protocol 'toy' has no server_b"),
        ({"secrets_sha256": "0" * 64}, "truncated, altered, or of another bundle"),
    ],
)
def test_an_altered_field_is_named(bundles: Path, fields: dict[str, Any], says: str) -> None:
    edit(bundles / "server_a" / "bundle.json", **fields)
    with pytest.raises(BundleError, match=says):
        load_server(bundles / "server_a")


def test_a_plan_altered_in_one_number_is_found_by_its_digest(bundles: Path) -> None:
    for role, read in (("server_a", load_server), ("client", load_client)):
        path = bundles / role / "bundle.json"
        document = json.loads(path.read_text())
        document["program"]["plan"]["group"] = 3
        path.write_text(json.dumps(document))
        with pytest.raises(BundleError, match="was altered"):
            read(bundles / role)


def test_secrets_cut_short_are_refused(bundles: Path) -> None:
    path = bundles / "server_a" / "secrets.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"secrets\.safetensors is truncated"):
        load_server(bundles / "server_a")
    safetensors.torch.save_file({"fc.weight": torch.ones(3, 6)}, path)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        load_server(bundles / "server_a")


def test_options_reach_the_plan(tmp_path: Path) -> None:
    make_deployment(tmp_path, group=2)
    assert load_client(tmp_path / "client").program.plan.group == 2


def test_options_mean_nothing_to_protocols_on_shares_and_are_refused(tmp_path: Path) -> None:
    for protocol in ("additive2", "clear"):
        with pytest.raises(ProgramError, match=rf"protocol '{protocol}' takes no options; packing are of paillier"):
            split(affine_model(), tmp_path, protocol=protocol, options={"packing": "batch"})
    assert list(tmp_path.iterdir()) == []


def test_a_rounding_means_nothing_under_a_key_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="protocol 'toy' rounds nothing: rounding = 'stochastic'"):
        split(affine_model(), tmp_path, protocol="toy", rounding="stochastic")


def test_a_polynomial_network_is_refused_by_protocols_on_shares_with_those_that_serve(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="serves no polynomial network: use bfv or ckks"):
        split(deep_model(), tmp_path, protocol="additive2")
    with pytest.raises(ProgramError, match="serves no polynomial network"), local(deep_model()):
        pass
