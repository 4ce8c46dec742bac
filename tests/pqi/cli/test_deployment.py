"""Split, keys, serve, deal, predict: as operators type them."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

import pqi as package
from pqi.cli.predict import _exactness
from pqi.session.client import Answer
from pqi.session.ledger import Ledger
from pqi.session.local import free_ports
from tests.pqi.cli.clikit import ended, pqi, start, wait_until
from tests.pqi.cli.conftest import samples


def cut(model_file: Path, *more: object) -> Path:
    """Bundles and keys."""
    bundles, (a, b) = model_file.parent / "bundles", free_ports(2)
    where = ("--server-a", f"127.0.0.1:{a}", "--server-b", f"127.0.0.1:{b}")
    result = pqi("split", model_file, "-o", bundles, *where, *more)
    assert result.exit_code == 0, result.output
    result = pqi("keys", bundles)
    assert result.exit_code == 0, result.output
    return bundles


@contextmanager
def running(bundles: Path, *roles: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The roles as processes, all of them ready."""
    with ExitStack() as stack:
        made = {}
        for role in roles:
            command = "deal" if role == "dealer" else "serve"
            ready = bundles.parent / f"{role}.json"
            made[role] = start(command, bundles / role, "--json", ready, folder=bundles.parent)
            stack.enter_context(ended(made[role]))
        for role, process in made.items():
            wait_until(partial(_settled, bundles.parent / f"{role}.json", process), f"{role} runs")
            assert process.poll() is None, process.communicate()[0]
        yield made


def _settled(ready: Path, process: subprocess.Popen[str]) -> bool:
    return ready.exists() or process.poll() is not None


def ask(bundles: Path, x: np.ndarray, *more: object) -> Result:
    np.save(bundles.parent / "x.npy", x)
    return pqi("predict", "--config", bundles / "client" / "client.toml", "--input", bundles.parent / "x.npy", *more)


def test_split_writes_a_bundle_for_each_role_and_says_what_comes_next(model_file: Path) -> None:
    facts = model_file.with_suffix(".json")
    result = pqi("split", model_file, "-o", model_file.parent / "b", "--json", facts, "--server-b", "10.0.0.2:9")
    assert result.exit_code == 0, result.output
    told = json.loads(facts.read_text())
    assert set(told["bundles"]) == {"server_a", "server_b", "dealer", "client"}
    assert told["addresses"] == {"server_a": "127.0.0.1:7401", "server_b": "10.0.0.2:9"}
    assert told["digest"] == package.compile(package.load(model_file)).digest
    assert "Next: pqi keys" in result.stdout


def test_a_second_split_or_second_keys_replace_nothing(model_file: Path) -> None:
    bundles = cut(model_file)
    before = {path: path.read_bytes() for path in bundles.rglob("*") if path.is_file()}
    assert pqi("split", model_file, "-o", bundles).exit_code == 1
    result = pqi("keys", bundles)
    assert result.exit_code == 1
    assert "keys are made once" in result.stderr
    assert {path: path.read_bytes() for path in bundles.rglob("*") if path.is_file()} == before


def test_keys_without_bundles_are_refused(tmp_path: Path) -> None:
    result = pqi("keys", tmp_path)
    assert result.exit_code == 1
    assert "pqi split" in result.stderr


def test_nobody_else_may_read_what_keys_and_split_wrote(model_file: Path) -> None:
    for path in cut(model_file).rglob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:0x1", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(model_file: Path, address: str) -> None:
    result = pqi("split", model_file, "-o", model_file.parent / "b", "--server-a", address)
    assert result.exit_code == 1
    assert "Traceback" not in result.output


def test_a_server_without_keys_or_with_another_role_s_bundle_does_not_start(model_file: Path) -> None:
    bundles = model_file.parent / "b"
    assert pqi("split", model_file, "-o", bundles).exit_code == 0
    without_keys = pqi("serve", bundles / "server_a")
    assert (without_keys.exit_code, "pqi keys" in without_keys.stderr) == (1, True)
    wrong_role = pqi("serve", bundles / "dealer")
    assert (wrong_role.exit_code, "bundle of 'dealer'" in wrong_role.stderr) == (1, True)
    assert pqi("deal", bundles / "server_a").exit_code == 1


def test_asking_servers_that_are_not_there_fails_by_name(model_file: Path) -> None:
    result = ask(cut(model_file), samples(2))
    assert result.exit_code == 1
    assert "server_a" in result.stderr and "Traceback" not in result.output


def test_the_screen_says_how_far_noise_can_take_an_answer() -> None:
    answer = Answer(np.zeros((1, 2)), torch.zeros((1, 2), dtype=torch.int64), Ledger({}, 1, 1, 0.1), 4.5)
    assert "no value is further than 4.5 from the integer model's" in _exactness(answer, False, 90)
    assert "stochastic" in _exactness(answer, False, 0) and "exact: equal" in _exactness(answer, True, 0)


def test_an_input_of_the_wrong_shape_is_refused_before_anything_is_sent(model_file: Path) -> None:
    result = ask(cut(model_file), samples(2)[0])
    assert result.exit_code == 1
    assert "Add the batch axis" in result.stderr


@pytest.mark.slow
def test_operators_serve_and_a_client_asks_exactly(model: package.IntegerModel, model_file: Path) -> None:
    bundles, x, folder = cut(model_file), samples(70, 3), model_file.parent
    with running(bundles, "server_b", "server_a", "dealer") as roles:
        result = ask(bundles, x, "-o", folder / "answer.npy", "--json", folder / "answer.json")
        assert result.exit_code == 0, result.output
        truth = model.integers(model.encode(x))
        told = json.loads((folder / "answer.json").read_text())
        assert told["integers"] == truth.tolist() and told["exact"] is True
        assert np.array_equal(np.load(folder / "answer.npy", allow_pickle=False), model.predict(x))
        assert told["ledger"]["samples"] == 70 and told["ledger"]["queries"] == 2
        assert "exact: equal to the integer model" in result.stdout

        saturated = ask(bundles, 9 * x[:2])
        assert saturated.exit_code == 0
        assert "warning:" in saturated.stderr and "outside the calibrated range" in saturated.stderr

        taken = pqi("serve", bundles / "server_a", "--journal", folder / "other.sqlite")
        assert taken.exit_code == 1
        for number, process in zip((signal.SIGINT, signal.SIGTERM, signal.SIGINT), roles.values(), strict=True):
            process.send_signal(number)
        for role, process in roles.items():
            log, _ = process.communicate(timeout=30)
            assert process.returncode == 0, f"{role}: {log}"
            assert "Traceback" not in log and "Stopped" in log
    assert ask(bundles, x).exit_code == 1


@pytest.mark.slow
def test_the_clear_protocol_needs_one_server_and_says_that_it_hides_nothing(
    model: package.IntegerModel, model_file: Path
) -> None:
    bundles, x = cut(model_file, "--protocol", "clear"), samples(3, 4)
    assert {path.name for path in bundles.iterdir()} == {"authority", "server_a", "client"}
    with running(bundles, "server_a"):
        result = ask(bundles, x, "-o", model_file.parent / "answer.npy")
        assert result.exit_code == 0, result.output
    assert np.array_equal(np.load(model_file.parent / "answer.npy"), model.predict(x))
