"""``pqi.finetune``: quantization-aware retraining of a network, with the ring as a constraint if one is asked for."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pqi.audit.defences.training import chosen
from pqi.graph.errors import QuantizationError
from pqi.graph.graph import IntegerGraph
from pqi.graph.model import IntegerModel
from pqi.graph.ranges import MAX_RING, prove
from pqi.quant.calibrate import calibrate
from pqi.quant.finish import finish
from pqi.quant.lower import lower
from pqi.quant.quantizer import Quantizer
from pqi.quant.scheme import Recipe, check_bits
from pqi.quant.stages import Calibration, Lowered
from pqi.quant.train import accumulators as bounds
from pqi.quant.train.fit import fitted
from pqi.quant.train.loop import Augment, Epoch, Schedule, Task, train
from pqi.quant.train.module import GraphModule, TrainableGraph


@dataclass(frozen=True)
class Trained:
    """A retrained model, how training went, and how many codes the ring still had to move at the end."""

    model: IntegerModel
    history: tuple[Epoch, ...]
    repaired: int
    lowered: Lowered


def finetune(
    net: nn.Module,
    calibration: Any,
    inputs: Any,
    labels: Any = None,
    recipe: Recipe | None = None,
    schedule: Schedule | None = None,
    *,
    validation: tuple[Any, Any] | None = None,
    augment: Augment | None = None,
    max_ring: int | None = None,
    defences: Sequence[Any] = (),
    input_bits: int = 8,
    input_range: tuple[float, float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_batch: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Quantize ``net`` and retrain the integers: straight-through gradients, learned step sizes, the float as teacher.

    calibration: as for ``pqi.quantize``. inputs (N, ...), labels (N,) or None: training data; without labels the
    network only learns to answer as the float one does. recipe: bits and levels, as everywhere. max_ring: every
    accumulator is to be *proven* inside this ring: training is penalised outside, and what rounding leaves over is
    repaired at the end; the rings of the model are then its proof. validation: (inputs, labels) for the accuracy of
    the integer graph after every epoch. augment(x, generator): of training batches, e.g. ``flip_and_shift``.
    defences: against attacks, by name ("adversarial-training:epsilon=0.1") or as objects
    (``pqi.audit.defences.training``). checkpoint: a file to continue from. Deterministic for a seed, a thread count and
    a version of torch.

    Raises QuantizationError, RangeError or AuditError (defences); each says what to do.
    """
    recipe, schedule, guarded = recipe or Recipe(), schedule or Schedule(), chosen(defences)
    if max_ring is not None:
        check_bits("max_ring", max_ring, 2, MAX_RING)
    seen = calibrate(net, calibration, input_bits=input_bits, input_range=input_range)
    lowered = lower(seen, recipe) if max_ring is None else fitted(seen, recipe, max_ring)[1]
    module = TrainableGraph(seen, lowered)
    task = task_for(net, seen, lowered.graph, lowered.output_scale, module, inputs, labels, validation, augment)
    task.settings, task.defences = f"finetune, ring {max_ring}", guarded
    if max_ring is not None:
        found, ring = bounds.accumulators(lowered.graph, prove(lowered.graph)), max_ring
        task.penalty = lambda weights: bounds.penalty(found, weights, ring)
    history = train(task, schedule, None if checkpoint is None else Path(checkpoint), on_epoch, on_batch)
    lowered, moved = module.lower(), 0
    if max_ring is not None:
        lowered, moved = bounds.repaired(lowered, max_ring, module.wanted())
    return Trained(finish(lowered, seen, max_ring=max_ring or MAX_RING), history, moved, lowered)


def task_for(
    net: nn.Module,
    seen: Calibration,
    graph: IntegerGraph,
    output_scale: float,
    module: GraphModule,
    inputs: Any,
    labels: Any,
    validation: tuple[Any, Any] | None,
    augment: Augment | None,
) -> Task:
    """Training data judged and put together; raises QuantizationError with what is wrong."""
    shape = seen.placed.graph.shapes[seen.placed.graph.nodes[0].name]
    if len(graph.shapes[graph.output]) != 1:
        raise QuantizationError("training needs a network whose answer is one row of class scores")
    classes = graph.shapes[graph.output][0]
    x, y = _pair("training", inputs, labels, shape, classes)
    checked = None
    if validation is not None:
        held, truth = _pair("validation", *validation, shape, classes)
        if truth is None:
            raise QuantizationError("the validation data have no labels: accuracy needs them")
        checked = held, truth
    return Task(
        module=module,
        encode=encoder(seen.quantizer),
        logits=lambda integers: integers * output_scale,
        teacher=copy.deepcopy(net).eval().requires_grad_(False),
        inputs=x,
        labels=y,
        validation=checked,
        augment=augment,
        input_scale=float(seen.quantizer.scale),  # type: ignore[arg-type]
    )


def encoder(quantizer: Quantizer) -> Callable[[Tensor], Tensor]:
    """floor(C x + d) - Z, saturating, as float32; in float32, so now and then one code beside the client's."""
    low, high = quantizer.code_range
    scale, zero = float(quantizer.scale), quantizer.zero_point  # type: ignore[arg-type]
    return lambda x: torch.floor(x * scale + (zero + 0.5)).sub_(zero).clamp_(low, high)


def _pair(what: str, inputs: Any, labels: Any, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor | None]:
    x = torch.as_tensor(inputs).detach().float()
    if x.ndim != len(shape) + 1 or tuple(x.shape[1:]) != shape or not len(x):
        raise QuantizationError(
            f"the {what} inputs have shape {tuple(x.shape)}: (N, {', '.join(map(str, shape))}) is needed"
        )
    if not bool(torch.isfinite(x).all()):
        raise QuantizationError(f"the {what} inputs hold NaN or infinite values: remove or repair such samples")
    if labels is None:
        return x, None
    y = torch.as_tensor(labels).detach()
    if y.is_floating_point() or y.is_complex() or tuple(y.shape) != (len(x),):
        raise QuantizationError(
            f"the {what} labels are {y.dtype} {tuple(y.shape)}: integers of shape ({len(x)},) are needed"
        )
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise QuantizationError(
            f"the {what} labels run from {int(y.min())} to {int(y.max())}: 0 to {classes - 1} is possible"
        )
    return x, y.long()


__all__ = ["Recipe", "Schedule", "Trained", "encoder", "finetune"]
