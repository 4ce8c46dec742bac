"""The server's weights in the form that ciphertexts are multiplied with: made once, shared by all clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from protocols.bfv.choose import LANES, SINGLE
from protocols.bfv.plan import BfvPlan
from protocols.circuit import Affine, Integers, Owned
from protocols.errors import Misuse
from protocols.lattice.context import Context
from protocols.lattice.layout import Gather
from protocols.lattice.weights import check, digest
from protocols.prg import Secret


@dataclass(frozen=True, repr=False)
class Products:
    """A stage by slots: an NTT plaintext per product, None for zero (SEAL refuses to multiply by it), and the bias.

    Keys are the ciphertext's number of a gather, (giant, baby) of diagonals.
    """

    plain: dict[Any, Any]
    dummy: Any
    bias: Any


@dataclass(frozen=True, repr=False)
class Scalars:
    """A stage by scalars: weights centred mod t, and a constant plaintext per bias."""

    weight: Integers
    bias: list[Any]


class Prepared(Secret):
    """Contexts and weights of a plan; plaintexts of a packing and plain prime are made when first used.

    Raises BadParameters where weights do not fit the circuit, or could give values beyond what it declares.
    """

    __slots__ = ("_products", "_scalars", "_weights", "contexts", "digest", "plan")

    def __init__(self, plan: BfvPlan, weights: Owned) -> None:
        check(plan.circuit, weights)
        self.plan = plan
        self.contexts = [Context(parameters) for parameters in plan.parameters]
        self.digest = digest(weights)
        self._weights = weights
        self._products: dict[int, list[Products]] = {}
        self._scalars: dict[int, list[Scalars]] = {}

    def products(self, prime: int) -> list[Products]:
        """Plaintexts of every affine stage in the single packing."""
        if prime not in self._products:
            stages = range(len(self.plan.circuit.affine))
            self._products[prime] = [self._stage_products(prime, number) for number in stages]
        return self._products[prime]

    def scalars(self, prime: int) -> list[Scalars]:
        """Weights of every affine stage in the batch packing."""
        if prime not in self._scalars:
            self._scalars[prime] = [self._stage_scalars(prime, stage) for stage in self.plan.circuit.affine]
        return self._scalars[prime]

    def _stage_products(self, prime: int, number: int) -> Products:
        context, plan = self.contexts[prime], self.plan
        if plan.layout is None:
            raise Misuse("this plan has no single packing")
        stage, own = plan.layout.stages[number], self._weights[plan.circuit.affine[number].name]
        t = context.parameters.plain
        level = context.levels[plan.run(SINGLE).primes[2 * number]]
        weight = np.mod(own.weight, t)
        rows = (
            enumerate(stage.plaintexts(weight))
            if isinstance(stage, Gather)
            else (((giant, baby), row) for giant, baby, row in stage.plaintexts(weight))
        )
        plain = {key: _factor(context, row, level.parms_id) for key, row in rows}
        ones = np.ones(plan.degree // LANES, np.int64)
        bias = (own.bias % t).astype(np.int64)
        return Products(plain, _factor(context, ones, level.parms_id), encoded(context, stage.bias(bias)))

    def _stage_scalars(self, prime: int, stage: Affine) -> Scalars:
        t = self.contexts[prime].parameters.plain
        own = self._weights[stage.name]
        weight = np.mod(own.weight, t)
        return Scalars(np.where(weight > t // 2, weight - t, weight), [constant(int(b), t) for b in own.bias])


def encoded(context: Context, row: NDArray[np.int64]) -> Any:
    """A plaintext with these slots, both rows alike."""
    plain = seal.Plaintext()
    context.encoder.encode(np.concatenate([row] * LANES).tolist(), plain)
    return plain


def constant(value: int, plain_modulus: int) -> Any:
    """A plaintext with the same value mod t in every slot."""
    return seal.Plaintext(f"{value % plain_modulus:X}")


def _factor(context: Context, row: NDArray[np.int64], parms_id: tuple[int, ...]) -> Any:
    """A slot vector as an NTT plaintext of a level; None if it is zero."""
    if not row.any():
        return None
    plain = encoded(context, row)
    context.evaluator.transform_to_ntt_inplace(plain, list(parms_id))
    return plain
