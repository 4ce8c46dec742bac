"""Guards that notice any turned bit, by keyed sums of groups of weights; they differ in what they do then.

The sum of a group is sum_i a_i w_i mod p, p = 2^31 - 1, over its words' digits w_i of 16 bits, with secret a_i that
all groups have in common. Whoever does not know them alters a group unseen with probability 1 / p, whatever bits he
turns (Carter and Wegman, 1979). The sums and the key are kept where the attacker cannot write, and the key where he
cannot read. They cost 31 bits a group and one pass over the weights for each check; they apply to any words: codes,
weights, or a server's shares of them.

==============  =====================================================================================================
GroupChecksums  an altered group is computed with as zeros (after RADAR: Li et al., DATE 2021)
GroupRepair     up to ``errors`` turned bits of a group are found and turned back; with more it is zeros
GroupRestoring  an altered group is read again from a copy elsewhere; where that is altered too it is zeros
==============  =====================================================================================================

A keyed sum finds errors as well as it sees them: bit j of word i moves it by +-2^j a_i, and of the N ways to turn a few
bits of a group hardly two move it alike. A wrong repair has probability N / p (16 codes of 8 bits, 2 errors: 4e-6), and
unlike with a public code, such as that of memory with error correction, nobody can construct one.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqi.audit.defences.guards import Groups, Guard, sized
from pqi.audit.errors import AuditError
from pqi.audit.memory import Flip, Stored

PRIME = (1 << 31) - 1
SUM_BITS = 31
MAX_ERRORS = 3
MAX_WRONG = 0.01
_DIGIT = 16


class GroupChecksums(Guard):
    """A group of ``size`` weights whose keyed sum has changed is computed with as zeros.

    What is left to the attacker is to have groups of his choice left out, one a bit. interleaved: see ``Groups``.
    """

    errors = 0

    def __init__(self, layers: Mapping[str, Stored], size: int = 16, interleaved: bool = False) -> None:
        self.size, self.kept_bits = sized(size), SUM_BITS / size
        self._bits = {name: layer.bits for name, layer in layers.items()}
        self.groups = {name: Groups(layer.codes.shape, size, interleaved) for name, layer in layers.items()}
        digits = max((_digits_of(bits) for bits in self._bits.values()), default=1)
        drawn = np.frombuffer(secrets.token_bytes(8 * size * digits), np.uint64) % np.uint64(PRIME)
        self._key = torch.from_numpy(drawn.astype(np.int64)).view(size, digits)
        self._halves = torch.stack([self._key >> _DIGIT, self._key & ((1 << _DIGIT) - 1)], -1).to(torch.float64)
        self._right = {name: self.sums(name, layer.codes) for name, layer in layers.items()}

    def sums(self, layer: str, codes: Tensor) -> Tensor:
        """The keyed sums, int64 (groups,), in [0, p)."""
        groups, cut = self.groups[layer], _cut(codes, self._bits[layer]).to(torch.float64)
        missing = groups.count * self.size - len(cut)
        if missing:
            cut = torch.cat([cut, cut.new_zeros(missing, cut.shape[1])])
        if groups.interleaved:
            cut = cut.view(self.size, groups.count, -1).transpose(0, 1)
        # Products of 16 bits by 16 in float64 are exact, and so are the sums of 2^20 of them.
        halves = cut.reshape(groups.count, -1) @ self._halves[:, : cut.shape[-1]].reshape(-1, 2)
        high, low = (half % PRIME for half in halves.to(torch.int64).unbind(1))
        return ((high << _DIGIT) + low) % PRIME

    def altered(self, layer: str, codes: Tensor) -> Tensor:
        """Which groups are not as they were, bool (groups,)."""
        return self.sums(layer, codes) != self._right[layer]

    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes; what altered groups become is ``_settled``'s."""
        altered = self.altered(layer, codes)
        if not bool(altered.any()):
            return codes
        rows = self.groups[layer].rows(codes).clone()
        for group in altered.nonzero().flatten().tolist():
            rows[group] = self._settled(layer, group, rows[group])
        return self.groups[layer].flat(rows)

    def _settled(self, layer: str, group: int, row: Tensor) -> Tensor:
        return torch.zeros_like(row)

    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """What leaving out the whole group does; nothing more for a group that is out already."""
        groups = self.groups[layer]
        lost = groups.rows(-(slope * self.settle(layer, now.codes))).sum(1)
        return groups.each(lost).flatten().expand(now.bits, -1)

    def move(self, flip: Flip, turned: Iterable[Flip]) -> tuple[Flip, ...]:
        """The bit and so many more of its group that it cannot be repaired, from the top."""
        groups, before = self.groups[flip.layer], set(turned)
        group = groups.of(flip.index)
        there = sum(each.layer == flip.layer and groups.of(each.index) == group for each in before)
        chosen = [flip]
        for bit, index in product(reversed(range(self._bits[flip.layer])), groups.members(group)):
            other = Flip(flip.layer, index, bit)
            if len(chosen) + there > self.errors:
                break
            if other != flip and other not in before:
                chosen.append(other)
        return tuple(chosen)


class GroupRepair(GroupChecksums):
    """Up to ``errors`` (1 to 3) turned bits of a group are found by its sum and turned back, exactly; else zeros.

    The attacker must turn errors + 1 bits of a group to have it left out. A search costs about n^2 steps for n bits of
    a group, and is made for altered groups only. wrong: the probability that more bits are taken for fewer others.
    """

    def __init__(
        self, layers: Mapping[str, Stored], size: int = 16, errors: int = 2, interleaved: bool = False
    ) -> None:
        if not 1 <= errors <= MAX_ERRORS:
            raise AuditError(f"errors = {errors}: 1 to {MAX_ERRORS} turned bits of a group can be turned back")
        super().__init__(layers, size, interleaved)
        self.errors = errors
        self.wrong = sum(comb(size * max(self._bits.values(), default=1), n) for n in range(1, errors + 1)) / PRIME
        if self.wrong > MAX_WRONG:
            raise AuditError(
                f"{errors} turned bits of {size} words would be repaired wrongly with probability {self.wrong:.2g}: "
                f"at most {MAX_WRONG:.2g} is allowed; repair fewer, or take smaller groups"
            )

    def _settled(self, layer: str, group: int, row: Tensor) -> Tensor:
        found = self._found(layer, group, row)
        if found is None:
            return torch.zeros_like(row)
        bits, repaired = self._bits[layer], row.clone()
        for place in found:
            repaired[place // bits] ^= _mask(place % bits, bits)
        return repaired

    def _found(self, layer: str, group: int, row: Tensor) -> tuple[int, ...] | None:
        """The fewest bits, as word * bits + bit, that bring the sum back when they are turned; None: there are none."""
        moves, off = self._moves(layer, row), self._off(layer, group, row)
        once = np.flatnonzero(moves == off)
        if len(once):
            return (int(once[0]),)
        order = np.argsort(moves)
        if self.errors >= 2 and (pair := _pair(moves, order, off)) is not None:
            return pair
        for first in range(len(moves)) if self.errors >= 3 else ():
            pair = _pair(moves, order, (off - moves[first]) % PRIME)
            if pair is not None and first not in pair:
                return (first, *pair)
        return None

    def _moves(self, layer: str, row: Tensor) -> NDArray[np.int64]:
        """By how much turning each bit of the row moves its sum, mod p."""
        bits, columns = self._bits[layer], []
        for bit in range(bits):
            step = (1 << (bit % _DIGIT)) * self._key[:, bit // _DIGIT]
            if bit % _DIGIT == _DIGIT - 1 or bit == bits - 1:  # a digit's sign
                step = -step
            columns.append(torch.where((row >> bit) & 1 == 1, -step, step) % PRIME)
        moves: NDArray[np.int64] = torch.stack(columns, 1).flatten().numpy()
        return moves

    def _off(self, layer: str, group: int, row: Tensor) -> int:
        digits = _cut(row, self._bits[layer])
        total = int((digits.to(torch.int64) * self._key[:, : digits.shape[1]]).sum())
        return (int(self._right[layer][group]) - total) % PRIME


class GroupRestoring(GroupChecksums):
    """An altered group is read again, from where the attacker does not write: the model's file, another machine.

    copy: a layer's codes by its name, called for each altered layer. What it gives is believed group by group if its
    sums are right: the copy may be anywhere, and altered groups of it become zeros.

    Nothing that is turned before a check outlives it. With a check before each answer no answer is ever wrong, but for
    bits turned during it; with one every n answers a bit spoils at most n.
    """

    def __init__(
        self,
        layers: Mapping[str, Stored],
        copy: Callable[[str], Tensor],
        size: int = 64,
        interleaved: bool = False,
    ) -> None:
        super().__init__(layers, size, interleaved)
        self._copy = copy

    def settle(self, layer: str, codes: Tensor) -> Tensor:
        """The codes as they should be."""
        altered = self.altered(layer, codes)
        if not bool(altered.any()):
            return codes
        groups, fresh = self.groups[layer], self._copy(layer)
        restored = torch.where(groups.each(altered), fresh, codes)
        return torch.where(groups.each(self.altered(layer, restored)), 0, restored)

    def gains(self, layer: str, now: Stored, slope: Tensor) -> Tensor:
        """Nothing: whatever is turned is restored."""
        return torch.zeros(now.bits, now.codes.numel(), dtype=slope.dtype)


def _digits_of(bits: int) -> int:
    return -(-bits // _DIGIT)


def _cut(codes: Tensor, bits: int) -> Tensor:
    """Words as digits of 16 bits in two's complement, the lowest first: int16 (words, digits)."""
    cut = codes.reshape(-1).contiguous().view(torch.int16).view(-1, 64 // _DIGIT)
    return (cut if sys.byteorder == "little" else cut.flip(1))[:, : _digits_of(bits)]


def _pair(moves: NDArray[np.int64], order: NDArray[np.intp], off: int) -> tuple[int, int] | None:
    """Two different bits whose moves add up to ``off`` mod p."""
    wanted = (off - moves) % PRIME
    at = np.searchsorted(moves, wanted, sorter=order)
    partner = order[np.minimum(at, len(order) - 1)]
    good = np.flatnonzero((moves[partner] == wanted) & (partner != np.arange(len(moves))))
    return (int(good[0]), int(partner[good[0]])) if len(good) else None


def _mask(bit: int, bits: int) -> int:
    """What turns this bit of a word in two's complement of ``bits`` bits, as it lies sign-extended in 64."""
    return -(1 << bit) if bit == bits - 1 else 1 << bit
