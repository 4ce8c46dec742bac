"""The vocabulary of import: a call of one ATen operator, what it can stand for, and the table of handlers."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from pqi.graph.errors import Unsupported
from pqi.graph.floating import Affine, FloatNode
from pqi.graph.graph import OUTPUT
from pqi.graph.ops import Op, Reshape, Shape

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')
_TORCH = str(Path(torch.__file__).parent)


class Refusal(Exception):
    """This call has no integer form; the message says what to do instead."""


@dataclass(frozen=True)
class Value:
    """A value of the float graph, by name."""

    name: str


@dataclass(frozen=True)
class Comparison:
    """x >= level, or x > level if strict; negated: the opposite."""

    of: Value
    level: float
    strict: bool
    negated: bool


@dataclass
class Importer:
    """State of one import: the float nodes made so far, what each fx node stands for, and what was refused."""

    batch: str
    nodes: list[FloatNode] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    meaning: dict[fx.Node, Any] = field(default_factory=dict)
    refused: list[Unsupported] = field(default_factory=list)

    def add(self, op: Op, inputs: Sequence[Value], name: str, source: str) -> Value:
        """Append a node under a unique name; its shape comes from the operator's own rule."""
        unique, count = name, 2
        while unique in self.shapes or unique == OUTPUT:
            unique, count = f"{name}#{count}", count + 1
        self.shapes[unique] = op.infer_shape([self.shapes[v.name] for v in inputs])
        self.nodes.append(FloatNode(unique, op, tuple(v.name for v in inputs), source))
        return Value(unique)


@dataclass
class Call:
    """One call of an ATen operator with its arguments bound to their schema names."""

    importer: Importer
    node: fx.Node
    args: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    def emit(self, op: Op, *inputs: Value) -> Value:
        """A new float node for (a part of) this call."""
        return self.importer.add(op, inputs, node_name(self.node), short_place(self.node))

    def shape(self, value: Value) -> Shape:
        """Shape of a value, without the batch axis."""
        return self.importer.shapes[value.name]

    def tensor(self, name: str) -> Value:
        """The argument as a value of the network; refused if it is anything else."""
        value = self.args.get(name)
        if not isinstance(value, Value):
            refuse(f"its argument {name!r} must be a value computed from the input")
        return value

    def constant(self, name: str) -> Tensor | None:
        """The argument as a constant float64 tensor, None if absent; refused if it depends on the input."""
        value = self.args.get(name)
        if value is None:
            return None
        if isinstance(value, (bool, int, float)):
            return torch.tensor(float(value), dtype=torch.float64)
        if not isinstance(value, Tensor):
            refuse(f"its argument {name!r} must be a constant: a parameter, a buffer or a number")
        if not bool(torch.isfinite(value).all()):
            refuse(f"its argument {name!r} has NaN or infinite values: the network was not trained or stored well")
        return value.detach().to(torch.float64)

    def result_shape(self, index: int | None = None) -> Shape:
        """Shape of the result as export saw it, without the batch axis, which must have stayed first and whole."""
        seen = self.node.meta.get("val")
        seen = seen[index] if index is not None and seen is not None else seen
        if not isinstance(seen, Tensor) or seen.ndim == 0 or str(seen.shape[0]) != self.importer.batch:
            refuse(
                "it changes the batch axis: keep axis 0 as it is (for instance x.flatten(1), x.view(x.size(0), ...))"
            )
        if not all(isinstance(n, int) for n in seen.shape[1:]):
            refuse("its result has a size that depends on the batch: only axis 0 may vary")
        return tuple(int(n) for n in seen.shape[1:])

    def reshaped(self, value: Value, shape: Shape) -> Value:
        """The value under another shape (itself if nothing changes)."""
        if shape == self.shape(value):
            return value
        if math.prod(shape) != math.prod(self.shape(value)):
            refuse("it mixes the batch axis with others: keep axis 0 as it is")
        return self.emit(Reshape(shape), value)

    def axis(self, value: Value, dim: int) -> int:
        """A dim of the batched tensor as an axis without the batch axis; axis 0 is refused."""
        rank = len(self.shape(value)) + 1
        if dim % rank == 0:
            refuse("it works along the batch axis: inputs of one batch must not see each other")
        return dim % rank - 1

    def affine(self, value: Value, weight: Tensor, bias: Tensor) -> Value:
        """value * weight + bias with constants that vary along one axis at most."""
        shape = self.shape(value)
        if not shape:
            refuse("the value has no axis but the batch's: keep a feature axis")
        axis = 0
        for constant in (weight, bias):
            if not bool(torch.isfinite(constant).all()):
                refuse("its constant has NaN or infinite values")
            varying = [i - constant.ndim + len(shape) for i, n in enumerate(constant.shape) if n > 1]
            if len(varying) > 1 or any(a < 0 for a in varying) or constant.ndim > len(shape) + 1:
                refuse(
                    f"its constant of shape {tuple(constant.shape)} varies along more than one axis: one is possible"
                )
            axis = varying[0] if varying else axis
        parts = []
        for constant in (weight, bias):
            if constant.numel() not in (1, shape[axis]):
                refuse(f"its constant of shape {tuple(constant.shape)} does not fit a value of shape {shape}")
            parts.append(constant.reshape(-1).expand(shape[axis]).clone())
        return self.emit(Affine(parts[0], parts[1], axis), value)


Handler = Callable[[Call], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler under ATen operator names (without overload; in-place spellings are the same operator)."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def refuse(advice: str) -> NoReturn:
    """Refuse this call, with what to do instead."""
    raise Refusal(advice)


def operator_name(node: fx.Node) -> str:
    """``conv2d`` for aten.conv2d.default and for aten.conv2d.padding; in-place operators lose their underscore."""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_") if not name.startswith("_") else "_" + name.strip("_")


def frames(node: fx.Node) -> list[tuple[str, str, str]]:
    """(file, line, source text) of the user's frames, outermost first; torch's own frames are left out."""
    return [f for f in _FRAME.findall(node.meta.get("stack_trace") or "") if not f[0].startswith(_TORCH)]


def module_path(node: fx.Node) -> tuple[str, bool]:
    """Dotted path of the module that made the call, and whether it is one of torch's own layers."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", False
    path, kind = stack[-1][0], stack[-1][1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    path = re.sub(r"^L\[['\"]self['\"]\]\.?|^L__self__[._]?", "", str(path))
    return path, kind.startswith("torch.nn.")


def long_place(node: fx.Node) -> str:
    """Where the call stands in the user's source: file, line, its text, and the module."""
    trace, (path, _) = frames(node), module_path(node)
    where = f"{trace[-1][0]}:{trace[-1][1]}: {trace[-1][2].strip()}" if trace else ""
    inside = f"in module {path!r}" if path else ""
    return "  ".join(part for part in (where, inside) if part)


def short_place(node: fx.Node) -> str:
    """``file.py:12``: file name and line only, since it is stored with the model."""
    trace = frames(node)
    return f"{Path(trace[-1][0]).name}:{trace[-1][1]}" if trace else ""


def node_name(node: fx.Node) -> str:
    """The layer's path in the user's module, or the path of its module and the operator's name."""
    path, own = module_path(node)
    if own and path:
        return path
    name = operator_name(node)
    return f"{path}.{name}" if path else name
