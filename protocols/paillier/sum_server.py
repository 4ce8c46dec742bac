"""The server of a sum under Paillier: adds what it cannot read, hides the sum, has it opened. Holds no secret key."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocols import identity
from protocols.aggregation import Server, Sum, SumPlan
from protocols.paillier import numbers
from protocols.paillier.public import PublicKey
from protocols.paillier.sum_layout import SumLayout
from protocols.uploads import KEYS, VECTORS, blaming, collected, of_helper, opened, question, told

KEY_HOLDER = "key-holder"
OPEN = "open"


def serve(plan: SumPlan) -> Server:
    """Three stages: the public key, the vectors, the masked sum opened."""
    layout = SumLayout(plan)
    found = yield question(plan, KEYS, {KEY_HOLDER: b""})
    message = of_helper(plan, found, KEY_HOLDER, KEYS)
    with blaming(KEY_HOLDER, KEYS):
        key = PublicKey.from_bytes(identity.verified(plan, KEY_HOLDER, message, layout.key_bytes), layout.key_bits)
    answers = yield question(plan, VECTORS, dict.fromkeys(range(plan.clients), message))
    total: list[Any] = [numbers.big(1)] * layout.ciphertexts

    def take(_: int, sent: memoryview) -> None:
        for at, c in enumerate(key.read(bytes(sent), layout.ciphertexts, "its vector")):
            total[at] = total[at] * c % key.square

    included = collected(plan, answers, take)
    masks = layout.masks()
    # A fresh encryption of the mask: what the key holder gets is distributed as one, whoever encrypted what before.
    hidden = [
        c * key.encrypt(mask, key.zero()) % key.square for c, mask in zip(total, layout.plaintexts(masks), strict=True)
    ]
    found = yield question(plan, OPEN, {KEY_HOLDER: key.write(hidden)})
    masked = told(plan, found, KEY_HOLDER, OPEN)
    known = np.array([mask & ((1 << plan.bits) - 1) for mask in masks], np.uint64)
    return Sum(opened(plan, masked.astype(np.uint64) - known), included)
