from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from sessionkit import Deployment, inputs, make_deployment, small_model

from pqi.net.channel import Channel
from pqi.net.errors import BadFrame
from pqi.net.frames import MIB, Frame, FrameType
from pqi.session import supply
from pqi.session.bundle import DealerBundle, load_dealer
from pqi.session.crew import ThreadCrew
from pqi.session.dealer import DealerService
from pqi.session.errors import SessionError
from pqi.session.local import _option_of
from pqi.session.pool import Corrections, Pool
from pqi.session.server import ServerOptions
from pqi.session.serving import Patience

PATIENT = Patience(step=10.0, pool=60.0, idle=60.0, beat=0.2)  # nothing here is about time


@pytest.mark.parametrize("record", [0, 1, 1000, MIB, 8 * MIB, 33 * MIB, 700 * MIB])
def test_messages_orders_and_frames_are_bounded_for_records_of_any_size(record: int) -> None:
    chunk, order = supply.chunk_items(record), supply.order_items(record)
    assert 1 <= chunk <= supply.CHUNK_ITEMS
    assert chunk == 1 or chunk * record <= supply.CHUNK_BYTES
    assert 2 * chunk <= order
    assert order <= 2 * chunk or order * record <= supply.ORDER_BYTES
    assert supply.supply_limits(record).binary <= supply.FRAME_BYTES


def test_a_message_is_cut_into_frames_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply, "FRAME_BYTES", 10)
    message = bytearray(range(25))
    cut = supply.pieces(memoryview(message))
    message[24] = 99
    assert [bytes(piece) for piece in cut] == [bytes(range(10)), bytes(range(10, 20)), bytes([20, 21, 22, 23, 99])]
    assert supply.pieces(b"") == []


class Line:
    """A channel that has these frames in store."""

    peer = "dealer"

    def __init__(self, *payloads: bytes) -> None:
        self._payloads = list(payloads)

    def receive(self, timeout: float, waiting_for: str) -> Frame:
        return Frame(FrameType.BINARY, memoryview(self._payloads.pop(0)))

    def as_view(self, frame: Frame, waiting_for: str) -> memoryview:
        return frame.payload

    def channel(self) -> Channel:
        return cast(Channel, self)


def test_what_came_in_one_frame_is_not_copied_and_several_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply, "FRAME_BYTES", 10)
    payload = bytes(range(10))
    assert memoryview(supply.receive_pieces(Line(payload).channel(), 10)).obj is payload
    assert bytes(supply.receive_pieces(Line(payload, payload, b"abc").channel(), 23)) == payload + payload + b"abc"
    assert supply.receive_pieces(Line().channel(), 0) == b""


@pytest.mark.parametrize("payloads", [(b"123456789",), (b"1234567890", b"12"), (b"12345678901", b"12")])
def test_a_frame_of_another_length_than_is_due_is_refused(
    payloads: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "FRAME_BYTES", 10)
    size = 10 if len(payloads) == 1 else 13
    with pytest.raises(BadFrame, match=r"\d+ bytes of corrections where \d+ were due"):
        supply.receive_pieces(Line(*payloads).channel(), size)


def test_a_large_item_needs_one_frame_of_memory_beside_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply, "FRAME_BYTES", MIB)

    class Endless(Line):
        def receive(self, timeout: float, waiting_for: str) -> Frame:
            return Frame(FrameType.BINARY, memoryview(bytes(MIB)))

    tracemalloc.start()
    supply.receive_pieces(Endless().channel(), 20 * MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 23 * MIB


# ---------------------------------------------------------------------- dealer and server B together


class WatchedCrew(ThreadCrew):
    """Counts the messages that were begun and not yet taken."""

    def __init__(self, bundle: DealerBundle) -> None:
        super().__init__(bundle.program, dict(bundle.tensors))
        self.begun = self.taken = self.most = 0
        self.largest = 0
        self.ranges: list[tuple[int, int]] = []

    def begin(self) -> tuple[bytes, bytes]:
        self.begun = self.taken = 0
        return super().begin()

    def submit(self, first: int, n: int) -> Future[bytes]:
        self.begun += 1
        self.ranges.append((first, n))
        self.most, self.largest = max(self.most, self.begun - self.taken), max(self.largest, n)
        return super().submit(first, n)

    def collect(self, order: Future[bytes], timeout: float | None = None) -> bytes:
        done = super().collect(order, timeout)
        self.taken += 1
        return done


@contextmanager
def watched(directory: Path, options: ServerOptions) -> Iterator[tuple[Deployment, WatchedCrew]]:
    made = Deployment(make_deployment(directory), options)
    bundle = load_dealer(directory / "dealer")
    crew = WatchedCrew(bundle)
    try:
        for role in ("server_b", "server_a"):
            made.start_server(role)
        made.start_dealer(DealerService(bundle, PATIENT, crew))
        made.await_epoch(1)
        yield made, crew
    finally:
        made.close()


def answered(made: Deployment, queries: int, n: int) -> bool:
    model = small_model()
    with made.client() as client:
        for seed in range(queries):
            x = inputs(n, seed)
            if not torch.equal(client.predict(x).integers, model.integers(model.encode(x))):
                return False
    return True


def test_over_a_hundred_queries_the_dealer_is_never_more_than_two_messages_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "CHUNK_ITEMS", 2)
    with watched(tmp_path, ServerOptions(max_batch=4, pool_items=8, patience=PATIENT)) as (made, crew):
        assert answered(made, 100, 1)
        assert (crew.most, crew.largest) == (1, 2)
        assert crew.width == 1
        ends = [first + n for first, n in crew.ranges]
        assert [first for first, _ in crew.ranges] == [0, *ends[:-1]]
        assert 100 <= ends[-1] <= 100 + 8  # nothing that the pool had no room for


def test_over_a_hundred_queries_the_pool_stays_within_its_memory_and_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "CHUNK_ITEMS", 2)
    seen: list[tuple[int, int]] = []
    add = Pool.add

    def watch(self: Pool, epoch: str, first: int, n: int, corrections: Corrections) -> None:
        add(self, epoch, first, n, corrections)
        seen.append((self.held_bytes // self.record_bytes, self.spilled))

    monkeypatch.setattr(Pool, "add", watch)
    options = ServerOptions(max_batch=4, pool_items=4, spill_bytes=MIB // 8, patience=PATIENT)
    with watched(tmp_path, options) as (made, _):
        pool = made.servers["server_b"].pool
        assert pool.capacity > 4
        deadline = time.monotonic() + 60
        while not pool.spilled and time.monotonic() < deadline:
            time.sleep(0.01)
        assert answered(made, 100, 2)
        assert sum(1 for _ in seen) >= 100
        assert max(held for held, _ in seen) <= 4
        assert 0 < max(spilled for _, spilled in seen) <= pool.capacity - 4
        with made.client() as client:
            state = client.status()["server_b"]
        assert state["capacity"] == pool.capacity
        assert {"level", "spilled", "pool_bytes"} <= set(state)


def test_items_larger_than_a_frame_travel_in_several_and_serve_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "FRAME_BYTES", 100)
    monkeypatch.setattr(supply, "CHUNK_BYTES", 150)
    with watched(tmp_path, ServerOptions(max_batch=4, pool_items=8, patience=PATIENT)) as (made, crew):
        assert load_dealer(tmp_path / "dealer").program.record_bytes > 100
        assert answered(made, 5, 3)
        assert crew.largest == 1


def test_dealing_goes_on_while_the_last_message_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supply, "CHUNK_ITEMS", 1)
    begun_while_sending: list[int] = []
    deliver = DealerService._deliver

    def watch(self: DealerService, *args: Any) -> None:
        crew = cast(WatchedCrew, self._crew)
        begun_while_sending.append(crew.begun - crew.taken)
        deliver(self, *args)

    monkeypatch.setattr(DealerService, "_deliver", watch)
    with watched(tmp_path, ServerOptions(max_batch=4, pool_items=8, patience=PATIENT)) as (made, _):
        assert answered(made, 3, 4)
    assert 1 in begun_while_sending


def test_without_material_ahead_the_dealer_makes_exactly_what_queries_ask_for(tmp_path: Path) -> None:
    options = ServerOptions(max_batch=4, pool_items=0, patience=PATIENT)
    with watched(tmp_path, options) as (made, crew):
        assert crew.ranges == []
        assert answered(made, 3, 4)
        assert crew.ranges == [(0, 4), (4, 4), (8, 4)]
        with made.client() as client:
            state = client.status()["server_b"]
        assert (state["level"], state["capacity"], state["pool_bytes"]) == (0, 0, 0)


def test_items_are_ordered_when_a_query_takes_some_and_nobody_looks_at_a_full_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supply, "_LOOK_SECONDS", 1000.0)  # only a bell ends the wait for news
    options = ServerOptions(max_batch=4, pool_items=4, patience=PATIENT)
    with watched(tmp_path, options) as (made, crew):
        assert answered(made, 5, 4)
        assert sum(n for _, n in crew.ranges) >= 20


@pytest.mark.parametrize(
    ("role", "name", "option"),
    [
        ("server_b", "spill_mib", "spill_mib"),
        ("server_b", "workers", "workers"),
        ("server_b", "deal_workers", None),
        ("dealer", "deal_workers", "workers"),
        ("dealer", "timeout", "timeout"),
        ("dealer", "workers", None),
        ("dealer", "pool_mib", None),
    ],
)
def test_an_option_of_a_local_deployment_goes_to_the_role_that_it_is_for(
    role: str, name: str, option: str | None
) -> None:
    assert _option_of(role, name) == option


def test_less_than_no_disk_and_less_than_nothing_ahead_are_refused() -> None:
    with pytest.raises(SessionError, match="spill_bytes is -1; it must be at least 0, which is no disk"):
        ServerOptions(spill_bytes=-1)
    with pytest.raises(SessionError, match="pool_items is -1; it must be at least 0, which is no material ahead"):
        ServerOptions(pool_items=-1)
