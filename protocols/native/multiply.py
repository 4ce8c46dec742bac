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
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
SUPPORTED = all(_FEATURES.get(name, False) for name in ("avx512f", "avx512bw", "avx512vnni"))

LANES = 16  # 32-bit sums in a vector
# The low part alone, by bytes or by words; the cross sum by one product of bytes; by two, of bytes or of words.
BYTES, WORDS, MIXED_WORDS, BYTES_WORDS, WORDS_WORDS = range(5)
TILES = ((8, 3), (6, 4), (5, 5), (1, 8))  # rows, vectors: as many sums as there are registers

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
        word, long = ir.IntType(32), ir.IntType(64)
        vector = ir.VectorType(word, LANES)

        def data(i):
            return context.make_array(sig.args[i])(context, builder, values[i]).data

        weights, where, source, target = data(3), data(6), data(7), data(12)
        row0, step, first, n_high, n_low, up_by, to0, out_step = (values[i] for i in (4, 5, 8, 9, 10, 11, 13, 14))
        step_type = ir.FunctionType(vector, [vector] * 3)
        units = {
            name: cgutils.get_or_insert_function(builder.module, step_type, f"llvm.x86.avx512.{name}.512")
            for name in ("vpdpbusd", "vpdpwssd")
        }
        nothing, undefined = ir.Constant(vector, [0] * LANES), ir.Constant(vector, ir.Undefined)
        sums = [[cgutils.alloca_once_value(builder, nothing) for _ in range(v_count)] for _ in range(r_count)]
        starts = [
            builder.gep(weights, [builder.mul(step, builder.add(row0, ir.Constant(long, r)))]) for r in range(r_count)
        ]

        def taps(unit, begin, end):
            with cgutils.for_range_slice(builder, begin, end, ir.Constant(long, 1)) as (t, _):
                at = builder.add(first, builder.sext(builder.load(builder.gep(where, [t])), long))
                loaded = []
                for v in range(v_count):
                    place = builder.gep(source, [builder.add(at, ir.Constant(long, LANES * v))])
                    loaded.append(builder.load(builder.bitcast(place, vector.as_pointer())))
                    loaded[-1].align = 4
                for r in range(r_count):
                    weight = builder.load(builder.gep(starts[r], [t]))
                    one = builder.insert_element(undefined, weight, ir.Constant(word, 0))
                    everywhere = builder.shuffle_vector(one, undefined, nothing)
                    for v in range(v_count):
                        arguments = [builder.load(sums[r][v]), loaded[v], everywhere]
                        builder.store(builder.call(units[unit], arguments), sums[r][v])

        def each(change):
            for r in range(r_count):
                line = builder.add(to0, builder.mul(out_step, ir.Constant(long, r)))
                for v in range(v_count):
                    place = builder.gep(target, [builder.add(line, ir.Constant(long, LANES * v))])
                    change(sums[r][v], builder.bitcast(place, vector.as_pointer()))

        def write(held, place):
            builder.store(builder.load(held), place).align = 4

        def shift(held, place):
            builder.store(builder.shl(builder.load(held), ups), held)

        def negate(held, place):
            builder.store(builder.sub(nothing, builder.load(held)), held)

        def add_written(held, place):
            written = builder.load(place)
            written.align = 4
            builder.store(builder.add(builder.load(held), written), held)

        one_up = builder.insert_element(undefined, up_by, ir.Constant(word, 0))
        ups = builder.shuffle_vector(one_up, undefined, nothing)
        every, none = builder.add(n_high, n_low), ir.Constant(long, 0)
        if what == MIXED_WORDS:
            taps("vpdpwssd", n_high, every)
            each(write)
            each(negate)
            taps("vpdpbusd", none, n_high)
            each(shift)
            each(add_written)
        else:
            if what in (BYTES_WORDS, WORDS_WORDS):
                taps("vpdpbusd" if what == BYTES_WORDS else "vpdpwssd", none, n_high)
                each(shift)
            taps("vpdpbusd" if what == BYTES else "vpdpwssd", n_high, every)
        each(write)
        return context.get_dummy_value()

    return signature, generate


@cache
def convolve(kind: int, tile: int) -> Callable[..., None]:
    """The compiled loop of one kind of sums and one tile (:data:`TILES`); compiled when it is first called."""
    rows, vectors = TILES[tile]
    columns_a_tile = LANES * vectors

    @njit(cache=True, nogil=True)
    def loop(matrix, places, columns, high, up, pitch, add, out):
        """out (O, lines, cols) = taps . columns on lines of ``pitch`` columns, plus ``add`` of the same shape.

        matrix: (O filled up to whole tiles, taps), the first ``high`` of them of the cross sum, which is shifted by
        ``up``. places: where each tap's columns begin in ``columns``, which reach one tile beyond the last line.
        """
        channels, lines, cols = out.shape
        low, width = matrix.shape[1] - high, lines * pitch
        held = np.empty((rows, width + columns_a_tile), np.int32)
        for first in range(0, channels, rows):
            for q in range(0, width, columns_a_tile):
                _tile(
                    kind, rows, vectors, matrix, first, matrix.shape[1], places, columns, q, high, low, np.int32(up),
                    held, q, held.shape[1],
                )  # fmt: skip
            for r in range(min(rows, channels - first)):
                for y in range(lines):
                    line = held[r, y * pitch : y * pitch + cols]
                    more, target = add[first + r, y], out[first + r, y]
                    for x in range(cols):
                        target[x] = line[x] + more[x]

    done: Callable[..., None] = loop
    return done


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
