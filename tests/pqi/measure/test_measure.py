"""What privacy costs: figures are of what was asked, and a wrong answer or an undeclared byte cannot hide."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from measurekit import FEATURES, KEYED, TRUTH, bench_of, linear, rows, run_of, subject

import pqi
from pqi.audit.defences.outputs import harden
from pqi.measure import bench, folder, problems
from pqi.measure.errors import MeasureError
from pqi.measure.html import page, write_html
from pqi.measure.plain import Beside, decisions, measure_accuracy, measure_plain, right
from pqi.measure.rows import lines, size
from pqi.measure.spread import Spread
from pqi.measure.subject import Subject, subject_of
from pqi.measure.truth import Reply, Truth, as_declared, compare, equal
from pqi.program.keyed import compile_keyed
from pqi.session.client import Answer
from pqi.session.ledger import Ledger, OwnLedger, PartyLedger


def test_a_spread_is_the_median_between_the_least_and_the_largest() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0, 1)


def test_samples_without_privacy_are_taken_whenever_they_are_asked_for() -> None:
    beside = Beside(subject(), 4, ("integer",))
    assert beside.plain().batch == 4
    before = beside.plain()
    beside.sample()
    after = beside.plain()
    assert before.float32_seconds is not None and after.float32_seconds is not None
    assert after.float32_two_threads is not None
    assert after.float32_seconds.runs > before.float32_seconds.runs
    assert set(Beside(replace(subject(), floating=None), 4, ()).plain().integer_seconds) == set()


def test_a_decision_is_the_largest_class_or_the_sign_of_a_single_output() -> None:
    assert decisions(np.array([[1.0, 3.0, 2.0], [5.0, 0.0, 0.0]])).tolist() == [1, 0]
    assert decisions(np.array([[-1.0], [2.0], [0.0]])).tolist() == [0, 1, 0]
    assert right(np.array([[-1.0], [2.0]]), np.array([0, 0])) == 0.5
    assert right(np.array([[-1.0]]), None) is None


def test_accuracies_and_seconds_without_privacy_are_of_the_subject_s_models() -> None:
    made = subject()
    found = measure_accuracy(made)
    with torch.no_grad():
        floats = linear()(torch.from_numpy(made.x)).argmax(1).numpy()
    assert found.integer == {"integer": 1.0}
    assert found.floating == float((floats == made.y).mean())
    plain = measure_plain(made, 8)
    assert plain.batch == 8
    assert plain.float32_seconds is not None
    assert set(plain.integer_seconds) == {"integer"}


def test_inputs_come_again_where_there_are_fewer_than_asked() -> None:
    made = subject()
    assert np.array_equal(made.inputs(45)[20:40], made.x)


def test_a_model_alone_is_asked_about_random_inputs_within_its_range() -> None:
    model = subject().integer
    assert model is not None
    made = subject_of("m.pqi", model, None, None, None, 50)
    low, high = model.input_quantizer.value_range
    assert made.x.shape == (50, FEATURES)
    assert low <= made.x.min() < made.x.max() <= high
    assert "at random" in made.note
    assert measure_accuracy(made).to_json() == {"float": None, "integer": {"integer": None}}


def made_model() -> pqi.IntegerModel:
    model = subject().integer
    assert model is not None
    return model


def with_bits(made: Subject) -> Subject:
    """The subject, which can be made with other bits."""
    return replace(made, made=lambda w, a, rings: pqi.quantize(linear(), rows(100), w, a, rings=rings))


@pytest.mark.slow
def test_every_protocol_that_serves_a_model_is_measured_and_the_others_say_why() -> None:
    pytest.importorskip("phe")
    said: list[str] = []
    wish = bench.Wish(("clear", "additive2", "paillier"), (1, 3), 6, recipes=[(4, 3)])
    made = bench.measure(with_bits(subject()), wish, said.append)
    assert made.held
    assert [(run.protocol, run.asked.batch, run.asked.queries) for run in made.runs] == [
        (protocol, *size) for protocol in ("clear", "additive2", "paillier") for size in ((1, 6), (3, 2))
    ]
    for run in made.runs:
        assert run.truth.equal == run.truth.accuracy == 1.0
        assert run.truth.as_declared
        assert run.figures.seconds["whole"].runs == run.asked.queries
        assert run.figures.seconds["server"].median <= run.figures.seconds["whole"].high
        assert made.beside(run).float32_two_threads is not None
    shared = made.runs[2]
    assert shared.figures.seconds["total"].runs == 3 and shared.figures.seconds["deal"].runs == 6
    program = pqi.compile(made_model(), "additive2")
    assert sum(layer.sent for layer in shared.layers) == program.cost(1).online_bytes
    assert all(layer.as_declared and layer.offline is not None for layer in shared.layers)
    assert made.runs[3].offline is None and made.runs[3].layers  # profiled in the first batch size only
    assert [point.bits for point in made.points] == ["", "4/3"]
    assert made.points[0].online_bytes == program.cost(1).online_bytes
    paillier = made.runs[-1]
    cost = compile_keyed(subject().model("paillier"), "paillier").cost(3)
    assert (paillier.figures.keys_bytes, paillier.figures.question_bytes) == (cost.keys, cost.question)
    assert paillier.figures.answer_bytes == cost.answer
    assert set(paillier.peak_rss_mb) == {"server_a", "client"}
    assert json.loads(json.dumps(made.to_json()))["held"] is True
    assert said[0] == "without privacy"


@pytest.mark.slow
def test_servers_that_send_different_amounts_are_each_held_to_their_own() -> None:
    made = bench.measure(subject(), bench.Wish(("additive2",), samples=2, weights="owned"))
    (run,) = made.runs
    assert made.held and run.figures.online_bytes["server_a"] < run.figures.online_bytes["server_b"]
    assert made.to_json()["runs"][0]["weights"] == "owned"


def test_a_protocol_that_cannot_serve_a_network_is_listed_with_its_reason() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(FEATURES, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    model = pqi.quantize(net, rows(50), input_range=(-1.0, 1.0))
    pytest.importorskip("phe")
    made = bench.measure(subject_of("m.pqi", model, net, rows(4), None, 4), bench.Wish(("paillier",)))
    assert not made.runs
    assert "additive2" in made.refused["paillier"]


def test_a_model_of_polynomials_is_refused_on_shares_by_what_would_serve() -> None:
    made = replace(subject(), integer=None)
    with pytest.raises(MeasureError, match="computed under a key: protocols bfv, ckks, paillier"):
        made.model("additive2")


@pytest.mark.parametrize(
    ("truth", "word"),
    [
        (replace(TRUTH, equal=0.75), "ONLY 75.000 % EXACT"),
        (replace(TRUTH, as_declared=False), "NO"),
        (replace(TRUTH, equal=None, error_bound=0.5, largest_error=0.6), "BEYOND 0.5 (off by 0.6)"),
    ],
)
def test_what_is_not_as_promised_is_told_on_every_way_out(truth: object, word: str) -> None:
    made = bench_of(run_of("additive2"), run_of("bfv", KEYED, truth))  # type: ignore[arg-type]
    assert not made.held
    assert any(word in cells for _, cells in lines(made, list(made.runs)))
    assert made.to_json()["held"] is False
    pytest.importorskip("matplotlib")
    assert "Not everything was as promised" in page(made)


def test_an_approximate_answer_within_its_bound_is_as_promised() -> None:
    truth = replace(TRUTH, equal=None, error_bound=0.5, largest_error=0.4)
    assert truth.held
    assert bench_of(run_of("ckks", KEYED, truth)).held


def answer(values: list[int], **changes: object) -> Answer:
    integers = torch.tensor(values).reshape(-1, 1)
    party = PartyLedger("server_a", 1, 0.0, 0.0, 0, 0.1, 0, 0, 0, 0, 0, 0, 1)
    ledger = Ledger({"server_a": party}, len(values), 1, 0.1, OwnLedger())
    fields = {"values": integers.double().numpy(), "integers": integers, "ledger": ledger, **changes}
    return Answer(**fields)  # type: ignore[arg-type]


def test_one_integer_that_differs_is_counted() -> None:
    reference = torch.tensor([[1], [2], [3], [4]])
    assert equal([answer([1, 2]), answer([3, 4])], reference) == 1.0
    assert equal([answer([1, 2]), answer([3, 5])], reference) == 0.75
    assert equal([answer([1, 2]), answer([3, 4], integers=None)], reference) is None


def test_each_answer_is_compared_with_the_model_s_to_the_same_input_wherever_it_lay() -> None:
    made, model = subject(), made_model()
    program = pqi.compile(model, "clear")
    values = torch.as_tensor(model.integers(model.encode(made.x, "silent")))

    def reply(at: int, n: int, wrong: int = 0) -> Reply:
        integers = values[[k % len(values) for k in range(at, at + n)]].clone()
        integers[0, 0] += wrong
        party = PartyLedger("server_a", 1, 0.0, 0.0, 0, 0.1, 0, 0, 0, 0, 0, 0, 1)
        ledger = Ledger({"server_a": party}, n, 1, 0.1)
        return Reply(Answer(integers.double().numpy() * model.output_scale, integers, ledger), 0.1, (n,), at)

    held = compare(made, model, program, [reply(0, 3), reply(18, 4), reply(1, 2)])
    assert held.held and held.equal == held.accuracy == held.same_decisions == 1.0
    assert compare(made, model, program, [reply(0, 3), reply(18, 5, wrong=1)]).equal == 7 / 8


def test_answers_with_noise_are_held_to_its_bound_and_never_called_exact() -> None:
    made, model = subject(), harden(made_model(), ("noisy", 10))
    program = pqi.compile(model, "clear")
    values = torch.as_tensor(model.integers(model.encode(made.x, "silent")))

    def truth(e: int) -> Truth:
        integers = values.clone()
        integers[3, 0] += e
        party = PartyLedger("server_a", 1, 0.0, 0.0, 0, 0.1, 0, 0, 0, 0, 0, 0, 1)
        ledger, bound = Ledger({"server_a": party}, 20, 1, 0.1), 90 * model.output_scale
        reply = Reply(Answer(integers.double().numpy() * model.output_scale, integers, ledger, bound), 0.1, (20,))
        return compare(made, model, program, [reply])

    assert truth(-89).held and truth(89).equal is None
    assert not truth(91).held


def test_one_byte_that_was_not_declared_is_noticed() -> None:
    pytest.importorskip("phe")
    program = compile_keyed(subject().model("paillier"), "paillier")
    cost = program.cost(2)

    def reply(question: int, keys: int) -> Reply:
        party = PartyLedger("server_a", 1, 0.0, 0.0, 0, 0.1, 0, 0, 0, 0, question, cost.answer, 1)
        return Reply(answer([1, 2], ledger=Ledger({"server_a": party}, 2, 1, 0.1, OwnLedger(keys))), 0.1, (2,))

    assert as_declared(program, reply(cost.question, cost.keys), True)
    assert as_declared(program, reply(cost.question, 0), False)
    assert not as_declared(program, reply(cost.question + 1, cost.keys), True)
    assert not as_declared(program, reply(cost.question, cost.keys), False)


def test_the_page_holds_figures_pictures_refusals_and_who_learns_what(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = bench_of(run_of("additive2"), run_of("bfv", KEYED, batch=8), refused={"paillier": "<no> affine map"})
    write_html(tmp_path / "b.html", made)
    text = (tmp_path / "b.html").read_text()
    assert text.count("<svg") == 3  # seconds, bytes, and how they change with the batch
    for words in (
        "some &lt;net&gt;",
        "&lt;no&gt; affine map",
        "bfv x8",
        "7.34 MB",
        "semi-honest",
        "all exact",
        "its answer",
    ):
        assert words in text
    assert "<script" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["b.html"]


def test_a_line_that_says_nothing_of_any_run_is_left_out() -> None:
    shared = dict(lines(made := bench_of(run_of("additive2")), list(made.runs)))
    assert "dealt" in shared and "client encrypts" not in shared and "noise left" not in shared
    keyed = dict(lines(made := bench_of(run_of("bfv", KEYED)), list(made.runs)))
    assert "dealt" not in keyed and keyed["keys to the server, once"] == ["7.34 MB"]


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (7.34e6, "7.34 MB")])
def test_sizes_are_told_in_decimal_units(count: float, words: str) -> None:
    assert size(count) == words


def test_a_name_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(MeasureError, match="breast-cancer, digits-mlp, digits-cnn, mnist-cryptonet"):
        problems.named("resnet")


def test_mnist_says_where_it_looks_for_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PQI_DATA", raising=False)
    with pytest.raises(MeasureError, match="set PQI_DATA to a folder"):
        problems.named("mnist-cryptonet")
    monkeypatch.setenv("PQI_DATA", str(tmp_path))
    with pytest.raises(MeasureError, match=r"train-images-idx3-ubyte.gz is not one of MNIST's files \(FileNotFound"):
        problems.named("mnist-cryptonet")


def test_mnist_s_format_is_read_and_damage_is_noticed(tmp_path: Path) -> None:
    path, data = tmp_path / "x.gz", np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *data.shape)
    path.write_bytes(gzip.compress(header + data.tobytes()))
    assert np.array_equal(folder.idx(path), data)
    for damaged in (gzip.compress(header + data.tobytes()[:-1]), gzip.compress(b"\0\0"), b"no archive at all"):
        path.write_bytes(damaged)
        with pytest.raises(MeasureError, match="not one of MNIST's files"):
            folder.idx(path)


def test_breast_cancer_is_one_affine_map_that_decides_as_well_as_the_float_network() -> None:
    pytest.importorskip("sklearn")
    made = problems.named("breast-cancer")
    found = measure_accuracy(made)
    assert made.x.shape == (143, 30)
    assert found.floating is not None and found.floating > 0.94
    assert found.integer["integer"] is not None and found.integer["integer"] > found.floating - 0.01


def test_an_image_is_moved_by_at_most_a_pixel_and_loses_only_its_edge() -> None:
    images = torch.zeros(50, 1, 5, 5)
    images[:, 0, 2, 2] = 1
    moved = problems.shifted(images, torch.Generator().manual_seed(0))
    at = moved.flatten(1).argmax(1)
    assert moved.shape == images.shape
    assert (moved.flatten(1).sum(1) == 1).all()
    assert set(at.tolist()) == {5 * row + column for row in (1, 2, 3) for column in (1, 2, 3)}
