"""``paillier`` as a protocol: its statement, how plans and the two ends are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from protocols.api import SecurityStatement
from protocols.circuit import Circuit, Owned
from protocols.errors import BadParameters, Misuse
from protocols.keyed import KeyedProtocol, Plan
from protocols.paillier.plan import DEFAULT_KEY_BITS, PaillierPlan, read_plan
from protocols.paillier.server import PaillierEvaluator

if TYPE_CHECKING:
    from protocols.paillier.client import PaillierKeyHolder


class Paillier(KeyedProtocol):
    """One affine map under the client's key, exact. Options: ``key_bits``, 2048, 3072 (default) or 4096."""

    name: ClassVar[str] = "paillier"
    exact: ClassVar[bool] = True
    max_degree: ClassVar[int] = 1
    security: ClassVar[SecurityStatement] = SecurityStatement(
        adversary="semi-honest client or server (decisional composite residuosity: 128-bit security with a modulus of "
        "3072 bits, the default; 112 with 2048). The answer is blinded perfectly",
        learns={
            "server": "shapes and the number of inputs asked about; nothing about inputs or answers",
            "client": "its answer, the shapes of input and answer, and from the server's time the bits of the largest "
            "weight; answers of a linear map determine it after as many independent questions as it has inputs and one",
        },
    )

    def plan(self, circuit: Circuit, options: Mapping[str, Any] | None = None) -> PaillierPlan:
        """Slots and bytes for a circuit of one affine stage."""
        given = dict(options or {})
        key_bits = given.pop("key_bits", DEFAULT_KEY_BITS)
        if given:
            raise BadParameters(f"protocol 'paillier' has no option {sorted(given)[0]!r}; it has 'key_bits'")
        return PaillierPlan(circuit, key_bits)

    def read(self, data: Mapping[str, Any]) -> PaillierPlan:
        """A plan from plain data."""
        return read_plan(data)

    def key_holder(self, plan: Plan) -> PaillierKeyHolder:
        """The client's end. Raises BadParameters where phe, which makes the keys, is not installed."""
        try:
            from protocols.paillier.client import PaillierKeyHolder  # a server must not load what makes keys
        except ModuleNotFoundError as error:
            if error.name != "phe":
                raise
            raise BadParameters(
                "a key for protocol 'paillier' is made by phe, which is not installed: "
                "pip install 'private-quantized-inference[homomorphic]'"
            ) from error
        return PaillierKeyHolder(_own(plan))

    def evaluator(self, plan: Plan, weights: Owned, keys: bytes) -> PaillierEvaluator:
        """The server's end."""
        return PaillierEvaluator(_own(plan), weights, keys)


def _own(plan: Plan) -> PaillierPlan:
    if not isinstance(plan, PaillierPlan):
        raise Misuse(f"a plan of {type(plan).__name__} for protocol 'paillier'")
    return plan
