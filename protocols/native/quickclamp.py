"""Both ends of a quick clamp in compiled loops (:mod:`protocols.additive2.quick`, whose torch forms are the oracle)."""

from __future__ import annotations

import numpy as np
from numba import njit

from protocols.native.planar import CHUNK, GROUPS, _fact, _fill, _gated, _less, _numbers, _rest


@njit(cache=True, nogil=True)
def _chosen(pick, zero, one, n, out):
    """``one`` where pick is all ones, ``zero`` where it is 0."""
    for i in range(n):
        out[i] = np.int32(zero[i]) ^ np.int32(np.int32(np.int32(zero[i]) ^ np.int32(one[i])) & pick[i])


@njit(cache=True, nogil=True)
def quick_end(digits, facts, rows, first, code, low, dealt, out):
    """The last step of a quick clamp.

    digits (code, B): planes of the public v. facts (4, B): masked c, w, in, high. dealt: words (.., count), in which
    ``rows`` names those of S_0, S_1, gamma, beta_0, beta_1, their products with S and with gamma, delta_0, delta_1
    (-1: not there and not read).
    """
    words = np.empty(GROUPS, np.uint64)
    lanes = words.view(np.uint8)
    public, outer, inner = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    bits, signs = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    pick, held = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    count, one, mine = out.size, np.int32(1), np.int32(first)
    constant, top = np.int32(first * low), np.int32((one << np.int32(code)) - one)
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        end = start + n
        _numbers(digits, code, start, n, words, lanes, public)
        _fill(facts, 0, 4, start // 8, (n + 7) // 8, words)
        _fact(lanes, 1, n, bits, signs)
        for i in range(n):
            pick[i] = -bits[i]
        _chosen(pick, dealt[rows[0]][start:end], dealt[rows[1]][start:end], n, outer)
        _chosen(pick, dealt[rows[5]][start:end], dealt[rows[6]][start:end], n, inner)
        if rows[2] >= 0:
            _fact(lanes, 0, n, bits, signs)
            for i in range(n):
                public[i] -= bits[i]
            _less(signs, -one, dealt[rows[2]][start:end], n, outer)
            _chosen(pick, dealt[rows[7]][start:end], dealt[rows[8]][start:end], n, held)
            _less(signs, -one, held, n, inner)
        _chosen(pick, dealt[rows[3]][start:end], dealt[rows[4]][start:end], n, held)
        for i in range(n):
            inner[i] = public[i] * held[i] - inner[i]
        _fact(lanes, 2, n, bits, signs)
        for i in range(n):
            outer[i] = bits[i] * np.int32(mine * public[i] - outer[i])
        for i in range(n):
            outer[i] += signs[i] * inner[i] + constant
        if rows[9] >= 0:
            _fact(lanes, 3, n, bits, signs)
            _chosen(pick, dealt[rows[9]][start:end], dealt[rows[10]][start:end], n, held)
            _less(signs, -top, held, n, outer)
            for i in range(n):
                outer[i] += bits[i] * np.int32(top * mine)
        result = out[start:end]
        for i in range(n):
            result[i] = outer[i]


@njit(cache=True, nogil=True)
def quick_elements(rho, masks, rows, shift, code, first, out):
    """The dealer's end of a quick clamp: out = values of the dealt elements - first, both (.., count) words.

    rho: words. masks (6, B): planes of gamma, omega, beta_0, beta_1, delta_0, delta_1. ``rows`` as in
    :func:`quick_end`.
    """
    words = np.empty(GROUPS, np.uint64)
    lanes = words.view(np.uint8)
    gamma, beta, signs = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    digits, omega = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
    count = rho.size
    down, above, one = np.int32(shift), np.int32(code), np.int32(1)
    keep = np.int32((one << above) - one)
    for start in range(0, count, CHUNK):
        n = min(CHUNK, count - start)
        end = start + n
        _fill(masks, 0, 6, start // 8, (n + 7) // 8, words)
        part = rho[start:end]
        _fact(lanes, 0, n, gamma, signs)
        _fact(lanes, 1, n, omega, signs)
        if rows[2] >= 0:
            _rest(gamma, first[rows[2]][start:end], n, out[rows[2]][start:end])
        for j in range(2):
            _fact(lanes, 2 + j, n, beta, signs)
            for i in range(n):
                digits[i] = np.int32(np.int32(part[i]) >> down) & keep
            for i in range(n):
                digits[i] -= np.int32(omega[i] ^ np.int32(j)) << above
            _rest(digits, first[rows[j]][start:end], n, out[rows[j]][start:end])
            _rest(beta, first[rows[3 + j]][start:end], n, out[rows[3 + j]][start:end])
            _gated(digits, beta, first[rows[5 + j]][start:end], n, out[rows[5 + j]][start:end])
            if rows[2] >= 0:
                _gated(gamma, beta, first[rows[7 + j]][start:end], n, out[rows[7 + j]][start:end])
            if rows[9] >= 0:
                _fact(lanes, 4 + j, n, beta, signs)
                _rest(beta, first[rows[9 + j]][start:end], n, out[rows[9 + j]][start:end])
