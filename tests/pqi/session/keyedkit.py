"""A keyed protocol that hides nothing, with the lengths and refusals of one that does; models; a server here.

``Toy`` (exact) and ``Rough`` (approximate) are registered by :func:`registered`, here and in the workers. Options:
``key_bytes``, ``group`` (inputs of one part), ``delay`` (seconds a part takes), ``batch`` (inputs of one query).
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import protocols
from pqi.graph.graph import IntegerGraph, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import Dense, Input, Polynomial
from pqi.graph.polynomial import PolynomialModel
from pqi.graph.ranges import prove
from pqi.net.ports import free_ports
from pqi.quant.quantizer import Quantizer
from pqi.session.bundle import load_server
from pqi.session.client import Client
from pqi.session.keyed import process
from pqi.session.keyed.server import KeyedOptions, KeyedServer
from pqi.session.owner import make_keys, split
from pqi.session.serving import Patience
from protocols import circuit as circuits
from protocols.api import SecurityStatement
from protocols.circuit import Circuit, Integers, Owned
from protocols.clear.circuit import define_circuit
from protocols.errors import BadParameters, PeerMisbehaved
from protocols.keyed import Evaluator, KeyedCost, KeyedProtocol, KeyHolder, Opened, Plan
from protocols.prg import Secret

HERE = Path(__file__).resolve().parent
TAG, WORD, MAGIC = 16, 48, b"toy keys"
FEATURES = 6
DIES, BREAKS = 100, 101  # first codes at which a worker dies, or raises what nobody foresaw


@dataclass(frozen=True)
class ToyPlan(Plan):
    circuit: Circuit
    key_bytes: int = 100
    group: int = 4
    delay: float = 0.0
    batch: int = 64

    def __post_init__(self) -> None:
        if self.key_bytes < TAG + len(MAGIC) or not 1 <= self.group <= self.batch:
            raise BadParameters(f"option key_bytes is {self.key_bytes}, group {self.group}: too small")

    @property
    def max_batch(self) -> int:
        return self.batch

    def groups(self, n: int) -> list[int]:
        return [min(self.group, n - at) for at in range(0, n, self.group)]

    def cost(self, n: int) -> KeyedCost:
        questions = tuple(TAG + 8 * size * self.circuit.inputs for size in self.groups(n))
        answers = tuple(TAG + WORD * size * self.circuit.outputs for size in self.groups(n))
        return KeyedCost(self.key_bytes, questions, answers)

    def to_json(self) -> dict[str, Any]:
        plain = {k: v for k, v in asdict(self).items() if k != "circuit"}
        return {**plain, "circuit": circuits.to_json(self.circuit)}

    def facts(self) -> Mapping[str, str]:
        return {"security": "none"}


class ToyHolder(KeyHolder, Secret):
    def __init__(self, plan: ToyPlan, exact: bool) -> None:
        self._plan, self._exact, self.tag = plan, exact, secrets.token_bytes(TAG)

    def evaluation_keys(self) -> bytes:
        filler = bytes(self._plan.key_bytes - TAG - len(MAGIC))
        return MAGIC + self.tag + filler

    def encrypt(self, codes: Integers) -> list[bytes]:
        group = self._plan.group
        return [self.tag + codes[at : at + group].tobytes() for at in range(0, len(codes), group)]

    def decrypt(self, n: int, answers: list[bytes]) -> Opened:
        words = b"".join(answer[TAG:] for answer in answers)
        flat = [int.from_bytes(words[at : at + WORD], "big", signed=True) for at in range(0, len(words), WORD)]
        if any(answer[:TAG] != self.tag for answer in answers):
            raise PeerMisbehaved("an answer under another key")
        exact = np.array(flat, dtype=object).reshape(n, self._plan.circuit.outputs)
        if self._exact:
            return Opened(exact, exact.astype(np.float64), left=20.0)
        return Opened(None, exact.astype(np.float64) + 0.25, 0.5, 7.0)


class ToyEvaluator(Evaluator):
    def __init__(self, plan: ToyPlan, weights: Owned, keys: bytes) -> None:
        if len(keys) != plan.key_bytes or not keys.startswith(MAGIC) or any(keys[len(MAGIC) + TAG :]):
            raise PeerMisbehaved("these are no keys of this plan")
        self._plan, self._weights, self._tag = plan, weights, keys[len(MAGIC) :][:TAG]

    def evaluate(self, n: int, part: int, question: bytes) -> bytes:
        if question[:TAG] != self._tag:
            raise PeerMisbehaved("a question that was encrypted under another key")
        x = np.frombuffer(question[TAG:], np.int64).reshape(-1, self._plan.circuit.inputs)
        time.sleep(self._plan.delay)
        if x[0, 0] == DIES:
            os._exit(7)
        if x[0, 0] == BREAKS:
            raise RuntimeError(f"an unforeseen failure that quotes {x.tolist()}")
        answers = define_circuit(self._plan.circuit, self._weights, x)
        return self._tag + b"".join(int(v).to_bytes(WORD, "big", signed=True) for v in answers.reshape(-1))


class Toy(KeyedProtocol):
    name: ClassVar[str] = "toy"
    exact: ClassVar[bool] = True
    max_degree: ClassVar[int] = 4
    security: ClassVar[SecurityStatement] = SecurityStatement("nobody: for tests", {"server": "all", "client": "all"})

    def plan(self, circuit: Circuit, options: Mapping[str, Any] | None = None) -> ToyPlan:
        return ToyPlan(circuit, **(options or {}))

    def read(self, data: Mapping[str, Any]) -> ToyPlan:
        rest = {k: v for k, v in data.items() if k != "circuit"}
        return ToyPlan(circuits.from_json(data["circuit"]), **rest)

    def key_holder(self, plan: Plan) -> ToyHolder:
        assert isinstance(plan, ToyPlan)
        return ToyHolder(plan, self.exact)

    def evaluator(self, plan: Plan, weights: Owned, keys: bytes) -> ToyEvaluator:
        assert isinstance(plan, ToyPlan)
        return ToyEvaluator(plan, weights, keys)


class Rough(Toy):
    name: ClassVar[str] = "rough"
    exact: ClassVar[bool] = False


NAMES = {"toy": "keyedkit:Toy", "rough": "keyedkit:Rough"}
BOOT = (
    f"import sys; sys.path.insert(0, {str(HERE)!r}); import protocols; protocols.KEYED.update({NAMES!r}); "
    "from pqi.session.keyed.worker import main; main()"
)


@contextmanager
def registered() -> Iterator[None]:
    """The protocols of this file are in the catalogue, and workers know them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, where in NAMES.items():
            patch.setitem(protocols.KEYED, name, where)
        patch.setattr(process, "COMMAND", (sys.executable, "-c", BOOT))
        yield


def affine_model(seed: int = 1) -> IntegerModel:
    """One dense layer, 6 -> 3: what logistic regression becomes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-20, 20, (3, FEATURES), generator=generator)
    graph = IntegerGraph(
        (Node("x", Input((FEATURES,), -128, 127)), Node("fc", Dense(weight, torch.arange(3)), ("x",))), "fc"
    )
    bits = prove(graph).bits
    rings = {consumer: bits[value] for consumer, value in graph.readers().items()}
    return IntegerModel(graph, rings, Quantizer(10.0, 0.5, 256), output_scale=0.05)


def deep_model() -> PolynomialModel:
    """Three squares between dense layers: answers of more than 64 bits."""
    generator = torch.Generator().manual_seed(3)
    nodes, before, inputs = [Node("x", Input((FEATURES,), -128, 127))], "x", FEATURES
    for level in range(4):
        weight = torch.randint(-100, 100, (4, inputs), generator=generator)
        nodes.append(Node(f"fc{level}", Dense(weight, torch.arange(4)), (before,)))
        before, inputs = f"fc{level}", 4
        if level < 3:
            nodes.append(Node(f"square{level}", Polynomial((1, 0, 1)), (before,)))
            before = f"square{level}"
    return PolynomialModel(IntegerGraph(tuple(nodes), before), Quantizer(10.0, 0.5, 256), 1e-9)


def inputs(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-9, 9, (n, FEATURES))


def starting_with(code: int) -> NDArray[np.float64]:
    """One input whose first code is this one."""
    x = np.zeros((1, FEATURES))
    x[0, 0] = code / 10
    assert affine_model().encode(x)[0, 0] == code
    return x


QUICK = Patience(step=3.0, idle=30.0, beat=0.2)


def options(**more: Any) -> KeyedOptions:
    return KeyedOptions(**{"workers": 1, "patience": QUICK, **more})


def make_deployment(
    directory: Path, model: Any = None, protocol: str = "toy", answers: int | None = None, **plan: Any
) -> Path:
    where = {"server_a": f"127.0.0.1:{free_ports(1)[0]}"}
    made = model or affine_model()
    split(made, directory, protocol=protocol, addresses=where, options=plan, answers_per_client=answers)
    return make_keys(directory)


@dataclass
class Deployment:
    directory: Path
    server: KeyedServer

    def client(self) -> Client:
        return Client(self.directory / "client" / "client.toml")


@contextmanager
def deployment(
    directory: Path, model: Any = None, protocol: str = "toy", bounds: KeyedOptions | None = None, **plan: Any
) -> Iterator[Deployment]:
    """The server runs: its threads in this process, its workers as processes."""
    make_deployment(directory, model, protocol, **plan)
    with KeyedServer(load_server(directory / "server_a"), options=bounds or options()) as server:
        yield Deployment(directory, server)


def same(answer: Any, model: Any, x: NDArray[np.float64]) -> bool:
    """Whether an exact answer equals the model's, integers and values."""
    truth = model.integers(model.encode(x, "silent"))
    return bool(np.array_equal(np.asarray(answer.integers), np.asarray(truth))) and bool(
        np.array_equal(answer.values, model.predict(x, "silent"))
    )
