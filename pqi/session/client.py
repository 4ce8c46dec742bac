"""The thin client: quantizes, asks privately, reads the answer. Holds no part of the model.

What goes over the wire depends on the protocol: shares to two servers (``sharing``), or ciphertexts to one under keys
that never leave this object (``keyed``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pqi.net.link import NONE, Link
from pqi.program import Interface
from pqi.program.keyed import KeyedProgram
from pqi.quant.inputs import decode_answer
from pqi.session.bundle import KeyedClientBundle, load_client
from pqi.session.config import load_config
from pqi.session.conversation import Asked, Conversation
from pqi.session.direct import OwnServer
from pqi.session.keyed.asking import KeyedConversation
from pqi.session.ledger import Ledger, OwnLedger, total
from pqi.session.roles import SERVER_B
from pqi.session.sharing import SharedConversation
from protocols.circuit import Wide

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """values: real numbers (N, *output_shape). ledger: what it cost.

    integers: the exact answer, int64, or an array of Python integers where 63 bits do not hold it; None under an
    approximate protocol. error_bound: how far a value may be from the integer model's; 0 where exact; of answers with
    noise, how far noise may take it.
    """

    values: NDArray[np.float64]
    integers: torch.Tensor | Wide | None
    ledger: Ledger = field(repr=False)
    error_bound: float = 0.0


class Client:
    """Asks a deployment privately. ``config``: path of its client.toml. Close it, or use it as a context manager.

    Connections are made when first needed, and made anew after a failure. One query at a time; calls from several
    threads wait for each other. Under a keyed protocol the first prediction makes the keys; they live and die with
    this object. own_server: the folder of server B's bundle, if this client is to run server B itself, in this process,
    from the first query until it is closed: the direct topology, meant for weights that server A owns. link: what to
    emulate of a network, for measurements; every role must be told the same. Raises BundleError, WrongPeer (TLS files).
    """

    def __init__(self, config: str | Path, *, own_server: str | Path | None = None, link: Link = NONE) -> None:
        loaded = replace(load_config(config), link=link)
        self._bundle = load_client(loaded.bundle)
        self._own = None if own_server is None else OwnServer(Path(own_server), self._bundle, link)
        if self._own is not None:
            loaded = replace(loaded, addresses={**loaded.addresses, SERVER_B: self._own.address})
        self._lock = threading.Lock()
        self._talk: Conversation = (
            KeyedConversation(loaded, self._bundle)
            if isinstance(self._bundle, KeyedClientBundle)
            else SharedConversation(loaded, self._bundle)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def program(self) -> Interface | KeyedProgram:
        """What this client holds of what the servers compute: shapes, exactness, who learns what."""
        return self._bundle.program

    def close(self) -> None:
        """Close the connections, and stop a server of its own. A later prediction opens and starts them again."""
        with self._lock:
            self._talk.drop()
            if self._own is not None:
                self._own.stop()

    def predict(self, x: Any, *, progress: Progress | None = None, on_saturation: str = "warn") -> Answer:
        """The private answer for a float batch x (N, *input_shape).

        Of a dynamic model, each input is scaled on its own and its answer scaled back here: no server learns how.
        Batches over the servers' limit go as several queries; ``progress(done, of)`` hears of each. An empty batch is
        answered here. Raises InputError before anything is sent; QueryFailed with the party, the step and the cause;
        MaterialMissing where no dealer comes to a server of its own.
        """
        codes = self._bundle.input.encode(x, on_saturation)
        samples, started = len(codes), time.perf_counter()
        asked: list[Asked] = []
        with self._lock:
            if samples and self._own is not None:
                self._own.start()
            done = 0
            while done < samples:
                asked.append(self._talk.ask(codes[done:]))
                done += asked[-1].n
                if progress is not None:
                    progress(done, samples)
        integers, numbers = self._joined(asked)
        scale, dynamic = self._bundle.output_scale, self._bundle.input.dynamic
        values = decode_answer(numbers, scale, dynamic, codes)
        parts = [party for each in asked for party in each.parties]
        own = [each.own for each in asked if each.own is not None]
        keyed = sum(own, OwnLedger()) if isinstance(self.program, KeyedProgram) else None
        seconds = time.perf_counter() - started
        # A scale of its own only makes an input louder: what is proven of the integers' error holds of the values'.
        bound = scale * max((each.error_bound for each in asked), default=0.0)
        if isinstance(self.program, Interface):
            bound += scale * self.program.noise
        return Answer(values, integers, Ledger(total(parts), samples, len(asked), seconds, keyed), bound)

    def status(self) -> dict[str, dict[str, Any]]:
        """The public state of every server: sessions, memory, and its pool of material or of keys."""
        with self._lock:
            if self._own is not None:
                self._own.start()
            return self._talk.status()

    def _joined(self, asked: list[Asked]) -> tuple[torch.Tensor | Wide | None, Any]:
        """All answers in order: the integers, and the numbers that are to be scaled."""
        if not asked:
            empty = torch.zeros((0, *self.program.output_shape), dtype=torch.int64)
            approximate = isinstance(self.program, KeyedProgram) and not self.program.exact
            return (None if approximate else empty), empty.numpy()
        if all(each.approximate is not None for each in asked):
            return None, np.concatenate([each.approximate for each in asked if each.approximate is not None])
        tensors = [each.integers for each in asked if isinstance(each.integers, torch.Tensor)]
        if tensors:
            joined = torch.cat(tensors)
            return joined, joined.numpy()
        wide: Wide = np.concatenate([each.integers for each in asked if isinstance(each.integers, np.ndarray)])
        return wide, wide
