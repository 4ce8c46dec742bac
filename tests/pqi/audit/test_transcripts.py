"""Transcripts: what the checks pass, and above all what they catch."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pqi.audit import transcripts
from pqi.audit.deployment import KINDS, judged, mann_whitney
from pqi.audit.errors import AuditError
from pqi.audit.transcripts import Verdict, audit, subject, tiny
from pqi.audit.views import Theatre, View, by_bit, by_message, by_pair, chi_square, two_sided
from pqi.program import compile as compiled
from pqi.session.ledger import Ledger, PartyLedger
from protocols import ring
from protocols.additive2.kernel import Party
from protocols.rounds import PartyId, Round, Steps
from tests.pqi.cli.clikit import pqi

RUNS = 48


@pytest.fixture(scope="module")
def sound() -> Verdict:
    return audit("additive2", RUNS)


def test_additive2_shows_nothing_to_either_server_and_nothing_but_the_answer_to_the_client(sound: Verdict) -> None:
    assert sound.claims and sound.passed
    assert all(check.passed for check in sound.checks)
    found = {(check.name, check.role) for check in sound.checks}
    for name in ("uniform", "shape", "known keys", "twins"):
        assert {(name, "server A"), (name, "server B")} <= found
    assert ("uniform", "client") in found


def test_plaintext_is_caught_by_the_same_checks_and_is_what_it_claims_to_be() -> None:
    found = audit("clear", RUNS)
    assert not found.claims and found.passed
    caught = [check for check in found.checks if check.name == "uniform"]
    assert caught and not any(check.passed for check in caught)


def without_a_mask(self: Party, label: str, share: Tensor, bits: int, mask: Tensor | None = None) -> Steps[Tensor]:
    x = share.reshape(-1)
    message = ring.pack(x, bits)
    received = (yield Round({self.peer: message.data}, (self.peer,), label))[self.peer]
    other = ring.unpack(received, bits, len(x), x.device)
    y = x if mask is None else x - mask.reshape(-1)
    return (y + other).reshape(share.shape)


def test_shares_sent_without_their_mask_look_uniform_but_not_to_who_knows_his_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Party, "open", without_a_mask)
    model = tiny()
    theatre = Theatre(model, compiled(model))
    codes = torch.zeros((8, 1), dtype=torch.int64)
    free = [theatre.run(codes).views["server A"] for _ in range(RUNS)]
    assert by_bit([View(view.messages[-1:]) for view in free]) > transcripts.ALARM
    known = theatre.knowledge(PartyId.P0, codes)
    fixed = [theatre.run(codes, known).views["server A"] for _ in range(RUNS)]
    assert by_bit(fixed) < transcripts.ALARM
    twins = transcripts._twins("additive2", PartyId.P0)
    assert not twins.passed


def test_lengths_that_follow_the_input_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Theatre.run

    def longer(self: Theatre, codes: Tensor, known: Any = None) -> Any:
        out = whole(self, codes, known)
        more = (*out.views["client"].messages, ("server B", bytes(int(codes.max() > 0))))
        return type(out)(out.views | {"client": View(more)}, out.answer)

    monkeypatch.setattr(Theatre, "run", longer)
    found = {check.role: check.passed for check in transcripts._shape("additive2")}
    assert found == {"server A": True, "server B": True, "client": False}


def test_the_subject_has_every_kind_of_layer_and_answers_rightly() -> None:
    model = subject()
    codes = torch.randint(-128, 128, (5, 16), generator=torch.Generator().manual_seed(3))
    for network in ("lan", "wan"):
        program = compiled(model, network=network)
        assert torch.equal(Theatre(model, program).run(codes).answer, model.integers(codes))
        kinds = {type(step).__name__ for _, step, _ in program.steps}
        assert {"Open", "Linear", "Maximum", "Sign", "Table"} <= kinds
    model = tiny()
    assert compiled(model).output_ring == 2


def views(rows: list[bytes]) -> list[View]:
    return [View((("server B", row),)) for row in rows]


def test_random_bytes_pass_and_a_skewed_byte_a_fixed_bit_and_a_mask_used_twice_do_not() -> None:
    good = views([secrets.token_bytes(400) for _ in range(64)])
    assert min(by_message(good), by_bit(good), by_pair(good)) > transcripts.ALARM
    skewed = views([bytes(secrets.choice(range(200)) for _ in range(400)) for _ in range(64)])
    assert by_message(skewed) < transcripts.ALARM
    fixed = views([secrets.token_bytes(99) + bytes([secrets.randbelow(128)]) for _ in range(64)])
    assert by_message(fixed) > transcripts.ALARM > by_bit(fixed)
    pads = [secrets.token_bytes(8) for _ in range(64)]
    twice = views([pad + secrets.token_bytes(60) + bytes(b ^ 0x5A for b in pad) for pad in pads])
    assert by_bit(twice) > transcripts.ALARM > by_pair(twice)


def test_p_values_are_those_of_the_textbooks() -> None:
    assert chi_square(310.0, 255) == pytest.approx(stats.chi2.sf(310.0, 255))
    assert two_sided(40, 64) == pytest.approx(stats.binomtest(40, 64).pvalue)
    assert two_sided(32, 64) == 1.0
    generator = np.random.default_rng(1)
    first, second = np.round(generator.normal(0, 1, 30), 1), np.round(generator.normal(0.6, 1, 25), 1)
    wanted = stats.mannwhitneyu(first, second, method="asymptotic").pvalue
    assert mann_whitney(first, second) == pytest.approx(wanted)
    assert mann_whitney(np.ones(9), np.ones(9)) == 1.0


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(AuditError, match="at least 48"):
        audit("additive2", 10)


def ledger(sent: int, seconds: float) -> Ledger:
    numbers: dict[str, Any] = dict.fromkeys((k for k, t in PartyLedger.__annotations__.items() if t == "int"), sent)
    times = dict.fromkeys((k for k, t in PartyLedger.__annotations__.items() if t == "float"), seconds)
    step = {"exchanges": 1, "sent": sent, "received": sent, "compute_seconds": seconds, "network_seconds": seconds}
    return Ledger({"server_a": PartyLedger("server_a", **numbers, **times, steps={"relu": step})}, 1, 1, seconds)


def test_a_deployment_whose_bytes_or_times_follow_the_input_is_caught() -> None:
    generator = np.random.default_rng(0)
    times = generator.normal(1.0, 0.1, (3, 40))
    same = judged("additive2", {KINDS[0]: [ledger(9, t) for t in times[0]], KINDS[1]: [ledger(9, t) for t in times[1]]})
    assert same.passed
    slow = judged("additive2", {k: [ledger(9, t + i) for t in times[i]] for i, k in enumerate(KINDS)})
    assert [check.passed for check in slow.checks] == [True, False]
    long = judged("additive2", {k: [ledger(9 + i, t) for t in times[i]] for i, k in enumerate(KINDS)})
    assert [check.passed for check in long.checks] == [False, True]


def test_the_command_says_who_was_tested_and_that_the_checks_can_fail(tmp_path: Path) -> None:
    result = pqi("audit-protocol", "--protocol", "clear", "--runs", RUNS, "--json", tmp_path / "leaks.json")
    assert result.exit_code == 0, result.output
    assert "Caught, as it should be" in result.output
    facts = json.loads((tmp_path / "leaks.json").read_text())
    assert facts["deployment"] is None
    assert facts["protocols"][0]["protocol"] == "clear" and facts["protocols"][0]["passed"]
    unknown = pqi("audit-protocol", "--protocol", "rot13")
    assert unknown.exit_code == 1
    assert "there are: additive2, clear" in " ".join(unknown.stderr.split())


def test_the_command_fails_where_a_protocol_does_not_keep_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Verdict("additive2", True, "somebody", RUNS, (transcripts.Check("shape", "client", False, "2 orders"),))
    monkeypatch.setattr(transcripts, "audit", lambda *_: broken)
    result = pqi("audit-protocol", "--protocol", "additive2")
    assert result.exit_code == 1
    assert "not what was claimed" in result.output
