"""Who may know the weights, as operators type it: split, inspect, and a client that is server B itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pqi as package
from pqi.cli.options import KnownTo
from pqi.program import Program
from pqi.session.bundle import load_server
from protocols import api
from protocols.rounds import PartyId
from tests.pqi.cli.clikit import ended, pqi, start, wait_until
from tests.pqi.cli.conftest import samples
from tests.pqi.cli.test_deployment import ask, cut, running


def program_of(model_file: Path, weights: object) -> Program:
    return package.compile(package.load(model_file), weights=weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("typed", "weights"),
    [
        (["owned"], "owned"),
        (["public"], "public"),
        (["shared"], "shared"),
        (["owned", "0=public"], {"*": "owned", "0": "public"}),
        (["4=owned"], {"4": "owned"}),
    ],
)
def test_inspect_shows_what_each_server_sends_and_learns(model_file: Path, typed: list[str], weights: object) -> None:
    names = [node.name for node in package.load(model_file).graph.nodes]
    renamed = {"0": names[1], "4": names[-1]}  # the first and the last layer, whatever they are called
    typed = [t if "=" not in t else f"{renamed[t.split('=')[0]]}={t.split('=')[1]}" for t in typed]
    if isinstance(weights, dict):
        weights = {renamed.get(name, name): v for name, v in weights.items()}
    facts_file = model_file.with_suffix(".json")
    options = [word for t in typed for word in ("--weights", t)]
    result = pqi("inspect", model_file, *options, "--json", facts_file)
    assert result.exit_code == 0, result.output
    facts, program = json.loads(facts_file.read_text()), program_of(model_file, weights)
    cost = program.cost(1)
    assert facts["digest"] == program.digest
    assert facts["visibilities"] == list(program.visibilities)
    assert facts["sent_bytes"] == {
        "server_a": cost.sent_bytes(PartyId.P0),
        "server_b": cost.sent_bytes(PartyId.P1),
    }
    assert facts["security"]["learns"] == dict(program.security.learns)
    text = " ".join(result.stdout.split())
    for visibility in ("owned", "public"):
        assert (f"Linear ({visibility})" in text) == (visibility in program.visibilities)
    assert ("from server_a" in text) == (program.visibilities != ("shared",))
    assert max(len(line) for line in result.stdout.splitlines()) <= 100


@pytest.mark.parametrize("typed", [["mine"], ["=owned"], ["owned", "public"], ["conv=owned", "conv=owned"], ["conv="]])
def test_a_setting_that_is_none_is_refused_before_anything_is_read(tmp_path: Path, typed: list[str]) -> None:
    options = [word for t in typed for word in ("--weights", t)]
    result = pqi("inspect", tmp_path / "nowhere.pqi", *options)
    assert result.exit_code != 0
    assert "Traceback" not in result.output


def test_the_settings_of_the_option_are_those_of_the_protocols() -> None:
    assert tuple(each.value for each in KnownTo) == api.VISIBILITIES


def test_a_layer_that_is_none_is_an_error_that_names_those_there_are(model_file: Path) -> None:
    result = pqi("split", model_file, "-o", model_file.parent / "b", "--weights", "conv99=owned")
    assert result.exit_code == 1
    assert "'conv99'" in result.stderr and "there are" in result.stderr
    assert not (model_file.parent / "b").exists()


def test_a_keyed_protocol_takes_no_weights_option(model_file: Path) -> None:
    result = pqi("inspect", model_file, "--protocol", "bfv", "--weights", "owned")
    assert result.exit_code == 1
    assert "its one server owns them all" in result.stderr


def test_split_says_what_each_role_holds_and_who_may_run_server_b(model_file: Path) -> None:
    facts = model_file.with_suffix(".json")
    result = pqi("split", model_file, "-o", model_file.parent / "b", "--weights", "owned", "--json", facts)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "masked" in text  # in a column as narrow as the folder's name leaves it
    assert "--own-server" in text
    told = json.loads(facts.read_text())
    assert told["digest"] == program_of(model_file, "owned").digest
    assert told["visibilities"] == ["owned"]


@pytest.mark.slow
def test_a_client_that_is_server_b_itself_asks_exactly(model: package.IntegerModel, model_file: Path) -> None:
    bundles, x, folder = cut(model_file, "--weights", "owned"), samples(20, 5), model_file.parent
    with running(bundles, "server_a"):
        dealer = start("deal", bundles / "dealer", "--json", folder / "dealt.json", folder=folder)
        with ended(dealer):
            own = ("--own-server", bundles / "server_b")
            result = ask(bundles, x, "-o", folder / "answer.npy", "--json", folder / "answer.json", *own)
            assert result.exit_code == 0, result.output
            wait_until((folder / "dealt.json").exists, "the dealer has told of its epoch")
    assert np.array_equal(np.load(folder / "answer.npy", allow_pickle=False), model.predict(x))
    told = json.loads((folder / "answer.json").read_text())
    cost = load_server(bundles / "server_a").program.cost(20)
    assert told["ledger"]["online_bytes"] == {
        "server_a": cost.sent_bytes(PartyId.P0),
        "server_b": cost.sent_bytes(PartyId.P1),
    }
