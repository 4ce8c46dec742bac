"""One TLS connection as a sequence of frames, and the loop that drives several of them in one thread.

A TLS stream must not be read and written by two threads at once, and two parties that first send and then receive
deadlock as soon as their messages outgrow the buffers between them. So everything here is non-blocking, and
:func:`exchange` sends on any number of channels *while* it receives on any number of channels.

A payload is copied nowhere: it is encrypted from where the sender has it and decrypted to where the receiver gets it.

A channel belongs to one thread at a time. Only :meth:`Channel.abort` may be called from another one.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pqi.net.errors import BadFrame, ConnectionLost, FrameTooLarge, NetError, PeerReported, Timeout
from pqi.net.frames import (
    HEADER_BYTES,
    Frame,
    FrameType,
    Limits,
    Payload,
    decode_control,
    encode_control,
    header,
    parse_header,
)
from pqi.net.link import NONE, STAMP, Line, Link
from pqi.net.stream import RECORD, TlsStream
from pqi.net.tls import Identity, let_last_words_arrive
from pqi.net.waiting import SPIN_SECONDS, Bell, Watch, nap, wait

_MIN_RATE = 128 * 1024  # bytes per second: what moves at least this fast is given time beyond its time-out
_BURST = 32  # records read on one channel before the others have their turn

_HELD = -1  # the event of a whole frame that an emulated link has not delivered yet

# Error messages of a peer are awaited this long after its connection broke under a send.
_LAST_WORDS_SECONDS = 0.2


class Channel:
    """One TLS connection to ``peer``; frames in, frames out. Close it, or use it as a context manager.

    link: what to emulate of a network; both ends must be told the same.
    sent_overhead, received_overhead: header bytes so far; payload bytes are counted by whoever sends payloads.
    spin: seconds of looking again before a wait in :func:`exchange` sleeps.
    """

    def __init__(self, sock: TlsStream, identity: Identity, limits: Limits | None = None, link: Link = NONE) -> None:
        self._sock = sock
        self._watch = Watch(sock.fileno())
        self.peer = identity.role
        self.fingerprint = identity.fingerprint
        self.limits = limits or Limits()
        self.sent_overhead = 0
        self.received_overhead = 0
        self.spin = SPIN_SECONDS
        self._moved = 0  # bytes in and out, headers included
        self._closed = self._aborted = False
        self._out: deque[memoryview] = deque()
        self._out_event = select.POLLOUT
        self._in_event = select.POLLIN
        self._line = Line(link) if link.emulated else None
        self._held: Frame | None = None
        self._due = 0
        self._header = memoryview(bytearray(HEADER_BYTES + (STAMP.size if self._line else 0)))
        self._reset_input()

    def __repr__(self) -> str:
        return f"Channel(to {self.peer}, {'closed' if self._closed else 'open'})"

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ whole messages

    def send(self, kind: FrameType, payload: Payload, timeout: float, during: str) -> None:
        """Send one frame. Raises FrameTooLarge (nothing sent), ConnectionLost, PeerReported, Timeout."""
        exchange([(self, kind, payload)], [], timeout, during)

    def send_control(self, message: Mapping[str, Any], timeout: float, during: str) -> None:
        """Send one control message, a mapping with a text ``kind``."""
        self.send(FrameType.CONTROL, encode_control(message), timeout, during)

    def send_binary(self, payload: Payload, timeout: float, during: str) -> None:
        """Send one binary payload."""
        self.send(FrameType.BINARY, payload, timeout, during)

    def receive(self, timeout: float, waiting_for: str) -> Frame:
        """Wait for one frame of any type."""
        return exchange([], [self], timeout, waiting_for)[0]

    def receive_control(self, timeout: float, waiting_for: str, *kinds: str) -> dict[str, Any]:
        """Wait for one control message of one of ``kinds`` (any, if none is named).

        Raises PeerReported if an error message comes instead, BadFrame for anything else that is not awaited.
        """
        message = self.as_control(self.receive(timeout, waiting_for), waiting_for)
        if kinds and message["kind"] not in kinds:
            raise BadFrame(self.peer, f"message {message['kind'][:40]!r} while this side waits for {waiting_for}")
        return message

    def receive_binary(self, timeout: float, waiting_for: str) -> bytes:
        """Wait for one binary payload; an error message in its place is raised as PeerReported."""
        return self.as_binary(self.receive(timeout, waiting_for), waiting_for)

    def as_control(self, frame: Frame, waiting_for: str) -> dict[str, Any]:
        """A received frame as a control message. Raises PeerReported, BadFrame."""
        if frame.kind is not FrameType.CONTROL:
            raise BadFrame(self.peer, f"a binary frame while this side waits for {waiting_for}")
        message = decode_control(frame.payload, self.peer)
        if message["kind"] == "error":
            raise PeerReported(self.peer, str(message.get("cause", "an error without a stated cause")))
        return message

    def as_binary(self, frame: Frame, waiting_for: str) -> bytes:
        """A received frame as a binary payload, copied. Raises PeerReported, BadFrame."""
        return bytes(self.as_view(frame, waiting_for))

    def as_view(self, frame: Frame, waiting_for: str) -> memoryview:
        """A received frame as a binary payload where it lies: read-only, the reader's own. Raises as as_binary."""
        if frame.kind is FrameType.BINARY:
            return frame.payload
        message = self.as_control(frame, waiting_for)
        raise BadFrame(self.peer, f"message {message['kind'][:40]!r} while this side waits for {waiting_for}")

    def is_quiet(self) -> bool:
        """True if the connection is up and nothing has arrived: the state between two queries."""
        if self._closed or self._got or self._header_got or self._held:
            return False
        try:
            return self._pump_in("an idle check") is None and not self._header_got
        except NetError:
            return False

    # ------------------------------------------------------------------ end of life

    def abort(self) -> None:
        """Break the connection, from any thread: whoever waits on it gets ConnectionLost."""
        self._aborted = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; unsent data is dropped. Closing twice is harmless."""
        self._closed = True
        self._out.clear()
        self._sock.close()

    def close_with_cause(self, cause: str) -> None:
        """Tell the peer why, as well as the connection still allows, and close. Never raises for the network."""
        try:
            if not self._out and not self._sock.unsent:  # in the midst of a frame nothing can be said any more
                self.send_control({"kind": "error", "cause": cause[:600]}, _LAST_WORDS_SECONDS, "a last message")
                let_last_words_arrive(self._sock.raw, _LAST_WORDS_SECONDS)
        except (NetError, OSError, ValueError):
            pass  # the connection is beyond speech; the cause stays in this side's log
        finally:
            self.close()

    # ------------------------------------------------------------------ the two pumps

    def _queue(self, kind: FrameType, payload: Payload, during: str) -> None:
        if self._closed:
            raise ConnectionLost(self.peer, during, "this side has closed it")
        view = memoryview(payload.data if isinstance(payload, np.ndarray) else payload).cast("B")
        if len(view) > (limit := self.limits.of(kind)):
            raise FrameTooLarge("this side", kind.name.lower(), len(view), limit)
        head = header(kind, len(view))
        if self._line is not None:
            head = self._line.stamp(len(head) + len(view)) + head
        # Header and start of the payload share the first record.
        room = RECORD - len(head)
        self._out.append(memoryview(head + bytes(view[:room])))
        if len(view) > room:
            self._out.append(view[room:])
        self.sent_overhead += HEADER_BYTES

    def _pump_out(self, during: str) -> bool:
        """Write until done, blocked, or a flight is out; True when nothing is left."""
        try:
            while self._out:
                taken = self._sock.write(chunk := self._out[0])
                self._moved += taken
                if taken < len(chunk):
                    self._out[0] = chunk[taken:]
                    break
                self._out.popleft()
            self._sock.flush()
            self._out_event = 0  # ready for more: come back without waiting
        except BlockingIOError:
            self._out_event = select.POLLOUT
            return False
        except (OSError, ValueError) as error:
            raise self._lost(error, during) from None
        return not self._out

    def _reset_input(self) -> None:
        self._header_got = 0
        self._kind: FrameType | None = None
        self._buffer = memoryview(b"")
        self._got = 0

    def _pump_in(self, during: str) -> Frame | None:
        """Read until a frame is whole, or blocked, or a burst is in."""
        if self._held is not None:
            return self._delivered(during)
        try:
            for _ in range(_BURST):
                if self._kind is None:
                    self._read_header(during)
                else:
                    self._got += self._some(self._sock.recv_into(self._buffer[self._got :]), during)
                if self._kind is not None and self._got == len(self._buffer):
                    frame = Frame(self._kind, self._buffer)
                    self.received_overhead += HEADER_BYTES
                    self._reset_input()
                    if self._line is None:
                        return frame
                    self._held = frame
                    return self._delivered(during)
            self._in_event = 0
        except BlockingIOError:
            self._in_event = select.POLLIN
        except (OSError, ValueError) as error:
            raise self._lost(error, during) from None
        return None

    def _delivered(self, during: str) -> Frame | None:
        """The frame at hand once the emulated link has carried it."""
        if self._aborted:
            raise ConnectionLost(self.peer, during)
        if time.monotonic_ns() < self._due:
            self._in_event = _HELD
            return None
        frame, self._held, self._in_event = self._held, None, select.POLLIN
        return frame

    def _read_header(self, during: str) -> None:
        self._header_got += self._some(self._sock.recv_into(self._header[self._header_got :]), during)
        if self._header_got == len(self._header):
            self._kind, length = parse_header(self._header[-HEADER_BYTES:], self.peer, self.limits)
            # Untouched pages: memory is taken as bytes arrive, not as they are announced.
            self._buffer = np.empty(length, np.uint8).data
            self._got = 0
            if self._line is not None:
                (self._due,) = STAMP.unpack_from(self._header)

    def _some(self, count: int, during: str) -> int:
        if count == 0:
            raise ConnectionLost(self.peer, during)
        self._moved += count
        return count

    def _lost(self, error: Exception, during: str) -> ConnectionLost:
        if self._closed or isinstance(error, ValueError):
            return ConnectionLost(self.peer, during, "this side has closed it")
        if isinstance(error, ssl.SSLError):
            reason = str(error.reason or "TLS failure").lower().replace("_", " ")
            return ConnectionLost(self.peer, during, f"the other side ended TLS: {reason}")
        return ConnectionLost(self.peer, during, (getattr(error, "strerror", None) or type(error).__name__).lower())

    def _last_words(self, during: str) -> None:
        """After a broken send: raise the error message that the peer left behind, if there is one."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        with contextlib.suppress(ConnectionLost, BadFrame, Timeout):
            while time.monotonic() < deadline:
                frame = self._pump_in(during)
                if frame is None:
                    _wait([(self, select.POLLIN)], deadline)
                elif frame.kind is FrameType.CONTROL:
                    self.as_control(frame, during)


Outgoing = tuple[Channel, FrameType, Payload]


def exchange(sends: Sequence[Outgoing], expects: Sequence[Channel], timeout: float, during: str) -> list[Frame]:
    """Send every frame of ``sends`` while receiving one frame from every channel of ``expects``, in one thread.

    Returns the frames in the order of ``expects``. One deadline of ``timeout`` seconds for all of it, put off by one
    second for every 128 KiB that moved: big messages over slow lines arrive, and peers that trickle bytes are cut off.
    Raises FrameTooLarge (before anything is sent), ConnectionLost, Timeout (names who is late), PeerReported, BadFrame.
    """
    for channel, kind, payload in sends:
        channel._queue(kind, payload, during)
    sending = list({channel: None for channel, _, _ in sends})
    received: dict[Channel, Frame] = {}
    waiting = list(dict.fromkeys(expects))
    involved = {*sending, *waiting}
    # Deadline less the time that movement has earned so far.
    base = time.monotonic() + timeout - sum([channel._moved for channel in involved]) / _MIN_RATE
    while True:
        sending = [channel for channel in sending if not _push(channel, during)]
        waiting = [channel for channel in waiting if not _pull(channel, during, received)]
        if not sending and not waiting:
            return [received[channel] for channel in expects]
        wants = [(c, c._out_event) for c in sending] + [(c, c._in_event) for c in waiting]
        spin = min([channel.spin for channel in waiting], default=0.0)
        if not _wait(wants, base + sum([channel._moved for channel in involved]) / _MIN_RATE, spin):
            late = (waiting or sending)[0]
            raise Timeout(late.peer, during if waiting else f"room to send {during}", timeout)


def receive_any(
    channels: Sequence[Channel], timeout: float, waiting_for: str, bell: Bell | None = None
) -> tuple[Channel, Frame] | None:
    """The first whole frame from any of ``channels``; None when ``timeout`` seconds brought none or ``bell`` rang."""
    deadline = time.monotonic() + timeout
    while True:
        for channel in channels:
            frame = channel._pump_in(waiting_for)
            if frame is not None:
                return channel, frame
        if bell is not None and bell.heard():
            return None
        if not _wait([(c, c._in_event) for c in channels], deadline, bell=bell):
            return None


def _push(channel: Channel, during: str) -> bool:
    try:
        return channel._pump_out(during)
    except ConnectionLost:
        channel._last_words(during)
        raise


def _pull(channel: Channel, during: str, received: dict[Channel, Frame]) -> bool:
    frame = channel._pump_in(during)
    if frame is not None:
        received[channel] = frame
    return frame is not None


def _wait(wants: Sequence[tuple[Channel, int]], deadline: float, spin: float = 0.0, bell: Bell | None = None) -> bool:
    """Wait until one wanted event is there, or the bell; False at the deadline. An event of 0 wants no wait at all."""
    masks: dict[Watch, int] = {} if bell is None else {bell.watch: select.POLLIN}
    ready, due = False, 0
    for channel, event in wants:
        if channel._closed:
            raise ConnectionLost(channel.peer, "a wait", "this side has closed it")
        if event == _HELD:
            due = min(due or channel._due, channel._due)
        elif event:
            masks[channel._watch] = masks.get(channel._watch, 0) | event
        else:
            ready = True
    left = deadline - time.monotonic()
    if left <= 0 or ready:
        return left > 0
    if not due:
        return wait(masks, left, spin)
    left = min(left, (due - time.monotonic_ns()) / 1e9)
    if masks:
        wait(masks, left, 0.0)
    else:
        nap(left)
    return True  # if that was the deadline, the next wait finds it
