"""What every defence of a quantization is: which attacks it answers, and where in ``pqi.quantize`` it acts.

    model = pqi.quantize(net, x, defences=["fine-pruning", "re-rounding"])
    model = pqi.quantize(net, x, defences=[get("fine-pruning", share=0.2)])

A defence acts at one or more of four places, in this order: on the calibration data, on the float network, on the
integer weights once they are chosen, on the finished model. It never sees a label unless it is given some. Its price
is measured, not promised: ``pqi.audit.defences.price``.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pqi.audit.errors import AuditError
from pqi.graph.model import IntegerModel

if TYPE_CHECKING:
    from pqi.quant.stages import Calibration, Lowered


class Defence(ABC):
    """One defence. A subclass is one file; its settings are its constructor's arguments and have defaults.

    answers: names of the attacks that it is for (``pqi.audit.attacks``). source: the paper.
    reads_calibration: whether ``calibration`` or ``network`` is overridden, so that the data must be one array.
    """

    name: ClassVar[str]
    answers: ClassVar[tuple[str, ...]]
    source: ClassVar[str]
    reads_calibration: ClassVar[bool] = False

    def calibration(self, net: nn.Module, x: Tensor) -> Tensor:
        """The calibration data to go on with, (M, ...)."""
        return x

    def network(self, net: nn.Module, x: Tensor) -> nn.Module:
        """The float network to quantize: ``net`` itself or an altered copy of it."""
        return net

    def weights(self, seen: Calibration, lowered: Lowered) -> Lowered:
        """The integer graph with other weights of the same grids."""
        return lowered

    def model(self, model: IntegerModel) -> IntegerModel:
        """The finished model, before its answers are hardened."""
        return model

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(self).items()) if name[0] != "_")
        return f"{type(self).__name__}({settings})"


class Defences:
    """Several in a row, at each of their places."""

    def __init__(self, each: Sequence[Defence]) -> None:
        self._each = tuple(each)

    def before(self, net: nn.Module | ExportedProgram, calibration: Any) -> tuple[nn.Module | ExportedProgram, Any]:
        """Network and data after what is done before anything is quantized; both are left as they are."""
        early = [defence for defence in self._each if defence.reads_calibration]
        if not early:
            return net, calibration
        what = f"defence {early[0].name!r}"
        if not isinstance(net, nn.Module):
            raise AuditError(f"{what} needs the torch module, not an exported program: give its .module()")
        try:
            x = torch.as_tensor(calibration).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise AuditError(f"{what} reads the calibration data: give one array (N, ...)") from error
        for defence in early:
            x = defence.calibration(net, x)
            net = defence.network(net, x)
        return net, x

    def weights(self, seen: Calibration, lowered: Lowered) -> Lowered:
        """The integer weights after all of them."""
        for defence in self._each:
            lowered = defence.weights(seen, lowered)
        return lowered

    def model(self, model: IntegerModel) -> IntegerModel:
        """The model after all of them."""
        for defence in self._each:
            model = defence.model(model)
        return model


CATALOGUE: dict[str, str] = {
    "efrap": "pqi.audit.defences.efrap:FlippedRounding",
    "fine-pruning": "pqi.audit.defences.fine_pruning:FinePruning",
    "re-rounding": "pqi.audit.defences.rerounding:ReRounding",
    "trimmed-calibration": "pqi.audit.defences.trimmed:TrimmedCalibration",
    "weight-clipping": "pqi.audit.defences.clipping:WeightClipping",
}
"""module:class by name; a new defence is a file and a line here."""

TRAINED: dict[str, str] = {
    "adversarial-training": "pqi.audit.defences.adversarial_training:AdversarialTraining",
    "lipschitz": "pqi.audit.defences.lipschitz:Lipschitz",
}
"""The same for those that act while the integers are trained: ``pqi.finetune`` takes them, ``pqi.quantize`` cannot."""


def get(name: str, **settings: Any) -> Defence:
    """The defence of that name with its settings; raises AuditError that lists the names there are."""
    _refuse_trained(name)
    if name not in CATALOGUE:
        raise AuditError(f"there is no defence {name!r}; there are: {', '.join(sorted(CATALOGUE))}")
    found: Defence = made(CATALOGUE, name, settings)
    return found


def made(catalogue: Mapping[str, str], name: str, settings: Mapping[str, Any]) -> Any:
    """What a catalogue has under that name, with its settings; raises AuditError for settings it does not take."""
    module, _, cls = catalogue[name].partition(":")
    try:
        return getattr(import_module(module), cls)(**settings)
    except TypeError as error:
        raise AuditError(f"defence {name!r}: {error}") from error


def _refuse_trained(name: Any) -> None:
    if isinstance(name, str) and name in TRAINED:
        raise AuditError(
            f"defence {name!r} acts while integers are trained, and nothing is trained here: "
            f"use pqi.finetune(..., defences=[{name!r}])"
        )


def chosen(wish: Sequence[Any]) -> tuple[Defence, ...]:
    """Defences of names, of text such as "fine-pruning:share=0.2,rounds=3", or as they are; in the order given."""
    if isinstance(wish, str) or not isinstance(wish, Sequence):
        wish = (wish,)
    return tuple(each if isinstance(each, Defence) else _of_text(each) for each in wish)


def _of_text(text: Any) -> Defence:
    if not isinstance(text, str):
        _refuse_trained(getattr(text, "name", None))
        raise AuditError(f"defences hold {text!r}: give names of {', '.join(sorted(CATALOGUE))}, or Defence objects")
    name, settings = parsed(text)
    return get(name, **settings)


def parsed(text: str) -> tuple[str, dict[str, float]]:
    """Name and settings of text such as "fine-pruning:share=0.2,rounds=3"; raises AuditError on another form."""
    name, colon, rest = text.partition(":")
    settings: dict[str, float] = {}
    for setting in rest.split(",") if colon else ():
        field, equals, value = setting.partition("=")
        if not (field and equals and value):
            raise AuditError(f"defence {text!r}: NAME:FIELD=NUMBER,... is needed, such as fine-pruning:share=0.2")
        try:
            settings[field] = int(value) if value.lstrip("-").isdecimal() else float(value)
        except ValueError:
            raise AuditError(f"defence {text!r}: {field} must be a number") from None
    return name, settings
