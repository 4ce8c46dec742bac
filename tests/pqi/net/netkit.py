"""TLS pairs over loopback and threads that run at the same time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from pqi.net.channel import Channel
from pqi.net.frames import Limits
from pqi.net.link import NONE, Link
from pqi.net.tls import TlsFiles, context, dial, secure

ROLES = ("server_a", "server_b", "dealer", "client")
Pair = tuple[Channel, Channel]


def files(directory: Path, role: str) -> TlsFiles:
    return TlsFiles.in_directory(directory / role / "tls")


def connect(
    dialler: TlsFiles, acceptor: TlsFiles, expected: str, timeout: float = 5.0, link: Link = NONE
) -> tuple[Channel | Exception, Channel | Exception]:
    """One TLS connection over loopback; what either end got, a channel or its error."""
    got: list[Channel | Exception] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            sock, _ = server.accept()
            try:
                got.append(
                    Channel(
                        *secure(
                            sock,
                            context(acceptor, server_side=True),
                            server_side=True,
                            peer="a visitor",
                            timeout=timeout,
                        ),
                        Limits(binary=1 << 28),
                        link,
                    )
                )
            except Exception as error:
                got.append(error)

        thread = threading.Thread(target=accept)
        thread.start()
        near: Channel | Exception
        try:
            address = server.getsockname()[:2]
            secured = dial(address, context(dialler, server_side=False), expected, timeout, link)
            near = Channel(*secured, Limits(binary=1 << 28), link)
        except Exception as error:
            near = error
        thread.join()
    return near, got[0]


def together(*jobs: Callable[[], object]) -> list[object]:
    """Run jobs at the same time; their results or errors in order."""
    results: list[object] = [None] * len(jobs)

    def run(index: int, job: Callable[[], object]) -> None:
        try:
            results[index] = job()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results
