from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

import pytest
import torch
from sessionkit import small_model

from pqi.program import Dealer, compile, split_weights  # noqa: A004 (the field's word)
from pqi.program.instructions import Program
from pqi.session.crew import Crew, Hand, ProcessCrew, ThreadCrew, _as_bytes, _EpochSecret, crew_of
from pqi.session.errors import SessionError, WorkerFailed
from protocols.errors import Misuse
from protocols.rounds import PartyId

ROOT = Path(__file__).resolve().parents[3]
Part = tuple[Program, Mapping[str, torch.Tensor]]


@pytest.fixture(scope="module")
def part() -> Part:
    """What a dealer's bundle holds."""
    model = small_model()
    program = compile(model, "additive2")
    return program, split_weights(model, program)[PartyId.DEALER]


@pytest.fixture(scope="module")
def processes(part: Part) -> Iterator[ProcessCrew]:
    crew = ProcessCrew(*part, workers=2)
    yield crew
    crew.close()


def alone(part: Part, secret: bytes, first: int, n: int) -> bytes:
    """The same items from one dealer in this process, in one go."""
    dealer = Dealer(*part)
    dealer.new_epoch(secret)
    return bytes(dealer.deal(first, n))


def dealt(crew: Crew, first: int, n: int, chunk: int) -> Iterator[bytes]:
    """Items in order, as many messages under way as keep the crew busy."""
    under_way: deque[Future[bytes]] = deque()
    for at in range(first, first + n, chunk):
        under_way.append(crew.submit(at, min(chunk, first + n - at)))
        if len(under_way) > crew.width:
            yield crew.collect(under_way.popleft())
    while under_way:
        yield crew.collect(under_way.popleft())


def test_what_is_dealt_depends_on_the_epoch_the_first_item_and_their_number_alone(part: Part) -> None:
    dealer = Dealer(*part)
    dealer.new_epoch()
    secret = dealer.expose_epoch()
    whole = alone(part, secret, 0, 12)
    assert dealer.deal(0, 12) == whole
    pieces = [alone(part, secret, first, n) for first, n in ((0, 1), (1, 4), (5, 7))]
    assert b"".join(pieces) == whole
    assert alone(part, secret, 9, 3) == whole[9 * part[0].record_bytes :]


def test_two_epochs_share_no_byte_sequence_of_a_key_and_deal_differently(part: Part) -> None:
    dealer = Dealer(*part)
    first_keys, first = dealer.new_epoch(), dealer.expose_epoch()
    second_keys, second = dealer.new_epoch(), dealer.expose_epoch()
    assert len({first, second, *first_keys, *second_keys}) == 6
    assert alone(part, first, 0, 4) != alone(part, second, 0, 4)


def test_a_dealer_given_an_epoch_has_its_keys(part: Part) -> None:
    dealer, twin = Dealer(*part), Dealer(*part)
    keys = dealer.new_epoch()
    assert twin.new_epoch(dealer.expose_epoch()) == keys


def test_before_an_epoch_there_is_nothing_to_expose(part: Part) -> None:
    with pytest.raises(Misuse, match="new_epoch"):
        Dealer(*part).expose_epoch()


def test_one_thread_deals_in_order_and_once(part: Part) -> None:
    crew = ThreadCrew(*part)
    with pytest.raises(Misuse, match="before an epoch was begun"):
        crew.submit(0, 1)
    crew.begin()
    secret = crew._dealer.expose_epoch()
    assert b"".join(dealt(crew, 0, 7, 3)) == alone(part, secret, 0, 7)
    for first, n in ((6, 1), (0, 9), (7, 0)):
        with pytest.raises(Misuse, match="every item is dealt once, next is 7"):
            crew.submit(first, n)
    assert b"".join(dealt(crew, 7, 2, 64)) == alone(part, secret, 7, 2)
    crew.close()
    crew.close()


def test_an_epoch_begins_at_item_0_with_other_keys(part: Part) -> None:
    crew = ThreadCrew(*part)
    first = crew.begin()
    order = crew.submit(0, 3)
    assert crew.begin() != first
    assert order.done()  # no work of the old epoch goes on beside the new one
    assert len(b"".join(dealt(crew, 0, 3, 3))) == 3 * part[0].record_bytes
    crew.close()


def test_processes_deal_the_same_bytes_as_one(processes: ProcessCrew, part: Part) -> None:
    processes.begin()
    secret = processes._dealer.expose_epoch()
    assert b"".join(dealt(processes, 0, 20, 3)) == alone(part, secret, 0, 20)
    processes.begin()
    assert processes._dealer.expose_epoch() != secret
    assert b"".join(dealt(processes, 0, 5, 2)) == alone(part, processes._dealer.expose_epoch(), 0, 5)


def test_a_worker_that_dies_ends_the_epoch_and_the_next_one_has_a_new_worker(
    processes: ProcessCrew, part: Part
) -> None:
    processes.begin()
    list(dealt(processes, 0, 4, 1))
    assert processes._pool is not None
    for pid in list(processes._pool._processes):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="a dealing worker died; a new epoch is needed"):
        list(dealt(processes, 4, 50, 1))
    processes.begin()
    assert b"".join(dealt(processes, 0, 3, 1)) == alone(part, processes._dealer.expose_epoch(), 0, 3)


def test_an_order_that_takes_longer_is_asked_for_again(part: Part) -> None:
    crew = ThreadCrew(*part)
    crew.begin()
    go_on = threading.Event()
    crew._thread.submit(go_on.wait)
    order = crew.submit(0, 1)
    with pytest.raises(NotYet):
        crew.collect(order, 0.01)
    go_on.set()
    assert len(crew.collect(order, 60)) == part[0].record_bytes
    crew.close()


def test_a_worker_changes_epoch_with_the_secret_it_is_given(part: Part) -> None:
    hand = Hand(_as_bytes(*part))
    dealer = Dealer(*part)
    for _ in range(2):
        dealer.new_epoch()
        secret = dealer.expose_epoch()
        assert hand.deal(secret, 0, 2) + hand.deal(secret, 5, 1) == bytes(dealer.deal(0, 2)) + alone(part, secret, 5, 1)


def test_the_epoch_s_secret_refuses_to_leave_by_accident() -> None:
    secret = _EpochSecret(b"very secret")
    assert "very" not in repr(secret)
    with pytest.raises(Misuse):
        bool(secret)
    with pytest.raises(Misuse):
        json.dumps(list(secret))  # type: ignore[call-overload]


def test_a_crew_of_nobody_is_refused(part: Part) -> None:
    with pytest.raises(SessionError, match="workers = 0; at least 1 deals"):
        crew_of(*part, workers=0)


def test_who_deals_follows_from_workers_and_ray(part: Part) -> None:
    one, two = crew_of(*part, workers=1), crew_of(*part, workers=2)
    assert (type(one), type(two), one.width, two.width) == (ThreadCrew, ProcessCrew, 1, 3)
    one.close()
    two.close()


def test_without_ray_the_extra_is_named(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SessionError, match=r"needs the extra 'scale': pip install"):
        crew_of(*part, workers=2, ray="local")


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from sessionkit import small_model
from pqi.program import compile, split_weights
from pqi.session.crew import ProcessCrew
from protocols.rounds import PartyId

if __name__ == "__main__":
    model = small_model()
    program = compile(model, "additive2")
    crew = ProcessCrew(program, split_weights(model, program)[PartyId.DEALER], 2)
    crew.begin()
    [crew.collect(crew.submit(i, 1)) for i in range(6)]
    print(*crew._pool._processes, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_with_a_dealer_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert parent.stdout is not None
    with parent.stdout:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    parent.wait(20)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


# ---------------------------------------------------------------------- ray


@pytest.fixture(scope="module")
def actors(part: Part) -> Iterator[Crew]:
    pytest.importorskip("ray", reason="the extra 'scale' is not installed")
    crew = crew_of(*part, workers=2, ray="local")
    yield crew
    crew.close()


def test_a_cluster_that_would_admit_anyone_is_not_started(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", object())
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(SessionError, match="RAY_AUTH_MODE=token"):
        crew_of(*part, workers=2, ray="local")


@pytest.mark.slow
def test_ray_deals_the_same_bytes_as_one_process(actors: Crew, part: Part) -> None:
    actors.begin()
    secret = actors._dealer.expose_epoch()
    assert b"".join(dealt(actors, 0, 20, 3)) == alone(part, secret, 0, 20)
    actors.begin()
    assert b"".join(dealt(actors, 0, 5, 2)) == alone(part, actors._dealer.expose_epoch(), 0, 5)


@pytest.mark.slow
def test_a_ray_worker_that_dies_ends_the_epoch_and_the_next_one_has_a_new_worker(actors: Crew, part: Part) -> None:
    actors.begin()
    list(dealt(actors, 0, 4, 1))
    actors._ray.kill(actors._hands[0])  # type: ignore[attr-defined]
    with pytest.raises(WorkerFailed, match="a new epoch is needed"):
        list(dealt(actors, 4, 4, 1))
    actors.begin()
    assert b"".join(dealt(actors, 0, 3, 1)) == alone(part, actors._dealer.expose_epoch(), 0, 3)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named_with_its_address(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'scale' is not installed")

    def nobody(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", nobody)
    with pytest.raises(SessionError, match=r"no ray cluster at '10\.0\.0\.9:6379': Could not find"):
        crew_of(*part, workers=1, ray="10.0.0.9:6379")
