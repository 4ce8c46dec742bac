from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pqi.program
from pqi.demo import story
from pqi.demo.outcome import Outcome, Plain
from pqi.demo.story import declared
from pqi.graph.model import IntegerModel
from pqi.session.ledger import Ledger, PartyLedger
from protocols.cost import Cost
from tests.pqi.cli.clikit import ended, left_in, processes_that_mention, start, wait_until
from tests.pqi.cli.clikit import pqi as command

KEYS = {
    "network", "protocol", "topology", "batch", "samples", "float_accuracy", "integer_accuracy",
    "private_equals_integer", "offline_seconds", "online_seconds", "float32_seconds", "integer_seconds",
    "offline_bytes", "online_bytes", "exchanges", "peak_rss_mb", "security", "versions", "machine",
}  # fmt: skip
needs_sklearn = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import sklearn"], capture_output=True, check=False).returncode != 0,
    reason="the digits come with scikit-learn",
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks at processes through /proc")


def outcome(model: IntegerModel, **changes: object) -> Outcome:
    """A run of ten samples in batches of four in which everything is as claimed."""
    program = pqi.program.compile(model)
    cost = declared(program, 10, 4)
    sent = cost.online_bytes
    party = PartyLedger("server_a", 3, 0.1, 0.0, 0, 0.2, sent, sent, cost.exchanges, 0, 1, 1, 1)
    other = replace(party, role="server_b", offline_received=cost.dealt_bytes)
    ledger = Ledger({"server_a": party, "server_b": other}, 10, 3, 0.5)
    fields: dict[str, object] = {
        "protocol": "additive2", "planned_for": "lan", "roles": ("server_a", "server_b", "dealer", "client"),
        "samples": 10, "batch": 4, "plain": Plain(1.0, 0.9, 0.001, 0.002), "equal": 10, "private_accuracy": 0.9,
        "declared": cost, "ledger": ledger, "peak_rss_mb": {"client": 300.0}, "security": program.security,
        "versions": {"pqi": "1"}, "machine": {"cores": 2},
    }  # fmt: skip
    return Outcome(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_cost_declared_is_that_of_the_very_batches_asked(model: IntegerModel) -> None:
    program = pqi.program.compile(model)
    assert declared(program, 10, 4) == program.cost(4) + program.cost(4) + program.cost(2)
    assert declared(program, 8, 4) == program.cost(4) + program.cost(4)
    assert declared(program, 0, 4) == Cost()


def test_a_run_that_kept_its_word_exits_with_zero(model: IntegerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "tell", lambda plan, teller: outcome(model))
    result = command("demo")
    assert result.exit_code == 0, result.output
    assert "Private = integer: 100.000 %." in result.stdout
    assert "Measured = declared, to the byte" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100


def test_one_answer_that_differs_is_told_and_exits_with_one(
    model: IntegerModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(story, "tell", lambda plan, teller: outcome(model, equal=9))
    result = command("demo", "--json", tmp_path / "d.json")
    assert result.exit_code == 1
    assert "Private = integer: 90.000 %. 1 of 10 private answers differ" in " ".join(result.stdout.split())
    assert json.loads((tmp_path / "d.json").read_text())["private_equals_integer"] == 0.9


def test_one_byte_that_was_not_declared_is_told_and_exits_with_one(
    model: IntegerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = outcome(model).declared + Cost(online_bits=8)
    monkeypatch.setattr(story, "tell", lambda plan, teller: outcome(model, declared=other))
    result = command("demo")
    assert result.exit_code == 1
    assert "MEASURED DIFFERS FROM DECLARED" in result.stdout


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = command("demo")
    assert result.exit_code == 1
    assert "pip install 'private-quantized-inference[demo]'" in result.stderr
    assert "Traceback" not in result.output


@needs_sklearn
def test_a_folder_with_something_in_it_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    result = command("demo", "--keep", tmp_path)
    assert result.exit_code == 1
    assert "no new or empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.slow
@needs_sklearn
def test_the_whole_story_is_true_and_written_down(tmp_path: Path) -> None:
    kept, facts_file = tmp_path / "kept", tmp_path / "demo.json"
    process = start("demo", "--samples", 70, "--keep", kept, "--json", facts_file, folder=tmp_path)
    with ended(process):
        screen, _ = process.communicate(timeout=240)
        assert process.returncode == 0, screen
    facts = json.loads(facts_file.read_text())
    assert set(facts) >= KEYS
    assert facts["private_equals_integer"] == 1.0 and facts["as_declared"] is True
    assert (facts["samples"], facts["batch"], facts["queries"], facts["protocol"]) == (70, 64, 2, "additive2")
    assert facts["float_accuracy"] > 0.95 and abs(facts["float_accuracy"] - facts["integer_accuracy"]) <= 0.03
    assert facts["private_accuracy"] == facts["integer_accuracy"]
    assert facts["exchanges"] == facts["declared"]["exchanges"] > 0
    assert set(facts["online_bytes"].values()) == {facts["declared"]["online_bytes_per_party"]}
    assert facts["offline_bytes"] == {"server_a": 0, "server_b": facts["declared"]["dealt_bytes"]}
    assert set(facts["peak_rss_mb"]) >= {"server_a", "server_b", "client"}
    assert set(facts["security"]["learns"]) == {"server A", "server B", "dealer", "client"}
    for text in ("Who learns what", "Adversary: semi-honest", "Private = integer: 100.000 %"):
        assert text in screen
    assert {path.name for path in kept.iterdir()} == {
        "digits.pqi", "digits.pt2", "audit.npz", "calibration.npz", "images.npy", "labels.npy", "bundles",
    }  # fmt: skip
    assert left_in(tmp_path) == {"kept", "demo.json"}


@pytest.mark.slow
@needs_sklearn
def test_the_story_in_the_clear_says_that_nothing_is_hidden(tmp_path: Path) -> None:
    process = start("demo", "--samples", 5, "--protocol", "clear", folder=tmp_path)
    with ended(process):
        screen, _ = process.communicate(timeout=240)
        assert process.returncode == 0, screen
    assert "everything: the model, the input and the answer" in screen


@pytest.mark.slow
@needs_sklearn
@needs_proc
@pytest.mark.parametrize("moment", ["while the roles start", "while it asks"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_at_any_time_it_leaves_no_process_and_no_key_behind(
    tmp_path: Path, number: signal.Signals, status: int, moment: str
) -> None:
    process = start("demo", folder=tmp_path)
    with ended(process):
        wait_until(lambda: len(roles(tmp_path)) >= 3 or process.poll() is not None, "three roles run")
        if moment == "while it asks":
            assert process.stdout is not None
            assert any(line.startswith("Start ") for line in process.stdout)
        assert process.poll() is None
        for _ in range(3):  # impatience changes nothing
            process.send_signal(number)
        screen, _ = process.communicate(timeout=60)
        assert process.returncode == status, screen
        assert "Traceback" not in screen
        assert roles(tmp_path) == []
        assert left_in(tmp_path) == set()


def roles(folder: Path) -> list[int]:
    return processes_that_mention(f"{folder}/")
