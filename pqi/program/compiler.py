"""Integer model -> program."""

from __future__ import annotations

import torch
from torch import Tensor

import protocols
from pqi.graph.graph import OUTPUT, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import WEIGHTED, WIDE, Conv2d, Dense, Input, Lookup, MaxPool2d, Requantize, Spread, Step
from pqi.program.errors import ProgramError
from pqi.program.instructions import INPUT, Instruction, Local, Program
from pqi.program.plan import Demand, requantization
from pqi.program.windows import Windows
from protocols import api
from protocols.errors import BadParameters
from protocols.linmap import ConvMap, DenseMap, LinearMap, ScaleMap


def compile(  # noqa: A001
    model: IntegerModel, protocol: str = "additive2", network: str = "lan", rounding: str = "exact"
) -> Program:
    """What the parties do to compute ``model`` on a shared input.

    protocol: a name from ``protocols.CATALOGUE``. network: ``lan`` (fewest bytes) or ``wan`` (fewest exchanges).
    rounding: ``exact``, or ``stochastic``, which is cheaper and not bit-exact. Raises :class:`ProgramError` naming
    the layer that cannot be served.
    """
    _refuse_polynomials(model, protocol)
    backend = protocols.get(protocol)
    builder = _Builder(model, backend.clamp_headroom, network, rounding)
    for node in model.graph.nodes[1:]:
        try:
            builder.add(node)
        except BadParameters as error:
            raise ProgramError(f"layer {node.name!r}: {error}") from error
    stochastic = any(isinstance(i.action, api.Shift) and i.action.rounding == "stochastic" for i in builder.code)
    return Program(
        protocol=protocol,
        instructions=tuple(builder.code),
        output=builder.value[model.graph.output],
        input_shape=model.graph.input.shape,
        input_ring=model.rings[model.graph.nodes[0].name],
        output_shape=model.graph.shapes[model.graph.output],
        output_ring=model.accumulators[OUTPUT],
        exact=backend.exact and not stochastic,
    )


def _refuse_polynomials(model: IntegerModel, protocol: str) -> None:
    """What has no ring, no share of a value can compute here."""
    for node in model.graph.nodes:
        if isinstance(node.op, WIDE):
            raise ProgramError(
                f"layer {node.name!r} is a {node.op.kind}, which {protocol!r} does not compute: use bfv or ckks, or a "
                "network of relu and pqi.quantize"
            )
    if not isinstance(model, IntegerModel):
        raise ProgramError(f"a polynomial model is for bfv, ckks and paillier; pqi.quantize makes one for {protocol!r}")


class _Builder:
    """Instructions so far, and the name of the value of every node."""

    def __init__(self, model: IntegerModel, headroom: int, network: str, rounding: str) -> None:
        self.model, self.headroom, self.network, self.rounding = model, headroom, network, rounding
        self.code: list[Instruction] = []
        self.value = {model.graph.nodes[0].name: INPUT}
        self.opened: set[str] = set()

    def add(self, node: Node) -> None:
        """Append the instructions of one node."""
        op, sources = node.op, tuple(self.value[i] for i in node.inputs)
        self.value[node.name] = node.name
        if isinstance(op, WEIGHTED):
            self._linear(node, sources[0])
        elif isinstance(op, Requantize):
            self._requantize(node, op, sources[0])
        elif isinstance(op, Step):
            k = self.model.accumulators[node.name]
            # A ring of one bit holds its own sign; the comparison starts at two.
            sign = api.Sign(self._shape(node), max(k, 2), self.model.rings[node.name])
            self._put(node.name, sign, sources, node.name)
        elif isinstance(op, Lookup):
            # A share mod a wider ring is one mod 2^bits, too: the table reads the value as it is, in one exchange.
            channels = op.values.shape[0] if op.values.ndim == 2 else 1
            table = api.Table(self._shape(node), op.bits, self.model.rings[node.name], channels)
            self._put(node.name, table, sources, node.name)
        elif isinstance(op, MaxPool2d):
            self._max_pool(node, op, sources[0])
        elif isinstance(op, Input):
            raise ProgramError(f"node {node.name!r} is a second input")
        else:
            self._put(node.name, op, sources, node.name)

    def _put(self, name: str, action: api.Step | Local, inputs: tuple[str, ...], layer: str) -> None:
        self.code.append(Instruction(name, action, inputs, layer))

    def _shape(self, node: Node) -> tuple[int, ...]:
        return self.model.graph.shapes[node.name]

    def _linear(self, node: Node, source: str) -> None:
        opened = f"{source}/open"
        if opened not in self.opened:
            self.opened.add(opened)
            users = [n for n in self.model.graph.consumers[node.inputs[0]] if isinstance(n.op, WEIGHTED)]
            ring = max(self.model.rings[n.name] for n in users)
            self._put(opened, api.Open(self.model.graph.shapes[node.inputs[0]], ring), (source,), node.name)
        mapped = linear_map(node, self.model)
        step = api.Linear(mapped.out_shape, self.model.rings[node.name], mapped)
        self._put(node.name, step, (opened,), node.name)
        if isinstance(node.op, Spread):  # one product per channel; what follows is repetition, which shares allow
            self.value[node.name] = f"{node.name}/spread"
            self._put(f"{node.name}/spread", node.op.expand, (node.name,), node.name)

    def _requantize(self, node: Node, op: Requantize, source: str) -> None:
        tables = 0 if op.values is None else 1 if op.values.ndim == 1 else op.values.shape[0]
        demand = Demand(
            shape=self._shape(node),
            ring=max(self.model.accumulators[node.name], op.shift + 1, 2),
            shift=op.shift,
            bits=op.bits,
            low=op.low,
            tables=tables,
            ring_out=self.model.rings[node.name],
            headroom=self.headroom,
        )
        for suffix, step in requantization(demand, self.network, self.rounding):
            name = f"{node.name}/{suffix}" if suffix else node.name
            self._put(name, step, (source,), node.name)
            source = name

    def _max_pool(self, node: Node, op: MaxPool2d, source: str) -> None:
        bits = self.model.ranges.bits[node.inputs[0]]
        _, rows, columns = self._shape(node)
        lowest = -(1 << (bits - 1))
        cut = Windows(op.kernel, op.stride, op.padding, op.dilation, (rows, columns), lowest)
        self._put(f"{node.name}/windows", cut, (source,), node.name)
        ring = max(self.model.rings[node.name], bits + 1)
        width = op.kernel[0] * op.kernel[1]
        self._put(node.name, api.Maximum(self._shape(node), width, bits, ring), (f"{node.name}/windows",), node.name)


def linear_map(node: Node, model: IntegerModel) -> LinearMap:
    """Geometry of a linear node."""
    shape, op = model.graph.shapes[node.inputs[0]], node.op
    if isinstance(op, Conv2d):
        channels, height, width = shape
        outputs, kernel = op.weight.shape[0], (op.weight.shape[2], op.weight.shape[3])
        return ConvMap(channels, height, width, outputs, kernel, op.stride, op.padding, op.dilation, op.groups)
    if isinstance(op, Dense):
        return DenseMap(op.weight.shape[0], op.weight.shape[1], tuple(shape[:-1]))
    if isinstance(op, Spread):
        return DenseMap(op.weight.shape[0], 1)
    return ScaleMap(tuple(shape))


def operands(model: IntegerModel, program: Program) -> dict[str, dict[str, Tensor]]:
    """The secret operands of the program's steps, in the clear, from the model: weights, biases, tables."""
    out: dict[str, dict[str, Tensor]] = {}
    nodes, made = model.graph.by_name, {i.name: i for i in program.instructions}
    for i in program.instructions:
        node = nodes.get(i.name)
        if isinstance(i.action, api.Linear) and node is not None and isinstance(node.op, WEIGHTED):
            bias = node.op.bias
            if not isinstance(node.op, Dense):
                bias = bias.reshape(-1, *([1] * (len(i.action.shape) - 1)))
            weight = node.op.weight[:, None] if isinstance(node.op, Spread) else node.op.weight
            out[i.name] = {"weight": weight, "bias": bias}
        elif isinstance(i.action, api.Table) and node is not None and isinstance(node.op, Lookup):
            out[i.name] = {"table": node.op.values.reshape(-1, 1 << node.op.bits)}  # in the order of the residue
        elif isinstance(i.action, (api.Table, api.FusedTable)) and node is not None and isinstance(node.op, Requantize):
            source = made.get(i.inputs[0])
            over_codes = source is not None and source.layer == i.layer and isinstance(source.action, api.Clamp)
            out[i.name] = {"table": _table(node.op, i, over_codes)}
    return out


def _table(op: Requantize, i: Instruction, over_codes: bool) -> Tensor:
    """All entries ``(channels, 2^t)`` of a requantization's table, in the order of the index mod 2^t.

    over_codes: the index was clamped to a code by an earlier step of the same layer; otherwise it is a signed number.
    """
    if isinstance(i.action, api.FusedTable):
        bits = i.action.ring - i.action.shift
    elif isinstance(i.action, api.Table):
        bits = i.action.bits
    else:
        raise ProgramError(f"instruction {i.name!r} is no table")
    index = torch.arange(1 << bits)
    if not over_codes:
        index = index - ((index >> (bits - 1)) << bits)
    code = index.clamp(0, (1 << op.bits) - 1)
    if op.values is None:
        return (op.low + code).unsqueeze(0)
    values = op.values if op.values.ndim == 2 else op.values.unsqueeze(0)
    return values[:, code]
