"""One TLS connection as a sequence of frames, and the loop that drives several of them in one thread.

An SSL socket must not be read and written by two threads at once, and two parties that first send and then receive
deadlock as soon as their messages outgrow the buffers between them. So everything here is non-blocking, and
:func:`exchange` sends on any number of channels *while* it receives on any number of channels.

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

from pqi.net.errors import BadFrame, ConnectionLost, FrameTooLarge, NetError, PeerReported, Timeout
from pqi.net.frames import (
    HEADER_BYTES,
    Frame,
    FrameType,
    Limits,
    decode_control,
    encode_control,
    header,
    parse_header,
)
from pqi.net.tls import Identity, let_last_words_arrive

_RECORD = 16 * 1024  # a TLS record: one SSL_write or SSL_read moves at most this much
_MIN_RATE = 128 * 1024  # bytes per second: what moves at least this fast is given time beyond its time-out
_BURST = 32  # records moved on one channel before the others have their turn

# Error messages of a peer are awaited this long after its connection broke under a send.
_LAST_WORDS_SECONDS = 0.2


class Channel:
    """One TLS connection to ``peer``; frames in, frames out. Close it, or use it as a context manager.

    sent_overhead, received_overhead: header bytes so far; payload bytes are counted by whoever sends payloads.
    """

    def __init__(self, sock: ssl.SSLSocket, identity: Identity, limits: Limits | None = None) -> None:
        self._sock = sock
        self._descriptor = sock.fileno()
        self.peer = identity.role
        self.fingerprint = identity.fingerprint
        self.limits = limits or Limits()
        self.sent_overhead = 0
        self.received_overhead = 0
        self._moved = 0  # bytes in and out, headers included
        self._closed = False
        self._out: deque[memoryview] = deque()
        self._out_event = select.POLLOUT
        self._in_event = select.POLLIN
        self._reset_input()

    def __repr__(self) -> str:
        return f"Channel(to {self.peer}, {'closed' if self._closed else 'open'})"

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ whole messages

    def send(self, kind: FrameType, payload: bytes, timeout: float, during: str) -> None:
        """Send one frame. Raises FrameTooLarge (nothing sent), ConnectionLost, PeerReported, Timeout."""
        exchange([(self, kind, payload)], [], timeout, during)

    def send_control(self, message: Mapping[str, Any], timeout: float, during: str) -> None:
        """Send one control message, a mapping with a text ``kind``."""
        self.send(FrameType.CONTROL, encode_control(message), timeout, during)

    def send_binary(self, payload: bytes, timeout: float, during: str) -> None:
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
        """A received frame as a binary payload. Raises PeerReported, BadFrame."""
        if frame.kind is FrameType.BINARY:
            return frame.payload
        message = self.as_control(frame, waiting_for)
        raise BadFrame(self.peer, f"message {message['kind'][:40]!r} while this side waits for {waiting_for}")

    def is_quiet(self) -> bool:
        """True if the connection is up and nothing has arrived: the state between two queries."""
        if self._closed or self._got or self._header_got:
            return False
        try:
            return self._pump_in("an idle check") is None and not self._header_got
        except NetError:
            return False

    # ------------------------------------------------------------------ end of life

    def abort(self) -> None:
        """Break the connection, from any thread: whoever waits on it gets ConnectionLost."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; unsent data is dropped. Closing twice is harmless."""
        self._closed = True
        self._out.clear()
        self._sock.close()

    def close_with_cause(self, cause: str) -> None:
        """Tell the peer why, as well as the connection still allows, and close. Never raises for the network."""
        try:
            if not self._out:  # in the midst of another frame nothing can be said any more
                self.send_control({"kind": "error", "cause": cause[:600]}, _LAST_WORDS_SECONDS, "a last message")
                let_last_words_arrive(self._sock, _LAST_WORDS_SECONDS)
        except (NetError, OSError, ValueError):
            pass  # the connection is beyond speech; the cause stays in this side's log
        finally:
            self.close()

    # ------------------------------------------------------------------ the two pumps

    def _queue(self, kind: FrameType, payload: bytes, during: str) -> None:
        if self._closed:
            raise ConnectionLost(self.peer, during, "this side has closed it")
        if len(payload) > (limit := self.limits.of(kind)):
            raise FrameTooLarge("this side", kind.name.lower(), len(payload), limit)
        # Header and start of the payload share the first record: one system call for a small message.
        head = _RECORD - HEADER_BYTES
        self._out.append(memoryview(header(kind, len(payload)) + payload[:head]))
        if len(payload) > head:
            self._out.append(memoryview(payload)[head:])
        self.sent_overhead += HEADER_BYTES

    def _pump_out(self, during: str) -> bool:
        """Write until done, blocked, or a burst is out; True when nothing is left."""
        try:
            for _ in range(_BURST):
                if not self._out:
                    return True
                chunk = self._out[0]
                sent = self._sock.send(chunk)
                self._moved += sent
                if sent == len(chunk):
                    self._out.popleft()
                else:
                    self._out[0] = chunk[sent:]
            self._out_event = 0  # ready for more: come back without waiting
        except ssl.SSLWantWriteError:
            self._out_event = select.POLLOUT
        except ssl.SSLWantReadError:
            self._out_event = select.POLLIN
        except (OSError, ValueError) as error:
            raise self._lost(error, during) from None
        return not self._out

    def _reset_input(self) -> None:
        self._header = bytearray(HEADER_BYTES)
        self._header_got = 0
        self._kind: FrameType | None = None
        self._buffer = bytearray()
        self._got = 0

    def _pump_in(self, during: str) -> Frame | None:
        """Read until a frame is whole, or blocked, or a burst is in."""
        try:
            for _ in range(_BURST):
                if self._kind is None:
                    self._read_header(during)
                else:
                    with memoryview(self._buffer) as view:
                        self._got += self._some(self._sock.recv_into(view[self._got :]), during)
                if self._kind is not None and self._got == len(self._buffer):
                    frame = Frame(self._kind, bytes(self._buffer))
                    self.received_overhead += HEADER_BYTES
                    self._reset_input()
                    return frame
            self._in_event = 0
        except ssl.SSLWantReadError:
            self._in_event = select.POLLIN
        except ssl.SSLWantWriteError:
            self._in_event = select.POLLOUT
        except (OSError, ValueError) as error:
            raise self._lost(error, during) from None
        return None

    def _read_header(self, during: str) -> None:
        with memoryview(self._header) as view:
            self._header_got += self._some(self._sock.recv_into(view[self._header_got :]), during)
        if self._header_got == HEADER_BYTES:
            self._kind, length = parse_header(self._header, self.peer, self.limits)
            self._buffer = bytearray(length)  # zero pages: memory is taken as bytes arrive, not as they are announced
            self._got = 0

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


Outgoing = tuple[Channel, FrameType, bytes]


def exchange(sends: Sequence[Outgoing], expects: Sequence[Channel], timeout: float, during: str) -> list[Frame]:
    """Send every frame of ``sends`` while receiving one frame from every channel of ``expects``, in one thread.

    Returns the frames in the order of ``expects``. One deadline of ``timeout`` seconds for all of it, put off by one
    second for every 128 KiB that moved: big messages over slow lines arrive, and peers that trickle bytes are cut off.
    Raises FrameTooLarge (before anything is sent), ConnectionLost, Timeout (names who is late), PeerReported, BadFrame.
    """
    for channel, kind, payload in sends:
        channel._queue(kind, payload, during)
    sending = list(dict.fromkeys(channel for channel, _, _ in sends))
    received: dict[Channel, Frame] = {}
    waiting = list(dict.fromkeys(expects))
    involved = set(sending) | set(waiting)
    # Deadline less the time that movement has earned so far.
    base = time.monotonic() + timeout - sum(channel._moved for channel in involved) / _MIN_RATE
    while True:
        sending = [channel for channel in sending if not _push(channel, during)]
        waiting = [channel for channel in waiting if not _pull(channel, during, received)]
        if not sending and not waiting:
            return [received[channel] for channel in expects]
        wants = [(c, c._out_event) for c in sending] + [(c, c._in_event) for c in waiting]
        if not _wait(wants, base + sum(channel._moved for channel in involved) / _MIN_RATE):
            late = (waiting or sending)[0]
            raise Timeout(late.peer, during if waiting else f"room to send {during}", timeout)


def receive_any(channels: Sequence[Channel], timeout: float, waiting_for: str) -> tuple[Channel, Frame] | None:
    """The first whole frame from any of ``channels``, or None when ``timeout`` seconds brought none."""
    deadline = time.monotonic() + timeout
    while True:
        for channel in channels:
            frame = channel._pump_in(waiting_for)
            if frame is not None:
                return channel, frame
        if not _wait([(c, c._in_event) for c in channels], deadline):
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


def _wait(wants: Sequence[tuple[Channel, int]], deadline: float) -> bool:
    """Wait until one wanted event is there; False at the deadline. An event of 0 wants no wait at all."""
    masks: dict[int, int] = {}
    ready = False
    for channel, event in wants:
        if channel._closed:
            raise ConnectionLost(channel.peer, "a wait", "this side has closed it")
        ready = ready or event == 0
        masks[channel._descriptor] = masks.get(channel._descriptor, 0) | event
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    if ready:
        return True
    poller = select.poll()
    for descriptor, mask in masks.items():
        poller.register(descriptor, mask)
    return bool(poller.poll(left * 1000))
