"""Integers modulo 2^k: words, balanced digits for int8 units, products, and packing to the wire.

A ring element of ``Z_{2^k}`` (1 <= k <= 32) lives in the smallest signed word that holds k bits (int16 or int32). Words
are used as they come, in two's complement: the bits above k are arbitrary, and only the places that look at them
(shifts, comparisons, packing) mask. Additions and products wrap silently in the word, which is a ring homomorphism.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from protocols import devices, native, planes
from protocols.errors import BadParameters, PeerMisbehaved

MAX_BITS = 32


def word(bits: int) -> torch.dtype:
    """Smallest word that holds ``bits`` bits: int16 up to 16, int32 up to 32."""
    if not 1 <= bits <= MAX_BITS:
        raise BadParameters(f"a ring of 2^{bits} was asked for; rings here have between 1 and {MAX_BITS} bits")
    return torch.int16 if bits <= 16 else torch.int32


def mask(bits: int, dtype: torch.dtype) -> int:
    """``2^bits - 1`` as a value of ``dtype`` (-1, all ones, when the ring fills the word)."""
    width = torch.iinfo(dtype).bits
    return -1 if bits >= width else (1 << bits) - 1


def to_word(x: Tensor, bits: int) -> Tensor:
    """The same residues mod 2^bits in the ring's own word."""
    return x.to(word(bits))


def unsigned(x: Tensor, bits: int) -> Tensor:
    """Representative in ``[0, 2^bits)``, in a word wide enough to hold it as a non-negative number."""
    width = torch.iinfo(x.dtype).bits
    if bits >= width:
        x = x.to(torch.int32 if width < 32 else torch.int64)
    return x & mask(bits, x.dtype)


def centred(x: Tensor, bits: int) -> Tensor:
    """Representative in ``[-2^(bits-1), 2^(bits-1))`` as int64."""
    x = x.to(torch.int64) & ((1 << bits) - 1)
    return x - ((x >> (bits - 1)) << bits)


def field(x: Tensor, low: int, bits: int) -> Tensor:
    """Bits ``low .. low+bits-1`` of each word as a non-negative number (``bits`` below the word's width)."""
    return (x >> low) & ((1 << bits) - 1)


# --- products on int8 units -------------------------------------------------------------------------------------


def digit_count(bits: int) -> int:
    """Balanced signed bytes needed for a ring of ``bits`` bits."""
    return -(-bits // 8)


def digits(x: Tensor, bits: int) -> Tensor:
    """Balanced signed bytes: ``x = sum_i 256^i d_i (mod 2^bits)`` with ``d_i`` in [-128, 127]; shape ``(D, *x.shape)``.

    Adding 0x80 under every byte but the top one carries exactly where a balanced digit borrows, so the digits are the
    bytes of ``x + 0x..8080`` with that same constant taken off again.
    """
    count = digit_count(bits)
    w = x.to(torch.int16) if count <= 2 else x.to(torch.int32)
    if count == 1:
        return w.to(torch.int8).unsqueeze(0)
    size = w.element_size()
    offset = sum(0x80 << (8 * i) for i in range(count - 1))
    planes = ((w + offset) ^ offset).contiguous().view(torch.int8).reshape(*x.shape, size)
    return planes[..., :count].movedim(-1, 0)


def stack_weights(w: Tensor, bits: int) -> list[Tensor]:
    """Digits of a matrix ``(rows, K)`` arranged for :func:`product`: for shift S the blocks ``[d_S | ... | d_0]``."""
    d = digits(w, bits)
    return [torch.cat([d[s - i] for i in range(s + 1)], dim=1).contiguous() for s in range(d.shape[0])]


@cache
def _units_are_exact(device: torch.device) -> bool:
    """Whether the int8 matrix product is there, does not saturate (some processors add pairs in 16 bits), and reads
    matrices as they lie."""
    extremes = [(torch.full((32, 64), i), torch.full((64, 16), j)) for i, j in ((-128, -128), (127, 127), (-128, 127))]
    mixed = torch.arange(32 * 64) * 37 % 251 - 125
    for a, b in (*extremes, (mixed.reshape(32, 64), mixed[: 64 * 16].reshape(64, 16))):
        left, right = (devices.place(x.to(torch.int8), device) for x in (a, b))
        try:
            made = devices.place(torch._int_mm(left, right), devices.CPU)
        except RuntimeError:
            return False
        if not torch.equal(made, (a.unsqueeze(2) * b).sum(1, dtype=torch.int32)):
            return False
    return True


def byte_product(w: Tensor, x: Tensor) -> Tensor:
    """int8 ``(rows, K)`` times int8 ``(K, M)`` as int32, wrapping mod 2^32."""
    if w.shape[1] == 1:
        # With one inner value the strides of x are ambiguous, and torch._int_mm may take it for its transpose.
        return w.to(torch.int32) * x.to(torch.int32)
    exact, (inner, columns) = _units_are_exact(x.device), x.shape
    if x.device.type != "cpu":
        return _filled_product(w, x)[: len(w), :columns] if exact else _by_doubles(w, x)
    if not exact:
        return w.to(torch.int32) @ x.to(torch.int32)
    return torch._int_mm(_stored(w, {(inner, 1)}), _stored(x, {(columns, 1), (1, inner)}))


def _filled_product(w: Tensor, x: Tensor) -> Tensor:
    """The product on a GPU: its units take more than 16 rows, and inner values and columns by the eight; by sixteen,
    all rows begin where they are read fastest."""
    inner, columns = -len(x) % 16, -x.shape[1] % 16
    rows = max(32 - len(w), 0)
    w = F.pad(w, (0, inner, 0, rows)) if inner or rows else w
    x = F.pad(x, (0, columns, 0, inner)) if inner or columns else x
    return torch._int_mm(w.contiguous(), x.contiguous())


def _by_doubles(w: Tensor, x: Tensor) -> Tensor:
    """The product on a device without such units: sums of products of bytes are exact in 53 bits."""
    return (w.to(torch.float64) @ x.to(torch.float64)).to(torch.int64).to(torch.int32)


def _stored(x: Tensor, strides: set[tuple[int, int]]) -> Tensor:
    """x, or a copy by rows if it has other strides.

    A slice with one row or one column may keep any stride along it and still call itself contiguous. torch._int_mm
    (seen in 2.13, on the processor) believes such a stride and returns wrong numbers, or warns and falls back.
    """
    return x if x.stride() in strides else torch.empty(x.shape, dtype=x.dtype).copy_(x)


def product(weights: list[Tensor], columns: Tensor, bits: int) -> Tensor:
    """``W @ X mod 2^bits`` from stacked digits.

    weights: result of :func:`stack_weights` for W ``(rows, K)``; columns: int8 ``(D*K, M)``, the digits of X ``(K, M)``
    below each other. D(D+1)/2 byte products are grouped by their shift, so there are D calls of the int8 matrix unit.
    Sums of byte products may pass 2^31: they wrap mod 2^32, which is harmless for rings up to 32 bits.
    """
    k = weights[0].shape[1]
    out = torch.zeros((weights[0].shape[0], columns.shape[1]), dtype=torch.int32, device=columns.device)
    if out.numel() == 0 or k == 0:
        return to_word(out, bits)
    for s, w in enumerate(weights):
        part = byte_product(w, columns[: (s + 1) * k])
        out = part if s == 0 else out.add_(part << (8 * s))
    return to_word(out, bits)


# --- packing to the wire ----------------------------------------------------------------------------------------


_TYPES: dict[int, np.dtype[Any]] = {32: np.dtype(np.uint32), 16: np.dtype(np.uint16), 8: np.dtype(np.uint8)}


@cache
def _stretches(bits: int) -> tuple[tuple[int, int], ...]:
    """How a ``bits``-bit value is cut for the wire: (first bit, width), widths among 32, 16, 8, then what is left."""
    cut, at = [], 0
    for width in (32, 16, 8):
        if bits - at >= width:
            cut.append((at, width))
            at += width
    return (*cut, *(((at, bits - at),) if at < bits else ()))


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` packed values: ``bits`` bits each; each of at most seven planes of bits fills whole bytes."""
    return sum(count * width // 8 if width in _TYPES else width * planes.width(count) for _, width in _stretches(bits))


def pack(x: Tensor, bits: int) -> np.ndarray:
    """Pack the low ``bits`` bits of every value along the last axis.

    x: integer tensor ``(..., count)``. Returns uint8 ``(..., packed_bytes(count, bits))``: the low 32, 16 and 8 bits as
    words side by side, then what is left as bit planes.
    """
    if x.device.type != "cpu":
        return devices.to_host(packed(x, bits))
    count = x.shape[-1]
    flat = x.reshape(-1, count) if x.dim() > 1 else x.reshape(1, count)
    out = np.empty((flat.shape[0], packed_bytes(count, bits)), np.uint8)
    at = 0
    for low, width in _stretches(bits):
        size = count * width // 8 if width in _TYPES else width * planes.width(count)
        for row, target in zip(flat, out[:, at : at + size], strict=True):
            if width in _TYPES:
                np.copyto(_viewed(target, width), (row >> low if low else row).numpy(), casting="unsafe")
            else:
                planes.extract(row, low, width, target.reshape(width, -1))
        at += size
    return out.reshape(*x.shape[:-1], out.shape[1])


_WORDS = {32: torch.int32, 16: torch.int16, 8: torch.uint8}


def packed(x: Tensor, bits: int) -> Tensor:
    """The same as a tensor where x lies: uint8 ``(..., packed_bytes(count, bits))``."""
    count, n = x.shape[-1], prod(x.shape[:-1])
    flat, parts = x.reshape(n, count), [x.new_zeros((n, 0), dtype=torch.uint8)]
    for low, width in _stretches(bits):
        if width in _WORDS:
            part = (flat >> low).to(_WORDS[width]).contiguous().view(torch.uint8)
        else:
            part = planes.extract(planes.level(flat), low, width).reshape(width, n, -1 if n else 0).transpose(0, 1)
        parts.append(part.reshape(n, part.numel() // n if n else 0))
    made = torch.cat(parts, 1)
    return made.reshape(*x.shape[:-1], packed_bytes(count, bits))


def unpacked(raw: Tensor, bits: int, count: int) -> Tensor:
    """:func:`unpack` of bytes ``(..., packed_bytes)`` where they lie. Raises :class:`PeerMisbehaved`."""
    _check_length(raw.shape[-1], bits, count)
    n = prod(raw.shape[:-1])
    out = raw.new_zeros((n, count), dtype=word(bits))
    if not out.numel():
        return out.reshape(*raw.shape[:-1], count)
    flat, at = raw.reshape(n, raw.shape[-1]), 0
    for low, width in _stretches(bits):
        size = count * width // 8 if width in _WORDS else width * planes.width(count)
        part = flat[:, at : at + size].clone(memory_format=torch.contiguous_format)
        if width in _WORDS:
            values = part.view(_WORDS[width]).to(out.dtype)
            out |= (values if width == 8 * out.itemsize else values & mask(width, out.dtype)) << low
        else:
            rows = part.reshape(n, width, -1).transpose(0, 1).reshape(width, -1)
            line = out.new_zeros(8 * rows.shape[1])
            out |= planes.rows(planes.insert(rows, low, line), n, count)
        at += size
    return out.reshape(*raw.shape[:-1], count)


def _viewed(raw: np.ndarray, width: int) -> np.ndarray:
    """Bytes as unsigned words of 32, 16 or 8 bits, wherever they begin."""
    return np.frombuffer(raw, _TYPES[width])


def pack_difference(x: Tensor, y: Tensor, bits: int) -> np.ndarray:
    """``pack(x - y, bits)`` of lines ``(count,)`` in the ring's word, in one pass over memory."""
    if (fast := native.bits()) is None or x.device.type != "cpu":
        return pack(x - y, bits)
    out = np.empty(packed_bytes(len(x), bits), np.uint8)
    fast.pack_difference(x.contiguous().numpy(), y.contiguous().numpy(), bits, out)
    return out


def unpack_sum(data: bytes | bytearray | memoryview, bits: int, x: Tensor, y: Tensor) -> Tensor:
    """``x - y + unpack(data)`` of lines ``(count,)``: an opened value from both shares, less its mask's."""
    if (fast := native.bits()) is None or x.device.type != "cpu":
        return x - y + unpack(data, bits, len(x), x.device)
    raw = _checked(data, bits, len(x))
    out = np.empty(len(x), np.int16 if bits <= 16 else np.int32)
    fast.unpack_sum(raw, bits, x.contiguous().numpy(), y.contiguous().numpy(), out)
    return torch.from_numpy(out)


def _checked(data: bytes | bytearray | memoryview | np.ndarray, bits: int, count: int) -> np.ndarray:
    raw = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    _check_length(raw.shape[-1], bits, count)
    return raw


def _check_length(came: int, bits: int, count: int) -> None:
    if came != (want := packed_bytes(count, bits)):
        raise PeerMisbehaved(f"{count} values of {bits} bits take {want} bytes, but {came} came")


def unpack(
    data: bytes | bytearray | memoryview | np.ndarray, bits: int, count: int, device: torch.device = devices.CPU
) -> Tensor:
    """Inverse of :func:`pack`: values in ``[0, 2^bits)`` in the ring's word (wrapped where the ring fills the word).

    data: bytes of one row, or uint8 ``(..., packed_bytes)``. device: where the values shall be.
    Raises :class:`PeerMisbehaved` on a wrong length.
    """
    raw, want = _checked(data, bits, count), packed_bytes(count, bits)
    if device.type != "cpu":
        return unpacked(devices.from_host(raw if raw.flags.writeable else raw.copy(), device), bits, count)
    flat = raw.reshape(-1, want) if want else raw.reshape(int(np.prod(raw.shape[:-1], dtype=int)), 0)
    out = np.zeros((flat.shape[0], count), np.int16 if bits <= 16 else np.int32)
    at = 0
    for low, width in _stretches(bits):
        size = count * width // 8 if width in _TYPES else width * planes.width(count)
        for target, row in zip(out, flat[:, at : at + size], strict=True):
            if width in _TYPES:
                _place(target, _viewed(np.ascontiguousarray(row), width), low)
            else:
                planes.insert_bytes(row, width, low, target)
        at += size
    return torch.from_numpy(out).reshape(*raw.shape[:-1], count)


def _place(target: np.ndarray, part: np.ndarray, low: int) -> None:
    """Write words at bit ``low``: the first fill the words, later ones are or-ed in."""
    if not low:
        np.copyto(target, part, casting="unsafe")
        return
    shifted = part.astype(target.dtype)
    shifted <<= low
    target |= shifted
