"""Messages of the four stages: their lengths, and lists of clients.

Every message ends in its label (:mod:`protocols.labels`). Lists of clients are bits over the receiver's neighbours in
ascending order.

========  =====================================================  ===================================================
stage     the server says                                        the client answers
========  =====================================================  ===================================================
keys      nothing                                                two public keys; commitment to its own mask's seed
shares    list of those with keys; two public keys of each       for each its two shares, sealed
vectors   list of those who shared; what each sealed to it       the masked vector
unmask    list of those whose vectors arrived                    list of those it has shares of; own share; theirs
========  =====================================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from protocols.aggregation import SumPlan
from protocols.bitpack import packed_bytes
from protocols.errors import PeerMisbehaved
from protocols.field import ELEMENT_BYTES
from protocols.labels import LABEL_BYTES
from protocols.pairwise.keys import COMMITMENT_BYTES, NONCE_BYTES, PUBLIC_BYTES, TAG_BYTES

KEYS, SHARES, VECTORS, UNMASK, DONE = "keys", "shares", "vectors", "unmask", "done"
STAGES = (KEYS, SHARES, VECTORS, UNMASK)

PAIR_BYTES = 2 * PUBLIC_BYTES
ADVERT_BYTES = PAIR_BYTES + COMMITMENT_BYTES
SEALED_BYTES = NONCE_BYTES + 2 * ELEMENT_BYTES + TAG_BYTES


def exactly(data: memoryview, size: int, stage: str, what: str) -> memoryview:
    """``data``; raises :class:`PeerMisbehaved` if it does not have that size."""
    if len(data) != size:
        raise PeerMisbehaved(f"stage {stage!r}: {what} takes {size} bytes, but {len(data)} came")
    return data


def list_bytes(among: int) -> int:
    """Bytes of a list of some of so many clients."""
    return -(-among // 8)


def write_list(some: Collection[int], among: Sequence[int]) -> bytes:
    """One bit for each of ``among``, the first lowest."""
    flags = sum(1 << place for place, client in enumerate(among) if client in some)
    return flags.to_bytes(list_bytes(len(among)), "little")


def read_list(data: memoryview, among: Sequence[int], stage: str) -> tuple[tuple[int, ...], memoryview]:
    """The clients of a list at the start of ``data``, ascending, and what follows it."""
    size = list_bytes(len(among))
    if len(data) < size:
        raise PeerMisbehaved(f"stage {stage!r}: a list of clients takes {size} bytes, but {len(data)} came")
    flags = int.from_bytes(data[:size], "little")
    if flags >> len(among):
        raise PeerMisbehaved(f"stage {stage!r}: a list of {len(among)} clients has bits behind its end")
    return tuple(client for place, client in enumerate(among) if flags >> place & 1), data[size:]


def cut(data: memoryview, size: int) -> list[bytes]:
    """``data`` in pieces of ``size`` bytes."""
    return [bytes(data[at : at + size]) for at in range(0, len(data), size)]


def sizes(plan: SumPlan, neighbours: int) -> dict[str, tuple[int, int]]:
    """Stage -> bytes to and from one client, if nobody drops out."""
    k, flags = neighbours, list_bytes(neighbours)
    bare = {
        KEYS: (0, ADVERT_BYTES),
        SHARES: (flags + k * PAIR_BYTES, k * SEALED_BYTES),
        VECTORS: (flags + k * SEALED_BYTES, packed_bytes(plan.length, plan.bits)),
        UNMASK: (flags, flags + (k + 1) * ELEMENT_BYTES),
    }
    return {stage: (to + LABEL_BYTES, back + LABEL_BYTES) for stage, (to, back) in bare.items()}
