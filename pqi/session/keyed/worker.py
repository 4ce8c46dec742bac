"""One worker: a process that holds the weights and clients' evaluation keys, and computes one part at a time.

``python -m pqi.session.keyed.worker DESCRIPTOR``, started by the server with one end of a pipe. It is told in messages
of bytes, answers each, pickles nothing, opens no port and no file, and ends when the pipe or its standard input ends:
no worker outlives its server, however that went.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import safetensors.torch
import torch

from pqi.net.listener import describe_unexpected
from pqi.program.errors import ProgramError
from pqi.program.keyed import KeyedProgram, owned
from pqi.session.ledger import peak_rss_bytes
from protocols.circuit import Owned
from protocols.errors import Misuse, PeerMisbehaved, ProtocolError
from protocols.keyed import Evaluator, KeyedProtocol

log = logging.getLogger("pqi.worker")
LOAD, KEYS, WARM, DROP, PART = "load", "keys", "warm", "drop", "part"
FINE, PEER, REFUSED, INTERNAL = "fine", "peer", "refused", "internal"


class Worker:
    """What a worker holds: a program, its weights, and one evaluator per client."""

    def __init__(self) -> None:
        self._program: KeyedProgram | None = None
        self._backend: KeyedProtocol | None = None  # one for all clients: it keeps what is prepared of the weights
        self._weights: Owned = {}
        self._evaluators: dict[int, Evaluator] = {}

    def load(self, program: bytes, tensors: bytes) -> bytes:
        """The program, read with suspicion, and the weights of its stages."""
        loaded = KeyedProgram.from_json(json.loads(program))
        self._weights = owned(loaded, safetensors.torch.load(tensors))
        self._program, self._backend = loaded, loaded.backend
        return b""

    def keys(self, slot: int, keys: bytes) -> bytes:
        """A client's evaluation keys."""
        if self._program is None or self._backend is None:
            raise Misuse("keys came before the program")
        self._evaluators[slot] = self._backend.evaluator(self._program.plan, self._weights, keys)
        return b""

    def warm(self, slot: int, part: int) -> bytes:
        """Make ready, before it is asked, what parts of that number need."""
        self._evaluators[slot].warm(part)
        return b""

    def drop(self, slot: int) -> bytes:
        """Forget a client's keys."""
        self._evaluators.pop(slot, None)
        return b""

    def part(self, slot: int, n: int, part: int, question: bytes) -> bytes:
        """One part of a query."""
        if slot not in self._evaluators:
            raise Misuse("a question came before its client's keys")
        return self._evaluators[slot].evaluate(n, part, question)

    def obey(self, order: Mapping[str, Any], pipe: Connection) -> bytes:
        """Do what one order says; its bytes follow it on the pipe."""
        what = order["do"]
        if what == LOAD:
            return self.load(pipe.recv_bytes(), pipe.recv_bytes())
        if what == KEYS:
            return self.keys(order["slot"], pipe.recv_bytes())
        if what == WARM:
            return self.warm(order["slot"], order["part"])
        if what == DROP:
            return self.drop(order["slot"])
        return self.part(order["slot"], order["n"], order["part"], pipe.recv_bytes())


def serve(pipe: Connection) -> None:
    """Obey orders until the pipe ends. What goes wrong is told, by kind and without a value, and ends nothing."""
    worker = Worker()
    while True:
        try:
            order = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        started, result, kind, cause = time.perf_counter(), b"", FINE, ""
        try:
            result = worker.obey(order, pipe)
        except EOFError:
            return
        except PeerMisbehaved as error:
            kind, cause = PEER, str(error)
        except (ProtocolError, ProgramError) as error:
            kind, cause = REFUSED, str(error)
        except Exception as error:
            # The message of an unforeseen error may quote a weight: it goes nowhere.
            kind, cause = INTERNAL, describe_unexpected(error)
            log.error("%s: %s", order["do"], cause)
        seconds = time.perf_counter() - started
        head = {"kind": kind, "cause": cause[:600], "seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}
        try:
            pipe.send_bytes(json.dumps(head).encode())
            pipe.send_bytes(result)
        except OSError:
            return


def end_with_parent() -> None:
    """End this process as soon as its standard input does: the server is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main() -> None:
    """Serve the pipe that the command line names."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    end_with_parent()
    torch.set_num_threads(1)
    with Connection(int(sys.argv[1])) as pipe:
        serve(pipe)


if __name__ == "__main__":
    main()
