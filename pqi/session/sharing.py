"""A client's words with servers that compute on shares: one share to each, their answers added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pqi.net.channel import Channel, exchange
from pqi.net.frames import FrameType, take_hex, take_int
from pqi.program import decode_output, encode_input
from pqi.session.bundle import ClientBundle
from pqi.session.config import ClientConfig
from pqi.session.conversation import Asked, Conversation, control
from pqi.session.errors import AnswersDisagree
from pqi.session.journal import MAX_ITEM
from pqi.session.ledger import PartyLedger
from pqi.session.material import EPOCH_DIGITS
from pqi.session.roles import SERVERS
from protocols.rounds import PartyId


class SharedConversation(Conversation):
    """Query, "ready" from every server, the shares, the results."""

    def __init__(self, config: ClientConfig, bundle: ClientBundle) -> None:
        super().__init__(config, bundle)
        self._program = bundle.program

    def _query_servers(self, links: Mapping[PartyId, Channel], codes: torch.Tensor) -> Asked:
        query, n, timeout = self._query, len(codes), self.timeout
        question = {"kind": "query", "query": query, "n": n}
        exchange([control(channel, question) for channel in links.values()], [], timeout, f"query {query}")
        shares = encode_input(self._program, codes)  # while the servers make ready
        _check_ready(self._gather(links, "ready"), n)
        # Nothing of the input has left this process up to here. Each server gets its share and no more.
        frames = [(channel, FrameType.BINARY, shares[party]) for party, channel in links.items()]
        exchange(frames, [], timeout, f"the input of query {query}")
        heads = self._gather(links, "result")
        bodies = exchange([], list(links.values()), timeout, f"the result of query {query}")
        results = {
            party: channel.as_binary(body, "the result")
            for (party, channel), body in zip(links.items(), bodies, strict=True)
        }
        ledgers = [PartyLedger.from_message(heads[p].get("ledger"), links[p].peer) for p in links]
        return Asked(n, decode_output(self._program, n, results), None, 0.0, ledgers)


def _check_ready(ready: Mapping[PartyId, dict[str, Any]], n: int) -> None:
    seen = {}
    for party, message in ready.items():
        peer = SERVERS[party]
        epoch = take_hex(message, "epoch", EPOCH_DIGITS, peer)
        seen[peer] = (epoch, take_int(message, "first", 0, MAX_ITEM, peer), take_int(message, "n", n, n, peer))
    if len(set(seen.values())) != 1:
        raise AnswersDisagree(f"the servers are ready with different material: {seen}. Nothing was sent")
