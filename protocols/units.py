"""Linear maps in the form that the compiled products take: planes of taps, and where each tap begins.

Built once per weight (:func:`convolution`, :func:`dense`), applied many times. See :mod:`protocols.native.multiply` for
the arithmetic; whoever asks for a map here has seen that ``native.products()`` is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
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
_TALLEST = 16  # rows of the tallest tile: so many less one may be read beyond a matrix's end
_TOGETHER_BYTES = 640 << 10  # columns of several images side by side: they stay in the second-level cache
_MOST_TOGETHER = 64  # images
_LINE = 3  # the tile for a single row
_TOGETHER = 32  # what putting a column there costs, in rows of the product


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


@dataclass(frozen=True)
class _Way:
    """How the columns of up to ``images`` images are laid out for one product, and by which tile it goes.

    together: each tap's columns side by side, without what padding lies between them; else the shifted planes of a
    single image. work: sums of vectors for each tap.
    """

    together: bool
    images: int
    tile: int
    work: float


@dataclass(frozen=True, eq=False)
class UnitConvolution:
    """A convolution prepared for one weight, a matrix of taps (with rows of zeros behind it) for each group.

    high: how many taps belong to the cross sum. up: its shift. places: where each tap begins in an image's planes.
    kinds, channels, phases: what each plane holds; channels count from the group's first.
    ways: for a single image and for several.
    """

    matrices: tuple[NDArray[np.int32], ...]
    kind: int
    high: int
    up: int
    places: NDArray[np.int32]
    kinds: NDArray[np.int64]
    channels: NDArray[np.int64]
    phases: NDArray[np.int64]
    pitch: int
    size: int
    ways: tuple[_Way, _Way]
    ready: set[int] = field(default_factory=set)

    def apply(self, m: ConvMap, x: Tensor, bits: int, add: Tensor | None) -> Tensor:
        """``W . x (+ add)``: x ``(n, C, H, W)`` words -> ``(n, O, rows, cols)`` words."""
        out = torch.empty((x.shape[0], *m.out_shape), dtype=ring.word(bits))
        more = torch.zeros((1, 1, 1, 1), dtype=out.dtype).expand(out.shape) if add is None else add.expand(out.shape)
        values, results, added = x.contiguous().numpy(), out.numpy(), more.numpy()
        per, at = m.outputs // m.groups, 0
        while at < len(values):
            way = self._way(len(values) - at)
            batch = slice(at, at + way.images)
            for g, matrix in enumerate(self.matrices):
                part = slice(g * per, (g + 1) * per)
                images = (self._spread(m, image, g, bits) for image in values[batch])
                self._multiply(m, way, matrix, images, added[batch, part], results[batch, part])
            at += way.images
        return out

    def _way(self, left: int) -> _Way:
        single, several = self.ways
        return several if several.work <= min(left, several.images) * single.work else single

    def _spread(self, m: ConvMap, image: NDArray[Any], group: int, bits: int) -> NDArray[np.int32]:
        """The planes of one image, in a line."""
        planes = np.empty((len(self.kinds), self.size), np.int32)
        channels, mix = self.channels + group * (m.channels // m.groups), max(bits - 16, 0)
        geometry = np.array(m.stride), np.array(m.padding), self.pitch
        _kernels().spread_all(image, self.kinds, mix, channels, self.phases, *geometry, planes)
        return planes.reshape(-1)

    def _multiply(
        self,
        m: ConvMap,
        way: _Way,
        matrix: NDArray[np.int32],
        images: Iterator[NDArray[np.int32]],
        add: NDArray[Any],
        out: NDArray[Any],
    ) -> None:
        """``out = taps . columns + add`` of as many images as ``out`` has."""
        fast, (rows, cols) = _kernels(), m.out_size
        if way.together:
            width, taps = len(out) * rows * cols, len(self.places)
            columns = np.empty(taps * width + _BEYOND, np.int32)
            target = columns[: taps * width].reshape(taps, width)
            for i, planes in enumerate(images):
                fast.gather(planes, self.places, self.pitch, rows, cols, i * rows * cols, target)
            places, pitch = np.arange(taps, dtype=np.int32) * np.int32(width), cols
        else:
            columns, places, pitch = next(images), self.places, self.pitch
        arguments = (matrix, places, columns, self.high, self.up, pitch, add, out)
        if not self.ready:
            self.ready.update(other.tile for other in self.ways)
            for tile in self.ready:  # those of other batches are not to be compiled in the midst of one
                fast.make_ready(self.kind, tile, arguments)
        fast.convolve(self.kind, way.tile)(*arguments)


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
    matrices = [
        np.concatenate([_packed(group, of_w, bits).reshape(per, -1) for _, of_w in parts], 1) for group in w
    ]  # fmt: skip
    return UnitConvolution(
        tuple(np.concatenate([x, np.zeros((_TALLEST - 1, x.shape[1]), np.int32)]) for x in matrices),
        kind,
        sum(len(taps_at) * -(-inner // _width(of_x)) for of_x, _ in parts[:-1]),
        _up(kind, bits),
        np.array(places, np.int32),
        np.array(kinds),
        np.array(firsts),
        np.array([phases[p % len(phases)] for p in range(len(kinds))]).reshape(-1, 2),
        pitch,
        size,
        _ways(m, len(places), pitch),
    )


def _ways(m: ConvMap, taps: int, pitch: int) -> tuple[_Way, _Way]:
    """The cheapest for a single image, and for each of several."""
    (rows, cols), per = m.out_size, m.outputs // m.groups
    most = min(_MOST_TOGETHER, max(1, _TOGETHER_BYTES // (4 * taps * rows * cols)))

    def way(together: bool, images: int, columns: int) -> _Way:
        tile, work = _best_tile(per, columns)
        return _Way(together, images, tile, work + (_TOGETHER * columns / 16 if together else 0))

    single = min(way(False, 1, rows * pitch), way(True, 1, rows * cols), key=lambda w: w.work)
    return single, min(single, way(True, most, most * rows * cols), key=lambda w: w.work / w.images)


@dataclass(frozen=True, eq=False)
class UnitDense:
    """A dense map prepared for one weight: its taps are the columns, and the inputs the rows."""

    columns: NDArray[np.int32]
    places: NDArray[np.int32]
    kind: int
    high: int
    kinds: NDArray[np.int64]

    def apply(self, x: Tensor, outputs: int, bits: int, add: Tensor | None) -> Tensor:
        """``W . x (+ add)``: x ``(rows, inputs)`` words -> ``(rows, outputs)`` words."""
        fast, rows = _kernels(), len(x)
        tile = _LINE if rows == 1 else _best_tile(rows, outputs)[0]
        out = torch.empty((rows, outputs), dtype=ring.word(bits))
        if not out.numel():
            return out
        more = torch.zeros((1, 1), dtype=out.dtype).expand(out.shape) if add is None else add.expand(out.shape)
        step = fast.TILES[tile][0]
        matrix = np.empty((-(-rows // step) * step, len(self.places)), np.int32)
        matrix[rows:] = 0
        fast.pack_rows(x.numpy(), self.kinds, max(bits - 16, 0), matrix)
        lines = [t.numpy()[None, :, None] for t in (more, out)]
        fast.convolve(self.kind, tile)(
            matrix, self.places, self.columns, self.high, _up(self.kind, bits), outputs, *lines
        )  # fmt: skip
        return out


def dense(weight: Tensor, bits: int) -> UnitDense:
    """Prepare words ``weight`` ``(outputs, inputs)`` for products mod 2^bits."""
    kind, w = _kind(bits), weight.numpy()
    parts = _parts(kind)
    blocks = [_packed(w, of_w, bits).T for _, of_w in parts]
    size = w.shape[0] + _BEYOND
    columns = np.zeros((sum(map(len, blocks)), size), np.int32)
    columns[:, : w.shape[0]] = np.concatenate(blocks)
    places = np.arange(len(columns), dtype=np.int32) * size
    kinds = np.array([of_x for of_x, _ in parts])
    return UnitDense(columns.reshape(-1), places.astype(np.int32), kind, sum(map(len, blocks[:-1])), kinds)


def _width(what: int) -> int:
    """Neighbouring channels in one tap of a plane."""
    k = _kernels()
    quads: bool = what in (k.QUADS, k.MIXED, k.HIGH_QUADS)
    return 4 if quads else 2


@cache
def _best_tile(rows: int, columns: int) -> tuple[int, int]:
    """The tile that wastes least on ``rows`` and ``columns`` that do not fill whole tiles, and its sums of vectors."""
    tiles: tuple[tuple[int, int], ...] = _kernels().TILES

    def work(tile: int) -> int:
        step, vectors = tiles[tile]
        return -(-rows // step) * step * -(-columns // (16 * vectors)) * vectors

    best = min((tile for tile in range(len(tiles)) if tile != _LINE), key=work)
    return best, work(best)
