"""A keyed protocol with every role a process: exact answers, deaths, and no secret key anywhere but with the client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from keyedkit import affine_model, inputs, same

from pqi.net.channel import Channel
from pqi.net.frames import FrameType
from pqi.session.errors import QueryFailed
from pqi.session.local import LocalService, local

pytest.importorskip("phe")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes through /proc"),
]
ROOT = Path(__file__).resolve().parents[3]
FAST = {"key_bits": 2048}

# Python imports this module in every process whose path has it: on a signal, each writes down what it has imported.
WITNESS = """
import os, signal, sys
def witness(number, frame):
    with open(os.environ["PQI_WITNESS"] + f"/{os.getpid()}.part", "w") as file:
        file.write("\\n".join(sorted(sys.modules)))
    os.rename(file.name, file.name[:-5])
if "PQI_WITNESS" in os.environ:
    signal.signal(signal.SIGUSR1, witness)
"""


@contextmanager
def witnessed(home: Path, protocol: str, **more: Any) -> Iterator[LocalService]:
    """A deployment whose processes tell their modules when they are asked."""
    (home / "sitecustomize.py").write_text(textwrap.dedent(WITNESS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PQI_WITNESS", str(home))
        patch.setenv("PYTHONPATH", str(home))
        with local(affine_model(), protocol, **more) as made:
            yield made


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    bounds = {"workers": 2, "max_batch": 20}
    with witnessed(tmp_path_factory.mktemp("witness"), "paillier", options=FAST, server_options=bounds) as made:
        yield made


def exact(service: LocalService, n: int = 5) -> bool:
    return same(service.predict(inputs(n)), affine_model(), inputs(n))


def workers_of(pid: int) -> list[int]:
    """Children of every thread: a worker that was replaced is the child of the thread that replaced it."""
    return [int(c) for task in Path(f"/proc/{pid}/task").glob("*/children") for c in task.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_server_with_two_workers_and_this_process_answer_exactly(service: LocalService) -> None:
    assert exact(service, 50)
    assert set(service.processes) == {"server_a"}
    assert len(set(workers_of(service.processes["server_a"].pid))) == 2
    assert service.await_items(7) == 7
    status = service.status()["server_a"]
    assert (status["workers"], status["max_batch"], status["protocol"]) == (2, 20, "paillier")


def test_neither_the_server_nor_a_worker_imports_what_makes_or_holds_a_key(service: LocalService) -> None:
    assert exact(service)
    no_key_in(service, "paillier")


@pytest.mark.parametrize("protocol", ["bfv", "ckks"])
def test_nor_do_they_under_lattice_protocols(tmp_path: Path, protocol: str) -> None:
    pytest.importorskip("tenseal")
    with witnessed(tmp_path, protocol, server_options={"workers": 1}) as made:
        made.predict(inputs(1))
        no_key_in(made, protocol)


def no_key_in(service: LocalService, protocol: str) -> None:
    server = service.processes["server_a"].pid
    for pid in (server, *workers_of(server)):
        os.kill(pid, signal.SIGUSR1)
        report = Path(os.environ["PQI_WITNESS"], str(pid))
        until(report.exists, f"process {pid} tells its modules")
        modules = report.read_text().split()
        assert f"protocols.{protocol}.server" in modules
        ends = (".client", ".private", ".secret")
        holding = [name for name in modules if name.startswith("protocols.") and name.endswith(ends)]
        assert holding == []
        assert not {"phe", "pqi.session.client", "pqi.session.keyed.asking"} & set(modules)
    assert f"protocols.{protocol}.client" in sys.modules  # what was looked for is there where it belongs


def test_no_byte_that_is_sent_or_stored_holds_the_secret_key(
    service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    queue = Channel._queue

    def spy(self: Channel, kind: FrameType, payload: bytes, during: str) -> None:
        sent.append(bytes(payload))
        queue(self, kind, payload, during)

    monkeypatch.setattr(Channel, "_queue", spy)
    service.client.close()
    assert exact(service)
    key = service.client._talk._holder._key
    size = FAST["key_bits"] // 16
    secrets = [int(x).to_bytes(size, order) for x in (key._p, key._q) for order in ("big", "little")]
    moved = b"".join(sent)
    stored = b"".join(path.read_bytes() for path in service.directory.rglob("*") if path.is_file())
    assert int(key.public.n).to_bytes(2 * size, "big") in moved  # what is public is found this way
    assert len(moved) > service.client.program.plan.cost(5).question
    for secret in secrets:
        assert secret not in moved and secret not in stored
        assert secret.hex() not in service.log("server_a")


def test_a_killed_worker_fails_its_query_by_name_and_is_replaced(service: LocalService) -> None:
    assert exact(service)
    server = service.processes["server_a"].pid
    for pid in workers_of(server):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(QueryFailed, match=r"worker \d \(process \d+\) was killed by SIGKILL"):
        service.predict(inputs(3))
    assert exact(service)
    assert "another takes its place" in service.log("server_a")


def test_a_killed_server_takes_its_workers_along_and_comes_back_for_the_same_client(service: LocalService) -> None:
    assert exact(service)
    server = service.processes["server_a"]
    workers = workers_of(server.pid)
    keys = service.client._talk._evaluation_keys
    server.kill()
    server.wait(10)
    with pytest.raises(QueryFailed, match="server_a"):
        service.predict(inputs(1))
    until(lambda: not any(map(alive, workers)), "workers end with their server")
    service.restart("server_a")
    answer = service.predict(inputs(5))
    assert same(answer, affine_model(), inputs(5))
    assert service.client._talk._evaluation_keys == keys
    assert answer.ledger.own is not None and answer.ledger.own.key_bytes == len(keys)


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from keyedkit import affine_model
from pqi.session.local import local
with local(affine_model(), "paillier", options={"key_bits": 2048}, server_options={"workers": 1}) as service:
    print(service.processes["server_a"].pid, flush=True)
    time.sleep(60)
"""


def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent)]
    here = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, env=here)
    assert parent.stdout is not None
    with parent.stdout:
        server = int(parent.stdout.readline())
    running = [server, *workers_of(server)]
    assert len(running) == 2
    parent.kill()
    parent.wait(20)
    until(lambda: not any(map(alive, running)), "nobody is left")
