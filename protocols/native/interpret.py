"""Straight-line programs over bit planes, interpreted: one vector loop a gate (:class:`protocols.planes.Program`).

A program's gates are the same for all values, so interpreting them costs a few nanoseconds for every 4096 values. The
vector operations are written out, because the compiler would have to prove at each gate that registers do not overlap.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

GROUPS = 512  # bytes of a plane that are worked on at a time: they and the registers stay in the first-level cache
LOAD, XOR, AND, FMA, ONES, STORE = range(6)


@intrinsic
def _address(typing, array):
    """Address of an array's first byte."""

    def generate(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.intp(array), generate


@intrinsic
def _copy(typing, to, source, count):
    """Copy bytes between addresses."""

    def generate(context, builder, signature, values):
        byte = ir.IntType(8).as_pointer()
        ends = [builder.inttoptr(v, byte) for v in values[:2]]
        cgutils.raw_memcpy(builder, ends[0], ends[1], values[2], ir.Constant(ir.IntType(64), 1))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic(prefer_literal=True)
def _vector(typing, operation, to, left, right, more, blocks):
    """``to = left op right`` on ``blocks`` times 64 bytes at these addresses; see :class:`protocols.planes.Program`."""
    if not isinstance(operation, types.IntegerLiteral):
        return None
    kind = operation.literal_value

    def generate(context, builder, signature, values):
        line = ir.VectorType(ir.IntType(64), 8)
        pointers = [builder.inttoptr(v, line.as_pointer()) for v in values[1:5]]
        with cgutils.for_range(builder, values[5]) as loop:
            loaded = []
            for pointer in pointers[1:4]:
                one = builder.load(builder.gep(pointer, [loop.index]))
                one.align = 1
                loaded.append(one)
            a, b, c = loaded
            if kind == XOR:
                result = builder.xor(a, b)
            elif kind == AND:
                result = builder.and_(a, b)
            else:
                result = builder.xor(c, builder.and_(a, b))
            builder.store(result, builder.gep(pointers[0], [loop.index])).align = 1
        return context.get_dummy_value()

    return types.void(operation, *[types.intp] * 5), generate


@njit(cache=True, nogil=True)
def execute(code, registers, a, b, c, d, out):
    """Run a straight-line program (:class:`protocols.planes.Program`) over planes of bytes.

    A plane of an input is used where it lies; only the last, short stretch of it is copied, for the vectors' sake.
    """
    held = np.empty((registers, GROUPS), np.uint8)
    home, target = _address(held), _address(out)
    at = home + np.arange(registers) * GROUPS
    bases = (_address(a), _address(b), _address(c), _address(d))
    width = out.shape[1]
    for start in range(0, width, GROUPS):
        n = min(GROUPS, width - start)
        blocks = (n + 63) // 64
        for line in range(code.shape[0]):
            op, to, p, q = code[line, 0], code[line, 1], code[line, 2], code[line, 3]
            own = home + to * GROUPS
            if op == STORE:
                _copy(target + to * width + start, at[p], n)
                continue
            if op == LOAD:
                source = bases[p] + q * width + start
                if n == GROUPS:
                    at[to] = source
                    continue
                _copy(own, source, n)
            elif op == XOR:
                _vector(XOR, own, at[p], at[q], at[q], blocks)
            elif op == AND:
                _vector(AND, own, at[p], at[q], at[q], blocks)
            elif op == FMA:
                _vector(FMA, own, at[p], at[q], at[code[line, 4]], blocks)
            else:
                held[to, :] = 255
            at[to] = own
