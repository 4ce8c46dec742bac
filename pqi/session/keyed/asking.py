"""A client's words with the one server of a keyed protocol: keys once a connection, then questions in ciphertext."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import prod

import torch

import protocols
from pqi.net.channel import Channel, exchange
from pqi.net.frames import FrameType
from pqi.session.bundle import KeyedClientBundle
from pqi.session.config import ClientConfig
from pqi.session.conversation import LIMITS, Asked, Conversation, control
from pqi.session.errors import QueryRefused
from pqi.session.keyed.words import KEYS, KEYS_KNOWN, KEYS_WANTED, chunks, receive_exact
from pqi.session.ledger import OwnLedger, PartyLedger
from protocols.errors import Misuse
from protocols.keyed import KeyedCost, KeyHolder, Opened
from protocols.rounds import PartyId

_INT64_BITS = 63


class KeyedConversation(Conversation):
    """Holds the client's keys: made at the first query, never sent, gone with this object.

    The evaluation keys, from which no secret can be derived, go to the server once a connection.
    """

    def __init__(self, config: ClientConfig, bundle: KeyedClientBundle) -> None:
        super().__init__(config, bundle)
        self._program = bundle.program
        self._holder: KeyHolder | None = None
        self._evaluation_keys = b""
        self._knows_keys: Channel | None = None  # the connection over which the server got them

    def drop(self) -> None:
        """Close the connections; the keys stay for the next ones."""
        super().drop()
        self._knows_keys = None

    def _query_servers(self, links: Mapping[PartyId, Channel], codes: torch.Tensor) -> Asked:
        channel = links[PartyId.P0]
        plan = self._program.plan
        codes = codes[: plan.max_batch]
        n, cost = len(codes), plan.cost(len(codes))
        started = time.perf_counter()
        holder = self._keys(cost)
        made = time.perf_counter()
        # Encrypted before the query is announced: the server waits for bytes, never for this side's arithmetic.
        questions = holder.encrypt(codes.reshape(n, prod(self._program.input_shape)).numpy())
        encrypted = time.perf_counter()
        if tuple(map(len, questions)) != cost.questions:
            raise Misuse(f"the question has parts of {list(map(len, questions))} bytes; {cost.questions} are declared")
        sent = self._announce(channel, n)
        frames = [(channel, FrameType.BINARY, part) for part in questions]
        exchange(frames, [], self.timeout, f"the input of query {self._query}")
        head = self._gather(links, "result")[PartyId.P0]
        what = f"the answer to query {self._query}"
        answers = [receive_exact(channel, size, self.timeout, what) for size in cost.answers]
        channel.limits = LIMITS
        ledger = PartyLedger.from_message(head.get("ledger"), channel.peer)
        received = time.perf_counter()
        opened = holder.decrypt(n, answers)
        decrypted = time.perf_counter() - received
        own = OwnLedger(sent, made - started, encrypted - made, decrypted, opened.left)
        return self._asked(n, opened, ledger, own)

    def _keys(self, cost: KeyedCost) -> KeyHolder:
        """This client's keys, made when first needed."""
        if self._holder is None:
            holder = protocols.get_keyed(self._program.protocol).key_holder(self._program.plan)
            self._evaluation_keys = holder.evaluation_keys()
            if len(self._evaluation_keys) != cost.keys:
                raise Misuse(f"keys of {len(self._evaluation_keys)} bytes were made; {cost.keys} are declared")
            self._holder = holder
        return self._holder

    def _announce(self, channel: Channel, n: int) -> int:
        """Say that a query comes, with keys where the server needs them; returns the bytes of keys sent."""
        links, sent = {PartyId.P0: channel}, 0
        question = {"kind": "query", "query": self._query, "n": n}
        for _ in range(2):
            if self._knows_keys is not channel:
                sent += self._send_keys(channel)
            exchange([control(channel, question)], [], self.timeout, f"query {self._query}")
            if self._gather(links, "ready", KEYS_WANTED)[PartyId.P0]["kind"] == "ready":
                return sent
            self._knows_keys = None
        raise QueryRefused(
            f"{channel.peer} drops this client's keys as soon as it has them: too many clients at a time"
        )

    def _send_keys(self, channel: Channel) -> int:
        head = {"kind": KEYS, "query": self._query, "length": len(self._evaluation_keys)}
        exchange([control(channel, head)], [], self.timeout, "the evaluation keys")
        for part in chunks(self._evaluation_keys):
            channel.send_binary(bytes(part), self.timeout, "the evaluation keys")
        self._gather({PartyId.P0: channel}, KEYS_KNOWN)
        self._knows_keys = channel
        return len(self._evaluation_keys)

    def _asked(self, n: int, opened: Opened, ledger: PartyLedger, own: OwnLedger) -> Asked:
        """The opened answer in the shape of the program's, in int64 where every answer fits."""
        shape = (n, *self._program.output_shape)
        if opened.exact is None:
            return Asked(n, None, opened.approximate.reshape(shape), opened.error_bound, [ledger], own)
        exact = opened.exact.reshape(shape)
        narrow = self._program.plan.circuit.bits <= _INT64_BITS
        integers = torch.from_numpy(exact.astype("int64")) if narrow else exact.astype(object)
        return Asked(n, integers, None, 0.0, [ledger], own)
