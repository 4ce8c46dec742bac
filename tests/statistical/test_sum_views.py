"""What the server of a secure sum sees: uniform without the masks, and nothing to recover below the threshold.

Vectors are chosen as far from each other as the ring allows. Thresholds are a chi-square far beyond what chance gives
once in a million runs.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pytest
from scipy import stats

import protocols
from protocols import masks
from protocols.aggregation import Sum
from protocols.aggregation_local import sum_here
from protocols.errors import BelowThreshold
from protocols.field import PRIME, encode, recover, share
from protocols.labels import LABEL_BYTES
from protocols.pairwise import keys, wire

ONE_IN_A_HUNDRED_MILLION = 1e-8
PAIRWISE = protocols.get_sum("pairwise")
LENGTH = 4096
View: TypeAlias = "dict[tuple[str, int | str, str], bytes]"


def uniform(data: bytes) -> float:
    """p-value of the hypothesis that the bytes are uniform."""
    return float(stats.chisquare(np.bincount(np.frombuffer(data, np.uint8), minlength=256)).pvalue)


def seen(
    clients: int, threshold: int, bits: int, value: int, missing: dict[str, set[int]]
) -> tuple[View, Sum | BelowThreshold, bytes]:
    """All that passes the server in a run in which every client holds ``value`` everywhere.

    With its sum, or the error that it ended with; and its session.
    """
    view: View = {}

    def watch(stage: str, party: int | str, direction: str, message: bytes) -> bytes:
        view[stage, party, direction] = message
        return message

    plan = PAIRWISE.plan(clients, LENGTH, bits, threshold)
    rows = [np.full(LENGTH, value, np.uint64)] * clients
    try:
        return view, sum_here(PAIRWISE, plan, rows, missing, watch), plan.session
    except BelowThreshold as error:
        return view, error, plan.session


def uploads(view: View) -> list[bytes]:
    return [m[:-LABEL_BYTES] for (stage, _, way), m in view.items() if (stage, way) == ("vectors", "answer")]


@pytest.mark.parametrize("bits", [8, 13, 16, 32])
@pytest.mark.parametrize("highest", [False, True])
def test_masked_vectors_are_uniform_whatever_they_hold(bits: int, highest: bool) -> None:
    view, _, _ = seen(5, 3, bits, 2**bits - 1 if highest else 0, {})
    for upload in uploads(view):
        assert uniform(upload) > ONE_IN_A_HUNDRED_MILLION
    assert uniform(b"".join(uploads(view))) > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize("bits", [8, 16])
def test_differences_and_partial_sums_of_masked_vectors_are_uniform(bits: int) -> None:
    """Every client holds the same, so a mask that two uploads had in common would show in their difference."""
    view, _, _ = seen(5, 3, bits, 1, {})
    words = [np.frombuffer(upload, f"<u{bits // 8}") for upload in uploads(view)]
    for i in range(5):
        for j in range(i):
            for mixed in (words[i] - words[j], words[i] + words[j], words[i] + words[j] + words[j - 1]):
                assert uniform(mixed.tobytes()) > ONE_IN_A_HUNDRED_MILLION


def test_without_self_masks_the_whole_sum_is_uniform_still() -> None:
    """The pairwise masks cancel in the sum of all uploads; what is left is masked by what only shares can take off."""
    view, _, _ = seen(5, 3, 16, 7, {})
    total = sum((np.frombuffer(upload, "<u2") for upload in uploads(view)), np.zeros(LENGTH, np.uint16))
    assert uniform(total.tobytes()) > ONE_IN_A_HUNDRED_MILLION


def test_below_the_threshold_no_share_of_a_vector_that_came_is_given_up_and_all_of_them_stay_uniform() -> None:
    view, ended, _ = seen(6, 5, 16, 3, {"vectors": {0, 1}})
    assert isinstance(ended, BelowThreshold)
    assert not [stage for stage, _, _ in view if stage == "unmask"]
    assert len(uploads(view)) == 4
    for upload in uploads(view):
        assert uniform(upload) > ONE_IN_A_HUNDRED_MILLION


def given_up(view: View, clients: int) -> dict[int, dict[int, int]]:
    """Of whom -> who gave a share up -> the share, from a run in which everybody's vector arrived."""
    found: dict[int, dict[int, int]] = {of: {} for of in range(clients)}
    for (stage, who, way), message in view.items():
        if (stage, way) == ("unmask", "answer") and isinstance(who, int):
            shares = wire.cut(memoryview(message)[wire.list_bytes(clients - 1) : -LABEL_BYTES], 32)
            others = [who, *(i for i in range(clients) if i != who)]
            for of, one in zip(others, shares, strict=True):
                found[of][who] = int.from_bytes(one, "little")
    return found


@pytest.mark.parametrize("gone", [{0}, {0, 1}])
def test_shares_one_below_the_threshold_take_no_mask_off(gone: set[int]) -> None:
    """The server does what it does with enough shares, with all that it has; enough is the control."""
    clients, threshold = 5, 4
    view, ended, session = seen(clients, threshold, 16, 9, {"unmask": gone})
    total = sum((np.frombuffer(upload, "<u2") for upload in uploads(view)), np.zeros(LENGTH, np.uint16))
    own_keys = []
    for holders in given_up(view, clients).values():
        assert len(holders) == clients - len(gone)
        own_keys.append(keys.self_key(recover([i + 1 for i in holders], list(holders.values())), session))
    masks.apply(total, [], own_keys)
    if clients - len(gone) == threshold:
        assert set(total.tolist()) == {9 * clients}
    else:
        assert isinstance(ended, BelowThreshold)
        assert uniform(total.tobytes()) > ONE_IN_A_HUNDRED_MILLION


@pytest.mark.parametrize("secret", [0, 1, PRIME - 1])
def test_shares_below_the_number_needed_are_uniform_and_so_is_what_they_give(secret: int) -> None:
    points, rows = [1, 2, 3, 4], [share([secret], [1, 2, 3, 4], 4) for _ in range(300)]
    assert all(recover(points, [one for (one,) in row]) == secret for row in rows)
    fewer = [[one for (one,) in row[:3]] for row in rows]
    # The top byte of an element is below 128; all others are uniform.
    assert uniform(b"".join(encode(one)[:31] for row in fewer for one in row)) > ONE_IN_A_HUNDRED_MILLION
    assert uniform(b"".join(encode(recover(points[:3], row))[:31] for row in fewer)) > ONE_IN_A_HUNDRED_MILLION


def test_sealed_shares_are_uniform_to_the_server() -> None:
    view, _, _ = seen(8, 5, 8, 0, {})
    sealed = [m[:-LABEL_BYTES] for (stage, _, way), m in view.items() if (stage, way) == ("shares", "answer")]
    assert uniform(b"".join(sealed)) > ONE_IN_A_HUNDRED_MILLION


def test_the_histogram_test_sees_what_is_not_uniform() -> None:
    plain = np.full(LENGTH, 3, np.uint16) + np.arange(LENGTH, dtype=np.uint16) % 200
    assert uniform(plain.tobytes()) < ONE_IN_A_HUNDRED_MILLION
