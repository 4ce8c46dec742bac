"""Averaging through integers: the updates encoded, summed by any protocol for sums, decoded. The deployed code paths.

All parties are in this process (``protocols.aggregation_local``), and every one of them runs: what the server gets is
what it would get on a machine of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pqi.federated.codec import Codec, DecodedSum
from pqi.federated.encoding import Encoding
from pqi.federated.privacy.accounting import Accountant
from pqi.federated.study.training import Vector
from protocols import get_sum
from protocols.aggregation import Sum
from protocols.aggregation_local import Traffic, sum_here
from protocols.errors import BadParameters

Codes = Sequence[NDArray[np.unsignedinteger]]


def protocol_sum(name: str, codec: Codec, codes: Codes, record: Traffic | None = None) -> Sum:
    """The sum of encoded updates by the protocol of that name; of all clients, of whom a majority would do."""
    protocol = get_sum(name)
    plan = protocol.plan(codec.clients, codec.vector_length, codec.bits, max(2, codec.threshold))
    return sum_here(protocol, plan, list(codes), record=record)


class Disagreement(Exception):
    """Two protocols gave different sums of the same codes; none may."""


class EncodedAverage:
    """An :class:`~pqi.federated.study.training.Averaging` through an encoding and one or more protocols.

    encoding: its weight fields are set here from the clients' images where ``weighted``, and its bounds follow the
    updates (``Encoding.adapted``) where ``adaptive``. protocols: the first one's sum is decoded; every other one's sum
    of the same codes has to be equal, integer by integer, else :class:`Disagreement`. accountant: books every round
    before its sum is decoded. each: told the codec, the codes and their sum. rounds: how many are done. decoded: what
    the server learned in the last one. Updates are unweighted and bounds stay where there is a mechanism.
    """

    def __init__(
        self,
        encoding: Encoding,
        protocols: Sequence[str] = ("shares",),
        *,
        weighted: bool = True,
        adaptive: bool = True,
        accountant: Accountant | None = None,
        each: Callable[[Codec, Codes, Sum], None] | None = None,
    ) -> None:
        if not protocols:
            raise BadParameters("protocols is empty: name at least one of protocols.SUMS")
        self.encoding, self._protocols, self._each = encoding, tuple(protocols), each
        self._weighted, self._adaptive = weighted and encoding.mechanism is None, adaptive
        self._accountant, self.rounds = accountant, 0
        self.decoded: DecodedSum | None = None

    def __call__(self, updates: NDArray[np.float32], weights: Sequence[int]) -> Vector:
        """The mean of the updates, decoded from the sum of their codes."""
        counted = list(weights) if self._weighted else [1] * len(weights)
        encoding = self.encoding
        if self._weighted:
            encoding = replace(encoding, max_weight=max(counted), total_weight=sum(counted))
        clients = len(updates)
        threshold = clients if encoding.mechanism is not None else clients // 2 + 1
        codec = encoding.codec(updates.shape[1], clients, threshold)
        codes = [codec.encode(update, weight).values for update, weight in zip(updates, counted, strict=True)]
        found = protocol_sum(self._protocols[0], codec, codes)
        for other in self._protocols[1:]:
            again = protocol_sum(other, codec, codes)
            if again.included != found.included or not np.array_equal(again.values, found.values):
                raise Disagreement(f"{other} and {self._protocols[0]} disagree in round {self.rounds}")
        if self._accountant is not None:
            self._accountant.spend(codec)
        if self._each is not None:
            self._each(codec, codes, found)
        self.decoded = codec.decode(found.values, found.included)
        if self._adaptive:
            self.encoding = encoding.adapted(self.decoded)
        self.rounds += 1
        return self.decoded.mean.astype(np.float32)
