from __future__ import annotations

import hashlib
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from sessionkit import inputs, make_deployment, small_model

from pqi.graph.errors import InputError, SaturationWarning
from pqi.session.bundle import load_client, load_dealer, load_server
from pqi.session.config import load_config
from pqi.session.errors import BundleError
from pqi.session.inputs import InputSpec
from pqi.session.owner import make_keys, split
from pqi.session.server import ComputeServer
from protocols.rounds import PartyId


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_deployment(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundles(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "d")
    return tmp_path / "d"


def edit(path: Path, **fields: Any) -> None:
    document = json.loads(path.read_text())
    for name, value in fields.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    path.write_text(json.dumps(document))


def test_every_role_gets_its_folder_and_secrets_are_for_the_owner_only(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"server_a", "server_b", "dealer", "client", "authority"}
    for role in ("server_a", "server_b", "dealer"):
        assert stat.S_IMODE((made / role / "secrets.safetensors").stat().st_mode) == 0o600
    assert not (made / "client" / "secrets.safetensors").exists()


def test_loaded_roles_agree_on_deployment_and_program(made: Path) -> None:
    a, b = load_server(made / "server_a"), load_server(made / "server_b")
    dealer, client = load_dealer(made / "dealer"), load_client(made / "client")
    assert (a.party, b.party) == (PartyId.P0, PartyId.P1)
    assert len({x.deployment for x in (a, b, dealer, client)}) == 1
    assert len({x.program.digest for x in (a, b, dealer, client)}) == 1


def test_the_client_s_folder_says_nothing_about_the_layers(made: Path) -> None:
    text = "".join(path.read_text() for path in (made / "client").iterdir() if path.is_file())
    layers = {i.layer for i in load_server(made / "server_a").program.instructions}
    assert layers
    assert "instructions_sha256" in text
    assert not any(f'"{layer}"' in text for layer in layers)
    assert not hasattr(load_client(made / "client").program, "instructions")


def test_no_role_has_a_field_for_what_it_must_not_know(made: Path) -> None:
    client = load_client(made / "client")
    assert not hasattr(client, "tensors")
    known = {"role", "deployment", "program", "addresses", "directory", "tensors"}
    assert set(vars(load_server(made / "server_a"))) == {*known, "answers_per_client"}
    assert set(vars(load_dealer(made / "dealer"))) == known


def test_representations_show_no_tensor(made: Path) -> None:
    for bundle in (load_server(made / "server_a"), load_dealer(made / "dealer")):
        assert "tensor" not in repr(bundle)


def test_a_single_server_protocol_needs_no_second_server_and_no_dealer(tmp_path: Path) -> None:
    make_deployment(tmp_path, protocol="clear")
    assert {path.name for path in tmp_path.iterdir()} == {"server_a", "client", "authority"}
    assert load_server(tmp_path / "server_a").program.parties == (PartyId.P0,)


def test_the_shares_of_two_splits_differ(made: Path, tmp_path: Path) -> None:
    other = make_deployment(tmp_path)
    mine, theirs = load_server(made / "server_a"), load_server(other / "server_a")
    assert mine.program.digest == theirs.program.digest
    assert mine.deployment != theirs.deployment
    assert any(not torch.equal(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)


def test_a_split_never_replaces_a_bundle(made: Path) -> None:
    with pytest.raises(BundleError, match="a split never replaces one"):
        split(small_model(), made)


def test_keys_without_bundles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        make_keys(tmp_path)


def test_an_address_that_is_missing_or_malformed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no address for server_b"):
        split(small_model(), tmp_path, addresses={"server_a": "h:1"})
    with pytest.raises(BundleError, match="'nonsense' is not of the form host:port"):
        split(small_model(), tmp_path, addresses={"server_a": "nonsense", "server_b": "h:2"})


def test_the_bundle_of_another_role_is_refused_by_name(bundles: Path) -> None:
    with pytest.raises(BundleError, match="is the bundle of 'dealer'; here a bundle of server_a or server_b is needed"):
        load_server(bundles / "dealer")
    with pytest.raises(BundleError, match="is the bundle of 'server_a'; here a bundle of client"):
        load_client(bundles / "server_a")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": "zip"}, "is not a bundle"),
        ({"version": 2}, "bundle version 2, this release reads 1"),
        ({"version": None}, "bundle version None"),
        ({"role": None}, "field 'role' is missing"),
        ({"deployment": "zz"}, "'deployment' is not 32 hexadecimal digits"),
        ({"digest": "0" * 64}, "was altered: its program has digest"),
        ({"program": {}}, "the program in it is refused"),
        ({"program": []}, "field 'program' is missing or not of type dict"),
        ({"addresses": {"server_b": "h:1"}}, "lacks server_a"),
        ({"addresses": {"server_a": "h", "server_b": "h:1"}}, "address of server_a"),
        ({"addresses": {"mallory": "h:1"}}, "entry for 'mallory'"),
        ({"secrets_sha256": "0" * 64}, "truncated, altered, or of another bundle"),
        ({"secrets_sha256": None}, "field 'secrets_sha256' is missing"),
    ],
)
def test_an_altered_field_is_named(bundles: Path, fields: dict[str, Any], says: str) -> None:
    edit(bundles / "server_a" / "bundle.json", **fields)
    with pytest.raises(BundleError, match=says):
        load_server(bundles / "server_a")


def test_a_program_altered_in_one_number_is_found_by_its_digest(bundles: Path) -> None:
    path = bundles / "server_b" / "bundle.json"
    document = json.loads(path.read_text())
    document["program"]["output"]["ring"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"was altered|is refused"):
        load_server(bundles / "server_b")


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_refused_by_name(bundles: Path, keep: int) -> None:
    for name in ("bundle.json", "secrets.safetensors"):
        path = bundles / "server_a" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:keep])
        with pytest.raises(BundleError, match=name):
            load_server(bundles / "server_a")
        path.write_bytes(whole)
    load_server(bundles / "server_a")


def test_secrets_open_to_everyone_are_refused(bundles: Path) -> None:
    (bundles / "dealer" / "secrets.safetensors").chmod(0o644)
    with pytest.raises(BundleError, match="open to every user"):
        load_dealer(bundles / "dealer")


def test_secrets_of_another_role_are_refused(bundles: Path) -> None:
    shutil.copy(bundles / "server_b" / "secrets.safetensors", bundles / "server_a" / "secrets.safetensors")
    with pytest.raises(BundleError, match="of another bundle"):
        load_server(bundles / "server_a")


def test_tensors_that_are_not_integers_are_refused(bundles: Path) -> None:
    data = safetensors.torch.save({"w": torch.ones(3)})
    (bundles / "server_a" / "secrets.safetensors").write_bytes(data)
    edit(bundles / "server_a" / "bundle.json", secrets_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(BundleError, match=r"tensor 'w' has dtype torch.float32"):
        load_server(bundles / "server_a")


def test_tensors_that_do_not_fit_the_program_keep_a_server_from_starting(bundles: Path) -> None:
    data = safetensors.torch.save({"unknown": torch.ones(3, dtype=torch.int16)})
    (bundles / "server_a" / "secrets.safetensors").write_bytes(data)
    edit(bundles / "server_a" / "bundle.json", secrets_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(BundleError, match="its tensors do not fit its program"):
        ComputeServer(load_server(bundles / "server_a"))


def test_deep_nesting_and_missing_files_end_in_a_clear_error(bundles: Path) -> None:
    (bundles / "server_a" / "bundle.json").write_text("[" * 200_000)
    with pytest.raises(BundleError, match="not valid JSON"):
        load_server(bundles / "server_a")
    with pytest.raises(BundleError, match=r"cannot be read: No such file.*pqi split"):
        load_server(bundles / "nowhere")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"output_scale": 0}, "output_scale is 0"),
        ({"output_scale": "1"}, "'output_scale' is missing or not of type float"),
        ({"input": {}}, r"input\.shape"),
        ({"input": {"shape": [6], "lo": -128, "hi": 127, "quantizer": {"scale": 1}}}, r"input\.quantizer"),
        (
            {
                "input": {
                    "shape": [6],
                    "lo": 0,
                    "hi": 1,
                    "quantizer": {"scale": 1.0, "offset": 0.5, "modulus": 256, "signed": True},
                }
            },
            r"input\.lo",
        ),
        (
            {
                "input": {
                    "shape": [6],
                    "lo": 0,
                    "hi": 1,
                    "quantizer": {"scale": -1, "offset": 0.5, "modulus": 256, "signed": True},
                }
            },
            r"input\.quantizer.*must be positive",
        ),
    ],
)
def test_a_clients_altered_field_is_named(bundles: Path, fields: dict[str, Any], says: str) -> None:
    edit(bundles / "client" / "bundle.json", **fields)
    with pytest.raises(BundleError, match=says):
        load_client(bundles / "client")


def test_a_client_encodes_as_the_model_does(made: Path) -> None:
    spec, model = load_client(made / "client").input, small_model()
    assert torch.equal(spec.encode(inputs(50), "silent"), model.encode(inputs(50), "silent"))
    assert spec == InputSpec.of_model(model)
    assert spec.size == 6


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(6), r"shape \(6,\): \(N, 6\) is needed\. Add the batch axis"),
        (torch.zeros(2, 5), r"shape \(2, 5\): \(N, 6\) is needed"),
        (torch.zeros(2, 6, dtype=torch.complex64), "dtype complex64"),
        ([["a"] * 6], "dtype <U1"),
        ([[1.0, 2.0], [3.0]], "no array of numbers"),
        (torch.full((2, 6), float("nan")), r"12 NaN and 0 infinite values, the first at index \(0, 0\)"),
        (torch.full((1, 6), float("-inf")), "0 NaN and 6 infinite"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_the_reason(made: Path, x: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_client(made / "client").input.encode(x)


def test_values_out_of_range_saturate_and_say_so(made: Path) -> None:
    spec = load_client(made / "client").input
    with pytest.warns(
        SaturationWarning, match=r"6 of 6 input values \(100.000%\) lie outside the calibrated range \[-12.8, 12.7\]"
    ):
        assert spec.encode(torch.full((1, 6), 1000.0)).unique().tolist() == [127]
    with pytest.raises(InputError, match="Nothing was computed or sent"):
        spec.encode(torch.full((1, 6), 1000.0), "error")
    with pytest.raises(InputError, match="on_saturation is 'maybe'"):
        spec.encode(torch.zeros(1, 6), "maybe")


def test_a_written_configuration_reads_back(made: Path) -> None:
    config = load_config(made / "client" / "client.toml")
    assert config.bundle.resolve() == (made / "client").resolve()
    assert set(config.addresses) == {"server_a", "server_b"}
    assert config.tls.key.is_file()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not toml at all", "not valid TOML"),
        ("colour = 1", "unknown field 'colour'"),
        ("timeout = -1", "field 'timeout' is -1"),
        ("timeout = nan", "field 'timeout' is nan"),
        ("timeout = true", "field 'timeout' is True"),
        ("bundle = 5", "'bundle' must be a path"),
        ("[addresses]\nmallory = 'h:1'", r"addresses\.mallory"),
        ("[addresses]\nserver_a = 'h'", r"addresses\.server_a.*host:port"),
        ("addresses = 1", "'addresses' must be a table"),
        ("[tls]\npassword = 'x'", "'tls' may hold"),
    ],
)
def test_a_bad_configuration_is_refused_with_the_field(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "client.toml").write_text(text)
    with pytest.raises(BundleError, match=says):
        load_config(tmp_path / "client.toml")
    with pytest.raises(BundleError, match="cannot be read"):
        load_config(tmp_path / "other.toml")
