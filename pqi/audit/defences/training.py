"""What every defence inside quantization-aware training is, and where in ``pqi.finetune`` it acts.

    trained = pqi.finetune(net, x, inputs, labels, defences=["adversarial-training:epsilon=0.1", "lipschitz"])
    trained = pqi.finetune(net, x, inputs, labels, defences=[AdversarialTraining(0.1, steps=7)])

A defence acts at two places of every batch: on what is learnt from, and by a term of the loss. Both see the integers
as this pass computes them, with straight-through gradients. What a defence does in a batch depends on the batch alone,
so that an interrupted training goes on to the same bits; its draws come from the batch's generator.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from pqi.audit.defences.defence import CATALOGUE, TRAINED, Defence, made, parsed
from pqi.audit.errors import AuditError

if TYPE_CHECKING:
    from pqi.quant.train.loop import Batch, Task


class TrainingDefence(ABC):
    """One defence. A subclass is one file; its settings are its constructor's arguments and have defaults.

    answers: names of the attacks that it is for (``pqi.audit.attacks``). source: the paper. Settings are public
    attributes: they are part of what a checkpoint is known by.
    """

    name: ClassVar[str]
    answers: ClassVar[tuple[str, ...]]
    source: ClassVar[str]

    def begin(self, task: Task) -> None:
        """Once, before the first batch: refuses a task that it cannot work on, keeps what is the same for every batch.

        The place for AuditError.
        """
        return

    def batch(self, task: Task, batch: Batch) -> Batch:
        """What is learnt from instead of ``batch``."""
        return batch

    def penalty(self, task: Task, batch: Batch, logits: Tensor) -> Tensor | None:
        """A term of the loss, or None. logits: the integers' answers to ``batch``, with gradients."""
        return None

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()) if name[0] != "_")
        return f"{type(self).__name__}({settings})"


def get(name: str, **settings: Any) -> TrainingDefence:
    """The defence of that name with its settings; raises AuditError that lists the names there are."""
    if name in CATALOGUE:
        raise AuditError(
            f"defence {name!r} acts while a network is quantized, not while integers are trained: "
            f"use pqi.quantize(..., defences=[{name!r}])"
        )
    if name not in TRAINED:
        raise AuditError(f"there is no defence {name!r} of a training; there are: {', '.join(sorted(TRAINED))}")
    found: TrainingDefence = made(TRAINED, name, settings)
    return found


def chosen(wish: Sequence[Any]) -> tuple[TrainingDefence, ...]:
    """Defences of names, of text such as "lipschitz:beta=0.01", or as they are; in the order given."""
    if isinstance(wish, (str, TrainingDefence, Defence)):
        wish = (wish,)
    return tuple(each if isinstance(each, TrainingDefence) else _of_other(each) for each in wish)


def _of_other(wish: Any) -> TrainingDefence:
    if isinstance(wish, str):
        name, settings = parsed(wish)
        return get(name, **settings)
    if isinstance(wish, Defence):
        return get(wish.name)  # raises, with what to do
    names = ", ".join(sorted(TRAINED))
    raise AuditError(f"defences hold {wish!r}: give names of {names}, or TrainingDefence objects")
