"""Weights that are served behind a guard: checked before they are used, and put right where they lie.

    served = Guarded(model)                                   # repairs two turned bits of every 16 weights
    served = Guarded(model, restoring(file), every=100)       # reads altered weights again from the model's file
    answers = served.predict(x)

    watched = Watched(held_by(server.runner))                 # a compute server's shares, masks and biases
    watched.check()                                           # how many words were put right

A check reads all words once. Its keyed sums and its key must be where whoever turns bits cannot write, and the key
where he cannot read: in another process, in another machine's memory, in a trusted environment. Without a turned bit
nothing is written and every answer is the model's, bit for bit. What is checked is what is computed with: forms that
were derived from the weights are derived anew after a check (``Guarded``) or are checked themselves (``held_by``).

**A server's shares.** The same sums apply to shares: they never look at what a word means. They matter more there.
Under ``additive2`` server b computes W_b x^ + E r_b + ..., with x^ = x - r opened and r fresh for each input. A turned
bit j of W_b adds +-2^j x^, of E adds +-2^j r_b: not +-2^j x, but a number that is uniform among the multiples of 2^j.
One turned bit of one weight so makes noise of all that its output channel computes, and the lowest bit the most: its
noise is uniform in the whole ring. In weights in the clear it takes chosen bits to do harm; in shares any bit does
(``pqi.audit.attacks.shareflips`` measures it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.audit.defences.checksums import GroupChecksums, GroupRepair, GroupRestoring
from pqi.audit.defences.guards import MakeGuard
from pqi.audit.errors import AuditError
from pqi.audit.memory import Stored
from pqi.graph.model import IntegerModel
from pqi.graph.ops import WEIGHTED, Op

if TYPE_CHECKING:
    from pqi.program import PartyRunner

_WORDS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16}


def words(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Integer tensors as what lies in memory: every bit of every word, whatever it means."""
    for name, tensor in tensors.items():
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype is torch.bool:
            raise AuditError(f"{name!r} is {tensor.dtype}: guards keep words of integers")
    return {name: _stored(tensor) for name, tensor in tensors.items()}


def _stored(tensor: Tensor) -> Stored:
    one = torch.ones(tensor.shape[0] if tensor.ndim else 1, dtype=torch.int64)
    return Stored(tensor.to(torch.int64), one, torch.iinfo(tensor.dtype).bits)


class Watched:
    """Integer tensors behind a guard that somebody else computes with: ``check`` puts them right in place.

    tensors: name -> integer tensor of any word, as they should be now; biases, shares and masks as well as weights.
    make: the guard, made from their words. Whoever computes must hold the same tensors, not copies of them.
    strict: refuse what cannot be put right, instead of going on with zeros in its place. Zeros stand in for weights
    that are left out; in a share they are as wrong as any other word.
    """

    def __init__(self, tensors: Mapping[str, Tensor], make: MakeGuard = GroupRepair, strict: bool = True) -> None:
        signed = {name: t.view(torch.int8) if t.dtype is torch.uint8 else t for name, t in tensors.items()}
        self._tensors = {name: tensor for name, tensor in signed.items() if tensor.numel()}
        self._guard, self._strict = make(words(self._tensors)), strict

    @property
    def kept_bits(self) -> float:
        """Bits that the guard keeps for each word."""
        return self._guard.kept_bits

    @torch.no_grad()
    def check(self) -> int:
        """Put right what was altered; how many words were (0: nothing was written).

        Raises AuditError where that is not possible, if strict; the altered words are then left as they are.
        """
        changed = 0
        for name, tensor in self._tensors.items():
            read = tensor.to(torch.int64)
            settled = self._guard.settle(name, read)
            if settled is read:
                continue
            if self._strict and isinstance(self._guard, GroupChecksums):
                lost = int(self._guard.altered(name, settled).sum())
                if lost:
                    raise AuditError(
                        f"{name!r}: {lost} groups of {self._guard.size} words were altered beyond repair. Somebody or "
                        "something turns bits of this memory: load the weights again, on another machine"
                    )
            here = settled != read
            changed += int(here.sum())
            tensor.copy_(torch.where(here, settled, read))
        return changed


class Guarded:
    """An integer model whose weights and biases are checked before every ``every``-th call.

    Answers are those of ``model`` bit for bit while no bit is turned, and while all that are turned are put right. Bits
    turned between two checks tell until the next one. found: words put right so far, for whoever watches a log: it
    should stay 0, and each rise means that somebody turns bits.
    """

    def __init__(self, model: IntegerModel, make: MakeGuard = GroupRepair, every: int = 1) -> None:
        if every < 1:
            raise AuditError(f"every = {every}: a check before each call is every = 1")
        self.model, self.every, self.found = model, every, 0
        self._watched, self._calls = Watched(tensors_of(model), make, strict=False), 0

    @property
    def kept_bits(self) -> float:
        """Bits that the guard keeps for each weight."""
        return self._watched.kept_bits

    def check(self) -> int:
        """Check now; how many words were put right."""
        changed = self._watched.check()
        for node in self.model.graph.nodes:
            _forget(node.op)
        self.found += changed
        return changed

    def integers(self, codes: Tensor) -> Tensor:
        """As the model's, after a check if one is due."""
        self._before()
        return self.model.integers(codes)

    def predict(self, x: Any, on_saturation: str = "warn") -> NDArray[Any]:
        """As the model's, after a check if one is due."""
        self._before()
        return self.model.predict(x, on_saturation)

    def _before(self) -> None:
        if self._calls % self.every == 0:
            self.check()
        self._calls += 1


def tensors_of(model: IntegerModel) -> dict[str, Tensor]:
    """The weights and biases that a model computes with: themselves, not copies."""
    found = {}
    for node in model.graph.nodes:
        if isinstance(node.op, WEIGHTED):
            found[f"{node.name}.weight"], found[f"{node.name}.bias"] = node.op.weight, node.op.bias
    return found


def _forget(op: Op) -> None:
    """Drop what an operator keeps besides its fields: digits of its weights, which lie in memory as well."""
    for name in set(vars(op)) - {field.name for field in fields(op)}:
        del vars(op)[name]


def held_by(runner: PartyRunner) -> dict[str, Tensor]:
    """What a compute server's linear maps and tables are computed with: itself, as it was prepared, not copies.

    Weights lie there as the products need them, as words, digits or taps; floats are given as the words they lie in.
    """
    found: dict[str, Tensor] = {}
    _collect("", runner.operands, found)
    if not found:
        raise AuditError("this server holds no weights of its own to watch: public data is checked where it is kept")
    return found


def _collect(name: str, value: Any, found: dict[str, Tensor]) -> None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        if value.numel() and value.dtype is not torch.bool:
            found[name] = value.view(_WORDS[value.dtype]) if value.dtype.is_floating_point else value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _collect(f"{name}.{key}".lstrip("."), each, found)
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            _collect(f"{name}.{number}", each, found)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            _collect(f"{name}.{field.name}", getattr(value, field.name), found)


def restoring(file: str | Path, size: int = 64) -> MakeGuard:
    """A guard for ``Guarded`` that reads altered weights again from the model's file; its sums say what to believe."""

    def make(layers: Mapping[str, Stored]) -> GroupRestoring:
        return GroupRestoring(layers, _from(Path(file)), size)

    return make


def _from(file: Path) -> Callable[[str], Tensor]:
    def copy(name: str) -> Tensor:
        from pqi.graph.store import load

        model = load(file)
        if not isinstance(model, IntegerModel):
            raise AuditError(f"{file} holds a {type(model).__name__}: the integer model's own file is needed")
        return tensors_of(model)[name].to(torch.int64)

    return copy
