"""TLS 1.3 over a non-blocking socket, through buffers of this process instead of a system call a record.

A TLS record holds 16 KiB at most. An ``ssl.SSLSocket`` pays two to three system calls and a pass through the network
stack for each; here a flight of records is encrypted into memory and sent at once, and whatever has arrived is read at
once and decrypted record by record into the place where the caller wants it. The bytes on the wire are the same.

Raises BlockingIOError where it would have to wait, ssl.SSLError where TLS is broken, OSError where the connection is.
"""

from __future__ import annotations

import select
import socket
import ssl
from contextlib import suppress

import numpy as np

RECORD = 16 * 1024  # plaintext of one TLS record
FLIGHT = 128 * 1024  # bytes encrypted, sent or received in one go: few system calls, yet all of it in the cache


class TlsStream:
    """A byte stream to one peer. Takes over the socket. One thread at a time; only ``raw`` may be shut from others."""

    def __init__(self, sock: socket.socket, ctx: ssl.SSLContext, *, server_side: bool) -> None:
        self.raw = sock
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = ctx.wrap_bio(self._in, self._out, server_side=server_side)
        self._arrived = np.empty(FLIGHT, np.uint8).data  # memory that is taken when it is first used
        self._leaving = memoryview(b"")

    def fileno(self) -> int:
        """The socket's descriptor, for poll."""
        return self.raw.fileno()

    def close(self) -> None:
        """Close the socket; what has not left is dropped."""
        self.raw.close()

    def shutdown(self, how: int) -> None:
        """End one direction or both, below TLS."""
        self.raw.shutdown(how)

    def version(self) -> str | None:
        """The TLS version agreed on."""
        return self._tls.version()

    def certificate(self) -> tuple[dict[str, object], bytes]:
        """The peer's verified certificate, parsed and in DER; empty if it showed none."""
        parsed: dict[str, object] = dict(self._tls.getpeercert() or {})
        return parsed, self._tls.getpeercert(binary_form=True) or b""

    def handshake(self) -> int:
        """Go as far as what has arrived allows; 0 when done, else the event of poll to wait for."""
        while True:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError:
                self._tell_why()
                raise
            try:
                self.flush()
            except BlockingIOError:
                return select.POLLOUT
            if done:
                return 0
            try:
                if not self._fill():
                    self._in.write_eof()
            except BlockingIOError:
                return select.POLLIN

    def write(self, data: bytes | memoryview) -> int:
        """Encrypt; how many bytes of ``data`` were taken in, which is less than all once a flight waits to leave."""
        view, taken = memoryview(data), 0
        while taken < len(view) and self._out.pending < FLIGHT:
            taken += self._tls.write(view[taken : taken + RECORD])
        return taken

    def flush(self) -> None:
        """Send what was taken in and has not left."""
        while self._leaving or self._out.pending:
            if not self._leaving:
                self._leaving = memoryview(self._out.read())
            self._leaving = self._leaving[self.raw.send(self._leaving) :]

    @property
    def unsent(self) -> bool:
        """True while bytes that were taken in have not left."""
        return bool(self._leaving) or bool(self._out.pending)

    def recv_into(self, view: memoryview) -> int:
        """Bytes received into ``view`` (up to a record), 0 at the end of the stream."""
        while True:
            if self._in.pending or self._tls.pending():
                try:
                    return self._tls.read(len(view), view)  # type: ignore[return-value]
                except ssl.SSLWantReadError:
                    pass  # part of a record
                except ssl.SSLZeroReturnError:
                    return 0
                except ssl.SSLError:
                    self._tell_why()
                    raise
            if not self._fill():
                return 0

    def _fill(self) -> int:
        count = self.raw.recv_into(self._arrived)
        self._in.write(self._arrived[:count])
        return count

    def _tell_why(self) -> None:
        """TLS has failed here: its alert tells the peer the reason, if the connection still carries it."""
        with suppress(OSError):
            self.flush()
