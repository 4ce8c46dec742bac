"""Free ports of this machine, for deployments that live on it."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

from pqi.net.errors import CannotListen

# Below the range that systems hand out to outgoing connections, so that a server that was killed finds its port again.
_PORTS = range(20000, 32000)
_TRIES = 1000


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nobody listens now. Raises CannotListen if there are none."""
    found: list[int] = []
    for _ in range(_TRIES):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found = [*found, port] if port not in found else found
        if len(found) == count:
            return found
    raise CannotListen("127.0.0.1", f"no free port in {_PORTS.start} .. {_PORTS.stop - 1}")
