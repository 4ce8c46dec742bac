"""One aggregation of any protocol, with vectors from a seed, and what its sum has to be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

import protocols
from protocols.aggregation import Party, Sum, SumPlan, SumProtocol
from protocols.aggregation_local import Tamper, Traffic, sum_here

NAMES = sorted(protocols.SUMS)
HELPED = ("bfv", "paillier", "shares")
QUICK = ("clear", "pairwise", "shares")
MOST_BITS = {"bfv": 59}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {"paillier": {"key_bits": 2048}}


def protocol(name: str) -> SumProtocol:
    return protocols.get_sum(name)


def plan(name: str, clients: int = 4, length: int = 9, bits: int = 16, threshold: int = 3) -> SumPlan:
    bits = min(bits, MOST_BITS.get(name, 64))
    return protocol(name).plan(clients, length, bits, threshold, _OPTIONS.get(name))


def vectors(of: SumPlan, seed: int = 0) -> list[np.ndarray]:
    """Random words; the first client has the largest values there are, so that sums wrap."""
    top = (1 << of.bits) - 1
    rng = np.random.default_rng(seed)
    first = np.full(of.length, top, np.uint64)
    return [first, *(rng.integers(0, top, of.length, np.uint64, endpoint=True) for _ in range(of.clients - 1))]


def summed(of: SumPlan, values: list[np.ndarray], included: Iterable[int]) -> list[int]:
    """The sum of the included clients' vectors, in Python's integers."""
    chosen = [values[i].tolist() for i in included]
    return [sum(column) % (1 << of.bits) for column in zip(*chosen, strict=True)]


def run(
    of: SumPlan,
    name: str,
    values: list[np.ndarray],
    missing: Mapping[str, Collection[Party]] | None = None,
    tamper: Tamper | None = None,
    *,
    restoring: bool = False,
) -> tuple[Sum, Traffic]:
    log = Traffic()
    return sum_here(protocol(name), of, values, missing, tamper, log, restoring=restoring), log


def stages(name: str) -> list[str]:
    """The stages of the protocol, in order."""
    of = plan(name, length=1, bits=8)
    return run(of, name, vectors(of))[1].stages


def recorded(of: SumPlan, name: str, values: list[np.ndarray]) -> list[tuple[str, Party, str, bytes]]:
    """Every message of a run: stage, party, "ask" or "answer", payload."""
    log: list[tuple[str, Party, str, bytes]] = []

    def keep(stage: str, party: Party, direction: str, payload: bytes) -> bytes:
        log.append((stage, party, direction, payload))
        return payload

    run(of, name, values, tamper=keep)
    return log
