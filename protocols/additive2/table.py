"""Look-up in a one-time table, alone and fused with an exact shift.

``<x>_t -> <T[x]>``: with r uniform and ``x^ = x + r`` open (one exchange, t bits), the parties read their shares of
``T[j - r]`` at j = x^. One entry of 2^t is ever read; P0 computes its share of just that entry.

Fused with the shift, ``<z>_k -> <T[floor(z / 2^s)]>``: open ``z^ = z + rho`` (k bits), then the masked borrow
``e = G[z^ mod 2^s]``, ``G[j] = [j < rho_lo] xor gamma`` (1 bit), then read ``U[v][e] = T[v - rho_hi - (e xor gamma)]``:
two exchanges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocols import api, ring
from protocols.additive2.kernel import Dealing, Kernel, Party
from protocols.additive2.material import Field, Kind
from protocols.cost import Cost, message
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
        at = (torch.arange(1 << step.bits) - r.unsqueeze(-1)) & ((1 << step.bits) - 1)
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
            Field("borrow", Kind.DEALT, step.count << step.shift, 1),
            Field("table", Kind.TABLE, step.count, step.ring_out, 2 << t),
        )

    def online(self, step: api.FusedTable, n: int) -> Cost:
        """z^, then one bit."""
        return message(n * step.count, step.ring) + message(n * step.count, 1)

    def deal(self, step: api.FusedTable, name: str, inputs: tuple[str, ...], d: Dealing) -> None:
        """G and U; entry 2v + e of the table is U[v][e]."""
        t = step.ring - step.shift
        rho = ring.unsigned(d.mask(name, "rho"), step.ring).to(torch.int64)
        low, high = rho & ((1 << step.shift) - 1), rho >> step.shift
        gamma = ring.unsigned(d.random.words(tuple(rho.shape), 1), 1).to(torch.int64)
        borrow = (torch.arange(1 << step.shift) < low.unsqueeze(-1)).to(torch.int64) ^ gamma.unsqueeze(-1)
        d.give_xor(name, "borrow", borrow.flatten(1))
        v, e = torch.arange(1 << t).repeat_interleave(2), torch.arange(2).repeat(1 << t)
        at = (v - high.unsqueeze(-1) - (e ^ gamma.unsqueeze(-1))) & ((1 << t) - 1)
        rows = ring.to_word(_rows(step, d.operands[f"{name}.table"]), step.ring_out)
        d.give_table(name, "table", rows.expand(d.n, *rows.shape).gather(2, at))

    def prepare(self, step: api.FusedTable, name: str, inputs: tuple[str, ...], p: Party) -> Ready:
        """Read rho and the borrow table's share."""
        g = p.material.take(name, "borrow").reshape(p.n, step.count, 1 << step.shift)
        return {"rho": p.material.take(name, "rho"), "borrow": g}

    def run(self, step: api.FusedTable, name: str, p: Party, ready: Ready, x: Tensor) -> Steps[Tensor]:
        """Open, read and open the borrow, read."""
        share = ring.to_word(x.reshape(p.n, step.count), step.ring) + ready["rho"]
        opened = yield from p.open(name, share, step.ring)
        z_hat = ring.unsigned(opened, step.ring)
        u = (z_hat & ((1 << step.shift) - 1)).to(torch.int64)
        own = ready["borrow"].gather(2, u.unsqueeze(-1)).squeeze(-1)
        e = (yield from p.open_bits(f"{name}.borrow", own, 1)) & 1
        index = ((z_hat >> step.shift) << 1) + e
        return p.material.read_table(name, "table", index).reshape(p.n, *step.shape)
