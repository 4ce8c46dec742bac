"""The demonstration under a client's key: one server, nobody else. A teller hears of each stage.

``paillier`` computes linear maps, so its story is logistic regression on medical measurements; ``bfv`` and ``ckks``
compute polynomials, so theirs is a convolutional network on digits whose activations have become parabolas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pqi.demo.cancer import load_cancer
from pqi.demo.cancer import train as train_regression
from pqi.demo.digits import load_digits, train_network
from pqi.demo.keyed_outcome import Compared, KeyedOutcome
from pqi.demo.measure import fastest, machine, versions
from pqi.demo.outcome import Plain
from pqi.demo.story import Plan, Teller, check
from pqi.measure.networks import digits_cnn
from pqi.net.authority import make_private_directory
from pqi.program.circuits import Model
from pqi.program.keyed import KeyedProgram
from pqi.quant.api import quantize
from pqi.quant.polynomial.api import to_polynomial
from pqi.session.client import Answer
from pqi.session.ledger import peak_rss_bytes
from pqi.session.local import local
from pqi.session.roles import CLIENT

Progress = Callable[[int, int], None]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """What a story is about: data, a network for them, and the integer model that the protocol can compute.

    network: its name in results. nouns: what a sample is. file: of the model, if it is kept. decide: values -> labels.
    """

    network: str
    nouns: str
    file: str
    data: Any
    described: str
    train: Callable[[Progress], nn.Module]
    model: Callable[[nn.Module, Progress], Model]
    stage: str
    decide: Callable[[Values], NDArray[np.int64]]


def tell(plan: Plan, teller: Teller) -> KeyedOutcome:
    """The whole story. Raises DemoError before any work is done, or what the stages raise.

    Whatever happens, no process is left running and nothing on disk but what ``plan.keep`` names.
    """
    teller.stage("Load")
    scene = _regression() if plan.protocol == "paillier" else _digits()
    data = scene.data
    check(plan, len(data.test_x))
    teller.done(f"{len(data.train_x)} {scene.nouns} to train with, {len(data.test_x)} to test with", "")
    x, y = data.test_x[: plan.samples], data.test_y[: plan.samples]

    teller.stage("Train")
    net = scene.train(teller.progress)
    teller.done(scene.described, f"float accuracy {100 * _float_accuracy(scene, net, x, y):.2f} %")

    teller.stage("Quantize")
    model = scene.model(net, teller.progress)
    plain = _measure_plain(scene, net, model, x, y)
    teller.done(scene.stage, f"integer accuracy {100 * plain.integer_accuracy:.2f} %")

    folder = _keep(plan.keep, scene, model)
    asked = _ask(plan, scene, model, x, folder, teller)
    return KeyedOutcome(
        network=scene.network,
        protocol=plan.protocol,
        roles=tuple(asked.memory),
        samples=len(x),
        batch=max(asked.sizes),
        plain=plain,
        compared=_compare(scene, model, x, asked.answer),
        private_accuracy=float((scene.decide(asked.answer.values) == y).mean()),
        declared=tuple(asked.program.cost(n) for n in asked.sizes),
        ledger=asked.answer.ledger,
        facts=asked.program.plan.facts(),
        peak_rss_mb=asked.memory,
        security=asked.program.security,
        versions=versions(),
        machine=machine(),
    )


def _regression() -> Scene:
    data = load_cancer()
    return Scene(
        network="breast-cancer-regression",
        nouns="cases of 30 measurements",
        file="regression.pqi",
        data=data,
        described="logistic regression",
        train=lambda progress: train_regression(data, progress),
        model=lambda net, _: quantize(net, data.train_x, weight_bits=8, input_bits=8),
        stage="8-bit weights, 8-bit codes; the client decides by the sign",
        decide=lambda values: (values[:, 0] > 0).astype(np.int64),
    )


def _digits() -> Scene:
    data = load_digits()
    return Scene(
        network="digits-cnn-polynomial",
        nouns="images",
        file="digits.pqi",
        data=data,
        described="a convolution, ReLU, average pooling, a dense layer",
        train=lambda progress: train_network(digits_cnn, data, progress),
        model=lambda net, progress: to_polynomial(net, data.train_x, data.train_y, progress=_counted(progress)),
        stage="ReLU became a parabola; 5-bit weights, 4-bit codes",
        decide=lambda values: values.argmax(1),
    )


def _counted(progress: Progress) -> Callable[[int, int | None], None]:
    """A teller of progress for work that may not know how much there is."""
    return lambda done, total: progress(done, total or done)


@dataclass(frozen=True)
class _Asked:
    answer: Answer
    program: KeyedProgram
    sizes: list[int]
    memory: dict[str, float]


def _ask(plan: Plan, scene: Scene, model: Model, x: Any, folder: Path | None, teller: Teller) -> _Asked:
    """The server with its workers as processes, the private answers, the sizes of the queries, everybody's memory."""
    sizes: list[int] = []

    def note(done: int, total: int) -> None:
        sizes.append(done - sum(sizes))
        teller.progress(done, total)

    teller.stage("Start")
    with local(model, plan.protocol, directory=folder) as service:
        started = ", ".join(f"{role} {process.pid}" for role, process in service.processes.items())
        workers = int(service.status()[next(iter(service.processes))]["workers"])
        teller.done(f"TLS 1.3 to process {started}, which has {workers} workers", "")

        teller.stage("Ask")
        teller.progress(0, len(x))
        answer = service.predict(x, progress=note, on_saturation="silent")
        program = service.client.program
        if not isinstance(program, KeyedProgram):
            raise TypeError(f"a story under a key was told with protocol {plan.protocol!r}")
        found = _compare(scene, model, x, answer)
        right = f"{found.same_decisions} of {len(x)} decisions equal" if found.equal is None else ""
        teller.done(f"{len(x)} {scene.nouns}, encrypted", right or f"{found.equal} of {len(x)} exact")
        memory = {role: party.peak_rss_bytes / 1e6 for role, party in answer.ledger.parties.items()}
        return _Asked(answer, program, sizes, {**memory, CLIENT: peak_rss_bytes() / 1e6})


def _compare(scene: Scene, model: Model, x: Any, answer: Answer) -> Compared:
    expected = model.predict(x, "silent")
    equal = None
    if answer.integers is not None:
        pairs = zip(np.asarray(answer.integers), np.asarray(model.integers(model.encode(x, "silent"))), strict=True)
        equal = sum(bool((private == reference).all()) for private, reference in pairs)
    same = int((scene.decide(answer.values) == scene.decide(expected)).sum())
    return Compared(equal, float(np.abs(answer.values - expected).max()), answer.error_bound, same)


def _keep(folder: Path | None, scene: Scene, model: Model) -> Path | None:
    """Write what the user may want to try afterwards; returns where the bundles go (None: a temporary folder)."""
    if folder is None:
        return None
    make_private_directory(folder)
    model.save(folder / scene.file)
    np.savez(folder / "calibration.npz", x=scene.data.train_x, y=scene.data.train_y)
    np.save(folder / "inputs.npy", scene.data.test_x)
    np.save(folder / "labels.npy", scene.data.test_y)
    return folder / "bundles"


def _float_accuracy(scene: Scene, net: nn.Module, x: Any, y: Any) -> float:
    with torch.no_grad():
        return float((scene.decide(net(torch.from_numpy(x)).double().numpy()) == y).mean())


def _measure_plain(scene: Scene, net: nn.Module, model: Model, x: Any, y: Any) -> Plain:
    """The same inputs in one batch, in this process: the float network, and the integer model."""
    tensor = torch.from_numpy(x)

    def floats() -> None:
        with torch.no_grad():
            net(tensor)

    right = float((scene.decide(model.predict(x, "silent")) == y).mean())
    integers = fastest(lambda: model.predict(x, "silent"))
    return Plain(_float_accuracy(scene, net, x, y), right, fastest(floats), integers)
