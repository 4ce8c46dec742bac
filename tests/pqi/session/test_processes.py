"""Every role as a process of its own: answers, deaths, restarts, and nothing left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sessionkit import inputs, small_model

from pqi.session.errors import QueryFailed, ServiceFailed
from pqi.session.journal import audit, compare
from pqi.session.local import LocalService, local

ROOT = Path(__file__).resolve().parents[3]
POINTS = int(os.environ.get("PQI_KILL_POINTS", "10"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with local(small_model(), server_options={"max_batch": 16, "pool_items": 32}) as service:
        yield service


def exact(service: LocalService, n: int = 5) -> bool:
    model, x = small_model(), inputs(n)
    return bool(torch.equal(service.predict(x).integers, model.integers(model.encode(x))))


def test_three_processes_and_this_one_answer_exactly(service: LocalService) -> None:
    assert exact(service, 40)
    pids = {process.pid for process in service.processes.values()} | {os.getpid()}
    assert set(service.processes) == {"server_a", "server_b", "dealer"}
    assert len(pids) == 4


def test_items_can_be_awaited_and_no_more_than_the_pool_holds(service: LocalService) -> None:
    assert service.await_items(3) >= 3
    assert service.await_items(10**9) <= 32


def test_the_single_server_protocol_runs_as_one_process() -> None:
    with local(small_model(), protocol="clear") as service:
        assert service.await_items(5) >= 5
        assert set(service.processes) == {"server_a"}
        assert exact(service)


def test_a_frozen_server_is_named_within_ten_seconds(service: LocalService) -> None:
    assert exact(service)
    process = service.processes["server_b"]
    process.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(QueryFailed, match="server_b"):
            service.predict(inputs(1))
        assert time.monotonic() - started < 10
    finally:
        process.send_signal(signal.SIGCONT)
    assert exact(service)


def test_the_logs_and_journals_of_the_processes_are_in_its_folder_and_hold_no_payload(service: LocalService) -> None:
    assert exact(service)
    for role in ("server_a", "server_b"):
        assert "epoch" in service.log(role)
        assert audit(service.directory / role / "journal.sqlite").items > 0
    journal = (service.directory / "server_b" / "journal.sqlite").read_bytes()
    for role in ("server_a", "server_b", "dealer"):
        tensors = (service.directory / role / "secrets.safetensors").read_bytes()[-16:]
        assert tensors not in journal
        assert tensors.hex() not in service.log(role)


def test_nothing_is_left_behind() -> None:
    with local(small_model()) as service:
        directory, processes = service.directory, dict(service.processes)
        assert directory.is_dir()
    assert not directory.exists()
    assert all(process.returncode is not None for process in processes.values())
    service.close()
    with pytest.raises(ServiceFailed, match="not running"):
        service.predict(inputs(1))


PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
sys.path.insert(0, sys.argv[1])
from sessionkit import small_model
from pqi.session.local import local
with local(small_model(), directory=sys.argv[2]) as service:
    print(*(process.pid for process in service.processes.values()), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_child_outlives_its_parent_however_that_ends(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent), str(tmp_path / "d")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert parent.stdout is not None
    with parent.stdout:
        children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 3
    parent.send_signal(how)
    parent.wait(20)
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is only waiting to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_role_that_cannot_start_ends_with_the_reason(service: LocalService) -> None:
    command = [sys.executable, "-m", "pqi.session.main", "serve", str(service.directory / "client")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 2
    assert "is the bundle of 'client'; here a bundle of server_a or server_b is needed" in ended.stderr
    command = [sys.executable, "-m", "pqi.session.main", "serve", str(service.directory / "server_a")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 2
    assert "address already in use" in ended.stderr.lower()


def test_kill_any_process_anywhere(tmp_path: Path) -> None:
    campaign = load(ROOT / "benchmarks" / "kill_anywhere.py").Campaign(tmp_path / "deployment", samples=40, seed=7)
    outcomes = campaign.run(POINTS)
    assert len(outcomes) == POINTS
    assert [outcome for outcome in outcomes if not outcome.good] == []
    a, b = (audit(tmp_path / "deployment" / role / "journal.sqlite") for role in ("server_a", "server_b"))
    compare(a, b)
    assert len({use.epoch for use in a.uses}) > 1


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
