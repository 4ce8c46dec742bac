from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqi.net.errors import BadFrame, printable
from pqi.net.frames import (
    HEADER_BYTES,
    MAX_LENGTH,
    Frame,
    FrameType,
    Limits,
    decode_control,
    encode_control,
    header,
    parse_header,
    take_hex,
    take_int,
    take_text,
)

LIMITS = Limits(control=1000, binary=5000)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_twelve_bytes_are_a_header_within_limits_or_a_clear_refusal(data: bytes) -> None:
    try:
        kind, length = parse_header(data, "server_b", LIMITS)
    except BadFrame as error:
        assert "server_b" in str(error)
    else:
        assert length <= LIMITS.of(kind)


@given(st.sampled_from(FrameType), st.integers(0, MAX_LENGTH))
def test_a_header_reads_back_as_it_was_written(kind: FrameType, length: int) -> None:
    assert parse_header(header(kind, length), "x", Limits(MAX_LENGTH, MAX_LENGTH)) == (kind, length)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_with_a_kind_or_a_clear_refusal(data: bytes) -> None:
    try:
        message = decode_control(data, "client")
    except BadFrame as error:
        assert "client" in str(error)
    else:
        assert isinstance(message["kind"], str)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.booleans() | st.none(), max_size=5))
def test_a_message_reads_back_as_it_was_written(fields: dict[str, object]) -> None:
    message = {**fields, "kind": "x"}
    assert decode_control(encode_control(message), "x") == message


def test_numbers_beyond_json_never_leave() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode_control({"kind": "x", "n": float("nan")})


@pytest.mark.parametrize("value", [None, "3", 3.0, True, -1, 11, 10**400])
def test_a_number_out_of_place_is_refused_with_its_field(value: object) -> None:
    with pytest.raises(BadFrame, match="field 'n' of message 'use'"):
        take_int({"kind": "use", "n": value}, "n", 0, 10, "server_b")
    assert take_int({"kind": "use", "n": 10}, "n", 0, 10, "server_b") == 10


@pytest.mark.parametrize("value", [None, 3, "", "abc", "ABCD", "abcg", "abcde", "\u0660bcd"])
def test_an_id_that_is_not_hexadecimal_is_refused_with_its_field(value: object) -> None:
    with pytest.raises(BadFrame, match="'epoch'"):
        take_hex({"kind": "use", "epoch": value}, "epoch", 4, "server_b")
    assert take_hex({"kind": "use", "epoch": "09af"}, "epoch", 4, "server_b") == "09af"


def test_a_text_has_a_limit() -> None:
    with pytest.raises(BadFrame, match="too long"):
        take_text({"kind": "working", "step": "x" * 257}, "step", "server_a")


@given(st.text(max_size=2000))
def test_a_peers_words_become_one_bounded_printable_line(text: str) -> None:
    line = printable(text)
    assert line.isprintable()
    assert len(line) <= 603


@pytest.mark.parametrize("limit", [0, -1, MAX_LENGTH + 1])
def test_limits_are_possible_lengths(limit: int) -> None:
    with pytest.raises(ValueError, match="limit binary"):
        Limits(binary=limit)


def test_a_frame_tells_its_length_only() -> None:
    assert repr(Frame(FrameType.BINARY, json.dumps([1, 2]).encode())) == "Frame(BINARY, 6 bytes)"
