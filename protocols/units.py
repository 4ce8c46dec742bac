"""Linear maps in the form that the compiled products take: planes of taps, and where each tap begins.

Built once per weight (:func:`convolution`, :func:`dense`), applied many times. See :mod:`protocols.native.multiply` for
the arithmetic; whoever asks for a map here has seen that ``native.products()`` is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols import native, ring

if TYPE_CHECKING:
    from protocols.linmap import ConvMap

_BEYOND = 160  # columns that the last tile may read beyond a plane's end


@dataclass(frozen=True, eq=False)
class Taps:
    """A matrix of taps (rows filled up to whole tiles). high: how many belong to the cross sum. up: its shift."""

    matrix: NDArray[np.int32]
    places: NDArray[np.int32]
    kind: int
    high: int
    up: int
    tile: int

    def loop(self, columns: NDArray[np.int32], pitch: int, add: NDArray[Any], out: NDArray[Any]) -> None:
        """``out = taps . columns + add``."""
        _kernels().convolve(self.kind, self.tile)(
            self.matrix, self.places, columns, self.high, self.up, pitch, add, out
        )  # fmt: skip


def _kernels() -> ModuleType:
    made = native.products()
    if made is None:
        raise RuntimeError("a map of compiled products is used where they are switched off; prepare the weights again")
    return made


def _kind(bits: int) -> int:
    """The kind of sums that products mod 2^bits take."""
    k = _kernels()
    kinds = {8: k.BYTES, 16: k.WORDS, 20: k.MIXED_WORDS, 24: k.BYTES_WORDS, 32: k.WORDS_WORDS}
    found: int = kinds[min(most for most in kinds if bits <= most)]
    return found


def _up(kind: int, bits: int) -> int:
    """The cross sum's shift: where it stands, or, of a mixed one, what is left of it."""
    return 32 - bits if kind == _kernels().MIXED_WORDS else 16


def _parts(kind: int) -> tuple[tuple[int, int], ...]:
    """Planes on either side for the upper part (two products) and the lower one: (of x, of w), as in ``spread``."""
    k = _kernels()
    upper: dict[int, tuple[tuple[int, int], ...]] = {
        k.MIXED_WORDS: ((k.MIXED, k.MIXED),),
        k.BYTES_WORDS: ((k.HIGH_QUADS, k.QUADS), (k.QUADS, k.HIGH_QUADS)),
        k.WORDS_WORDS: ((k.HIGH_PAIRS, k.PAIRS), (k.PAIRS, k.HIGH_PAIRS)),
    }
    lower = (k.QUADS, k.QUADS) if kind == k.BYTES else (k.PAIRS, k.PAIRS)
    return (*upper.get(kind, ()), lower)


def _packed(x: NDArray[Any], what: int, bits: int) -> NDArray[np.int32]:
    """Numbers along the last axis as taps: pairs of 16 bits or fours of 8, filled up with zeros."""
    k = _kernels()
    low = x.astype(np.int16)
    part: NDArray[Any] = low
    if what in (k.MIXED, k.HIGH_PAIRS, k.HIGH_QUADS):
        part = (x.astype(np.int64) - low) >> 16
        part = low + (part << (bits - 16)) if what == k.MIXED else part
    word, count = (np.int16, 2) if _width(what) == 2 else (np.int8, 4)
    missing = -x.shape[-1] % count
    filled = np.concatenate([part, np.zeros((*part.shape[:-1], missing), part.dtype)], -1) if missing else part
    return np.ascontiguousarray(filled.astype(word)).view(np.int32)


@dataclass(frozen=True, eq=False)
class UnitConvolution:
    """A convolution prepared for one weight, a matrix of taps for each group.

    kinds, channels, phases: what each plane holds; channels count from the group's first.
    """

    taps: tuple[Taps, ...]
    kinds: NDArray[np.int64]
    channels: NDArray[np.int64]
    phases: NDArray[np.int64]
    pitch: int
    size: int

    def apply(self, m: ConvMap, x: Tensor, bits: int, add: Tensor | None) -> Tensor:
        """``W . x (+ add)``: x ``(n, C, H, W)`` words -> ``(n, O, rows, cols)`` words."""
        out = torch.empty((x.shape[0], *m.out_shape), dtype=ring.word(bits))
        fast, per, inner = _kernels(), m.outputs // m.groups, m.channels // m.groups
        more = torch.zeros((1, 1, 1, 1), dtype=out.dtype).expand(out.shape) if add is None else add.expand(out.shape)
        values, results, added = x.contiguous().numpy(), out.numpy(), more.numpy()
        stride, padding, mix = np.array(m.stride), np.array(m.padding), max(bits - 16, 0)
        for i in range(len(values)):
            for g, taps in enumerate(self.taps):
                planes, channels = np.empty((len(self.kinds), self.size), np.int32), self.channels + g * inner
                fast.spread_all(
                    values[i], self.kinds, mix, channels, self.phases, stride, padding, self.pitch, planes
                )  # fmt: skip
                part = slice(g * per, (g + 1) * per)
                taps.loop(planes.reshape(-1), self.pitch, added[i, part], results[i, part])
        return out


def convolution(m: ConvMap, weight: Tensor, bits: int) -> UnitConvolution:
    """Prepare words ``weight`` of a convolution (not depthwise) for products mod 2^bits."""
    kind, (sh, sw) = _kind(bits), m.stride
    rows = m.out_size[0]
    taps_at = [(i * m.dilation[0], j * m.dilation[1]) for i in range(m.kernel[0]) for j in range(m.kernel[1])]
    phases = sorted({(i % sh, j % sw) for i, j in taps_at})
    pitch = -(-(m.width + 2 * m.padding[1]) // sw)
    lines = -(-(m.height + 2 * m.padding[0]) // sh)
    size = max(lines * pitch, rows * pitch + max(i // sh * pitch + j // sw for i, j in taps_at)) + _BEYOND
    per, inner = m.outputs // m.groups, m.channels // m.groups
    w = weight.reshape(m.groups, per, inner, -1).numpy().transpose(0, 1, 3, 2)  # channels last: they share a tap
    tile = _best_tile(per, rows * pitch)
    parts = _parts(kind)
    held = sorted({of_x for of_x, _ in parts})
    first, places = {}, []
    kinds: list[int] = []
    firsts: list[int] = []
    for what in held:
        first[what] = len(kinds)
        for c in range(0, inner, _width(what)):
            kinds += [what] * len(phases)
            firsts += [c] * len(phases)
    for of_x, _ in parts:
        for i, j in taps_at:
            phase, shift = phases.index((i % sh, j % sw)), i // sh * pitch + j // sw
            groups = range(-(-inner // _width(of_x)))
            places += [(first[of_x] + c * len(phases) + phase) * size + shift for c in groups]
    high = sum(len(taps_at) * -(-inner // _width(of_x)) for of_x, _ in parts[:-1])
    taps = []
    for g in range(m.groups):
        matrix = np.concatenate([_packed(w[g], of_w, bits).reshape(per, -1) for _, of_w in parts], 1)
        taps.append(Taps(_filled(matrix, tile), np.array(places, np.int32), kind, high, _up(kind, bits), tile))
    return UnitConvolution(
        tuple(taps),
        np.array(kinds),
        np.array(firsts),
        np.array([phases[p % len(phases)] for p in range(len(kinds))]).reshape(-1, 2),
        pitch,
        size,
    )


@dataclass(frozen=True, eq=False)
class UnitDense:
    """A dense map prepared for one weight: its taps are the columns, and the inputs the rows."""

    columns: NDArray[np.int32]
    places: NDArray[np.int32]
    kind: int
    high: int

    def apply(self, x: Tensor, outputs: int, bits: int, add: Tensor | None) -> Tensor:
        """``W . x (+ add)``: x ``(rows, inputs)`` words -> ``(rows, outputs)`` words."""
        tile = 3 if len(x) == 1 else _best_tile(len(x), outputs)
        out = torch.empty((len(x), outputs), dtype=ring.word(bits))
        if not out.numel():
            return out
        more = torch.zeros((1, 1), dtype=out.dtype).expand(out.shape) if add is None else add.expand(out.shape)
        matrix = _filled(np.concatenate([_packed(x.numpy(), of_x, bits) for of_x, _ in _parts(self.kind)], 1), tile)
        taps = Taps(matrix, self.places, self.kind, self.high, _up(self.kind, bits), tile)
        taps.loop(self.columns, outputs, more.numpy()[:, None], out.numpy()[:, None])
        return out


def dense(weight: Tensor, bits: int) -> UnitDense:
    """Prepare words ``weight`` ``(outputs, inputs)`` for products mod 2^bits."""
    kind, w = _kind(bits), weight.numpy()
    blocks = [_packed(w, of_w, bits).T for _, of_w in _parts(kind)]
    size = w.shape[0] + _BEYOND
    columns = np.zeros((sum(map(len, blocks)), size), np.int32)
    columns[:, : w.shape[0]] = np.concatenate(blocks)
    places = np.arange(len(columns), dtype=np.int32) * size
    return UnitDense(columns.reshape(-1), places.astype(np.int32), kind, sum(map(len, blocks[:-1])))


def _width(what: int) -> int:
    """Neighbouring channels in one tap of a plane."""
    k = _kernels()
    quads: bool = what in (k.QUADS, k.MIXED, k.HIGH_QUADS)
    return 4 if quads else 2


def _best_tile(rows: int, columns: int) -> int:
    """The tile that wastes least on ``rows`` and ``columns`` that do not fill whole tiles."""

    tiles: tuple[tuple[int, int], ...] = _kernels().TILES

    def work(tile: int) -> int:
        step, vectors = tiles[tile]
        return -(-rows // step) * step * -(-columns // (16 * vectors)) * vectors

    return min(range(3), key=work)


def _filled(matrix: NDArray[np.int32], tile: int) -> NDArray[np.int32]:
    """Rows of zeros up to whole tiles."""
    missing = -len(matrix) % _kernels().TILES[tile][0]
    return np.ascontiguousarray(np.concatenate([matrix, np.zeros((missing, matrix.shape[1]), np.int32)]))
