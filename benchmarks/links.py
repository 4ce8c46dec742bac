"""How fast a channel between two processes is, and how well an emulated link stands for a network.

    python benchmarks/links.py                two processes on loopback: the channel, beside TLS a record at a time
    python benchmarks/links.py --links        the same conversation over the emulated links
    python benchmarks/links.py --namespaces   ... and over a network between two network namespaces (needs root)

A network between namespaces is a pair of virtual cards shaped by ``netem``, or, where the kernel has no netem, two TUN
cards shaped by ``tbf`` with a router between them that holds every packet for half a round trip. Everything else about
it is real: packets, windows, acknowledgements, congestion control. What was made is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from namespaces import CannotShape, Shaped, shaped_namespaces

from pqi.net.authority import write_keys
from pqi.net.channel import Channel
from pqi.net.channel import exchange as swap
from pqi.net.frames import FrameType, Limits, header, parse_header
from pqi.net.link import LAN, NONE, WAN, Link
from pqi.net.ports import free_ports
from pqi.net.tls import TlsFiles, context, parse_address, secure

SMALL, KB, MB = 100, 1000, 1_000_000
SIZES = (SMALL, 64 * KB, MB, 8 * MB)
SECONDS = 1.2  # for one size, at most
LIMITS = Limits(binary=1 << 30)
Exchange = Callable[[bytes], None]
Figures = dict[int, float]


# ---------------------------------------------------------------------- one end of a conversation, its own process


def talk(arguments: argparse.Namespace) -> None:
    """Exchange messages of every size, as often as the other end does; the dialler prints what it took."""
    role, address = ("server_a", "server_b")[arguments.listen], parse_address(arguments.address)
    files = TlsFiles.in_directory(Path(arguments.keys) / role / "tls")
    ctx = context(files, server_side=arguments.listen)
    if arguments.listen:
        with socket.create_server(address) as server:
            os.write(1, b"ready\n")
            sock, _ = server.accept()
    else:
        sock = socket.create_connection(address, timeout=10)
    end = _by_records if arguments.records else _by_channel
    figures = measure(end(sock, ctx, arguments), Link.parse(arguments.pace))
    if not arguments.listen:
        sys.stdout.write(json.dumps(figures))


def _by_channel(sock: socket.socket, ctx: ssl.SSLContext, arguments: argparse.Namespace) -> Exchange:
    secured, identity = secure(sock, ctx, server_side=arguments.listen, peer="the other end", timeout=10)
    channel = Channel(secured, identity, LIMITS, Link.parse(arguments.link))
    return lambda payload: [swap([(channel, FrameType.BINARY, payload)], [channel], 60, "a benchmark")].clear()


def measure(exchange: Exchange, pace: Link) -> Figures:
    """Seconds of an exchange by size, the median of many; under 0, of the first one (1 MB) on a fresh connection.

    Counted in pairs: when one end begins later by d, its exchanges last d less and d more in turn, on any network.
    """
    exchange(b"")
    started = time.perf_counter()
    exchange(bytes(MB))
    figures: Figures = {0: time.perf_counter() - started}
    exchange(bytes(8 * MB))
    for size in SIZES:
        payload, took = os.urandom(size), []
        for _ in range(_repeats(size, pace)):
            started = time.perf_counter()
            exchange(payload)
            exchange(payload)
            took.append((time.perf_counter() - started) / 2)
        figures[size] = statistics.median(took)
    return figures


def _repeats(size: int, pace: Link) -> int:
    """The same number at both ends: it follows from the size alone."""
    expected = max(pace.seconds(size), 40e-6 + size / 300e6)
    return max(5, min(2000, int(SECONDS / 2 / expected)))


def _by_records(sock: socket.socket, ctx: ssl.SSLContext, arguments: argparse.Namespace) -> Exchange:
    """What is compared with: frames over an SSL socket, a record a call, a poll object a wait, payloads copied out."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    secured = ctx.wrap_socket(sock, server_side=arguments.listen)
    secured.setblocking(False)

    def exchange(payload: bytes) -> None:
        head = header(FrameType.BINARY, len(payload))
        first, rest = memoryview(head + payload[: 16384 - len(head)]), memoryview(payload)[16384 - len(head) :]
        buffer, got, headed = bytearray(len(head)), 0, False
        while first or rest or got < len(buffer):
            with suppress(ssl.SSLWantWriteError):
                while first:
                    first = first[secured.send(first) :]
                for _ in range(32):
                    if rest:
                        rest = rest[secured.send(rest) :]
            with suppress(ssl.SSLWantReadError):
                while got < len(buffer):
                    with memoryview(buffer) as view:
                        got += secured.recv_into(view[got:])
                    if not headed and got == len(buffer):
                        _, length = parse_header(bytes(buffer), "the other end", LIMITS)
                        buffer, got, headed = bytearray(length), 0, True
            events = (select.POLLOUT if first or rest else 0) | (select.POLLIN if got < len(buffer) else 0)
            if events:
                poller = select.poll()
                poller.register(secured.fileno(), events)
                poller.poll(10_000)
        bytes(buffer)

    return exchange


# ---------------------------------------------------------------------- two ends


def conversation(
    keys: Path, link: Link = NONE, *, records: bool = False, inside: Shaped | None = None, pace: Link | None = None
) -> Figures:
    """Both processes of one conversation. inside: the namespaces in which they live. pace: for how many repeats."""
    host, port = (inside.host, 7000) if inside else ("127.0.0.1", free_ports(1)[0])
    base = [sys.executable, __file__, "--talk", "--keys", str(keys), "--address", f"{host}:{port}"]
    base += ["--link", str(link), *(["--records"] if records else []), "--pace", str(pace or link)]
    at_b, at_a = (inside.enter_b, inside.enter_a) if inside else ([], [])
    listener = subprocess.Popen([*at_b, *base, "--listen"], stdout=subprocess.PIPE)
    try:
        if listener.stdout is None or listener.stdout.readline() != b"ready\n":
            raise SystemExit("the listening end did not start")
        done = subprocess.run([*at_a, *base], stdout=subprocess.PIPE, check=True, timeout=300)
        listener.wait(20)
    finally:
        listener.kill()
        listener.wait()
    return {int(size): figures for size, figures in json.loads(done.stdout).items()}


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:8.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:8.2f} ms"


def _name(size: int) -> str:
    if size < KB:
        return f"{size} B" if size else "1 MB, first"
    return f"{size // MB} MB" if size >= MB else f"{size // KB} kB"


def loopback(keys: Path, rounds: int) -> None:
    """The channel beside TLS a record at a time, alternating; the best medians of ``rounds``."""
    runs = [(conversation(keys), conversation(keys, records=True)) for _ in range(rounds)]
    print("one exchange, both ways at once, two processes on loopback, TLS 1.3")
    print(f"{'message':>12} {'channel':>11} {'MB/s each way':>14} {'by records':>11} {'MB/s':>7} {'ratio':>6}")
    for size in SIZES:
        ours, theirs = (min(run[i][size] for run in runs) for i in (0, 1))
        rates = f"{size / ours / 1e6:14.0f} {_time(theirs)} {size / theirs / 1e6:7.0f}"
        print(f"{_name(size):>12} {_time(ours)} {rates} {theirs / ours:6.2f}")


def emulated(keys: Path, against: bool) -> None:
    """The emulated links beside their formula and, if wanted, beside a network between namespaces."""
    for link in (LAN, WAN):
        with ExitStack() as made:
            real: Figures = {}
            print(f"\n{link.name}: {link.bits_per_second / 1e6:g} Mbit/s, {1e3 * link.rtt_seconds:g} ms round trip")
            if against:
                try:
                    shaped = made.enter_context(shaped_namespaces(link))
                    print(f"network between namespaces shaped by {shaped.how}")
                    real = conversation(keys, inside=shaped, pace=link)
                except CannotShape as error:
                    print(f"no network between namespaces here: {error}")
            ours = conversation(keys, link)
        print(f"{'message':>12} {'emulated':>11} {'formula':>11} {'namespaces':>11} {'ratio':>6}")
        for size in (*SIZES, 0):
            row = f"{_name(size):>12} {_time(ours[size])} {_time(link.seconds(size or MB))}"
            if real:
                row += f" {_time(real[size])} {ours[size] / real[size]:6.2f}"
            print(row)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--links", action="store_true", help="the emulated links")
    parser.add_argument("--namespaces", action="store_true", help="... beside a network between two namespaces")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions on loopback")
    for name in ("--talk", "--listen", "--records"):  # of the processes that this one starts
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    for name in ("--keys", "--address", "--link", "--pace"):
        parser.add_argument(name, default="none", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.talk:
        talk(arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was made is removed then, too
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder)
        write_keys(keys, ["server_a", "server_b"])
        if arguments.links or arguments.namespaces:
            emulated(keys, arguments.namespaces)
        else:
            loopback(keys, arguments.rounds)


if __name__ == "__main__":
    main()
