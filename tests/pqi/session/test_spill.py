from __future__ import annotations

import copy
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from pqi.session import spill as module
from pqi.session.errors import SpillFailed
from pqi.session.spill import Spill
from protocols.errors import Misuse

RECORD = 1000
SLOT = RECORD + 16


def read(spill: Spill, first: int, n: int, record: int = RECORD) -> bytes:
    out = bytearray(n * record)
    spill.read_into(first, memoryview(out))
    return bytes(out)


def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that goes to disk from now on."""
    real, seen = os.pwrite, []

    def spy(descriptor: int, data: bytes, at: int) -> int:
        seen.append(bytes(data))
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", spy)
    return seen


def test_what_was_written_comes_back_and_the_ring_goes_round(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", "e", RECORD, 5 * SLOT)
    assert spill.slots == 5
    for first in range(0, 30, 3):
        data = os.urandom(3 * RECORD)
        spill.write(first, data)
        assert read(spill, first, 3) == data
        assert read(spill, first + 1, 1) == data[RECORD : 2 * RECORD]
    spill.close()


def test_the_file_has_no_name_and_its_folder_is_private(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", "e", RECORD, 5 * SLOT)
    spill.write(0, bytes(RECORD))
    assert list((tmp_path / "s").iterdir()) == []
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert os.fstat(spill._file.fileno()).st_mode & 0o777 == 0o600
    spill.close()


def test_a_disk_sees_noise_that_is_new_for_every_item_and_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = written(monkeypatch)
    for epoch in ("e", "f"):
        spill = Spill(tmp_path, epoch, RECORD, 5 * SLOT)
        spill.write(0, bytes(3 * RECORD))
        spill.close()
    assert [len(sealed) for sealed in seen] == [SLOT] * 6
    assert len(set(seen)) == 6
    assert all(sum(byte.bit_count() for byte in sealed) in range(3700, 4430) for sealed in seen)  # 8128 bits, 8 sigma


@pytest.mark.parametrize("at", [0, RECORD - 1, RECORD, SLOT - 1])
def test_one_altered_bit_is_found(tmp_path: Path, at: int) -> None:
    spill = Spill(tmp_path, "e", RECORD, 5 * SLOT)
    spill.write(0, bytes(RECORD))
    descriptor = spill._file.fileno()
    byte = os.pread(descriptor, 1, at)
    os.pwrite(descriptor, bytes([byte[0] ^ 1]), at)
    with pytest.raises(SpillFailed, match="items from 0 on were altered on disk"):
        read(spill, 0, 1)
    spill.close()


def test_an_item_in_another_s_place_is_found(tmp_path: Path) -> None:
    spill = Spill(tmp_path, "e", RECORD, 5 * SLOT)
    spill.write(0, os.urandom(2 * RECORD))
    descriptor = spill._file.fileno()
    os.pwrite(descriptor, os.pread(descriptor, SLOT, 0), SLOT)
    with pytest.raises(SpillFailed, match="items from 1 on were altered"):
        read(spill, 1, 1)
    with pytest.raises(SpillFailed, match="items from 5 on were altered"):
        read(spill, 5, 1)  # item 0 again, as the first of the next round
    spill.close()


def test_no_nonce_is_used_twice_not_even_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spill = Spill(tmp_path, "e", RECORD, 5 * SLOT)
    spill.write(0, bytes(2 * RECORD))
    with pytest.raises(Misuse, match="item 1 would be sealed under a nonce"):
        spill.write(1, bytes(RECORD))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(SpillFailed, match="items from 2 on were not written: no space"):
        patch.setattr(os, "pwrite", full)
        spill.write(2, bytes(RECORD))
    with pytest.raises(Misuse, match="item 2 would be sealed"):
        spill.write(2, bytes(RECORD))
    spill.close()


def test_an_item_larger_than_a_block_is_sealed_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 300)
    seen = written(monkeypatch)
    spill = Spill(tmp_path, "e", RECORD, 3 * (RECORD + 4 * 16))
    data = os.urandom(3 * RECORD)
    spill.write(4, data)
    assert spill.slots == 3
    assert [len(sealed) for sealed in seen] == [316, 316, 316, 116] * 3
    assert read(spill, 4, 3) == data
    spill.close()


def test_writes_and_reads_that_the_system_cuts_short_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, get = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: put(descriptor, data[:100], at))
    monkeypatch.setattr(os, "pread", lambda descriptor, size, at: get(descriptor, min(size, 130), at))
    spill, data = Spill(tmp_path, "e", RECORD, 5 * SLOT), os.urandom(2 * RECORD)
    spill.write(0, data)
    assert read(spill, 0, 2) == data
    spill.close()


def test_a_file_that_was_cut_is_named_and_so_is_a_closed_epoch(tmp_path: Path) -> None:
    spill = Spill(tmp_path, "e", RECORD, 5 * SLOT)
    spill.write(0, bytes(RECORD))
    os.truncate(spill._file.fileno(), 500)
    with pytest.raises(SpillFailed, match="items from 0 on were not read: the file is shorter"):
        read(spill, 0, 1)
    spill.close()
    spill.close()
    with pytest.raises(SpillFailed, match="items from 0 on were not read: the epoch is over"):
        read(spill, 0, 1)
    with pytest.raises(SpillFailed, match="items from 1 on were not written: the epoch is over"):
        spill.write(1, bytes(RECORD))


def test_too_little_room_and_a_full_disk_are_found_before_anything_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpillFailed, match="1015 bytes on disk hold not one item, which takes 1016"):
        Spill(tmp_path, "e", RECORD, SLOT - 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SpillFailed, match=r"5080 bytes in .*: No space left"):
        Spill(tmp_path, "e", RECORD, 5 * SLOT)


def test_its_key_refuses_to_leave_by_accident(tmp_path: Path) -> None:
    spill = Spill(tmp_path, "e", RECORD, SLOT)
    assert repr(spill) == "<Spill: hidden>"
    for leak in (bool, pickle.dumps, copy.copy, list):
        with pytest.raises(Misuse):
            leak(spill)
    spill.close()


def test_closing_waits_for_no_reader_and_breaks_none(tmp_path: Path) -> None:
    spill, data, wrong = Spill(tmp_path, "e", RECORD, 50 * SLOT), os.urandom(50 * RECORD), list[Any]()
    spill.write(0, data)

    def reading() -> None:
        for _ in range(200):
            try:
                if read(spill, 0, 50) != data:
                    wrong.append("other bytes")
            except SpillFailed as error:
                if "the epoch is over" not in str(error):
                    wrong.append(error)

    threads = [threading.Thread(target=reading) for _ in range(3)]
    for thread in threads:
        thread.start()
    spill.close()
    for thread in threads:
        thread.join(30)
    assert not wrong
