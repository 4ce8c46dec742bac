"""The dealer: makes one-time material ahead of time and hands it out; sees no input, no answer, and no weight.

It opens no port: it dials both servers and keeps dialling. One round of links is one epoch with fresh keys; when either
link breaks, both are closed, what was not consumed is burnt, and a new epoch begins.

Its memory does not depend on how much is prepared: a crew makes a bounded number of messages ahead of the one that is
being sent, and only what server B has ordered.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack

from pqi.net.channel import Channel, Outgoing, exchange, receive_any
from pqi.net.errors import BadFrame, NetError
from pqi.net.frames import KIB, Frame, FrameType, Limits, encode_control, take_hex, take_int
from pqi.net.hello import Hello, greet
from pqi.net.link import NONE, Link
from pqi.net.tls import context, dial
from pqi.session.bundle import DealerBundle
from pqi.session.crew import Crew, ThreadCrew
from pqi.session.errors import SessionError
from pqi.session.journal import MAX_ITEM
from pqi.session.material import EPOCH_DIGITS, KeyBytes, new_id
from pqi.session.pool import Corrections
from pqi.session.roles import DEALER, SERVER_A, SERVER_B
from pqi.session.serving import Patience
from pqi.session.supply import chunk_items, pieces, supply_limits
from protocols.errors import ProtocolError
from protocols.rounds import PartyId

log = logging.getLogger("pqi.dealer")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_BULK_SECONDS = 60.0
_LOOK_SECONDS = 0.5  # between two looks at the links while there is nothing to send
Order = tuple[int, int, "Future[Corrections]"]


class DealerService:
    """Serves both compute servers until told to stop, once. Raises BundleError, WrongPeer (TLS files) when made.

    crew: who makes the items (default: one thread of this process); it is closed at the end of ``run``.
    link: what to emulate of a network, for measurements; every role must be told the same.
    """

    def __init__(
        self,
        bundle: DealerBundle,
        patience: Patience | None = None,
        crew: Crew | None = None,
        link: Link = NONE,
    ) -> None:
        self._bundle, self._patience, self._network = bundle, patience or Patience(), link
        self._context = context(bundle.tls, server_side=False)
        self._crew = crew or ThreadCrew(bundle.program, dict(bundle.tensors))
        self._record = bundle.program.record_bytes
        self._chunk = chunk_items(self._record)

    def run(self, stop: threading.Event, on_epoch: Callable[[str], None] | None = None) -> None:
        """Deal until ``stop`` is set, dialling again with growing pauses whenever a link breaks.

        on_epoch: hears the id of every epoch once both servers know it.
        """
        try:
            self._run(stop, on_epoch)
        finally:
            self._crew.close()

    def _run(self, stop: threading.Event, on_epoch: Callable[[str], None] | None) -> None:
        pause = _FIRST_PAUSE
        while not stop.is_set():
            try:
                with ExitStack() as links:
                    a, b = (links.enter_context(self._link(role)) for role in (SERVER_A, SERVER_B))
                    epoch = self._begin(a, b)
                    pause = _FIRST_PAUSE
                    if on_epoch is not None:
                        on_epoch(epoch)
                    self._serve(a, b, epoch, stop)
            except (NetError, SessionError, ProtocolError) as error:
                log.warning("dealer: %s; dialling again in %.1f s", error, pause)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _link(self, role: str) -> Channel:
        timeout = self._patience.step
        secured, identity = dial(self._bundle.addresses[role], self._context, role, timeout, self._network)
        channel = Channel(secured, identity, Limits(16 * KIB, 1), self._network)
        try:
            greet(channel, Hello(DEALER, self._bundle.deployment, self._bundle.program.digest, new_id()), timeout)
        except BaseException:
            channel.close()
            raise
        sending = supply_limits(self._record if role == SERVER_B else 0)
        channel.limits = sending
        return channel

    def _begin(self, a: Channel, b: Channel) -> str:
        """A new epoch: fresh keys to each server; B hears of it only after A has answered."""
        epoch = new_id()
        for channel, keys in zip((a, b), map(KeyBytes, self._crew.begin()), strict=True):
            word = encode_control({"kind": "epoch", "epoch": epoch})
            frames = [
                (channel, FrameType.CONTROL, word),
                (channel, FrameType.BINARY, keys.expose_to_protocol()),
            ]
            exchange(frames, [], self._patience.step, "a new epoch")
            message = channel.receive_control(self._patience.step, "its answer to a new epoch", "epoch-known")
            if take_hex(message, "epoch", EPOCH_DIGITS, channel.peer) != epoch:
                raise BadFrame(channel.peer, "an answer to another epoch")
        log.info("dealer: epoch %s begun", epoch[:8])
        return epoch

    def _serve(self, a: Channel, b: Channel, epoch: str, stop: threading.Event) -> None:
        """Answer B's orders; items are numbered on and on and none is ever dealt twice."""
        ordered = begun = 0
        under_way: deque[Order] = deque()
        while not stop.is_set():
            event = receive_any([a, b], 0.0 if under_way or begun < ordered else _LOOK_SECONDS, "an order")
            if event is not None:
                ordered += self._read_order(*event, b, epoch)
                continue
            begun = self._fill(under_way, begun, ordered)
            if not under_way:
                continue
            first, n, order = under_way[0]
            try:
                corrections = self._crew.collect(order, _LOOK_SECONDS)
            except NotYet:
                continue
            under_way.popleft()
            begun = self._fill(under_way, begun, ordered)  # the crew works while these are sent
            self._deliver(b, epoch, first, n, corrections)

    def _read_order(self, channel: Channel, frame: Frame, b: Channel, epoch: str) -> int:
        """How many items B orders."""
        message = channel.as_control(frame, "an order")
        if channel is not b or message["kind"] != "credit":
            raise BadFrame(channel.peer, f"message {message['kind'][:40]!r} instead of an order from {SERVER_B}")
        if take_hex(message, "epoch", EPOCH_DIGITS, b.peer) != epoch:
            raise BadFrame(b.peer, "an order for another epoch")
        return take_int(message, "items", 1, MAX_ITEM, b.peer)

    def _fill(self, under_way: deque[Order], begun: int, ordered: int) -> int:
        """Have the crew begin what was ordered, as far as its width goes; returns the first item not begun."""
        while begun < ordered and len(under_way) < self._crew.width:
            n = min(self._chunk, ordered - begun)
            under_way.append((begun, n, self._crew.submit(begun, n)))
            begun += n
        return begun

    def _deliver(self, b: Channel, epoch: str, first: int, n: int, corrections: Corrections) -> None:
        if len(corrections) != n * self._record:
            raise SessionError(f"items [{first}, {first + n}) took {len(corrections)} bytes, not {n * self._record}")
        word = encode_control({"kind": "items", "epoch": epoch, "first": first, "n": n})
        frames: list[Outgoing] = [(b, FrameType.CONTROL, word)]
        frames += [(b, FrameType.BINARY, piece) for piece in pieces(corrections)]
        exchange(frames, [], _BULK_SECONDS, f"corrections for {PartyId.P1}")
