"""What client and server say under a keyed protocol, and how long every message is.

::

    client -> server  keys: length                                     once a connection, before its first query
    client -> server  the evaluation keys, in frames of KEY_CHUNK bytes
    server -> client  keys-known
    client -> server  query: number, n
    server -> client  ready          (or keys-wanted: it has none, or has dropped them; then keys, and the query anew)
    client -> server  one binary frame per part of the question
    server -> client  working ...    every second
    server -> client  result: ledger, then one binary frame per part of the answer

Both sides know every length beforehand: the plan declares it. What is longer or shorter is refused from its header.
"""

from __future__ import annotations

from collections.abc import Iterator

from pqi.net.channel import Channel, exchange
from pqi.net.errors import BadFrame, printable
from pqi.net.frames import MIB, Limits

KEYS, KEYS_KNOWN, KEYS_WANTED = "keys", "keys-known", "keys-wanted"
KEY_CHUNK = 8 * MIB
MAX_KEYS = 8 << 30
CONTROL_BYTES = 1 << 20  # a result's ledger has a line for each part


def chunks(data: bytes) -> Iterator[memoryview]:
    """Keys as they are sent: frames of KEY_CHUNK bytes, the last one shorter."""
    view = memoryview(data)
    for at in range(0, len(data), KEY_CHUNK):
        yield view[at : at + KEY_CHUNK]


def receive_keys(channel: Channel, length: int, timeout: float) -> bytes:
    """Evaluation keys of exactly ``length`` bytes; memory is taken as they arrive. Raises BadFrame, NetError."""
    channel.limits = Limits(control=channel.limits.control, binary=KEY_CHUNK)
    keys = bytearray()
    while len(keys) < length:
        keys += receive_exact(channel, min(KEY_CHUNK, length - len(keys)), timeout, "its evaluation keys")
    return bytes(keys)


def receive_exact(channel: Channel, length: int, timeout: float, waiting_for: str) -> bytes:
    """One binary frame of exactly ``length`` bytes. Raises BadFrame that states both lengths, and NetError."""
    channel.limits = Limits(control=channel.limits.control, binary=max(1, length))
    (frame,) = exchange([], [channel], timeout, waiting_for)
    data = channel.as_binary(frame, waiting_for)
    if len(data) != length:
        raise BadFrame(channel.peer, f"{len(data)} bytes for {printable(waiting_for)}; {length} are declared")
    return data
