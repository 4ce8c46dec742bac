"""A server's memory under watch: turned bits put right before they reach an answer, or every query refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sessionkit import Deployment, deployment, inputs, small_model

from pqi.audit.defences.guarded import held_by
from pqi.session.errors import QueryFailed, SessionError
from pqi.session.server import ServerOptions
from pqi.session.serving import Patience

PATIENT = Patience(step=10.0, pool=30.0, idle=30.0, beat=0.2)
WATCHED = ServerOptions(check_memory=1, patience=PATIENT)


def turn(made: Deployment, role: str, count: int, name: str = "") -> None:
    """The lowest bit of the first words of one of the tensors that the server computes with."""
    held = held_by(made.servers[role].runner)
    tensor = held[name] if name else max(held.values(), key=lambda each: each.numel())
    tensor.view(-1)[:count] ^= 1


@pytest.mark.parametrize("role", ["server_a", "server_b"])
def test_turned_bits_are_put_right_before_the_next_answer_and_told(tmp_path: Path, role: str) -> None:
    model, x = small_model(), inputs(4)
    with deployment(tmp_path, options=WATCHED) as made, made.client() as client:
        assert torch.equal(client.predict(x).integers, model.integers(model.encode(x)))
        turn(made, role, 2)
        assert torch.equal(client.predict(x).integers, model.integers(model.encode(x)))
        assert client.status()[role]["words_put_right"] == 2


def test_without_a_watch_the_same_bits_spoil_the_answer(tmp_path: Path) -> None:
    model, x = small_model(), inputs(32)  # noise that a ReLU swallows for some is not swallowed for all
    with deployment(tmp_path, options=ServerOptions(patience=PATIENT)) as made, made.client() as client:
        client.predict(x)
        turn(made, "server_a", 2)
        assert not torch.equal(client.predict(x).integers, model.integers(model.encode(x)))


def test_what_cannot_be_put_right_is_refused_by_name_from_then_on(tmp_path: Path) -> None:
    with deployment(tmp_path, options=WATCHED) as made, made.client() as client:
        client.predict(inputs(1))
        turn(made, "server_b", 12)
        for _ in range(2):
            with pytest.raises(
                QueryFailed, match=r"server_b has weights that were altered in its memory.*beyond repair"
            ):
                client.predict(inputs(1))


def test_a_watch_of_every_third_query_looks_at_the_first_and_the_fourth(tmp_path: Path) -> None:
    options = ServerOptions(check_memory=3, patience=PATIENT)
    model, x = small_model(), inputs(32)
    with deployment(tmp_path, options=options) as made, made.client() as client:
        client.predict(x)
        turn(made, "server_a", 1)
        right = [torch.equal(client.predict(x).integers, model.integers(model.encode(x))) for _ in range(3)]
    assert right[2]
    assert not all(right)


def test_a_negative_number_of_queries_is_refused() -> None:
    with pytest.raises(SessionError, match="check_memory is -1"):
        ServerOptions(check_memory=-1)
