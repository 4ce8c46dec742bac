"""The training loop: seeded, resumable, and the same to the bit whether it was interrupted or not."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pqi.graph.errors import QuantizationError
from pqi.quant.train.checkpoint import restore, save
from pqi.quant.train.module import GraphModule, Weights

if TYPE_CHECKING:
    from pqi.audit.defences.training import TrainingDefence

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How to train. Learning rates are in steps of the latent codes; they rise for the first 3 % and fall as a cosine.

    temperature, labels_weight: the loss is (1 - labels_weight) T^2 KL(teacher / T || student / T) + labels_weight
    cross-entropy; without labels it is the first term alone (distillation, Hinton et al., 2015).
    """

    epochs: int = 10
    batch: int = 128
    learning_rate: float = 0.02
    step_rate: float = 0.002
    temperature: float = 2.0
    labels_weight: float = 0.3
    ring_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise QuantizationError(f"{name} is {value!r}: it must be an integer of at least {least}")
        for name in ("learning_rate", "step_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise QuantizationError(f"{name} is {getattr(self, name)}: it must be positive and finite")
        if not 0 <= self.labels_weight <= 1:
            raise QuantizationError(f"labels_weight is {self.labels_weight}: it must be between 0 and 1")

    def rate(self, done: float) -> float:
        """Share of the learning rate when a share ``done`` of the training is over."""
        return min(done / 0.03, 1.0) * 0.5 * (1 + math.cos(math.pi * done)) + 1e-3


@dataclass(frozen=True)
class Epoch:
    """One epoch: its mean loss, the accuracy of the integer graph on the validation data (None without any)."""

    number: int
    loss: float
    accuracy: float | None


@dataclass
class Task:
    """What is trained on what. logits: integers of the answer -> logits. penalty: of the weights, or None.

    input_scale: codes per unit of the input. defences: in the order in which they act. settings: what else decides the
    outcome; a checkpoint is continued only by a task of the same settings, defences and graph.
    """

    module: GraphModule
    encode: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    teacher: nn.Module
    inputs: Tensor
    labels: Tensor | None
    validation: tuple[Tensor, Tensor] | None = None
    augment: Augment | None = None
    penalty: Callable[[Any], Tensor] | None = None
    input_scale: float = 1.0
    defences: tuple[TrainingDefence, ...] = ()
    settings: str = ""

    def identity(self) -> str:
        """SHA-256 over graph, settings, defences and the size of the data, hex."""
        digest = hashlib.sha256(f"{self.settings} {len(self.inputs)} {self.labels is not None}".encode())
        if self.defences:
            digest.update(repr(self.defences).encode())
        for node in self.module.graph.nodes:
            digest.update(repr((node.name, node.op.kind, node.inputs, sorted(node.op.params().items()))).encode())
            for _, tensor in sorted(node.op.tensors().items()):
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Batch:
    """What one step learns from. codes: as clients send them, float32 (B, ...); target: the teacher's logits (B, C).

    labels: int64 (B,) or None. weights: the integers of this pass, with their gradients. generator: for what a defence
    draws, seeded by the schedule's seed and the batch's number. labels_weight: the share of the cross-entropy in the
    loss: the schedule's, or one for each row, (B,).
    """

    codes: Tensor
    target: Tensor
    labels: Tensor | None
    weights: Mapping[str, Weights]
    generator: torch.Generator
    labels_weight: float | Tensor


def train(
    task: Task,
    schedule: Schedule,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_batch: Callable[[int, int, float], None] | None = None,
) -> tuple[Epoch, ...]:
    """Train in place. checkpoint: a file that is written after each epoch and continued from if it exists.

    on_epoch(Epoch), on_batch(batches done in all, batches in all, loss): for progress.
    Raises QuantizationError when a checkpoint belongs to another training, or the loss is no longer a number.
    """
    for defence in task.defences:
        defence.begin(task)
    optimizer = torch.optim.Adam(list(_groups(task.module, schedule)))
    identity = task.identity() if checkpoint else ""
    history = restore(checkpoint, task.module, optimizer, schedule, identity) if checkpoint else []
    per_epoch = math.ceil(len(task.inputs) / schedule.batch)
    for number in range(len(history) + 1, schedule.epochs + 1):
        losses = []
        for at, rows in enumerate(_order(schedule, number, len(task.inputs))):
            done = (number - 1) * per_epoch + at
            loss = _batch(
                task, schedule, optimizer, rows, done / (schedule.epochs * per_epoch), number * per_epoch + at
            )
            losses.append(loss)
            if on_batch is not None:
                on_batch(done + 1, schedule.epochs * per_epoch, loss)
        accuracy = _accuracy(task) if task.validation is not None else None
        history.append(Epoch(number, sum(losses) / len(losses), accuracy))
        if checkpoint is not None:
            save(checkpoint, task.module, optimizer, schedule, identity, history)
        if on_epoch is not None:
            on_epoch(history[-1])
    return tuple(history)


def _groups(module: nn.Module, schedule: Schedule) -> Iterator[dict[str, Any]]:
    """Step sizes learn slower than codes: every code hangs on them."""
    slow = [p for name, p in module.named_parameters() if _is_step(name)]
    fast = [p for name, p in module.named_parameters() if not _is_step(name)]
    yield {"params": fast, "lr": schedule.learning_rate, "base": schedule.learning_rate}
    yield {"params": slow, "lr": schedule.step_rate, "base": schedule.step_rate}


def _is_step(name: str) -> bool:
    return name.endswith(".step") or name.startswith("grown.")


def _order(schedule: Schedule, epoch: int, n: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
    return torch.split(torch.randperm(n, generator=generator), schedule.batch)


def _batch(
    task: Task, schedule: Schedule, optimizer: torch.optim.Optimizer, rows: Tensor, done: float, draw: int
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * schedule.rate(done)
    x = task.inputs[rows]
    if task.augment is not None:
        x = task.augment(x, torch.Generator().manual_seed(schedule.seed * 7_919 + draw))
    with torch.no_grad():
        target = task.teacher(x).float()
    labels, weights = None if task.labels is None else task.labels[rows], task.module.integers()
    generator = torch.Generator().manual_seed(schedule.seed * 15_485_863 + draw)
    batch = Batch(task.encode(x), target, labels, weights, generator, schedule.labels_weight)
    loss = _defended_loss(task, batch, schedule)
    if task.penalty is not None:
        loss = loss + schedule.ring_weight * task.penalty(weights)
    if not bool(torch.isfinite(loss)):
        raise QuantizationError("the loss is no longer finite: lower learning_rate or step_rate")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(task.module.parameters(), 5.0)
    optimizer.step()
    return float(loss.detach())


def _defended_loss(task: Task, batch: Batch, schedule: Schedule) -> Tensor:
    """The loss of what the defences make of the batch, and their own terms."""
    for defence in task.defences:
        batch = defence.batch(task, batch)
    logits = task.logits(task.module(batch.codes, batch.weights))
    loss = _loss(logits, batch, schedule)
    for defence in task.defences:
        term = defence.penalty(task, batch, logits)
        loss = loss if term is None else loss + term
    return loss


def _loss(logits: Tensor, batch: Batch, schedule: Schedule) -> Tensor:
    t = schedule.temperature
    soft, own = (functional.log_softmax(scores / t, 1) for scores in (batch.target, logits))
    share = batch.labels_weight
    if batch.labels is not None and isinstance(share, Tensor):
        distilled = functional.kl_div(own, soft, reduction="none", log_target=True).sum(1)
        rows = (1 - share) * t * t * distilled
        return (rows + share * functional.cross_entropy(logits, batch.labels, reduction="none")).mean()
    distilled = functional.kl_div(own, soft, reduction="batchmean", log_target=True)
    if batch.labels is None:
        return distilled * t * t
    return (1 - share) * t * t * distilled + share * functional.cross_entropy(logits, batch.labels)


@torch.no_grad()
def _accuracy(task: Task) -> float:
    if task.validation is None:
        raise QuantizationError("there are no validation data")
    inputs, labels = task.validation
    weights = task.module.integers()
    right = 0
    for x, y in zip(torch.split(inputs, 250), torch.split(labels, 250), strict=True):
        right += int((task.module(task.encode(x), weights).argmax(1) == y).sum())
    return right / len(labels)


def flip_and_shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """The usual augmentation of small images (N, C, H, W): mirrored at random, moved by up to H/8 pixels."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(3), x)
    return _moved(x, max(x.shape[2] // 8, 1), generator)


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """For images that have a right way round (N, C, H, W), such as digits: moved by up to H/16 pixels."""
    return _moved(x, max(x.shape[2] // 16, 1), generator)


def _moved(x: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    n, _, height, width = x.shape
    # What comes in from outside is the mean colour of a normalised image: zero.
    x = functional.pad(x, (reach,) * 4)
    top, left = (torch.randint(0, 2 * reach + 1, (n,), generator=generator) for _ in range(2))
    rows = (top.view(-1, 1) + torch.arange(height)).view(n, 1, height, 1)
    columns = (left.view(-1, 1) + torch.arange(width)).view(n, 1, 1, width)
    return x[torch.arange(n).view(-1, 1, 1, 1), torch.arange(x.shape[1]).view(1, -1, 1, 1), rows, columns]
