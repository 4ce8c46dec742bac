"""Two network namespaces of this machine with a shaped network between them; everything is removed at the end.

With ``netem`` in the kernel: a pair of virtual Ethernet cards, each delayed by half a round trip and limited in rate.
Without it: a TUN card in each namespace, limited in rate by ``tbf``, and a process of this program as the router
between them, which holds every packet for half a round trip. ``tbf`` and the TCP on both sides are the kernel's. The
router takes about a tenth of a millisecond of its own for each packet, which shows on links of a millisecond.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pqi.net.link import Link

A, B = (f"pqi-{end}-{os.getpid()}" for end in "ab")
CARD_A, CARD_B = (f"pqi{end}{os.getpid()}" for end in "ab")
ENDS = ((A, CARD_A), (B, CARD_B))
HOSTS = ("10.231.77.1", "10.231.77.2")
_TUNSETIFF, _TUN, _NO_INFO = 0x400454CA, 0x0001, 0x1000
_PACKETS = 4096  # that the router holds at most
_WAKING = 60e-6  # what a sleep is ended early by, to be on time


class CannotShape(Exception):
    """No shaped network can be made here; the message says why."""


@dataclass(frozen=True)
class Shaped:
    """Two namespaces that reach each other. how: by what the network between them is shaped."""

    how: str
    host: str = HOSTS[1]
    enter_a: tuple[str, ...] = ("ip", "netns", "exec", A)
    enter_b: tuple[str, ...] = ("ip", "netns", "exec", B)


@contextmanager
def shaped_namespaces(link: Link) -> Iterator[Shaped]:
    """The two namespaces, joined by a network of this latency and bandwidth. Raises CannotShape with the reason."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise CannotShape(f"{' and '.join(missing)} of iproute2 not found")
    if os.geteuid() != 0:
        raise CannotShape("namespaces are for root; run this as root, for example in a container")
    router: subprocess.Popen[bytes] | None = None
    made: list[str] = []
    try:
        for name in (A, B):
            _run("ip", "netns", "add", name)
            made.append(name)
        try:
            _join_by_netem(link)
            how = "netem"
        except CannotShape as error:
            router = _join_by_router(link)
            how = f"tbf and a router that delays, because netem is not to be had ({error})"
        yield Shaped(how)
    finally:
        if router is not None:
            router.send_signal(signal.SIGTERM)
            router.wait()
        for name in made:  # cards go with their namespace
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotShape(f"`{' '.join(command)}`: {done.stderr.strip() or done.returncode}")


def _up(namespace: str, card: str, host: str) -> None:
    _run("ip", "-n", namespace, "address", "add", f"{host}/24", "dev", card)
    _run("ip", "-n", namespace, "link", "set", card, "up")


def _join_by_netem(link: Link) -> None:
    _run("ip", "link", "add", CARD_A, "netns", A, "type", "veth", "peer", "name", CARD_B, "netns", B)
    try:
        for (namespace, card), host in zip(ENDS, HOSTS, strict=True):
            delay = ["delay", f"{link.rtt_seconds / 2 * 1e6:.0f}us", "rate", f"{link.bits_per_second:.0f}bit"]
            _run("tc", "-n", namespace, "qdisc", "add", "dev", card, "root", "netem", *delay, "limit", "100000")
            _up(namespace, card, host)
    except CannotShape:
        _run("ip", "-n", A, "link", "del", CARD_A)
        raise


def _join_by_router(link: Link) -> subprocess.Popen[bytes]:
    # A router in Python forwards some ten thousand packets a second: a fast line gets large ones.
    mtu = 1500 if link.bits_per_second <= 2e8 else 9000
    descriptors: list[int] = []
    try:
        for _, card in ENDS:
            descriptors.append(_tun(card))
        for (namespace, card), host in zip(ENDS, HOSTS, strict=True):
            _run("ip", "link", "set", card, "mtu", str(mtu), "txqueuelen", "10000", "netns", namespace)
            rate = ["rate", f"{link.bits_per_second:.0f}bit", "burst", "32kb", "latency", "1s"]
            _run("tc", "-n", namespace, "qdisc", "add", "dev", card, "root", "tbf", *rate)
            _up(namespace, card, host)
        command = [sys.executable, __file__, *map(str, descriptors), repr(link.rtt_seconds / 2)]
        return subprocess.Popen(command, pass_fds=descriptors)
    except OSError as error:
        raise CannotShape(f"/dev/net/tun: {error.strerror}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_INFO))
    return descriptor


def route(left: int, right: int, delay: float) -> None:
    """Forward packets between two cards, each ``delay`` seconds after it came, until this process is ended."""
    with suppress(OSError):
        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: sleeps that end on time
    other, held = {left: right, right: left}, deque[tuple[float, int, bytes]]()
    while True:
        wake = held[0][0] - time.monotonic() - _WAKING if held else None
        ready, _, _ = select.select((left, right), (), (), wake if wake is None else max(0.0, wake))
        for card in ready:
            with suppress(BlockingIOError):
                for _ in range(64):
                    packet = os.read(card, 65536)
                    if len(held) < _PACKETS:
                        held.append((time.monotonic() + delay, other[card], packet))
        while held and held[0][0] <= time.monotonic():
            _, card, packet = held.popleft()
            with suppress(OSError):  # a card that is gone, or full: a lost packet
                os.write(card, packet)


if __name__ == "__main__":
    route(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
