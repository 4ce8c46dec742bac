"""Integer model -> program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

import protocols
from pqi.graph.graph import OUTPUT, Node
from pqi.graph.model import IntegerModel
from pqi.graph.ops import WEIGHTED, WIDE, Conv2d, Dense, Input, Lookup, MaxPool2d, Noise, Requantize, Spread, Step
from pqi.graph.ranges import bits_needed
from pqi.program.errors import ProgramError
from pqi.program.instructions import INPUT, Instruction, Local, Program
from pqi.program.network import Profile, profile
from pqi.program.plan import Choice, Demand, Pooling, Way, choose, pooling, requantization, sign
from pqi.program.visibility import visibilities
from protocols import api
from protocols.errors import BadParameters
from protocols.linmap import ConvMap, DenseMap, LinearMap, ScaleMap
from protocols.protocol import Protocol


def compile(  # noqa: A001
    model: IntegerModel,
    protocol: str = "additive2",
    network: str | Profile = "lan",
    rounding: str = "exact",
    weights: str | Mapping[str, str] = "shared",
) -> Program:
    """What the parties do to compute ``model`` on a shared input.

    protocol: a name from ``protocols.CATALOGUE``. network: ``lan``, ``wan``, ``loopback`` or a
    :class:`pqi.program.network.Profile`; each layer is computed in the way that is fastest on it, and :func:`explain`
    says which and why. rounding: ``exact``, or ``stochastic``, which is cheaper and not bit-exact. weights: who may
    know them: nobody (``shared``), server A (``owned``) or everybody (``public``), for all layers or by layer (see
    :func:`pqi.program.visibility.visibilities`). Raises :class:`ProgramError` naming the layer that cannot be served.
    """
    backend = protocols.get(protocol)
    builder = _built(model, protocol, network, rounding, weights)
    stochastic = any(isinstance(i.action, api.Shift) and i.action.rounding == "stochastic" for i in builder.code)
    noisy = model.noise is not None
    return Program(
        protocol=protocol,
        instructions=tuple(builder.code),
        output=builder.value[model.graph.output],
        input_shape=model.graph.input.shape,
        input_ring=model.rings[model.graph.nodes[0].name],
        output_shape=model.graph.shapes[model.graph.output],
        output_ring=model.accumulators[OUTPUT],
        exact=backend.exact and not stochastic and not noisy,
    )


def explain(
    model: IntegerModel, protocol: str = "additive2", network: str | Profile = "lan", rounding: str = "exact"
) -> dict[str, str]:
    """For each layer where there was a choice: which way :func:`compile` takes, at what price, and the next best."""
    return _built(model, protocol, network, rounding, "shared").why


def _built(
    model: IntegerModel, protocol: str, network: str | Profile, rounding: str, weights: str | Mapping[str, str]
) -> _Builder:
    _refuse_polynomials(model, protocol)
    builder = _Builder(model, protocols.get(protocol), profile(network), rounding, visibilities(model, weights))
    for node in model.graph.nodes[1:]:
        try:
            builder.add(node)
        except (BadParameters, ProgramError) as error:
            raise ProgramError(f"layer {node.name!r}: {error}") from error
    return builder


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

    def __init__(
        self, model: IntegerModel, backend: Protocol, network: Profile, rounding: str, visibility: Mapping[str, str]
    ) -> None:
        self.model, self.backend, self.network, self.rounding = model, backend, network, rounding
        self.visibility = visibility
        self.code: list[Instruction] = []
        self.value = {model.graph.nodes[0].name: INPUT}
        self.opened: set[str] = set()
        self.why: dict[str, str] = {}
        self.narrow: dict[str, int] = {}  # rings of values that only maxima read, where smaller than the model's

    def add(self, node: Node) -> None:
        """Append the instructions of one node."""
        op, sources = node.op, tuple(self.value[i] for i in node.inputs)
        self.value[node.name] = node.name
        if isinstance(op, WEIGHTED):
            self._linear(node, sources[0])
        elif isinstance(op, Requantize):
            self._requantize(node, op)
        elif isinstance(op, Step):
            k = self.model.accumulators[node.name]
            # A ring of one bit holds its own sign; the comparison starts at two.
            self._take(node, self._choose(node, sign(self._shape(node), max(k, 2), self.model.rings[node.name])))
        elif isinstance(op, Lookup):
            # A share mod a wider ring is one mod 2^bits, too: the table reads the value as it is, in one exchange.
            channels = op.values.shape[0] if op.values.ndim == 2 else 1
            table = api.Table(self._shape(node), op.bits, self.model.rings[node.name], channels)
            self._put(node.name, table, sources, node.name)
        elif isinstance(op, MaxPool2d):
            self._max_pool(node)
        elif isinstance(op, Noise):
            noise = api.Noise(self._shape(node), self.model.rings[node.name], op.bound)
            self._put(node.name, noise, sources, node.name)
        elif isinstance(op, Input):
            raise ProgramError(f"node {node.name!r} is a second input")
        else:
            self._put(node.name, op, sources, node.name)

    def _put(self, name: str, action: api.Step | Local, inputs: tuple[str, ...], layer: str) -> None:
        self.code.append(Instruction(name, action, inputs, layer))

    def _shape(self, node: Node) -> tuple[int, ...]:
        return self.model.graph.shapes[node.name]

    def _linear(self, node: Node, source: str) -> None:
        mapped = linear_map(node, self.model)
        step = api.Linear(mapped.out_shape, self.model.rings[node.name], mapped, self.visibility[node.name])
        self._put(node.name, step, (self._opened(node, source, step),), node.name)
        if isinstance(node.op, Spread):  # one product per channel; what follows is repetition, which shares allow
            self.value[node.name] = f"{node.name}/spread"
            self._put(f"{node.name}/spread", node.op.expand, (node.name,), node.name)

    def _opened(self, node: Node, source: str, step: api.Linear) -> str:
        """The name of the linear step's input: opened to those who must know it, once for all maps alike."""
        if step.opened_to is None:
            return source
        opened = f"{source}/open" if step.opened_to == "both" else f"{source}/open-to-{step.opened_to}"
        if opened not in self.opened:
            self.opened.add(opened)
            users = [n for n in self.model.graph.consumers[node.inputs[0]] if isinstance(n.op, WEIGHTED)]
            alike = [n.name for n in users if self.visibility[n.name] == step.visibility]
            ring = max(self.model.rings[name] for name in alike)
            shape = self.model.graph.shapes[node.inputs[0]]
            self._put(opened, api.Open(shape, ring, step.opened_to), (source,), node.name)
        return opened

    def _requantize(self, node: Node, op: Requantize) -> None:
        tables = 0 if op.values is None else 1 if op.values.ndim == 1 else op.values.shape[0]
        demand = Demand(
            shape=self._shape(node),
            ring=max(self.model.accumulators[node.name], op.shift + 1, 2),
            shift=op.shift,
            bits=op.bits,
            low=op.low,
            tables=tables,
            ring_out=self.model.rings[node.name],
            headroom=self.backend.clamp_headroom,
            idle=self._idle(node, op),
        )
        best: dict[int, tuple[float, Choice]] = {}
        for ring in self._rings_for_maxima(node):
            choice = self._choose(node, requantization(replace(demand, ring_out=ring), self.rounding))
            after = [self._pool(n, ring).seconds for n in self._maxima_after(node)]
            best[ring] = (choice.seconds + sum(after), choice)
        ring = min(best, key=lambda ring: best[ring][0])
        if ring != demand.ring_out:
            self.narrow[node.name] = ring
        self._take(node, best[ring][1])

    def _idle(self, node: Node, op: Requantize) -> bool:
        """Whether no value passes the upper end, by the proof."""
        ranges, read = self.model.ranges, node.inputs[0]
        cannot_wrap = ranges.bits[read] <= self.model.accumulators[node.name]
        return cannot_wrap and ranges.hi[read] >> op.shift < 1 << op.bits

    def _choose(self, node: Node, ways: list[Way]) -> Choice:
        return choose(ways, prod(self._shape(node)), self.backend, self.network)

    def _take(self, node: Node, choice: Choice) -> None:
        """Append what was chosen for a node."""
        self.why[node.name] = choice.why
        source = self.value[node.inputs[0]]
        for suffix, action in choice.way.actions:
            name = f"{node.name}/{suffix}" if suffix else node.name
            self._put(name, action, (source,), node.name)
            source = name

    def _maxima_after(self, node: Node) -> list[Node]:
        """The maxima that read a value, if nobody else does."""
        users = self.model.graph.consumers[node.name]
        alone = node.name != self.model.graph.output and all(isinstance(n.op, MaxPool2d) for n in users)
        return list(users) if alone else []

    def _rings_for_maxima(self, node: Node) -> list[int]:
        """In which rings a value may come: the model's, and the least that the maxima behind it need."""
        wide = self.model.rings[node.name]
        small = max((self._smallest(node.name) for _ in self._maxima_after(node)), default=wide)
        return sorted({wide, min(wide, small)}, reverse=True)

    def _smallest(self, name: str) -> int:
        """The least ring that holds a value, and any difference of two."""
        lo, hi = self.model.ranges.lo[name], self.model.ranges.hi[name]
        return max(bits_needed(lo, hi), (hi - lo).bit_length() + 1)

    def _pool(self, node: Node, ring_in: int) -> Choice:
        """The best way to a maximum whose input is a share mod 2^ring_in."""
        op, read = node.op, node.inputs[0]
        if not isinstance(op, MaxPool2d):
            raise ProgramError(f"node {node.name!r} is no maximum")
        channels, *size = self.model.graph.shapes[read]
        small, rows, columns = self._smallest(read), *self._shape(node)[1:]
        ring_out = small if self._maxima_after(node) else self.model.rings[node.name]
        demand = Pooling(
            channels,
            (size[0], size[1]),
            (rows, columns),
            *(op.kernel, op.stride, op.padding, op.dilation),
            small=small,
            lowest=self.model.ranges.lo[read],
            ring_out=ring_out,
        )
        rings = sorted({ring for ring in (small, max(small, ring_out)) if ring <= ring_in}, reverse=True)
        return self._choose(node, pooling(demand, rings))

    def _max_pool(self, node: Node) -> None:
        if self._maxima_after(node):
            self.narrow[node.name] = self._smallest(node.inputs[0])
        read = node.inputs[0]
        self._take(node, self._pool(node, self.narrow.get(read, self.model.rings[read])))


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
    """The operands of the program's steps, in the clear, from the model: weights, biases, tables, laws of noise."""
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
        elif isinstance(i.action, api.Noise) and node is not None and isinstance(node.op, Noise):
            out[i.name] = {"law": node.op.law}
        elif isinstance(i.action, api.FusedTable) and node is not None and isinstance(node.op, Step):
            out[i.name] = {"table": torch.tensor([[1, -1]])}  # index 0, and 1, which is -1
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
