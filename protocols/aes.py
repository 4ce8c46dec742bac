"""AES-128 in counter mode as tensor code: the key stream of :mod:`protocols.prg` on any torch device.

A processor has instructions for AES, and there ``cryptography`` makes the streams. Elsewhere this module does: the same
bytes from the same key, so a role on a GPU agrees with one that has none. Blocks are *bit-sliced*: plane (b, p) holds
bit b of byte p of every block, 64 blocks to a word, and a round is a straight line of xor and and over planes,

    S-box         the 113 gates of Boyar and Peralta (IFIP SEC 2012), without its constant
    ShiftRows     the planes of each byte in another order
    MixColumns    ``2 (a_r + a_r+1) + a_r+1 + (a_r+2 + a_r+3)`` for row r; doubling moves planes and adds the highest
    AddRoundKey   xor with words of zeros or ones

with the S-box's constant 0x63, which ShiftRows and MixColumns leave as it is, added to the round keys. Nothing is
looked up at, and no branch depends on, a secret. Key schedules are made on the processor (FIPS 197, section 5.2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from operator import and_, xor
from typing import TypeVar

import torch
from torch import Tensor

from protocols import devices, planes, prg
from protocols.planes import Builder, Program

ROUNDS = 10
_LANES = 64  # blocks to a word of a plane
_CHUNK = 1 << 20  # blocks worked on at a time: 16 MiB of stream, and some 150 MiB while it is made
_WRAP = 1 << 64

# One gate a word, in order: target = left op right; x0 is the highest bit of a byte, s0 that of its image.
_GATES = """
y14=x3^x5 y13=x0^x6 y9=x0^x3 y8=x0^x5 t0=x1^x2 y1=t0^x7 y4=y1^x3 y12=y13^y14 y2=y1^x0 y5=y1^x6 y3=y5^y8 t1=x4^y12
y15=t1^x5 y20=t1^x1 y6=y15^x7 y10=y15^t0 y11=y20^y9 y7=x7^y11 y17=y10^y11 y19=y10^y8 y16=t0^y11 y21=y13^y16 y18=x0^y16
t2=y12&y15 t3=y3&y6 t4=t3^t2 t5=y4&x7 t6=t5^t2 t7=y13&y16 t8=y5&y1 t9=t8^t7 t10=y2&y7 t11=t10^t7 t12=y9&y11
t13=y14&y17 t14=t13^t12 t15=y8&y10 t16=t15^t12 t17=t4^t14 t18=t6^t16 t19=t9^t14 t20=t11^t16 t21=t17^y20 t22=t18^y19
t23=t19^y21 t24=t20^y18 t25=t21^t22 t26=t21&t23 t27=t24^t26 t28=t25&t27 t29=t28^t22 t30=t23^t24 t31=t22^t26
t32=t31&t30 t33=t32^t24 t34=t23^t33 t35=t27^t33 t36=t24&t35 t37=t36^t34 t38=t27^t36 t39=t29&t38 t40=t25^t39
t41=t40^t37 t42=t29^t33 t43=t29^t40 t44=t33^t37 t45=t42^t41 z0=t44&y15 z1=t37&y6 z2=t33&x7 z3=t43&y16 z4=t40&y1
z5=t29&y7 z6=t42&y11 z7=t45&y17 z8=t41&y10 z9=t44&y12 z10=t37&y3 z11=t33&y4 z12=t43&y13 z13=t40&y5 z14=t29&y2
z15=t42&y9 z16=t45&y14 z17=t41&y8 t46=z15^z16 t47=z10^z11 t48=z5^z13 t49=z9^z10 t50=z2^z12 t51=z2^z5 t52=z7^z8
t53=z0^z3 t54=z6^z7 t55=z16^z17 t56=z12^t48 t57=t50^t53 t58=z4^t46 t59=z3^t54 t60=t46^t57 t61=z14^t57 t62=t52^t58
t63=t49^t58 t64=z4^t59 t65=t61^t62 t66=z1^t63 s0=t59^t63 s6=t56^t62 s7=t48^t60 t67=t64^t65 s3=t53^t66 s4=t51^t66
s5=t47^t65 s1=t64^s3 s2=t55^t67
"""
_CONSTANT = 0x63  # of the S-box
_SHIFTED = [r + 4 * ((c + r) % 4) for c in range(4) for r in range(4)]  # which byte ShiftRows puts at r + 4 c


Held = TypeVar("Held")


@cache
def _gates() -> tuple[tuple[str, str, bool, str], ...]:
    """Target, left, whether it is and, right."""
    cut = [gate.replace("=", " ").replace("^", " ^ ").replace("&", " & ").split() for gate in _GATES.split()]
    return tuple((target, left, sign == "&", right) for target, left, sign, right in cut)


def _through(byte: list[Held], add: Callable[[Held, Held], Held], times: Callable[[Held, Held], Held]) -> list[Held]:
    """The S-box without its constant on the eight bits of a byte, the lowest first."""
    held = {f"x{7 - i}": bit for i, bit in enumerate(byte)}
    for target, left, is_and, right in _gates():
        held[target] = (times if is_and else add)(held[left], held[right])
    return [held[f"s{7 - i}"] for i in range(8)]


@cache
def substitution() -> Program:
    """The S-box without its constant, on the eight planes of a byte, the lowest first."""
    b = Builder()
    loaded: list[int | None] = [b.load(0, i) for i in range(8)]
    return b.finish(_through(loaded, b.xor, b.land))


def _substituted(word: list[int]) -> list[int]:
    """The S-box on the bytes of a key, by the same gates on whole numbers."""
    bits = [sum((value >> i & 1) << at for at, value in enumerate(word)) for i in range(8)]
    image = _through(bits, xor, and_)
    return [sum((image[i] >> at & 1) << i for i in range(8)) ^ _CONSTANT for at in range(len(word))]


def _schedule(key: prg.Key) -> list[list[int]]:
    """The eleven round keys, 16 bytes each."""
    raw, factor = list(key.expose_for_sending()), 1
    words = [raw[i : i + 4] for i in range(0, prg.KEY_BYTES, 4)]
    for i in range(4, 4 * (ROUNDS + 1)):
        last = words[-1]
        if i % 4 == 0:
            last = _substituted([*last[1:], last[0]])
            last[0] ^= factor
            factor = (factor << 1) ^ (0x11B if factor & 0x80 else 0)
        words.append([a ^ b for a, b in zip(words[i - 4], last, strict=True)])
    return [[value for word in words[i : i + 4] for value in word] for i in range(0, len(words), 4)]


def _round_keys(key: prg.Key, device: torch.device) -> Tensor:
    """Round keys as words of zeros or ones: int64 ``(11, 8, 16, 1)`` by round, bit and byte."""
    keys = torch.tensor(_schedule(key), dtype=torch.int64)
    keys[1:] ^= _CONSTANT
    bits = (keys.unsqueeze(1) >> torch.arange(8).reshape(1, 8, 1)) & 1
    return devices.place((-bits).unsqueeze(-1), device)


@cache
def _order(device: torch.device) -> Tensor:
    return devices.place(torch.tensor(_SHIFTED), device)


def _encrypted(keys: Tensor, state: Tensor) -> Tensor:
    """All rounds on planes int64 ``(8, 16, words)``."""
    order, shape = _order(state.device), state.shape
    state = state ^ keys[0]
    for i in range(1, ROUNDS + 1):
        state = substitution().by_torch(state.reshape(8, -1)).reshape(shape).index_select(1, order)
        if i < ROUNDS:
            state = _mixed(state.reshape(8, 4, 4, -1)).reshape(shape)
        state ^= keys[i]
    return state


def _mixed(a: Tensor) -> Tensor:
    """MixColumns on planes ``(8, columns, rows, words)``."""
    after = a.roll(-1, 2)
    pairs = a ^ after
    doubled = pairs.roll(1, 0)
    for bit in (1, 3, 4):  # and bit 0, where the roll has put it: 2^8 = 2^4 + 2^3 + 2 + 1
        doubled[bit].bitwise_xor_(pairs[7])
    doubled ^= after
    doubled ^= pairs.roll(-2, 2)
    return doubled


def _blocks(keys: Tensor, high: int, low: Tensor) -> Tensor:
    """The images of counters ``2^64 high + low``, low int64 ``(n,)`` as the bits lie, n a multiple of 64:
    uint8 ``(n, 16)``."""
    n = len(low)
    upper = low.new_zeros((n, 8), dtype=torch.uint8)
    for i, byte in enumerate(high.to_bytes(8, "big")):
        if byte:
            upper[:, i] = byte
    counters = torch.cat([upper, low.view(torch.uint8).reshape(n, 8).flip(1)], 1)
    lanes = planes.turned(counters.reshape(n // 8, 8, 16).permute(2, 0, 1))  # (16, n / 8, bit)
    state = lanes.permute(2, 0, 1).contiguous().view(torch.int64)
    made = _encrypted(keys, state).view(torch.uint8).permute(1, 2, 0)
    return planes.turned(made).permute(1, 2, 0).reshape(n, prg.BLOCK)


def keystream(key: prg.Key, first_block: int, size: int, device: torch.device) -> Tensor:
    """:func:`protocols.prg.keystream` on ``device``: ``size`` bytes from block ``first_block`` on."""
    out = torch.empty(size, dtype=torch.uint8, device=device)
    keys, at = _round_keys(key, device), 0
    while at < size:
        high, low = divmod((first_block + at // prg.BLOCK) % (_WRAP * _WRAP), _WRAP)
        n = min(-(-(size - at) // prg.BLOCK), _CHUNK, _WRAP - low)  # a chunk does not carry into the upper half
        signed = low - _WRAP if low >= _WRAP >> 1 else low
        counters = torch.arange(_filled(n), device=device) + signed
        part = out[at : at + n * prg.BLOCK]
        part.copy_(_blocks(keys, high, counters).reshape(-1)[: len(part)])
        at += len(part)
    return out


def blocks_at(key: prg.Key, positions: Tensor) -> Tensor:
    """:func:`protocols.prg.blocks_at` where ``positions`` (int64, not negative) lie: uint8 ``(*shape, 16)``."""
    line = positions.reshape(-1)
    keys, out = _round_keys(key, positions.device), line.new_empty((len(line), prg.BLOCK), dtype=torch.uint8)
    for at in range(0, len(line), _CHUNK):
        part = line[at : at + _CHUNK]
        counters = line.new_zeros(_filled(len(part)))
        counters[: len(part)] = part
        out[at : at + len(part)] = _blocks(keys, 0, counters)[: len(part)]
    return out.reshape(*positions.shape, prg.BLOCK)


def _filled(n: int) -> int:
    """Whole words of lanes."""
    return -(-n // _LANES) * _LANES
