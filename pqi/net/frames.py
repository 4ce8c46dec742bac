"""Bytes on the wire: a 12-byte header, then a control message (JSON object) or a binary payload.

::

    0      4         5      6          8            12
    "PQIF" version   type   0 0        length (BE)  payload ...

A header is judged before a byte of its payload is read or memory for it is taken.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pqi.net.errors import BadFrame, FrameTooLarge, VersionMismatch

MAGIC = b"PQIF"
WIRE_VERSION = 1
HEADER = struct.Struct("!4sBBHI")
HEADER_BYTES = HEADER.size
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MAX_LENGTH = (1 << 32) - 1

# What can be sent: anything that lies in memory in one piece.
Payload: TypeAlias = bytes | bytearray | memoryview | NDArray[np.uint8]

_HEX = re.compile(r"[0-9a-f]+")


class FrameType(IntEnum):
    """Control: a JSON object that says what happens next. Binary: shares, corrections, results."""

    CONTROL = 1
    BINARY = 2


@dataclass(frozen=True)
class Limits:
    """The most bytes a frame of each type may have on one link."""

    control: int = 256 * KIB
    binary: int = 64 * MIB

    def __post_init__(self) -> None:
        for name in ("control", "binary"):
            value = getattr(self, name)
            if not 0 < value <= MAX_LENGTH:
                raise ValueError(f"limit {name} is {value}; it must lie in 1 .. {MAX_LENGTH}")

    def of(self, kind: FrameType) -> int:
        """The limit for one frame type, in bytes."""
        return self.control if kind is FrameType.CONTROL else self.binary


@dataclass(frozen=True)
class Frame:
    """One received frame. Its representation tells the length only: payloads may be shares."""

    kind: FrameType
    payload: memoryview

    def __repr__(self) -> str:
        return f"Frame({self.kind.name}, {len(self.payload)} bytes)"


def header(kind: FrameType, length: int) -> bytes:
    """The header of a frame with a payload of ``length`` bytes."""
    return HEADER.pack(MAGIC, WIRE_VERSION, kind, 0, length)


def parse_header(data: bytes | memoryview, peer: str, limits: Limits) -> tuple[FrameType, int]:
    """Type and payload length from 12 bytes.

    Raises BadFrame (garbage), VersionMismatch, FrameTooLarge; each names ``peer``.
    """
    magic, version, kind, reserved, length = HEADER.unpack(data)
    if magic != MAGIC:
        raise BadFrame(peer, "bytes that do not begin a frame (wrong magic)")
    if version != WIRE_VERSION:
        raise VersionMismatch(peer, WIRE_VERSION, version)
    if reserved != 0:
        raise BadFrame(peer, f"a header whose reserved field is {reserved}, not 0")
    try:
        known = FrameType(kind)
    except ValueError:
        raise BadFrame(peer, f"a frame of unknown type {kind}") from None
    if length > limits.of(known):
        raise FrameTooLarge(peer, known.name.lower(), length, limits.of(known))
    return known, length


def encode_control(message: Mapping[str, Any]) -> bytes:
    """A control message as bytes. Refuses values that are not plain JSON."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode("ascii")


def decode_control(payload: bytes | memoryview, peer: str) -> dict[str, Any]:
    """A control message from bytes: a JSON object with a text field ``kind``. Raises BadFrame."""
    try:
        message = json.loads(bytes(payload).decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadFrame(peer, "a control frame that is not valid JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise BadFrame(peer, "a control frame that is not an object with a text field 'kind'")
    return message


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def take_int(message: Mapping[str, Any], field: str, low: int, high: int, peer: str) -> int:
    """``message[field]`` as an integer in [low, high]. Raises BadFrame that names the field and the bound."""
    value = message.get(field)
    if type(value) is not int:
        raise BadFrame(peer, f"field {field!r} of message {message.get('kind')!r} is missing or not an integer")
    if not low <= value <= high:
        raise BadFrame(peer, f"field {field!r} of message {message.get('kind')!r} is outside {low} .. {high}")
    return value


def take_text(message: Mapping[str, Any], field: str, peer: str, limit: int = 256) -> str:
    """``message[field]`` as a text of at most ``limit`` characters. Raises BadFrame."""
    value = message.get(field)
    if not isinstance(value, str) or len(value) > limit:
        raise BadFrame(peer, f"field {field!r} of message {message.get('kind')!r} is missing, not a text, or too long")
    return value


def take_hex(message: Mapping[str, Any], field: str, digits: int, peer: str) -> str:
    """``message[field]`` as exactly ``digits`` lower-case hexadecimal digits. Raises BadFrame."""
    value = take_text(message, field, peer, digits)
    if len(value) != digits or _HEX.fullmatch(value) is None:
        raise BadFrame(peer, f"field {field!r} of message {message.get('kind')!r} is not {digits} hexadecimal digits")
    return value
