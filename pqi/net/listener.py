"""A port that survives its visitors: one thread accepts, one thread serves each connection, none can harm another."""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable

from pqi.net.channel import Channel
from pqi.net.errors import CannotListen, NetError
from pqi.net.frames import KIB, Limits
from pqi.net.link import NONE, Link
from pqi.net.tls import ANYONE, format_address, secure

log = logging.getLogger("pqi.net")

# Until a hello is heard, a visitor may say little: one short control message and no payload.
STRANGER = Limits(control=16 * KIB, binary=1)
_POLL_MS = 200


class Listener:
    """Accepts TLS connections at ``address`` and runs ``serve(channel)`` for each in a thread of its own.

    serve: may raise anything; the cause is logged and the connection closed. max_links: connections at one time,
    unidentified ones included; more are turned away at once. link: what to emulate of a network.
    Raises CannotListen if the address cannot be bound.
    """

    def __init__(
        self,
        address: tuple[str, int],
        ctx: ssl.SSLContext,
        serve: Callable[[Channel], None],
        *,
        timeout: float,
        max_links: int,
        link: Link = NONE,
    ) -> None:
        self._ctx, self._serve, self._timeout, self._link = ctx, serve, timeout, link
        self._slots = threading.BoundedSemaphore(max_links)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._channels: set[Channel] = set()
        self._threads: set[threading.Thread] = set()
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
            self._socket.listen(128)
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            reason = (error.strerror or "refused").lower()
            raise CannotListen(format_address(address), reason) from None
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._acceptor = threading.Thread(target=self._accept_loop, name="accept", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._acceptor.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Accept nothing more, break every connection, wait for the threads."""
        self._stopping.set()
        if self._acceptor.is_alive():
            self._acceptor.join(timeout)
        self._socket.close()
        with self._lock:
            channels, threads = list(self._channels), list(self._threads)
        for channel in channels:
            channel.abort()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def stopping(self) -> bool:
        """True once :meth:`stop` was called."""
        return self._stopping.is_set()

    def _accept_loop(self) -> None:
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLIN)
        while not self._stopping.is_set():
            if not poller.poll(_POLL_MS):
                continue
            try:
                sock, _ = self._socket.accept()
            except OSError as error:  # the visitor left already, or descriptors ran out: neither ends the service
                log.warning("accept failed: %s", error.strerror)
                self._stopping.wait(0.05)
                continue
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        if not self._slots.acquire(blocking=False):
            sock.close()
            log.warning("connection turned away: all places are taken")
            return
        thread = threading.Thread(target=self._host, args=(sock,), name="link", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            sock.close()
            self._leave(thread)
            log.warning("connection turned away: no thread can be started")

    def _host(self, sock: socket.socket) -> None:
        peer = ANYONE
        try:
            secured, identity = secure(sock, self._ctx, server_side=True, peer=ANYONE, timeout=self._timeout)
            peer = identity.role
            with Channel(secured, identity, STRANGER, self._link) as channel:
                self._welcome(channel)
        except NetError as error:
            log.log(logging.DEBUG if self.stopping else logging.WARNING, "link with %s ended: %s", peer, error)
        except Exception as error:
            log.error("link with %s ended by %s", peer, describe_unexpected(error))
        finally:
            self._leave(threading.current_thread())

    def _welcome(self, channel: Channel) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._channels.add(channel)
        try:
            self._serve(channel)
        finally:
            with self._lock:
                self._channels.discard(channel)

    def _leave(self, thread: threading.Thread) -> None:
        with self._lock:
            self._threads.discard(thread)
        self._slots.release()


def describe_unexpected(error: BaseException) -> str:
    """Type and place of an unforeseen error. Its message stays out: it may quote a value that is secret."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    return f"{type(error).__name__} at {where or 'an unknown place'}"
