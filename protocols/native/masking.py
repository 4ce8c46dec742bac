"""Many AES-128-CTR key streams added to one vector without ever being written down.

Eight registers hold 512 bytes of the vector. For every stream eight more hold its blocks there, encrypted by the
processor's own rounds (VAES, four blocks an instruction), and are added word by word; then the vector's next 512 bytes
follow. Memory is read and written once, however many streams there are. No look-up and no branch depends on a key:
the key schedule's substitution is the processor's last round with a key of zeros (FIPS 197, section 5.2).
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
SUPPORTED = all(_FEATURES.get(name, False) for name in ("aes", "vaes", "avx512f", "avx512bw"))

TILE = 512  # bytes of the vector in registers
ROUNDS = 10
_REGISTERS, _LINE, _BLOCK = 8, 64, 16


@intrinsic
def _substituted(typing, word):
    """The S-box on each byte of a 32-bit word."""

    def generate(context, builder, signature, values):
        four, two = ir.VectorType(ir.IntType(32), 4), ir.VectorType(ir.IntType(64), 2)
        state = ir.Constant(four, ir.Undefined)
        for lane in range(4):  # equal columns: what the round does besides, moving bytes between them, does nothing
            state = builder.insert_element(state, values[0], ir.Constant(ir.IntType(32), lane))
        last = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(two, [two, two]), "llvm.x86.aesni.aesenclast"
        )
        out = builder.call(last, [builder.bitcast(state, two), ir.Constant(two, [0, 0])])
        return builder.extract_element(builder.bitcast(out, four), ir.Constant(ir.IntType(32), 0))

    return types.uint32(types.uint32), generate


@njit(cache=True, nogil=True)
def schedules(keys):
    """Round keys of AES-128, uint32 ``(n, 44)``; keys: uint32 ``(n, 4)``, both little-endian."""
    out = np.empty((keys.shape[0], 4 * (ROUNDS + 1)), np.uint32)
    for n in range(keys.shape[0]):
        factor = np.uint32(1)
        for i in range(out.shape[1]):
            if i < 4:
                out[n, i] = keys[n, i]
                continue
            last = out[n, i - 1]
            if i % 4 == 0:
                last = _substituted(np.uint32((last >> np.uint32(8)) | (last << np.uint32(24)))) ^ factor
                factor = np.uint32((factor << np.uint32(1)) ^ (np.uint32(0x11B) * (factor >> np.uint32(7))))
            out[n, i] = out[n, i - 4] ^ last
    return out


@intrinsic(prefer_literal=True)
def _tile(typing, width, vector, at, block, rounds, added, streams):
    """512 bytes of ``vector`` from byte ``at`` on, to which block ``block`` of every stream corresponds."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    signature = types.void(width, vector, types.intp, types.intp, rounds, types.intp, types.intp)

    def generate(context, builder, sig, values):
        def data(i):
            return context.make_array(sig.args[i])(context, builder, values[i]).data

        _Tile(builder, data(1), data(4), width.literal_value).compute(*values[2:4], *values[5:7])
        return context.get_dummy_value()

    return signature, generate


class _Tile:
    """The code of one tile."""

    def __init__(self, builder, vector, rounds, width):
        self.builder, self.bytes, self.rounds = builder, vector, rounds
        self.long, self.int = ir.IntType(64), ir.IntType(32)
        self.line, self.block = ir.VectorType(self.long, 8), ir.VectorType(self.long, 2)
        self.words = ir.VectorType(ir.IntType(width), 8 * _LINE // width)

    def compute(self, at, block, added, streams):
        """Load the vector, go over the streams, store it."""
        b = self.builder
        places = [
            b.bitcast(b.gep(self.bytes, [b.add(at, self._at(_LINE * i))]), self.words.as_pointer())
            for i in range(_REGISTERS)
        ]
        self.sums = [cgutils.alloca_once(b, self.words) for _ in places]
        for held, place in zip(self.sums, places, strict=True):
            one = b.load(place)
            one.align = 1
            b.store(one, held)
        counters = [self._counters(block, 4 * i) for i in range(_REGISTERS)]
        self._streams(counters, self._at(0), added, b.add)
        self._streams(counters, added, streams, b.sub)
        for held, place in zip(self.sums, places, strict=True):
            b.store(b.load(held), place).align = 1

    def _streams(self, counters, begin, end, operation):
        b = self.builder
        whole = self._round("aesenc")
        final = self._round("aesenclast")
        with cgutils.for_range_slice(b, begin, end, self._at(1)) as (stream, _):
            first = b.mul(stream, self._at(4 * (ROUNDS + 1)))
            key = self._key(first, 0)
            states = [b.xor(counter, key) for counter in counters]
            for i in range(1, ROUNDS + 1):
                key = self._key(first, i)
                states = [b.call(final if i == ROUNDS else whole, [state, key]) for state in states]
            for held, state in zip(self.sums, states, strict=True):
                b.store(operation(b.load(held), b.bitcast(state, self.words)), held)

    def _round(self, name):
        kind = ir.FunctionType(self.line, [self.line, self.line])
        return cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.aesni.{name}.512")

    def _key(self, first, i):
        """Round key i, four times."""
        b = self.builder
        place = b.bitcast(b.gep(self.rounds, [b.add(first, self._at(4 * i))]), self.block.as_pointer())
        one = b.load(place)
        one.align = 4
        return b.shuffle_vector(one, one, ir.Constant(ir.VectorType(self.int, 8), [0, 1] * 4))

    def _counters(self, block, more):
        """Blocks ``block + more ..`` as counter mode has them: 128 bits, the highest byte first."""
        b = self.builder
        line = ir.Constant(self.line, [0] * 8)
        for lane in range(4):
            one = b.add(block, self._at(more + lane))
            line = b.insert_element(line, one, ir.Constant(self.int, 2 * lane + 1))
        swap = cgutils.get_or_insert_function(b.module, ir.FunctionType(self.line, [self.line]), "llvm.bswap.v8i64")
        return b.call(swap, [line])

    def _at(self, i):
        return ir.Constant(self.long, i)


@njit(cache=True, nogil=True)
def apply_8(vector, first, last, block, rounds, added):
    """Bytes ``first .. last-1`` (whole tiles) of ``vector``, plus the first ``added`` streams, minus the others; block
    ``block`` of each stream comes at ``first``.
    """
    for at in range(first, last, TILE):
        _tile(8, vector, at, block + (at - first) // _BLOCK, rounds, added, rounds.shape[0])


@njit(cache=True, nogil=True)
def apply_16(vector, first, last, block, rounds, added):
    """As :func:`apply_8`, on words of 16 bits."""
    for at in range(first, last, TILE):
        _tile(16, vector, at, block + (at - first) // _BLOCK, rounds, added, rounds.shape[0])


@njit(cache=True, nogil=True)
def apply_32(vector, first, last, block, rounds, added):
    """As :func:`apply_8`, on words of 32 bits."""
    for at in range(first, last, TILE):
        _tile(32, vector, at, block + (at - first) // _BLOCK, rounds, added, rounds.shape[0])


@njit(cache=True, nogil=True)
def apply_64(vector, first, last, block, rounds, added):
    """As :func:`apply_8`, on words of 64 bits."""
    for at in range(first, last, TILE):
        _tile(64, vector, at, block + (at - first) // _BLOCK, rounds, added, rounds.shape[0])


APPLY = {1: apply_8, 2: apply_16, 4: apply_32, 8: apply_64}
