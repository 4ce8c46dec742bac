"""Ciphertexts and sums, held to their claims: two inputs look alike, and what looks different is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import protocols
from pqi.audit import sealed
from pqi.audit.errors import AuditError
from pqi.audit.sealed import Tally, alike, audit_keyed, audit_sum, judged, names
from pqi.audit.transcripts import ALARM
from pqi.audit.views import View
from tests.pqi.cli.clikit import pqi

RUNS = 64


def tallied(rows: list[bytes], source: str = "question 0") -> Tally:
    made = Tally()
    for row in rows:
        made.add(View(((source, row),)))
    return made


def noise(seed: int, size: int = 64) -> list[bytes]:
    generator = np.random.default_rng(seed)
    return [generator.bytes(size) for _ in range(RUNS)]


def test_free_messages_of_two_inputs_are_alike() -> None:
    checks = judged(tallied(noise(0)), tallied(noise(1)))
    assert [check.passed for check in checks] == [True, True, True]


def test_headers_that_are_always_the_same_are_no_sign_of_anything() -> None:
    first, second = ([b"header" + row for row in noise(seed)] for seed in (0, 1))
    assert all(check.passed for check in judged(tallied(first), tallied(second)))


def test_one_bit_that_follows_the_input_is_caught() -> None:
    first, second = (
        [bytes([row[0] & 0xFE | value]) + row[1:] for row in noise(seed, 4096)] for seed, value in ((0, 0), (1, 1))
    )
    assert alike(tallied(first), tallied(second)) < ALARM


def test_bytes_that_lean_to_one_side_are_caught_where_no_single_bit_stands_out() -> None:
    generator = np.random.default_rng(5)
    slope = np.linspace(0.8, 1.2, 256) / 256
    leaning = generator.choice(256, (RUNS, 4096), p=slope).astype(np.uint8)
    assert alike(tallied(noise(0, 4096)), tallied([row.tobytes() for row in leaning])) < ALARM


def test_lengths_that_follow_the_input_are_caught() -> None:
    checks = {check.name: check.passed for check in judged(tallied(noise(0, 64)), tallied(noise(1, 65)))}
    assert checks == {"shape": False, "fresh": True, "two inputs": False}
    with pytest.raises(AuditError, match="differ in number, order or lengths"):
        alike(tallied(noise(0, 64)), tallied(noise(1, 65)))


def test_a_message_that_comes_again_is_caught_unless_a_helper_opens_the_same_sum() -> None:
    again = noise(0)
    assert [check.passed for check in judged(tallied(again), tallied(again))] == [True, False, True]
    opened = judged(tallied(again, "helper key, open"), tallied(again, "helper key, open"))
    assert [check.passed for check in opened] == [True, True, True]


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_ciphertexts_of_two_inputs_look_alike(name: str) -> None:
    pytest.importorskip("tenseal", reason="lattice protocols need the extra 'homomorphic'")
    verdict = audit_keyed(name, RUNS)
    assert verdict.claims
    assert verdict.passed, verdict.checks


def test_a_key_holder_that_draws_no_randomness_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tenseal", reason="lattice protocols need the extra 'homomorphic'")
    backend = protocols.get_keyed("bfv")
    real = backend.key_holder

    class Repeating:
        """Encrypts each input once, and sends the same ciphertext ever after."""

        def __init__(self, plan: Any) -> None:
            self.holder, self.kept = real(plan), dict[bytes, list[bytes]]()

        def encrypt(self, codes: Any) -> list[bytes]:
            return self.kept.setdefault(codes.tobytes(), self.holder.encrypt(codes))

    monkeypatch.setattr(type(backend), "key_holder", lambda self, plan: Repeating(plan))
    checks = {check.name: check.passed for check in audit_keyed("bfv", RUNS).checks}
    assert checks == {"shape": True, "fresh": False, "two inputs": False}


@pytest.mark.parametrize("name", ["pairwise", "shares"])
def test_who_gave_what_to_a_sum_does_not_show(name: str) -> None:
    verdict = audit_sum(name, RUNS)
    assert verdict.claims
    assert verdict.passed, verdict.checks


def test_a_sum_in_the_clear_claims_nothing_and_is_caught() -> None:
    verdict = audit_sum("clear", RUNS)
    assert (verdict.claims, verdict.passed) == (False, True)
    assert not next(check for check in verdict.checks if check.name == "two inputs").passed


def test_every_protocol_there_is_has_a_name_here() -> None:
    wanted = {*protocols.CATALOGUE, *protocols.KEYED, *(f"sum:{name}" for name in protocols.SUMS)}
    assert set(names()) == wanted
    assert set(sealed.SLOW) < wanted


@pytest.mark.parametrize("name", ["bfv", "sum:clear"])
def test_too_few_runs_of_anything_are_refused(name: str) -> None:
    if name == "bfv":
        pytest.importorskip("tenseal", reason="lattice protocols need the extra 'homomorphic'")
    with pytest.raises(AuditError, match="at least 64"):
        audit_keyed(name, 10) if name == "bfv" else audit_sum("clear", 10)


def test_the_command_tests_sums_by_name() -> None:
    result = pqi("audit-protocol", "--protocol", "sum:shares", "--protocol", "sum:clear", "--runs", RUNS)
    assert result.exit_code == 0, result.output
    assert "Nothing found that depends on input" in result.output
    assert "Caught, as it should be" in result.output
