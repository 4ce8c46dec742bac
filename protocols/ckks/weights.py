"""The server's weights in the form that ciphertexts are multiplied with: made once, shared by all clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from protocols.circuit import Integers, Owned
from protocols.ckks.bound import check_norms
from protocols.ckks.plan import BATCH, SINGLE, CkksPlan
from protocols.ckks.schedule import AffineStep
from protocols.errors import Misuse
from protocols.lattice.context import Context
from protocols.lattice.layout import Gather
from protocols.lattice.weights import check, digest
from protocols.prg import Secret


@dataclass(frozen=True, repr=False)
class Products:
    """A stage by slots: plaintexts by the ciphertext's number of a gather, or (giant, baby) of diagonals; the bias."""

    plain: dict[Any, Any]
    bias: Any


@dataclass(frozen=True, repr=False)
class Scalars:
    """A stage by integer weights, then one scalar (a plaintext, the same for all rows) and a plaintext per bias."""

    weight: Integers
    scalar: Any
    bias: list[Any]


class Prepared(Secret):
    """The context and the weights of a plan; plaintexts of a packing are made when first used.

    Raises BadParameters where weights do not fit the circuit, could give values beyond what it declares, or exceed the
    norms on which the plan's error bound rests.
    """

    __slots__ = ("_products", "_scalars", "_weights", "context", "digest", "plan")

    def __init__(self, plan: CkksPlan, weights: Owned) -> None:
        check(plan.circuit, weights)
        check_norms(plan.circuit, weights, plan.norms)
        self.plan, self.context, self.digest = plan, Context(plan.parameters), digest(weights)
        self._weights = weights
        self._products: list[Products] | None = None
        self._scalars: list[Scalars] | None = None

    @property
    def products(self) -> list[Products]:
        """Plaintexts of every affine stage in the single packing."""
        if self._products is None:
            self._products = [self._stage_products(number, step) for number, step in enumerate(self._steps(SINGLE))]
        return self._products

    @property
    def scalars(self) -> list[Scalars]:
        """Weights of every affine stage in the batch packing."""
        if self._scalars is None:
            self._scalars = [self._stage_scalars(step) for step in self._steps(BATCH)]
        return self._scalars

    def _steps(self, packing: str) -> list[AffineStep]:
        return [step for step in self.plan.run(packing).steps if isinstance(step, AffineStep)]

    def _stage_products(self, number: int, step: AffineStep) -> Products:
        if self.plan.layout is None:
            raise Misuse("this plan has no single packing")
        stage = self.plan.layout.stages[number]
        weight = self._weights[step.name].weight.astype(np.float64) * step.factor
        rows = (
            enumerate(stage.plaintexts(weight))
            if isinstance(stage, Gather)
            else (((giant, baby), row) for giant, baby, row in stage.plaintexts(weight))
        )
        plain = {key: self._factor(row, step.primes) for key, row in rows}
        return Products(plain, self._encoded(stage.bias(self._bias(step)).tolist(), step.primes))

    def _stage_scalars(self, step: AffineStep) -> Scalars:
        bias = [self._encoded(value, step.primes) for value in self._bias(step).tolist()]
        return Scalars(self._weights[step.name].weight, self._encoded(step.scalar, step.primes), bias)

    def _bias(self, step: AffineStep) -> NDArray[np.float64]:
        """``b + tail W 1 + shift``, before the stage's division."""
        own = self._weights[step.name]
        value = own.bias.astype(np.float64) + step.tail * own.weight.astype(np.float64).sum(1) + step.shift
        out: NDArray[np.float64] = value * (step.gain_out * step.prime)
        return out

    def _factor(self, row: NDArray[np.float64], primes: int) -> Any:
        """A row as a plaintext. SEAL refuses to multiply by zero: zero weights become the least there is, one unit."""
        plain = self._encoded(row.tolist(), primes)
        return self._encoded(1.0, primes) if plain.is_zero() else plain

    def _encoded(self, values: Any, primes: int) -> Any:
        plain = seal.Plaintext()
        self.context.encoder.encode(values, list(self.context.levels[primes].parms_id), 1.0, plain)
        return plain
