"""What happens, in order. A teller hears of each stage; nothing is printed here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

import pqi.program
from pqi.demo.digits import Digits, load_digits, train
from pqi.demo.errors import DemoError
from pqi.demo.measure import fastest, machine, versions
from pqi.demo.outcome import Outcome, Plain
from pqi.graph.model import IntegerModel
from pqi.net.authority import make_private_directory
from pqi.program import Program
from pqi.quant.api import quantize
from pqi.session.client import Answer
from pqi.session.ledger import peak_rss_bytes, peak_rss_of
from pqi.session.local import LocalService, local
from pqi.session.roles import CLIENT, DEALER
from protocols.cost import Cost

WEIGHT_BITS, ACTIVATION_BITS, INPUT_BITS = 8, 6, 5  # 17 grey levels fit in 5 bits
BATCH = 64


@dataclass(frozen=True)
class Plan:
    """samples: how many test images are asked (None: all). keep: a new folder for the model, data, bundles, keys."""

    protocol: str = "additive2"
    network: str = "lan"
    samples: int | None = None
    keep: Path | None = None


class Teller(Protocol):
    """Hears the story."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def progress(self, done: int, total: int) -> None:
        """The stage has come this far."""

    def done(self, what: str, figure: str) -> None:
        """The stage is over: what was made, and a figure that matters."""


def tell(plan: Plan, teller: Teller) -> Outcome:
    """The whole story. Raises DemoError before any work is done, or what the stages raise.

    Whatever happens, no process is left running and nothing on disk but what ``plan.keep`` names.
    """
    teller.stage("Load")
    digits = load_digits()
    check(plan, len(digits.test_x))
    teller.done(f"{len(digits.train_x)} images to train with, {len(digits.test_x)} to test with", "")
    x, y = digits.test_x[: plan.samples], digits.test_y[: plan.samples]

    teller.stage("Train")
    net = train(digits, teller.progress)
    right = _float_accuracy(net, x, y)
    teller.done("two convolutions, one dense layer", f"float accuracy {100 * right:.2f} %")

    teller.stage("Quantize")
    model = quantize(net, digits.train_x, WEIGHT_BITS, ACTIVATION_BITS, input_bits=INPUT_BITS)
    plain = _measure_plain(net, model, x, y, right)
    bits = f"{WEIGHT_BITS}-bit weights, {ACTIVATION_BITS}-bit codes, proven rings to {max(model.rings.values())} bits"
    teller.done(bits, f"integer accuracy {100 * plain.integer_accuracy:.2f} %")

    folder = _keep(plan.keep, net, model, digits)
    answer, equal, memory = _ask(plan, model, x, folder, teller)
    program = pqi.program.compile(model, plan.protocol, plan.network)
    return Outcome(
        protocol=plan.protocol,
        planned_for=plan.network,
        roles=tuple(memory),
        samples=len(x),
        batch=min(BATCH, len(x)),
        plain=plain,
        equal=equal,
        private_accuracy=float((answer.values.argmax(1) == y).mean()),
        declared=declared(program, len(x), BATCH),
        ledger=answer.ledger,
        peak_rss_mb=memory,
        security=program.security,
        versions=versions(),
        machine=machine(),
    )


def _ask(
    plan: Plan, model: IntegerModel, x: Any, folder: Path | None, teller: Teller
) -> tuple[Answer, int, dict[str, float]]:
    """Every role as a process, the private answers, how many equal the reference, and everybody's memory."""
    reference = model.integers(model.encode(x, "silent"))
    teller.stage("Start")
    options = {"max_batch": BATCH}
    with local(model, plan.protocol, network=plan.network, directory=folder, server_options=options) as service:
        started = ", ".join(f"{role} {process.pid}" for role, process in service.processes.items())
        teller.done(f"TLS 1.3 between processes {started}", "")

        teller.stage("Ask")
        teller.progress(0, len(x))
        answer = service.predict(x, progress=teller.progress, on_saturation="silent")
        equal = int((np.asarray(answer.integers) == reference.numpy()).all(1).sum())
        teller.done(f"{len(x)} images, in batches of {min(BATCH, len(x))}", f"{equal} of {len(x)} exact")
        return answer, equal, _memory(service, answer)


def declared(program: Program, samples: int, batch: int) -> Cost:
    """What the program declares for full batches and the rest, summed."""
    sizes = [batch] * (samples // batch) + ([samples % batch] if samples % batch else [])
    return sum((program.cost(n) for n in sizes), Cost())


def check(plan: Plan, images: int) -> None:
    """Refuse a plan that cannot be carried out. Raises DemoError."""
    if plan.samples is not None and not 1 <= plan.samples <= images:
        raise DemoError(f"samples is {plan.samples}: the test split holds {images}, ask for 1 to {images}")
    if plan.keep is not None and plan.keep.exists() and (not plan.keep.is_dir() or any(plan.keep.iterdir())):
        raise DemoError(f"{plan.keep} is no new or empty folder, and nothing is ever replaced. Name another")


def _keep(folder: Path | None, net: nn.Module, model: IntegerModel, digits: Digits) -> Path | None:
    """Write what the user may want to try afterwards; returns where the bundles go (None: a temporary folder)."""
    if folder is None:
        return None
    make_private_directory(folder)
    model.save(folder / "digits.pqi")
    np.savez(folder / "calibration.npz", x=digits.train_x, y=digits.train_y)
    example, batch = torch.from_numpy(digits.test_x[:2]), {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=(batch,)), folder / "digits.pt2")
    test, seen = (digits.test_x, digits.test_y), (digits.train_x, digits.train_y)
    np.savez(folder / "audit.npz", x=test[0], y=test[1], x_train=seen[0], y_train=seen[1])
    np.save(folder / "images.npy", digits.test_x)
    np.save(folder / "labels.npy", digits.test_y)
    return folder / "bundles"


def _float_accuracy(net: nn.Module, x: Any, y: Any) -> float:
    with torch.no_grad():
        return float((net(torch.from_numpy(x)).argmax(1).numpy() == y).mean())


def _measure_plain(net: nn.Module, model: IntegerModel, x: Any, y: Any, float_accuracy: float) -> Plain:
    """The same images in the same batches, in this process: the float network, and the integer model."""
    batches, arrays = torch.split(torch.from_numpy(x), BATCH), [x[i : i + BATCH] for i in range(0, len(x), BATCH)]

    def floats() -> None:
        with torch.no_grad():
            for batch in batches:
                net(batch)

    def integers() -> None:
        for array in arrays:
            model.predict(array, "silent")

    right = float((model.predict(x, "silent").argmax(1) == y).mean())
    return Plain(float_accuracy, right, fastest(floats), fastest(integers))


def _memory(service: LocalService, answer: Answer) -> dict[str, float]:
    """Peak memory of every process, MB: servers report their own, the system knows the dealer's."""
    found = {role: party.peak_rss_bytes / 1e6 for role, party in answer.ledger.parties.items()}
    if DEALER in service.processes:
        dealer = peak_rss_of(service.processes[DEALER].pid)
        found |= {} if dealer is None else {DEALER: dealer / 1e6}
    return {**found, CLIENT: peak_rss_bytes() / 1e6}


__all__ = ["BATCH", "Plan", "Teller", "check", "declared", "tell"]
