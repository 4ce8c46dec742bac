"""Bit planes in compiled loops: transposition, packing, and both ends of a clamp.

Every function here has a form in torch or numpy with the same results (:mod:`protocols.planes`,
:mod:`protocols.additive2.clamp`), which is its oracle in the tests and its stand-in on other devices.

Values are taken in chunks that stay in the first-level cache, so that memory is passed over once. Loops run over
contiguous arrays without branches: the compiler turns them into the widest vector instructions the processor has.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CHUNK = 4096  # values; their bits are 512 bytes a plane
GROUPS = CHUNK // 8

# An 8 x 8 bit matrix in a word, byte i = row i: swapped across its diagonal in three steps (Hacker's Delight, 7-3).
_A, _B, _C = np.uint64(0x00AA00AA00AA00AA), np.uint64(0x0000CCCC0000CCCC), np.uint64(0x00000000F0F0F0F0)
_7, _14, _28 = np.uint64(7), np.uint64(14), np.uint64(28)


@njit(cache=True, nogil=True)
def _turn(words, count):
    for g in range(count):
        x = words[g]
        t = (x ^ (x >> _7)) & _A
        x = x ^ t ^ (t << _7)
        t = (x ^ (x >> _14)) & _B
        x = x ^ t ^ (t << _14)
        t = (x ^ (x >> _28)) & _C
        words[g] = x ^ t ^ (t << _28)


@njit(cache=True, nogil=True)
def _spill(words, count, first, planes, at, out):
    for j in range(planes):
        shift = np.uint64(8 * j)
        row = out[first + j, at : at + count]
        for g in range(count):
            row[g] = np.uint8(words[g] >> shift)


@njit(cache=True, nogil=True)
def extract(x, low, bits, out):
    """Bits ``low .. low+bits-1`` of x (count,) -> planes (bits, ceil(count/8))."""
    words = np.empty(GROUPS, np.uint64)
    lanes = words.view(np.uint8)
    count = x.size
    for start in range(0, count, CHUNK):
        here = min(CHUNK, count - start)
        groups = (here + 7) // 8
        part = x[start : start + here]
        for first in range(0, bits, 8):
            shift = np.int32(low + first)
            lanes[8 * groups - 8 : 8 * groups] = 0
            for i in range(here):
                lanes[i] = np.uint8(np.int32(part[i]) >> shift)
            _turn(words, groups)
            _spill(words, groups, first, min(8, bits - first), start // 8, out)


@njit(cache=True, nogil=True)
def extract_sum(x, y, bits, out):
    """The low bits of x + y (count,) -> planes (bits, ceil(count/8))."""
    words = np.empty(GROUPS, np.uint64)
    lanes = words.view(np.uint8)
    count = x.size
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        groups = (n + 7) // 8
        left, right = x[start : start + n], y[start : start + n]
        for first in range(0, bits, 8):
            shift = np.int32(first)
            lanes[8 * groups - 8 : 8 * groups] = 0
            for i in range(n):
                lanes[i] = np.uint8((np.int32(left[i]) + np.int32(right[i])) >> shift)
            _turn(words, groups)
            _spill(words, groups, first, min(8, bits - first), start // 8, out)


@njit(cache=True, nogil=True)
def _fill(planes, first, count, at, groups, words):
    """Up to eight planes, a stretch of each, side by side in words: byte j of word g = byte g of plane j."""
    for g in range(groups):
        words[g] = np.uint64(0)
    for j in range(count):
        row = planes[first + j, at : at + groups]
        shift = np.uint64(8 * j)
        for g in range(groups):
            words[g] |= np.uint64(row[g]) << shift
    _turn(words, groups)


@njit(cache=True, nogil=True)
def insert(planes, low, out):
    """Inverse of :func:`extract`: the planes' bits are or-ed into ``out`` (count,) from bit ``low`` on."""
    words = np.empty(GROUPS, np.uint64)
    lanes = words.view(np.uint8)
    count, bits = out.size, planes.shape[0]
    for start in range(0, count, CHUNK):
        here = min(CHUNK, count - start)
        groups = (here + 7) // 8
        for first in range(0, bits, 8):
            _fill(planes, first, min(8, bits - first), start // 8, groups, words)
            shift = np.int32(low + first)
            part = out[start : start + here]
            for i in range(here):
                part[i] |= np.int32(lanes[i]) << shift


# One array is written in each loop: more pointers than a few and the compiler gives up proving them apart.


@njit(cache=True, nogil=True)
def _fact(lanes, at, n, bits, signs):
    """A fact b^ of every value, and 1 - 2 b^."""
    shift, one = np.int32(at), np.int32(1)
    for i in range(n):
        bits[i] = np.int32(lanes[i] >> shift) & one
    for i in range(n):
        signs[i] = one - bits[i] - bits[i]


@njit(cache=True, nogil=True)
def _numbers(planes, bits, start, n, words, lanes, out):
    """Values ``start .. start+n`` of planes as numbers."""
    for i in range(n):
        out[i] = 0
    for p in range(0, bits, 8):
        _fill(planes, p, min(8, bits - p), start // 8, (n + 7) // 8, words)
        s = np.int32(p)
        for i in range(n):
            out[i] |= np.int32(lanes[i]) << s


@njit(cache=True, nogil=True)
def _opened(own, peer, start, n, words):
    """Facts ``own ^ peer`` of values ``start .. start+n``, one byte a value."""
    groups, at = (n + 7) // 8, start // 8
    for g in range(groups):
        words[g] = np.uint64(0)
    for j in range(own.shape[0]):
        shift = np.uint64(8 * j)
        left, right = own[j, at : at + groups], peer[j, at : at + groups]
        for g in range(groups):
            words[g] |= np.uint64(left[g] ^ right[g]) << shift
    _turn(words, groups)


@njit(cache=True, nogil=True)
def _lift(public, above, n, out):
    """``2^(above+1) (1 - msb(v))`` of numbers v of ``above + 1`` bits."""
    one = np.int32(1)
    for i in range(n):
        out[i] = np.int32(one - np.int32((public[i] >> above) & one)) << np.int32(above + one)


@njit(cache=True, nogil=True)
def _secret(lift, mu, value, n, out):
    for i in range(n):
        out[i] = lift[i] * np.int32(mu[i]) - np.int32(value[i])


@njit(cache=True, nogil=True)
def _less(signs, factor, x, n, out):
    """``out - factor * sign * x``."""
    for i in range(n):
        out[i] -= np.int32(signs[i] * np.int32(x[i])) * factor


@njit(cache=True, nogil=True)
def clamp_end(digits, own, peer, where, rows, first, code, low, dealt, out):
    """The last step of a clamp (:mod:`protocols.additive2.clamp`).

    digits (code + 1, B): planes of the public v. own, peer (facts, B): masked predicates as shared and received.
    where: positions of c, in, high among the facts (-1: not asked for). dealt: words (.., count), in which ``rows``
    names those of R, beta, betaR, mu, betamu, gamma, betagamma, delta (-1: not there and not read).
    """
    words = np.empty(GROUPS, np.uint64)
    lanes = words.view(np.uint8)
    public, outer, inner = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    bits, signs = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    count, one, mine = out.size, np.int32(1), np.int32(first)
    constant, top = np.int32(first * low), np.int32((one << np.int32(code)) - one)
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        end = start + n
        _numbers(digits, code + 1, start, n, words, lanes, public)
        _lift(public, np.int32(code), n, signs)
        _secret(signs, dealt[rows[3]][start:end], dealt[rows[0]][start:end], n, outer)
        _secret(signs, dealt[rows[4]][start:end], dealt[rows[2]][start:end], n, inner)
        _opened(own, peer, start, n, words)
        if where[0] >= 0:
            _fact(lanes, where[0], n, bits, signs)
            for i in range(n):
                public[i] -= bits[i]
            _less(signs, one, dealt[rows[5]][start:end], n, outer)
            _less(signs, one, dealt[rows[6]][start:end], n, inner)
        _fact(lanes, where[1], n, bits, signs)
        mask = dealt[rows[1]][start:end]
        for i in range(n):
            inner[i] += public[i] * np.int32(mask[i])
        for i in range(n):
            outer[i] = bits[i] * np.int32(outer[i] + mine * public[i])
        for i in range(n):
            outer[i] += signs[i] * inner[i] + constant
        if where[2] >= 0:
            _fact(lanes, where[2], n, bits, signs)
            _less(signs, -top, dealt[rows[7]][start:end], n, outer)
            for i in range(n):
                outer[i] += bits[i] * np.int32(top * mine)
        result = out[start:end]
        for i in range(n):
            result[i] = outer[i]


@njit(cache=True, nogil=True)
def clamp_elements(rho, masks, where, rows, shift, code, first, out):
    """The dealer's end of a clamp: out = values of the dealt elements - first, both (.., count) words.

    rho: words. masks: planes of the facts' masks, at ``where`` as in :func:`clamp_end`, as are ``rows``.
    """
    words = np.empty(GROUPS, np.uint64)
    lanes = words.view(np.uint8)
    digits = np.empty(CHUNK, np.int32)
    high = np.empty(CHUNK, np.int32)
    beta = np.empty(CHUNK, np.int32)
    mask = np.empty(CHUNK, np.int32)
    count = rho.size
    down, above, one = np.int32(shift), np.int32(code), np.int32(1)
    keep = np.int32((np.int64(2) << code) - 1)
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        end = start + n
        _fill(masks, 0, masks.shape[0], start // 8, (n + 7) // 8, words)
        part = rho[start:end]
        for i in range(n):
            digits[i] = np.int32(np.int32(part[i]) >> down) & keep
        for i in range(n):
            high[i] = np.int32(digits[i] >> above) & one
        _fact(lanes, where[1], n, beta, mask)
        _rest(digits, first[rows[0]][start:end], n, out[rows[0]][start:end])
        _rest(beta, first[rows[1]][start:end], n, out[rows[1]][start:end])
        _gated(digits, beta, first[rows[2]][start:end], n, out[rows[2]][start:end])
        _rest(high, first[rows[3]][start:end], n, out[rows[3]][start:end])
        _gated(high, beta, first[rows[4]][start:end], n, out[rows[4]][start:end])
        if where[0] >= 0:
            _fact(lanes, where[0], n, mask, high)
            _rest(mask, first[rows[5]][start:end], n, out[rows[5]][start:end])
            _gated(mask, beta, first[rows[6]][start:end], n, out[rows[6]][start:end])
        if where[2] >= 0:
            _fact(lanes, where[2], n, mask, high)
            _rest(mask, first[rows[7]][start:end], n, out[rows[7]][start:end])


@njit(cache=True, nogil=True)
def _rest(value, first, n, out):
    for i in range(n):
        out[i] = value[i] - np.int32(first[i])


@njit(cache=True, nogil=True)
def _gated(value, bit, first, n, out):
    for i in range(n):
        out[i] = np.int32(value[i] & np.int32(-bit[i])) - np.int32(first[i])


@njit(cache=True, nogil=True)
def _stretches(packed, count, bits):
    """Packed bytes (:func:`protocols.ring.pack`): words of 32, 16 and 8 bits, planes; empty where there are none."""
    size32, size16 = (count, 0) if bits == 32 else (0, count if bits & 16 else 0)
    size8, rest = count if bits & 8 else 0, bits & 7
    at16 = 4 * size32
    at8 = at16 + 2 * size16
    at1 = at8 + size8
    planes = packed[at1 : at1 + rest * ((count + 7) // 8)].reshape(rest, (count + 7) // 8)
    return packed[:at16].view(np.uint32), packed[at16:at8].view(np.uint16), packed[at8:at1], planes


@njit(cache=True, nogil=True)
def pack_difference(x, y, bits, out):
    """``x - y mod 2^bits``, packed."""
    words, held = np.empty(GROUPS, np.uint64), np.empty(CHUNK, np.int32)
    lanes = words.view(np.uint8)
    whole, pairs, single, planes = _stretches(out, x.size, bits)
    above, last = np.int32(16 if bits & 16 else 0), np.int32(bits & 24)
    for start in range(0, x.size, CHUNK):
        n = min(CHUNK, x.size - start)
        left, right = x[start : start + n], y[start : start + n]
        for i in range(n):
            held[i] = np.int32(left[i]) - np.int32(right[i])
        for i in range(min(n, whole.size)):
            whole[start + i] = np.uint32(held[i])
        for i in range(min(n, pairs.size)):
            pairs[start + i] = np.uint16(held[i])
        for i in range(min(n, single.size)):
            single[start + i] = np.uint8(held[i] >> above)
        if planes.shape[0]:
            groups = (n + 7) // 8
            lanes[8 * groups - 8 : 8 * groups] = 0
            for i in range(n):
                lanes[i] = np.uint8(held[i] >> last)
            _turn(words, groups)
            _spill(words, groups, 0, planes.shape[0], start // 8, planes)


@njit(cache=True, nogil=True)
def unpack_sum(packed, bits, x, y, out):
    """``x - y`` and the packed values: what is opened, from both shares less the mask's."""
    words, held = np.empty(GROUPS, np.uint64), np.empty(CHUNK, np.int32)
    lanes = words.view(np.uint8)
    whole, pairs, single, planes = _stretches(packed, x.size, bits)
    above, last = np.int32(16 if bits & 16 else 0), np.int32(bits & 24)
    for start in range(0, x.size, CHUNK):
        n = min(CHUNK, x.size - start)
        left, right, result = x[start : start + n], y[start : start + n], out[start : start + n]
        for i in range(n):
            held[i] = np.int32(left[i]) - np.int32(right[i])
        for i in range(min(n, whole.size)):
            held[i] += np.int32(whole[start + i])
        for i in range(min(n, pairs.size)):
            held[i] += np.int32(pairs[start + i])
        for i in range(min(n, single.size)):
            held[i] += np.int32(single[start + i]) << above
        if planes.shape[0]:
            _fill(planes, 0, planes.shape[0], start // 8, (n + 7) // 8, words)
            for i in range(n):
                held[i] += np.int32(lanes[i]) << last
        for i in range(n):
            result[i] = held[i]
