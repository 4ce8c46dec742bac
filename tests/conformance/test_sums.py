"""One battery for every protocol that sums: equal to the definition, as long as declared, unmoved by bad messages."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocols
from protocols.aggregation import MAX_CLIENTS, Ask, Party, SumPlan
from protocols.errors import BadParameters, BelowThreshold, Misuse, PeerMisbehaved, ProtocolError
from tests.conformance import sums
from tests.conformance.sums import HELPED, NAMES, QUICK, plan, protocol, recorded, run, summed, vectors

DAMAGES: list[Callable[[bytes], bytes]] = [lambda m: b"", lambda m: m[:-1], lambda m: m + b"\0", lambda m: m[:9] + m]


@pytest.fixture(scope="module", autouse=True)
def _one_paillier_key() -> Iterator[None]:
    """Finding primes takes longer than all the rest of a small run."""
    from protocols.paillier import private

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private, "generate_paillier_keypair", cache(private.generate_paillier_keypair))
        yield


def stages_of(name: str) -> list[str]:
    return {
        "clear": ["vectors"],
        "pairwise": ["keys", "shares", "vectors", "unmask"],
        "shares": ["keys", "vectors", "seeds", "sums"],
        "paillier": ["keys", "vectors", "open"],
        "bfv": ["keys", "vectors", "open"],
    }[name]


def check(name: str, case: dict[str, Any]) -> None:
    of = plan(name, case["clients"], case["length"], case["bits"], case["threshold"])
    values, stages = vectors(of, case["seed"]), stages_of(name)
    missing: dict[str, set[Party]] = {}
    for client, place in case["gone"].items():
        if client < of.clients and place < len(stages):
            missing.setdefault(stages[place], set()).add(client)
    before = stages[: stages.index("vectors") + 1]
    early = {client for stage in before for client in missing.get(stage, ())}
    late = {client for gone in missing.values() for client in gone}
    try:
        found, _ = run(of, name, values, missing, restoring=case["restoring"])
    except BelowThreshold:
        assert of.clients - len(late) < of.threshold
        return
    assert of.clients - len(early) >= of.threshold
    assert found.included == set(range(of.clients)) - early
    assert found.values.dtype == np.uint64
    assert found.values.tolist() == summed(of, values, found.included)
    clear = plan("clear", of.clients, of.length, of.bits, of.threshold)
    defined, _ = run(clear, "clear", values, {"vectors": early})
    assert (found.values == defined.values).all()
    assert found.included == defined.included


def cases(most_clients: int, most_length: int) -> st.SearchStrategy[dict[str, Any]]:
    clients = st.integers(2, most_clients)
    return clients.flatmap(
        lambda n: st.fixed_dictionaries(
            {
                "clients": st.just(n),
                "length": st.integers(1, most_length),
                "bits": st.integers(1, 64),
                "threshold": st.integers(n // 2 + 1, n),
                "seed": st.integers(0, 1 << 20),
                "gone": st.dictionaries(st.integers(0, n - 1), st.integers(0, 3), max_size=3),
                "restoring": st.booleans(),
            }
        )
    )


@pytest.mark.parametrize("name", QUICK)
@given(case=cases(9, 130))
@settings(max_examples=40)
def test_a_sum_is_the_integer_sum_whoever_drops_out_and_when(name: str, case: dict[str, Any]) -> None:
    check(name, case)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(QUICK)))
@given(case=cases(4, 60))
@settings(max_examples=6)
def test_a_sum_of_ciphertexts_is_the_integer_sum_as_well(name: str, case: dict[str, Any]) -> None:
    check(name, case)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("restoring", [False, True])
def test_bytes_on_the_wire_are_those_declared(name: str, restoring: bool) -> None:
    of = plan(name, clients=5, length=51, bits=13)
    _, log = run(of, name, vectors(of), restoring=restoring)
    cost, helpers = protocol(name).cost(of), protocol(name).helpers(of)
    assert log.stages == stages_of(name)
    assert len(log.stages) == cost.stages
    for client in range(of.clients):
        assert (log.sent[client], log.received[client]) == (cost.client_sends, cost.client_receives)
    for helper in helpers:
        assert (log.sent[helper], log.received[helper]) == (cost.helper_sends, cost.helper_receives)
    assert len(log.sent) == of.clients + len(helpers)


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_survives_json_and_serves_parties_elsewhere(name: str) -> None:
    of = plan(name)
    other = SumPlan(of.clients, of.length, of.bits, of.threshold, of.session, json.loads(json.dumps(dict(of.options))))
    assert protocol(name).cost(other) == protocol(name).cost(of)
    assert run(other, name, vectors(of))[0].included == set(range(of.clients))


@pytest.mark.parametrize("name", NAMES)
def test_every_session_is_fresh_and_the_same_vector_never_looks_the_same(name: str) -> None:
    assert plan(name).session != plan(name).session
    if name == "clear":
        return
    of = plan(name)
    first, second = (
        [payload for stage, party, way, payload in recorded(of, name, vectors(of)) if (stage, party, way) == seen]
        for seen in [("vectors", 0, "answer")] * 2
    )
    assert first != second


class Twice:
    """A party that hears every message two times, and must refuse the second; before and after it is restored."""

    def __init__(self, party: Any, again: Callable[[bytes], Any]) -> None:
        self.party, self.again = party, again

    def answer(self, stage: str, message: bytes) -> bytes:
        answer: bytes = self.party.answer(stage, message)
        for party in (self.party, self.again(self.party.expose_state())):
            with pytest.raises(ProtocolError):
                party.answer(stage, message)
        return answer

    def upload(self, stage: str, message: bytes, values: np.ndarray) -> bytes:
        answer: bytes = self.party.upload(stage, message, values)
        for party in (self.party, self.again(self.party.expose_state())):
            with pytest.raises(ProtocolError):
                party.upload(stage, message, np.zeros_like(values))
        return answer


class Doubled:
    """A protocol all of whose parties hear everything twice."""

    def __init__(self, name: str) -> None:
        self.inner = protocol(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def client(self, of: SumPlan, number: int) -> Twice:
        return Twice(self.inner.client(of, number), lambda state: self.inner.restore_client(of, number, state))

    def helper(self, of: SumPlan, name: str) -> Twice:
        return Twice(self.inner.helper(of, name), lambda state: self.inner.restore_helper(of, name, state))


@pytest.mark.parametrize("name", NAMES)
def test_a_message_that_comes_twice_is_refused_and_changes_nothing(name: str) -> None:
    of = plan(name)
    found = sums.sum_here(Doubled(name), of, vectors(of))  # type: ignore[arg-type]
    assert found.values.tolist() == summed(of, vectors(of), range(of.clients))


@pytest.mark.parametrize("name", NAMES)
def test_stages_out_of_order_are_refused_by_every_party(name: str) -> None:
    of = plan(name)
    heard = [(stage, party, payload) for stage, party, way, payload in recorded(of, name, vectors(of)) if way == "ask"]
    first = {party: stage for stage, party, _ in reversed(heard)}
    for stage, party, payload in heard:
        if isinstance(party, str):
            fresh: Any = protocol(name).helper(of, party)
        else:
            fresh = protocol(name).client(of, party)
        if stage != first[party]:
            with pytest.raises(ProtocolError):
                fresh.answer(stage, payload)
        with pytest.raises(ProtocolError):
            fresh.answer("no such stage", payload)
        if isinstance(party, int) and stage != "vectors":
            with pytest.raises(ProtocolError):
                fresh.upload(stage, payload, vectors(of)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_client_that_sends_a_wrong_length_is_left_out_and_the_others_are_summed(name: str, number: int) -> None:
    of, damage = plan(name), DAMAGES[number]
    for attacked in {stage for stage, party, *_ in recorded(of, name, vectors(of)) if isinstance(party, int)}:

        def tamper(stage: str, party: Party, way: str, payload: bytes, at: str = attacked) -> bytes:
            return damage(payload) if (stage, party, way) == (at, 1, "answer") else payload

        found, _ = run(of, name, vectors(of), tamper=tamper)
        assert found.included == {0, 1, 2, 3} - ({1} if attacked != "unmask" else set())
        assert found.values.tolist() == summed(of, vectors(of), found.included)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_damaged_message_from_the_server_is_refused_by_who_gets_it(name: str, number: int) -> None:
    of, damage = plan(name), DAMAGES[number]
    for attacked, victim in {(stage, party) for stage, party, *_ in recorded(of, name, vectors(of)) if party != 0}:

        def tamper(stage: str, party: Party, way: str, payload: bytes, at: Any = (attacked, victim)) -> bytes:
            return damage(payload) if ((stage, party), way) == (at, "ask") else payload

        with pytest.raises(PeerMisbehaved):
            run(of, name, vectors(of), tamper=tamper)


@pytest.mark.parametrize("name", HELPED)
@pytest.mark.parametrize("number", range(len(DAMAGES)))
def test_a_helper_that_sends_a_wrong_length_ends_the_run_by_name(name: str, number: int) -> None:
    of, damage = plan(name), DAMAGES[number]
    (helper,) = protocol(name).helpers(of)
    for attacked in {stage for stage, party, *_ in recorded(of, name, vectors(of)) if party == helper}:

        def tamper(stage: str, party: Party, way: str, payload: bytes, at: str = attacked) -> bytes:
            return damage(payload) if (stage, party, way) == (at, helper, "answer") else payload

        with pytest.raises(PeerMisbehaved, match=helper):
            run(of, name, vectors(of), tamper=tamper)


@pytest.mark.parametrize("name", HELPED)
def test_without_a_helper_there_is_no_sum_whatever_stage_it_leaves_in(name: str) -> None:
    of = plan(name)
    (helper,) = protocol(name).helpers(of)
    for stage in stages_of(name):
        if stage != "vectors":
            with pytest.raises(PeerMisbehaved, match=helper):
                run(of, name, vectors(of), {stage: [helper]})


@pytest.mark.parametrize("name", NAMES)
def test_answers_of_another_run_or_another_client_are_no_answers(name: str) -> None:
    of = plan(name)
    for source in (recorded(plan(name), name, vectors(of, 5)), None):
        late = {(stage, party): payload for stage, party, way, payload in source or () if way == "answer"}
        seen: dict[tuple[str, Party], bytes] = {}

        def tamper(
            stage: str,
            party: Party,
            way: str,
            payload: bytes,
            late: dict[Any, bytes] = late,
            seen: dict[tuple[str, Party], bytes] = seen,
        ) -> bytes:
            if way == "answer":
                seen[stage, party] = payload
            if (stage, party, way) == ("vectors", 1, "answer"):
                return late.get((stage, party), seen[stage, 0])
            return payload

        found, _ = run(of, name, vectors(of), tamper=tamper)
        assert found.included == {0, 2, 3}
        assert found.values.tolist() == summed(of, vectors(of), found.included)


@pytest.mark.parametrize("name", NAMES)
def test_below_the_threshold_the_run_ends_before_anything_is_opened(name: str) -> None:
    of = plan(name, threshold=3)
    log = sums.Traffic()
    with pytest.raises(BelowThreshold, match="3"):
        sums.sum_here(protocol(name), of, vectors(of), {"vectors": [0, 2]}, record=log)
    assert log.stages[-1] == "vectors"


class Fussy(Doubled):
    """A protocol whose clients are first given vectors that are none."""

    def client(self, of: SumPlan, number: int) -> Any:
        return Tried(self.inner.client(of, number))


class Tried:
    def __init__(self, client: Any) -> None:
        self.answer, self.client = client.answer, client

    def upload(self, stage: str, message: bytes, values: np.ndarray) -> bytes:
        before = values.copy()
        too_large = values.copy()
        too_large[-1] = 1 << 15
        for bad in (values.astype(np.int64), values.astype(float), values[1:], values.reshape(3, 3), too_large):
            with pytest.raises(Misuse):
                self.client.upload(stage, message, bad)
        answer: bytes = self.client.upload(stage, message, values)
        assert (values == before).all()
        return answer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("word", [np.uint16, np.uint64])
def test_a_vector_that_is_none_is_refused_and_a_good_one_is_still_taken(name: str, word: type) -> None:
    of = plan(name, bits=15)
    values = [vector.astype(word) for vector in vectors(of)]
    found = sums.sum_here(Fussy(name), of, values)  # type: ignore[arg-type]
    assert found.values.tolist() == summed(of, values, range(of.clients))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_serves_its_own_party_in_its_own_run_only(name: str) -> None:
    of, other, made = plan(name), plan(name), protocol(name)
    state = made.client(of, 0).expose_state()
    made.restore_client(of, 0, state)
    for wrong in ((of, 1, state), (other, 0, state), (of, 0, b""), (of, 0, state[:-1])):
        with pytest.raises(Misuse):
            made.restore_client(*wrong)
    for helper in made.helpers(of):
        state = made.helper(of, helper).expose_state()
        for damaged in ((other, helper, state), (of, helper, b""), (of, helper, state[:20])):
            with pytest.raises(Misuse):
                made.restore_helper(*damaged)


@pytest.mark.parametrize("name", NAMES)
def test_parties_and_questions_do_not_show_what_they_hold(name: str) -> None:
    of, made = plan(name), protocol(name)
    parties = [made.client(of, 0), *(made.helper(of, helper) for helper in made.helpers(of))]
    for party in parties:
        assert "hidden" in repr(party)
        for leak in (copy.copy, pickle.dumps, bool):
            with pytest.raises(Misuse):
                leak(party)
    assert "secret" not in repr(Ask("keys", {0: b"secret"}))


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_work_is_refused_when_it_is_planned(name: str) -> None:
    made = protocol(name)
    for numbers in ((1, 5, 8, 2), (MAX_CLIENTS + 1, 5, 8, 2), (4, 0, 8, 2), (4, 5, 65, 2), (4, 5, 8, 5), (4, 5, 8, 1)):
        with pytest.raises(BadParameters):
            made.plan(*numbers)
    with pytest.raises(BadParameters, match="no option 'colour'"):
        made.plan(4, 5, 8, 3, {"colour": "red"})
    with pytest.raises(ProtocolError):
        made.client(plan(name), 4)
    with pytest.raises(ProtocolError):
        made.helper(plan(name), "somebody")


@pytest.mark.parametrize("name", NAMES)
def test_the_statement_names_the_adversary_and_what_each_role_learns(name: str) -> None:
    made = protocol(name)
    said = made.statement(plan(name))
    assert made.name == name
    assert made.secure == (name != "clear")
    assert ("semi-honest" in said.adversary) == made.secure
    roles = " ".join(said.learns)
    assert "server" in roles
    assert "client" in roles
    assert all(helper.split("-")[0] in roles for helper in made.helpers(plan(name)))
    assert all(said.learns.values())


def test_a_protocol_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(BadParameters, match="bfv, clear, paillier, pairwise, shares"):
        protocols.get_sum("secret")
