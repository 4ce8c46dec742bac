"""Answers that a client may have: counted by every server, on disk, and never given back."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import keyedkit
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sessionkit import deployment, inputs, make_deployment, small_model

from pqi.session.budget import BUDGET_FILE, Budget
from pqi.session.bundle import load_server
from pqi.session.errors import BudgetSpent, BundleError, JournalError, QueryFailed
from pqi.session.journal import audit
from pqi.session.owner import split
from pqi.session.server import ServerOptions
from pqi.session.serving import Patience

OPTIONS = ServerOptions(patience=Patience(step=10.0, pool=30.0, idle=30.0, beat=0.2))


@pytest.fixture
def budget(tmp_path: Path) -> Iterator[Budget]:
    made = Budget(tmp_path / BUDGET_FILE, 10)
    yield made
    made.close()


def test_a_client_has_as_many_answers_as_it_is_allowed_and_none_more(budget: Budget) -> None:
    budget.spend("one", 4)
    budget.spend("one", 6)
    assert budget.left("one") == 0
    with pytest.raises(BudgetSpent, match=r"1 answers are asked for; of the 10 .* 0 are left"):
        budget.spend("one", 1)


def test_what_is_more_than_the_rest_takes_nothing_off(budget: Budget) -> None:
    budget.spend("one", 4)
    for refuse in (budget.check, budget.spend):
        with pytest.raises(BudgetSpent, match="6 are left"):
            refuse("one", 7)
    with pytest.raises(BudgetSpent):
        budget.spend("new", 11)
    assert (budget.left("one"), budget.left("new")) == (6, 10)


def test_clients_do_not_spend_each_others_answers(budget: Budget) -> None:
    budget.spend("one", 10)
    budget.spend("two", 10)
    assert (budget.left("one"), budget.left("two"), budget.left("three")) == (0, 0, 10)


def test_a_budget_outlives_its_server(tmp_path: Path) -> None:
    for expected in (7, 4, 1):
        budget = Budget(tmp_path / BUDGET_FILE, 10)
        budget.spend("one", 3)
        assert budget.left("one") == expected
        budget.close()


def test_without_a_limit_nothing_is_counted_and_no_file_is_made(tmp_path: Path) -> None:
    budget = Budget(tmp_path / BUDGET_FILE, None)
    budget.spend("one", 1 << 50)
    budget.check("one", 1 << 50)
    assert budget.left("one") is None
    budget.close()
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / BUDGET_FILE
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="of another kind"):
        Budget(path, 10)
    assert path.read_bytes() == before
    path.write_text("no database at all, but long enough to look like something")
    with pytest.raises(JournalError):
        Budget(path, 10)


def test_sessions_side_by_side_never_get_more_than_the_limit(tmp_path: Path) -> None:
    budget, got = Budget(tmp_path / BUDGET_FILE, 50), list[int]()

    def ask() -> None:
        for _ in range(20):
            try:
                budget.spend("one", 1)
            except BudgetSpent:
                return
            got.append(1)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), budget.left("one")) == (50, 0)
    budget.close()


@given(st.integers(1, 30), st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 12)), max_size=12))
def test_any_row_of_questions_is_answered_as_by_counting(
    tmp_path_factory: pytest.TempPathFactory, limit: int, asked: list[tuple[str, int]]
) -> None:
    budget, had = Budget(tmp_path_factory.mktemp("b") / BUDGET_FILE, limit), {"a": 0, "b": 0}
    for client, n in asked:
        if had[client] + n <= limit:
            budget.spend(client, n)
            had[client] += n
        else:
            with pytest.raises(BudgetSpent):
                budget.spend(client, n)
    assert {client: limit - (budget.left(client) or 0) for client in "ab"} == had
    budget.close()


def test_a_service_refuses_the_question_over_the_limit_and_its_servers_burn_nothing_for_it(tmp_path: Path) -> None:
    model, x = small_model(), inputs(6)
    with deployment(tmp_path, options=OPTIONS, answers=5) as made:
        with made.client() as client:
            answer = client.predict(x[:4])
            assert torch.equal(answer.integers, model.integers(model.encode(x[:4])))
            assert client.status()["server_a"]["answers_per_client"] == 5
            with pytest.raises(QueryFailed, match="of the 5 that the model's owner allows a client, 1 are left"):
                client.predict(x[:2])
        with made.client() as client:  # a new connection is the same client
            assert len(client.predict(x[4:5]).integers) == 1
            with pytest.raises(QueryFailed, match="0 are left"):
                client.predict(x[:1])
    for role in ("server_a", "server_b"):
        assert audit(tmp_path / role / "journal.sqlite").items == 5


def test_a_server_started_again_remembers_what_was_spent(tmp_path: Path) -> None:
    with deployment(tmp_path, "clear", OPTIONS, answers=3) as made:
        with made.client() as client:
            client.predict(inputs(2))
        made.stop_server("server_a")
        made.start_server("server_a")
        with made.client() as client, pytest.raises(QueryFailed, match="1 are left"):
            client.predict(inputs(2))


def test_one_honest_server_of_two_is_enough(tmp_path: Path) -> None:
    with deployment(tmp_path, options=OPTIONS, answers=2) as made:
        made.servers["server_a"].budget = Budget(tmp_path / "none", None)
        with made.client() as client:
            client.predict(inputs(2))
            with pytest.raises(QueryFailed, match=r"server_b.*0 are left"):
                client.predict(inputs(1))


def test_a_server_under_a_clients_key_counts_alike(tmp_path: Path) -> None:
    with keyedkit.registered(), keyedkit.deployment(tmp_path, answers=3) as made, made.client() as client:
        client.predict(keyedkit.inputs(2))
        with pytest.raises(QueryFailed, match=r"of the 3 .* 1 are left"):
            client.predict(keyedkit.inputs(2))


@pytest.mark.parametrize("most", [0, -1, 1 << 41])
def test_a_number_of_answers_that_is_none_is_refused_at_the_split(tmp_path: Path, most: int) -> None:
    with pytest.raises(BundleError, match="answers_per_client"):
        split(small_model(), tmp_path, answers_per_client=most)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("altered", ['"5"', "0", "1.5", "true"])
def test_a_bundle_with_an_altered_number_is_refused(tmp_path: Path, altered: str) -> None:
    path = make_deployment(tmp_path, answers=5) / "server_a" / "bundle.json"
    text = path.read_text()
    path.write_text(text.replace('"answers_per_client": 5', f'"answers_per_client": {altered}'))
    assert path.read_text() != text
    with pytest.raises(BundleError, match="answers_per_client"):
        load_server(tmp_path / "server_a")
