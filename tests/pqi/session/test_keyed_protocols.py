"""Every keyed protocol behind the real server: what is no key and no ciphertext of it is refused, others are served."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np
import pytest
from keyedkit import Deployment, affine_model, deployment, inputs, options

import protocols
from pqi.net.channel import Channel
from pqi.net.errors import PeerReported
from pqi.net.frames import FrameType, Limits
from pqi.net.hello import Hello, greet
from pqi.net.tls import TlsFiles, context, dial
from pqi.session.bundle import load_client
from pqi.session.client import Client
from pqi.session.errors import QueryFailed
from pqi.session.keyed.words import chunks
from pqi.session.material import new_id
from protocols.keyed import KeyHolder

NEEDS = {"paillier": "phe", "bfv": "tenseal", "ckks": "tenseal"}
NAME = 16  # bytes in front of a message that name the keys
CODES = np.zeros((1, 6), dtype=np.int64)


class Visitor:
    """A client of a deployment, written by somebody else: sends what it is told to."""

    def __init__(self, running: Deployment) -> None:
        bundle = load_client(running.directory / "client")
        files = TlsFiles.in_directory(running.directory / "client" / "tls")
        secured = dial(running.server.address, context(files, server_side=False), "server_a", 5)
        self.channel = Channel(*secured, Limits(1 << 20, 1 << 28))
        greet(self.channel, Hello("client", bundle.deployment, bundle.program.digest, new_id()), 5)

    def hear(self, *kinds: str) -> None:
        while self.channel.receive_control(30, "a word")["kind"] not in kinds:
            pass

    def bring(self, keys: bytes) -> None:
        self.channel.send_control({"kind": "keys", "query": 0, "length": len(keys)}, 5, "keys")
        for part in chunks(keys):
            self.channel.send_binary(bytes(part), 5, "keys")

    def ask(self, question: bytes) -> None:
        self.channel.send_control({"kind": "query", "query": 1, "n": 1}, 5, "a query")
        self.hear("ready")
        self.channel.send_binary(question, 5, "a part")

    def is_refused(self) -> str:
        with self.channel, pytest.raises(PeerReported) as caught:
            while True:
                self.channel.receive_control(30, "a refusal")
        cause = caught.value.cause
        assert not any(bad in cause for bad in ("internal error", "killed", "timed out")), cause
        return cause


@pytest.fixture(scope="module", params=sorted(NEEDS))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    pytest.importorskip(NEEDS[request.param])
    with deployment(tmp_path_factory.mktemp(request.param), protocol=request.param, bounds=options()) as made:
        yield made


@pytest.fixture(scope="module")
def settled(running: Deployment) -> Iterator[Client]:
    """A client that is there all the time."""
    with running.client() as client:
        client.predict(inputs(1))
        yield client


@pytest.fixture(autouse=True)
def the_settled_client_is_served(settled: Client) -> Iterator[None]:
    yield
    answer, model, x = settled.predict(inputs(3)), affine_model(), inputs(3)
    assert np.abs(answer.values - model.predict(x)).max() <= answer.error_bound
    assert answer.ledger.own is not None and answer.ledger.own.key_bytes == 0


@pytest.fixture(scope="module")
def holder(settled: Client) -> KeyHolder:
    """Somebody else's keys for the same plan."""
    return protocols.get_keyed(settled.program.protocol).key_holder(settled.program.plan)


def test_bytes_that_are_no_keys_are_refused(running: Deployment, settled: Client) -> None:
    visitor = Visitor(running)
    visitor.bring(b"\xff" * settled.program.plan.cost(1).keys)
    assert visitor.is_refused()


def test_keys_in_range_that_mean_nothing_harm_nobody_but_who_sent_them(
    running: Deployment, settled: Client, holder: KeyHolder
) -> None:
    """They cannot always be told from good ones. What is asked under them is refused, or answered with noise."""
    question, cost = holder.encrypt(CODES)[0], settled.program.plan.cost(1)
    for make in (bytes, secrets.token_bytes):
        keys = make(cost.keys)
        visitor = Visitor(running)
        with visitor.channel:
            try:
                visitor.bring(keys)
                visitor.hear("keys-known")
                visitor.ask(keys[:NAME] + question[NAME:])
                visitor.hear("result")
                assert len(visitor.channel.receive_binary(10, "noise")) == cost.answers[0]
            except PeerReported as refusal:
                assert not any(bad in refusal.cause for bad in ("internal error", "killed", "timed out"))


def test_keys_with_one_part_destroyed_are_refused(running: Deployment, settled: Client, holder: KeyHolder) -> None:
    """A modulus without its upper half; residues that are larger than their primes."""
    keys = holder.evaluation_keys()
    half = len(keys) // 2
    short = settled.program.protocol == "paillier"
    visitor = Visitor(running)
    visitor.bring(keys[:NAME] + bytes(half - NAME) + keys[half:] if short else keys[:half] + b"\xff" * len(keys[half:]))
    assert visitor.is_refused()


@pytest.mark.parametrize("kind", ["zeros", "ones", "noise", "foreign", "half"])
def test_bytes_that_are_no_question_under_these_keys_are_refused(
    running: Deployment, settled: Client, holder: KeyHolder, kind: str
) -> None:
    question = holder.encrypt(CODES)[0]
    foreign = settled._talk._holder.encrypt(CODES)[0]
    size = len(question)
    sent = {
        "zeros": bytes(size),
        "ones": b"\xff" * size,
        "noise": secrets.token_bytes(size),
        "foreign": foreign,
        "half": question[: size // 2] + b"\xff" * (size - size // 2),
    }[kind]
    visitor = Visitor(running)
    visitor.bring(holder.evaluation_keys())
    visitor.hear("keys-known")
    visitor.ask(sent)
    assert visitor.is_refused()


def test_no_byte_that_is_sent_or_stored_holds_a_lattice_secret(
    running: Deployment, settled: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    if settled.program.protocol == "paillier":
        pytest.skip("whose primes are looked for where every role is a process")
    from protocols.lattice import wire

    sent: list[bytes] = []
    queue = Channel._queue

    def spy(self: Channel, kind: FrameType, payload: bytes, during: str) -> None:
        sent.append(bytes(payload))
        queue(self, kind, payload, during)

    monkeypatch.setattr(Channel, "_queue", spy)
    with running.client() as client:
        client.predict(inputs(1))
        own = client._talk._holder._secret
    words = np.frombuffer(wire.saved(own._secrets[0])[-8 * 4096 :], np.uint64)
    # A thousand of its residues, in each width that a residue may have on the wire.
    forms = [words.view(np.uint8).reshape(-1, 8)[:1000, :width].tobytes() for width in (6, 7, 8)]
    moved = b"".join(sent)
    stored = b"".join(path.read_bytes() for path in running.directory.rglob("*") if path.is_file())
    assert own.name in moved  # what is public is found this way
    assert len(moved) > settled.program.plan.cost(1).keys
    for form in forms:
        for at in (0, len(form) // 2):
            assert form[at : at + 24] not in moved + stored


def test_an_answer_that_was_altered_on_the_server_is_refused_where_it_cannot_be_one(
    running: Deployment, settled: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends noise of the right length: the client raises and gives no answer."""
    from pqi.session.keyed import serving

    send = serving.KeyedSession._send

    def noise(self: object, query: int, done: list[serving.Done], ledger: object) -> None:
        send(self, query, [serving.Done(secrets.token_bytes(len(d.result)), d.seconds) for d in done], ledger)

    with running.client() as client:
        client.predict(inputs(1))
        monkeypatch.setattr(serving.KeyedSession, "_send", noise)
        with pytest.raises(QueryFailed):
            client.predict(inputs(1))
        monkeypatch.undo()
