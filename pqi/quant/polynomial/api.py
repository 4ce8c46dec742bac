"""``pqi.to_polynomial``: from a trained network to an exact integer model that homomorphic encryption can compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pqi.graph.aten_polynomial import POLYNOMIAL
from pqi.graph.capture import capture
from pqi.graph.errors import QuantizationError
from pqi.graph.floating import FloatGraph, Linear
from pqi.graph.polynomial import PolynomialModel
from pqi.graph.rewrite import simplify
from pqi.quant.batches import Batches
from pqi.quant.calibrate import Progress, as_the_network_wants, input_quantizer
from pqi.quant.polynomial.form import ACTIVATIONS, measure, refuse_others, with_squares
from pqi.quant.polynomial.lower import lowered
from pqi.quant.polynomial.student import Student
from pqi.quant.polynomial.training import Data, Plan, Trainer
from pqi.quant.quantizer import Quantizer
from pqi.quant.scheme import check_bits
from pqi.quant.train.api import encoder
from pqi.quant.train.loop import Augment

_SAMPLE = 1024


def to_polynomial(
    net: nn.Module | ExportedProgram,
    data: Any,
    labels: Any = None,
    *,
    activation: str = "fitted",
    weight_bits: int = 5,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    input_bits: int = 6,
    input_range: tuple[float, float] | None = None,
    answer_bits: int | None = None,
    epochs: int = 40,
    batch: int = 32,
    learning_rate: float = 0.02,
    labels_weight: float = 0.5,
    augment: Augment | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PolynomialModel:
    """An exact integer model of ``net`` whose activations are squares, for protocols bfv and ckks.

    net: a torch module (its mode and weights are left as they are) or an exported program. data: inputs (N, ...) or an
    iterable of batches, read whole; the network is retrained on them. labels: classes (N,); for a single output 0 and
    1. Without labels the network learns to answer as the float one does.

    activation: "fitted" puts a parabola in the place of relu and other elementwise functions, fitted to what the data
    show, and retrains; "square" takes networks that have no activation but x * x. weight_bits: codes from
    -(2^(b-1) - 1) to 2^(b-1) - 1; layers: of single layers by name, e.g.
    ``{"fc1": {"weight_bits": 4}}``. input_bits, input_range: of the input's codes.
    answer_bits: the answer is to be *proven* to fit in so many bits, which are what encryption pays for: training is
    penalised beyond them.

    epochs, batch, learning_rate (as a share of a layer's typical weight), labels_weight (of the labels in the loss; the
    rest is the float network's), augment(x, generator), seed: of the training. A tenth of the data is kept aside to
    choose the best epoch. Deterministic for a seed, a thread count and a version of torch. progress(epochs done, in
    all): per epoch.

    Raises UnsupportedOperator or QuantizationError; each names the layer and says what to do.
    """
    _check(activation, weight_bits, input_bits, epochs, batch, learning_rate, labels_weight, answer_bits)
    batches = Batches(data)
    teacher = simplify(capture(net, as_the_network_wants(net, batches.first()), POLYNOMIAL))
    refuse_others(teacher, activation)
    inputs = torch.cat(list(batches))
    moments = measure(teacher, Batches(inputs)) if activation == "fitted" else {}
    graph = with_squares(teacher, moments)
    quantizer = _quantizer(inputs, input_bits, input_range)
    encode = encoder(quantizer)
    unit = 1.0 / float(quantizer.scale)  # type: ignore[arg-type]
    sample = encode(inputs[:: -(-len(inputs) // _SAMPLE)]) * unit
    student = Student(graph, unit, _bits(graph, weight_bits, layers or {}), sample)
    known = _labels(labels, len(inputs), graph)
    plan = Plan(epochs, batch, learning_rate, labels_weight, seed, answer_bits)
    trainer = Trainer(student, teacher, Data(inputs, known, encode, *quantizer.code_range, augment), plan, progress)
    return _trained(trainer, quantizer, epochs // 3 if moments else 0)


def _trained(trainer: Trainer, quantizer: Quantizer, warm: int) -> PolynomialModel:
    """Training, and the model; raises QuantizationError where the bits asked for were never kept."""
    student, wanted, epochs = trainer.student, trainer.plan.answer_bits, trainer.plan.epochs

    def small_enough() -> bool:
        alive = all(bool(student.codes(name).any()) for name in student.index)
        return wanted is None or (alive and lowered(student, quantizer).bits <= wanted)

    if not trainer.run(warm, small_enough):
        raise QuantizationError(
            f"{epochs} epochs gave no network whose answers fit answer_bits = {wanted} with weights other than 0 "
            f"(the last one needs {lowered(student, quantizer).bits}): ask for more bits, or use fewer input_bits"
        )
    return lowered(student, quantizer)


def _check(
    activation: str,
    weight_bits: int,
    input_bits: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    labels_weight: float,
    answer_bits: int | None,
) -> None:
    if activation not in ACTIVATIONS:
        raise QuantizationError(f"activation is {activation!r}: it must be one of {', '.join(ACTIVATIONS)}")
    check_bits("weight_bits", weight_bits, 2, 12)
    check_bits("input_bits", input_bits, 1, 12)
    if answer_bits is not None:
        check_bits("answer_bits", answer_bits, 2, 1000)
    check_bits("epochs", epochs, 2, 1 << 20)
    check_bits("batch", batch, 1, 1 << 20)
    if not 0 < learning_rate <= 1 or not 0 <= labels_weight <= 1:
        raise QuantizationError(
            f"learning_rate is {learning_rate}, labels_weight is {labels_weight}: the first must be positive and at "
            "most 1, the second between 0 and 1"
        )


def _quantizer(inputs: Tensor, bits: int, declared: tuple[float, float] | None) -> Quantizer:
    """The client's quantizer; counts from 0 keep to the largest one seen, for every spare bit comes back squared."""
    low, high = (float(v) for v in inputs.aminmax())
    found = input_quantizer(low, high, bool((inputs == inputs.round()).all()), bits, declared)
    if declared is None and found.scale == 1.0 and not found.signed and found.zero_point == 0:
        return replace(found, modulus=int(high) + 1)
    return found


def _bits(graph: FloatGraph, weight_bits: int, layers: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Bits of every linear layer; raises QuantizationError for names that the network does not have."""
    found = [node.name for node in graph.nodes if isinstance(node.op, Linear)]
    unknown = sorted(set(layers) - set(found))
    if unknown:
        raise QuantizationError(f"layers names {unknown}, which have no weights. Those that do: {found}")
    for name, fields in layers.items():
        if set(fields) - {"weight_bits"}:
            raise QuantizationError(f"layer {name!r} has fields {sorted(fields)}: weight_bits is the only one here")
        check_bits(f"layer {name!r}: weight_bits", fields.get("weight_bits", weight_bits), 2, 12)
    return {name: layers.get(name, {}).get("weight_bits", weight_bits) for name in found}


def _labels(labels: Any, count: int, graph: FloatGraph) -> Tensor | None:
    """Labels int64 (N,), judged."""
    if labels is None:
        return None
    shape = graph.shapes[graph.output]
    if len(shape) != 1:
        raise QuantizationError(
            f"labels need answers that are one row of classes; these have shape {shape}: leave them out"
        )
    y = torch.as_tensor(labels).detach().cpu()
    if y.is_floating_point() or y.is_complex() or tuple(y.shape) != (count,):
        raise QuantizationError(f"labels are {y.dtype} {tuple(y.shape)}: integers of shape ({count},) are needed")
    classes = max(shape[0], 2)
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise QuantizationError(f"labels run from {int(y.min())} to {int(y.max())}: 0 to {classes - 1} is possible")
    return y.long()
