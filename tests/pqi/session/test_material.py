from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from pqi.session.errors import MaterialMissing
from pqi.session.material import EpochKeys, KeyBytes, new_id
from protocols.errors import Misuse


def test_two_epochs_of_keys_are_kept_and_no_more() -> None:
    keys = EpochKeys()
    for epoch in ("e1", "e2", "e3"):
        keys.add(epoch, KeyBytes(epoch.encode()))
    assert keys.newest == "e3"
    assert keys.get("e2").expose_to_protocol() == b"e2"
    with pytest.raises(MaterialMissing, match="epoch e1 is unknown here"):
        keys.get("e1")


def test_keys_refuse_to_leave_by_accident() -> None:
    key = KeyBytes(b"very secret")
    assert "secret" not in repr(key).replace("KeyBytes", "")
    for leak in (bool, pickle.dumps, copy.copy, copy.deepcopy, list, np.asarray):
        with pytest.raises(Misuse):
            leak(key)


def test_ids_are_128_random_bits() -> None:
    assert len({new_id() for _ in range(100)}) == 100
    assert all(len(new_id()) == 32 for _ in range(10))
