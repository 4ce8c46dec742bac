"""Fine-tuning: better than without, the same for a seed, resumable to the bit, inside the ring that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import pqi
from pqi.graph.errors import QuantizationError
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.train.api import Trained, finetune
from pqi.quant.train.loop import Epoch, Schedule, flip_and_shift
from tests.pqi.quant.train import trainkit

TWO_BITS = Recipe(Scheme(2, activation_bits=2))
X, Y = trainkit.bars(256)
HELD = trainkit.bars(256, seed=9)


def train(**options: Any) -> Trained:
    settings = {"recipe": TWO_BITS, "schedule": Schedule(epochs=4, batch=32, learning_rate=0.05), **options}
    return finetune(trainkit.taught(), X, X, Y, **settings)


def same(a: Trained, b: Trained) -> bool:
    pairs = zip(a.model.graph.nodes, b.model.graph.nodes, strict=True)
    return all(torch.equal(t, n.op.tensors()[k]) for m, n in pairs for k, t in m.op.tensors().items())


def test_two_bits_learn_back_what_rounding_lost() -> None:
    untrained = pqi.quantize(trainkit.taught(), X, 2, 2)
    trained = train()
    before, after = (trainkit.accuracy(m.predict(HELD[0], "silent"), HELD[1]) for m in (untrained, trained.model))
    assert after > before + 0.05 and after > 0.85
    losses = [epoch.loss for epoch in trained.history]
    assert losses[-1] < losses[0]


def test_without_labels_the_float_network_teaches() -> None:
    net = trainkit.taught()
    model = finetune(net, X, X, None, TWO_BITS, Schedule(epochs=4, batch=32, learning_rate=0.05)).model
    with torch.no_grad():
        taught = net(HELD[0]).argmax(1)
    assert trainkit.accuracy(model.predict(HELD[0], "silent"), taught) > 0.85


def test_a_seed_decides_everything() -> None:
    options: dict[str, Any] = {"schedule": Schedule(epochs=1, batch=32, seed=5), "augment": flip_and_shift}
    assert same(train(**options), train(**options))
    assert not same(train(**options), train(schedule=Schedule(epochs=1, batch=32, seed=6), augment=flip_and_shift))


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(checkpoint=tmp_path / "state", on_epoch=stop)
    numbers: list[int] = []
    resumed = train(checkpoint=tmp_path / "state", on_epoch=lambda e: numbers.append(e.number))
    assert numbers == [3, 4] and [e.number for e in resumed.history] == [1, 2, 3, 4]
    assert same(resumed, train())


def test_a_checkpoint_of_another_training_is_refused_and_left_alone(tmp_path: Path) -> None:
    train(checkpoint=tmp_path / "state", schedule=Schedule(epochs=1, batch=64))
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(QuantizationError, match="another schedule"):
        train(checkpoint=tmp_path / "state", schedule=Schedule(epochs=2, batch=64))
    assert (tmp_path / "state").read_bytes() == before
    fewer_codes = Recipe(Scheme(2, activation_bits=3))  # other weights of the same shapes
    for other in ({"recipe": fewer_codes}, {"max_ring": 20}):
        with pytest.raises(QuantizationError, match="another network, recipe"):
            train(checkpoint=tmp_path / "state", schedule=Schedule(epochs=1, batch=64), **other)
    assert (tmp_path / "state").read_bytes() == before
    (tmp_path / "other").write_bytes(b"not a checkpoint")
    with pytest.raises(QuantizationError, match="no checkpoint"):
        train(checkpoint=tmp_path / "other")


def test_every_accumulator_is_proven_inside_the_ring_asked_for() -> None:
    free = train(schedule=Schedule(epochs=1, batch=64))
    widest = max(free.model.accumulators.values())
    bound = train(schedule=Schedule(epochs=2, batch=32), max_ring=widest - 1)
    assert bound.model.policy == "proven" and not bound.model.verify().can_wrap
    assert max(bound.model.accumulators.values()) <= widest - 1


def test_progress_tells_batches_losses_and_accuracy() -> None:
    batches: list[tuple[int, int]] = []
    epochs: list[Epoch] = []
    trained = train(
        validation=HELD,
        on_epoch=epochs.append,
        on_batch=lambda done, total, loss: batches.append((done, total)),
        schedule=Schedule(epochs=2, batch=100),
    )
    assert batches == [(i, 6) for i in range(1, 7)] and tuple(epochs) == trained.history
    assert epochs[-1].accuracy == trainkit.accuracy(trained.model.predict(HELD[0], "silent"), HELD[1])


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (X[:, :, :7], Y, r"\(N, 1, 8, 8\) is needed"),
        (X[:0], Y[:0], r"\(N, 1, 8, 8\) is needed"),
        (X * torch.nan, Y, "NaN"),
        (X, Y[:5], "labels"),
        (X, Y.float(), "integers"),
        (X, Y + 1, "0 to 3"),
    ],
)
def test_training_data_that_do_not_fit_are_refused(inputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        finetune(trainkit.taught(1), X, inputs, labels)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch": True}, {"learning_rate": 0.0}, {"labels_weight": 1.5}, {"temperature": -1.0}]
)
def test_a_schedule_explains_what_it_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError, match=next(iter(wrong))):
        Schedule(**wrong)


def test_validation_without_labels_is_refused() -> None:
    with pytest.raises(QuantizationError, match="no labels"):
        train(validation=(X, None))


def test_augmentation_moves_and_mirrors_by_its_generator_alone() -> None:
    a, b = (flip_and_shift(X, torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(a, b) and a.shape == X.shape and not torch.equal(a, X)
    one = torch.zeros(200, 1, 8, 8)
    one[:, :, 3, 3] = 1.0
    places = {tuple(p.nonzero()[0].tolist()) for p in flip_and_shift(one, torch.Generator().manual_seed(2))[:, 0]}
    assert places == {(r, c) for r in (2, 3, 4) for c in (2, 3, 4, 5)}
