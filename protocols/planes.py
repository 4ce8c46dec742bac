"""Bit planes: plane j of many values holds bit j of each, eight values to a byte.

What compares numbers works on single bits, and on planes one machine instruction handles hundreds of values at once.
Everything a comparison does between two messages is a *program*: a straight line of xor and and over planes, the same
for all values, put together once (:class:`Builder`). Value i is bit ``i % 8`` of byte ``i // 8``.

The torch forms here define the results; on the processor they are computed by :mod:`protocols.native.planar`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols import native

LOAD, XOR, AND, FMA, ONES, STORE = range(6)  # as in protocols.native.interpret
_SWAPS = ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))


def width(count: int) -> int:
    """Bytes of one plane of ``count`` values."""
    return -(-count // 8)


def level(x: Tensor) -> Tensor:
    """Rows ``(n, count)`` in one line ``(n * 8 * width,)``: each row is filled up to whole bytes of its planes."""
    n, count = x.shape
    if count % 8 == 0:
        return x.reshape(-1)
    out = x.new_zeros((n, 8 * width(count)))
    out[:, :count] = x
    return out.reshape(-1)


def rows(x: Tensor, n: int, count: int) -> Tensor:
    """Inverse of :func:`level`."""
    return x.reshape(n, 8 * width(count))[:, :count] if n else x.new_zeros((n, count))


def lines(x: Tensor, parts: int) -> Tensor:
    """``(n, parts * each)`` -> ``(parts, n * each)``, for programs and loops over all items at once."""
    n = x.shape[0]
    return x.reshape(n, parts, x.shape[1] // parts).transpose(0, 1).reshape(parts, -1).contiguous()


def extract(x: Tensor, low: int, bits: int, out: NDArray[np.uint8] | None = None) -> Tensor:
    """Bits ``low .. low+bits-1`` of words x ``(count,)`` as planes uint8 ``(bits, width)``; into ``out``, if given."""
    if (fast := native.bits()) is not None and x.device.type == "cpu":
        out = np.empty((bits, width(len(x))), np.uint8) if out is None else out
        fast.extract(x.contiguous().numpy(), low, bits, out)
        return torch.from_numpy(out)
    result = _extracted(x, low, bits)
    if out is not None:
        out[...] = result.numpy()
    return result


def _extracted(x: Tensor, low: int, bits: int) -> Tensor:
    """:func:`extract` by turning squares of eight bits of eight values."""
    groups = width(len(x))
    if not bits or not groups:
        return x.new_zeros((bits, groups), dtype=torch.uint8)
    wide = x.new_zeros(8 * groups, dtype=x.dtype if low + bits <= 8 * x.itemsize else torch.int64)
    wide[: len(x)] = x
    held = (wide >> low).view(torch.uint8).reshape(groups, 8, wide.itemsize)[:, :, : width(bits)]
    squares = turned(held.permute(2, 0, 1))
    return squares.transpose(1, 2).reshape(-1, groups)[:bits].contiguous()


def extract_sum(x: Tensor, y: Tensor, bits: int) -> Tensor:
    """The low ``bits`` bits of ``x + y`` (words of one type) as planes."""
    if (fast := native.bits()) is not None and x.device.type == "cpu":
        out = np.empty((bits, width(len(x))), np.uint8)
        fast.extract_sum(x.contiguous().numpy(), y.contiguous().numpy(), bits, out)
        return torch.from_numpy(out)
    return extract(x + y, 0, bits)


def turned(x: Tensor) -> Tensor:
    """uint8 ``(..., 8)``: bit j of byte i becomes bit i of byte j (Warren, Hacker's Delight, 7-3)."""
    y = x.reshape(-1).contiguous().view(torch.int64)
    for distance, where in _SWAPS:
        moved = (y ^ (y >> distance)) & where
        y = y ^ moved ^ (moved << distance)
    return y.view(torch.uint8).reshape(x.shape)


def insert(planes: Tensor, low: int, out: Tensor) -> Tensor:
    """Or the planes' bits into words ``out`` ``(count,)`` from bit ``low`` on; returns ``out``."""
    if (fast := native.bits()) is not None and out.device.type == "cpu":
        fast.insert(np.ascontiguousarray(planes.numpy()), low, out.numpy())
        return out
    bits, groups = planes.shape
    if not bits or not groups:
        return out
    filled = planes.new_zeros((8 * width(bits), groups))
    filled[:bits] = planes
    values = turned(filled.reshape(-1, 8, groups).transpose(1, 2)).reshape(-1, 8 * groups)
    for j, byte in enumerate(values[:, : len(out)]):
        out |= byte.to(out.dtype) << (low + 8 * j)
    return out


def insert_bytes(raw: NDArray[np.uint8], bits: int, low: int, out: NDArray[Any]) -> None:
    """The same from the planes' bytes in a row, which need not be writable, into an array of words."""
    planes = np.ascontiguousarray(raw).reshape(bits, -1)
    if (fast := native.bits()) is not None:
        fast.insert(planes, low, out)
    else:
        insert(torch.from_numpy(planes.copy()), low, torch.from_numpy(out))


@dataclass(frozen=True, eq=False)
class Program:
    """Lines (operation, target, p, q, r) over registers that hold planes.

    LOAD: plane q of input p. XOR: p ^ q. AND: p & q. FMA: r ^ (p & q). ONES: all ones. STORE: output ``target`` = p.
    """

    code: NDArray[np.int32]
    registers: int
    outputs: int

    def run(self, *inputs: Tensor) -> Tensor:
        """Outputs uint8 ``(outputs, width)``; inputs: at most four of ``(planes, width)``, contiguous."""
        if (fast := native.gates()) is not None and inputs[0].device.type == "cpu":
            arrays = [x.contiguous().numpy() for x in inputs]
            arrays += arrays[:1] * (4 - len(arrays))
            out = np.empty((self.outputs, inputs[0].shape[1]), np.uint8)
            fast.execute(self.code, self.registers, *arrays, out)
            return torch.from_numpy(out)
        return self.by_torch(*inputs)

    def by_torch(self, *inputs: Tensor) -> Tensor:
        """The same operation by operation, on planes in words of any integer type."""
        held: list[Tensor] = [inputs[0].new_zeros(0)] * self.registers
        out = inputs[0].new_empty((self.outputs, inputs[0].shape[1]))
        for op, to, p, q, r in self.code.tolist():
            if op == LOAD:
                held[to] = inputs[p][q]
            elif op == XOR:
                held[to] = held[p] ^ held[q]
            elif op == AND:
                held[to] = held[p] & held[q]
            elif op == FMA:
                held[to] = held[r] ^ (held[p] & held[q])
            elif op == ONES:
                held[to] = ~inputs[0].new_zeros(inputs[0].shape[1])
            else:
                out[to] = held[p]
        return out


class Builder:
    """Puts a program together. Values are numbers of nodes; equal nodes are made once; None stands for zero."""

    def __init__(self) -> None:
        self._nodes: list[tuple[int, int, int, int]] = []
        self._known: dict[tuple[int, int, int, int], int] = {}

    def _node(self, op: int, p: int = 0, q: int = 0, r: int = 0) -> int:
        key = (op, p, q, r)
        if key not in self._known:
            self._known[key] = len(self._nodes)
            self._nodes.append(key)
        return self._known[key]

    def load(self, source: int, plane: int) -> int:
        """Plane ``plane`` of input ``source`` (0 to 3)."""
        return self._node(LOAD, source, plane)

    def ones(self) -> int:
        """All ones."""
        return self._node(ONES)

    def zero(self) -> int:
        """A plane of zeros, where a node is needed."""
        return self._node(XOR, self.ones(), self.ones())

    def sum(self, a: int, b: int) -> int:
        """``a ^ b`` of two different nodes."""
        return self._node(XOR, min(a, b), max(a, b))

    def xor(self, a: int | None, b: int | None) -> int | None:
        """``a ^ b``."""
        if a is None or b is None:
            return b if a is None else a
        return None if a == b else self._node(XOR, min(a, b), max(a, b))

    def land(self, a: int | None, b: int | None) -> int | None:
        """``a & b``."""
        if a is None or b is None:
            return None
        return a if a == b else self._node(AND, min(a, b), max(a, b))

    def fma(self, more: int | None, a: int | None, b: int | None) -> int | None:
        """``more ^ (a & b)``."""
        if more is None or a is None or b is None or a == b:
            return self.xor(more, self.land(a, b))
        return self._node(FMA, min(a, b), max(a, b), more)

    def select(self, entries: Sequence[int | None], index: Sequence[int]) -> int | None:
        """Entry number ``sum_i 2^i index[i]`` of a table of ``2^len(index)`` planes."""
        level = list(entries)
        for bit in index:
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [self.fma(low, bit, self.xor(low, high)) for low, high in pairs]
        return level[0]

    def add(self, a: Sequence[int], b: Sequence[int]) -> list[int | None]:
        """Sum of two numbers of equally many bits, mod 2^bits: a ripple of carries."""
        out, carry = [], None
        for x, y in zip(a, b, strict=True):
            different = self.xor(x, y)
            out.append(self.xor(different, carry))
            carry = self.fma(self.land(x, y), different, carry)
        return out

    def finish(self, outputs: Sequence[int | None]) -> Program:
        """The program that computes ``outputs``, and nothing else, in few registers."""
        order, last = self._order(outputs)
        free: list[int] = []
        place: dict[int, int] = {}
        code: list[tuple[int, int, int, int, int]] = []
        count = 0
        for at, (node, stored) in enumerate(order):
            op, p, q, r = self._nodes[node]
            if stored is not None:
                code.append((STORE, stored, place[node], 0, 0))
            else:
                where = free.pop() if free else count
                count = max(count, where + 1)
                if op == LOAD:
                    code.append((LOAD, where, p, q, 0))
                else:
                    a, b, c = (place.get(x, 0) for x in (p, q, r))
                    code.append((op, where, a, b, c))
                place[node] = where
            used = [node] if stored is not None else [node, *self._operands(node)]
            free += {place[x] for x in used if last[x] == at}
        return Program(np.array(code, np.int32).reshape(-1, 5), max(count, 1), len(outputs))

    def _operands(self, node: int) -> tuple[int, ...]:
        op, p, q, r = self._nodes[node]
        return {XOR: (p, q), AND: (p, q), FMA: (p, q, r)}.get(op, ())

    def _order(self, outputs: Sequence[int | None]) -> tuple[list[tuple[int, int | None]], dict[int, int]]:
        """Nodes in the order of computation, with the outputs to store, and where each is used last."""
        order: list[tuple[int, int | None]] = []
        done: set[int] = set()
        for number, value in enumerate(outputs):
            node = self.zero() if value is None else value
            stack = [(node, False)]
            while stack:
                here, ready = stack.pop()
                if here in done:
                    continue
                if ready:
                    done.add(here)
                    order.append((here, None))
                    continue
                stack.append((here, True))
                stack += [(x, False) for x in reversed(self._operands(here)) if x not in done]
            order.append((node, number))
        last: dict[int, int] = {}
        for at, (node, stored) in enumerate(order):
            for x in (node, *(() if stored is not None else self._operands(node))):
                last[x] = at
        return order, last
