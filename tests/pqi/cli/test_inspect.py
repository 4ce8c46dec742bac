from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pqi as package
from pqi.audit.defences.outputs import harden
from tests import networks
from tests.pqi.cli.clikit import pqi


@pytest.mark.parametrize("protocol", ["additive2", "clear"])
@pytest.mark.parametrize("network", ["lan", "wan"])
def test_the_costs_shown_are_those_of_the_program(model_file: Path, protocol: str, network: str) -> None:
    facts_file = model_file.with_suffix(".json")
    result = pqi("inspect", model_file, "--protocol", protocol, "--network", network, "--json", facts_file)
    assert result.exit_code == 0, result.output
    facts, program = json.loads(facts_file.read_text()), package.compile(package.load(model_file), protocol, network)
    cost = program.cost(1)
    assert facts["total"] == {
        "exchanges": cost.exchanges,
        "online_bytes_per_party": cost.online_bytes,
        "dealt_bytes": cost.dealt_bytes,
    }
    for key in facts["total"]:
        assert sum(layer[key] for layer in facts["layers"]) == facts["total"][key]
    assert facts["security"] == {
        "adversary": program.security.adversary,
        "learns": dict(program.security.learns),
    }
    assert (facts["digest"], facts["exact"]) == (program.digest, True)


def test_the_screen_shows_every_layer_every_role_and_the_adversary_in_100_columns(
    model: package.IntegerModel, model_file: Path
) -> None:
    result = pqi("inspect", model_file)
    text = " ".join(result.stdout.split())
    for node in model.graph.nodes:
        assert node.name in text
    security = package.compile(model).security
    assert all(role in text for role in security.learns)
    assert security.adversary in text
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    assert "private answers equal the integer model's in every bit" in text


def test_stochastic_rounding_is_never_called_exact(model_file: Path) -> None:
    facts_file = model_file.with_suffix(".json")
    result = pqi("inspect", model_file, "--rounding", "stochastic", "--json", facts_file)
    assert result.exit_code == 0
    assert json.loads(facts_file.read_text())["exact"] is False
    assert "no: stochastic rounding may raise a code by one" in result.stdout


def test_answers_with_noise_are_never_called_exact_and_both_who_know_of_it_are_named(
    model: package.IntegerModel, model_file: Path
) -> None:
    harden(model, "noisy:25").save(model_file)
    facts_file = model_file.with_suffix(".json")
    for rounding in ("exact", "stochastic"):
        result = pqi("inspect", model_file, "--rounding", rounding, "--json", facts_file)
        assert result.exit_code == 0, result.output
        facts, text = json.loads(facts_file.read_text()), " ".join(result.stdout.split())
        assert (facts["exact"], facts["noise"], facts["answers"]) == (False, 225, "noisy:25")
        assert "answers have noise, at most 225 on every integer" in text
        assert ("less their noise they equal" in text) == (rounding == "exact")
        assert "draws the noise of every answer" in text
        assert "standard deviation 25 and at most 225" in facts["security"]["learns"]["client"]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 64])
def test_a_file_that_is_no_model_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.pqi"
    path.write_bytes(content)
    result = pqi("inspect", path)
    assert result.exit_code == 1
    assert "hostile.pqi" in result.stderr and "Traceback" not in result.output


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    result = pqi("inspect", tmp_path / "nowhere.pqi")
    assert result.exit_code == 1
    assert "nowhere.pqi" in result.stderr


@pytest.mark.parametrize("rings", ["proven", "calibrated"])
def test_a_lookup_is_shown_as_arithmetic_that_wraps_by_definition(tmp_path: Path, rings: str) -> None:
    path, facts_file = tmp_path / "cyclic.pqi", tmp_path / "facts.json"
    networks.integer_model(networks.cyclic_graph(8), rings).save(path)
    result = pqi("inspect", path, "--json", facts_file)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "wrap1 mod 2^8 by definition, wrap2 mod 2^8 by definition" in text
    assert ("no input can wrap, but for lookups:" in text) == (rings == "proven")
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    layers = {layer["name"]: layer for layer in json.loads(facts_file.read_text())["layers"]}
    assert [name for name, layer in layers.items() if layer["cyclic"]] == ["wrap1", "wrap2"]
    assert (layers["wrap1"]["index"], layers["wrap1"]["reads"], layers["conv1"]["ring"]) == ("mod 2^8", 8, 8)
    assert layers["wrap1"]["primitives"] == ["Table"]


def test_a_hardened_model_says_what_its_client_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    package.quantize(net, torch.rand(30, 4), answers="label").save(tmp_path / "m.pqi")
    result = pqi("inspect", tmp_path / "m.pqi", "--json", tmp_path / "costs.json")
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "costs.json").read_text())
    assert facts["answers"] == "label"
    assert facts["security"]["learns"]["client"].startswith("its label only")
    assert "computed inside the protocol" in result.output
