"""Inspect, split, serve, predict and demo under a client's key: as their users type them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pqi as package
from pqi.demo import keyed_story
from pqi.demo.keyed_outcome import Compared, KeyedOutcome
from pqi.demo.outcome import Plain
from pqi.program.keyed import compile_keyed
from pqi.session.ledger import Ledger, OwnLedger, PartyLedger
from pqi.session.local import free_ports
from tests.pqi.cli.clikit import ended, left_in, pqi, processes_that_mention, start, wait_until
from tests.pqi.cli.test_demo import KEYS, needs_proc, needs_sklearn

pytest.importorskip("phe")
FEATURES = 5


def samples(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def linear() -> package.IntegerModel:
    generator = torch.Generator().manual_seed(1)
    net = nn.Linear(FEATURES, 3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return package.quantize(net.eval(), samples(100), input_range=(-1.0, 1.0))


@pytest.fixture
def linear_file(linear: package.IntegerModel, tmp_path: Path) -> Path:
    linear.save(tmp_path / "linear.pqi")
    return tmp_path / "linear.pqi"


@pytest.fixture
def bundles(linear_file: Path) -> Path:
    folder = linear_file.parent / "bundles"
    where = ("--server-a", f"127.0.0.1:{free_ports(1)[0]}")
    result = pqi("split", linear_file, "-o", folder, "--protocol", "paillier", "--option", "key_bits=2048", *where)
    assert result.exit_code == 0, result.output
    assert pqi("keys", folder).exit_code == 0
    return folder


def words(text: str) -> str:
    return " ".join(text.split())


def test_inspect_shows_stages_parameters_bytes_and_who_learns_what(
    linear: package.IntegerModel, linear_file: Path
) -> None:
    facts_file = linear_file.with_suffix(".json")
    result = pqi("inspect", linear_file, "--protocol", "paillier", "--json", facts_file)
    assert result.exit_code == 0, result.output
    facts, program = json.loads(facts_file.read_text()), compile_keyed(linear, "paillier")
    assert (facts["digest"], facts["exact"], facts["depth"]) == (program.digest, True, 0)
    assert facts["facts"] == dict(program.plan.facts())
    for row in facts["costs"]:
        cost = program.cost(row["inputs"])
        assert (row["key_bytes"], row["question_bytes"]) == (cost.keys, cost.question)
        assert (row["answer_bytes"], row["parts"]) == (cost.answer, len(cost.questions))
    assert [row["inputs"] for row in facts["costs"]] == [1, program.plan.max_batch]
    assert [(row["entries"], row["values"]) for row in facts["stages"]] == [(15, 3)]
    text = words(result.stdout)
    assert "one server, one key" in text and program.security.adversary in text
    assert "dealer" not in text
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_options_reach_the_plan_and_those_that_are_none_are_refused_by_name(linear_file: Path) -> None:
    assert "2048" in pqi("inspect", linear_file, "--protocol", "paillier", "--option", "key_bits=2048").stdout
    unknown = pqi("inspect", linear_file, "--protocol", "paillier", "--option", "colour=blue")
    assert unknown.exit_code == 1 and "no option 'colour'" in unknown.stderr
    for wrong in ("packing", "=1", "a="):
        result = pqi("inspect", linear_file, "--protocol", "paillier", "--option", wrong)
        assert result.exit_code == 2 and "NAME=VALUE is needed" in words(result.stderr)
    shares = pqi("inspect", linear_file, "--option", "packing=batch")
    assert shares.exit_code == 1 and "protocol additive2 takes no --option" in shares.stderr
    assert pqi("split", linear_file, "-o", linear_file.parent / "b", "--option", "packing=batch").exit_code == 1


@pytest.mark.parametrize("protocol", ["paillier", "bfv", "ckks"])
def test_a_network_that_a_protocol_cannot_compute_is_refused_by_layer(model_file: Path, protocol: str) -> None:
    for command in (("inspect", model_file), ("split", model_file, "-o", model_file.parent / "b")):
        result = pqi(*command, "--protocol", protocol)
        assert result.exit_code == 1
        assert "layer" in result.stderr and "Traceback" not in result.output
    assert not (model_file.parent / "b").exists()


def test_split_makes_one_server_and_a_client_without_weights(linear_file: Path, bundles: Path) -> None:
    assert {path.name for path in bundles.iterdir()} == {"authority", "server_a", "client"}
    result = pqi("split", linear_file, "-o", linear_file.parent / "c", "--protocol", "paillier")
    assert "the weights; no key" in words(result.stdout) and "it makes its keys itself" in words(result.stdout)
    assert not (bundles / "client" / "secrets.safetensors").exists()


def test_commands_that_only_make_sense_for_shares_say_so(bundles: Path, calibration: Path) -> None:
    result = pqi("deal", bundles / "server_a")
    assert result.exit_code == 1
    assert "Protocol 'paillier' has no dealer" in words(result.stderr)
    more = ("--calibration", calibration, "--validation", calibration, "-o", bundles.parent / "t.pqi")
    result = pqi("tune", "nothing:here", *more, "--protocol", "bfv")
    assert result.exit_code == 2
    assert "computes under a client's key" in words(result.stderr.replace("│", ""))


@pytest.mark.slow
@needs_proc
def test_an_operator_serves_and_a_client_asks_exactly(linear: package.IntegerModel, bundles: Path) -> None:
    folder, x = bundles.parent, samples(70, 3)
    np.save(folder / "x.npy", x)
    ready = folder / "ready.json"
    server = start("serve", bundles / "server_a", "--workers", 1, "--json", ready, folder=folder)
    ask = ("predict", "--config", bundles / "client" / "client.toml", "--input", folder / "x.npy")
    with ended(server):
        wait_until(partial(_settled, ready, server), "the server listens")
        result = pqi(*ask, "-o", folder / "answer.npy", "--json", folder / "answer.json")
        assert result.exit_code == 0, result.output
        told = json.loads((folder / "answer.json").read_text())
        assert told["integers"] == linear.integers(linear.encode(x)).tolist()
        assert (told["exact"], told["error_bound"]) == (True, 0.0)
        assert np.array_equal(np.load(folder / "answer.npy"), linear.predict(x))
        program = compile_keyed(linear, "paillier", {"key_bits": 2048})
        assert told["ledger"]["client"]["key_bytes"] == program.cost(1).keys
        assert told["ledger"]["parties"]["server_a"]["client_received"] == program.cost(70).question
        text = words(result.stdout)
        assert "of evaluation keys sent, made in" in text and "to encrypt" in text
        assert "exact: equal to the integer model" in text and "dealt" not in text
        workers = [int(c) for t in Path(f"/proc/{server.pid}/task").glob("*/children") for c in t.read_text().split()]
        assert len(workers) == 1
        server.send_signal(signal.SIGINT)
        log, _ = server.communicate(timeout=30)
        assert server.returncode == 0 and "Traceback" not in log, log
        assert not Path(f"/proc/{workers[0]}").exists()
    assert pqi(*ask).exit_code == 1


def _settled(ready: Path, process: subprocess.Popen[str]) -> bool:
    return ready.exists() or process.poll() is not None


# ---------------------------------------------------------------------- the demonstration


def outcome(linear: package.IntegerModel, **changes: object) -> KeyedOutcome:
    """A run of ten samples in two queries in which everything is as claimed."""
    program = compile_keyed(linear, "paillier", {"key_bits": 2048})
    costs = (program.cost(6), program.cost(4))
    sent, got = sum(cost.question for cost in costs), sum(cost.answer for cost in costs)
    party = PartyLedger("server_a", 2, 0.0, 0.0, 0, 0.2, 0, 0, 0, 0, sent, got, 1)
    ledger = Ledger({"server_a": party}, 10, 2, 0.5, OwnLedger(costs[0].keys, 0.1, 0.1, 0.1, 12.0))
    fields: dict[str, object] = {
        "network": "net", "protocol": "paillier", "roles": ("server_a", "client"), "samples": 10, "batch": 6,
        "plain": Plain(1.0, 0.9, 0.001, 0.002), "compared": Compared(10, 0.0, 0.0, 10), "private_accuracy": 0.9,
        "declared": costs, "ledger": ledger, "facts": program.plan.facts(), "peak_rss_mb": {"client": 300.0},
        "security": program.security, "versions": {"pqi": "1"}, "machine": {"cores": 2},
    }  # fmt: skip
    return KeyedOutcome(**{**fields, **changes})  # type: ignore[arg-type]


def told(monkeypatch: pytest.MonkeyPatch, made: KeyedOutcome) -> tuple[int, str]:
    monkeypatch.setattr(keyed_story, "tell", lambda plan, teller: made)
    result = pqi("demo", "--protocol", made.protocol)
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    return result.exit_code, words(result.stdout)


def test_a_run_that_kept_its_word_exits_with_zero(
    linear: package.IntegerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, text = told(monkeypatch, outcome(linear))
    assert (status, "Private = integer: 100.000 %. All 10 private answers equal" in text) == (0, True)
    assert "Measured = declared, to the byte" in text and "12 bits in the worst answer" in text


def test_one_answer_that_differs_is_told_and_exits_with_one(
    linear: package.IntegerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, text = told(monkeypatch, outcome(linear, compared=Compared(9, 1.0, 0.0, 10)))
    assert (status, "1 of 10 private answers differ from the integer model's" in text) == (1, True)


@pytest.mark.parametrize(
    ("found", "status", "says"),
    [
        (Compared(None, 0.1, 0.2, 10), 0, "Approximate, within its bound: largest error 0.1, bound 0.2. 10 of 10"),
        (Compared(None, 0.1, 0.2, 9), 1, "9 of 10 decisions equal the integer model's"),
        (Compared(None, 0.3, 0.2, 10), 1, "An error of 0.3 exceeds the bound 0.2."),
    ],
)
def test_an_approximate_run_is_held_to_its_bound_and_to_its_decisions(
    linear: package.IntegerModel, monkeypatch: pytest.MonkeyPatch, found: Compared, status: int, says: str
) -> None:
    made = outcome(linear, compared=found, protocol="ckks")
    ended_with, text = told(monkeypatch, made)
    assert (ended_with, says in text) == (status, True)
    assert made.to_json()["private_equals_integer"] is None


def test_one_byte_that_was_not_declared_is_told_and_exits_with_one(
    linear: package.IntegerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = outcome(linear)
    costs = (replace(made.declared[0], keys=made.declared[0].keys + 1), made.declared[1])
    status, text = told(monkeypatch, outcome(linear, declared=costs))
    assert (status, "MEASURED DIFFERS FROM DECLARED" in text) == (1, True)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = pqi("demo", "--protocol", "paillier")
    assert result.exit_code == 1
    assert "pip install 'private-quantized-inference[demo]'" in result.stderr


def children_of(text: str) -> Iterator[int]:
    """Processes whose command line has the text, and their workers."""
    for pid in processes_that_mention(text):
        yield pid
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from (int(child) for child in task.read_text().split())


@pytest.mark.slow
@needs_sklearn
@pytest.mark.parametrize("protocol", ["paillier", "bfv", "ckks"])
def test_the_whole_story_is_true_and_written_down(tmp_path: Path, protocol: str) -> None:
    if protocol != "paillier":
        pytest.importorskip("tenseal")
    kept, facts_file = tmp_path / "kept", tmp_path / "demo.json"
    more = ("--samples", 6, "--keep", kept, "--json", facts_file)
    process = start("demo", "--protocol", protocol, *more, folder=tmp_path)
    with ended(process):
        screen, _ = process.communicate(timeout=240)
        assert process.returncode == 0, screen
    facts = json.loads(facts_file.read_text())
    assert set(facts) >= KEYS
    assert (facts["samples"], facts["same_decisions"], facts["as_declared"]) == (6, 1.0, True)
    assert facts["private_equals_integer"] == (None if protocol == "ckks" else 1.0)
    assert facts["largest_error"] <= facts["error_bound"]
    assert set(facts["peak_rss_mb"]) == {"server_a", "client"}
    names = {path.name for path in kept.iterdir()}
    assert names >= {"calibration.npz", "inputs.npy", "labels.npy", "bundles"} and len(names) == 5
    assert f"--protocol {protocol}" in screen and "pqi deal" not in screen
    assert left_in(tmp_path) == {"kept", "demo.json"}


@pytest.mark.slow
@needs_sklearn
@needs_proc
def test_stopped_it_leaves_no_process_and_no_file_behind(tmp_path: Path) -> None:
    process = start("demo", "--protocol", "paillier", folder=tmp_path)
    with ended(process):
        wait_until(lambda: len(set(children_of(f"{tmp_path}/"))) >= 2 or process.poll() is not None, "a worker runs")
        assert process.poll() is None
        running = list(children_of(f"{tmp_path}/"))
        for _ in range(3):  # impatience changes nothing
            process.send_signal(signal.SIGINT)
        screen, _ = process.communicate(timeout=60)
        assert process.returncode == 130, screen
        assert "Traceback" not in screen
        assert processes_that_mention(f"{tmp_path}/") == []
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running), "the workers end with the server")
        assert left_in(tmp_path) == set()
