"""Look-up in a one-time table, alone and fused with an exact shift.

``<x>_t -> <T[x]>``: with r uniform and ``x^ = x + r`` open (one exchange, t bits), the parties read their shares of
``T[j - r]`` at j = x^. One entry of 2^t is ever read; P0 computes its share of just that entry.

Fused with the shift, ``<z>_k -> <T[floor(z / 2^s)]>``: open ``z^ = z + rho`` (k bits), then the masked borrow
``e = G[z^ mod 2^s]``, ``G[j] = [j < rho_lo] xor gamma`` (1 bit), then read ``U[v][e] = T[v - rho_hi - (e xor gamma)]``:
two exchanges.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from protocols import api, planes, ring
from protocols.additive2 import compare
from protocols.additive2.clamp import bit_words
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message, plane_message
from protocols.rounds import Steps

Ready = dict[str, Tensor]


def _rows(step: api.Table | api.FusedTable, table: Tensor) -> Tensor:
    """The table of every value: a view ``(count, 2^t)`` of the operand ``(channels, 2^t)``."""
    per = step.count // step.channels
    return table.unsqueeze(1).expand(step.channels, per, table.shape[1]).reshape(step.count, -1)


class TableKernel(Kernel[api.Table]):
    """One exchange; 2^t entries dealt per value."""

    def fields(self, step: api.Table) -> tuple[Field, ...]:
        """r and the rotated table."""
        table = Field("table", Kind.TABLE, step.count, step.ring_out, 1 << step.bits)
        return (Field("r", Kind.MASK, step.count, step.bits), table)

    def online(self, step: api.Table, n: int) -> Cost:
        """One opening of the index."""
        return message(n * step.count, step.bits)

    def deal(self, step: api.Table, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """``T[j - r]``."""
        r = ring.unsigned(d.mask(name, "r"), step.bits).to(torch.int64)
        rows = ring.to_word(_rows(step, d.operands[f"{name}.table"]), step.ring_out)
        at = (torch.arange(1 << step.bits, device=d.device) - r.unsqueeze(-1)) & ((1 << step.bits) - 1)
        d.give_table(name, "table", rows.expand(d.n, *rows.shape).gather(2, at))

    def prepare(self, step: api.Table, name: str, inputs: tuple[str, ...], p: Party) -> Ready:
        """Read r; the table is read online."""
        return {"r": p.material.take(name, "r")}

    def run(self, step: api.Table, name: str, p: Party, ready: Ready, x: Tensor) -> Steps[Tensor]:
        """Open the index, read."""
        share = ring.to_word(x.reshape(p.n, step.count), step.bits) + ready["r"]
        opened = yield from p.open(name, share, step.bits)
        y = p.material.read_table(name, "table", ring.unsigned(opened, step.bits))
        return y.reshape(p.n, *step.shape)


class FusedTableKernel(Kernel[api.FusedTable]):
    """Two exchanges; 2^s bits and 2^(t+1) entries dealt per value."""

    def fields(self, step: api.FusedTable) -> tuple[Field, ...]:
        """rho, the masked borrow table, the table over (v, e)."""
        t = step.ring - step.shift
        return (
            Field("rho", Kind.MASK, step.count, step.ring),
            Field("borrow", Kind.BITS, step.count, 1 << step.shift),
            Field("gamma", Kind.DEALER, step.count, 1),
            Field("table", Kind.TABLE, step.count, step.ring_out, 2 << t),
        )

    def online(self, step: api.FusedTable, n: int) -> Cost:
        """z^, then one bit."""
        return plane_message(n, step.count, step.ring) + plane_message(n, step.count, 1)

    def deal(self, step: api.FusedTable, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """G and U; entry 2v + e of the table is U[v][e]."""
        t = step.ring - step.shift
        rho = ring.unsigned(d.mask(name, "rho"), step.ring).to(torch.int64)
        mask = d.own(name, "gamma")
        low = planes.extract(planes.level(d.mask(name, "rho")), 0, step.shift)
        d.give_planes(name, "borrow", lambda first: _borrow_dealing(step.shift).run(low, mask, first))
        high, gamma = rho >> step.shift, bit_words(mask, d.n, step.count, torch.int64)
        entry = torch.arange(2 << t, device=d.device)
        v, e = entry >> 1, entry & 1
        at = (v - high.unsqueeze(-1) - (e ^ gamma.unsqueeze(-1))) & ((1 << t) - 1)
        rows = ring.to_word(_rows(step, d.operands[f"{name}.table"]), step.ring_out)
        d.give_table(name, "table", rows.expand(d.n, *rows.shape).gather(2, at))

    def prepare(self, step: api.FusedTable, name: str, inputs: tuple[str, ...], p: Party) -> Ready:
        """Read rho and the borrow table's share."""
        return {key: p.material.take(name, key) for key in ("rho", "borrow")}

    def run(self, step: api.FusedTable, name: str, p: Party, ready: Ready, x: Tensor) -> Steps[Tensor]:
        """Open, read and open the borrow, read."""
        share = planes.level(ring.to_word(x.reshape(p.n, step.count), step.ring))
        own = planes.extract_sum(share, planes.level(ready["rho"]), step.ring)
        other = yield from p.swap_planes(name, own)
        first = _borrow_reading(step.ring, step.shift).run(own, other, ready["borrow"])
        e = yield from p.open_planes(f"{name}.borrow", first[-1:])
        # entry 2v + e: the opened bit is the lowest of the index
        index = planes.insert(torch.cat([e, first[:-1]]), 0, share.new_zeros(len(share), dtype=torch.int32))
        return p.material.read_table(name, "table", planes.rows(index, p.n, step.count)).reshape(p.n, *step.shape)


@cache
def _borrow_dealing(shift: int) -> planes.Program:
    """Planes of rho's low bits, gamma, P0's planes -> P1's: ``[j < rho] xor gamma`` for every j."""
    b = planes.Builder()
    table = compare.less(b, [b.load(0, i) for i in range(shift)])
    masked = [b.xor(entry, b.load(1, 0)) for entry in table]
    return b.finish([b.xor(entry, b.load(2, j)) for j, entry in enumerate(masked)])


@cache
def _borrow_reading(bits: int, shift: int) -> planes.Program:
    """Both shares of z^, the dealt planes -> z^ above ``shift``, and this party's share of the masked borrow."""
    b = planes.Builder()
    z = [x for x in b.add([b.load(0, i) for i in range(bits)], [b.load(1, i) for i in range(bits)]) if x is not None]
    return b.finish([*z[shift:], b.select([b.load(2, j) for j in range(1 << shift)], z[:shift])])
