"""Defences inside training: what they do in a batch, exactly; that they help; resumable to the bit; clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pqi
from pqi.audit.defences import defence as quantizing
from pqi.audit.defences.adversarial_training import AdversarialTraining, divergence
from pqi.audit.defences.defence import Defence
from pqi.audit.defences.lipschitz import Lipschitz, distance, matrices
from pqi.audit.defences.training import TrainingDefence, chosen, get
from pqi.audit.errors import AuditError
from pqi.audit.subjects import StraightThrough
from pqi.graph.errors import QuantizationError
from pqi.graph.ops import Conv2d, Dense, Requantize
from pqi.quant.calibrate import calibrate
from pqi.quant.lower import lower
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.train.api import Trained, finetune, task_for
from pqi.quant.train.loop import Batch, Epoch, Schedule, Task
from pqi.quant.train.module import TrainableGraph
from tests import networks
from tests.pqi.quant.train import trainkit

X, Y = trainkit.bars(256)
HELD = trainkit.bars(256, seed=9)
FOUR_BITS = Recipe(Scheme(8, activation_bits=4))
BOTH = (AdversarialTraining(0.05, steps=2), Lipschitz(1e-3))


def train(*defences: Any, labels: Tensor | None = Y, **options: Any) -> Trained:
    settings = {"recipe": FOUR_BITS, "schedule": Schedule(epochs=2, batch=32, learning_rate=0.5), **options}
    return finetune(trainkit.taught(1), X, X, labels, defences=defences, **settings)


def same(a: Trained, b: Trained) -> bool:
    pairs = zip(a.model.graph.nodes, b.model.graph.nodes, strict=True)
    return all(torch.equal(t, n.op.tensors()[k]) for m, n in pairs for k, t in m.op.tensors().items())


def begun(net: nn.Module, x: Tensor, labels: Tensor | None = None, recipe: Recipe = FOUR_BITS) -> Task:
    """A task as finetune makes it, and its module."""
    seen = calibrate(net, x)
    lowered = lower(seen, recipe)
    module = TrainableGraph(seen, lowered)
    return task_for(net, seen, lowered.graph, lowered.output_scale, module, x, labels, None, None)


def first(task: Task, n: int = 64, seed: int = 0) -> Batch:
    x, labels = task.inputs[:n], None if task.labels is None else task.labels[:n]
    generator = torch.Generator().manual_seed(seed)
    return Batch(task.encode(x), task.teacher(x), labels, task.module.integers(), generator, 0.3)


def right(task: Task, codes: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return trainkit.accuracy(task.module(codes), labels)


# --- adversarial training -----------------------------------------------------------------------------------------


def test_moved_inputs_are_codes_within_reach_and_inside_the_range() -> None:
    task = begun(trainkit.taught(), X, Y)
    low, high = -2.0, 2.5
    defence = AdversarialTraining(0.05, steps=3, share=0.25, low=low, high=high)
    defence.begin(task)
    batch = first(task)
    made = defence.batch(task, batch)
    moved, still = made.codes[:16], batch.codes[:16]
    reach = int(0.05 * (high - low) * task.input_scale)
    ends = task.encode(torch.tensor([low, high])).tolist()
    assert torch.equal(moved, moved.round()) and int((moved - still).abs().max()) == reach > 2
    inside = (still >= ends[0]) & (still <= ends[1])
    assert bool(((moved >= ends[0]) & (moved <= ends[1]))[inside].all()) and not bool(inside.all())
    assert torch.equal(made.codes[16:], batch.codes[16:])
    assert made.labels_weight.tolist() == pytest.approx([1.0] * 16 + [0.3] * 48)  # type: ignore[union-attr]


def test_a_reach_of_8_255ths_of_255_codes_is_8_codes() -> None:
    net = networks.small_cnn()
    x = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(3)).mul(255).round() / 255
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
    task = begun(net, x, torch.arange(40) % 10)
    defence = AdversarialTraining(8 / 255, steps=8)
    defence.begin(task)
    batch = first(task, 40)
    assert int((defence.batch(task, batch).codes - batch.codes).abs().max()) == 8


def test_steps_along_the_gradient_do_more_harm_than_noise() -> None:
    task = begun(trainkit.taught(), X, Y)
    defence = AdversarialTraining(0.08, steps=5, share=1.0)
    defence.begin(task)
    batch = first(task, 128)
    moved = defence.batch(task, batch).codes
    change = (moved - batch.codes).abs()
    signs = torch.randint(0, 2, change.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    clean, noisy, attacked = (right(task, c, Y[:128]) for c in (batch.codes, batch.codes + signs * change, moved))
    assert attacked < noisy - 0.2 and noisy > clean - 0.1


def test_the_integers_resist_what_they_were_trained_against() -> None:
    images, digits = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = (torch.as_tensor(part)[order] for part in (images / 16, digits))
    x, net = x.float(), networks.mlp(64, 32, 10)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(15):
        for rows in torch.arange(1000).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()

    def robust(*defences: TrainingDefence) -> tuple[float, float]:
        """Accuracy of the integers on unseen digits, and on those moved by up to 0.1."""
        schedule = Schedule(epochs=6, batch=50, learning_rate=3.0, step_rate=0.02)
        model = finetune(net, x[:1000], x[:1000], y[:1000], FOUR_BITS, schedule, defences=defences).model
        module, still, truth = StraightThrough(model), x[1000:], y[1000:]
        moved = still
        for _ in range(10):
            moved = moved.detach().requires_grad_()
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(module(moved), truth), moved)
            moved = (still + (moved + 0.025 * slope.sign() - still).clamp(-0.1, 0.1)).clamp(0, 1)
        clean, attacked = (trainkit.accuracy(model.predict(z.detach(), "silent"), truth) for z in (still, moved))
        return clean, attacked

    plain, trained = robust(), robust(AdversarialTraining(0.1, steps=3))
    assert trained[1] > plain[1] + 0.15 and trained[0] > plain[0] - 0.03


def test_without_labels_the_divergence_is_what_is_raised_and_learnt() -> None:
    task = begun(trainkit.taught(), X)
    defence = AdversarialTraining(0.05, steps=3, share=0.5)
    defence.begin(task)
    batch = first(task)
    assert defence.batch(task, batch) is batch
    logits = task.logits(task.module(batch.codes, batch.weights))
    term = defence.penalty(task, batch, logits)
    again = first(task)  # the same draws once more
    moved = defence.moved(task, again, 32, lambda others: divergence(logits[:32].detach(), others))
    there = task.logits(task.module(moved, again.weights))
    expected = (logits[:32].softmax(1) * (logits[:32].log_softmax(1) - there.log_softmax(1))).sum(1).mean()
    assert term is not None and term.item() == pytest.approx(6 * expected.item(), rel=1e-5)
    assert expected.item() > 0.01 and term.requires_grad
    assert all(p.grad is None for p in task.module.parameters())  # making inputs leaves no gradient behind
    quiet, loud = (train(AdversarialTraining(0.05, steps=2, trades=w), labels=None) for w in (None, 6.0))
    assert same(quiet, loud) and not same(quiet, train(labels=None))


# --- lipschitz ----------------------------------------------------------------------------------------------------


def test_the_term_of_integers_is_that_of_the_real_weights_they_stand_for() -> None:
    trained = train(Lipschitz(1e-2))  # so that steps have grown
    scales, by_name = trained.lowered.scales, trained.lowered.graph.by_name
    task = begun(trainkit.taught(1), X, Y)
    module = task.module
    assert isinstance(module, TrainableGraph)
    with torch.no_grad():
        for i, grown in enumerate(module.grown.values()):
            grown.fill_(0.1 * (i + 1))
    scales, graph = module.lower().scales, module.lower().graph
    total, in_codes = 0.0, 0.0
    for node in graph.nodes:
        if not isinstance(node.op, (Conv2d, Dense)):
            continue
        integers = node.op.weight.flatten(1).double()
        real = integers * float(scales[node.name]) / float(scales[node.inputs[0]])
        total += float((real.T @ real - torch.eye(real.shape[1], dtype=torch.float64)).square().sum())
        reader = graph.by_name.get(module.read_by[node.name])
        if reader is not None and isinstance(reader.op, Requantize):
            gain = integers / 2**reader.op.shift
            in_codes += float((gain.T @ gain - torch.eye(gain.shape[1], dtype=torch.float64)).square().sum())
    batch = first(task)
    for defence, expected in ((Lipschitz(0.01), total), (Lipschitz(0.01, in_codes=True), in_codes)):
        term = defence.penalty(task, batch, torch.zeros(()))
        assert term is not None and term.item() == pytest.approx(0.01 / 2 * expected, rel=1e-4)
    assert set(by_name) == set(graph.by_name)


def test_the_real_weights_are_those_of_the_float_network() -> None:
    net = trainkit.taught(1)
    task = begun(net, X, Y, Recipe(Scheme(12, activation_bits=4)))
    assert isinstance(task.module, TrainableGraph)
    found = matrices(task.module, task.module.integers())
    for name, weight in net.named_parameters():
        if name.endswith("weight"):
            real = weight.detach().flatten(1)
            assert torch.allclose(found[name.removesuffix(".weight")][0], real, atol=float(real.abs().max()) / 500)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 8, 3), (2, 4, 9), (4, 1, 9)])
def test_the_smaller_product_gives_the_same_distance(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = sum(float((m.T @ m - torch.eye(shape[2])).square().sum()) for m in matrix)
    assert float(distance(matrix)) == pytest.approx(whole, rel=1e-5)


def test_grouped_convolutions_count_group_by_group() -> None:
    x = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    task = begun(networks.mobile_block(), x)
    assert isinstance(task.module, TrainableGraph)
    shapes = {tuple(m.shape) for m in matrices(task.module, task.module.integers()).values()}
    assert {(24, 1, 9), (2, 8, 36)} <= shapes


def test_training_brings_layers_nearer_to_isometries() -> None:
    def away(trained: Trained) -> float:
        scales, total = trained.lowered.scales, 0.0
        for node in trained.lowered.graph.nodes:
            if isinstance(node.op, (Conv2d, Dense)):
                real = node.op.weight.flatten(1).float() * float(scales[node.name]) / float(scales[node.inputs[0]])
                total += float(distance(real.unsqueeze(0)))
        return total

    assert away(train(Lipschitz(0.05))) < away(train()) - 1


# --- the interface ------------------------------------------------------------------------------------------------


def test_an_interrupted_defended_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(epoch: Epoch) -> None:
        if epoch.number == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(*BOTH, checkpoint=tmp_path / "state", on_epoch=stop)
    resumed = train(*BOTH, checkpoint=tmp_path / "state")
    whole = train(*BOTH)
    assert same(resumed, whole) and resumed.history == whole.history
    assert not same(whole, train(*BOTH, schedule=Schedule(epochs=2, batch=32, learning_rate=0.5, seed=1)))


@pytest.mark.parametrize("other", [(), (BOTH[0],), BOTH[::-1], (AdversarialTraining(0.05, steps=3), BOTH[1])])
def test_a_checkpoint_of_other_defences_is_refused(other: tuple[Any, ...], tmp_path: Path) -> None:
    short: dict[str, Any] = {"schedule": Schedule(epochs=1, batch=256), "checkpoint": tmp_path / "state"}
    train(*BOTH, **short)
    with pytest.raises(QuantizationError, match="other defences"):
        train(*other, **short)
    train(*BOTH, **short)


def test_a_defence_that_does_nothing_changes_no_bit() -> None:
    class Idle(TrainingDefence):
        name, answers, source = "idle", (), ""

    class SameShare(Idle):
        def batch(self, task: Task, batch: Batch) -> Batch:
            return replace(batch, codes=batch.codes.clone())

    assert same(train(), train(Idle())) and same(train(), train(SameShare()))


def test_names_and_text_stand_for_objects() -> None:
    named = chosen(["adversarial-training:epsilon=0.05,steps=2", "lipschitz:beta=0.001"])
    assert repr(named) == repr(BOTH)
    assert repr(chosen("lipschitz")) == repr((Lipschitz(),)) and chosen(BOTH[0]) == (BOTH[0],)
    short: dict[str, Any] = {"schedule": Schedule(epochs=1, batch=64)}
    assert same(train("lipschitz:beta=0.001", **short), train(BOTH[1], **short))


@pytest.mark.parametrize("wish", ["adversarial-training", "lipschitz:beta=0.01", BOTH[0]])
def test_quantize_says_that_they_belong_to_finetune(wish: Any) -> None:
    with pytest.raises(AuditError, match=r"use pqi\.finetune"):
        pqi.quantize(trainkit.taught(1), X, defences=[wish])


def test_finetune_says_that_others_belong_to_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rounded(Defence):
        name, answers, source = "rounded", (), ""

    monkeypatch.setitem(quantizing.CATALOGUE, "rounded", "nowhere:Rounded")
    for wish in ("rounded", Rounded()):
        with pytest.raises(AuditError, match=r"use pqi\.quantize"):
            train(wish)
    for unknown in ("nothing", 3):
        with pytest.raises(AuditError, match="adversarial-training, lipschitz"):
            train(unknown)
    with pytest.raises(AuditError, match="no_such"):
        get("lipschitz", no_such=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1.5}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"share": 0.0}, "share"),
        ({"trades": -1.0}, "trades"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditError, match=message):
        AdversarialTraining(**wrong)
    with pytest.raises(AuditError, match="beta"):
        Lipschitz(beta=-1.0)


def test_less_than_a_code_is_refused_with_what_a_code_is() -> None:
    with pytest.raises(AuditError, match="less than one code"):
        train(AdversarialTraining(0.001))
    with pytest.raises(AuditError, match="below high"):
        train(AdversarialTraining(0.1, low=1.0, high=0.0))
