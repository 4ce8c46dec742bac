"""Ring products on the processor's units for dot products of 16-bit and 8-bit integers, without im2col.

``z = sum_t w_t x_t mod 2^k``, k up to 32. With ``w = l + 2^16 h`` (l signed, 16 bits) and c = k - 16,

    z = sum l_w l_x + 2^16 sum (l_w h_x + h_w l_x)      mod 2^k,

where the second sum, the *cross* sum, is needed mod 2^c only: on bytes for c up to 8. For c up to 4 one product of
bytes gives it, ``2^c cross = sum (l_w + 2^c h_w)(l_x + 2^c h_x) - sum l_w l_x mod 2^2c``, which is Karatsuba's trick at
a point so large that ``h_w h_x`` vanishes. Counted in products of bytes, k up to 16 costs two, up to 20 three, up to 24
four, up to 32 six, where digits of eight bits cost three, six, six and ten; and the sums stay in registers until they
are written once (vpdpwssd and vpdpbusd, AVX-512 VNNI).

One *tap* is one 32-bit word on each side: a pair of 16-bit numbers, or four bytes, of neighbouring channels. A map is a
matrix of taps for its rows, and for each tap the place where its vectors of columns begin. For a convolution those
places are shifted starts of the same padded planes (columns run over the padded rows, too, and what they compute there
is dropped), so nothing is copied per kernel position; for a dense map they are the rows of its weight matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
SUPPORTED = all(_FEATURES.get(name, False) for name in ("avx512f", "avx512bw", "avx512vnni"))

LANES = 16  # 32-bit sums in a vector
# The low part alone, by bytes or by words; the cross sum by one product of bytes; by two, of bytes or of words.
BYTES, WORDS, MIXED_WORDS, BYTES_WORDS, WORDS_WORDS = range(5)
# Rows, vectors: as many sums as there are registers; and for few columns.
TILES = ((8, 3), (6, 4), (5, 5), (1, 8), (12, 2), (16, 1))

PAIRS, QUADS, MIXED, HIGH_PAIRS, HIGH_QUADS = range(5)  # what a plane of :func:`spread` holds: l, l, l + 2^c h, h, h


@intrinsic(prefer_literal=True)
def _tile(typing, kind, rows, vectors, matrix, row, stride, places, columns, start, high, low, up, out, to, pitch):
    """Sums of ``rows`` rows and ``16 * vectors`` columns: ``high`` taps of the cross sum, shifted by ``up``, and
    ``low`` taps of the other."""
    if not all(isinstance(t, types.IntegerLiteral) for t in (kind, rows, vectors)):
        return None
    what, r_count, v_count = kind.literal_value, rows.literal_value, vectors.literal_value
    signature = types.void(
        kind, rows, vectors, matrix, types.intp, types.intp, places, columns, types.intp, types.intp, types.intp,
        types.int32, out, types.intp, types.intp,
    )  # fmt: skip

    def generate(context, builder, sig, values):
        _Sums(context, builder, sig, values, r_count, v_count).compute(what)
        return context.get_dummy_value()

    return signature, generate


class _Sums:
    """The code of one tile: its sums are variables of vectors, which the compiler keeps in registers."""

    def __init__(self, context, builder, sig, values, rows, vectors):
        def data(i):
            return context.make_array(sig.args[i])(context, builder, values[i]).data

        self.builder, self.word, self.long = builder, ir.IntType(32), ir.IntType(64)
        self.vector = ir.VectorType(self.word, LANES)
        self.nothing = ir.Constant(self.vector, [0] * LANES)
        self.where, self.source = data(6), data(7)
        row, stride, self.first, self.high, self.low, up, to, pitch = (values[i] for i in (4, 5, 8, 9, 10, 11, 13, 14))
        self.up, weights, out = self._everywhere(up), data(3), data(12)
        self.rows = [builder.gep(weights, [builder.mul(stride, builder.add(row, self._at(r)))]) for r in range(rows)]
        self.sums = [[cgutils.alloca_once_value(builder, self.nothing) for _ in range(vectors)] for _ in range(rows)]
        lines = [builder.add(to, builder.mul(pitch, self._at(r))) for r in range(rows)]
        self.places = [
            [self._vector(builder.gep(out, [builder.add(line, self._at(LANES * v))])) for v in range(vectors)]
            for line in lines
        ]

    def compute(self, kind):
        """All of it, by the kind of the sums."""
        begin, middle = self._at(0), self.high
        end = self.builder.add(self.high, self.low)
        if kind == MIXED_WORDS:
            self._taps("vpdpwssd", middle, end)
            self._each(self._write)
            self._each(lambda held, _: self._set(held, self.builder.sub(self.nothing, self._get(held))))
            self._taps("vpdpbusd", begin, middle)
            self._each(self._shift)
            self._each(self._add_written)
        else:
            if kind in (BYTES_WORDS, WORDS_WORDS):
                self._taps("vpdpbusd" if kind == BYTES_WORDS else "vpdpwssd", begin, middle)
                self._each(self._shift)
            self._taps("vpdpbusd" if kind == BYTES else "vpdpwssd", middle, end)
        self._each(self._write)

    def _taps(self, name, begin, end):
        b = self.builder
        unit_type = ir.FunctionType(self.vector, [self.vector] * 3)
        unit = cgutils.get_or_insert_function(b.module, unit_type, f"llvm.x86.avx512.{name}.512")
        with cgutils.for_range_slice(b, begin, end, self._at(1)) as (t, _):
            at = b.add(self.first, b.sext(b.load(b.gep(self.where, [t])), self.long))
            loaded = []
            for v in range(len(self.sums[0])):
                place = b.gep(self.source, [b.add(at, self._at(LANES * v))])
                loaded.append(self._read(self._vector(place)))
            for start, row in zip(self.rows, self.sums, strict=True):
                weight = self._everywhere(b.load(b.gep(start, [t])))
                for held, values in zip(row, loaded, strict=True):
                    self._set(held, b.call(unit, [self._get(held), values, weight]))

    def _each(self, change):
        for row, places in zip(self.sums, self.places, strict=True):
            for held, place in zip(row, places, strict=True):
                change(held, place)

    def _write(self, held, place):
        self.builder.store(self._get(held), place).align = 4

    def _shift(self, held, _):
        self._set(held, self.builder.shl(self._get(held), self.up))

    def _add_written(self, held, place):
        self._set(held, self.builder.add(self._get(held), self._read(place)))

    def _get(self, held):
        return self.builder.load(held)

    def _set(self, held, value):
        self.builder.store(value, held)

    def _read(self, place):
        value = self.builder.load(place)
        value.align = 4
        return value

    def _at(self, i):
        return ir.Constant(self.long, i)

    def _vector(self, pointer):
        return self.builder.bitcast(pointer, self.vector.as_pointer())

    def _everywhere(self, value):
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(self.word, 0))
        return self.builder.shuffle_vector(one, undefined, self.nothing)


@cache
def convolve(kind: int, tile: int) -> Callable[..., None]:
    """The compiled loop of one kind of sums and one tile (:data:`TILES`); compiled when it is first called."""
    rows, vectors = TILES[tile]
    columns_a_tile = LANES * vectors

    @njit(cache=True, nogil=True)
    def loop(matrix, places, columns, high, up, pitch, add, out):
        """out (n, O, lines, cols) = taps . columns on lines of ``pitch`` columns, plus ``add`` of the same shape; the
        lines of all images one after the other.

        matrix: (O filled up to whole tiles, taps), the first ``high`` of them of the cross sum, which is shifted by
        ``up``. places: where each tap's columns begin in ``columns``, which reach one tile beyond the last line.
        """
        images, channels, lines, cols = out.shape
        low, width = matrix.shape[1] - high, images * lines * pitch
        held = np.empty((rows, width + columns_a_tile), np.int32)
        for first in range(0, channels, rows):
            for q in range(0, width, columns_a_tile):
                _tile(
                    kind, rows, vectors, matrix, first, matrix.shape[1], places, columns, q, high, low, np.int32(up),
                    held, q, held.shape[1],
                )  # fmt: skip
            for r in range(min(rows, channels - first)):
                for y in range(images * lines):
                    line = held[r, y * pitch : y * pitch + cols]
                    more, target = add[y // lines, first + r, y % lines], out[y // lines, first + r, y % lines]
                    for x in range(cols):
                        target[x] = line[x] + more[x]

    done: Callable[..., None] = loop
    return done


def make_ready(kind: int, tile: int, arguments: tuple[object, ...]) -> None:
    """Compile or load the loop of these kinds of arguments."""
    convolve(kind, tile).compile(tuple(typeof(x) for x in arguments))  # type: ignore[attr-defined]


@njit(cache=True, nogil=True)
def _part(x, high, mix):
    """The signed low 16 bits, or what is left above them, or ``low + 2^mix high``."""
    low = np.int32(np.int16(x))
    if high:
        return np.int32((np.int32(x) - low) >> 16)
    return np.int32(low + (np.int32((np.int32(x) - low) >> 16) << np.int32(mix))) if mix else low


@njit(cache=True, nogil=True)
def spread(x, what, mix, channel, phase, stride, padding, pitch, plane):
    """One plane of taps: channels ``channel ..`` of x (C, H, W), padded, at every stride-th position from ``phase`` on.

    mix: c for a plane of MIXED, else 0.
    plane: int32, rows of ``pitch`` positions, zero where nothing is written.
    """
    channels, height, width = x.shape
    high = what >= HIGH_PAIRS
    count = 4 if what in (QUADS, MIXED, HIGH_QUADS) else 2
    bits = np.int32(32 // count)
    keep = np.int32((1 << (32 // count)) - 1)
    top, left = (phase[0] - padding[0]) % stride[0], (phase[1] - padding[1]) % stride[1]
    for y in range(top, height, stride[0]):
        at = (y + padding[0]) // stride[0] * pitch + (left + padding[1]) // stride[1]
        positions = (width - left + stride[1] - 1) // stride[1]
        target = plane[at : at + positions]
        for c in range(min(count, channels - channel)):
            shift = np.int32(bits * np.int32(c))
            line = x[channel + c, y]
            if stride[1] == 1:
                for i in range(positions):
                    target[i] |= np.int32(_part(line[i], high, mix) & keep) << shift
            else:
                for i in range(positions):
                    target[i] |= np.int32(_part(line[left + stride[1] * i], high, mix) & keep) << shift


@njit(cache=True, nogil=True)
def spread_all(x, kinds, mix, channels, phases, stride, padding, pitch, out):
    """All planes (len(kinds), size) of one image x (C, H, W); see :func:`spread`."""
    for p in range(len(kinds)):
        out[p, :] = 0
        spread(x, kinds[p], mix if kinds[p] == MIXED else 0, channels[p], phases[p], stride, padding, pitch, out[p])


@njit(cache=True, nogil=True)
def gather(planes, places, pitch, lines, cols, at, out):
    """Every tap's columns of one image side by side: out (taps, ..) from column ``at`` on; planes: a line of words."""
    for t in range(len(places)):
        for y in range(lines):
            start, to = places[t] + y * pitch, at + y * cols
            for x in range(cols):
                out[t, to + x] = planes[start + x]


@njit(cache=True, nogil=True)
def pack_rows(x, kinds, mix, out):
    """Rows of x (rows, inputs) as taps, a stretch of ``out`` for each kind; the last tap is filled up with zeros."""
    rows, inputs = x.shape
    for r in range(rows):
        line, at = x[r], 0
        for what in kinds:
            high, part = what >= HIGH_PAIRS, mix if what == MIXED else 0
            count = 4 if what in (QUADS, MIXED, HIGH_QUADS) else 2
            bits, keep = np.int32(32 // count), np.int32((1 << (32 // count)) - 1)
            taps = (inputs + count - 1) // count
            target = out[r, at : at + taps]
            for t in range(taps):
                target[t] = 0
            for c in range(count):
                shift = np.int32(bits * np.int32(c))
                for t in range((inputs - c + count - 1) // count):
                    target[t] |= np.int32(_part(line[count * t + c], high, part) & keep) << shift
            at += taps


@njit(cache=True, nogil=True)
def depthwise(x, weight, stride, padding, dilation, add, out):
    """out (C, rows, cols) = one kernel (kh, kw) for each channel of x (C, H, W), plus ``add``, in 32-bit words."""
    channels, rows, cols = out.shape
    height, width = x.shape[1], x.shape[2]
    line = np.empty(cols, np.int32)
    for c in range(channels):
        for y in range(rows):
            line[:] = 0
            for i in range(weight.shape[1]):
                source = y * stride[0] - padding[0] + i * dilation[0]
                if not 0 <= source < height:
                    continue
                values = x[c, source]
                for j in range(weight.shape[2]):
                    w, shift = np.int32(weight[c, i, j]), j * dilation[1] - padding[1]
                    first = max(0, -(shift // stride[1]) if shift < 0 else 0)
                    last = min(cols, (width - 1 - shift) // stride[1] + 1)
                    for k in range(first, last):
                        line[k] += w * np.int32(values[k * stride[1] + shift])
            more, target = add[c, y], out[c, y]
            for k in range(cols):
                target[k] = line[k] + more[k]
