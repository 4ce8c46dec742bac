"""What a client keeps between two stages, and the same as bytes for its own memory: JSON, hexadecimal secrets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from protocols.aggregation import SumPlan
from protocols.errors import Misuse
from protocols.field import ELEMENT_BYTES, PRIME, fresh
from protocols.pairwise import wire
from protocols.pairwise.keys import STREAM_KEY_BYTES
from protocols.prg import Secret

_FORMAT = "pairwise sum, client 1"


@dataclass(repr=False)
class State(Secret):
    """What a client keeps between two stages, and no longer than it is needed. stage: the one it waits for.

    mask_seed, self_seed, seal_private: from the start to the stage "shares". self_key, pairs (neighbour -> key of the
    pairwise mask): from there to the upload. opening (neighbour -> key of what it seals): likewise. held (client ->
    its two shares, of mask seed and self seed; itself included): until they are given up.
    """

    stage: str
    mask_seed: int = 0
    self_seed: int = 0
    seal_private: bytes = b""
    self_key: bytes = b""
    pairs: dict[int, bytes] = field(default_factory=dict)
    opening: dict[int, bytes] = field(default_factory=dict)
    held: dict[int, tuple[bytes, bytes] | None] = field(default_factory=dict)

    @classmethod
    def new(cls) -> State:
        """Fresh secrets."""
        seal = X25519PrivateKey.generate().private_bytes_raw()
        return cls(wire.KEYS, fresh(), fresh(), seal)


def write_state(plan: SumPlan, number: int, state: State) -> bytes:
    """The state of client ``number`` of that run."""
    return json.dumps(
        {
            "format": _FORMAT,
            "session": plan.session.hex(),
            "number": number,
            "stage": state.stage,
            "mask_seed": f"{state.mask_seed:x}",
            "self_seed": f"{state.self_seed:x}",
            "seal_private": state.seal_private.hex(),
            "self_key": state.self_key.hex(),
            "pairs": {client: key.hex() for client, key in state.pairs.items()},
            "opening": {client: key.hex() for client, key in state.opening.items()},
            "held": {client: [one.hex() for one in pair or ()] for client, pair in state.held.items()},
        }
    ).encode()


def read_state(plan: SumPlan, number: int, data: bytes) -> State:
    """Inverse of :func:`write_state`; raises :class:`Misuse` for what is not a state of this client in this run."""
    try:
        raw = json.loads(data)
        if (raw["format"], raw["session"], raw["number"]) != (_FORMAT, plan.session.hex(), number):
            raise Misuse(
                f"this is not the state of client {number} in this run; each client keeps its own, for one run"
            )
        state = State(
            stage=raw["stage"],
            mask_seed=int(raw["mask_seed"], 16),
            self_seed=int(raw["self_seed"], 16),
            seal_private=bytes.fromhex(raw["seal_private"]),
            self_key=bytes.fromhex(raw["self_key"]),
            pairs={int(client): bytes.fromhex(key) for client, key in raw["pairs"].items()},
            opening={int(client): bytes.fromhex(key) for client, key in raw["opening"].items()},
            held={int(client): _shares(pair) for client, pair in raw["held"].items()},
        )
        whole = _whole(state, number)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Misuse("the state of a client was cut off or changed; it is kept as expose_state() gave it") from None
    if not whole:
        raise Misuse(f"the state of client {number} lacks what its stage needs")
    return state


def _shares(pair: list[str]) -> tuple[bytes, bytes] | None:
    if not pair:
        return None
    of_mask, of_self = (bytes.fromhex(one) for one in pair)
    if len(of_mask) != ELEMENT_BYTES or len(of_self) != ELEMENT_BYTES:
        raise ValueError("a share of another length")
    return of_mask, of_self


def _whole(state: State, number: int) -> bool:
    if state.stage in (wire.KEYS, wire.SHARES):
        seeds = (state.mask_seed, state.self_seed)
        return len(state.seal_private) == 32 and all(0 < seed < PRIME for seed in seeds)
    if state.stage == wire.VECTORS:
        every = [state.self_key, *state.pairs.values(), *state.opening.values()]
        return all(len(key) == STREAM_KEY_BYTES for key in every) and state.pairs.keys() == state.opening.keys()
    return state.stage == wire.DONE or (state.stage == wire.UNMASK and number in state.held)
